"""Requests through a waypoint's bound plaintext listeners: fidelity, routing, retries, limits, upgrades,
gRPC, drain. The other sides are curl, h2load, http.server, websockets and grpcio.
"""

import asyncio
import collections
import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import unittest

import lab

lab.enter_own_netns()

import grpc  # noqa: E402
import h2.config  # noqa: E402
import h2.connection  # noqa: E402
import h2.events  # noqa: E402
import websockets  # noqa: E402

WEB, H2, GRPC, LIMITS = 8080, 8081, 8082, 8083
ORIGIN_A, ORIGIN_B, FLAKY, SOCKETS, RPC, STREAM, DEAD = 9001, 9002, 9003, 9004, 9005, 9006, 9009
URL = f"http://127.0.0.1:{WEB}"
PREVIOUS = [{"name": "envoy.retry_host_predicates.previous_hosts"}]

ROUTES = [
    {"match": {"prefix": "/direct"}, "direct_response": {"status": 418,
                                                         "body": {"inline_string": "teapot"}}},
    {"match": {"prefix": "/old"}, "redirect": {"prefix_rewrite": "/new", "response_code": "FOUND"}},
    lab.route("/", "b", "dark", {"headers": [{"name": "x-dark-launch",
                                              "string_match": {"exact": "v2"}}]}),
    lab.route("/", "b", "query", {"query_parameters": [{"name": "v",
                                                        "string_match": {"exact": "2"}}]}),
    lab.route("/", "b", "put", {"headers": [{"name": ":method", "string_match": {"exact": "PUT"}}]}),
    lab.route("/", "b", "host", {"headers": [{"name": ":authority",
                                              "string_match": {"exact": "second.example"}}]}),
    lab.route("/api/", "a", "api", prefix_rewrite="/"),
    {"name": "split", "match": {"prefix": "/split"}, "route": {"timeout": "0s", "weighted_clusters": {
        "clusters": [{"name": "a", "weight": 80}, {"name": "b", "weight": 20}]}}},
    lab.route("/flaky/retried", "flaky", "retried", prefix_rewrite="/flaky",
              retry_policy={"retry_on": "5xx", "num_retries": 3, "per_try_timeout": "2s"}),
    lab.route("/flaky", "flaky"),
    lab.route("/half-dead", "half-dead"),
    lab.route("/keeping", "keeping"),
    lab.route("/reset", "flaky"),
    lab.route("/slow/limited", "flaky", prefix_rewrite="/slow", timeout="0.3s"),
    lab.route("/slow/tries", "flaky", prefix_rewrite="/slow",
              retry_policy={"retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.2s"}),
    lab.route("/slow/idle", "flaky", prefix_rewrite="/slow", idle_timeout="0.3s"),
    lab.route("/slow", "flaky"),
    lab.route("/stalled", "flaky", idle_timeout="0.3s"),
    lab.route("/failing", "budget", retry_policy={
        "retry_on": "5xx", "num_retries": 1,
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"}}),
    lab.route("/dead", "dead"),
    lab.route("/stream", "stream"),
    lab.route("/ws/off", "sockets", upgrade_configs=[{"upgrade_type": "websocket",
                                                      "enabled": False}]),
    lab.route("/ws", "sockets"),
    lab.route("/missing", "no-such-cluster"),
    {"match": {"prefix": "/headers"}, "route": {"cluster": "a", "timeout": "0s"},
     "request_headers_to_add": [{"header": {"key": "x-added", "value": "1"}}],
     "request_headers_to_remove": ["x-gone"],
     "response_headers_to_add": [{"header": {"key": "x-response", "value": "2"}}],
     "response_headers_to_remove": ["x-second"]},
    lab.route("/", "a", "default"),
]


class Flaky(lab.Echo):
    count = collections.Counter()
    lock = threading.Lock()

    def do_GET(self):
        self.read_body()
        with self.lock:
            self.count[self.path] += 1
            n = self.count[self.path]
        if self.path.startswith("/slow"):
            time.sleep(1.5)
        if self.path.startswith("/failing"):
            time.sleep(0.3)
            return self.reply(500, b"")
        if self.path.startswith("/stalled"):
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"half")
            time.sleep(1.5)
            self.close_connection = True
            return
        if self.path.startswith("/reset"):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            self.connection.close()
            return
        self.reply(500 if self.path.startswith("/flaky") and n % 2 else 200, b"n=%d" % n)

    do_POST = do_GET


# A Service with sessionAffinity, as the control plane says it.
KEEPER, KEEPERS = 9007, [f"127.0.1.{i}" for i in range(1, 5)]
KEEPING = lab.cluster("keeping", [], metadata={"filter_metadata": {
    "meltemi": {"affinity": "client_ip"}}})
KEEPING["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
    {"endpoint": {"address": {"socket_address": {"address": ip, "port_value": KEEPER}}}}
    for ip in KEEPERS]


class Keeper(lab.Echo):
    def do_GET(self):
        self.reply(200, self.server.server_address[0].encode())


class Stream(lab.Echo):
    """GET sends as many bytes as the path says, POST counts what comes."""

    def do_GET(self):
        size = int(self.path.rsplit("/", 1)[1])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        piece = b"x" * 65536
        try:
            while size > 0:
                size -= self.wfile.write(piece[:min(size, len(piece))])
        except OSError:
            self.close_connection = True

    def do_POST(self):
        self.reply(200, b"%d" % self.read_body())


async def websocket_echo(connection):
    async for message in connection:
        await connection.send(message)


def run_websockets(ready):
    async def main():
        async with websockets.serve(websocket_echo, "127.0.0.1", SOCKETS, max_size=None):
            ready.set()
            await asyncio.Future()
    asyncio.run(main())


def unary(request, context):
    if request == b"fail":
        context.set_trailing_metadata((("x-trailer", "t"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")
    return b"echo " + request


def server_stream(request, context):
    for i in range(int(request)):
        yield b"item %d" % i


def bidirectional(requests, context):
    for request in requests:
        yield request.upper()


def rpc_server():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    handlers = {"Unary": grpc.unary_unary_rpc_method_handler(unary),
                "Stream": grpc.unary_stream_rpc_method_handler(server_stream),
                "Chat": grpc.stream_stream_rpc_method_handler(bidirectional)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    server.add_insecure_port(f"127.0.0.1:{RPC}")
    server.start()
    return server


class WaypointTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = lab.Lab()
        try:
            for port in (ORIGIN_A, ORIGIN_B):
                cls.lab.serve(port, lab.Echo)
            cls.lab.serve(FLAKY, Flaky)
            cls.lab.serve(STREAM, Stream)
            for ip in KEEPERS:
                cls.lab.serve(KEEPER, Keeper, ip)
            ready = threading.Event()
            threading.Thread(target=run_websockets, args=(ready,), daemon=True).start()
            ready.wait(20)
            cls.rpc = rpc_server()
            clusters = [lab.cluster("a", [ORIGIN_A], "http_protocol_options"),
                        lab.cluster("b", [ORIGIN_B], "http_protocol_options"),
                        lab.cluster("flaky", [FLAKY]), lab.cluster("sockets", [SOCKETS]),
                        lab.cluster("stream", [STREAM], "http_protocol_options"),
                        lab.cluster("budget", [FLAKY], circuit_breakers={"thresholds": [{
                            "retry_budget": {"budget_percent": {"value": 10},
                                             "min_retry_concurrency": 2}}]}),
                        lab.cluster("dead", [DEAD]),
                        lab.cluster("rpc", [RPC], "http2_protocol_options"),
                        lab.cluster("half-dead", [DEAD, ORIGIN_A]), KEEPING]
            listeners = [
                lab.listener("web", WEB, ROUTES),
                lab.listener("grpc", GRPC, [lab.route("/test.Echo/Dead", "dead"),
                                            lab.route("/test.Echo/", "rpc")]),
                lab.listener("limits", LIMITS, [lab.route("/", "a")], max_request_headers_kb=8,
                             common_http_protocol_options={"max_headers_count": 20},
                             request_headers_timeout="0.5s"),
            ]
            cls.process = cls.lab.waypoint({"static_resources": {"listeners": listeners,
                                                                 "clusters": clusters}},
                                           ports=(WEB, GRPC, LIMITS))
        except BaseException:
            cls.lab.close()
            raise

    @classmethod
    def tearDownClass(cls):
        process = cls.process
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        with open(cls.lab.log) as f:
            log = f.read()
        cls.rpc.stop(None)
        cls.lab.close()
        if status != 0 or "ERROR: AddressSanitizer" in log or "runtime error" in log:
            raise AssertionError(f"waypoint ended with {status}\n" + log[-6000:])

    def get(self, path, *args):
        return lab.curl(URL + path, *args)

    def echo(self, path, *args):
        status, fields, body = self.get(path, *args)
        self.assertEqual(status, 200, body)
        return json.loads(body)

    # --- fidelity -----------------------------------------------------------------------------
    def test_header_case_and_order_survive(self):
        seen = self.echo("/x", "-H", "X-LEGACY: 1", "-H", "x-lower: 2", "-H", "Accept;",
                         "-H", "X-legacy2: 3")
        names = [n for n, _ in seen["fields"]]
        self.assertEqual(names[:6], ["Host", "User-Agent", "X-LEGACY", "x-lower", "Accept",
                                     "X-legacy2"])
        _, fields, _ = self.get("/x")
        self.assertIn(("X-Case-Kept", "Yes"), fields)

    def test_claimed_identity_is_removed(self):
        seen = self.echo("/x", "-H", "X-Forwarded-Client-Cert: URI=spiffe://evil", "-H",
                         "x-envoy-original-path: /admin", "-H", "X-Forwarded-For: 1.2.3.4")
        fields = {n.lower(): v for n, v in seen["fields"]}
        self.assertNotIn("x-forwarded-client-cert", fields)
        self.assertNotIn("x-envoy-original-path", fields)
        self.assertEqual(fields["x-forwarded-for"], "127.0.0.1", "who connects is no proxy")
        self.assertRegex(fields["x-request-id"], r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab]")

    def test_bodies(self):
        data = os.path.join(self.lab.work, "body")
        with open(data, "wb") as f:
            f.write(os.urandom(3_000_000))
        for args in ([], ["-H", "Transfer-Encoding: chunked"], ["--http2-prior-knowledge"]):
            self.assertEqual(self.echo("/x", "-X", "POST", "--data-binary", "@" + data, *args)["body"],
                             3_000_000, args)
        status, fields, body = self.get("/x", "-I")
        self.assertEqual((status, body), (200, b""))
        self.assertIn("Content-Length", dict(fields))

    def test_expect_continue(self):
        data = os.path.join(self.lab.work, "body")
        with open(data, "wb") as f:
            f.write(b"x" * 100_000)
        out = subprocess.run(["curl", "-s", "-v", "-X", "POST", "-H", "Expect: 100-continue",
                              "--data-binary", "@" + data, URL + "/x"], capture_output=True,
                             timeout=60)
        self.assertIn(b"100 Continue", out.stderr)
        self.assertEqual(json.loads(out.stdout)["body"], 100_000)

    def test_http10_and_pipelining(self):
        answer = lab.raw(WEB, b"GET /a HTTP/1.0\r\n\r\n")
        self.assertIn(b'"target": "/a"', answer)
        self.assertIn(b"connection: close", answer)
        one = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
        last = b"GET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        answer = lab.raw(WEB, one % 1 + one % 2 + last)
        self.assertEqual(re.findall(rb'"target": "(/\d)"', answer), [b"/1", b"/2", b"/3"])
        # Byte by byte, as a bad network would.
        with socket.create_connection(("127.0.0.1", WEB)) as s:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for b in last:
                s.send(bytes([b]))
            self.assertIn(b"HTTP/1.1 200", s.recv(65536))

    def test_client_that_half_closes_gets_its_answer(self):
        for _ in range(20):
            self.assertIn(b'"target": "/1"',
                          lab.raw(WEB, b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n", shut=True))

    def test_what_is_ambiguous_is_refused(self):
        end = b"\r\n\r\n"
        for request in (b"\x16\x03\x01garbage" + end, b"GET / HTTP/1.1" + end,
                        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b" + end,
                        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
                        b"Transfer-Encoding: chunked" + end + b"0" + end,
                        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6" + end,
                        b"GET / HTTP/1.1\r\nHost: a\r\nX : 1" + end,
                        b"GET / HTTP/1.1\nHost: a\n\n", b"GET /a%00b HTTP/1.1\r\nHost: a" + end,
                        b"GET /..;/admin HTTP/1.1\r\nHost: a" + end,
                        b"GET / HTTP/1.1\r\nHost: user@a" + end,
                        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked" + end + b"zz\r\n"):
            answer = lab.raw(WEB, request + b"GET /evil HTTP/1.1\r\nHost: a\r\nConnection: close" + end)
            first = answer.split(b"\r\n", 1)[0]
            self.assertEqual(first, b"HTTP/1.1 400 Bad Request", request)
        self.assertNotIn(("GET", "/evil"), lab.Echo.hits[-30:-11])

    def test_unknown_upgrade_is_an_ordinary_request(self):
        seen = self.echo("/u", "-H", "Connection: Upgrade", "-H", "Upgrade: TLS/1.2")
        self.assertNotIn("upgrade", [n.lower() for n, _ in seen["fields"]])

    # --- routing ------------------------------------------------------------------------------
    def test_routes(self):
        self.assertEqual(self.get("/direct")[0::2], (418, b"teapot"))
        status, fields, _ = self.get("/old/x?y=1")
        self.assertEqual((status, dict(fields)["location"]), (302, URL + "/new/x?y=1"))
        self.assertEqual(self.echo("/x")["port"], ORIGIN_A)
        self.assertEqual(self.echo("/x", "-H", "X-Dark-Launch: v2")["port"], ORIGIN_B)
        self.assertEqual(self.echo("/x?v=2")["port"], ORIGIN_B)
        self.assertEqual(self.echo("/x", "-X", "PUT")["port"], ORIGIN_B)
        self.assertEqual(self.echo("/x", "-H", "Host: Second.Example.:80")["port"], ORIGIN_B)
        seen = self.echo("/api/v1?q=%2F")
        self.assertEqual(seen["target"], "/v1?q=%2F")
        self.assertEqual(self.echo("/a%2Fb")["target"], "/a%2Fb", "a name, not two segments")
        self.assertIn(["x-envoy-original-path", "/api/v1?q=%2F"], seen["fields"])
        self.assertEqual(self.echo("/a/../b/%7Ec")["target"], "/b/~c")
        self.assertEqual(self.get("/missing")[0], 503)

    def test_header_changes(self):
        status, fields, body = self.get("/headers", "-H", "X-Gone: 1")
        names = [n.lower() for n, _ in json.loads(body)["fields"]]
        self.assertIn("x-added", names)
        self.assertNotIn("x-gone", names)
        self.assertIn(("x-response", "2"), fields)
        self.assertNotIn("x-second", [n for n, _ in fields])

    def test_weights(self):
        out = subprocess.run(["curl", "-s", f"{URL}/split?[1-400]"], capture_output=True, timeout=60)
        ports = collections.Counter(re.findall(rb'"port": (\d+)', out.stdout))
        self.assertEqual(sum(ports.values()), 400)
        self.assertGreater(ports[b"%d" % ORIGIN_B], 40)
        self.assertLess(ports[b"%d" % ORIGIN_B], 130)

    # --- failures -----------------------------------------------------------------------------
    def test_retries_hide_failures_only_where_asked(self):
        codes = [lab.curl(URL + "/flaky")[0] for _ in range(10)]
        self.assertEqual(codes.count(500), 5)
        self.assertEqual([self.get("/flaky/retried")[0] for _ in range(10)], [200] * 10)
        self.assertTrue(self.lab.log_lines("attempts=2"))

    def test_a_request_is_never_repeated_by_default(self):
        before = Flaky.count["/reset"]
        status, _, body = self.get("/reset", "-X", "POST", "-d", "x")
        self.assertEqual(status, 503, body)
        self.assertEqual(Flaky.count["/reset"], before + 1)

    def test_a_dead_endpoint_is_avoided(self):
        for _ in range(10):
            self.assertEqual(self.echo("/half-dead", "-X", "POST", "-d", "x")["port"], ORIGIN_A)

    def test_a_client_keeps_to_its_pod_where_the_service_says_so(self):
        def pods_of(client, *more):
            # As many connections, to any of the workers.
            return {lab.curl(URL + "/keeping", "--interface", client, *more)[2].decode()
                    for _ in range(4)}

        used = set()
        for i in range(1, 17):
            kept = pods_of(f"127.0.2.{i}")
            self.assertEqual(len(kept), 1, kept)
            self.assertEqual(pods_of(f"127.0.2.{i}", "--http2-prior-knowledge"), kept)
            # Nobody chooses a pod for itself by what it claims to be.
            self.assertEqual(pods_of(f"127.0.2.{i}", "-H", "X-Forwarded-For: 127.0.2.99"), kept)
            used |= kept
        self.assertLessEqual(used, set(KEEPERS))
        self.assertGreater(len(used), 1, "clients spread")

    def test_timeouts(self):
        status, _, body = self.get("/slow/limited")
        self.assertEqual((status, body), (504, b"request_timeout: timeout\n"))
        before = Flaky.count["/slow"]
        self.assertEqual(self.get("/slow/tries")[0], 504)
        self.assertEqual(Flaky.count["/slow"], before + 2)
        status, _, body = self.get("/dead")
        self.assertEqual(status, 503)
        self.assertTrue(body.startswith(b"connect_refused"), body)

    def test_idle_streams_end(self):
        status, _, body = self.get("/slow/idle")
        self.assertEqual((status, body), (504, b"idle_timeout: stream_idle_timeout\n"))
        # After the response has begun there is no status left to give: the body is cut.
        done = subprocess.run(["curl", "-s", "--max-time", "20", URL + "/stalled"],
                              capture_output=True, timeout=60)
        self.assertIn(done.returncode, (18, 56))  # too little came, or a reset
        self.assertEqual(done.stdout, b"half")
        line = self.lab.log_lines('path="/stalled"')[-1]
        self.assertIn("reason=idle_timeout", line)

    def metric(self, name):
        text = lab.curl("http://127.0.0.1:15020/metrics")[2].decode()
        return sum(int(x.split()[1]) for x in text.splitlines() if x.split(" ")[0] == name)

    def test_the_retry_budget_holds(self):
        # Each of two workers may have two retries under way, or a tenth of its requests.
        count = 24
        before = self.metric("meltemi_retry_budget_exhausted_total")
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            answers = list(pool.map(lambda _: self.get("/failing")[0], range(count)))
        self.assertEqual(answers, [500] * count, "a retry that may not be made ends with what came")
        retried = Flaky.count["/failing"] - count
        self.assertGreater(retried, 0)
        self.assertLess(retried, count)
        exhausted = self.metric("meltemi_retry_budget_exhausted_total") - before
        self.assertEqual(retried + exhausted, count)

    def test_limits_have_names(self):
        url = f"http://127.0.0.1:{LIMITS}/"
        self.assertEqual(lab.curl(url, "-H", "X: " + "a" * 7000)[0], 200)
        status, _, body = lab.curl(url, "-H", "X: " + "a" * 9000)
        self.assertEqual(status, 431)
        self.assertIn(b"h1_head_bytes", body)
        many = [part for i in range(20) for part in ("-H", f"X-{i}: 1")]
        status, _, body = lab.curl(url, *many)
        self.assertEqual(status, 431)
        self.assertIn(b"h1_header_count", body)
        answer = lab.raw(LIMITS, b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow")
        self.assertTrue(answer.startswith(b"HTTP/1.1 408"), answer)
        self.assertIn(b"request_headers_timeout", answer)

    # --- streaming ----------------------------------------------------------------------------
    def rss(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1)) * 1024

    def test_a_slow_reader_holds_a_bounded_number_of_bytes(self):
        size = 300_000_000
        before = self.rss()
        with socket.create_connection(("127.0.0.1", WEB)) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            s.sendall(b"GET /stream/%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % size)
            time.sleep(2)
            self.assertLess(self.rss() - before, 20_000_000)
            got = 0
            while True:
                piece = s.recv(1 << 20)
                if not piece:
                    break
                got += len(piece)
        self.assertGreater(got, size)
        self.assertLess(self.rss() - before, 20_000_000)

    def test_large_uploads_stream(self):
        path = os.path.join(self.lab.work, "large")
        with open(path, "wb") as f:
            f.truncate(200_000_000)
        before = self.rss()
        for args in ([], ["--http2-prior-knowledge"]):
            out = subprocess.run(["curl", "-s", "-X", "POST", "-H", "Expect:", "-T", path, *args,
                                  URL + "/stream"], capture_output=True, timeout=120)
            self.assertEqual(out.stdout, b"200000000")
        self.assertLess(self.rss() - before, 20_000_000)

    # --- HTTP/2 and gRPC ----------------------------------------------------------------------
    def test_http2_client(self):
        out = subprocess.run(["h2load", "-n", "3000", "-c", "4", "-m", "20", URL + "/x"],
                             capture_output=True, text=True, timeout=120).stdout
        self.assertIn("3000 succeeded, 0 failed", out)

    def stub(self, method, kind="unary_unary"):
        channel = grpc.insecure_channel(f"127.0.0.1:{GRPC}")
        self.addCleanup(channel.close)
        return getattr(channel, kind)(f"/test.Echo/{method}")

    def test_grpc(self):
        self.assertEqual(self.stub("Unary")(b"hi", timeout=30), b"echo hi")
        self.assertEqual(len(self.stub("Unary")(b"x" * 3_000_000, timeout=60)), 3_000_005)
        items = list(self.stub("Stream", "unary_stream")(b"1000", timeout=60))
        self.assertEqual(items[-1], b"item 999")
        chat = self.stub("Chat", "stream_stream")(iter([b"a", b"b"]), timeout=30)
        self.assertEqual(list(chat), [b"A", b"B"])

    def test_grpc_failures_are_grpc(self):
        with self.assertRaises(grpc.RpcError) as e:
            self.stub("Unary")(b"fail", timeout=30)
        self.assertEqual(e.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertEqual(e.exception.details(), "too much")
        self.assertEqual(dict(e.exception.trailing_metadata())["x-trailer"], "t")
        with self.assertRaises(grpc.RpcError) as e:
            self.stub("Dead")(b"x", timeout=30)
        self.assertEqual(e.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertIn("connect_refused", e.exception.details())
        channel = grpc.insecure_channel(f"127.0.0.1:{GRPC}")
        with self.assertRaises(grpc.RpcError) as e:
            channel.unary_unary("/no.Such/Route")(b"", timeout=30)
        channel.close()
        self.assertEqual(e.exception.code(), grpc.StatusCode.UNIMPLEMENTED)
        self.assertTrue(self.lab.log_lines('grpc_status="8"'))

    # --- upgrades -----------------------------------------------------------------------------
    def test_websocket(self):
        async def talk():
            async with websockets.connect(f"ws://127.0.0.1:{WEB}/ws", max_size=None) as ws:
                for message in ("hello", b"\0" * 100_000, "x" * 1_000_000):
                    await ws.send(message)
                    self.assertEqual(await ws.recv(), message)
        asyncio.run(asyncio.wait_for(talk(), 60))

    def test_websocket_switched_off_by_the_route(self):
        async def talk():
            async with websockets.connect(f"ws://127.0.0.1:{WEB}/ws/off"):
                pass
        with self.assertRaises(websockets.exceptions.InvalidStatusCode):
            asyncio.run(asyncio.wait_for(talk(), 60))

    def test_websocket_over_http2(self):
        connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        with socket.create_connection(("127.0.0.1", WEB), 20) as s:
            s.settimeout(20)
            connection.initiate_connection()
            s.sendall(connection.data_to_send())
            opened, status, data = False, None, b""
            frame = b"\x81\x85\0\0\0\0hello"  # a masked text frame
            while b"hello" not in data:
                for event in connection.receive_data(s.recv(65536)):
                    if isinstance(event, h2.events.RemoteSettingsChanged) and not opened:
                        opened = True
                        connection.send_headers(1, [
                            (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"),
                            (":path", "/ws"), (":authority", "a"), ("sec-websocket-version", "13")])
                        connection.send_data(1, frame)  # early: must wait for the endpoint
                    elif isinstance(event, h2.events.ResponseReceived):
                        status = dict(event.headers)[":status"]
                    elif isinstance(event, h2.events.DataReceived):
                        data += event.data
                s.sendall(connection.data_to_send())
        self.assertEqual(status, "200")

    # --- operators ----------------------------------------------------------------------------
    def test_metrics_log_and_dump(self):
        self.get("/x", "-H", "User-Agent: evil\" reason=forged")
        metrics = lab.curl("http://127.0.0.1:15020/metrics")[2].decode()
        self.assertRegex(metrics, r'istio_requests_total\{reporter="waypoint"[^}]*response_code="200"')
        self.assertIn("istio_request_duration_milliseconds_bucket", metrics)
        line = self.lab.log_lines("forged")[-1]
        self.assertIn(r'user_agent="evil\" reason=forged"', line)
        self.assertTrue(line.rstrip().endswith("reason=ok"))
        dump = json.loads(lab.curl("http://127.0.0.1:15000/config_dump")[2])
        types = [c["@type"].rsplit(".", 1)[1] for c in dump["configs"]]
        self.assertIn("ListenersConfigDump", types)
        self.assertEqual(lab.curl("http://127.0.0.1:15021/healthz/ready")[0], 200)

    def test_bad_configuration_is_refused_by_name(self):
        path = os.path.join(self.lab.work, "bad.json")
        bad = lab.listener("l", 8099, [lab.route("/", "a")], tracing={})
        with open(path, "w") as f:
            json.dump({"listeners": [bad]}, f)
        out = subprocess.run([os.path.join(lab.BIN, "waypoint"), "--static-config", path,
                              "--admin-listen", "127.0.0.1:16000", "--metrics-listen",
                              "127.0.0.1:16020", "--readiness-listen", "127.0.0.1:16021"],
                             capture_output=True, text=True, timeout=60)
        self.assertEqual(out.returncode, 65)
        self.assertIn("tracing", out.stderr)
        self.assertIn("listeners[0]", out.stderr)


class DrainTest(unittest.TestCase):
    def test_requests_under_way_are_finished(self):
        place = lab.Lab()
        try:
            place.serve(FLAKY, Flaky)
            place.serve(ORIGIN_A, lab.Echo)
            process = place.waypoint({"listeners": [lab.listener("web", WEB, [
                lab.route("/slow", "flaky"), lab.route("/", "a")])],
                "clusters": [lab.cluster("flaky", [FLAKY]), lab.cluster("a", [ORIGIN_A])]},
                ports=(WEB,))
            idle = socket.create_connection(("127.0.0.1", WEB))
            idle.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            self.assertIn(b"200", idle.recv(65536))
            answers = []
            slow = threading.Thread(target=lambda: answers.append(lab.curl(URL + "/slow")[0]))
            slow.start()
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            slow.join(30)
            self.assertEqual(answers, [200])
            self.assertEqual(process.wait(30), 0)
            idle.settimeout(10)
            rest = b"?"
            while rest:
                rest = idle.recv(65536)  # what was left of the answer, then the end in order
            idle.close()
        finally:
            place.close()

    def test_open_http2_streams_are_finished(self):
        place = lab.Lab()
        try:
            place.serve(STREAM, Stream)
            process = place.waypoint({"listeners": [lab.listener("web", WEB, [
                lab.route("/", "s")])], "clusters": [lab.cluster("s", [STREAM],
                                                                      "http_protocol_options")]}, ports=(WEB,))
            connection = h2.connection.H2Connection(
                h2.config.H2Configuration(header_encoding="utf-8"))
            frames = lab.WithoutGoaway()
            size, got, open_streams, uploaded = 3_000_000, {1: 0, 3: b""}, {1, 3}, False
            head = [(":scheme", "http"), (":authority", "a")]
            with socket.create_connection(("127.0.0.1", WEB), 20) as s:
                s.settimeout(20)
                connection.initiate_connection()
                connection.send_headers(1, [(":method", "GET"), (":path", f"/{size}")] + head,
                                        end_stream=True)
                connection.send_headers(3, [(":method", "POST"), (":path", "/upload")] + head +
                                        [("content-length", "10")])
                connection.send_data(3, b"first")
                s.sendall(connection.data_to_send())
                while open_streams:
                    piece = s.recv(65536)
                    self.assertTrue(piece, "the connection ended with streams open")
                    for event in connection.receive_data(frames.feed(piece)):
                        self.assertNotIsInstance(event, h2.events.StreamReset)
                        if isinstance(event, h2.events.DataReceived) and event.stream_id == 1:
                            if got[1] == 0:  # both streams are under way
                                process.send_signal(signal.SIGTERM)
                            got[1] += len(event.data)
                        elif isinstance(event, h2.events.DataReceived):
                            got[3] += event.data
                        elif isinstance(event, h2.events.StreamEnded):
                            open_streams.discard(event.stream_id)
                        if isinstance(event, h2.events.DataReceived):
                            # Until it is told to go, the client takes no more than the first window.
                            connection.acknowledge_received_data(event.flow_controlled_length,
                                                                 event.stream_id)
                    if frames.goaways and not uploaded:
                        uploaded = True
                        connection.send_data(3, b"after", end_stream=True)
                    s.sendall(connection.data_to_send() if frames.goaways else b"")
            self.assertTrue(frames.goaways, "no GOAWAY")
            self.assertEqual(int.from_bytes(frames.goaways[-1][13:17], "big"), 0, "NO_ERROR")
            self.assertEqual(got, {1: size, 3: b"10"})
            self.assertEqual(process.wait(30), 0)
        finally:
            place.close()


if __name__ == "__main__":
    unittest.main(verbosity=2)
