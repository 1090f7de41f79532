"""A waypoint in the mesh: configured and certified by meltemid, called over HBONE by Python's ssl and h2,
calling endpoints that are Python's as well. Identity, policy, routing, pinning, rotation of
configuration.
"""

import collections
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

import lab

lab.enter_own_netns()

import hbone  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../support"))
import control  # noqa: E402

WAYPOINT, CATALOG_1, CATALOG_2, CLIENT, PLAIN = ("10.0.0.9", "10.0.0.11", "10.0.0.12", "10.0.0.21",
                                                 "10.0.0.31")
VIP = "10.96.0.10:80"
LATE = "10.96.0.20:80"
TD = "spiffe://cluster.local/ns/shop/sa/"

USER = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: meltemi-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  selector: {app: catalog}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
"""

PIN = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
  - match: [{headers: {x-dark-launch: {exact: v2}}}]
    route: [{destination: {host: catalog, subset: v2}}]
  - route: [{destination: {host: catalog, subset: v1}}]
"""

LATE_SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: late, namespace: shop}
spec:
  clusterIP: 10.96.0.20
  clusterIPs: [10.96.0.20]
  selector: {app: catalog}
  ports: [{name: http, port: 80, targetPort: 8080}]
"""

ONLY_WEBAPP = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-webapp, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: "", name: catalog}]
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/webapp]}}]}]
"""


class HboneTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = lab.Lab()
        try:
            cls.start()
        except BaseException:
            for name in ("meltemid.log", "waypoint.log"):
                path = os.path.join(cls.lab.work, name)
                if os.path.exists(path):
                    with open(path) as f:
                        print(name, f.read()[-4000:], file=sys.stderr)
            cls.lab.close()
            raise

    @classmethod
    def start(cls):
        work = cls.work = cls.lab.work
        for ip in (WAYPOINT, CATALOG_1, CATALOG_2, CLIENT, PLAIN):
            subprocess.run(["ip", "addr", "add", ip + "/32", "dev", "lo"], check=True)
        cls.config = f"{work}/config"
        control.write(f"{cls.config}/user.yaml", USER)
        gateway = {"gateway.networking.k8s.io/gateway-name": "waypoint", "istio.io/dataplane-mode": "none"}
        for name, ip, account, labels in (
                ("catalog-v1", CATALOG_1, "catalog", {"app": "catalog", "version": "v1"}),
                ("catalog-v2", CATALOG_2, "catalog", {"app": "catalog", "version": "v2"}),
                ("webapp", CLIENT, "webapp", {"app": "webapp"}),
                ("waypoint-0", WAYPOINT, "waypoint", gateway)):
            control.write(f"{cls.config}/state/node/shop.{name}.yaml",
                          control.pod("shop", name, ip, account, labels))
        cls.tokens = control.Tokens(work)
        ca = cls.ca = f"{work}/ca"
        os.makedirs(ca, mode=0o700)
        with open(f"{work}/meltemid.log", "w") as log:
            cls.lab.children.append(subprocess.Popen(
                [os.path.join(lab.BIN, "meltemid"), "--config-dir", cls.config, "--ca-dir", ca,
                 "--token-public-key", cls.tokens.public, "--xds-listen", "127.0.0.1:15012",
                 "--monitoring-listen", "127.0.0.1:15014"], stderr=log))
        lab.wait_port(15012)
        control.report_enrolled("127.0.0.1:15012", ca, cls.tokens,
                                ["catalog-v1", "catalog-v2", "webapp"])

        token = f"{work}/waypoint.token"
        with open(token, "w") as f:
            f.write(cls.tokens.make("shop", "waypoint", "waypoint-0", "n1"))
        env = dict(os.environ, POD_NAME="waypoint-0", POD_NAMESPACE="shop",
                   SERVICE_ACCOUNT="waypoint", INSTANCE_IP=WAYPOINT, GATEWAY_NAME="waypoint",
                   XDS_ADDRESS="https://127.0.0.1:15012", XDS_ROOT_CA=f"{ca}/root-cert.pem",
                   AUTH_TOKEN=token, WAYPOINT_WORKER_THREADS="2",
                   HBONE_LISTEN=f"{WAYPOINT}:15008", SECRET_TTL="20s", DESTINATION_DRAIN="2s",
                   DESTINATION_WAIT="2s")
        with open(cls.lab.log, "w") as log:
            cls.process = subprocess.Popen([os.path.join(lab.BIN, "waypoint")], env=env, stderr=log)
        cls.lab.children.append(cls.process)
        cls.webapp = hbone.Identity(work, ca, TD + "webapp", "webapp")
        cls.other = hbone.Identity(work, ca, TD + "other", "other")
        catalog = hbone.Identity(work, ca, TD + "catalog", "catalog")
        cls.endpoints = {"v1": hbone.Endpoint(CATALOG_1, catalog, "v1"),
                         "v2": hbone.Endpoint(CATALOG_2, catalog, "v2")}
        cls.wait(lambda: lab.curl("http://127.0.0.1:15021/healthz/ready")[0] == 200)

    @classmethod
    def tearDownClass(cls):
        cls.process.send_signal(signal.SIGTERM)
        status = cls.process.wait(60)
        with open(cls.lab.log) as f:
            log = f.read()
        for endpoint in cls.endpoints.values():
            endpoint.close()
        cls.lab.close()
        if status != 0 or "ERROR: AddressSanitizer" in log or "runtime error" in log:
            raise AssertionError(f"waypoint ended with {status}\n" + log[-6000:])

    @staticmethod
    def wait(condition, timeout=30):
        deadline = time.monotonic() + timeout
        while True:
            try:
                if condition():
                    return
            except (OSError, AssertionError, subprocess.SubprocessError):
                pass
            if time.monotonic() > deadline:
                raise AssertionError("did not come true in time")
            time.sleep(0.1)

    def request(self, path="/", fields="", identity=None, authority=VIP):
        client = hbone.Client((WAYPOINT, 15008), identity or self.webapp, CLIENT)
        try:
            head = f"GET {path} HTTP/1.1\r\nHost: catalog\r\n{fields}\r\n"
            status, answer = client.exchange(authority, head.encode())
            self.assertEqual(client.peer, [TD + "waypoint"])
            return status, answer
        finally:
            client.close()

    def seen(self, *args, **kwargs):
        status, answer = self.request(*args, **kwargs)
        self.assertEqual(status, "200")
        head, _, body = answer.partition(b"\r\n\r\n")
        self.assertIn(b" 200 ", head.split(b"\r\n")[0], answer)
        return json.loads(body)

    def apply(self, name, text):
        control.write(f"{self.config}/{name}.yaml", text)
        self.addCleanup(self.remove, name)

    def remove(self, name):
        os.unlink(f"{self.config}/{name}.yaml")
        self.wait(lambda: {self.seen()["pod"] for _ in range(6)} == {"v1", "v2"})

    def test_requests_reach_pinned_endpoints(self):
        pods = {self.seen()["pod"] for _ in range(20)}
        self.assertEqual(pods, {"v1", "v2"})
        seen = self.seen("/books?x=1", "X-Case: Kept\r\n")
        self.assertEqual(seen["peer"], [TD + "waypoint"])
        self.assertIn(seen["authority"], (f"{CATALOG_1}:8080", f"{CATALOG_2}:8080"))
        self.assertTrue(seen["head"].startswith("GET /books?x=1 HTTP/1.1\r\nHost: catalog\r\n"
                                                "X-Case: Kept\r\n"))
        self.assertIn(f"x-forwarded-for: {CLIENT}", seen["head"])
        # Tunnels are pooled: many requests, few handshakes.
        self.assertLessEqual(sum(e.tunnels for e in self.endpoints.values()), 8)
        line = self.lab.log_lines("/books?x=1")[-1]
        self.assertIn(TD + "webapp", line)
        self.assertIn("catalog.shop.svc.cluster.local", line)
        self.assertIn("reason=ok", line)

    def test_routes_follow_the_configuration(self):
        self.apply("pin", PIN)
        self.wait(lambda: {self.seen()["pod"] for _ in range(8)} == {"v1"})
        self.assertEqual({self.seen("/", "x-dark-launch: v2\r\n")["pod"] for _ in range(8)}, {"v2"})

    def test_policy_is_decided_by_the_certificate(self):
        self.assertTrue(self.seen(identity=self.other)["pod"])
        self.apply("only-webapp", ONLY_WEBAPP)
        self.wait(lambda: b"403" in self.request(identity=self.other)[1])
        status, answer = self.request(identity=self.other)
        self.assertEqual(status, "200")
        self.assertTrue(answer.startswith(b"HTTP/1.1 403 "), answer)
        self.assertTrue(answer.endswith(b"RBAC: access denied"), answer)
        self.assertTrue(self.seen(identity=self.webapp)["pod"])
        self.assertTrue(self.lab.log_lines("reason=policy_no_allow_match"))

    # --- change under load ----------------------------------------------------------------------

    def under_load(self, act, threads=6):
        """Runs act() while clients with a tunnel each send requests; returns (path, answer) of all."""
        answers, errors, over = [], [], threading.Event()

        def send(number):
            client = hbone.Client((WAYPOINT, 15008), self.webapp, CLIENT)
            try:
                for i in itertools.count():
                    if over.is_set():
                        return
                    path = f"/live/{number}/{i}"
                    head = f"GET {path} HTTP/1.1\r\nHost: catalog\r\n\r\n"
                    answers.append((path, *client.exchange(VIP, head.encode())))
            except OSError as e:
                errors.append(e)
            finally:
                client.close()

        workers = [threading.Thread(target=send, args=(n,)) for n in range(threads)]
        for worker in workers:
            worker.start()
        try:
            act()
        finally:
            over.set()
            for worker in workers:
                worker.join(60)
        self.assertEqual(errors, [])
        for path, status, answer in answers:
            self.assertEqual(status, "200", path)
            self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer)
        return answers

    def test_rules_change_between_requests(self):
        # Three things change at once: the subset, the path, a field of the response.
        def rules(state):
            return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: catalog, namespace: shop}}
spec:
  hosts: [catalog]
  http:
  - rewrite: {{uri: /{state}/}}
    headers: {{response: {{set: {{x-state: {state}}}}}}}
    route: [{{destination: {{host: catalog, subset: {state}}}}}]
"""
        def state_of(answer):
            head, _, body = answer.partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 200 "), answer)
            seen = json.loads(body)
            path = seen["head"].split()[1]
            field = [x.split(b": ")[1].decode() for x in head.split(b"\r\n")
                     if x.lower().startswith(b"x-state")]
            return seen["pod"], path.split("/")[1], field[0] if field else ""

        self.apply("live", rules("v1"))
        self.wait(lambda: state_of(self.request("/x")[1]) == ("v1",) * 3)

        def flip():
            for i in range(12):
                state = ("v2", "v1")[i % 2]
                control.write(f"{self.config}/live.yaml", rules(state))
                self.wait(lambda: state_of(self.request("/x")[1])[0] == state)

        answers = self.under_load(flip)
        states = collections.Counter(state_of(answer) for _, _, answer in answers)
        self.assertEqual(set(states), {("v1",) * 3, ("v2",) * 3}, "nothing between the two")

    # --- who hears of a change first ------------------------------------------------------------

    def test_an_address_that_is_named_a_moment_later_is_served(self):
        # The control plane tells the client's node of a service and this waypoint at the same time.
        late = []
        caller = threading.Thread(target=lambda: late.append(self.request(authority=LATE)))
        caller.start()
        time.sleep(0.2)
        self.apply("late", LATE_SERVICE)
        caller.join(30)
        status, answer = late[0]
        self.assertEqual(status, "200")
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer)

    def test_an_address_that_is_taken_away_is_served_until_its_clients_know(self):
        self.apply("late", LATE_SERVICE)
        self.wait(lambda: self.request(authority=LATE)[0] == "200")
        kept = hbone.Client((WAYPOINT, 15008), self.webapp, CLIENT)
        self.addCleanup(kept.close)
        question = b"GET / HTTP/1.1\r\nHost: late\r\n\r\n"
        stream, status = kept.open(LATE)
        self.assertEqual(status, "200")
        self.assertNotIn(b"connection: close", kept.ask(stream, question)[0].lower())
        os.unlink(f"{self.config}/late.yaml")
        self.addCleanup(lambda: control.write(f"{self.config}/late.yaml", ""))  # apply() removes it
        # Every request is answered, and the one after the change says that it was the last.
        for _ in range(100):
            answer, _ = kept.ask(stream, question)
            self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer)
            if b"connection: close" in answer.lower():
                break
            time.sleep(0.05)
        else:
            self.fail("the connection was not asked to end")
        # Who has not heard of it yet still comes, for a while.
        status, answer = self.request(authority=LATE)
        self.assertEqual(status, "200")
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer)
        self.wait(lambda: self.request(authority=LATE)[0] == "404")

    def test_the_certificate_is_renewed_between_requests(self):
        def serial():
            client = hbone.Client((WAYPOINT, 15008), self.webapp, CLIENT)
            client.close()
            return client.serial

        first = serial()
        def renewed():
            self.wait(lambda: serial() != first, 60)
            # New requests show the new certificate to the endpoints too, although the old tunnels and
            # the connections in them could have gone on.
            self.wait(lambda: all(serial() in e.serials for e in self.endpoints.values()), 60)

        self.assertGreater(len(self.under_load(renewed)), 10)

    # --- short of everything --------------------------------------------------------------------

    def test_without_descriptors_it_is_not_ready_and_goes_on_by_itself(self):
        def ready():
            try:
                return lab.curl("http://127.0.0.1:15021/healthz/ready", "--max-time", "2")[0] == 200
            except subprocess.SubprocessError:
                return False  # no answer is none
        before = len(os.listdir(f"/proc/{self.process.pid}/fd"))

        def limit(soft):
            subprocess.run(["prlimit", "--pid", str(self.process.pid), f"--nofile={soft}:"], check=True)

        waiting = []
        try:
            # Room for the readiness probe, but strangers take it first.
            limit(before + 1)
            for _ in range(4):
                waiting.append(socket.create_connection((WAYPOINT, 15008), 20))
            self.wait(lambda: not ready(), 15)
        finally:
            limit(20000)
            for peer in waiting:
                peer.close()
        began = time.monotonic()
        self.wait(lambda: ready() and self.seen()["pod"], 15)
        self.assertLess(time.monotonic() - began, 5)

    def test_no_open_proxy(self):
        for authority in ("127.0.0.1:15000", "169.254.169.254:80", f"{CATALOG_1}:8080",
                          f"{WAYPOINT}:15008", "10.96.0.10:81", "catalog:80", "nonsense"):
            status, _ = self.request(authority=authority)
            self.assertIn(status, ("400", "404"), authority)

    def test_wrong_identities_are_refused(self):
        # An endpoint that presents another service account than the workload's is never spoken to.
        impostor = hbone.Identity(self.work, self.ca, TD + "impostor", "impostor")
        endpoint = self.endpoints["v1"]
        good = endpoint.context
        self.apply("pin", PIN)
        self.wait(lambda: {self.seen()["pod"] for _ in range(8)} == {"v1"})
        endpoint.context = impostor.context(True)
        endpoint.cut()
        time.sleep(0.3)
        try:
            _, answer = self.request("/impostor")
            self.assertTrue(answer.startswith(b"HTTP/1.1 503 "), answer)
            self.assertTrue(self.lab.log_lines("reason=peer_identity_mismatch"))
        finally:
            endpoint.context = good
            endpoint.cut()

    def test_clients_without_a_mesh_certificate_are_refused(self):
        import ssl
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        with socket.create_connection((WAYPOINT, 15008), 20) as raw:
            with self.assertRaises(OSError):
                with context.wrap_socket(raw) as tls:
                    tls.settimeout(20)
                    tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                    if not tls.recv(1):
                        raise OSError("closed")
        with socket.create_connection((WAYPOINT, 15008), 20) as garbage:
            garbage.settimeout(20)
            garbage.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
            try:
                while garbage.recv(65536):
                    pass
            except ConnectionResetError:
                pass
        self.assertTrue(self.seen()["pod"])

    def test_metrics_name_both_ends(self):
        self.seen()
        metrics = lab.curl("http://127.0.0.1:15020/metrics")[2].decode()
        line = [x for x in metrics.split("\n") if x.startswith("istio_requests_total")
                and 'response_code="200"' in x and 'destination_service_name="catalog"' in x][0]
        for label in ('reporter="waypoint"', f'source_principal="{TD}webapp"',
                      'destination_service="catalog.shop.svc.cluster.local"',
                      'connection_security_policy="mutual_tls"', 'source_workload_namespace="shop"'):
            self.assertIn(label, line)


if __name__ == "__main__":
    unittest.main(verbosity=2)
