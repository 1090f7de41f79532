"""What the waypoint tests share: a network namespace of their own, a waypoint process with a static
configuration, and origins. Must never leave a process behind: every child is in Lab.children and ended
by its own pid.
"""

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

BIN = os.environ.get("MELTEMI_BIN_DIR", "")
HCM = ("type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3."
       "HttpConnectionManager")
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def enter_own_netns():
    """Runs the calling script again in a fresh network namespace, with lo up."""
    if os.environ.get("MELTEMI_TEST_NETNS") == "1":
        return
    if os.geteuid() != 0:
        print("skipped: this test needs root")
        sys.exit(77)
    os.environ["MELTEMI_TEST_NETNS"] = "1"
    os.execvp("unshare", ["unshare", "-n", "--", "sh", "-c", 'ip link set lo up && exec "$@"', "sh",
                          sys.executable, "-B"] + sys.argv)


def listener(name, port, routes, **options):
    manager = {"@type": HCM, "stat_prefix": name,
               "route_config": {"name": name, "virtual_hosts": [
                   {"name": "all", "domains": ["*"], "routes": routes}]},
               "http_filters": [{"name": "envoy.filters.http.router",
                                 "typed_config": {"@type": ROUTER}}]}
    manager.update(options)
    return {"name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": manager}]}]}


def cluster(name, ports, protocol=None, **options):
    out = {"name": name, "type": "STATIC", "connect_timeout": "2s", "lb_policy": "ROUND_ROBIN",
           "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
               {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1",
                                                            "port_value": p}}}} for p in ports]}]}}
    if protocol:
        out["typed_extension_protocol_options"] = {HTTP_OPTIONS: {
            "@type": "type.googleapis.com/" + HTTP_OPTIONS,
            "explicit_http_config": {protocol: {}}}}
    out.update(options)
    return out


def route(prefix, cluster_name, name="", match=None, **action):
    m = {"prefix": prefix}
    m.update(match or {})
    return {"name": name, "match": m, "route": dict({"cluster": cluster_name, "timeout": "0s"},
                                                    **action)}


class Origin(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024  # the default of 5 drops connections under load

    def handle_error(self, request, client_address):
        pass  # clients that leave early are part of the tests


class Lab:
    def __init__(self):
        self.work = tempfile.mkdtemp(prefix="meltemi-waypoint-")
        self.children = []
        self.servers = []
        self.log = os.path.join(self.work, "waypoint.log")

    def close(self):
        for child in self.children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self.children:
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for server in self.servers:
            server.shutdown()
            server.server_close()
        shutil.rmtree(self.work, ignore_errors=True)

    def waypoint(self, config, *flags, ports=()):
        path = os.path.join(self.work, "config.json")
        with open(path, "w") as f:
            json.dump(config, f)
        with open(self.log, "a") as log:
            child = subprocess.Popen([os.path.join(BIN, "waypoint"), "--static-config", path,
                                      "--worker-threads", "2", *flags], stderr=log)
        self.children.append(child)
        for port in list(ports) + [15000, 15020, 15021]:
            wait_port(port)
        return child

    def serve(self, port, handler, ip="127.0.0.1"):
        server = Origin((ip, port), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.servers.append(server)
        return server

    def log_lines(self, wanted, timeout=10):
        """Lines of the waypoint's log that contain `wanted`; waits until there is one."""
        deadline = time.monotonic() + timeout
        while True:
            with open(self.log) as f:
                lines = [line for line in f if wanted in line]
            if lines or time.monotonic() > deadline:
                return lines
            time.sleep(0.05)


def wait_port(port, timeout=30):
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing listens on port {port}")
            time.sleep(0.05)


def curl(*args, timeout=60):
    """(status, headers in order as (name, value), body)"""
    out = subprocess.run(["curl", "-s", "-i", "--path-as-is", "-H", "Expect:", *args],
                         capture_output=True, timeout=timeout, check=True).stdout
    head, _, body = out.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = [tuple(line.split(": ", 1)) if ": " in line else (line.rstrip(":"), "")
              for line in lines[1:]]
    return int(lines[0].split()[1]), fields, body


def raw(port, data, shut=False, timeout=20):
    """Everything that comes back for these bytes, and whether the connection ended in order."""
    with socket.create_connection(("127.0.0.1", port), timeout) as s:
        s.settimeout(timeout)
        s.sendall(data)
        if shut:
            s.shutdown(socket.SHUT_WR)
        out = b""
        while True:
            piece = s.recv(65536)
            if not piece:
                return out
            out += piece


class WithoutGoaway:
    """Takes GOAWAY out of what h2 is fed, which takes the connection for closed with it. RFC 9113 section
    6.8: streams that are open go on. `preface`: bytes that come before the first frame."""

    def __init__(self, preface=0):
        self.preface, self.held, self.goaways = preface, b"", []

    def feed(self, data):
        self.held += data
        out = b""
        if self.preface:
            if len(self.held) < self.preface:
                return out
            out, self.held, self.preface = self.held[:self.preface], self.held[self.preface:], 0
        while len(self.held) >= 9:
            size = 9 + int.from_bytes(self.held[:3], "big")
            if len(self.held) < size:
                break
            frame, self.held = self.held[:size], self.held[size:]
            if frame[3] == 7:
                self.goaways.append(frame)
            else:
                out += frame
        return out


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with what it received, as JSON."""
    protocol_version = "HTTP/1.1"
    hits = []

    def reply(self, status, body, fields=()):
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def read_body(self):
        if self.headers.get("transfer-encoding") == "chunked":
            size = 0
            while True:
                n = int(self.rfile.readline().split(b";")[0], 16)
                size += len(self.rfile.read(n))
                self.rfile.readline()
                if n == 0:
                    return size
        size = left = int(self.headers.get("content-length", 0))
        while left > 0:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        return size

    def do_GET(self):
        size = self.read_body()
        type(self).hits.append((self.command, self.path))
        body = json.dumps({"method": self.command, "target": self.path, "body": size,
                           "fields": self.headers.items(),
                           "port": self.server.server_address[1]}).encode()
        self.reply(200, body, [("X-Case-Kept", "Yes"), ("x-second", "2")])

    do_POST = do_PUT = do_HEAD = do_OPTIONS = do_GET

    def log_message(self, *args):
        pass
