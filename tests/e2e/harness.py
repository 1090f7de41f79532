"""What the e2e tests share: a sandbox of their own, driven by the command line as a user drives it.

Names are unique to the process, so that runs beside each other never meet. Only processes of the own
sandbox are ever signalled, by the pids that the command line tells.
"""

import json
import os
import subprocess
import sys
import time
import unittest

BIN = os.environ.get("MELTEMI_BIN_DIR", "")
MELTEMI = os.path.join(BIN, "meltemi")
TIMEOUT = 120


def require_machine():
    """Exits 77, which ctest calls skipped, where a sandbox cannot run."""
    def skip(why):
        print("skipped:", why, file=sys.stderr)
        sys.exit(77)
    if os.geteuid() != 0:
        skip("needs root")
    with open("/proc/self/mounts") as f:
        if not any(line.split()[2] == "cgroup2" for line in f):
            skip("needs a mounted cgroup2")
    if not os.access(MELTEMI, os.X_OK):
        sys.exit(f"MELTEMI_BIN_DIR={BIN!r} holds no meltemi")


def cgroup_root():
    with open("/proc/self/mounts") as f:
        return next(line.split()[1] for line in f if line.split()[2] == "cgroup2")


def unique_name(suffix=""):
    return f"e{os.getpid()}{suffix}"


class Result:
    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    def __repr__(self):
        return f"exit {self.code}\nstdout: {self.out}\nstderr: {self.err}"


class Sandbox:
    def __init__(self, name=None, nodes=2):
        self.name = name or unique_name()
        self.nodes = nodes
        self.run_dir = f"/run/meltemi/{self.name}"
        self.config = self.run_dir + "/config"
        self.cgroup = os.path.join(cgroup_root(), "meltemi", self.name)

    def cli(self, *argv, stdin=None, check=True, timeout=TIMEOUT):
        env = dict(os.environ, MELTEMI_SANDBOX=self.name)
        done = Result(subprocess.run([MELTEMI, *argv], env=env, input=stdin, text=True,
                                     capture_output=True, timeout=timeout))
        if check and done.code != 0:
            raise AssertionError(f"meltemi {' '.join(argv)}: {done!r}")
        return done

    def popen(self, *argv, **kwargs):
        return subprocess.Popen([MELTEMI, *argv], env=dict(os.environ, MELTEMI_SANDBOX=self.name),
                                text=True, **kwargs)

    def up(self):
        return self.cli("sandbox", "up", "--name", self.name, "--nodes", str(self.nodes), timeout=240)

    def down(self):
        return self.cli("sandbox", "down", "--name", self.name)

    def apply(self, yaml, ns="default", check=True):
        return self.cli("apply", "-n", ns, "-f", "-", stdin=yaml, check=check)

    def get(self, *argv):
        """The items of a list, or one object."""
        found = json.loads(self.cli("get", *argv, "-o", "json").out)
        return found["items"] if found.get("kind") == "List" else found

    def mesh(self, name, node=None):
        return next(p for p in self.get("mesh")
                    if p["name"] == name and (node is None or p["node"] == node))

    def exec(self, pod, *argv, ns="default", check=True, stdin=None):
        interactive = ["-i"] if stdin is not None else []
        return self.cli("exec", "-n", ns, *interactive, pod, "--", *argv, check=check, stdin=stdin)

    def curl(self, pod, url, *argv, ns="default"):
        """HTTP status ("000": none) and body."""
        done = self.exec(pod, "curl", "-s", "--max-time", "15", "-w", "\n%{http_code}", *argv, url,
                         ns=ns, check=False)
        body, _, status = done.out.rpartition("\n")
        return status, body

    def status(self, pod, ns="default"):
        """What the node has reported of a pod; empty until it has."""
        return self.get("pod", pod, "-n", ns).get("status", {})

    def ready(self, pod, ns="default"):
        found = [p for p in self.get("pods", "-n", ns) if p["metadata"]["name"] == pod]
        return bool(found) and any(c["type"] == "Ready" and c["status"] == "True"
                                   for c in found[0].get("status", {}).get("conditions", []))

    def wait_ready(self, *pods, ns="default"):
        for pod in pods:
            wait(f"pod {pod} ready", lambda: self.ready(pod, ns))

    def wait_enrolled(self, *pods, ns="default"):
        for pod in pods:
            wait(f"pod {pod} enrolled",
                 lambda: self.status(pod, ns).get("meltemi", {}).get("enrolled"))

    def log(self, name, node=None):
        with open(self.mesh(name, node)["log"], errors="replace") as f:
            return f.read()


def mesh_of(*sleepers):
    """A sandbox whose namespace `mesh` has the server `web` and these (manifests of sleepers, by name),
    all enrolled; taken down with the module."""
    sandbox = Sandbox()
    unittest.addModuleCleanup(sandbox.down)
    sandbox.up()
    sandbox.cli("create", "ns", "mesh")
    sandbox.cli("label", "ns", "mesh", "istio.io/dataplane-mode=ambient")
    sandbox.apply(server("web"), ns="mesh")
    sandbox.apply("---".join(manifest for _, manifest in sleepers), ns="mesh")
    names = ["web", *(name for name, _ in sleepers)]
    sandbox.wait_ready(*names, ns="mesh")
    sandbox.wait_enrolled(*names, ns="mesh")
    return sandbox


def wait(what, met, timeout=60):
    deadline = time.monotonic() + timeout
    while True:
        value = met()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.2)


def sleeper(name, labels="", extra=""):
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}{', ' + labels if labels else ''}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: c, image: none, command: [sleep, infinity]}}]
{extra}
"""


# An HTTP server by somebody else: Python's own. Answers with its caller's address.
def server(name, port=8000, pod_extra="", probe=True):
    ready = ("readinessProbe: {httpGet: {path: /, port: %d}, periodSeconds: 1}" % port) if probe else ""
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: {port}}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  {pod_extra}
  containers:
  - name: c
    image: none
    {ready}
    command: [python3, -u, -c]
    args:
    - |
      from http.server import *
      class H(BaseHTTPRequestHandler):
          def do_GET(self):
              body = (self.client_address[0] + " " + self.path).encode()
              self.send_response(200)
              self.send_header("Content-Length", str(len(body)))
              self.end_headers()
              self.wfile.write(body)
          def log_message(self, text, *args):
              print(self.client_address[0], text % args, flush=True)
      ThreadingHTTPServer(("", {port}), H).serve_forever()
"""
