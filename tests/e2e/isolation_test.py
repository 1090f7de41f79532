#!/usr/bin/python3
"""What root in a pod of the sandbox can do to the machine and to the mesh: what it can in a container of
containerd's, no more. And what the mesh's own processes keep of root's power."""

import os
import re
import subprocess
import sys
import unittest

import harness
from harness import Sandbox, wait

SANDBOX = None
# What containerd leaves to a container: the mask that every description of Docker shows.
CONTAINERD_CAPABILITIES = 0x00000000a80425fb
NET_BIND_SERVICE, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, SYS_RESOURCE, PERFMON, BPF = 10, 12, 19, 21, 24, 38, 39

PODS = """
apiVersion: v1
kind: Secret
metadata: {name: password}
stringData: {word: sesame}
---
apiVersion: v1
kind: Pod
metadata: {name: hostile}
spec:
  terminationGracePeriodSeconds: 20
  volumes: [{name: password, secret: {secretName: password}}]
  containers:
  - name: c
    image: none
    volumeMounts: [{name: password, mountPath: /secret}]
    command: [sleep, infinity]
---
apiVersion: v1
kind: Pod
metadata: {name: unconfined}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {seccompProfile: {type: Unconfined}}
  containers: [{name: c, image: none, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: polite}
spec:
  terminationGracePeriodSeconds: 30
  containers:
  - name: c
    image: none
    command: [python3, -u, -c]
    args:
    - |
      import signal, sys, time
      def bye(*_):
          print("asked to end", flush=True)
          time.sleep(2)
          sys.exit(0)
      signal.signal(signal.SIGTERM, bye)
      print("ready", flush=True)
      while True: time.sleep(60)
"""


def setUpModule():
    global SANDBOX
    harness.require_machine()
    SANDBOX = Sandbox(nodes=1)
    unittest.addModuleCleanup(SANDBOX.down)
    SANDBOX.up()
    SANDBOX.apply(PODS)
    SANDBOX.wait_ready("hostile", "unconfined", "polite")


def sh(script, pod="hostile"):
    return SANDBOX.exec(pod, "sh", "-c", script, check=False)


def python(code, pod="hostile"):
    return SANDBOX.exec(pod, "python3", "-c", code, check=False)


def field(status, name):
    return re.search(rf"^{name}:\s*(\S+)", status, re.M).group(1)


class Pod(unittest.TestCase):
    def refused(self, done, *words):
        self.assertNotEqual(done.code, 0, done)
        self.assertTrue(any(w in done.err for w in words), done)

    def test_it_sees_no_process_but_its_own(self):
        pids = [p for p in sh("ls /proc").out.split() if p.isdigit()]
        self.assertLess(len(pids), 6, pids)
        self.assertEqual(sh("tr '\\0' ' ' < /proc/1/cmdline").out, "sleep infinity ")

    def test_exec_joins_the_namespaces_of_the_container(self):
        for name in ("pid", "mnt", "ipc", "uts", "cgroup", "net"):
            self.assertEqual(sh(f"readlink /proc/1/ns/{name}").out, sh(f"readlink /proc/self/ns/{name}").out)
            machine = os.readlink(f"/proc/self/ns/{name}")
            self.assertNotEqual(sh(f"readlink /proc/self/ns/{name}").out.strip(), machine, name)

    def test_the_keys_of_the_mesh_are_not_there(self):
        self.assertNotEqual(os.listdir(SANDBOX.run_dir), [])
        self.assertEqual(sh("ls -A /run/meltemi /home 2>/dev/null | grep -v :").out.strip(), "")

    def test_it_cannot_leave_its_cgroup(self):
        self.assertEqual(sh("grep ^0:: /proc/self/cgroup").out, "0::/\n")
        self.refused(sh("echo 0 > /sys/fs/cgroup/cgroup.procs"), "Read-only file system")
        self.refused(sh("mkdir /sys/fs/cgroup/mine"), "Read-only file system")

    def test_it_cannot_change_the_kernel(self):
        for path in ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/panic"):
            self.refused(sh(f"echo 1 > {path}"), "Read-only file system")
        self.refused(sh("mount -t tmpfs x /mnt"), "permission denied", "Operation not permitted", "must be superuser")
        self.refused(sh("unshare -n true"), "Operation not permitted")
        masked = sh("for f in kcore keys timer_list; do [ ! -e /proc/$f ] || wc -c < /proc/$f; done").out
        self.assertEqual(set(masked.split()), {"0"})

    def test_it_opens_no_device_of_the_machine(self):
        for where in ("/root", "/tmp", "/dev", "/dev/shm", "/etc"):
            self.assertEqual(sh(f"mknod {where}/memory c 1 1").code, 0)
            self.refused(sh(f"head -c 1 {where}/memory"), "Permission denied")
        self.assertEqual(sh("head -c 4 /dev/urandom | wc -c; : > /dev/null").out.strip(), "4")

    def test_it_has_the_capabilities_and_the_filter_of_a_container(self):
        for pid in ("1", "self"):
            status = sh(f"cat /proc/{pid}/status").out
            self.assertEqual(int(field(status, "CapEff"), 16), CONTAINERD_CAPABILITIES)
            self.assertEqual(int(field(status, "CapBnd"), 16), CONTAINERD_CAPABILITIES)
            self.assertEqual(field(status, "Seccomp"), "2")
        self.assertEqual(field(sh("cat /proc/self/status", "unconfined").out, "Seccomp"), "0")

    def test_its_filter_refuses_what_containerd_refuses(self):
        calls = {"keyctl": 250, "bpf": 321, "io_uring_setup": 425, "setns": 308, "open_by_handle_at": 304,
                 "userfaultfd": 323, "kexec_load": 246, "init_module": 175}
        code = ("import ctypes, errno, sys; libc = ctypes.CDLL(None, use_errno=True); "
                "r = libc.syscall(int(sys.argv[1]), 0, 0, 0, 0, 0); "
                "print(r, errno.errorcode.get(ctypes.get_errno()))")
        for name, number in calls.items():
            out = SANDBOX.exec("hostile", "python3", "-c", code, str(number)).out
            self.assertEqual(out, "-1 EPERM\n", name)

    def test_nobody_needs_a_privilege_for_a_low_port(self):
        done = python("import os, socket; os.setuid(65534); socket.socket().bind(('', 80))")
        self.assertEqual(done.code, 0, done)

    def test_secrets_are_in_memory_and_for_root_only(self):
        token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
        for path in ("/secret/word", token):
            self.assertEqual(sh(f"stat -L -c %a {path}; stat -L -f -c %T {path}").out.split(), ["600", "tmpfs"])
        outside = os.path.join(SANDBOX.run_dir, "pods")
        self.assertEqual(os.stat(outside).st_mode & 0o777, 0o700)

    def test_a_program_that_handles_sigterm_gets_its_grace(self):
        logs = SANDBOX.popen("logs", "-f", "polite", stdout=-1)
        self.assertEqual(logs.stdout.readline(), "ready\n")
        SANDBOX.cli("delete", "pod", "polite")
        self.assertEqual(logs.stdout.readline(), "asked to end\n")
        logs.stdout.close()
        logs.wait(timeout=20)


class Daemons(unittest.TestCase):
    KEPT = {"meltemid": (), "ztunnel": (SYS_ADMIN, NET_ADMIN),
            "meltemi-agent": (SYS_ADMIN, NET_ADMIN, BPF, PERFMON, SYS_PTRACE, SYS_RESOURCE)}

    def keeps_only(self, name, pid, kept):
        allowed = sum(1 << capability for capability in kept)
        # All threads: capabilities and filters belong to each.
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/status") as f:
                status = f.read()
            for capabilities in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
                self.assertEqual(int(field(status, capabilities), 16) & ~allowed, 0, (name, capabilities))
            self.assertEqual((field(status, "NoNewPrivs"), field(status, "Seccomp")), ("1", "2"), name)
            # The second one: no more rings.
            filters = "2" if name in ("ztunnel", "waypoint") else "1"
            self.assertEqual(field(status, "Seccomp_filters"), filters, name)

    def test_each_keeps_what_it_needs_and_gains_nothing(self):
        for name, kept in self.KEPT.items():
            self.keeps_only(name, SANDBOX.mesh(name)["pid"], kept)

    def test_the_plugin_keeps_nothing(self):
        plugin = subprocess.Popen([os.path.join(harness.BIN, "meltemi-cni")], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, env={"CNI_COMMAND": "VERSION"}, text=True)

        def confined():
            with open(f"/proc/{plugin.pid}/status") as f:
                return field(f.read(), "Seccomp") == "2"
        wait("the plugin to wait for its configuration", confined)
        self.keeps_only("meltemi-cni", plugin.pid, ())
        answer, _ = plugin.communicate('{"cniVersion": "1.0.0"}', timeout=20)
        self.assertEqual(plugin.returncode, 0)
        self.assertIn("supportedVersions", answer)

    def test_a_waypoint_keeps_one_capability_at_most(self):
        SANDBOX.cli("waypoint", "apply", "--wait")
        pod = next(p for p in SANDBOX.get("pods") if p["metadata"]["name"].startswith("waypoint"))
        pid = wait("the waypoint's process", lambda: SANDBOX.get(
            "pod", pod["metadata"]["name"])["status"]["meltemi"]["pids"])[0]
        self.keeps_only("waypoint", pid, (NET_BIND_SERVICE,))


if __name__ == "__main__":
    unittest.main(verbosity=2, argv=sys.argv)
