"""What users of a running mesh rely on: bad input changes nothing, processes that die come back, live
connections survive enrolment, plaintext stays out where it must, and nothing is left behind.
"""

import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from box import SAMPLES, Box, kill, wait_for

NS = "shop"
MESHED = "istio.io/dataplane-mode=ambient"


def setUpModule():
    global box
    box = Box(f"e{os.getpid() % 100000}")
    try:
        box.up()
        box.run("create", "ns", NS)
        box.run("label", "ns", NS, MESHED, "--overwrite")
        for sample in ("catalog.yaml", "webapp.yaml", "client.yaml"):
            box.run("apply", "-n", NS, "-f", os.path.join(SAMPLES, sample))
        # Somebody outside of the mesh.
        box.run("create", "ns", "outside")
        box.run("apply", "-n", "outside", "-f", os.path.join(SAMPLES, "client.yaml"))
        wait_for("pods of the mesh", lambda: box.ready(NS))
        wait_for("pods outside", lambda: box.ready("outside", enrolled=False))
        # Ready and enrolled are told to the callees' callers a moment later.
        wait_for("the first call", calls_work)
    except BaseException:
        tearDownModule()
        raise


def tearDownModule():
    box.down()


def calls_work():
    code, status, _ = box.curl(NS, "client", "http://webapp/api/catalog")
    return code == 0 and status == "200"


def ip_of(ns, **labels):
    return box.pods(ns, **labels)[0]["status"]["podIP"]


class BadInput(unittest.TestCase):
    def refused(self, manifest, *words):
        before = box.run("get", "vs,dr,ap,pa,svc,deploy,pods", "-A", "-o", "name").stdout
        done = box.run("apply", "-n", NS, "-f", "-", stdin=manifest, check=False)
        self.assertNotEqual(done.returncode, 0)
        for word in words:
            self.assertIn(word, done.stderr)
        after = box.run("get", "vs,dr,ap,pa,svc,deploy,pods", "-A", "-o", "name").stdout
        self.assertEqual(before, after, "a refused manifest must change nothing")

    def route(self, http):
        return ("apiVersion: networking.istio.io/v1\nkind: VirtualService\n"
                "metadata: {name: catalog}\nspec:\n  hosts: [catalog]\n  http:\n" + http)

    def test_an_unknown_field_is_named_with_the_nearest_one(self):
        self.refused(self.route("  - route:\n    - destination: {host: catalog, subst: v1}\n"),
                     "VirtualService shop/catalog", "subst", "subset")

    def test_istios_own_message_for_route_and_redirect(self):
        self.refused(self.route("  - route:\n    - destination: {host: catalog}\n"
                                "    redirect: {uri: /x}\n"),
                     "HTTP route cannot contain both route and redirect", "spec.http[0]")

    def test_an_unknown_kind_is_named(self):
        self.refused("apiVersion: v1\nkind: Podd\nmetadata: {name: x}\n", "Podd")

    def test_what_is_not_supported_yet_says_so(self):
        self.refused("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n"
                     "metadata: {name: jwt}\nspec: {}\n", "RequestAuthentication", "support")

    def test_one_bad_object_keeps_its_good_neighbours_out(self):
        self.refused("apiVersion: v1\nkind: Service\nmetadata: {name: good}\n"
                     "spec: {ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\n"
                     "metadata: {name: bad}\nspec: {ports: [{port: 99999}]}\n", "bad", "port")

    def test_a_bad_file_in_the_directory_changes_nothing_but_a_log_line(self):
        path = box.config_file("broken.yaml")
        with open(path, "w") as f:
            f.write("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n"
                    "  name: broken\n  namespace: shop\nspec:\n  hosts: [catalog]\n  htp: []\n")
        self.addCleanup(os.unlink, path)
        meltemid = box.processes("meltemid")[0]
        line = wait_for("a line that names file and field", lambda: [
            l for l in box.log(meltemid).splitlines() if "broken.yaml" in l and "htp" in l])[0]
        self.assertIn("VirtualService shop/broken", line)
        self.assertTrue(calls_work())

    def test_a_rule_on_a_host_without_a_waypoint_says_how_to_mend_it(self):
        done = box.run("apply", "-n", NS, "-f", os.path.join(SAMPLES, "catalog-subsets.yaml"))
        self.addCleanup(box.run, "delete", "dr", "catalog", "-n", NS)
        self.assertIn("meltemi waypoint apply -n shop --enroll-namespace", done.stderr + done.stdout)

    def test_errors_of_names_that_are_not_there(self):
        done = box.run("get", "pods", "nobody", "-n", NS, check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("nobody", done.stderr)
        done = box.run("exec", "-n", NS, "nobody", "--", "true", check=False)
        self.assertNotEqual(done.returncode, 0)


class Crashes(unittest.TestCase):
    def comes_back(self, process):
        kill(process)
        wait_for(f"{process['name']} runs again", lambda: any(
            p["name"] == process["name"] and p["node"] == process["node"] and p["running"]
            and p["pid"] != process["pid"] for p in box.processes()))
        wait_for("calls work", calls_work)

    def test_every_process_of_the_mesh_comes_back_and_calls_work(self):
        for name in ("ztunnel", "meltemi-agent", "meltemid", "kubelet"):
            for process in box.processes(name):
                with self.subTest(name=name, node=process["node"]):
                    self.comes_back(process)
        self.assertTrue(box.ready(NS))

    def test_calls_work_while_the_control_plane_is_away(self):
        meltemid = box.processes("meltemid")[0]
        os.kill(meltemid["pid"], 19)  # SIGSTOP: it neither answers nor ends
        try:
            for _ in range(5):
                self.assertTrue(calls_work())
        finally:
            os.kill(meltemid["pid"], 18)


class Enrolment(unittest.TestCase):
    """A connection that lives through both changes: one message a moment, each echoed."""

    ECHO = ("import socket,threading\n"
            "s=socket.create_server(('',7000))\n"
            "def serve(c):\n"
            "    while d:=c.recv(100): c.sendall(d)\n"
            "while True:\n"
            "    threading.Thread(target=serve,args=(s.accept()[0],),daemon=True).start()\n")
    TRICKLE = ("import socket,sys,time\n"
               "s=socket.create_connection(('%s',7000),timeout=20)\n"
               "print('connected',flush=True)\n"
               "for i in range(%d):\n"
               "    m=b'%%08d'%%i\n"
               "    s.sendall(m)\n"
               "    assert s.recv(8,socket.MSG_WAITALL)==m, i\n"
               "    time.sleep(0.1)\n"
               "print('all echoed',flush=True)\n")

    def start(self, pod, code):
        return subprocess.Popen(
            [f"{box.bin}/meltemi", "exec", "-n", "live", pod, "--", "python3", "-u", "-c", code],
            env=box.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def test_live_connections_survive_enrolment_and_the_way_back(self):
        box.run("create", "ns", "live")
        box.run("apply", "-n", "live", "-f", os.path.join(SAMPLES, "client.yaml"))
        wait_for("pods", lambda: box.ready("live", enrolled=False))
        server = self.start("stranger", self.ECHO)
        self.addCleanup(server.kill)
        address = ip_of("live", app="stranger")
        wait_for("the echo server", lambda: box.run(
            "exec", "-n", "live", "client", "--", "python3", "-c",
            f"import socket; socket.create_connection(('{address}',7000),timeout=2)",
            check=False).returncode == 0)
        before = self.start("client", self.TRICKLE % (address, 120))
        self.assertEqual(before.stdout.readline().strip(), "connected")
        box.run("label", "ns", "live", MESHED, "--overwrite")
        wait_for("enrolled", lambda: box.ready("live"))
        during = self.start("client", self.TRICKLE % (address, 120))
        self.assertEqual(during.stdout.readline().strip(), "connected")
        box.run("label", "ns", "live", "istio.io/dataplane-mode-")
        wait_for("not enrolled any more", lambda: not any(
            p["status"]["meltemi"]["enrolled"] for p in box.pods("live")))
        for name, flow in (("before", before), ("during", during)):
            out, err = flow.communicate(timeout=60)
            self.assertIn("all echoed", out, f"{name}: {err}")


class Strict(unittest.TestCase):
    POLICY = ("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict}\n"
              "spec: {mtls: {mode: STRICT}}\n")

    def test_strict_keeps_plaintext_out_and_lets_probes_in(self):
        target = f"http://{ip_of(NS, app='catalog')}:3000/items"
        self.assertEqual(box.curl("outside", "client", target)[1], "200", "permissive by default")
        box.run("apply", "-n", NS, "-f", "-", stdin=self.POLICY)
        try:
            wait_for("plaintext is refused",
                     lambda: box.curl("outside", "client", target)[1] == "000")
            self.assertTrue(calls_work(), "the mesh itself is not hindered")
            restarts = [p["status"]["containerStatuses"][0].get("restartCount", 0)
                        for p in box.pods(NS)]
            for _ in range(5):
                self.assertTrue(box.ready(NS), "kubelet's probes still reach the pods")
            self.assertEqual(restarts, [p["status"]["containerStatuses"][0].get("restartCount", 0)
                                        for p in box.pods(NS)])
        finally:
            box.run("delete", "pa", "strict", "-n", NS)
        wait_for("plaintext is let in again",
                 lambda: box.curl("outside", "client", target)[1] == "200")


class Waypoints(unittest.TestCase):
    def test_a_waypoint_of_one_service_account(self):
        box.run("waypoint", "apply", "-n", NS, "--name", "for-catalog", "--for-service-account",
                "catalog", "--wait", timeout=180)
        self.addCleanup(box.run, "waypoint", "delete", "for-catalog", "-n", NS, check=False)

        def through():
            box.curl(NS, "client", "http://catalog/items")
            pods = box.pods(NS, **{"gateway.networking.k8s.io/gateway-name": "for-catalog"})
            return 'authority="catalog' in box.run("logs", "-n", NS,
                                                   pods[0]["metadata"]["name"]).stdout
        wait_for("calls to catalog pass it", through)
        webapp = box.curl(NS, "client", "http://webapp/api/catalog")
        self.assertEqual(webapp[1], "200")


class CommandLine(unittest.TestCase):
    def test_names_resolve_as_in_kubernetes(self):
        for name in ("catalog", f"catalog.{NS}", f"catalog.{NS}.svc",
                     f"catalog.{NS}.svc.cluster.local"):
            self.assertEqual(box.curl(NS, "client", f"http://{name}/items")[1], "200", name)
        self.assertEqual(box.curl("outside", "client", f"http://catalog.{NS}/items")[1], "200")

    def test_run_passes_input_and_cleans_up(self):
        done = box.run("run", "-i", "--rm", "-n", NS, "once", "--", "cat", stdin="hello\n")
        self.assertIn("hello", done.stdout)
        self.assertFalse([p for p in box.pods(NS) if p["metadata"]["name"] == "once"])

    def test_port_forward_reaches_a_service(self):
        forward = subprocess.Popen([f"{box.bin}/meltemi", "port-forward", "svc/webapp", "-n", NS,
                                    "12123:80"], env=box.env, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        try:
            wait_for("an answer", lambda: subprocess.run(
                ["curl", "-sf", "--max-time", "5", "http://127.0.0.1:12123/api/catalog"],
                capture_output=True).returncode == 0, timeout=20)
        finally:
            forward.terminate()
            forward.communicate(timeout=10)

    def test_logs_show_what_the_app_printed(self):
        box.curl(NS, "client", "http://webapp/health")
        pod = box.pods(NS, app="webapp")[0]["metadata"]["name"]
        self.assertRegex(box.run("logs", "-n", NS, pod).stdout, r"GET /health")

    def test_yaml_goes_round(self):
        text = box.run("get", "svc", "catalog", "-n", NS, "-o", "yaml").stdout
        self.assertRegex(text, r"(?m)^kind: Service$")
        done = box.run("apply", "-n", NS, "-f", "-", stdin=text)
        self.assertIn("unchanged", done.stdout)


class LeftBehind(unittest.TestCase):
    def test_two_sandboxes_side_by_side_and_nothing_stays(self):
        other = Box(f"f{os.getpid() % 100000}", nodes=1)
        try:
            other.up()
            other.run("create", "ns", NS)
            other.run("label", "ns", NS, MESHED)
            other.run("apply", "-n", NS, "-f", os.path.join(SAMPLES, "catalog.yaml"))
            other.run("apply", "-n", NS, "-f", os.path.join(SAMPLES, "client.yaml"))
            wait_for("the other's pods", lambda: other.ready(NS))
            wait_for("a call in the other", lambda: other.curl(
                NS, "client", "http://catalog/items")[1] == "200")
            self.assertTrue(calls_work(), "the first one is not disturbed")
        finally:
            other.down()
        self.assertEqual(other.left_behind(), [])
        self.assertTrue(calls_work(), "the first one is still not disturbed")

    def test_after_a_crash_down_leaves_nothing_either(self):
        links = Box.bpf_links()
        other = Box(f"g{os.getpid() % 100000}", nodes=1)
        try:
            other.up()
            other.run("create", "ns", NS)
            other.run("label", "ns", NS, MESHED)
            other.run("apply", "-n", NS, "-f", os.path.join(SAMPLES, "client.yaml"))
            wait_for("pods", lambda: other.ready(NS))
            self.assertGreater(len(Box.bpf_links()), len(links))
            with open(f"/run/meltemi/{other.name}/lock") as f:
                supervisor = int(f.read())
            mesh = other.processes()
            os.kill(supervisor, 9)
            for process in mesh:
                kill(process)
        finally:
            other.down()
        self.assertEqual(other.left_behind(), [])
        wait_for("the links are gone", lambda: Box.bpf_links() <= links, timeout=20)


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("skipped: needs root")
        sys.exit(77)
    unittest.main(verbosity=2)
