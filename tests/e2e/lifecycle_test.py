#!/usr/bin/python3
"""Sandboxes come and go: two side by side, `down`, and a crash of everything leave nothing behind."""

import glob
import json
import os
import signal
import subprocess
import sys
import unittest

import harness
from harness import Sandbox, server, sleeper, unique_name, wait


def bpf_links(sandbox):
    """Ids of the links in the kernel that hang on the sandbox's cgroups or network namespaces."""
    cgroups = {os.stat(folder).st_ino for folder, _, _ in os.walk(sandbox.cgroup)}
    spaces = {os.stat(path).st_ino for path in glob.glob(f"/run/netns/meltemi-{sandbox.name}-*")}
    return {link["id"] for link in all_links()
            if link.get("cgroup_id") in cgroups or link.get("netns_ino") in spaces}


def all_links():
    done = subprocess.run(["bpftool", "-j", "link", "list"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


def remains(sandbox):
    """Everything that carries the sandbox's name."""
    found = [n for n in os.listdir("/run/netns") if n.startswith(f"meltemi-{sandbox.name}-")] \
        if os.path.isdir("/run/netns") else []
    with open("/proc/self/mounts") as f:
        found += [line.split()[1] for line in f if f"/run/meltemi/{sandbox.name}" in line]
    found += [p for p in (sandbox.run_dir, sandbox.cgroup) if os.path.exists(p)]
    for path in glob.glob("/proc/[0-9]*/cgroup"):
        try:
            with open(path) as f:
                if f"/meltemi/{sandbox.name}/" in f.read():
                    found.append(path)
        except OSError:
            pass  # it has ended meanwhile
    return found


def populate(sandbox):
    sandbox.cli("create", "ns", "shop")
    sandbox.cli("label", "ns", "shop", "istio.io/dataplane-mode=ambient")
    sandbox.apply(server("web"), ns="shop")
    sandbox.apply(sleeper("client"), ns="shop")
    sandbox.wait_ready("web", "client", ns="shop")
    sandbox.wait_enrolled("web", "client", ns="shop")


class Lifecycle(unittest.TestCase):
    def setUp(self):
        self.sandboxes = []

    def tearDown(self):
        for sandbox in self.sandboxes:
            sandbox.down()

    def make(self, suffix, nodes):
        sandbox = Sandbox(unique_name(suffix), nodes)
        self.sandboxes.append(sandbox)
        return sandbox

    def gone(self, sandbox, links):
        wait(f"nothing left of {sandbox.name}", lambda: not remains(sandbox))
        wait("no BPF link left", lambda: not links & {link["id"] for link in all_links()})

    def test_down_leaves_nothing_behind(self):
        sandbox = self.make("a", 2)
        sandbox.up()
        populate(sandbox)
        links = bpf_links(sandbox)
        self.assertGreater(len(links), 4, "hooks on two nodes, lookups in two pods: all must be seen")
        sandbox.down()
        self.gone(sandbox, links)
        self.assertEqual(sandbox.down().code, 0, "down of what is down is no error")

    def test_a_crash_leaves_nothing_that_down_does_not_find(self):
        sandbox = self.make("b", 1)
        sandbox.up()
        populate(sandbox)
        links = bpf_links(sandbox)
        self.crash(sandbox)
        self.assertIn("Crashed", sandbox.cli("sandbox", "list").out)
        done = sandbox.cli("get", "pods", check=False)
        self.assertEqual(done.code, 1)
        self.assertIn("sandbox up", done.err)
        sandbox.down()
        self.gone(sandbox, links)

    def test_up_after_a_crash_brings_back_all_that_was_applied(self):
        sandbox = self.make("c", 1)
        sandbox.up()
        populate(sandbox)
        sandbox.cli("label", "ns", "default", "team=a")
        before = {p["metadata"]["uid"] for p in sandbox.get("pods", "-A")}
        # Only the supervisor: what it had started lives on, and must not meet its successors.
        self.crash(sandbox, everything=False)
        self.assertIn("sandbox up", sandbox.cli("get", "pods", check=False).err)
        sandbox.up()
        sandbox.wait_ready("web", "client", ns="shop")
        sandbox.wait_enrolled("web", "client", ns="shop")
        self.assertEqual(sandbox.curl("client", "http://web/", ns="shop")[0], "200")
        self.assertEqual(sandbox.get("ns", "default")["metadata"]["labels"]["team"], "a")
        self.assertFalse(before & {p["metadata"]["uid"] for p in sandbox.get("pods", "-A")})
        sandbox.down()
        sandbox.up()
        self.assertEqual(sandbox.get("pods", "-A"), [], "down is for good")

    def test_up_twice_is_an_error_and_changes_nothing(self):
        sandbox = self.make("d", 1)
        sandbox.up()
        pid = sandbox.mesh("meltemid")["pid"]
        again = sandbox.cli("sandbox", "up", "--name", sandbox.name, check=False)
        self.assertNotEqual(again.code, 0)
        self.assertIn("running already", again.err)
        self.assertEqual(sandbox.mesh("meltemid")["pid"], pid)

    def test_two_sandboxes_run_side_by_side(self):
        first, second = self.make("e", 1), self.make("f", 1)
        first.up()
        second.up()
        populate(first)
        populate(second)
        for sandbox in (first, second):
            self.assertEqual(sandbox.curl("client", "http://web/", ns="shop")[0], "200")
        # The same addresses in both, and no way from one to the other.
        self.assertEqual(first.get("svc", "web", "-n", "shop")["spec"]["clusterIP"],
                         second.get("svc", "web", "-n", "shop")["spec"]["clusterIP"])
        unknown = first.cli("get", "pods", "--sandbox", unique_name("x"), check=False)
        self.assertEqual(unknown.code, 1)
        for sandbox in (first, second):
            self.assertIn(sandbox.name, unknown.err.partition("Running: ")[2], "those that run are told")
        before = first.cli("logs", "-n", "shop", "web").out.count("/only-second")
        self.assertEqual(second.curl("client", "http://web/only-second", ns="shop")[0], "200")
        self.assertEqual(first.cli("logs", "-n", "shop", "web").out.count("/only-second"), before)
        first.down()
        wait("nothing left of the first", lambda: not remains(first))
        self.assertEqual(second.curl("client", "http://web/", ns="shop")[0], "200",
                         "the end of one sandbox was felt in the other")

    def crash(self, sandbox, everything=True):
        """SIGKILL, as the OOM killer would: to the supervisor, or to every process of the sandbox."""
        with open(os.path.join(sandbox.run_dir, "lock")) as f:
            os.kill(int(f.read()), signal.SIGKILL)
        if everything:
            for path in glob.glob(sandbox.cgroup + "/**/cgroup.procs", recursive=True):
                with open(path) as f:
                    for pid in f.read().split():
                        try:
                            os.kill(int(pid), signal.SIGKILL)
                        except ProcessLookupError:
                            pass
        wait("the supervisor is dead", lambda: "Crashed" in sandbox.cli("sandbox", "list").out)


if __name__ == "__main__":
    harness.require_machine()
    unittest.main(verbosity=2, argv=sys.argv)
