"""The L7 rows: Meltemi's waypoint on plaintext listeners, beside nginx, HAProxy and nghttpx in front of
the same origin. Everything on CPU 0, no access logs, no filters; CPU microseconds per request.

The rows with mutual TLS on both sides are those of hbone_rows.
"""

import json
import os
import re
import subprocess

import netlab

ORIGIN_H1, ORIGIN_H2 = 9600, 9601
FRONT = {"nginx": 9610, "haproxy": 9611, "nghttpx": 9612, "meltemi": 9613}
FRONT_H2 = {"haproxy": 9621, "nghttpx": 9622, "meltemi": 9623}


def goals(goal):
    return [goal("h1 to h1", "cpu_us", "meltemi", "nginx", 1.2),
            goal("h2 to h2", "cpu_us", "meltemi", "nghttpx", 1.3)]


def write(path, text):
    with open(path, "w") as f:
        f.write(text)
    return path


def nginx_origin(work):
    return write(f"{work}/origin.conf", f"""
daemon off; master_process off; worker_processes 1; error_log /dev/null; pid {work}/origin.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 1h;
  client_body_temp_path {work}/o1; proxy_temp_path {work}/o2; fastcgi_temp_path {work}/o3;
  uwsgi_temp_path {work}/o4; scgi_temp_path {work}/o5;
  server {{ listen 127.0.0.1:{ORIGIN_H1};
    location / {{ return 200 "0123456789abcdef0123456789abcdef"; }}
    location /files/ {{ alias {work}/htdocs/; }} }}
}}
""")


def nginx_proxy(work):
    return write(f"{work}/proxy.conf", f"""
daemon off; master_process off; worker_processes 1; error_log /dev/null; pid {work}/proxy.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 1h;
  client_body_temp_path {work}/p1; proxy_temp_path {work}/p2; fastcgi_temp_path {work}/p3;
  uwsgi_temp_path {work}/p4; scgi_temp_path {work}/p5;
  upstream origin {{ server 127.0.0.1:{ORIGIN_H1}; keepalive 256; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{FRONT['nginx']};
    location / {{ proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}
}}
""")


def haproxy_proxy(work):
    return write(f"{work}/haproxy-l7.cfg", f"""
global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 10s
  timeout client 1h
  timeout server 1h
  http-reuse always
  no log
listen h1
  bind 127.0.0.1:{FRONT['haproxy']}
  server origin 127.0.0.1:{ORIGIN_H1}
listen h2
  bind 127.0.0.1:{FRONT_H2['haproxy']} proto h2
  server origin 127.0.0.1:{ORIGIN_H2} proto h2
""")


def waypoint_config(work):
    """Envoy v3 resources: two bound plaintext listeners and two plaintext clusters."""

    def listener(name, port, cluster):
        return {
            "name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network."
                             "http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": name,
                    "route_config": {"name": name, "virtual_hosts": [{
                        "name": "all", "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}]},
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters."
                                                  "http.router.v3.Router"}}]}}]}]}

    def cluster(name, port, h2):
        out = {"name": name, "type": "STATIC", "connect_timeout": "10s",
               "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{
                   "endpoint": {"address": {"socket_address": {
                       "address": "127.0.0.1", "port_value": port}}}}]}]}}
        if h2:
            out["typed_extension_protocol_options"] = {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3."
                             "HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}}}}
        return out

    return write(f"{work}/waypoint.json", json.dumps({
        "listeners": [listener("h1", FRONT["meltemi"], "origin-h1"),
                      listener("h2", FRONT_H2["meltemi"], "origin-h2")],
        "clusters": [cluster("origin-h1", ORIGIN_H1, False), cluster("origin-h2", ORIGIN_H2, True)]}))


def wrk(port, seconds, connections=64, path="/"):
    return ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"http://127.0.0.1:{port}{path}"]


def h2load(port, seconds):
    return ["h2load", "-c8", "-m16", "-w30", "-W30", f"-D{seconds}", "--warm-up-time=1",
            f"http://127.0.0.1:{port}/32.txt"]


def requests_of(tool, text):
    """Requests completed, and that every one of them succeeded."""
    if tool == "wrk":
        if re.search(r"Non-2xx or 3xx responses: (\d+)", text) or "Socket errors" in text:
            raise RuntimeError("wrk saw failures:\n" + text)
        return int(re.search(r"(\d+) requests in", text).group(1))
    done = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded", text)
    if int(done.group(1)) != int(done.group(2)):
        raise RuntimeError("h2load saw failures:\n" + text)
    return int(done.group(1))


def load(lab, ns, argv, tool, pids, seconds):
    """CPU per request over the whole run of the tool: start-up is the same small part for all."""
    before = netlab.cpu_seconds(pids)
    out = subprocess.run(["ip", "netns", "exec", ns, "taskset", "-c", "0"] + argv, check=True,
                         text=True, capture_output=True, timeout=seconds + 60).stdout
    cpu = netlab.cpu_seconds(pids) - before
    n = requests_of(tool, out)
    return {"cpu_us": cpu / n * 1e6, "requests_per_s": n / seconds}


def measure(args, table, wanted, work, say):
    if not wanted.search("h1 to h1") and not wanted.search("h2 to h2"):
        return
    lab = netlab.Lab()
    ns, seconds = lab.a, max(2, int(args.seconds) + 1)
    try:
        os.makedirs(f"{work}/htdocs", exist_ok=True)
        write(f"{work}/htdocs/32.txt", "0123456789abcdef0123456789abcdef")
        quiet = {"netns": ns, "cpu": 0, "stdout": subprocess.DEVNULL}
        lab.start(["nginx", "-c", nginx_origin(work), "-p", work], **quiet)
        lab.start(["nghttpd", "--no-tls", "-a", "127.0.0.1", "-d", f"{work}/htdocs", "-w30", "-W30",
                   str(ORIGIN_H2)], **quiet)
        children = {
            "nginx": lab.start(["nginx", "-c", nginx_proxy(work), "-p", work], **quiet),
            "haproxy": lab.start(["haproxy", "-db", "-q", "-f", haproxy_proxy(work)], **quiet),
            "nghttpx": lab.start(["nghttpx", f"-f127.0.0.1,{FRONT_H2['nghttpx']};no-tls",
                                  f"-b127.0.0.1,{ORIGIN_H2};;proto=h2", "-n1", "--single-process",
                                  "--errorlog-file=/dev/null", "--conf=/dev/null"], **quiet),
            "meltemi": lab.start([os.path.join(args.bin, "waypoint"), "--static-config",
                                  waypoint_config(work), "--worker-threads", "1"], netns=ns, cpu=0,
                                 stdout=subprocess.DEVNULL, env={"LOG_LEVEL": "warn"},
                                 log=f"{work}/waypoint.log"),
        }
        for port in list(FRONT.values())[:2] + [FRONT["meltemi"]] + list(FRONT_H2.values()):
            netlab.wait_port(ns, port)
        for round_number in range(args.rounds):
            for row, fronts, tool, argv in (("h1 to h1", FRONT, "wrk", wrk),
                                            ("h2 to h2", FRONT_H2, "h2load", h2load)):
                if not wanted.search(row):
                    continue
                for peer in fronts:
                    if row == "h1 to h1" and peer == "nghttpx":
                        continue
                    table.add(row, peer, load(lab, ns, argv(fronts[peer], seconds), tool,
                                              [children[peer].pid], seconds))
                    say(f"round {round_number + 1}: {row}: {peer}")
    finally:
        lab.close()
