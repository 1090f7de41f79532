"""A ztunnel pair under a control plane of another house (grpc's Python): state arrives late, changes
under live flows, is partly bad, and goes away."""

import json
import os
import subprocess
import sys
import tempfile
import time
import unittest

import pair
from pair import NAMESPACE, ROOT, VIP, Pair

HERE = os.path.dirname(os.path.abspath(__file__))
APPS = os.path.join(HERE, "apps.py")
PYTHON = "/usr/bin/python3"
ADDRESS = "type.googleapis.com/istio.workload.Address"
POLICY = "type.googleapis.com/istio.security.Authorization"
PROTOS = ["envoy/service/discovery/v3/discovery.proto", "envoy/config/core/v3/node.proto",
          "google/rpc/status.proto", "workload/workload.proto", "security/authorization.proto"]


class ControlPlane:
    """xds_server.py inside of a node's namespace."""

    def __init__(self, node, generated):
        self.events, self.part = [], ""
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", node.netns, PYTHON, os.path.join(HERE, "xds_server.py"), generated],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.wait(event="listening")

    def poll(self):
        for text in iter(self.process.stdout.readline, ""):
            self.part += text  # the pipe may give half of a line
            if self.part.endswith("\n"):
                self.events.append(json.loads(self.part))
                self.part = ""

    def wait(self, timeout=30, after=0, **wanted):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.poll()
            for e in self.events[after:]:
                if all(e.get(k) == v for k, v in wanted.items()):
                    return e
            if self.process.poll() is not None:
                raise AssertionError(self.process.stderr.read())
            time.sleep(0.05)
        raise AssertionError(f"no event {wanted} among {self.events}")

    def command(self, **command):
        after = len(self.events)
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        self.wait(after=after, event="done")

    def close(self):
        self.process.stdin.close()
        self.process.terminate()
        self.process.wait(10)
        self.process.stdout.close()
        self.process.stderr.close()


class XdsTest(unittest.TestCase):
    def setUp(self):
        generated = tempfile.mkdtemp(prefix="meltemi-xds-")
        self.addCleanup(subprocess.run, ["rm", "-r", generated])
        api = os.path.join(ROOT, "userspace", "api")
        subprocess.run(["protoc", "-I", api, f"--python_out={generated}", *PROTOS], check=True)
        sys.path.insert(0, generated)
        self.addCleanup(sys.path.remove, generated)
        from security import authorization_pb2
        from workload import workload_pb2
        self.workload_pb2, self.authorization_pb2 = workload_pb2, authorization_pb2
        self.pair = Pair(env={"XDS_ADDRESS": "http://127.0.0.1:15010", "LOCAL_XDS_PATH": "",
                              "AUTH_TOKEN": ""})
        self.addCleanup(self.pair.close)
        self.planes = {}
        for node in (self.pair.a, self.pair.b):
            self.planes[node.letter] = ControlPlane(node, generated)
            self.addCleanup(self.planes[node.letter].close)

    def everywhere(self, **command):
        for plane in self.planes.values():
            plane.command(**command)

    def workload(self, node, policies=(), healthy=True):
        w = self.workload_pb2.Address()
        w.workload.uid = f"Kubernetes//Pod/{NAMESPACE}/{node.letter}"
        w.workload.name, w.workload.namespace = node.letter, NAMESPACE
        w.workload.addresses.append(bytes(map(int, node.ip.split("."))))
        w.workload.tunnel_protocol = self.workload_pb2.HBONE
        w.workload.service_account, w.workload.node = node.account, f"node-{node.letter}"
        w.workload.authorization_policies.extend(policies)
        w.workload.status = self.workload_pb2.HEALTHY if healthy else self.workload_pb2.UNHEALTHY
        if node.letter == "b":
            w.workload.services[f"{NAMESPACE}/echo.host"].ports.add(service_port=81, target_port=8081)
        return {w.workload.uid: w.SerializeToString().hex()}

    def service(self):
        s = self.workload_pb2.Address()
        s.service.name, s.service.namespace, s.service.hostname = "echo", NAMESPACE, "echo.host"
        s.service.addresses.add(address=bytes(map(int, VIP.split("."))))
        s.service.ports.add(service_port=81, target_port=8081)
        return {f"{NAMESPACE}/echo.host": s.SerializeToString().hex()}

    def policy(self, name, principal=None, action="DENY"):
        p = self.authorization_pb2.Authorization(name=name, namespace=NAMESPACE)
        p.scope = self.authorization_pb2.WORKLOAD_SELECTOR
        p.action = self.authorization_pb2.Action.Value(action)
        match = p.rules.add().clauses.add().matches.add()
        match.principals.add(exact=principal or "cluster.local/ns/test/sa/client")
        return {f"{NAMESPACE}/{name}": p.SerializeToString().hex()}

    def everything(self):
        return {**self.workload(self.pair.a), **self.workload(self.pair.b), **self.service()}

    def echo_server(self):
        server = self.pair.spawn(self.pair.b, [PYTHON, APPS, "echo", "8081"])
        server.wait_line("ready")

    def hold(self):
        client = self.pair.spawn(self.pair.a, [PYTHON, APPS, "hold", VIP, "81"])
        client.wait_line("open")
        return client

    def exchange(self):
        done = self.pair.run_in(self.pair.a, [PYTHON, APPS, "many", VIP, "81", "3"])
        return done.stdout.strip() == "same"

    def test_live_changes(self):
        p = self.pair
        self.everywhere(set={ADDRESS: self.everything(), POLICY: {}})
        p.start()
        self.echo_server()
        self.assertTrue(self.exchange())
        plane = self.planes["b"]
        self.assertEqual(plane.wait(event="subscribe")["node"],
                         f"ztunnel~1.1.1.1~ztunnel.istio-system~istio-system.svc.cluster.local")

        # A policy that nobody refers to changes nothing; naming it in the workload ends the flow.
        client = self.hold()
        self.everywhere(set={POLICY: self.policy("no-client")})
        self.assertTrue(self.exchange())
        self.everywhere(set={ADDRESS: self.workload(p.b, [f"{NAMESPACE}/no-client"])})
        self.assertIn(client.popen.stdout.readline().strip(), ("reset", "eof"))
        p.b.wait_log("connection complete", "reason=policy_changed")
        self.assertFalse(self.exchange())
        p.b.wait_log("reason=policy_deny", "policy test/no-client")

        # The policy itself changes: it opens again, and closes again under a live flow.
        self.everywhere(set={POLICY: self.policy("no-client", "cluster.local/ns/x/sa/y")})
        client = self.hold()
        self.everywhere(set={POLICY: self.policy("no-client")})
        self.assertIn(client.popen.stdout.readline().strip(), ("reset", "eof"))
        # Removed though a workload still names it: closed, not open.
        self.everywhere(remove={POLICY: [f"{NAMESPACE}/no-client"]})
        self.assertFalse(self.exchange())
        p.b.wait_log("reason=policy_unknown")
        self.everywhere(set={ADDRESS: self.workload(p.b)})
        self.assertTrue(self.exchange())

    def test_bad_resource_is_refused_by_name_and_the_rest_is_used(self):
        p = self.pair
        bad = self.workload_pb2.Address()
        bad.workload.uid, bad.workload.namespace = "bad", "not a namespace"
        self.everywhere(set={ADDRESS: {**self.everything(), "bad": bad.SerializeToString().hex(),
                                       "garbage": "ffff"}, POLICY: {}})
        p.start()
        self.echo_server()
        self.assertTrue(self.exchange())
        nack = self.planes["a"].wait(event="nack", type=ADDRESS)
        self.assertIn("bad: ", nack["message"])
        self.assertIn("garbage: ", nack["message"])
        # A bad update of a good object: the last good one stays.
        broken = self.workload_pb2.Address()
        broken.ParseFromString(bytes.fromhex(list(self.workload(p.b).values())[0]))
        broken.workload.addresses[0] = b"123"
        self.everywhere(set={ADDRESS: {broken.workload.uid: broken.SerializeToString().hex()}})
        self.assertTrue(self.exchange())

    def test_control_plane_goes_away_and_returns(self):
        p = self.pair
        self.everywhere(set={ADDRESS: self.everything(), POLICY: self.policy("other", "x")})
        p.start()
        self.echo_server()
        client = self.hold()
        plane = self.planes["a"]
        plane.poll()
        after = len(plane.events)
        self.everywhere(refuse=True)
        self.assertTrue(self.exchange(), "what is known stays")
        self.everywhere(refuse=False)
        again = plane.wait(event="subscribe", type=ADDRESS, after=after, timeout=60)
        self.assertEqual(again["known"], sorted(self.everything()), "resumes by version")
        self.everywhere(set={ADDRESS: self.workload(p.b, [f"{NAMESPACE}/never"])})
        self.assertIn(client.popen.stdout.readline().strip(), ("reset", "eof"))

    def test_a_killed_ztunnel_serves_its_last_good_state_without_the_control_plane(self):
        p = self.pair
        self.everywhere(set={ADDRESS: self.everything(), POLICY: self.policy("other", "x")})
        p.start()
        self.echo_server()
        self.assertTrue(self.exchange())
        self.assertIn("meltemi_xds_staleness_seconds 0\n", p.a.metrics())
        self.everywhere(refuse=True)
        deadline = time.monotonic() + 30
        while not os.path.exists(f"{p.a.dir}/ztunnel.state") and time.monotonic() < deadline:
            time.sleep(0.05)
        p.a.ztunnel.popen.kill()
        p.a.ztunnel.popen.wait()
        p.a.start()
        self.assertTrue(self.exchange(), "on what was kept")
        self.assertIn("serving the last good state", p.a.get("/healthz/ready", 15021))
        self.assertIn("meltemi_xds_serving_saved_state 1\n", p.a.metrics())
        self.assertTrue(json.loads(p.a.get("/config_dump"))["controlPlane"]["servingSavedState"])
        plane = self.planes["a"]
        plane.poll()
        after = len(plane.events)
        self.everywhere(refuse=False)
        again = plane.wait(event="subscribe", type=ADDRESS, after=after, timeout=60)
        self.assertEqual(again["known"], sorted(self.everything()), "resumes by version")
        self.assertTrue(self.exchange())

    def test_what_was_hbone_is_not_called_in_plaintext_after_a_restart_either(self):
        p = self.pair
        self.everywhere(set={ADDRESS: self.everything(), POLICY: {}})
        p.start()
        self.echo_server()
        self.assertTrue(self.exchange())
        # The control plane of the client's node loses the other pod and its service.
        self.planes["a"].command(remove={ADDRESS: list({**self.workload(p.b), **self.service()})})

        def refused(why):
            for destination in (p.b.ip, VIP):
                before = len(p.a.log())
                port = "81" if destination == VIP else "8081"
                p.run_in(p.a, [PYTHON, APPS, "expect_reset", destination, port], timeout=60)
                self.assertIn("not tried in plaintext", p.a.log()[before:], f"{destination}: {why}")

        def restart(why):
            deadline = time.monotonic() + 30
            while True:  # what was decided a moment ago is on its way to the disk
                with open(f"{p.a.dir}/ztunnel.state", "rb") as state:
                    if p.b.ip.encode() + b"/" in state.read() or time.monotonic() > deadline:
                        break
                time.sleep(0.05)
            p.a.ztunnel.popen.kill()
            p.a.ztunnel.popen.wait()
            p.a.start()
            refused(why)

        refused("by the one who saw it go")
        restart("by its successor")
        self.planes["a"].command(refuse=True)
        restart("by one that no control plane answers")
        self.planes["a"].command(refuse=False)
        self.planes["a"].command(set={ADDRESS: {**self.workload(p.b), **self.service()}})
        deadline = time.monotonic() + 60
        while not self.exchange() and time.monotonic() < deadline:
            time.sleep(0.1)
        self.assertTrue(self.exchange(), "they are back")

    def test_connections_wait_for_a_late_workload(self):
        p = self.pair
        late = self.workload(p.a)
        rest = {k: v for k, v in self.everything().items() if k not in late}
        self.everywhere(set={ADDRESS: rest, POLICY: {}})
        p.start()
        self.echo_server()
        client = p.spawn(p.a, [PYTHON, APPS, "hold", VIP, "81"])
        time.sleep(1)
        self.assertNotIn("connection failed", p.a.log())
        self.everywhere(set={ADDRESS: late})
        client.wait_line("open")
        # Nobody knows the pod: after the patience it ends with its reason.
        client.stop()
        self.everywhere(remove={ADDRESS: list(late)})
        p.run_in(p.a, [PYTHON, APPS, "expect_reset", VIP, "81"], timeout=60)
        p.a.wait_log("connection failed", "reason=unknown_source", timeout=30)

    def test_a_connection_waits_for_a_pod_that_becomes_ready_at_that_moment(self):
        p = self.pair
        self.everywhere(set={ADDRESS: {**self.everything(), **self.workload(p.b, healthy=False)},
                             POLICY: {}})
        p.start()
        self.echo_server()
        client = p.spawn(p.a, [PYTHON, APPS, "hold", VIP, "81"])
        time.sleep(0.3)
        self.assertNotIn("connection failed", p.a.log())
        self.everywhere(set={ADDRESS: self.workload(p.b)})
        client.wait_line("open")
        client.stop()
        # One that does not: the reason comes soon.
        self.everywhere(set={ADDRESS: self.workload(p.b, healthy=False)})
        p.run_in(p.a, [PYTHON, APPS, "expect_reset", VIP, "81"], timeout=60)
        p.a.wait_log("connection complete", "reason=no_healthy_endpoint", timeout=30)

    def test_a_control_plane_named_in_etc_hosts_asks_no_name_server(self):
        """The name server takes questions and never answers: whoever asks it waits for seconds."""
        node = self.pair.a
        etc = f"/etc/netns/{node.netns}"  # what `ip netns exec` mounts over /etc
        os.makedirs(etc)
        self.addCleanup(subprocess.run, ["rm", "-r", etc])
        for name, text in (("hosts", "127.0.0.1 localhost control.mesh.test\n"),
                           ("resolv.conf", "nameserver 127.0.0.53\n"),
                           ("nsswitch.conf", "hosts: files dns\n")):
            with open(f"{etc}/{name}", "w") as f:
                f.write(text)
        silent = self.pair.lab.start(
            [PYTHON, "-c", "import socket\ns = socket.socket(type=socket.SOCK_DGRAM)\n"
             "s.bind(('127.0.0.53', 53))\nprint('bound', flush=True)\n"
             "while True: s.recv(512); print('asked', flush=True)"], netns=node.netns)
        silent.wait_line("bound")
        self.planes["a"].command(set={ADDRESS: self.everything(), POLICY: {}})
        env = {"NODE_NAME": "node-a", "INPOD_UDS": f"{node.dir}/zds.sock", "AUTH_TOKEN": "",
               "XDS_ADDRESS": "http://control.mesh.test:15010", "LOCAL_CA_DIR": self.pair.ca_dir,
               "ZTUNNEL_WORKER_THREADS": "2", "CONNECTION_TERMINATION_DEADLINE": "1s"}
        node.ztunnel = self.pair.lab.start(
            ["ip", "netns", "exec", node.netns, f"{pair.BIN}/ztunnel"], env=env,
            stdout=subprocess.DEVNULL, log=f"{node.dir}/ztunnel.log")
        node.wait_ready()
        silent.popen.kill()
        self.assertEqual(silent.popen.stdout.read(), "", "the name server was asked")

    def test_not_ready_and_not_listening_before_the_first_state(self):
        p = self.pair
        self.planes["a"].command(refuse=True)
        p.a.start(wait=False)
        time.sleep(1.5)
        self.assertIn("state manager", p.a.get("/healthz/ready", 15021))
        self.assertEqual(p.a.zds.hellos, [])
        self.planes["a"].command(refuse=False, set={ADDRESS: self.everything(), POLICY: {}})
        p.a.wait_ready()
        self.assertEqual(len(p.a.zds.hellos), 1)


if __name__ == "__main__":
    try:
        import google.protobuf  # noqa: F401
        import grpc  # noqa: F401
    except ImportError as e:
        print(f"skipped: {e}", file=sys.stderr)
        sys.exit(77)
    pair.main()
