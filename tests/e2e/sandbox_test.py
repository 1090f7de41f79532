#!/usr/bin/python3
"""One sandbox of two nodes and what a user does with it: kubectl's verbs, Kubernetes' behaviour, the
mesh's promises, and recovery when one of the mesh's processes is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
import unittest

import harness
from harness import server, sleeper, wait

SANDBOX = None


def setUpModule():
    global SANDBOX
    harness.require_machine()
    SANDBOX = harness.mesh_of(("near", sleeper("near", extra="  nodeName: node1")),
                              ("far", sleeper("far", extra="  nodeName: node2")))
    SANDBOX.apply(sleeper("outside"))
    SANDBOX.wait_ready("outside")


class Names(unittest.TestCase):
    def test_services_resolve_by_every_spelling(self):
        vip = SANDBOX.get("svc", "web", "-n", "mesh")["spec"]["clusterIP"]
        for name in ("web", "web.mesh", "web.mesh.svc", "web.mesh.svc.cluster.local"):
            out = SANDBOX.exec("near", "getent", "ahostsv4", name, ns="mesh").out
            self.assertIn(vip, out, name)

    def test_another_namespace_needs_the_longer_name(self):
        self.assertNotEqual(SANDBOX.exec("outside", "getent", "hosts", "web", check=False).code, 0)
        self.assertEqual(SANDBOX.exec("outside", "getent", "hosts", "web.mesh").code, 0)

    def test_nothing_is_forwarded_outside(self):
        self.assertNotEqual(SANDBOX.exec("near", "getent", "hosts", "example.com", ns="mesh",
                                         check=False).code, 0)


class Traffic(unittest.TestCase):
    def test_both_nodes_reach_the_service_through_the_mesh(self):
        for pod in ("near", "far"):
            status, body = SANDBOX.curl(pod, "http://web/x", ns="mesh")
            ip = SANDBOX.get("pod", pod, "-n", "mesh")["status"]["podIP"]
            self.assertEqual((status, body), ("200", f"{ip} /x"), "the server sees its caller's own address")

    def test_identity_of_the_caller_is_in_the_log(self):
        SANDBOX.curl("far", "http://web/identity", ns="mesh")
        node = SANDBOX.get("pod", "web", "-n", "mesh")["spec"]["nodeName"]
        wait("the access log line", lambda: "spiffe://cluster.local/ns/mesh/sa/default" in
             SANDBOX.log("ztunnel", node))

    def test_pods_outside_of_the_mesh_reach_services_as_in_kubernetes(self):
        SANDBOX.apply(server("plain"))
        SANDBOX.wait_ready("plain")
        status, body = SANDBOX.curl("outside", "http://plain/y")
        self.assertEqual(status, "200", body)
        self.assertEqual(SANDBOX.curl("outside", "http://web.mesh/z")[0], "200")

    def test_a_service_without_pods_refuses_at_once(self):
        done = SANDBOX.apply("""
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
""")
        self.assertIn("no endpoints", done.err)
        began = time.monotonic()
        self.assertEqual(SANDBOX.curl("outside", "http://nobody/")[0], "000")
        self.assertLess(time.monotonic() - began, 10, "refused, not timed out")

    def test_ipv6_pods_and_services(self):
        ips = [i["ip"] for i in SANDBOX.get("pod", "web", "-n", "mesh")["status"]["podIPs"]]
        v6 = next(i for i in ips if ":" in i)
        # The server listens on IPv4 only, so only the way there is looked at: refused, not lost.
        done = SANDBOX.exec("far", "curl", "-s", "-g", "--max-time", "15", f"http://[{v6}]:8000/",
                            ns="mesh", check=False)
        self.assertNotEqual(done.code, 28, "the connection hung")


class Probes(unittest.TestCase):
    def test_probes_come_from_the_probe_address_and_pass_under_strict(self):
        self.assertIn("169.254.7.127", SANDBOX.cli("logs", "-n", "mesh", "web").out)
        web = SANDBOX.get("pod", "web", "-n", "mesh")
        probed = f"http://{web['status']['podIP']}:8000/"
        # A pod of the node's own network, beside the kubelet: only the kubelet is exempt.
        node = web["spec"]["nodeName"]
        SANDBOX.apply(sleeper("beside", extra=f"  hostNetwork: true\n  nodeName: {node}"))
        self.addCleanup(SANDBOX.cli, "delete", "pod", "beside")
        SANDBOX.wait_ready("beside")
        self.assertEqual(SANDBOX.curl("beside", probed)[0], "200")
        SANDBOX.apply("""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
""", ns="mesh")
        try:
            wait("plaintext from outside is refused",
                 lambda: SANDBOX.curl("outside", "http://web.mesh/")[0] == "000")
            self.assertEqual(SANDBOX.curl("beside", probed)[0], "000",
                             "a declared probe port is no way past STRICT")
            time.sleep(4)  # a few probe periods
            self.assertTrue(SANDBOX.ready("web", "mesh"))
            self.assertEqual(SANDBOX.curl("far", "http://web/", ns="mesh")[0], "200")
        finally:
            SANDBOX.cli("delete", "peerauthentication", "strict", "-n", "mesh")
        wait("plaintext is welcome again", lambda: SANDBOX.curl("outside", "http://web.mesh/")[0] == "200")

    def test_readiness_takes_a_pod_out_of_its_service(self):
        SANDBOX.apply("""
apiVersion: v1
kind: Pod
metadata: {name: moody, labels: {app: moody}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: none
    command: [sleep, infinity]
    readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}
""")
        time.sleep(2)
        self.assertFalse(SANDBOX.ready("moody"))
        SANDBOX.exec("moody", "touch", "/tmp/ready")
        SANDBOX.wait_ready("moody")
        self.assertFalse(os.path.exists("/tmp/ready"), "a pod's file landed on the machine")
        SANDBOX.exec("moody", "rm", "/tmp/ready")
        wait("not ready again", lambda: not SANDBOX.ready("moody"))
        SANDBOX.cli("delete", "pod", "moody")


class Workloads(unittest.TestCase):
    DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: fleet}
spec:
  replicas: 2
  selector: {matchLabels: {app: fleet}}
  template:
    metadata: {labels: {app: fleet}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: none, command: [sleep, infinity]}]
"""

    def pods(self):
        return [p for p in self.all_pods() if "deletionTimestamp" not in p["metadata"]]

    @staticmethod
    def all_pods():
        return SANDBOX.get("pods", "-l", "app=fleet")

    def test_deployment_heals_scales_rolls_out_and_goes(self):
        SANDBOX.apply(self.DEPLOYMENT)
        SANDBOX.cli("rollout", "status", "deploy/fleet")
        pods = self.pods()
        self.assertEqual({p["spec"]["nodeName"] for p in pods}, {"node1", "node2"})
        SANDBOX.cli("delete", "pod", pods[0]["metadata"]["name"])
        wait("the deleted pod replaced", lambda: len(self.pods()) == 2)
        SANDBOX.cli("scale", "deploy/fleet", "--replicas", "3")
        SANDBOX.cli("rollout", "status", "deploy/fleet")
        self.assertEqual(len(self.pods()), 3)
        before = {p["metadata"]["name"] for p in self.pods()}
        SANDBOX.cli("rollout", "restart", "deploy/fleet")
        wait("all pods new", lambda: len(self.pods()) == 3 and
             not before & {p["metadata"]["name"] for p in self.all_pods()})
        SANDBOX.cli("delete", "deploy", "fleet")
        wait("no pod left", lambda: not self.all_pods())

    def test_job_completes_and_keeps_its_log(self):
        SANDBOX.apply("""
apiVersion: batch/v1
kind: Job
metadata: {name: sum}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: none, command: [sh, -c, "echo $((40 + 2))"]}]
""")
        wait("the job done", lambda: "1/1" in SANDBOX.cli("get", "job", "sum").out)
        self.assertEqual(SANDBOX.cli("logs", "job/sum").out, "42\n")
        SANDBOX.cli("delete", "job", "sum")

    def test_a_crashing_container_is_restarted_with_delays(self):
        SANDBOX.apply("""
apiVersion: v1
kind: Pod
metadata: {name: crasher}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: none, command: [sh, -c, "echo start; exit 3"]}]
""")
        def restarted():
            status = SANDBOX.status("crasher").get("containerStatuses", [{}])[0]
            return status.get("restartCount", 0) >= 2 and status
        status = wait("two restarts", restarted)
        self.assertEqual(status["lastState"]["terminated"]["exitCode"], 3)
        wait("the table says it", lambda: "CrashLoopBackOff" in SANDBOX.cli("get", "pod", "crasher").out)
        self.assertEqual(SANDBOX.cli("logs", "crasher", "-p").out, "start\n")
        SANDBOX.cli("delete", "pod", "crasher")

    def test_termination_is_graceful_and_then_not(self):
        SANDBOX.apply("""
apiVersion: v1
kind: Pod
metadata: {name: stubborn}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{name: c, image: none, command: [sh, -c, "trap 'echo asked' TERM; while :; do sleep 0.1; done"]}]
""")
        SANDBOX.wait_ready("stubborn")
        pids = SANDBOX.get("pod", "stubborn")["status"]["meltemi"]["pids"]
        began = time.monotonic()
        SANDBOX.cli("delete", "pod", "stubborn")
        self.assertGreaterEqual(time.monotonic() - began, 1.5, "killed before its grace period was over")
        for pid in pids:
            self.assertFalse(os.path.exists(f"/proc/{pid}"), pid)

    def test_a_pod_without_a_node_waits_and_says_why(self):
        SANDBOX.apply(sleeper("homeless", extra="  nodeSelector: {disk: ssd}"))
        def reason():
            conditions = SANDBOX.status("homeless").get("conditions", [])
            return [c.get("message", "") for c in conditions if c["type"] == "PodScheduled"]
        self.assertIn("0/2 nodes are available", wait("a reason", reason)[0])
        SANDBOX.cli("delete", "pod", "homeless")

    def test_configuration_reaches_the_container(self):
        SANDBOX.apply("""
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue, "app.conf": "x=1"}
---
apiVersion: v1
kind: Pod
metadata: {name: configured, labels: {tier: back}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: conf, configMap: {name: settings}}, {name: scratch, emptyDir: {}}]
  containers:
  - name: c
    image: none
    command: [sleep, infinity]
    workingDir: /etc/app
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    volumeMounts: [{name: conf, mountPath: /etc/app}, {name: scratch, mountPath: /scratch/deep}]
""")
        SANDBOX.wait_ready("configured")
        out = SANDBOX.exec("configured", "sh", "-c", "echo $COLOUR $NODE $(hostname); cat /etc/app/app.conf; echo; "
                           "touch /scratch/deep/x && ls /scratch/deep; "
                           "cut -d. -f2 /var/run/secrets/kubernetes.io/serviceaccount/token | wc -c").out.split()
        self.assertEqual(out[0], "blue")
        self.assertIn(out[1], ("node1", "node2"))
        self.assertEqual(out[2:5], ["configured", "x=1", "x"])
        self.assertGreater(int(out[5]), 50)
        self.assertFalse(os.path.exists("/etc/app"), "a mount point was made on the machine")
        SANDBOX.cli("delete", "pod", "configured")


class Sessions(unittest.TestCase):
    def test_exec_passes_input_output_and_exit_code(self):
        self.assertEqual(SANDBOX.exec("near", "cat", ns="mesh", stdin="hello").out, "hello")
        self.assertEqual(SANDBOX.exec("near", "sh", "-c", "exit 7", ns="mesh", check=False).code, 7)
        self.assertEqual(SANDBOX.exec("near", "sh", "-c", "kill -9 $$", ns="mesh", check=False).code, 137)
        self.assertNotEqual(SANDBOX.exec("near", "no-such-program", ns="mesh", check=False).code, 0)

    def test_exec_runs_in_the_pods_cgroup_and_network(self):
        # Seen from outside: in the pod, its cgroup is the root.
        session = SANDBOX.popen("exec", "-i", "near", "-n", "mesh", "--", "cat", stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE)
        session.stdin.write("there\n")
        session.stdin.flush()
        self.assertEqual(session.stdout.readline(), "there\n")
        pod = SANDBOX.get("pod", "near", "-n", "mesh")
        with open(os.path.join(SANDBOX.cgroup, "node1", "pods", pod["metadata"]["uid"], "c", "cgroup.procs")) as f:
            pids = f.read().split()
        names = {os.path.basename(os.readlink(f"/proc/{pid}/exe")) for pid in pids}
        networks = {os.readlink(f"/proc/{pid}/ns/net") for pid in pids}
        session.communicate()
        self.assertEqual(names, {"sleep", "cat"})
        self.assertEqual(len(networks), 1)

    def test_a_pod_cannot_change_its_network(self):
        done = SANDBOX.exec("near", "ip", "rule", "del", "pref", "1", ns="mesh", check=False)
        self.assertNotEqual(done.code, 0)
        self.assertEqual(SANDBOX.curl("near", "http://web/", ns="mesh")[0], "200")

    def test_run_is_a_pod_for_one_command(self):
        done = SANDBOX.cli("run", "-i", "--rm", "once", "-n", "mesh", "--", "sh", "-c",
                           "read line; echo got $line; exit 5", stdin="it\n", check=False)
        self.assertEqual((done.code, done.out), (5, "got it\n"))
        self.assertEqual([p for p in SANDBOX.get("pods", "-n", "mesh") if p["metadata"]["name"] == "once"], [])

    def test_port_forward_reaches_a_service_from_the_machine(self):
        forward = SANDBOX.popen("port-forward", "svc/web", "-n", "mesh", ":80", stdout=subprocess.PIPE)
        try:
            line = forward.stdout.readline()
            port = int(line.split("->")[0].rsplit(":", 1)[1])
            with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
                s.sendall(b"GET /fw HTTP/1.0\r\n\r\n")
                answer = b""
                while chunk := s.recv(4096):
                    answer += chunk
            self.assertIn(b"200 OK", answer)
            self.assertIn(b"/fw", answer)
            taken = SANDBOX.cli("port-forward", "svc/web", "-n", "mesh", f"{port}:80", check=False)
            self.assertEqual(taken.code, 1)
            self.assertIn("in use", taken.err)
        finally:
            forward.send_signal(signal.SIGINT)
            self.assertEqual(forward.wait(20), 0)
            forward.stdout.close()

    def test_port_forward_goes_on_with_the_successor_of_its_pod(self):
        # No port of the machine is named: others may run beside.
        manifest = server("phoenix")
        SANDBOX.apply(manifest, ns="mesh")
        SANDBOX.wait_ready("phoenix", ns="mesh")
        forward = SANDBOX.popen("port-forward", "svc/phoenix", "-n", "mesh", ":80", stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL)
        try:
            port = int(forward.stdout.readline().split("->")[0].rsplit(":", 1)[1])
            def answers():
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
                        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
                        return b"200 OK" in s.recv(4096)
                except OSError:
                    return False
            self.assertTrue(answers())
            SANDBOX.cli("delete", "pod", "phoenix", "-n", "mesh")
            self.assertFalse(answers(), "there is no pod")
            SANDBOX.apply(manifest, ns="mesh")
            wait("the new pod answers", answers)
        finally:
            forward.send_signal(signal.SIGINT)
            self.assertEqual(forward.wait(20), 0)
            forward.stdout.close()
        SANDBOX.cli("delete", "pod/phoenix", "svc/phoenix", "-n", "mesh")

    def test_a_process_outside_of_the_pods_cgroup_is_told(self):
        pod = SANDBOX.get("pod", "near", "-n", "mesh")
        intruder = subprocess.Popen(["nsenter", f"--net=/run/netns/{pod['status']['meltemi']['netns']}",
                                     "sleep", "60"])
        try:
            wait("a warning", lambda: "not captured" in SANDBOX.cli("get", "pods", "-n", "mesh").err)
        finally:
            intruder.kill()
            intruder.wait()


class Objects(unittest.TestCase):
    def refused(self, yaml, *words, ns="mesh"):
        before = sorted(os.listdir(SANDBOX.config))
        done = SANDBOX.apply(yaml, ns=ns, check=False)
        self.assertEqual(done.code, 65, repr(done))
        for word in words:
            self.assertIn(word, done.err)
        self.assertIn("Nothing was changed", done.err)
        self.assertEqual(sorted(os.listdir(SANDBOX.config)), before)

    def test_what_refers_to_something_that_is_not_there_yet_is_taken_and_told(self):
        done = SANDBOX.apply("""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: early}
spec: {hosts: [web], http: [{route: [{destination: {host: web, subset: v9}}]}]}
""", ns="mesh")
        self.assertIn("early created", done.out)
        self.assertIn("warning: VirtualService mesh/early", done.err)
        self.assertIn("subset named v9", done.err)
        SANDBOX.cli("delete", "vs", "early", "-n", "mesh")

    def test_bad_input_names_object_field_and_fix_and_changes_nothing(self):
        self.refused("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {contaners: []}\n",
                     "Pod mesh/x", "contaners", "Did you mean")
        self.refused("apiVersion: v1\nkind: Gizmo\nmetadata: {name: x}\n", "unknown kind Gizmo")
        self.refused("a: [", "-:1: not valid YAML")
        self.refused("""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: x}
spec:
  hosts: [web]
  http: [{route: [{destination: {host: web}}], redirect: {uri: /y}}]
""", "VirtualService mesh/x", "HTTP route cannot contain both route and redirect")
        self.refused(sleeper("x", extra="  hostPID: true"), "hostPID")
        self.refused("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: c, image: nginx}]}\n",
                     "spec.containers[0].command", "images are not pulled", "Add the command")
        self.refused("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata:\n\ta: b\n", "no tabs")
        self.refused("""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: x}
spec: {rules: [{from: []}]}
""", "AuthorizationPolicy mesh/x", "`from` must not be empty")
        self.refused(sleeper("x"), "namespaces \"nowhere\" not found", "create ns nowhere", ns="nowhere")
        # One bad object, and its good neighbour is not applied either.
        self.refused(sleeper("good") + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {x: 1}\n", "bad")

    def test_a_bad_file_in_the_directory_changes_nothing_but_the_log(self):
        path = os.path.join(SANDBOX.config, "hand-written.yaml")
        with open(path, "w") as f:
            f.write("apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: mesh}\nspec: {prots: []}\n")
        try:
            wait("meltemid complains", lambda: "hand-written.yaml" in SANDBOX.log("meltemid") and
                 "prots" in SANDBOX.log("meltemid"))
            self.assertEqual(SANDBOX.curl("far", "http://web/", ns="mesh")[0], "200")
        finally:
            os.unlink(path)

    def test_a_rule_that_nobody_enforces_is_told_with_its_cure(self):
        done = SANDBOX.apply("""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: idle}
spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}
""", ns="mesh")
        self.assertIn("waypoint apply -n mesh", done.err)
        self.assertIn("waypoint apply -n mesh", SANDBOX.cli("get", "vs", "-n", "mesh").err)
        SANDBOX.cli("delete", "vs", "idle", "-n", "mesh")

    def test_apply_again_keeps_what_a_label_command_has_set(self):
        manifest = "apiVersion: v1\nkind: Namespace\nmetadata: {name: team, labels: {a: b}}\n"
        SANDBOX.apply(manifest)
        SANDBOX.cli("label", "ns", "team", "istio.io/dataplane-mode=ambient")
        self.assertIn("unchanged", SANDBOX.apply(manifest).out)
        labels = SANDBOX.get("ns", "team")["metadata"]["labels"]
        self.assertEqual((labels["istio.io/dataplane-mode"], labels["a"]), ("ambient", "b"))
        refused = SANDBOX.cli("label", "ns", "team", "a=c", check=False)
        self.assertNotEqual(refused.code, 0)
        self.assertIn("--overwrite", refused.err)
        SANDBOX.cli("label", "ns", "team", "a-")
        self.assertNotIn("a", SANDBOX.get("ns", "team")["metadata"]["labels"])
        SANDBOX.cli("delete", "ns", "team")

    def test_usage_errors_are_64(self):
        for argv in (["frobnicate"], ["get"], ["exec", "-n", "mesh", "near"], ["apply"]):
            self.assertEqual(SANDBOX.cli(*argv, check=False).code, 64, argv)


class Habits(unittest.TestCase):
    """What fingers type that know kubectl."""

    @classmethod
    def setUpClass(cls):
        SANDBOX.cli("create", "ns", "habits")
        cls.addClassCleanup(SANDBOX.cli, "delete", "ns", "habits")
        SANDBOX.apply("""
apiVersion: apps/v1
kind: Deployment
metadata: {name: duo}
spec:
  replicas: 2
  selector: {matchLabels: {app: duo}}
  template:
    metadata: {labels: {app: duo}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: busybox, command: [sh, -c, "echo up; exec sleep infinity"]}]
---
apiVersion: v1
kind: Service
metadata: {name: duo}
spec: {selector: {app: duo}, ports: [{name: http, port: 80}]}
""", ns="habits")

    def cli(self, *argv, **kwargs):
        return SANDBOX.cli(*argv, "-n", "habits", **kwargs)

    def test_workloads_have_a_status_to_wait_for(self):
        self.cli("wait", "--for=condition=available", "deployment", "duo", "--timeout=60s")
        self.cli("scale", "deploy", "duo", "--replicas=3")
        done = self.cli("rollout", "status", "deployment", "duo", "--timeout=60s")
        self.assertIn("successfully rolled out", done.out)
        self.cli("wait", "--for=condition=ready", "pod", "-l", "app in (duo)", "--timeout=60s")
        status = SANDBOX.get("deploy", "duo", "-n", "habits")["status"]
        self.assertEqual((status["replicas"], status["updatedReplicas"], status["availableReplicas"]), (3, 3, 3))
        self.assertRegex(self.cli("get", "deploy", "-o", "wide").out, r"duo +3/3 +3 +3 +\S+ +c +busybox +app=duo")
        late = self.cli("wait", "--for=condition=Progressing=False", "deploy/duo", "--timeout=1s", check=False)
        self.assertEqual(late.code, 1)
        self.assertIn("timed out waiting for condition=Progressing=False on deployment.apps/duo", late.err)

    def test_a_rollout_begins_with_the_change_not_with_its_pods(self):
        self.cli("wait", "--for=condition=Available", "deploy/duo", "--timeout=60s")
        before = {p["metadata"]["name"] for p in SANDBOX.get("pods", "-l", "app=duo", "-n", "habits")}
        self.cli("rollout", "restart", "deployment", "duo")
        self.cli("rollout", "status", "deploy/duo", "--timeout=60s")
        now = {p["metadata"]["name"] for p in SANDBOX.get("pods", "-l", "app=duo", "-n", "habits")
               if "deletionTimestamp" not in p["metadata"]}
        self.assertFalse(before & now, "told done while the old pods were there")

    def test_get_by_template_and_by_several_kinds(self):
        self.assertEqual(self.cli("get", "svc", "-o", "jsonpath={.items[*].metadata.name}").out, "duo")
        self.assertEqual(self.cli("get", "svc", "duo", "-o", "jsonpath={.spec.ports[?(@.name==\"http\")].port}").out, "80")
        self.assertEqual(self.cli("get", "deploy/duo", "svc/duo", "-o", "name").out,
                         "deployment.apps/duo\nservice/duo\n")
        self.assertEqual(self.cli("get", "pods", "-l", "app=duo,app notin (duo,uno)", "-o", "name").out, "")

    def test_watch_tells_changes(self):
        watch = SANDBOX.popen("get", "svc", "-n", "habits", "-w", stdout=subprocess.PIPE)
        try:
            self.assertIn("CLUSTER-IP", watch.stdout.readline())
            self.assertIn("duo", watch.stdout.readline())
            SANDBOX.apply("apiVersion: v1\nkind: Service\nmetadata: {name: later}\nspec: {ports: [{port: 81}]}\n",
                          ns="habits")
            # A Service is told once more when it gets its address.
            self.assertTrue(any("later" in line for line in watch.stdout))
        finally:
            watch.kill()
            watch.wait()
            watch.stdout.close()
        self.cli("delete", "svc/later")

    def test_describe_says_what_there_is(self):
        self.cli("wait", "--for=condition=Available", "deploy/duo", "--timeout=60s")
        for words in (("deploy", "duo", "available", "Progressing", "busybox"),
                      ("svc/duo", "app=duo", "Endpoints:", "10.96."),
                      ("ns", "default", "kubernetes.io/metadata.name=default")):
            argv = words[:1] if "/" in words[0] else words[:2]
            out = self.cli("describe", *argv).out
            for word in words[len(argv):]:
                self.assertIn(word, out)
        out = self.cli("describe", "pods", "-l", "app=duo").out
        for word in ("Node:", "Command:       sh -c", "Running since", "Enrolled:        no", "Controlled By:"):
            self.assertIn(word, out)

    def test_dry_run_changes_nothing(self):
        manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: maybe}\n"
        for flag in ("--dry-run", "--dry-run=server"):
            self.assertIn("configmap/maybe created (", self.cli("apply", flag, "-f", "-", stdin=manifest).out)
        self.assertEqual(self.cli("get", "cm", "maybe", check=False).code, 1)
        bad = self.cli("apply", "--dry-run=client", "-f", "-", stdin=manifest + "dato: {}\n", check=False)
        self.assertEqual(bad.code, 65)

    def test_create_makes_new_objects_only(self):
        manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: fresh}\n"
        self.assertIn("configmap/fresh created", self.cli("create", "-f", "-", stdin=manifest).out)
        again = self.cli("create", "-f", "-", stdin=manifest, check=False)
        self.assertEqual(again.code, 65)
        self.assertIn('configmaps "fresh" already exists', again.err)
        self.assertEqual(self.cli("create", check=False).code, 64)
        self.assertEqual(self.cli("get", "cm", "fresh", "-o=name").out, "configmap/fresh\n")
        self.cli("delete", "cm", "fresh", "--force", "--grace-period=0")

    def test_delete_acts_on_what_is_named_and_on_nothing_else(self):
        self.cli("create", "sa", "one")
        SANDBOX.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\n", ns="habits")
        for words in (("sa/one", "one"), ("sa", "cm/one"), ("sa", "-l", "app in one")):
            self.assertEqual(self.cli("delete", *words, check=False).code, 65, words)
        self.cli("get", "sa/one", "cm/one")
        self.cli("delete", "sa/one", "cm/one")
        for word in ("sa/one", "cm/one"):
            self.assertEqual(self.cli("get", word, check=False).code, 1)
        for ns in ("default", "kube-system", "istio-system"):
            refused = self.cli("delete", "ns", ns, check=False)
            self.assertEqual(refused.code, 65)
            self.assertIn("may not be deleted", refused.err)

    def test_logs_follow_several_pods_and_say_which_process_is_meant(self):
        self.cli("wait", "--for=condition=Available", "deploy/duo", "--timeout=60s")
        pods = [p["metadata"]["name"] for p in SANDBOX.get("pods", "-l", "app=duo", "-n", "habits")]
        follow = SANDBOX.popen("logs", "-f", "-l", "app=duo", "-n", "habits", stdout=subprocess.PIPE)
        try:
            for _ in pods:
                self.assertEqual(follow.stdout.readline(), "up\n")
        finally:
            follow.kill()
            follow.wait()
            follow.stdout.close()
        both = SANDBOX.cli("logs", "-n", "istio-system", "ztunnel", "--tail", "1").out
        self.assertEqual([line.split()[0] for line in both.splitlines()], ["[ztunnel-node1]", "[ztunnel-node2]"])

    def test_followed_logs_go_on_after_a_restart(self):
        SANDBOX.apply("""
apiVersion: v1
kind: Pod
metadata: {name: twice}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: none, command: [sh, -c, "echo start; read line; exec sleep infinity"], stdin: true}]
""", ns="habits")
        SANDBOX.wait_ready("twice", ns="habits")
        follow = SANDBOX.popen("logs", "-f", "twice", "-n", "habits", stdout=subprocess.PIPE)
        try:
            self.assertEqual(follow.stdout.readline(), "start\n")
            os.kill(SANDBOX.get("pod", "twice", "-n", "habits")["status"]["meltemi"]["pids"][0], signal.SIGKILL)
            self.assertEqual(follow.stdout.readline(), "start\n")
        finally:
            follow.kill()
            follow.wait()
            follow.stdout.close()
        self.cli("delete", "pod", "twice")

    def test_wrong_words_are_told_what_is_right(self):
        for argv, words in ((("descibe", "pod"), ('unknown command "descibe"', "meltemi describe")),
                            (("rollout", "undo", "deploy/duo"), ('unknown command "undo" for "meltemi rollout"', "restart")),
                            (("exec", "pod", "ls"), ("behind --: exec pod -- ls",)),
                            (("apply", "--dry-run=maybe", "-f", "-"), ("dry-run",))):
            done = self.cli(*argv, check=False)
            self.assertEqual(done.code, 64, argv)
            for word in words:
                self.assertIn(word, done.err)
        url = self.cli("apply", "-f", "https://example.com/x.yaml", check=False)
        self.assertEqual(url.code, 65)
        self.assertIn("curl -sSfL https://example.com/x.yaml | meltemi apply -f -", url.err)


class Enrolment(unittest.TestCase):
    def test_a_pod_that_cannot_be_captured_says_why(self):
        SANDBOX.cli("create", "ns", "greedy")
        SANDBOX.apply(server("greedy", port=15008), ns="greedy")
        SANDBOX.wait_ready("greedy", ns="greedy")
        SANDBOX.cli("label", "ns", "greedy", "istio.io/dataplane-mode=ambient")
        wait("a warning", lambda: "bind port 15008 in the pod" in SANDBOX.cli("get", "pods", "-n", "greedy").err)
        self.assertIn("Address already in use", SANDBOX.cli("describe", "pod", "greedy", "-n", "greedy").out)
        SANDBOX.cli("delete", "ns", "greedy")

    def test_label_enrols_and_unenrols_without_a_restart(self):
        SANDBOX.cli("create", "ns", "late")
        SANDBOX.apply(sleeper("pod"), ns="late")
        SANDBOX.wait_ready("pod", ns="late")
        def state():
            return SANDBOX.status("pod", "late")
        self.assertFalse(state()["meltemi"]["enrolled"])
        pid = state()["meltemi"]["pids"]
        SANDBOX.cli("label", "ns", "late", "istio.io/dataplane-mode=ambient")
        SANDBOX.wait_enrolled("pod", ns="late")
        self.assertEqual(SANDBOX.curl("pod", "http://web.mesh/", ns="late")[0], "200")
        SANDBOX.cli("label", "ns", "late", "istio.io/dataplane-mode-")
        wait("un-enrolled", lambda: not state()["meltemi"]["enrolled"])
        self.assertEqual(state()["meltemi"]["pids"], pid, "the pod was restarted")
        self.assertEqual(SANDBOX.curl("pod", "http://web.mesh/", ns="late")[0], "200")
        SANDBOX.cli("delete", "ns", "late")


class Waypoints(unittest.TestCase):
    """A waypoint's life by istioctl's commands, in a namespace of its own."""

    @classmethod
    def setUpClass(cls):
        SANDBOX.cli("create", "ns", "l7")
        cls.addClassCleanup(SANDBOX.cli, "delete", "ns", "l7")
        SANDBOX.cli("label", "ns", "l7", "istio.io/dataplane-mode=ambient")
        SANDBOX.apply(server("app"), ns="l7")
        SANDBOX.apply(sleeper("caller"), ns="l7")
        SANDBOX.wait_ready("app", "caller", ns="l7")
        SANDBOX.wait_enrolled("app", "caller", ns="l7")

    def pods(self):
        return SANDBOX.get("pods", "-n", "l7", "-l", "gateway.networking.k8s.io/gateway-name=waypoint")

    def passes(self, path):
        """A call that the waypoint has logged."""
        SANDBOX.curl("caller", f"http://app{path}", ns="l7")
        return f'path="{path}"' in SANDBOX.cli("logs", "-n", "l7", "deploy/waypoint").out

    def test_generate_prints_what_apply_takes(self):
        out = SANDBOX.cli("waypoint", "generate", "-n", "l7", "--name", "other", "--for", "all").out
        self.assertIn("gatewayClassName: istio-waypoint", out)
        self.assertIn("istio.io/waypoint-for: all", out)
        self.assertEqual(SANDBOX.cli("waypoint", "generate", "--for", "nothing", check=False).code, 65)
        self.assertEqual(SANDBOX.cli("waypoint", "generate", "--name", "none", check=False).code, 65)

    def test_life(self):
        done = SANDBOX.cli("waypoint", "apply", "-n", "l7", "--enroll-namespace", "--wait")
        self.assertIn("waypoint l7/waypoint applied", done.out)
        self.assertIn("waypoint", SANDBOX.cli("waypoint", "list", "-n", "l7").out)
        self.assertIn("True", SANDBOX.cli("waypoint", "status", "-n", "l7").out)
        wait("calls pass the waypoint", lambda: self.passes("/through"))
        self.assertFalse(self.pods()[0]["status"]["meltemi"]["enrolled"], "a waypoint is never captured")

        pid = self.pods()[0]["status"]["meltemi"]["pids"][0]
        os.kill(pid, signal.SIGKILL)
        wait("the waypoint restarted", lambda: self.pods()[0]["status"]["containerStatuses"][0]["restartCount"] >= 1)
        wait("calls pass it again", lambda: self.passes("/again"))
        wait("and are answered", lambda: SANDBOX.curl("caller", "http://app/", ns="l7")[0] == "200")

        done = SANDBOX.cli("waypoint", "delete", "waypoint", "-n", "l7")
        self.assertIn("label ns l7 istio.io/use-waypoint-", done.err, "what is left to do is told")
        SANDBOX.cli("label", "ns", "l7", "istio.io/use-waypoint-")
        wait("its pods gone", lambda: not self.pods())
        wait("calls go straight again", lambda: SANDBOX.curl("caller", "http://app/", ns="l7")[0] == "200")


class Recovery(unittest.TestCase):
    """kill -9 of each of the mesh's processes: traffic works again, by itself."""

    def killed(self, name, node=None):
        before = SANDBOX.mesh(name, node)
        os.kill(before["pid"], signal.SIGKILL)
        wait(f"{name} restarted", lambda: SANDBOX.mesh(name, node)["pid"] not in (0, before["pid"]))

    def works(self):
        for pod in ("near", "far"):
            wait(f"{pod} reaches web", lambda: SANDBOX.curl(pod, "http://web/", ns="mesh")[0] == "200")

    def test_control_plane(self):
        before = SANDBOX.mesh("meltemid")
        os.kill(before["pid"], signal.SIGKILL)
        self.assertEqual(SANDBOX.curl("far", "http://web/", ns="mesh")[0], "200", "traffic needs no control plane")
        wait("meltemid restarted", lambda: SANDBOX.mesh("meltemid")["pid"] not in (0, before["pid"]))
        SANDBOX.apply(sleeper("newcomer"), ns="mesh")
        SANDBOX.wait_enrolled("newcomer", ns="mesh")
        wait("the newcomer is served", lambda: SANDBOX.curl("newcomer", "http://web/", ns="mesh")[0] == "200")
        SANDBOX.cli("delete", "pod", "newcomer", "-n", "mesh")

    def test_ztunnel(self):
        for node in ("node1", "node2"):
            self.killed("ztunnel", node)
        self.works()

    def test_kubelet(self):
        # Only the parent of a process learns how it ends, so a new kubelet starts its pods anew.
        self.killed("kubelet", "node1")
        self.killed("kubelet", "node2")
        SANDBOX.wait_ready("web", "near", "far", ns="mesh")
        SANDBOX.wait_enrolled("web", "near", "far", ns="mesh")
        self.works()

    def test_agent(self):
        for node in ("node1", "node2"):
            before = SANDBOX.mesh("meltemi-agent", node)
            os.kill(before["pid"], signal.SIGKILL)
        self.assertEqual(SANDBOX.curl("far", "http://web/", ns="mesh")[0], "200", "captured pods need no agent")
        for node in ("node1", "node2"):
            wait("the agent is back", lambda: SANDBOX.mesh("meltemi-agent", node)["pid"] != 0)
        SANDBOX.wait_enrolled("near", "far", "web", ns="mesh")
        self.works()


if __name__ == "__main__":
    harness.require_machine()
    unittest.main(verbosity=2, argv=sys.argv)
