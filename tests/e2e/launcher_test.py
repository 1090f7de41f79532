#!/usr/bin/python3
"""./meltemi on machines that cannot run the mesh: it says what is missing and what to do, and changes
nothing. The machine's lacks are made in a mount namespace of the test's own."""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import harness

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LAUNCHER = os.path.join(ROOT, "meltemi")


def launch(*argv, before="", user=None):
    """The launcher in a private mount namespace, after the shell commands `before`."""
    script = f'{before}\nexec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    if user is not None:
        # Not root, but able to read a clone below /root.
        capabilities = "+dac_override,+dac_read_search"
        command += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups",
                    f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]
    return subprocess.run([*command, LAUNCHER, *argv], text=True, capture_output=True, timeout=60)


def packages():
    return subprocess.run(["dpkg-query", "-W"], text=True, capture_output=True, check=True).stdout


class Launcher(unittest.TestCase):
    def refuses(self, done, *words):
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("nothing has been changed", done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def setUp(self):
        self.packages = packages()

    def tearDown(self):
        self.assertEqual(packages(), self.packages)

    def test_without_root(self):
        for verb in ("demo", "test", "bench", "build", "check"):
            self.refuses(launch(verb, user=65534), "not root", "sudo")

    def test_without_cgroup2(self):
        unmount = "for d in $(awk '$3 == \"cgroup2\" {print $2}' /proc/self/mounts); do umount -l $d; done"
        self.refuses(launch("demo", before=unmount), "cgroup v2", "mount -t cgroup2")

    def test_without_bpf(self):
        hide = "grep -v bpf /proc/filesystems > /dev/shm/$$; mount --bind /dev/shm/$$ /proc/filesystems; rm /dev/shm/$$"
        self.refuses(launch("demo", before=hide), "no BPF", "CONFIG_BPF_SYSCALL")

    def test_everything_that_is_missing_is_said_at_once(self):
        unmount = "for d in $(awk '$3 == \"cgroup2\" {print $2}' /proc/self/mounts); do umount -l $d; done"
        self.refuses(launch("test", before=unmount, user=65534), "not root", "cgroup v2")

    def test_check_tells_what_would_be_installed(self):
        # dpkg's own list says what is there; an empty one is a machine with nothing.
        for before, packages_told in (("", False), ("mount -t tmpfs none /var/lib/dpkg", True)):
            done = launch("check", before=before)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("can run the mesh", done.stdout)
            self.assertEqual(" clang-19 " in done.stdout and " haproxy " in done.stdout, packages_told, done.stdout)

    def test_without_io_uring_it_warns_and_goes_on(self):
        forbid = ("echo 2 > /dev/shm/$$; mount --bind /dev/shm/$$ /proc/sys/kernel/io_uring_disabled; "
                  "rm /dev/shm/$$")
        done = launch("check", before=forbid)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("epoll", done.stderr)
        self.assertIn("sysctl kernel.io_uring_disabled=0", done.stderr)
        self.assertNotIn("epoll", launch("check").stderr)

    def test_a_filter_that_matches_no_test_is_an_error(self):
        # The launcher in a tree of its own, where everything is built and there is one test.
        with tempfile.TemporaryDirectory() as tree:
            build = os.path.join(tree, "build", "release")
            os.makedirs(build)
            launcher = shutil.copy(LAUNCHER, tree)
            with open(os.path.join(build, "build.ninja"), "w") as f:
                f.write("build all: phony\n")
            with open(os.path.join(build, "CTestTestfile.cmake"), "w") as f:
                f.write('add_test(unit.alpha "/bin/true")\n')
            for name, code in (("alpha", 0), ("beta", 1)):
                done = subprocess.run([launcher, "test", name], text=True, capture_output=True, timeout=60)
                self.assertEqual(done.returncode, code, done.stdout + done.stderr)
            self.assertIn("-R beta", done.stderr)
            self.assertRegex(done.stderr, r"\d+ s  build release\n +\d+ s  tests that match beta\n")

    def test_help_needs_nothing(self):
        done = launch("--help", user=65534)
        self.assertEqual(done.returncode, 0, done.stderr)
        for verb in ("demo", "test", "bench", "build", "check"):
            self.assertIn(verb, done.stdout)

    def test_without_a_word_the_verbs_are_shown(self):
        with_tool = launch()
        self.assertEqual(with_tool.returncode, 64)
        for verb in ("demo", "apply", "get", "waypoint"):
            self.assertIn(verb, with_tool.stdout)

    def test_help_of_one_word_is_about_that_word(self):
        done = launch("help", "get")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("--selector", done.stdout)
        self.assertNotIn("port-forward", done.stdout)


if __name__ == "__main__":
    harness.require_machine()
    unittest.main(verbosity=2, argv=sys.argv)
