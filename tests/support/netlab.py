"""Two pods' worth of network for tests and benchmarks, and the accounting of CPU.

Two network namespaces joined by a veth, as two pods on two nodes would be. Everything made here is
named meltemi-<tag>-<pid>-*, and is removed by Lab.close(), also when a benchmark fails. It must
never touch a namespace that it did not make.
"""

import glob
import os
import signal
import subprocess
import time


def run(*argv, **kwargs):
    return subprocess.run(argv, check=True, text=True, capture_output=True, **kwargs).stdout


def allow_cubic():
    """Lists cubic for namespaces; the machine's default may be another."""
    path = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"
    with open(path) as f:
        allowed = f.read().split()
    if "cubic" not in allowed:
        with open(path, "w") as f:
            f.write(" ".join(allowed + ["cubic"]))


class Process:
    """A child in a namespace, pinned to one core. Ended by its own pid only."""

    def __init__(self, argv, netns=None, cpu=None, env=None, stdout=subprocess.PIPE, cgroup=None,
                 log=None, stderr=subprocess.DEVNULL):
        prefix = []
        if cgroup:
            prefix += ["sh", "-c", f'echo $$ > {cgroup}/cgroup.procs; exec "$@"', "sh"]
        if netns:
            prefix += ["nsenter", f"--net=/run/netns/{netns}", "--"]
        if cpu is not None:
            prefix += ["taskset", "-c", str(cpu)]
        if log:
            stderr = open(log, "a")
        self.popen = subprocess.Popen(prefix + argv, stdout=stdout, stderr=stderr, text=True,
                                      env=dict(os.environ, **(env or {})))
        if log:
            stderr.close()

    @property
    def pid(self):
        return self.popen.pid

    def wait_line(self, wanted, timeout=20):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            line = self.popen.stdout.readline()
            if not line:
                raise RuntimeError(f"{self.popen.args} ended before it said {wanted!r}")
            if line.strip() == wanted:
                return
        raise RuntimeError(f"{self.popen.args} did not say {wanted!r} in {timeout} s")

    def stop(self):
        if self.popen.stdout and not self.popen.stdout.closed:
            self.popen.stdout.close()
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(5)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(5)


def cpu_seconds(pids):
    """CPU time of processes and all their threads, nanosecond resolution (schedstat)."""
    total = 0
    for pid in pids:
        for task in glob.glob(f"/proc/{pid}/task/*/schedstat"):
            try:
                with open(task) as f:
                    total += int(f.read().split()[0])
            except OSError:
                pass  # a thread that ended inside of the window
    return total / 1e9


def anonymous_kb(pid):
    """User memory of a process: anonymous pages, in KiB."""
    with open(f"/proc/{pid}/smaps_rollup") as f:
        for line in f:
            if line.startswith("Anonymous:"):
                return int(line.split()[1])
    return 0


def wait_port(ns, port, timeout=20):
    """Until something listens on the namespace's 127.0.0.1:port."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done = subprocess.run(["nsenter", f"--net=/run/netns/{ns}", "--", "bash", "-c",
                               f"exec 3<>/dev/tcp/127.0.0.1/{port}"], capture_output=True)
        if done.returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError(f"nothing listens on 127.0.0.1:{port} after {timeout} s")


class Lab:
    def __init__(self, tag="lab"):
        allow_cubic()
        self.name = f"meltemi-{tag}-{os.getpid()}"
        self.a, self.b = self.name + "-a", self.name + "-b"
        self.children = []
        for ns in (self.a, self.b):
            run("ip", "netns", "add", ns)
            run("ip", "-n", ns, "link", "set", "lo", "up")
            for key, value in (("net.ipv4.tcp_congestion_control", "cubic"),
                               ("net.ipv4.tcp_tw_reuse", "1"),
                               ("net.ipv4.ip_local_port_range", "10000 65000"),
                               ("net.core.somaxconn", "4096")):
                run("ip", "netns", "exec", ns, "sysctl", "-qw", f"{key}={value}")
        run("ip", "-n", self.a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0",
            "netns", self.b)
        for ns, ip in ((self.a, "10.97.0.1"), (self.b, "10.97.0.2")):
            run("ip", "-n", ns, "addr", "add", ip + "/24", "dev", "eth0")
            run("ip", "-n", ns, "link", "set", "eth0", "up")
        self.ip_a, self.ip_b = "10.97.0.1", "10.97.0.2"

    def start(self, argv, **kwargs):
        child = Process(argv, **kwargs)
        self.children.append(child)
        return child

    def close(self):
        for child in reversed(self.children):
            child.stop()
        for ns in (self.a, self.b):
            subprocess.run(["ip", "netns", "del", ns], check=False, capture_output=True)
