#!/usr/bin/python3
"""The control plane is killed, then every proxy: traffic and policy go on, on the
configuration and the certificates that were kept, and everything says how old they are."""

import glob
import json
import os
import signal
import subprocess
import sys
import unittest

import harness
from harness import Sandbox, server, sleeper, unique_name, wait

SANDBOX = Sandbox(unique_name(), 1)
KEY = SANDBOX.run_dir + "/tokens/signing-key.pub.pem"
DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-outsider}
spec:
  targetRefs: [{kind: Service, group: "", name: guarded}]
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/outsider]}}]}]
"""


def setUpModule():
    unittest.addModuleCleanup(SANDBOX.down)  # also when the set-up fails
    SANDBOX.up()
    SANDBOX.cli("label", "node", "node1", "topology.kubernetes.io/region=eu")
    SANDBOX.cli("create", "ns", "shop")
    SANDBOX.cli("label", "ns", "shop", "istio.io/dataplane-mode=ambient")
    SANDBOX.cli("create", "sa", "outsider", "-n", "shop")
    for yaml in (server("plain"), server("guarded"), sleeper("client"),
                 sleeper("outsider", extra="  serviceAccountName: outsider")):
        SANDBOX.apply(yaml, ns="shop")
    SANDBOX.cli("waypoint", "apply", "-n", "shop", "--name", "wp")
    SANDBOX.cli("label", "svc", "guarded", "-n", "shop", "istio.io/use-waypoint=wp")
    SANDBOX.apply(DENY, ns="shop")
    SANDBOX.wait_ready("plain", "guarded", "client", "outsider", ns="shop")
    SANDBOX.wait_enrolled("plain", "guarded", "client", "outsider", ns="shop")
    wait("policy at the waypoint", serves)


def status(pod, url):
    return SANDBOX.curl(pod, url, ns="shop")[0]


def serves():
    return (status("client", "http://plain/"), status("client", "http://guarded/"),
            status("outsider", "http://guarded/")) == ("200", "200", "403")


def node_netns():
    return next(n for n in os.listdir("/run/netns")
                if n.startswith(f"meltemi-{SANDBOX.name}-") and n.endswith(SANDBOX.mesh("ztunnel")["node"]))


def admin(path, port=15000):
    done = subprocess.run(["ip", "netns", "exec", node_netns(), "curl", "-s", "--max-time", "10",
                           f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True)
    return done.stdout


def serials():
    """Of the certificates that ztunnel has."""
    try:
        dump = json.loads(admin("/config_dump"))
    except json.JSONDecodeError:
        return {}
    return {c["identity"]: c["certChain"][0]["serialNumber"]
            for c in dump["certificates"] if c["certChain"]}


def kill(name):
    """SIGKILL; returns when the supervisor has put another in its place."""
    before = SANDBOX.mesh(name)["pid"]
    os.kill(before, signal.SIGKILL)
    wait(f"another {name}", lambda: SANDBOX.mesh(name).get("pid") not in (0, None, before))


def kill_waypoint():
    pod = SANDBOX.get("pods", "-n", "shop", "-l", "gateway.networking.k8s.io/gateway-name=wp")[0]
    name = pod["metadata"]["name"]

    def restarts():
        return SANDBOX.get("pod", name, "-n", "shop")["status"]["containerStatuses"][0].get(
            "restartCount", 0)
    count = restarts()
    for path in glob.glob(SANDBOX.cgroup + "/**/cgroup.procs", recursive=True):
        with open(path) as f:
            for pid in f.read().split():
                with open(f"/proc/{pid}/comm") as comm:
                    if comm.read().strip() == "waypoint":
                        os.kill(int(pid), signal.SIGKILL)
    wait("another waypoint", lambda: restarts() > count)


class LastGood(unittest.TestCase):
    @staticmethod
    def release():
        if os.path.exists(KEY + ".away"):
            os.rename(KEY + ".away", KEY)

    def test_the_control_plane_is_gone_and_every_proxy_is_killed(self):
        before = serials()
        self.assertGreaterEqual(len(before), 1)
        # The supervisor starts another one, which ends at once while it has no key for tokens.
        pid = SANDBOX.mesh("meltemid")["pid"]
        os.rename(KEY, KEY + ".away")
        self.addCleanup(self.release)
        os.kill(pid, signal.SIGKILL)

        kill("ztunnel")
        kill_waypoint()
        wait("traffic and policy after the proxies were killed", serves)
        self.assertEqual(serials(), before, "the certificates are those of before")
        dump = json.loads(admin("/config_dump"))
        self.assertEqual({w["locality"].get("region") for w in dump["workloads"]}, {"eu"})
        for name in ("ztunnel", "meltemi-agent", "waypoint"):
            self.assertTrue(SANDBOX.mesh(name)["sync"].startswith("STALE "), SANDBOX.mesh(name))
        told = SANDBOX.cli("get", "mesh")
        self.assertRegex(told.err, "ztunnel of node1 has heard nothing of the control plane since .* "
                                   "and acts on the last good state on disk")
        self.assertFalse(dump["controlPlane"]["connected"])
        self.assertTrue(dump["controlPlane"]["servingSavedState"])
        self.assertIn("last good state", admin("/healthz/ready", 15021))
        self.assertIn("meltemi_xds_serving_saved_state 1\n", admin("/metrics", 15020))

        # The agent too: ztunnel gives the keys back to the next one, and gets them after its own end.
        kill("meltemi-agent")
        wait("traffic after the agent was killed", serves)
        wait("the next agent has the keys", lambda: SANDBOX.mesh(
            "meltemi-agent")["state"]["counts"]["keysKept"] == len(before))
        kill("ztunnel")
        wait("traffic after agent and ztunnel were killed", serves)
        self.assertEqual(serials(), before)

        self.assertNotEqual(SANDBOX.mesh("meltemid")["pid"], pid)

        # Another one stays, and nothing is stale any more.
        self.release()
        wait("in sync", lambda: "meltemi_xds_staleness_seconds 0\n" in admin("/metrics", 15020) and
             "meltemi_xds_serving_saved_state 0\n" in admin("/metrics", 15020))
        self.assertTrue(serves())
        wait("everything in step", lambda: all(
            SANDBOX.mesh(n)["sync"] == "SYNCED" for n in ("ztunnel", "meltemi-agent", "waypoint")))
        state = SANDBOX.mesh("ztunnel")["state"]
        self.assertEqual(state["counts"]["pods"], 4)
        self.assertEqual(state["certificates"]["missing"], 0)


if __name__ == "__main__":
    harness.require_machine()
    unittest.main(verbosity=2, argv=sys.argv)
