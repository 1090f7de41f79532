"""A waypoint at a control plane that is not ours: a delta ADS server of grpcio, resources encoded by
protoc from text. What is refused is refused by name, and everything else goes on.
"""

import concurrent.futures
import json
import os
import queue
import subprocess
import time
import unittest

import lab

lab.enter_own_netns()

import grpc  # noqa: E402

API = os.path.join(os.environ.get("MELTEMI_SOURCE_DIR", ""), "userspace/api")
PROTOS = ["envoy/config/listener/v3/listener.proto", "envoy/config/cluster/v3/cluster.proto",
          "envoy/extensions/filters/network/http_connection_manager/v3/"
          "http_connection_manager.proto",
          "envoy/extensions/filters/http/router/v3/router.proto",
          "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto"]
LISTENER, CLUSTER = "envoy.config.listener.v3.Listener", "envoy.config.cluster.v3.Cluster"
ADDRESS = "istio.workload.Address"
XDS, WEB, MORE, A, B = 15010, 8080, 8081, 9001, 9002


def encode(message, text):
    """protoc's encoding of a message in text form."""
    return subprocess.run(["protoc", "-I", API, f"--encode={message}", *PROTOS], cwd=API,
                          input=text.encode(), capture_output=True, check=True).stdout


def cluster(name, port):
    return encode(CLUSTER, f"""
        name: "{name}" type: STATIC lb_policy: ROUND_ROBIN
        load_assignment {{ endpoints {{ lb_endpoints {{ endpoint {{ address {{
          socket_address {{ address: "127.0.0.1" port_value: {port} }} }} }} }} }} }}""")


def listener(name, port, to, extra_filter=""):
    return encode(LISTENER, f"""
        name: "{name}"
        address {{ socket_address {{ address: "127.0.0.1" port_value: {port} }} }}
        filter_chains {{ filters {{
          name: "envoy.filters.network.http_connection_manager"
          typed_config {{ [type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager] {{
            stat_prefix: "{name}"
            route_config {{ name: "r" virtual_hosts {{ name: "v" domains: "*"
              routes {{ match {{ prefix: "/" }} route {{ cluster: "{to}" timeout {{}} }} }} }} }}
            {extra_filter}
            http_filters {{ name: "envoy.filters.http.router"
              typed_config {{ [type.googleapis.com/envoy.extensions.filters.http.router.v3.Router] {{}} }} }}
          }} }} }} }}""")


# --- the protobuf wire, as far as discovery needs it -------------------------------------------------


def field(number, payload):
    if isinstance(payload, str):
        payload = payload.encode()
    out, n = bytes([number << 3 | 2]), len(payload)
    while n >= 0x80:
        out, n = out + bytes([n & 0x7f | 0x80]), n >> 7
    return out + bytes([n]) + payload


def fields(data):
    """(number, value) of each field; varints as numbers."""
    def varint():
        nonlocal at
        shift = value = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7f) << shift
            shift += 7
            if byte < 0x80:
                return value
    at, out = 0, []
    while at < len(data):
        tag = varint()
        if tag & 7 == 2:
            size = varint()
            out.append((tag >> 3, data[at:at + size]))
            at += size
        else:
            out.append((tag >> 3, varint()))
    return out


class ControlPlane:
    """One delta stream; push() sends resources of a type and returns the answer: "" or the NACK's text."""

    def __init__(self):
        self.out, self.answers, self.subscribed, self.nonce = queue.Queue(), queue.Queue(), set(), 0
        self.streams = 0
        handler = grpc.stream_stream_rpc_method_handler(self.stream)
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
            "envoy.service.discovery.v3.AggregatedDiscoveryService",
            {"DeltaAggregatedResources": handler}),))
        self.server.add_insecure_port(f"127.0.0.1:{XDS}")
        self.server.start()

    def stream(self, requests, context):
        self.streams += 1
        def read():
            try:
                for request in requests:
                    got = dict(fields(request))
                    url = got.get(2, b"").decode()
                    self.subscribed.add(url)
                    if 6 in got:
                        error = dict(fields(got[7])).get(2, b"?").decode() if 7 in got else ""
                        self.answers.put((got[6].decode(), error))
            except grpc.RpcError:
                pass
            self.out.put(None)
        concurrent.futures.ThreadPoolExecutor(1).submit(read)
        while (message := self.out.get()) is not None:
            yield message

    def push(self, kind, **resources):
        """A value of None takes the resource away."""
        self.nonce += 1
        url = "type.googleapis.com/" + kind
        message = field(1, "v")
        for name, body in resources.items():
            if body is None:
                message += field(6, name)
                continue
            message += field(2, field(3, name) + field(1, f"v{self.nonce}") +
                             field(2, field(1, url) + field(2, body)))
        self.out.put(message + field(4, url) + field(5, str(self.nonce)))
        while True:
            nonce, error = self.answers.get(timeout=30)
            if nonce == str(self.nonce):
                return error


class ForeignControlPlaneTest(unittest.TestCase):
    def setUp(self):
        self.lab = lab.Lab()
        self.addCleanup(self.lab.close)
        for port in (A, B):
            self.lab.serve(port, lab.Echo)
        self.plane = ControlPlane()
        self.addCleanup(lambda: self.plane.server.stop(None))
        with open(self.lab.log, "w") as log:
            self.process = subprocess.Popen(
                [os.path.join(lab.BIN, "waypoint"), "--xds-address", f"http://127.0.0.1:{XDS}",
                 "--worker-threads", "2"], stderr=log)
        self.lab.children.append(self.process)

    def origin(self, port=WEB):
        return json_port(lab.curl(f"http://127.0.0.1:{port}/"))

    def wait(self, condition, timeout=30):
        deadline = time.monotonic() + timeout
        while True:
            try:
                if condition():
                    return
            except (OSError, subprocess.SubprocessError):
                pass
            self.assertLess(time.monotonic(), deadline, "did not come true in time")
            time.sleep(0.05)

    def test_a_refused_resource_changes_nothing(self):
        plane = self.plane
        self.wait(lambda: "type.googleapis.com/" + LISTENER in plane.subscribed)
        self.assertEqual(plane.push(CLUSTER, a=cluster("a", A), b=cluster("b", B)), "")
        self.assertEqual(plane.push(LISTENER, web=listener("web", WEB, "a")), "")
        self.wait(lambda: self.origin() == A)

        unknown = 'http_filters { name: "envoy.filters.http.fault" }'
        error = plane.push(LISTENER, web=listener("web", WEB, "b", unknown),
                           more=listener("more", MORE, "b"))
        self.assertIn("web", error)
        self.assertIn('"envoy.filters.http.fault" is not supported', error)
        self.wait(lambda: self.origin(MORE) == B)
        for _ in range(10):
            self.assertEqual(self.origin(), A, "the last good one stays")

        error = plane.push(CLUSTER, a=encode(CLUSTER, 'name: "a" type: LOGICAL_DNS'))
        self.assertIn("a: type LOGICAL_DNS is not supported", error)
        self.assertIn("malformed bytes", plane.push(CLUSTER, b=b"\xff\xff\xff"))
        self.assertEqual((self.origin(), self.origin(MORE)), (A, B))

        self.assertEqual(plane.push(LISTENER, web=listener("web", WEB, "b"), more=None), "")
        self.wait(lambda: self.origin() == B)
        self.assertEqual(plane.streams, 1, "a NACK costs no reconnect")
        metrics = lab.curl("http://127.0.0.1:15020/metrics")[2].decode()
        self.assertRegex(metrics, r'meltemi_xds_rejections_total\{url="[^"]*Listener"\} 1\b')
        self.assertRegex(metrics, r'meltemi_xds_rejections_total\{url="[^"]*Cluster"\} 2\b')


def json_port(answer):
    """The port of the origin that the Echo saw itself called at."""
    status, _, body = answer
    if status != 200:
        raise OSError(f"status {status}: {body}")

    return json.loads(body)["port"]


if __name__ == "__main__":
    unittest.main(verbosity=2)
