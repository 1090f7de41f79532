"""The L4 rows: capture, request/response, bulk, connect-request-close, idle memory.

Near end = the end of the client, far end = the end of the server. A row's CPU is that of the peer's
own processes, per end and summed.
"""

import json
import os
import subprocess

import mesh
import netlab
import peers


def goals(goal):
    out = [goal("connect", "p50_us", "captured", "direct", 1.05),
           goal("guard", "p50_us", "guarded", "unguarded", 1.01),
           goal("bulk 1 stream", "cpu_s_per_gb", "meltemi", "haproxy-mtls", 0.6),
           goal("bulk 8 streams", "cpu_s_per_gb", "meltemi", "haproxy-mtls", 0.6),
           goal("connect-request-close", "cpu_us", "meltemi", "haproxy", 1.1)]
    out += [goal("idle connection", end, "meltemi", None, 4.0) for end in ("near_kb", "far_kb")]
    for row in ("rr 64B 1 connection", "rr 64B 64 connections"):
        out += [goal(row, "near_us", "meltemi", "haproxy", 0.9),
                goal(row, "far_us", "meltemi", "haproxy", 0.9)]
    return out


ROWS = [  # name, mode, port, loadgen options, unit, divisor
    ("rr 64B 1 connection", "rr", peers.ECHO, ["--connections", "1"], "requests", 1),
    ("rr 64B 64 connections", "rr", peers.ECHO, ["--connections", "64"], "requests", 1),
    ("rr 1KB 64 connections", "rr", peers.ECHO, ["--connections", "64", "--bytes", "1024"],
     "requests", 1),
    ("bulk 1 stream", "bulk", peers.SINK, ["--connections", "1"], "bytes", 1e9),
    ("bulk 8 streams", "bulk", peers.SINK, ["--connections", "8"], "bytes", 1e9),
    ("connect-request-close", "crr", peers.ECHO, ["--connections", "8"], "connections", 1),
]


class MeshPair:
    """Meltemi's own pair as a peer: the client calls the far pod's address and knows of nothing."""

    name = "meltemi"

    def __init__(self, lab, work, binaries):
        self.lab = lab
        os.makedirs(work)
        self.mesh = mesh.Mesh(lab, work, binaries, cpu=0, workers=1, log_level="warn")
        self.mesh.start()

    def start(self):
        pass

    stop = start

    def target(self, port):
        return self.lab.a, self.lab.ip_b, port

    def near(self):
        return [self.mesh.a.ztunnel.pid]

    def far(self):
        return [self.mesh.b.ztunnel.pid]

    def cgroup(self, end):
        return (self.mesh.a if end == "a" else self.mesh.b).pod_cgroup


def sample(loadgen, peer, mode, port, options, seconds):
    """One window of load. Returns the load tool's figures and the CPU of both ends in it."""
    netns, ip, port = peer.target(port)
    child = peer.lab.start([loadgen, mode, ip, str(port), "--seconds", str(seconds)] + options,
                           netns=netns, cpu=0, cgroup=peer.cgroup("a"), stderr=None)
    child.wait_line("start")
    near, far = netlab.cpu_seconds(peer.near()), netlab.cpu_seconds(peer.far())
    child.wait_line("end", timeout=seconds + 30)
    near, far = netlab.cpu_seconds(peer.near()) - near, netlab.cpu_seconds(peer.far()) - far
    figures = json.loads(child.popen.stdout.readline())
    child.popen.wait(20)
    return figures, near, far


def figures_of(mode, result, near, far, unit, divisor, proxied):
    work = result[unit] / divisor
    out = {}
    if mode == "bulk":
        out["gb_per_s"] = work / result["seconds"]
        if proxied:
            out.update(near_s_per_gb=near / work, far_s_per_gb=far / work,
                       cpu_s_per_gb=(near + far) / work)
    else:
        out["p50_us"] = result["p50_us"]
        if proxied:
            out.update(near_us=near / work * 1e6, far_us=far / work * 1e6,
                       cpu_us=(near + far) / work * 1e6)
    return out


def measure(args, table, wanted, work, say):
    names = [row[0] for row in ROWS] + ["idle connection"]
    if wanted.search("connect"):
        for round_number in range(args.rounds):
            connect_cost(args, table)
            say(f"round {round_number + 1}: connect")
    if not any(wanted.search(name) for name in names):
        return
    loadgen = os.path.join(os.path.dirname(args.bin), "tests", "meltemi-loadgen")
    # The mesh's pods are enrolled, so its peers have a pair of their own; both pairs are alike.
    labs = [netlab.Lab("plain"), netlab.Lab("mesh")]
    pair = None
    try:
        pair = MeshPair(labs[1], f"{work}/mesh", args.bin)
        for lab, cgroup in ((labs[0], None), (labs[1], pair.cgroup("b"))):
            lab.start([loadgen, "server", "0.0.0.0", str(peers.ECHO), str(peers.SINK)], netns=lab.b,
                      cpu=0, cgroup=cgroup).wait_line("ready")
        everyone = [peers.Direct(labs[0]), peers.HaproxyPair(labs[0], work, False),
                    peers.HaproxyPair(labs[0], work, True), pair]
        for round_number in range(args.rounds):
            for peer in everyone:
                peer.start()
                try:
                    rows_of(peer, args, table, wanted, loadgen, say, round_number)
                finally:
                    peer.stop()
    finally:
        if pair:
            pair.mesh.close()
        for lab in labs:
            lab.close()


def rows_of(peer, args, table, wanted, loadgen, say, round_number):
    # First and once: memory that other rows have left to the allocator would hide the cost.
    if wanted.search("idle connection") and peer.near() and round_number == 0:
        idle_memory(loadgen, peer, table)
    for name, mode, port, options, unit, divisor in ROWS:
        if not wanted.search(name):
            continue
        result, near, far = sample(loadgen, peer, mode, port, options, args.seconds)
        table.add(name, peer.name,
                  figures_of(mode, result, near, far, unit, divisor, bool(peer.near())))
        say(f"round {round_number + 1}: {name}: {peer.name}")

def connect_cost(args, table):
    """connect + accept + close in one namespace: to a listener directly, and to an address far away
    that the capture programs bring to the same listener. And requests of 64 bytes out of a pod with the
    guard at its veth, and out of one without. The program alternates between the two."""
    program = os.path.join(os.path.dirname(args.bin), "tests", "meltemi-capture-bench")
    for row, options in (("connect", []), ("guard", ["--guard"])):
        out = subprocess.run(["taskset", "-c", "0", program, *options, "--seconds", str(args.seconds)],
                             check=True, text=True, stdout=subprocess.PIPE, timeout=60).stdout
        for peer, figures in json.loads(out).items():
            table.add(row, peer, figures)


def idle_memory(loadgen, peer, table, connections=2000):
    before = [sum(map(netlab.anonymous_kb, end)) for end in (peer.near(), peer.far())]
    netns, ip, port = peer.target(peers.ECHO)
    child = peer.lab.start([loadgen, "idle", ip, str(port), "--connections", str(connections),
                            "--seconds", "1", "--warmup", "0.5", "--bytes", "1"], netns=netns, cpu=0,
                           cgroup=peer.cgroup("a"))
    child.wait_line("start", timeout=60)
    after = [sum(map(netlab.anonymous_kb, end)) for end in (peer.near(), peer.far())]
    child.wait_line("end", timeout=60)
    child.popen.wait(30)
    near, far = ((b - a) / connections for a, b in zip(before, after))
    table.add("idle connection", peer.name, {"near_kb": near, "far_kb": far})
