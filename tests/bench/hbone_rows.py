"""A waypoint with HBONE on both sides, beside nginx and HAProxy that route the same HTTP/1.1 between mutual
TLS and mutual TLS. Everything on CPU 0, one worker each, TLS_AES_128_GCM_SHA256 for all; the cost is
the CPU of the proxy in the middle alone.

    wrk ─ TCP ─ near ═ HBONE ═ waypoint ═ HBONE ═ far ─ TCP ─ origin
    wrk ─ TCP ─ near ═  mTLS ═   peer   ═  mTLS ═ far ─ TCP ─ origin

The ends only wrap and unwrap, and are not measured: two bare ends of our tunnel, two HAProxy in mode
tcp. The waypoint is the product, configured and certified by meltemid: VIP, routing, pinned endpoint.
A second one relays plaintext to plaintext, for what the mutual TLS costs.
"""

import os
import subprocess
import sys
import time

import control
import http_rows
import netlab
import peers

ORIGIN = http_rows.ORIGIN_H1
WAYPOINT, POD, VIP = "10.99.0.9", "10.99.0.11", "10.99.8.1"
# Where wrk connects to; the port after it is the peer's own.
NEAR = {"meltemi": 9630, "nginx-mtls": 9632, "haproxy-mtls": 9634}
PLAIN = http_rows.FRONT["meltemi"]
FAR = 9640  # mutual TLS in front of the origin, for the peers
IDENTITY = "spiffe://cluster.local/ns/shop/sa/"
FILE_BYTES = 1 << 20

ROWS = [("hbone h1 1 connection", 1, "/"), ("hbone h1 64 connections", 64, "/"),
        ("hbone h1 bulk 8 connections", 8, "/files/1m.bin")]

OBJECTS = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: waypoint, namespace: shop, labels: {{istio.io/waypoint-for: service}}}}
spec:
  gatewayClassName: meltemi-waypoint
  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]
---
apiVersion: v1
kind: Service
metadata: {{name: catalog, namespace: shop}}
spec:
  clusterIP: {VIP}
  clusterIPs: [{VIP}]
  selector: {{app: catalog}}
  ports: [{{name: http, port: 80, targetPort: {ORIGIN}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: catalog, namespace: shop}}
spec:
  hosts: [catalog]
  http: [{{route: [{{destination: {{host: catalog}}}}]}}]
"""


def goals(goal):
    """Design, section 8: at most 0.66 of nginx, and mutual TLS adds at most 8 % to plaintext."""
    out = []
    for row, _, path in ROWS:
        if path == "/":
            out += [goal(row, "cpu_us", "meltemi", "nginx-mtls", 0.66),
                    goal(row, "cpu_us", "meltemi", "meltemi-plaintext", 1.08)]
        else:
            out.append(goal(row, "cpu_s_per_gb", "meltemi", "haproxy-mtls", 0.6))
    return out


def haproxy(work, name, mode, listens):
    """`listens`: (name, bind, server); a * in front of an address says mutual TLS."""
    mtls = f"ssl crt {work}/peer.pem ca-file {work}/ca.pem verify required"
    lines = ["global", "  nbthread 1", "  maxconn 8000",
             f"  ssl-default-bind-ciphersuites {peers.CIPHER}",
             f"  ssl-default-server-ciphersuites {peers.CIPHER}",
             "  ssl-default-bind-options ssl-min-ver TLSv1.3",
             "  ssl-default-server-options ssl-min-ver TLSv1.3",
             "defaults", f"  mode {mode}", "  timeout connect 10s", "  timeout client 1h",
             "  timeout server 1h", "  no log"] + (["  http-reuse always"] if mode == "http" else [])

    def address(text):
        return text[1:] + " " + mtls if text.startswith("*") else text

    for label, bind, server in listens:
        lines += [f"listen {label}", "  bind " + address(bind), "  server next " + address(server)]
    path = http_rows.write(f"{work}/haproxy-{name}.cfg", "\n".join(lines) + "\n")
    return ["haproxy", "-db", "-q", "-f", path]


def nginx(work, port):
    path = http_rows.write(f"{work}/nginx-mtls.conf", f"""
daemon off; master_process off; worker_processes 1; error_log /dev/null; pid {work}/mtls.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 1h;
  client_body_temp_path {work}/m1; proxy_temp_path {work}/m2; fastcgi_temp_path {work}/m3;
  uwsgi_temp_path {work}/m4; scgi_temp_path {work}/m5;
  upstream origin {{ server 127.0.0.1:{FAR}; keepalive 256; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port} ssl;
    ssl_certificate {work}/peer.pem; ssl_certificate_key {work}/peer.pem;
    ssl_client_certificate {work}/ca.pem; ssl_verify_client on;
    ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites {peers.CIPHER};
    location / {{ proxy_pass https://origin; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_ssl_certificate {work}/peer.pem; proxy_ssl_certificate_key {work}/peer.pem;
      proxy_ssl_trusted_certificate {work}/ca.pem; proxy_ssl_verify on; proxy_ssl_name peer;
      proxy_ssl_protocols TLSv1.3; proxy_ssl_conf_command Ciphersuites {peers.CIPHER}; }} }}
}}
""")
    return ["nginx", "-c", path, "-p", work]


class Bench:
    def __init__(self, args, work):
        self.args, self.work = args, f"{work}/hbone"
        os.makedirs(f"{self.work}/htdocs")
        self.lab = netlab.Lab("hbone")
        self.ns = self.lab.a
        self.quiet = {"netns": self.ns, "cpu": 0, "stdout": subprocess.DEVNULL}
        self.measured = {}  # peer -> its process

    def binary(self, name):
        return os.path.join(self.args.bin, name)

    def start(self):
        with open(f"{self.work}/htdocs/1m.bin", "wb") as f:
            f.write(os.urandom(FILE_BYTES))
        for ip in (WAYPOINT, POD):
            netlab.run("ip", "-n", self.ns, "addr", "add", ip + "/32", "dev", "lo")
        self.lab.start(["nginx", "-c", http_rows.nginx_origin(self.work), "-p", self.work],
                       **self.quiet)
        self.start_peers()
        self.start_plaintext()
        self.start_mesh()

    def start_peers(self):
        peers.certificates(self.work)
        nginx_port, haproxy_port = NEAR["nginx-mtls"] + 1, NEAR["haproxy-mtls"] + 1
        self.lab.start(haproxy(self.work, "ends", "tcp", [
            ("nginx", f"127.0.0.1:{nginx_port - 1}", f"*127.0.0.1:{nginx_port}"),
            ("haproxy", f"127.0.0.1:{haproxy_port - 1}", f"*127.0.0.1:{haproxy_port}"),
            ("far", f"*127.0.0.1:{FAR}", f"127.0.0.1:{ORIGIN}")]), **self.quiet)
        self.measured["nginx-mtls"] = self.lab.start(nginx(self.work, nginx_port), **self.quiet)
        self.measured["haproxy-mtls"] = self.lab.start(haproxy(self.work, "http", "http", [
            ("h1", f"*127.0.0.1:{haproxy_port}", f"*127.0.0.1:{FAR}")]), **self.quiet)
        for port in NEAR["nginx-mtls"], NEAR["haproxy-mtls"]:
            netlab.wait_port(self.ns, port)

    def start_plaintext(self):
        # In the lab's other namespace: two waypoints would want the same admin ports.
        quiet = dict(self.quiet, netns=self.lab.b)
        self.lab.start(["nginx", "-c", http_rows.nginx_origin(self.work), "-p", self.work], **quiet)
        self.measured["meltemi-plaintext"] = self.lab.start(
            [self.binary("waypoint"), "--static-config", http_rows.waypoint_config(self.work),
             "--worker-threads", "1"], env={"LOG_LEVEL": "warn"},
            log=f"{self.work}/plaintext.log", **quiet)
        netlab.wait_port(self.lab.b, PLAIN)

    def start_mesh(self):
        config, ca = f"{self.work}/config", f"{self.work}/ca"
        os.makedirs(ca, mode=0o700)
        control.write(f"{config}/objects.yaml", OBJECTS)
        nodes = f"{config}/state/node"
        control.write(f"{nodes}/shop.catalog.yaml",
                      control.pod("shop", "catalog", POD, "catalog", {"app": "catalog"}))
        control.write(f"{nodes}/shop.waypoint-0.yaml", control.pod(
            "shop", "waypoint-0", WAYPOINT, "waypoint",
            {"gateway.networking.k8s.io/gateway-name": "waypoint",
             "istio.io/dataplane-mode": "none"}))
        tokens = control.Tokens(self.work)
        self.lab.start([self.binary("meltemid"), "--config-dir", config, "--ca-dir", ca,
                        "--token-public-key", tokens.public, "--xds-listen", "127.0.0.1:15012",
                        "--monitoring-listen", "127.0.0.1:15014"], netns=self.ns,
                       stdout=subprocess.DEVNULL, log=f"{self.work}/meltemid.log")
        netlab.wait_port(self.ns, 15012)
        netlab.run("nsenter", f"--net=/run/netns/{self.ns}", "--", sys.executable,
                   control.__file__, "enrolled", "127.0.0.1:15012", ca, self.work, "catalog")
        token = http_rows.write(f"{self.work}/waypoint.token",
                                tokens.make("shop", "waypoint", "waypoint-0", "n1"))
        self.measured["meltemi"] = self.lab.start(
            [self.binary("waypoint")], log=f"{self.work}/waypoint.log", env={
                "POD_NAME": "waypoint-0", "POD_NAMESPACE": "shop", "SERVICE_ACCOUNT": "waypoint",
                "INSTANCE_IP": WAYPOINT, "GATEWAY_NAME": "waypoint", "AUTH_TOKEN": token,
                "XDS_ADDRESS": "https://127.0.0.1:15012", "XDS_ROOT_CA": f"{ca}/root-cert.pem",
                "WAYPOINT_WORKER_THREADS": "1", "HBONE_LISTEN": f"{WAYPOINT}:15008",
                "LOG_LEVEL": "warn"}, **self.quiet)
        pair = os.path.join(os.path.dirname(self.args.bin), "tests", "meltemi-tunnel-pair")
        ends = f"{self.work}/ends"
        os.makedirs(ends)
        control.issue(ca, IDENTITY + "webapp", f"{ends}/near")
        control.issue(ca, IDENTITY + "catalog", f"{ends}/far")
        os.symlink(f"{ca}/root-cert.pem", f"{ends}/root.crt")
        self.lab.start([pair, "far", ends, f"{POD}:15008", f"127.0.0.1:{ORIGIN}"], **self.quiet)
        self.lab.start([pair, "near", ends, f"127.0.0.1:{NEAR['meltemi']}", f"{WAYPOINT}:15008",
                        "uring", IDENTITY + "waypoint", f"{VIP}:80"], **self.quiet)
        self.wait_answer(NEAR["meltemi"])

    def wait_answer(self, port, timeout=30):
        deadline = time.monotonic() + timeout
        while True:
            done = subprocess.run(
                ["nsenter", f"--net=/run/netns/{self.ns}", "--", "curl", "-s", "-o", "/dev/null",
                 "-w", "%{http_code}", "--max-time", "5", f"http://127.0.0.1:{port}/"],
                text=True, capture_output=True)
            if done.stdout == "200":
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"the waypoint does not answer: {done.stdout!r}; its log ends:\n"
                                   + "".join(open(f"{self.work}/waypoint.log").readlines()[-5:]))
            time.sleep(0.2)

    def sample(self, peer, connections, path):
        ns, port = ((self.lab.b, PLAIN) if peer == "meltemi-plaintext" else (self.ns, NEAR[peer]))
        seconds = max(2, int(self.args.seconds) + 1)
        figures = http_rows.load(self.lab, ns, http_rows.wrk(port, seconds, connections, path), "wrk",
                                 [self.measured[peer].pid], seconds)
        if path != "/":
            gb_per_request = FILE_BYTES / 1e9
            figures = {"cpu_s_per_gb": figures["cpu_us"] / 1e6 / gb_per_request,
                       "gb_per_s": figures["requests_per_s"] * gb_per_request}
        return figures


def measure(args, table, wanted, work, say):
    rows = [row for row in ROWS if wanted.search(row[0])]
    if not rows:
        return
    bench = Bench(args, work)
    try:
        bench.start()
        for round_number in range(args.rounds):
            for name, connections, path in rows:
                for peer in ("nginx-mtls", "haproxy-mtls", "meltemi-plaintext", "meltemi"):
                    table.add(name, peer, bench.sample(peer, connections, path))
                    say(f"round {round_number + 1}: {name}: {peer}")
    finally:
        bench.lab.close()
