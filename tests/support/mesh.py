"""Two pods in the mesh, without a control plane: per pod a node namespace with an agent and a ztunnel,
the ztunnels configured by a local file and certified by a local authority. What a test or a benchmark
of the tunnel needs, and nothing else.

The agent is told what to enrol as a restarted one is: by the file in which it keeps its decisions. It
must never leave a process, cgroup, mount or namespace behind: close() removes all, and everything
is named after the lab.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import time

import netlab

NAMESPACE = "bench"


def cgroup2_mount():
    with open("/proc/self/mounts") as f:
        for line in f:
            fields = line.split()
            if fields[2] == "cgroup2":
                return fields[1]
    raise RuntimeError("no cgroup2 file system is mounted")


class Node:
    """One node: its namespace, its cgroup, and the files and processes of its agent and ztunnel."""

    def __init__(self, mesh, letter, pod_netns, pod_ip, account):
        self.mesh, self.letter, self.pod_netns, self.pod_ip = mesh, letter, pod_netns, pod_ip
        self.account = account
        self.netns = f"{mesh.lab.name}-node-{letter}"
        self.cgroup = f"{mesh.cgroup_root}/{letter}"
        self.pod_cgroup = f"{self.cgroup}/pod"
        self.system_cgroup = f"{self.cgroup}/system"
        self.run_dir = f"{mesh.work}/{letter}"
        self.uid = f"{letter}0000000-0000-4000-8000-000000000000"
        self.agent = self.ztunnel = None
        os.makedirs(self.run_dir, mode=0o700)
        os.makedirs(self.pod_cgroup)
        os.makedirs(self.system_cgroup)
        os.makedirs(f"{mesh.bpffs}/{letter}")
        netlab.run("ip", "netns", "add", self.netns)
        netlab.run("ip", "-n", self.netns, "link", "set", "lo", "up")

    @property
    def log(self):
        return f"{self.run_dir}/ztunnel.log"

    def write_enrolment(self):
        decision = {"uid": self.uid, "name": self.letter, "namespace": NAMESPACE,
                    "serviceAccount": self.account, "enrol": True, "reason": "namespace_label",
                    "addresses": [base64.b64encode(socket.inet_aton(self.pod_ip)).decode()],
                    "inboundMode": "STRICT" if self.mesh.strict else "PERMISSIVE"}
        with open(f"{self.run_dir}/enrolments.json", "w") as f:
            json.dump({"version": 1, "pods": [{
                "uid": self.uid, "name": self.letter, "namespace": NAMESPACE,
                "netnsPath": f"/run/netns/{self.pod_netns}", "decision": decision}]}, f)

    def start_agent(self):
        self.agent = self.mesh.lab.start(
            [f"{self.mesh.bin}/meltemi-agent", "--node-name", f"node-{self.letter}", "--run-dir",
             self.run_dir, "--cgroup", self.cgroup, "--bpf-dir", f"{self.mesh.bpffs}/{self.letter}",
             "--xds-address", "", "--log-level", "debug"],
            netns=self.netns, cgroup=self.system_cgroup, stdout=subprocess.DEVNULL,
            log=f"{self.run_dir}/agent.log")

    def start_ztunnel(self):
        env = {"NODE_NAME": f"node-{self.letter}", "INPOD_UDS": f"{self.run_dir}/ztunnel.sock",
               "LOCAL_XDS_PATH": self.mesh.config_file, "XDS_ADDRESS": "",
               "LOCAL_CA_DIR": self.mesh.ca_dir, "ZTUNNEL_WORKER_THREADS": str(self.mesh.workers),
               "LOG_LEVEL": self.mesh.log_level}
        env.update(self.mesh.ztunnel_env)
        self.ztunnel = self.mesh.lab.start(
            [f"{self.mesh.bin}/ztunnel"], netns=self.netns, cpu=self.mesh.cpu,
            cgroup=self.system_cgroup, stdout=subprocess.DEVNULL, env=env, log=self.log)

    def ready(self):
        """The pod's listeners answer and its routing rule is there."""
        rules = subprocess.run(["ip", "-n", self.pod_netns, "rule"], text=True,
                               capture_output=True).stdout
        sockets = subprocess.run(["ip", "netns", "exec", self.pod_netns, "ss", "-Hltn"], text=True,
                                 capture_output=True).stdout
        return "fwmark" in rules and ":15008 " in sockets and self.admin("/healthz/ready", 15021)

    def admin(self, path, port=15000):
        done = subprocess.run(["ip", "netns", "exec", self.netns, "curl", "-sf", "--max-time", "5",
                               f"http://127.0.0.1:{port}{path}"], text=True, capture_output=True)
        return done.stdout if done.returncode == 0 else None


class Mesh:
    def __init__(self, lab, work, binaries, cpu=None, workers=2, strict=False, log_level="info",
                 ztunnel_env=None, policies=()):
        self.lab, self.work, self.bin, self.cpu, self.workers = lab, work, binaries, cpu, workers
        self.strict, self.log_level, self.ztunnel_env = strict, log_level, ztunnel_env or {}
        self.cgroup_root = f"{cgroup2_mount()}/{lab.name}"
        self.bpffs, self.ca_dir = f"{work}/bpf", f"{work}/ca"
        self.config_file = f"{work}/mesh.yaml"
        os.makedirs(self.bpffs)
        os.makedirs(self.ca_dir, mode=0o700)
        netlab.run("mount", "-t", "bpf", "none", self.bpffs)
        self.a = Node(self, "a", lab.a, lab.ip_a, "client")
        self.b = Node(self, "b", lab.b, lab.ip_b, "server")
        self.policies = list(policies)
        self.write_config()

    def workload(self, node):
        services = {f"{NAMESPACE}/echo.{NAMESPACE}.svc.cluster.local": {"80": 9700, "81": 9701}}
        return {"uid": f"Kubernetes//Pod/{NAMESPACE}/{node.letter}", "name": node.letter,
                "namespace": NAMESPACE, "workloadIps": [node.pod_ip], "protocol": "HBONE",
                "node": f"node-{node.letter}", "trustDomain": "cluster.local",
                "serviceAccount": node.account, "canonicalName": node.letter,
                "canonicalRevision": "latest", "workloadName": node.letter,
                "workloadType": "deployment", "clusterId": "Kubernetes", "network": "",
                "authorizationPolicies": [f"{p['namespace']}/{p['name']}" for p in self.policies
                                          if p["scope"] == "WorkloadSelector" and node is self.b],
                "services": services if node is self.b else {}}

    def write_config(self):
        config = {
            "workloads": [self.workload(self.a), self.workload(self.b)],
            "services": [{"name": "echo", "namespace": NAMESPACE,
                          "hostname": f"echo.{NAMESPACE}.svc.cluster.local", "vips": ["/10.98.0.1"],
                          "ports": {"80": 9700, "81": 9701}, "endpoints": {},
                          "subjectAltNames": []}],
            "policies": self.policies}
        with open(self.config_file, "w") as f:
            json.dump(config, f, indent=1)  # JSON is YAML

    def start(self):
        for node in (self.a, self.b):
            node.write_enrolment()
            node.start_agent()
            node.start_ztunnel()
        self.wait_ready()

    def wait_ready(self, timeout=60):
        deadline = time.monotonic() + timeout
        for node in (self.a, self.b):
            while not node.ready():
                for process in (node.agent, node.ztunnel):
                    if process.popen.poll() is not None:
                        raise RuntimeError(f"{process.popen.args} ended with "
                                           f"{process.popen.returncode}; see {node.run_dir}:\n"
                                           + self.tail(node))
                if time.monotonic() > deadline:
                    raise RuntimeError(f"node {node.letter} is not ready after {timeout} s:\n"
                                       + self.tail(node))
                time.sleep(0.2)

    @staticmethod
    def tail(node):
        out = ""
        for name in ("agent.log", "ztunnel.log"):
            try:
                with open(f"{node.run_dir}/{name}") as f:
                    out += f"--- {name}\n" + "".join(f.readlines()[-15:])
            except OSError:
                pass
        return out

    def run_in(self, node, argv, **kwargs):
        """Runs a program in the node's pod, captured like any process of it."""
        options = {"text": True, "capture_output": True, "timeout": 120}
        options.update(kwargs)
        return subprocess.run(
            ["sh", "-c", f'echo $$ > {node.pod_cgroup}/cgroup.procs; exec "$@"', "sh",
             "nsenter", f"--net=/run/netns/{node.pod_netns}", "--"] + argv, **options)

    def close(self):
        for node in (self.a, self.b):
            for process in (node.ztunnel, node.agent):
                if process:
                    process.stop()
        # What still sits in our cgroups is ours.
        for node in (self.a, self.b):
            for folder in (node.pod_cgroup, node.system_cgroup):
                try:
                    with open(f"{folder}/cgroup.procs") as f:
                        for pid in f.read().split():
                            os.kill(int(pid), signal.SIGKILL)
                except (OSError, ProcessLookupError):
                    pass
        subprocess.run(["umount", self.bpffs], check=False, capture_output=True)
        for _ in range(50):
            leftovers = False
            for folder, _, _ in sorted(os.walk(self.cgroup_root), reverse=True):
                try:
                    os.rmdir(folder)
                except OSError:
                    leftovers = True
            if not leftovers:
                break
            time.sleep(0.1)
        for node in (self.a, self.b):
            subprocess.run(["ip", "netns", "del", node.netns], check=False, capture_output=True)


