"""Two pods with a ztunnel each, in Istio's form: this file plays Istio's CNI agent (ZDS with one netns
descriptor a pod, REDIRECT rules in the pods), so that the ztunnel is tested against a peer that is
not of its own house. No control plane: a local file and a local authority.

Everything is named after the lab and removed by close(). Must never touch a namespace that it did not
make.
"""

import array
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.environ.get("MELTEMI_SOURCE_DIR", os.path.join(os.path.dirname(__file__), "../../.."))
BIN = os.environ.get("MELTEMI_BIN_DIR", "")
sys.path.insert(0, os.path.join(ROOT, "tests", "support"))
import netlab  # noqa: E402

NAMESPACE = "test"
VIP, VIP6 = "10.98.0.1", "fd00:98::1"

RULES = """
table ip istio {
  chain prert_mangle { type filter hook prerouting priority mangle;
    meta mark & 0xfff == 0x539 ct mark set 0x111; }
  chain out_mangle { type route hook output priority mangle;
    ct mark & 0xfff == 0x111 meta mark set ct mark; }
  chain prert_nat { type nat hook prerouting priority dstnat;
    ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006; }
  chain out_nat { type nat hook output priority -100;
    meta mark & 0xfff == 0x111 accept;
    oif lo ip daddr != 127.0.0.1 accept;
    ip daddr != 127.0.0.1 meta l4proto tcp meta mark & 0xfff != 0x539 redirect to :15001; }
}
"""

# The same for IPv6.
RULES += RULES.replace("table ip ", "table ip6 ").replace("ip daddr", "ip6 daddr").replace("127.0.0.1", "::1")


def field(number, payload):
    """A length-delimited protobuf field."""
    if isinstance(payload, str):
        payload = payload.encode()
    size, out = len(payload), bytearray([number << 3 | 2])
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes(out) + bytes([size]) + payload


def add_message(uid, name, ns, account):
    info = field(1, name) + field(2, ns) + field(3, account)
    return field(1, field(1, uid) + field(2, info))


SNAPSHOT_SENT = b"\x1a\x00"
ACK = b"\x0a\x00"


class ZdsServer:
    """The agent's end of ZDS for one node."""

    def __init__(self, path, pods):
        self.pods = dict(pods)  # uid -> (name, namespace, account, netns)
        self.hellos, self.answers, self.error = [], [], None
        self.ready, self.stopping = threading.Event(), False
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(4)
        self.lock = threading.Lock()
        self.connection = None
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while not self.stopping:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with self.lock:
                if self.connection:
                    self.connection.close()
                self.connection = connection
            try:
                connection.settimeout(30)
                self.hellos.append(connection.recv(1024))
                for uid, (name, ns, account, netns) in self.pods.items():
                    self.exchange(connection, add_message(uid, name, ns, account), netns)
                self.exchange(connection, SNAPSHOT_SENT)
                self.ready.set()
            except OSError as e:
                self.error = e
                connection.close()

    def exchange(self, connection, message, netns=None):
        fds = [os.open(f"/run/netns/{netns}", os.O_RDONLY)] if netns else []
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        connection.sendmsg([message], control)
        for fd in fds:
            os.close(fd)
        answer = connection.recv(65536)
        self.answers.append(answer)
        return answer

    def send(self, message, netns=None):
        if not self.ready.wait(30):
            raise AssertionError(f"no ztunnel took the snapshot: {self.error}")
        with self.lock:
            return self.exchange(self.connection, message, netns)

    def drop(self):
        """The agent goes away; the listener stays, so the ztunnel comes back."""
        self.ready.clear()
        with self.lock:
            self.connection.close()

    def close(self):
        """The thread must be gone first: one that sleeps in accept() wakes up on whatever descriptor has the
        number by then, which is the next server's listener."""
        self.stopping = True
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(60)
        self.listener.close()
        if self.connection:
            self.connection.close()


def capture(pod_netns, ip):
    """What Istio's CNI does in a pod; gives it an IPv6 address like `ip`."""
    netlab.run("ip", "netns", "exec", pod_netns, "nft", "-f", "-", input=RULES)
    ip6 = "fd00:97::" + ip.rsplit(".", 1)[1]
    netlab.run("ip", "-n", pod_netns, "addr", "add", ip6 + "/64", "dev", "eth0", "nodad")
    for family, everything in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
        netlab.run("ip", family, "-n", pod_netns, "rule", "add", "fwmark", "0x111/0xfff", "pref", "32764",
                   "lookup", "100")
        netlab.run("ip", family, "-n", pod_netns, "route", "add", "local", everything, "dev", "lo",
                   "table", "100")
    return ip6


class Neighbour:
    """A second pod of a node, with a link of its own to the other node's pod. Before the node's start."""

    def __init__(self, pair, node, other, letter, ip, account):
        self.letter, self.ip, self.account = letter, ip, account
        self.pod_netns = f"{pair.lab.name}-{letter}"
        netlab.run("ip", "netns", "add", self.pod_netns)
        netlab.run("ip", "-n", self.pod_netns, "link", "set", "lo", "up")
        netlab.run("ip", "-n", self.pod_netns, "link", "add", "eth0", "type", "veth", "peer", "name",
                   "eth1", "netns", other.pod_netns)
        gateway = ip.rsplit(".", 1)[0] + ".254"
        for netns, link, address in ((self.pod_netns, "eth0", ip), (other.pod_netns, "eth1", gateway)):
            netlab.run("ip", "-n", netns, "addr", "add", address + "/24", "dev", link)
            netlab.run("ip", "-n", netns, "link", "set", link, "up")
        netlab.run("ip", "-n", self.pod_netns, "route", "add", "default", "via", gateway)
        self.ip6 = capture(self.pod_netns, ip)
        node.zds.pods[f"uid-{letter}"] = (letter, NAMESPACE, account, self.pod_netns)

    def close(self):
        subprocess.run(["ip", "netns", "del", self.pod_netns], check=False, capture_output=True)


class Node:
    def __init__(self, pair, letter, pod_netns, ip, account):
        self.pair, self.letter, self.pod_netns, self.ip, self.account = pair, letter, pod_netns, ip, account
        self.netns = f"{pair.lab.name}-node-{letter}"
        self.dir = f"{pair.work}/{letter}"
        self.uid = f"uid-{letter}"
        self.ztunnel = None
        os.makedirs(self.dir)
        netlab.run("ip", "netns", "add", self.netns)
        netlab.run("ip", "-n", self.netns, "link", "set", "lo", "up")
        self.ip6 = capture(pod_netns, ip)
        self.zds = ZdsServer(f"{self.dir}/zds.sock",
                             {self.uid: (letter, NAMESPACE, account, pod_netns)})

    def start(self, wait=True):
        env = {"NODE_NAME": f"node-{self.letter}", "INPOD_UDS": f"{self.dir}/zds.sock",
               "LOCAL_XDS_PATH": self.pair.config_file, "XDS_ADDRESS": "",
               "LOCAL_CA_DIR": self.pair.ca_dir, "ZTUNNEL_WORKER_THREADS": "2",
               "CONNECTION_TERMINATION_DEADLINE": "1s"}
        env.update(self.pair.env)
        env.update(self.pair.node_env.get(self.letter, {}))
        self.ztunnel = self.pair.lab.start([f"{BIN}/ztunnel"], netns=self.netns, env=env,
                                           stdout=subprocess.DEVNULL, log=f"{self.dir}/ztunnel.log")
        if wait:
            self.wait_ready()

    def wait_ready(self):
        deadline = time.monotonic() + 60
        while not self.get("/healthz/ready", 15021).startswith("ready\n"):
            if self.ztunnel.popen.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"ztunnel {self.letter} is not ready:\n{self.log()}")
            time.sleep(0.1)

    def get(self, path, port=15000, method="GET"):
        done = subprocess.run(["ip", "netns", "exec", self.netns, "curl", "-s", "--max-time", "10", "-X",
                               method, f"http://127.0.0.1:{port}{path}"], text=True, capture_output=True)
        return done.stdout

    def metrics(self):
        return self.get("/metrics", 15020)

    def log(self):
        with open(f"{self.dir}/ztunnel.log") as f:
            return f.read()

    def wait_log(self, *words, timeout=20):
        """The first access line with all of the words."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for line in self.log().splitlines():
                if all(w in line for w in words):
                    return line
            time.sleep(0.05)
        raise AssertionError(f"no line with {words} in the log of {self.letter}:\n{self.log()}")


class Pair:
    def __init__(self, policies=(), env=None, hbone=True, node_env=None):
        self.lab = netlab.Lab()
        self.work = tempfile.mkdtemp(prefix=self.lab.name + "-")
        self.ca_dir, self.config_file = f"{self.work}/ca", f"{self.work}/mesh.yaml"
        self.env, self.policies, self.hbone = env or {}, list(policies), hbone
        self.node_env = node_env or {}
        os.makedirs(self.ca_dir, mode=0o700)
        self.a = self.b = None
        try:
            self.a = Node(self, "a", self.lab.a, self.lab.ip_a, "client")
            self.b = Node(self, "b", self.lab.b, self.lab.ip_b, "server")
            # An address outside of the mesh, on b's side and past its rules.
            netlab.run("ip", "-n", self.lab.a, "route", "add", "default", "via", self.lab.ip_b)
            netlab.run("ip", "-n", self.lab.b, "route", "add", "default", "via", self.lab.ip_a)
            netlab.run("ip", "-6", "-n", self.lab.a, "route", "add", "default", "via", self.b.ip6)
        except BaseException:
            self.close()
            raise
        self.write_config()

    def workload(self, node):
        serves = {f"{NAMESPACE}/echo.{NAMESPACE}.svc.cluster.local": {"80": 8080, "81": 8081}}
        return {"uid": f"Kubernetes//Pod/{NAMESPACE}/{node.letter}", "name": node.letter,
                "namespace": NAMESPACE, "workloadIps": [node.ip, node.ip6],
                "protocol": "HBONE" if self.hbone else "TCP", "node": f"node-{node.letter}",
                "trustDomain": "cluster.local", "serviceAccount": node.account,
                "canonicalName": node.letter, "workloadName": node.letter,
                "authorizationPolicies": [f"{p['namespace']}/{p['name']}" for p in self.policies
                                          if p["scope"] == "WorkloadSelector" and node.letter == "b"],
                "services": serves if node.letter == "b" else {}}

    def write_config(self):
        config = {"workloads": [self.workload(self.a), self.workload(self.b)],
                  "services": [{"name": "echo", "namespace": NAMESPACE,
                                "hostname": f"echo.{NAMESPACE}.svc.cluster.local", "vips": [f"/{VIP}", f"/{VIP6}"],
                                "ports": {"80": 8080, "81": 8081}, "endpoints": {},
                                "subjectAltNames": []}],
                  "policies": self.policies}
        with open(self.config_file, "w") as f:
            json.dump(config, f, indent=1)  # JSON is YAML

    def start(self):
        self.a.start(wait=False)
        self.b.start(wait=False)
        self.a.wait_ready()
        self.b.wait_ready()

    def run_in(self, node, argv, **kwargs):
        options = {"text": True, "capture_output": True, "timeout": 120}
        options.update(kwargs)
        return subprocess.run(["ip", "netns", "exec", node.pod_netns] + argv, **options)

    def spawn(self, node, argv, **kwargs):
        return self.lab.start(argv, netns=node.pod_netns, **kwargs)

    def curl(self, node, url, *options):
        return self.run_in(node, ["curl", "-sS", "--max-time", "20", *options, url])

    def close(self):
        """Also an assertion: whatever happened, a ztunnel ends with 0 (sanitizers make it another)."""
        ends = {}
        for node in (self.a, self.b):
            if node:
                node.zds.close()
                if node.ztunnel:
                    node.ztunnel.stop()
                    ends[node.letter] = (node.ztunnel.popen.returncode, node.log())
        self.lab.close()
        for node in (self.a, self.b):
            if node:
                subprocess.run(["ip", "netns", "del", node.netns], check=False, capture_output=True)
        shutil.rmtree(self.work, ignore_errors=True)
        for letter, (code, log) in ends.items():
            if code != 0:
                raise AssertionError(f"ztunnel {letter} ended with {code}:\n{log[-8000:]}")


def main():
    """Runs the unittest module that calls it; 77 where the machine cannot."""
    import unittest
    if os.geteuid() != 0:
        print("skipped: this test needs root", file=sys.stderr)
        sys.exit(77)
    for tool in ("nft", "curl", "ip"):
        if not shutil.which(tool):
            print(f"skipped: this test needs {tool}", file=sys.stderr)
            sys.exit(77)
    unittest.main(verbosity=2)
