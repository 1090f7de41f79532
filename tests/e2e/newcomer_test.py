#!/usr/bin/python3
"""What somebody does on the first day, coming from kubectl and istioctl: the walk of the README as it
stands there, a waypoint for a namespace that is in use, and the question why a call was refused."""

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import unittest

import harness
from harness import Sandbox, sleeper, wait

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SANDBOX = None


def setUpModule():
    global SANDBOX
    harness.require_machine()
    SANDBOX = harness.mesh_of(("near", sleeper("near")))


def commands_of_readme(heading):
    """The lines of the first shell block below a heading."""
    with open(os.path.join(ROOT, "README.md")) as f:
        text = f.read()
    block = re.search(r"^#+ " + re.escape(heading) + r"$.*?^```sh\n(.*?)^```", text, re.S | re.M)
    return [line for line in block.group(1).splitlines() if line and not line.startswith("#")]


class Readme(unittest.TestCase):
    def test_the_walk_works_as_it_is_printed(self):
        other = Sandbox(harness.unique_name("walk"))
        self.addCleanup(other.down)
        env = dict(os.environ, MELTEMI_SANDBOX=other.name)
        commands = commands_of_readme("A walk")
        self.assertGreater(len(commands), 8)
        for command in commands:
            words = shlex.split(command, comments=True)
            self.assertEqual(words[0], "./meltemi", command)
            done = subprocess.run([harness.MELTEMI, *words[1:]], env=env, cwd=ROOT, text=True,
                                  capture_output=True, timeout=harness.TIMEOUT)
            self.assertEqual(done.returncode, 0, f"{command}\n{done.stdout}{done.stderr}")
            self.assertNotIn("error", done.stderr, command)


class Waypoint(unittest.TestCase):
    def test_a_namespace_that_is_in_use_gets_and_loses_a_waypoint_and_no_call_fails(self):
        with self.calls():
            SANDBOX.cli("waypoint", "apply", "-n", "mesh", "--enroll-namespace")
            wait("calls pass the waypoint", lambda: self.passed() > 0)
        with self.calls():
            SANDBOX.cli("label", "ns", "mesh", "istio.io/use-waypoint-")
            wait("calls pass it by", self.is_quiet)

    @contextlib.contextmanager
    def calls(self, callers=4):
        """Calls all the time, each of a connection of its own; every one is answered with 200."""
        loop = ("while [ ! -e /tmp/stop ]; do curl -s -o /dev/null --max-time 10 "
                "-w '%{http_code} %{errormsg}\\n' http://web/; done")
        SANDBOX.exec("near", "rm", "-f", "/tmp/stop", ns="mesh")
        running = [SANDBOX.popen("exec", "-n", "mesh", "near", "--", "sh", "-c", loop,
                                 stdout=subprocess.PIPE) for _ in range(callers)]
        try:
            yield
        finally:
            SANDBOX.exec("near", "touch", "/tmp/stop", ns="mesh")
            answers = [line for caller in running
                       for line in caller.communicate(timeout=30)[0].splitlines()]
        self.assertGreater(len(answers), 5)
        self.assertEqual([a for a in answers if a.strip() != "200"], [])

    @staticmethod
    def passed():
        """How many calls the waypoint's log has."""
        return SANDBOX.cli("logs", "-n", "mesh", "deploy/waypoint", check=False).out.count(
            'authority="web')

    def is_quiet(self):
        before = self.passed()
        time.sleep(0.3)
        return self.passed() == before

    def test_a_namespace_with_another_waypoint_is_refused_before_anything_is_changed(self):
        SANDBOX.cli("create", "ns", "taken")
        SANDBOX.cli("label", "ns", "taken", "istio.io/use-waypoint=theirs")
        done = SANDBOX.cli("waypoint", "apply", "-n", "taken", "--enroll-namespace", check=False)
        self.assertEqual(done.code, 65, done)
        self.assertIn("--overwrite", done.err)
        self.assertEqual(SANDBOX.get("gateways", "-n", "taken"), [])


class Manifests(unittest.TestCase):
    def test_a_pod_with_hostname_and_subdomain_has_a_name_of_its_own(self):
        SANDBOX.apply("""
apiVersion: v1
kind: Service
metadata: {name: crew}
spec: {clusterIP: None, selector: {app: crew}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: first, labels: {app: crew}}
spec:
  hostname: mate
  subdomain: crew
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: none, command: [sleep, infinity]}]
""", ns="mesh")
        SANDBOX.wait_ready("first", ns="mesh")
        ip = SANDBOX.get("pod", "first", "-n", "mesh")["status"]["podIP"]
        for name in ("mate.crew", "mate.crew.mesh.svc.cluster.local"):
            wait(f"{name} resolves", lambda: ip in SANDBOX.exec(
                "near", "getent", "ahostsv4", name, ns="mesh", check=False).out)
        self.assertEqual(SANDBOX.exec("first", "hostname", "-f", ns="mesh").out,
                         "mate.crew.mesh.svc.cluster.local\n")

    def test_byte_order_marks_before_documents_are_taken(self):
        account = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %s}\n"
        SANDBOX.apply("\ufeff" + account % "one-bom" + "---\n\ufeff" + account % "two-boms")
        names = [o["metadata"]["name"] for o in SANDBOX.get("sa")]
        self.assertIn("two-boms", names)


class Why(unittest.TestCase):
    def test_describe_lists_what_applies_and_who_acts_on_it(self):
        SANDBOX.apply("""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-near}
spec:
  selector: {matchLabels: {app: web}}
  rules: [{from: [{source: {namespaces: [mesh]}}]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
""", ns="mesh")
        pod = SANDBOX.cli("describe", "pod", "web", "-n", "mesh").out
        node = SANDBOX.get("pod", "web", "-n", "mesh")["spec"]["nodeName"]
        self.assertRegex(pod, rf"only-near +ALLOW +ztunnel of {node}")
        self.assertRegex(pod, rf"strict +STRICT +ztunnel of {node}")
        self.assertIn("no policy, no routing rule", SANDBOX.cli("describe", "svc", "web", "-n", "mesh").out)

    def test_logs_of_all_ztunnels_at_once(self):
        for words in (("ds/ztunnel",), ("ztunnel",), ("-l", "app=ztunnel")):
            lines = SANDBOX.cli("logs", "-n", "istio-system", *words, "--tail", "2").out.splitlines()
            self.assertEqual({line.split()[0] for line in lines},
                             {"[ztunnel-node1]", "[ztunnel-node2]"}, words)

    def test_describe_node_knows_what_get_node_knows(self):
        out = SANDBOX.cli("describe", "node", "node1").out
        self.assertIn("ztunnel", out)
        self.assertNotIn("node2", out)
        missing = SANDBOX.cli("describe", "node", "node9", check=False)
        self.assertEqual((missing.code, missing.err), (1, 'error: nodes "node9" not found\n'))


class Habits(unittest.TestCase):
    def test_one_missing_name_hides_nothing(self):
        for verb in ("get", "describe"):
            done = SANDBOX.cli(verb, "pod", "web", "ghost", "-n", "mesh", check=False)
            self.assertEqual(done.code, 1, done)
            self.assertIn("web", done.out)
            self.assertEqual(done.err.count('error: pods "ghost" not found'), 1, done)

    def test_delete_goes_on_with_the_others(self):
        SANDBOX.cli("create", "sa", "one")
        done = SANDBOX.cli("delete", "sa", "ghost", "one", check=False)
        self.assertEqual(done.code, 1, done)
        self.assertIn('serviceaccounts "ghost" not found', done.err)
        self.assertNotIn("one", [o["metadata"]["name"] for o in SANDBOX.get("sa")])

    def test_bad_input_changes_nothing(self):
        SANDBOX.cli("create", "sa", "first")
        SANDBOX.cli("create", "sa", "second")
        SANDBOX.cli("label", "sa", "second", "team=a")
        done = SANDBOX.cli("label", "sa", "first", "second", "team=b", check=False)
        self.assertEqual(done.code, 65, done)
        self.assertNotIn("team", SANDBOX.get("sa", "first")["metadata"].get("labels", {}))

    def test_words_of_other_tools_get_a_pointer(self):
        for words, pointer in ((("edit", "svc/web"), "meltemi apply -f"),
                               (("analyze",), "--dry-run"),
                               (("proxy-status",), "meltemi get mesh"),
                               (("kube-inject", "-f", "x"), "istio.io/dataplane-mode=ambient")):
            done = SANDBOX.cli(*words, check=False)
            self.assertEqual(done.code, 64, done)
            self.assertIn(pointer, done.err)
            self.assertNotIn("Did you mean", done.err)
        done = SANDBOX.cli("apply", "-k", "overlay", check=False)
        self.assertIn("kustomize build overlay | meltemi apply -f -", done.err)

    def test_no_error_says_error_twice(self):
        done = SANDBOX.cli("label", "ns", "mesh", "not/a/key=x", check=False)
        self.assertEqual(done.code, 65, done)
        self.assertEqual(done.err.count("error:"), 1, done)

    def test_port_forward_by_port_name(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        forward = SANDBOX.popen("port-forward", "-n", "mesh", "svc/web", f"{port}:http",
                                stdout=subprocess.PIPE)
        try:
            self.assertIn(f"{port} -> 8000", forward.stdout.readline())
            with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
                s.sendall(b"GET /named HTTP/1.0\r\n\r\n")
                self.assertIn(b" 200 ", s.recv(4096))
        finally:
            forward.terminate()
            forward.wait(timeout=10)

    def test_jsonpath_descends(self):
        got = SANDBOX.cli("get", "svc", "web", "-n", "mesh", "-o", "jsonpath={..targetPort}").out
        self.assertEqual(got, json.dumps(8000))


if __name__ == "__main__":
    unittest.main(verbosity=2, argv=sys.argv)
