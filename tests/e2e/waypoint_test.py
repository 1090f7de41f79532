#!/usr/bin/python3
"""Waypoints in one sandbox: one behind another, of a service account, of workloads, and for bytes. What
each waypoint's policies say must hold on every way that leads to what it guards."""

import json
import os
import subprocess
import unittest

import harness
from harness import Sandbox, server, sleeper, wait

SANDBOX = None
SPIFFE = "spiffe://cluster.local/ns/"
HERE = os.path.dirname(os.path.abspath(__file__))


def account(name):
    return f"apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}}}\n---\n"


def policy(name, kind, target, action, principals):
    group = "gateway.networking.k8s.io" if kind == "Gateway" else ""
    rules = json.dumps([{"from": [{"source": {"principals": principals}}]}])
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}}}
spec:
  targetRefs: [{{kind: {kind}, group: "{group}", name: {target}}}]
  action: {action}
  rules: {rules}
"""


def principal(ns, name):
    return f"cluster.local/ns/{ns}/sa/{name}"


def routes(name, *rules):
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec:
  hosts: [{name}]
  http: {json.dumps([{"match": [{"uri": {"prefix": prefix}}], "route": [{"destination": {"host": host}}]}
                     for prefix, host in rules])}
"""


def tcp_server():
    with open(os.path.join(HERE, "tcp_peer.py")) as f:
        program = "".join("      " + line for line in f)
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: bytes}}
spec:
  selector: {{app: bytes}}
  ports: [{{name: tcp-named, port: 9000, targetPort: 9000}}, {{name: anything, port: 9001, targetPort: 9000}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: bytes, labels: {{app: bytes}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: none
    readinessProbe: {{tcpSocket: {{port: 9000}}, periodSeconds: 1}}
    command: [python3, -u, -c]
    args:
    - |
{program}
"""


def setUpModule():
    global SANDBOX
    harness.require_machine()
    SANDBOX = Sandbox()
    unittest.addModuleCleanup(SANDBOX.down)
    SANDBOX.up()
    for ns in ("shop", "far", "raw", "owned"):
        SANDBOX.cli("create", "ns", ns)
        SANDBOX.cli("label", "ns", ns, "istio.io/dataplane-mode=ambient")
    SANDBOX.apply(server("front") + "---" + sleeper("client") + "---\n" + account("stranger") +
                  sleeper("stranger", extra="  serviceAccountName: stranger"), ns="shop")
    SANDBOX.apply(server("back"), ns="far")
    SANDBOX.apply(tcp_server(), ns="raw")
    SANDBOX.apply(account("owner") + server("owned", pod_extra="serviceAccountName: owner"), ns="owned")
    first = SANDBOX.cli("waypoint", "generate", "-n", "shop", "--name", "first").out
    SANDBOX.apply(first.replace("port: 15008", "port: 15008\n    allowedRoutes: {namespaces: {from: All}}"),
                  ns="shop")
    SANDBOX.cli("label", "ns", "shop", "istio.io/use-waypoint=first")
    SANDBOX.cli("waypoint", "apply", "-n", "far", "--name", "second", "--enroll-namespace")
    SANDBOX.cli("waypoint", "apply", "-n", "raw", "--name", "wp", "--enroll-namespace")
    SANDBOX.cli("waypoint", "apply", "-n", "owned", "--name", "guard", "--for-service-account", "owner")
    pods = {"shop": ("front", "client", "stranger"), "far": ("back",), "raw": ("bytes",),
            "owned": ("owned",)}
    for ns, names in pods.items():
        SANDBOX.wait_ready(*names, ns=ns)
        SANDBOX.wait_enrolled(*names, ns=ns)
    for ns, name in (("shop", "first"), ("far", "second"), ("raw", "wp"), ("owned", "guard")):
        wait(f"waypoint {name}", lambda: programmed(ns, name))


def programmed(ns, name):
    found = SANDBOX.get("gateway", name, "-n", ns).get("status", {}).get("conditions", [])
    return any(c["type"] == "Programmed" and c["status"] == "True" for c in found)


def lines(ns, waypoint, text):
    """Lines of a waypoint's access log that contain `text`."""
    log = SANDBOX.cli("logs", "-n", ns, f"deploy/{waypoint}").out
    return [line for line in log.splitlines() if text in line]


def curl(path, host="front", pod="client", *argv):
    return SANDBOX.curl(pod, f"http://{host}{path}", *argv, ns="shop")


def ip_of(pod, ns):
    return SANDBOX.get("pod", pod, "-n", ns)["status"]["podIP"]


class Chain(unittest.TestCase):
    """shop/front's waypoint `first` routes /far to far/back, which waypoint `second` guards."""

    @classmethod
    def setUpClass(cls):
        SANDBOX.apply(routes("front", ("/far", "back.far.svc.cluster.local"), ("/", "front")), ns="shop")
        wait("the route leads to back", lambda: cls.by_way("/far/start"))

    @classmethod
    def tearDownClass(cls):
        SANDBOX.cli("delete", "vs", "front", "-n", "shop")

    @staticmethod
    def by_way(path):
        status, body = curl(path)
        return status == "200" and path in body and lines("far", "second", f'path="{path}"')

    def test_the_second_waypoint_sees_the_first(self):
        self.assertEqual(curl("/far/seen")[0], "200")
        seen = wait("the line", lambda: lines("far", "second", 'path="/far/seen"'))
        self.assertEqual(len(seen), 1, seen)
        self.assertIn(f'src.identity="{SPIFFE}shop/sa/first"', seen[0])
        first = wait("the line", lambda: lines("shop", "first", 'path="/far/seen"'))
        self.assertIn(f'src.identity="{SPIFFE}shop/sa/default"', first[0])
        self.assertIn(f'dst.identity="{SPIFFE}far/sa/second"', first[0])
        node = SANDBOX.get("pod", "back", "-n", "far")["spec"]["nodeName"]
        wait("back's ztunnel saw the second waypoint",
             lambda: f'src.identity="{SPIFFE}far/sa/second"' in SANDBOX.log("ztunnel", node))
        self.assertEqual(curl("/near")[1].split()[1], "/near")
        self.assertEqual(lines("far", "second", 'path="/near"'), [], "only what leads there")

    def test_the_service_tells_its_waypoint(self):
        bound = SANDBOX.get("svc", "back", "-n", "far")["status"]["conditions"][0]
        self.assertEqual((bound["type"], bound["status"], bound["reason"]),
                         ("istio.io/WaypointBound", "True", "WaypointAccepted"))
        self.assertIn("far/second", bound["message"])

    def test_its_policy_holds(self):
        SANDBOX.apply(policy("only-stranger", "Service", "back", "ALLOW",
                             [principal("shop", "stranger")]), ns="far")
        try:
            wait("denied", lambda: curl("/far/denied")[0] == "403")
            seen = lines("far", "second", 'path="/far/denied"')[-1]
            self.assertIn("reason=policy_no_allow_match", seen)
            self.assertIn(f'src.identity="{SPIFFE}shop/sa/first"', seen)
            self.assertEqual(curl("/near")[0], "200")
            self.assertEqual(curl("/direct", "back.far")[0], "403", "as by the Service itself")
            self.assertEqual(curl("/direct", "back.far", "stranger")[0], "200")
            SANDBOX.apply(policy("only-stranger", "Service", "back", "ALLOW",
                                 [principal("shop", "first")]), ns="far")
            wait("allowed", lambda: curl("/far/allowed")[0] == "200")
            self.assertEqual(curl("/direct", "back.far")[0], "403")
        finally:
            SANDBOX.cli("delete", "authorizationpolicy", "only-stranger", "-n", "far")
        wait("open again", lambda: curl("/direct", "back.far")[0] == "200")

    def test_a_service_of_the_same_waypoint_keeps_its_policies(self):
        SANDBOX.apply("""
apiVersion: v1
kind: Service
metadata: {name: side}
spec: {selector: {app: front}, ports: [{name: http, port: 80, targetPort: 8000}]}
""", ns="shop")
        SANDBOX.apply(routes("front", ("/side", "side"), ("/far", "back.far.svc.cluster.local"),
                             ("/", "front")), ns="shop")
        SANDBOX.apply(policy("only-stranger", "Service", "side", "ALLOW",
                             [principal("shop", "stranger")]), ns="shop")
        try:
            wait("by itself", lambda: curl("/x", "side")[0] == "403")
            wait("by way of front", lambda: curl("/side/x")[0] == "403")
            self.assertEqual(curl("/near")[0], "200")
            self.assertEqual(curl("/side/x", "front", "stranger")[0], "200")
            self.assertIn("reason=policy_no_allow_match", lines("shop", "first", 'path="/side/x"')[0])
        finally:
            SANDBOX.cli("delete", "authorizationpolicy", "only-stranger", "-n", "shop")
            SANDBOX.cli("delete", "svc", "side", "-n", "shop")
            SANDBOX.apply(routes("front", ("/far", "back.far.svc.cluster.local"), ("/", "front")),
                          ns="shop")

    def test_requests_do_not_go_round(self):
        SANDBOX.apply(routes("back", ("/far/round", "front.shop.svc.cluster.local"), ("/", "back")),
                      ns="far")
        try:
            status, body = wait("the loop is seen",
                                lambda: (lambda got: got[0] == "508" and got)(curl("/far/round")))
            self.assertIn("self_call: routes go round: waypoint far/second would send to waypoint "
                          "shop/first", body)
            self.assertEqual(curl("/far/straight")[0], "200")
            forged = ("-H", "X-Meltemi-Waypoints: far/second")
            self.assertEqual(curl("/far/forged", "front", "client", *forged)[0], "508",
                             "who lies is refused, nobody else")
            self.assertEqual(curl("/near", "front", "client", *forged)[0], "200")
        finally:
            SANDBOX.cli("delete", "vs", "back", "-n", "far")

    def test_without_the_second_waypoint_nothing_passes(self):
        SANDBOX.cli("scale", "deploy", "second", "-n", "far", "--replicas", "0", check=False)
        SANDBOX.cli("waypoint", "delete", "second", "-n", "far")
        try:
            wait("refused", lambda: "waypoint_unknown" in curl("/far/gone")[1])
            status, body = curl("/far/gone")
            self.assertEqual(status, "503", body)
            self.assertIn("waypoint far/second does not exist", body)
            self.assertTrue(wait("the line", lambda: lines("shop", "first", "reason=waypoint_unknown")))
        finally:
            SANDBOX.cli("waypoint", "apply", "-n", "far", "--name", "second", "--enroll-namespace",
                        "--wait")
        wait("back again", lambda: self.by_way("/far/again"))


class ServiceAccount(unittest.TestCase):
    """Waypoint `guard` of service account owner: for its Services and for its pods' addresses."""

    def passes(self, path, host):
        return curl(path, host)[0] == "200" and lines("owned", "guard", f'path="{path}"')

    def test_by_service_and_by_address(self):
        address = ip_of("owned", "owned") + ":8000"
        wait("by Service", lambda: self.passes("/by-service", "owned.owned"))
        wait("by address", lambda: self.passes("/by-address", address))
        for path in ("/by-service", "/by-address"):
            self.assertIn(f'src.identity="{SPIFFE}shop/sa/default"',
                          lines("owned", "guard", f'path="{path}"')[-1])
        SANDBOX.apply(policy("no-strangers", "Gateway", "guard", "DENY",
                             [principal("shop", "stranger")]), ns="owned")
        try:
            for host in ("owned.owned", address):
                wait(f"{host} denied", lambda: curl("/denied", host, "stranger")[0] == "403")
                self.assertEqual(curl("/allowed", host)[0], "200")
            self.assertIn("reason=policy_deny", lines("owned", "guard", 'path="/denied"')[-1])
        finally:
            SANDBOX.cli("delete", "authorizationpolicy", "no-strangers", "-n", "owned")

    def test_a_route_of_another_waypoint_passes_it(self):
        SANDBOX.apply(routes("front", ("/owned", "owned.owned.svc.cluster.local"), ("/", "front")),
                      ns="shop")
        try:
            wait("through both", lambda: self.passes("/owned/x", "front"))
            self.assertIn(f'src.identity="{SPIFFE}shop/sa/first"',
                          lines("owned", "guard", 'path="/owned/x"')[-1])
        finally:
            SANDBOX.cli("delete", "vs", "front", "-n", "shop")


class Workload(unittest.TestCase):
    """A waypoint for workloads: calls by address pass it, calls by Service do not."""

    def test_by_address_only(self):
        SANDBOX.cli("create", "ns", "cells")
        SANDBOX.cli("label", "ns", "cells", "istio.io/dataplane-mode=ambient")
        SANDBOX.apply(server("cell"), ns="cells")
        SANDBOX.cli("waypoint", "apply", "-n", "cells", "--name", "wl", "--for", "workload",
                    "--enroll-namespace", "--wait")
        SANDBOX.wait_ready("cell", ns="cells")
        SANDBOX.wait_enrolled("cell", ns="cells")
        address = ip_of("cell", "cells") + ":8000"
        passes = lambda path: (curl(path, address)[0] == "200" and
                               lines("cells", "wl", f'path="{path}"'))
        wait("by address", lambda: passes("/by-address"))
        self.assertEqual(curl("/by-service", "cell.cells")[0], "200")
        SANDBOX.apply(policy("no-strangers", "Gateway", "wl", "DENY", [principal("shop", "stranger")]),
                      ns="cells")
        wait("denied", lambda: curl("/denied", address, "stranger")[0] == "403")
        self.assertEqual(curl("/allowed", address)[0], "200")
        self.assertEqual(lines("cells", "wl", 'path="/by-service"'), [])
        # The Service gets a waypoint of its own, elsewhere: its pods keep theirs.
        SANDBOX.cli("label", "svc", "cell", "-n", "cells", "istio.io/use-waypoint=first",
                    "istio.io/use-waypoint-namespace=shop")
        wait("by both", lambda: curl("/by-both", "cell.cells")[0] == "200" and
             lines("cells", "wl", 'path="/by-both"'))
        self.assertIn(f'src.identity="{SPIFFE}shop/sa/first"',
                      lines("cells", "wl", 'path="/by-both"')[-1])
        SANDBOX.apply(policy("no-strangers", "Gateway", "wl", "DENY", [principal("shop", "first")]),
                      ns="cells")
        wait("denied behind the other", lambda: curl("/denied", "cell.cells")[0] == "403")
        SANDBOX.cli("delete", "ns", "cells")


class Bytes(unittest.TestCase):
    """TCP through the waypoint: as declared (9000) and as found out (9001)."""
    PORTS = (9000, 9001)

    @classmethod
    def setUpClass(cls):
        wait("bytes pass the waypoint", lambda: "ok" in cls.call("upload", 9000, 10).out and
             lines("raw", "wp", ":9000"))

    @staticmethod
    def program():
        with open(os.path.join(HERE, "tcp_peer.py")) as f:
            return f.read()

    @classmethod
    def call(cls, what, port, *argv, pod="client", host="bytes.raw"):
        return SANDBOX.exec(pod, "python3", "-c", cls.program(), what, host, str(port),
                            *map(str, argv), ns="shop", check=False)

    def hold(self, pod, port):
        """A connection that is open now, in a process that waits for a line."""
        process = SANDBOX.popen("exec", "-n", "shop", "-i", pod, "--", "python3", "-c", self.program(),
                                "hold", "bytes.raw", str(port), stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE)
        self.addCleanup(process.wait, 90)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)
        self.assertEqual(process.stdout.readline(), "open\n")
        return process

    def expect(self, what, port, *argv, **where):
        done = self.call(what, port, *argv, **where)
        self.assertEqual((done.code, done.out.strip()), (0, "ok"), done)

    def test_bytes_arrive_whole_and_each_end_may_close_first(self):
        for port in self.PORTS:
            self.expect("upload", port, 5_000_000)    # we close our half, the sum comes back
            self.expect("download", port, 5_000_000)  # the server closes its half, then reads ours

    def test_a_reset_is_carried_both_ways(self):
        for port in self.PORTS:
            self.expect("reset-me", port)
            self.expect("reset-you", port)

    def test_a_client_that_says_little_and_closes(self):
        for port in self.PORTS:
            self.expect("word", port)

    def test_the_log_and_the_metrics_tell(self):
        self.expect("upload", 9000, 123_456)
        line = wait("the line", lambda: lines("raw", "wp", "bytes_recv=123"))[-1]
        self.assertIn(f'src.identity="{SPIFFE}shop/sa/default"', line)
        self.assertIn("reason=ok", line)
        waypoint = SANDBOX.get("pods", "-n", "raw", "-l",
                               "gateway.networking.k8s.io/gateway-name=wp")[0]["metadata"]["name"]
        metrics = SANDBOX.exec(waypoint, "curl", "-s", "http://127.0.0.1:15020/metrics", ns="raw").out
        for name in ("istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total",
                     "istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total"):
            found = [m for m in metrics.splitlines() if m.startswith(name + "{")
                     and f'source_principal="{SPIFFE}shop/sa/default"' in m]
            self.assertTrue(found, name)
            self.assertIn('destination_service="bytes.raw.svc.cluster.local"', found[0])

    def test_bytes_pass_two_waypoints_and_do_not_go_round(self):
        def lead(ns, name, to):
            SANDBOX.apply(f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec:
  hosts: [{name}]
  tcp: [{{match: [{{port: 9000}}], route: [{{destination: {{host: {to}, port: {{number: 9000}}}}}}]}}]
""", ns=ns)
        SANDBOX.apply("""
apiVersion: v1
kind: Service
metadata: {name: relay}
spec: {ports: [{name: tcp, port: 9000}]}
""", ns="shop")
        lead("shop", "relay", "bytes.raw.svc.cluster.local")
        wait("both", lambda: self.call("upload", 9000, 10, host="relay").code == 0)
        self.expect("upload", 9000, 2_000_000, host="relay")
        self.expect("download", 9000, 2_000_000, host="relay")
        self.expect("reset-me", 9000, host="relay")
        self.assertTrue(lines("raw", "wp", f'src.identity="{SPIFFE}shop/sa/first"'))
        lead("raw", "bytes", "relay.shop.svc.cluster.local")
        try:
            wait("refused", lambda: self.call("upload", 9000, 10, host="relay").code != 0 and
                 lines("raw", "wp", "reason=self_call"))
        finally:
            SANDBOX.cli("delete", "vs", "bytes", "-n", "raw")
            SANDBOX.cli("delete", "vs", "relay", "-n", "shop")

    def test_policy_is_decided_by_the_certificate(self):
        held = {pod: {port: self.hold(pod, port) for port in self.PORTS}
                for pod in ("stranger", "client")}
        SANDBOX.apply(policy("no-strangers", "Service", "bytes", "DENY",
                             [principal("shop", "stranger")]), ns="raw")
        try:
            for port in self.PORTS:
                wait(f"port {port} denied",
                     lambda: self.call("upload", port, 10, pod="stranger").code != 0)
                self.expect("upload", port, 10)
            # Connections of before: the stranger's is cut, the other goes on.
            for port, process in held["stranger"].items():
                self.assertEqual(process.stdout.readline(), "cut\n", port)
            for process in held["client"].values():
                process.stdin.write("\n")
                process.stdin.flush()
                self.assertEqual(process.stdout.readline(), "ok\n")
            self.assertEqual(len(lines("raw", "wp", "reason=policy_changed")), 2)
            line = lines("raw", "wp", "reason=policy_deny")[-1]
            self.assertIn(f'src.identity="{SPIFFE}shop/sa/stranger"', line)
        finally:
            SANDBOX.cli("delete", "authorizationpolicy", "no-strangers", "-n", "raw")
        wait("allowed again", lambda: self.call("upload", 9000, 10, pod="stranger").code == 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
