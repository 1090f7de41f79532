"""One sandbox for the tests: brought up, talked to by the command line, and looked at from outside.

What it finds "left behind" is everything in the kernel and the file system that bears its name.
"""

import json
import os
import signal
import subprocess
import time

SAMPLES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "samples")


class Box:
    def __init__(self, name, nodes=2):
        self.name, self.nodes = name, nodes
        self.bin = os.environ["MELTEMI_BIN_DIR"]
        self.env = dict(os.environ, MELTEMI_SANDBOX=name)

    def run(self, *argv, check=True, stdin=None, timeout=120):
        done = subprocess.run([f"{self.bin}/meltemi", *argv], env=self.env, text=True, input=stdin,
                              capture_output=True, timeout=timeout)
        if check and done.returncode != 0:
            raise AssertionError(f"meltemi {' '.join(argv)}: exit {done.returncode}\n"
                                 f"{done.stdout}{done.stderr}")
        return done

    def up(self):
        self.run("sandbox", "up", "--nodes", str(self.nodes), "--name", self.name, timeout=300)

    def down(self):
        self.run("sandbox", "down", "--name", self.name, timeout=120)

    def items(self, *what):
        return json.loads(self.run("get", *what, "-o", "json").stdout)["items"]

    def processes(self, name=None):
        return [p for p in self.items("mesh") if name in (None, p["name"])]

    def pods(self, ns, **labels):
        return [p for p in self.items("pods", "-n", ns)
                if all(p["metadata"].get("labels", {}).get(k) == v for k, v in labels.items())]

    def ready(self, ns, enrolled=True):
        pods = self.pods(ns)
        return bool(pods) and all(
            any(c["type"] == "Ready" and c["status"] == "True"
                for c in p.get("status", {}).get("conditions", []))
            and (not enrolled or p["status"].get("meltemi", {}).get("enrolled")) for p in pods)

    def curl(self, ns, pod, *argv):
        """(exit code of curl, HTTP status, body)"""
        done = self.run("exec", "-n", ns, pod, "--", "curl", "-s", "--max-time", "10", "-w",
                        "\n%{http_code}", *argv, check=False)
        body, _, status = done.stdout.rpartition("\n")
        return done.returncode, status, body

    def log(self, process):
        with open(process["log"], errors="replace") as f:
            return f.read()

    def config_file(self, name):
        return f"/run/meltemi/{self.name}/config/{name}"

    # --- what is left -------------------------------------------------------------------------------

    def left_behind(self):
        found = []
        mark = f"meltemi-{self.name}-"
        found += ["netns " + n for n in os.listdir("/run/netns") if n.startswith(mark)] \
            if os.path.isdir("/run/netns") else []
        with open("/proc/self/mounts") as f:
            mounts = f.read().splitlines()
        found += ["mount " + m.split()[1] for m in mounts if f"/run/meltemi/{self.name}" in m]
        cgroup2 = next(m.split()[1] for m in mounts if m.split()[2] == "cgroup2")
        if os.path.exists(f"{cgroup2}/meltemi/{self.name}"):
            found.append(f"cgroup meltemi/{self.name}")
        if os.path.exists(f"/run/meltemi/{self.name}"):
            found.append(f"directory /run/meltemi/{self.name}")
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cgroup") as f:
                    groups = f.read()
                with open(f"/proc/{pid}/cmdline") as f:
                    command = f.read().replace("\0", " ")
            except OSError:
                continue
            if f"/meltemi/{self.name}/" in groups or f"/run/meltemi/{self.name}/" in command:
                found.append(f"process {pid} {command}")
        return found

    @staticmethod
    def bpf_links():
        """Ids of all BPF links of the kernel."""
        out = subprocess.run(["bpftool", "link", "list", "-j"], text=True, capture_output=True).stdout
        return {link["id"] for link in json.loads(out or "[]")}


def wait_for(what, ready, timeout=60):
    deadline = time.monotonic() + timeout
    while True:
        value = ready()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(0.3)


def kill(process):
    os.kill(process["pid"], signal.SIGKILL)
