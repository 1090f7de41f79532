#!/usr/bin/python3
"""./meltemi demo: the walk that the field's tutorials take, on a mesh of two nodes, with proof.

Every step says what it does, does it with the command that a user would type, and shows what was
seen: bytes on the wire between the nodes, identities in the access logs, versions in answers. A step
whose expectation does not hold ends the demo with exit code 1 and says what was expected and what
came. Every command it prints can be pasted. At the end the mesh goes on running, to be played with;
--down takes it down, and so does a failure (--keep leaves it then, too).

It must never claim what it did not see, nor touch anything outside of its own sandbox.
"""

import argparse
import collections
import json
import os
import re
import shlex
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
SAMPLES = os.path.join(os.path.dirname(HERE), "samples")
SHOP = "shop"
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(code, text):
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


# What of an access-log line carries the story; the line itself has some 600 characters.
TELLING = ("direction", "src.identity", "dst.service", "dst.identity", "method", "path", "authority",
           "response_code", "reason", "error")


def telling(line):
    found = re.findall(r'([a-z_.]+)=("(?:[^"\\]|\\.)*"|\S+)', line)
    return " ".join(f"{key}={value}" for key, value in found if key in TELLING) + "  (shortened)"


class Failed(Exception):
    pass


class Demo:
    def __init__(self, args):
        self.args = args
        self.meltemi = os.path.join(args.bin, "meltemi")
        self.env = dict(os.environ, MELTEMI_SANDBOX=args.name)
        self.step_number = 0
        self.proofs = []

    # --- saying ---------------------------------------------------------------------------------

    def step(self, title):
        self.step_number += 1
        print(paint("1", f"\n[{self.step_number}] {title}"), flush=True)

    def show(self, text):
        for line in str(text).rstrip().splitlines():
            print("    " + line, flush=True)

    def proved(self, what):
        self.proofs.append(what)
        print("    " + paint("32", "✔ ") + what, flush=True)

    def expect(self, holds, what, seen=""):
        if not holds:
            raise Failed(f"expected: {what}\n    seen: {seen}")
        self.proved(what)

    # --- doing ----------------------------------------------------------------------------------

    def run(self, *argv, check=True, echo=True, stdin=None, timeout=120):
        if echo:
            print(paint("36", "  $ " + self.typed(*argv)), flush=True)
        done = subprocess.run([self.meltemi, *argv], env=self.env, text=True, input=stdin,
                              capture_output=True, timeout=timeout)
        if check and done.returncode != 0:
            raise Failed(f"`meltemi {' '.join(argv)}` ended with {done.returncode}:\n"
                         f"{done.stderr.strip() or done.stdout.strip()}")
        return done

    def typed(self, *argv):
        """The command as a user types it in the checkout's folder."""
        words = [os.path.relpath(a, ROOT) if a.startswith(SAMPLES) else a for a in argv]
        named = [] if words[0] == "sandbox" else ["--sandbox", self.args.name]
        return shlex.join(["./meltemi", *named, *words])

    def apply(self, name):
        self.show(self.run("apply", "-n", SHOP, "-f", os.path.join(SAMPLES, name)).stdout)

    def get(self, *argv):
        return json.loads(self.run("get", *argv, "-o", "json", echo=False).stdout)["items"]

    def pods(self, **labels):
        return [p for p in self.get("pods", "-n", SHOP)
                if all(p["metadata"].get("labels", {}).get(k) == v for k, v in labels.items())]

    def pod(self, **labels):
        found = self.pods(**labels)
        if not found:
            raise Failed(f"no pod with labels {labels}")
        return found[0]

    def wait(self, what, ready, timeout=60):
        """Polls until ready() is true; the demo's only way of waiting."""
        deadline = time.monotonic() + timeout
        while True:
            value = ready()
            if value:
                return value
            if time.monotonic() > deadline:
                raise Failed(f"expected: {what}\n    seen: not within {timeout} s")
            time.sleep(0.3)

    def wait_ready(self, **labels):
        def all_ready():
            pods = self.pods(**labels)
            return pods and all(
                any(c["type"] == "Ready" and c["status"] == "True"
                    for c in p.get("status", {}).get("conditions", [])) for p in pods)
        self.wait(f"pods {labels} ready", all_ready)

    def curl(self, pod, *argv, echo=False):
        return self.run("exec", "-n", SHOP, pod, "--", "curl", "-s", "--max-time", "15", *argv,
                        echo=echo, check=False)

    def call(self, pod, url, *argv, echo=False):
        """HTTP status and the catalog's version of one call."""
        done = self.curl(pod, "-o", "/dev/null", "-w", "%{http_code} %header{x-catalog-version}",
                         *argv, url, echo=echo)
        parts = done.stdout.split()
        return (parts[0] if parts else "000"), (parts[1] if len(parts) > 1 else "-")

    def calls(self, count, pod="client", url="http://webapp/api/catalog", *argv):
        """Many calls from one shell in the pod: counts of (status, version)."""
        script = (f"for i in $(seq {count}); do curl -s --max-time 15 -o /dev/null "
                  "-w '%{http_code} %header{x-catalog-version}\\n' "
                  + " ".join(f"'{a}'" for a in argv) + f" {url}; done")
        done = self.run("exec", "-n", SHOP, pod, "--", "sh", "-c", script, echo=False, timeout=240)
        return collections.Counter(tuple((line.split() + ["-"])[:2])
                                   for line in done.stdout.splitlines() if line.strip())

    # --- proof from outside ----------------------------------------------------------------------

    def mesh(self):
        return self.get("mesh")

    def fabric_pid(self):
        for process in self.mesh():
            if process["name"] == "meltemid":
                return process["pid"]
        raise Failed("meltemid is not among the mesh's processes")

    def sniff(self, while_doing):
        """Raw frames that cross between the nodes while `while_doing` runs."""
        fabric = self.fabric_pid()
        sniffer = subprocess.Popen(
            ["nsenter", f"--net=/proc/{fabric}/ns/net", sys.executable,
             os.path.join(HERE, "sniff.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            if sniffer.stdout.readline().strip() != "ready":
                raise Failed("the sniffer did not start")
            result = while_doing()
            time.sleep(0.3)
            out, _ = sniffer.communicate("stop\n", timeout=20)
        finally:
            if sniffer.poll() is None:
                sniffer.kill()
        return result, json.loads(out)

    def log_of(self, name, node=None):
        """Log lines of a process of the mesh or of a pod."""
        for process in self.mesh():
            if process["name"] == name and (node is None or process["node"] == node):
                with open(process["log"], errors="replace") as f:
                    return f.read().splitlines()
        raise Failed(f"no process {name} on node {node}")

    # --- the walk ---------------------------------------------------------------------------------

    def up(self):
        self.step("A mesh of two nodes on this machine")
        self.run("sandbox", "up", "--nodes", "2", "--name", self.args.name, timeout=300)
        self.show(self.run("get", "mesh").stdout)

    def deploy(self):
        self.step("A namespace joins by its label; catalog v1, webapp and two callers are deployed")
        self.run("create", "ns", SHOP)
        self.run("label", "ns", SHOP, "istio.io/dataplane-mode=ambient", "--overwrite")
        for sample in ("catalog.yaml", "webapp.yaml", "client.yaml"):
            self.apply(sample)
        for app in ("catalog", "webapp", "client", "stranger"):
            self.wait_ready(app=app)
        self.wait("every pod enrolled, as read back from the kernel", lambda: all(
            p["status"].get("meltemi", {}).get("enrolled") for p in self.pods()))
        self.show(self.run("get", "pods", "-n", SHOP, "-o", "wide").stdout)
        self.proved("every pod is enrolled: program, map entry, listeners, rule, route and sysctls "
                    "were read back from the kernel")
        nodes = {p["spec"]["nodeName"] for p in self.pods()}
        self.expect(len(nodes) == 2, "the pods run on two nodes", nodes)

    def wire(self):
        self.step("A call goes through, and what crosses between the nodes is TLS")
        client, webapp, catalog = (self.pod(app=a) for a in ("client", "webapp", "catalog"))
        # A caller whose callee is on the other node, so that there is a wire to look at.
        caller = client if client["spec"]["nodeName"] != catalog["spec"]["nodeName"] else webapp
        secret = "meltemi-demo-secret-5f0a"
        pod = caller["metadata"]["name"]
        if caller is webapp and webapp["spec"]["nodeName"] == catalog["spec"]["nodeName"]:
            raise Failed("no caller on another node than catalog; the scheduler put all on one")
        command = (["curl", "-s", "--max-time", "15", "-H", f"x-secret: {secret}",
                    "http://catalog/items"])
        def talk():
            return self.run("exec", "-n", SHOP, pod, "--", *command)
        done, seen = self.sniff(talk)
        self.show(done.stdout)
        self.expect('"version": "v1"' in done.stdout, "catalog v1 answered", done.stdout)
        self.expect(seen["hbone_bytes"] > 0, "the call crossed the wire to port 15008 "
                    f"({seen['hbone_bytes']} bytes in {seen['hbone_frames']} frames)", seen)
        self.show("first bytes of a tunnel's segment: " + seen["sample_hex"])
        self.expect(seen["tls_records"] > 0 and seen["not_tls"] == 0,
                    f"all of it is TLS: {seen['tls_records']} segments begin with a TLS record", seen)
        self.expect(secret not in seen["text"] and "Amphora" not in seen["text"],
                    "neither the request's secret nor the answer was seen in clear", "plaintext found")
        self.expect(catalog["status"]["podIP"] not in seen["plain_destinations"],
                    "nothing was sent to catalog's pod outside of the tunnel", seen)
        caller_ip = caller["status"]["podIP"]
        self.expect(f'"caller": "{caller_ip}"' in done.stdout,
                    f"catalog saw its caller's own address, {caller_ip}", done.stdout)
        sa = caller["spec"]["serviceAccountName"]
        identity = f"spiffe://cluster.local/ns/{SHOP}/sa/{sa}"
        lines = [l for l in self.log_of("ztunnel", catalog["spec"]["nodeName"])
                 if "direction=\"inbound\"" in l and identity in l and caller_ip in l]
        self.expect(bool(lines), f"catalog's ztunnel verified the caller as {identity}",
                    "no such access-log line")
        self.show(telling(lines[-1]))

    def waypoint(self):
        self.step("A waypoint for the namespace: from here on, HTTP is understood")
        early = self.run("apply", "-n", SHOP, "-f", os.path.join(SAMPLES, "catalog-subsets.yaml"))
        self.show(early.stdout + early.stderr)
        self.show(self.run("waypoint", "apply", "-n", SHOP, "--enroll-namespace", timeout=180).stdout)
        self.wait("the waypoint programmed", lambda: any(
            c["type"] == "Programmed" and c["status"] == "True"
            for g in self.get("gateways", "-n", SHOP)
            for c in g.get("status", {}).get("conditions", [])))
        self.show(self.run("waypoint", "list", "-n", SHOP).stdout)
        def through():
            self.call("client", "http://webapp/api/catalog")
            return self.waypoint_lines("catalog")
        self.wait("calls to catalog pass the waypoint", through)
        self.proved("calls to catalog pass the waypoint now")

    def waypoint_lines(self, host):
        pods = self.pods(**{"gateway.networking.k8s.io/gateway-name": "waypoint"})
        if not pods:
            return []
        text = self.run("logs", "-n", SHOP, pods[0]["metadata"]["name"], echo=False).stdout
        return [l for l in text.splitlines() if f"authority=\"{host}" in l]

    def versions(self):
        self.step("catalog v2 arrives: callers get a mix of both")
        self.apply("catalog-v2.yaml")
        self.wait_ready(app="catalog", version="v2")
        self.wait("both versions answer",
                  lambda: {v for (_, v) in self.calls(10)} >= {"v1", "v2"})
        mix = self.calls(20)
        self.show(self.table(mix))
        self.expect({v for (_, v) in mix} == {"v1", "v2"}, "v1 and v2 share the calls", mix)

        self.step("A DestinationRule and a VirtualService pin everybody to v1")
        self.apply("catalog-subsets.yaml")
        self.apply("catalog-pin-v1.yaml")
        self.wait("only v1 answers", lambda: set(self.calls(8)) == {("200", "v1")})
        pinned = self.calls(20)
        self.show(self.table(pinned))
        self.expect(set(pinned) == {("200", "v1")}, "20 of 20 calls went to v1", pinned)

        self.step("A dark launch: the header x-dark-launch: v2 reaches v2, nobody else does")
        self.apply("catalog-dark-launch.yaml")
        header = ("-H", "x-dark-launch: v2")
        url = "http://webapp/api/catalog"
        self.wait("the header reaches v2", lambda: set(
            self.calls(5, "client", url, *header)) == {("200", "v2")})
        dark, light = self.calls(10, "client", url, *header), self.calls(10)
        self.show("with the header:    " + self.table(dark))
        self.show("without the header: " + self.table(light))
        self.expect(set(dark) == {("200", "v2")} and set(light) == {("200", "v1")},
                    "10 of 10 with the header went to v2, 10 of 10 without to v1", (dark, light))
        self.show(telling((self.waypoint_lines("catalog") or ["(no line)"])[-1]))

    def retries(self):
        self.step("catalog v1 fails half of the time; retries hide it")
        self.curl("client", "-X", "POST", "-d", "2", "http://catalog/failures", echo=True)
        before = self.calls(20)
        self.show("without retries: " + self.table(before))
        failed = sum(n for (status, _), n in before.items() if status == "500")
        self.expect(failed >= 5, f"without retries {failed} of 20 calls failed", before)
        self.apply("catalog-retries.yaml")
        self.wait("retries are in force", lambda: set(
            status for status, _ in self.calls(8)) == {"200"})
        after = self.calls(20)
        self.show("with retries:    " + self.table(after))
        self.expect(all(status == "200" for status, _ in after),
                    "with attempts: 3, retryOn: 5xx, perTryTimeout: 2s, 0 of 20 failed", after)
        self.curl("client", "-X", "POST", "-d", "0", "http://catalog/failures", echo=True)

    def policies(self):
        self.step("An AuthorizationPolicy on the Service: only webapp may call catalog")
        self.apply("catalog-only-webapp.yaml")
        self.wait("a stranger is refused",
                  lambda: self.call("stranger", "http://catalog/items")[0] == "403")
        stranger = self.call("stranger", "http://catalog/items", echo=True)
        through = self.call("client", "http://webapp/api/catalog", echo=True)
        self.expect(stranger[0] == "403", "the stranger gets 403", stranger)
        self.expect(through[0] == "200", "webapp still gets its answer", through)
        lines = [l for l in self.waypoint_lines("catalog") if "sa/stranger" in l]
        self.expect(bool(lines), "the waypoint knew the stranger by certificate, and says why",
                    "no such line in its access log")
        self.show(telling(lines[-1]))

        self.step("A policy on the pods: nobody walks around the waypoint by pod IP")
        catalog = self.pod(app="catalog", version="v1")
        direct = f"http://{catalog['status']['podIP']}:3000/items"
        open_door = self.call("stranger", direct, echo=True)
        self.expect(open_door[0] == "200", "before: a direct call to the pod's IP goes around the "
                    "waypoint", open_door)
        self.apply("catalog-only-waypoint.yaml")
        self.wait("direct calls are refused", lambda: self.call("stranger", direct)[0] == "000")
        closed = self.call("stranger", direct, echo=True)
        self.expect(closed[0] == "000", "after: the direct call is refused by catalog's ztunnel", closed)
        lines = [l for l in self.log_of("ztunnel", catalog["spec"]["nodeName"])
                 if "sa/stranger" in l and "policy_no_allow_match" in l]
        self.expect(bool(lines), "its access log names the reason", "no such line")
        self.show(telling(lines[-1]))
        through = self.call("client", "http://webapp/api/catalog", echo=True)
        self.expect(through[0] == "200", "the way through the waypoint stays open", through)

    @staticmethod
    def table(counts):
        return ", ".join(f"{n} x {status} {version}" for (status, version), n in sorted(counts.items()))

    def try_next(self):
        """Commands to go on with, each with what it shows; they are run as they stand by --down."""
        return [
            (("get", "pods", "-n", SHOP, "-o", "wide"), "who is enrolled, and why"),
            (("exec", "-n", SHOP, "client", "--", "curl", "-sS", "http://webapp/api/catalog"),
             "a call through the mesh"),
            (("exec", "-n", SHOP, "stranger", "--", "curl", "-sS", "http://catalog/items"),
             "one that the policy refuses"),
            (("describe", "svc", "catalog", "-n", SHOP), "the routes and policies behind that"),
            (("logs", "-n", SHOP, "deploy/waypoint", "--tail", "3"), "the waypoint's access log"),
            (("logs", "-n", "istio-system", "ds/ztunnel", "--tail", "3"), "the nodes' access logs"),
        ]

    def goodbye(self):
        print(paint("1", f"\nAll {len(self.proofs)} expectations held."))
        commands = [(self.typed(*argv), what) for argv, what in self.try_next()]
        if self.args.down:
            # Nobody can try them any more: they are tried here.
            for argv, _ in self.try_next():
                self.run(*argv)
            return
        print("\nThe mesh goes on running. Try next:")
        for command, what in commands:
            print(f"  # {what}\n  {command}")
        print(f"\nEnd it:\n  {self.typed('sandbox', 'down', '--name', self.args.name)}", flush=True)

    def main(self):
        started = time.monotonic()
        code = 1
        try:
            # What an earlier demo left; nothing where there was none.
            self.run("sandbox", "down", "--name", self.args.name, echo=False, timeout=120)
            self.up()
            self.deploy()
            self.wire()
            self.waypoint()
            self.versions()
            self.retries()
            self.policies()
            self.goodbye()
            code = 0
        except Failed as failure:
            print(paint("31", f"\nThe demo failed in step {self.step_number}.\n    {failure}"),
                  file=sys.stderr, flush=True)
        except subprocess.TimeoutExpired as late:
            print(f"\nThe demo failed in step {self.step_number}: no end in {late.timeout} s: "
                  f"{' '.join(late.cmd)}", file=sys.stderr, flush=True)
        finally:
            if self.args.down or (code != 0 and not self.args.keep):
                self.run("sandbox", "down", "--name", self.args.name, check=False, timeout=120)
        print(f"demo: {time.monotonic() - started:.0f} s", flush=True)
        return code


def main():
    parser = argparse.ArgumentParser(prog="meltemi demo")
    parser.add_argument("--bin", default=os.environ.get("MELTEMI_BIN_DIR"))
    parser.add_argument("--name", default="demo", help="name of the sandbox")
    parser.add_argument("--down", action="store_true", help="take the sandbox down at the end")
    parser.add_argument("--keep", action="store_true", help="leave the sandbox also after a failure")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("meltemi demo: needs root (network namespaces, cgroups, BPF)")
    if not args.bin or not os.path.isfile(os.path.join(args.bin, "meltemi")):
        sys.exit("meltemi demo: --bin must name the folder of built binaries; run ./meltemi demo")
    return Demo(args).main()


if __name__ == "__main__":
    sys.exit(main())
