"""What RFC 9110, 9112 and 9113 ask of a proxy, shown with clients and servers that are particular about
it: h2load, curl, python's http.server, h2 and hyperframe, and servers that answer byte for byte.
"""

import contextlib
import json
import re
import socket
import subprocess
import threading
import time
import unittest

import lab

lab.enter_own_netns()

import h2.config  # noqa: E402
import h2.connection  # noqa: E402
import h2.events  # noqa: E402
import hpack  # noqa: E402
import hyperframe.frame as frames  # noqa: E402

WEB, FEW, SNIFF, PATIENT = 8080, 8081, 8082, 8083
ECHO_A, ECHO_B, EXACT, REFUSING, TEN, GOING, GREETER, BROKEN = range(9001, 9009)
TCP_PROXY = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"

# Answers of the app, by path; then it closes.
EXACT_ANSWERS = {
    b"/no-http": b"garbage\r\n\r\n",
    b"/two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    b"/bad-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX : 1\r\n\r\nzz\r\n",
    b"/unasked-101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"/204": b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nX-Kept: 1\r\n\r\n",
    b"/304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
    b"/hints": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 0\r\n\r\n"
               b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"/trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
                  b"2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n",
    b"/close": b"",
}


def serve_connections(port, handle):
    """A thread for every connection of a listening socket; ends with the process."""
    server = socket.create_server(("127.0.0.1", port), backlog=1024)

    def run():
        while True:
            connection = server.accept()[0]
            threading.Thread(target=guard, args=(connection,), daemon=True).start()

    def guard(connection):
        with contextlib.suppress(OSError), connection:
            handle(connection)
    threading.Thread(target=run, daemon=True).start()


def exact(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return
        data += piece
    connection.sendall(EXACT_ANSWERS[data.split()[1]])


class Refusing(lab.Echo):
    """Answers a request with a body before it has seen the body."""

    def handle_expect_100(self):
        self.reply(401, b"who are you")
        return False


class FewStreams:
    """Speaks HTTP/2 in frames: takes `limit` streams at once and refuses the others; says so in its
    SETTINGS, which come when the first request is there. With `last` it goes away after so many."""

    def __init__(self, port, limit, last=None):
        self.limit, self.last = limit, last
        self.served = self.refused = self.connections = 0
        self.lock = threading.Lock()
        serve_connections(port, self.serve)

    def serve(self, s):
        encoder, decoder, lock, open_streams = hpack.Encoder(), hpack.Decoder(), threading.Lock(), [0]
        with self.lock:
            self.connections += 1

        def send(*out):
            with lock:
                s.sendall(b"".join(f.serialize() for f in out))

        def answer(stream):
            time.sleep(0.02)  # so that the others meet a full house
            with lock:
                head = frames.HeadersFrame(stream, encoder.encode([(":status", "200")]))
                head.flags.add("END_HEADERS")
                head.flags.add("END_STREAM")
                open_streams[0] -= 1
                with contextlib.suppress(OSError):
                    s.sendall(head.serialize())

        def request(stream):
            n = open_streams[0]
            if stream == 1:
                send(frames.SettingsFrame(0, {3: self.limit}),
                     frames.SettingsFrame(0, flags=["ACK"]))
            if self.last is not None and (stream + 1) // 2 > self.last:
                with self.lock:
                    self.refused += 1
                if (stream + 1) // 2 == self.last + 1:
                    send(frames.GoAwayFrame(0, last_stream_id=2 * self.last - 1))
                return
            with self.lock:
                self.refused += n >= self.limit
                self.served += n < self.limit
            if n >= self.limit:
                return send(frames.RstStreamFrame(stream, error_code=7))
            with lock:
                open_streams[0] += 1
            threading.Thread(target=answer, args=(stream,), daemon=True).start()

        data = b""
        while True:
            piece = s.recv(65536)
            if not piece:
                return
            data += piece
            if data.startswith(b"PRI"):
                data = data[24:]
            while len(data) >= 9:
                f, size = frames.Frame.parse_frame_header(memoryview(data[:9]))
                if len(data) < 9 + size:
                    break
                f.parse_body(memoryview(data[9:9 + size]))
                data = data[9 + size:]
                if isinstance(f, frames.HeadersFrame):
                    decoder.decode(f.data)
                    request(f.stream_id)


def broken(s):
    """Speaks HTTP/2, but for the answers: the path says what comes instead."""
    encoder, decoder, data = hpack.Encoder(), hpack.Decoder(), b""
    s.sendall(frames.SettingsFrame(0).serialize())

    def answer(stream, path):
        if path == "/reset":
            return s.sendall(frames.RstStreamFrame(stream, error_code=2).serialize())
        fields = {"/no-status": [("x", "1")], "/upper": [(":status", "200"), ("X-Upper", "1")],
                  "/late": [(":status", "200"), ("content-length", "4")]}[path]
        head = frames.HeadersFrame(stream, encoder.encode(fields), flags=["END_HEADERS"])
        s.sendall(head.serialize())
        # More than was announced; the others are malformed already.
        s.sendall(frames.DataFrame(stream, b"123456", flags=["END_STREAM"]).serialize())

    while piece := s.recv(65536):
        data += piece
        if data.startswith(b"PRI") and len(data) >= 24:
            data = data[24:]
        while len(data) >= 9 and not data.startswith(b"PRI"):
            f, size = frames.Frame.parse_frame_header(memoryview(data[:9]))
            if len(data) < 9 + size:
                break
            f.parse_body(memoryview(data[9:9 + size]))
            data = data[9 + size:]
            if isinstance(f, frames.HeadersFrame):
                answer(f.stream_id, dict(decoder.decode(f.data))[":path"])


def greeter(connection):
    connection.sendall(b"220 hello\r\n")
    connection.sendall(b"you said " + connection.recv(100))


def sniffing_listener(port):
    """HTTP if the client begins so, bytes else: a port whose protocol is not declared."""
    out = lab.listener("sniff", port, [lab.route("/", "a")])
    out["filter_chains"][0]["filter_chain_match"] = {"application_protocols": ["http/1.1", "h2c"]}
    out["default_filter_chain"] = {"filters": [{
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {"@type": TCP_PROXY, "stat_prefix": "tcp", "cluster": "greeter"}}]}
    return out


class RfcTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = lab.Lab()
        try:
            for port in (ECHO_A, ECHO_B):
                cls.lab.serve(port, lab.Echo)
            cls.lab.serve(REFUSING, Refusing)
            serve_connections(EXACT, exact)
            serve_connections(GREETER, greeter)
            serve_connections(BROKEN, broken)
            cls.ten = FewStreams(TEN, 10)
            cls.going = FewStreams(GOING, 100, last=7)
            h1, h2_ = "http_protocol_options", "http2_protocol_options"
            clusters = [lab.cluster("a", [ECHO_A], h1), lab.cluster("b", [ECHO_B], h1),
                        lab.cluster("exact", [EXACT], h1), lab.cluster("refusing", [REFUSING], h1),
                        lab.cluster("ten", [TEN], h2_), lab.cluster("going", [GOING], h2_),
                        lab.cluster("one", [ECHO_A], h1, circuit_breakers={"thresholds": [
                            {"max_connections": 1}]}),
                        lab.cluster("not-h2", [ECHO_A], h2_), lab.cluster("greeter", [GREETER]),
                        lab.cluster("broken", [BROKEN], h2_)]
            routes = [lab.route("/exact/", "exact", prefix_rewrite="/"),
                      lab.route("/refusing", "refusing"), lab.route("/not-h2", "not-h2"),
                      lab.route("/one", "one"),
                      lab.route("/broken/", "broken", prefix_rewrite="/"),
                      lab.route("/", "b", match={"headers": [
                          {"name": "cookie", "string_match": {
                              "safe_regex": {"regex": r"(^|.*; )user=tester(;.*|$)"}}}]}),
                      lab.route("/", "a")]
            listeners = [lab.listener("web", WEB, routes),
                         lab.listener("few", FEW, [lab.route("/going", "going"),
                                                   lab.route("/", "ten")]),
                         lab.listener("patient", PATIENT, [lab.route("/", "a")],
                                      request_headers_timeout="0s", stream_idle_timeout="0s"),
                         sniffing_listener(SNIFF)]
            cls.process = cls.lab.waypoint(
                {"static_resources": {"listeners": listeners, "clusters": clusters}},
                "--detect-timeout", "60s", ports=(WEB, FEW, PATIENT))
            lab.wait_port(SNIFF)
        except BaseException:
            cls.lab.close()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.lab.close()

    def h2_request(self, fields, port=WEB):
        """(status, body) of one request over HTTP/2, field by field as given."""
        connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        with socket.create_connection(("127.0.0.1", port), 20) as s:
            s.settimeout(20)
            connection.initiate_connection()
            connection.send_headers(1, fields, end_stream=True)
            s.sendall(connection.data_to_send())
            status, body = None, b""
            while True:
                piece = s.recv(65536)
                self.assertTrue(piece, "the connection ended")
                for event in connection.receive_data(piece):
                    if isinstance(event, h2.events.ResponseReceived):
                        status = int(dict(event.headers)[":status"])
                    elif isinstance(event, h2.events.DataReceived):
                        body += event.data
                    elif isinstance(event, h2.events.StreamEnded):
                        return status, body
                s.sendall(connection.data_to_send())

    # --- rooms of the endpoint ------------------------------------------------------------------
    def test_an_app_that_allows_ten_streams_serves_a_hundred_calls(self):
        for _ in range(2):
            out = subprocess.run(["h2load", "-n", "100", "-c", "1", "-m", "100",
                                  f"http://127.0.0.1:{FEW}/x"], capture_output=True, text=True,
                                 timeout=120).stdout
            self.assertIn("100 succeeded, 0 failed", out)
        self.assertEqual(self.ten.served, 200)
        self.assertEqual(self.ten.refused, 0, "nothing had to be refused")

    def test_goaway_fails_no_request(self):
        out = subprocess.run(["h2load", "-n", "100", "-c", "1", "-m", "100",
                              f"http://127.0.0.1:{FEW}/going"], capture_output=True, text=True,
                             timeout=120).stdout
        self.assertIn("100 succeeded, 0 failed", out)
        self.assertEqual(self.going.served, 100, "none was acted upon twice")
        self.assertGreater(self.going.refused, 0)

    def test_a_request_waits_for_the_one_connection_that_is_allowed(self):
        out = subprocess.run(["h2load", "-n", "50", "-c", "2", "-m", "20",
                              f"http://127.0.0.1:{WEB}/one"], capture_output=True, text=True,
                             timeout=120).stdout
        self.assertIn("50 succeeded, 0 failed", out)
        self.assertIn("50 2xx", out)

    # --- what a client says -----------------------------------------------------------------------
    def test_cookie_crumbs_are_one_cookie(self):
        base = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/c")]
        status, body = self.h2_request(base + [("cookie", "a=1"), ("cookie", "user=tester"),
                                               ("x", "y"), ("cookie", "b=2")])
        seen = json.loads(body)
        self.assertEqual((status, seen["port"]), (200, ECHO_B), "the route saw all of it")
        self.assertEqual([v for n, v in seen["fields"] if n.lower() == "cookie"],
                         ["a=1; user=tester; b=2"])

    def test_claims_of_a_client_do_not_reach_the_app(self):
        claims = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https",
                  "X-Forwarded-Host": "bank", "X-Forwarded-Port": "443",
                  "Forwarded": "for=1.2.3.4", "X-Envoy-Retry-On": "5xx",
                  "X-Envoy-Upstream-Rq-Timeout-Ms": "1", "X-Envoy-Internal": "true",
                  "X-Meltemi-Waypoints": "a/b", "X-Forwarded-Client-Cert": "URI=spiffe://evil"}
        args = [part for n, v in claims.items() for part in ("-H", f"{n}: {v}")]
        for more in ([], ["--http2-prior-knowledge"]):
            _, _, body = lab.curl(f"http://127.0.0.1:{WEB}/x", *args, *more)
            fields = {n.lower(): v for n, v in json.loads(body)["fields"]}
            self.assertEqual(fields["x-forwarded-for"], "127.0.0.1")
            self.assertEqual(fields["x-forwarded-proto"], "http")
            for name in claims:
                if name not in ("X-Forwarded-For", "X-Forwarded-Proto"):
                    self.assertNotIn(name.lower(), fields)

    def test_forms_of_the_target(self):
        end = b"Host: shop\r\nConnection: close\r\n\r\n"

        def target(line):
            answer = lab.raw(WEB, line + b" HTTP/1.1\r\n" + end)
            match = re.search(rb'"target": "([^"]*)"', answer)
            return match.group(1) if match else answer.split(b"\r\n")[0]
        self.assertEqual(target(b"OPTIONS *"), b"*")
        self.assertEqual(target(b"OPTIONS http://shop"), b"*")
        self.assertEqual(target(b"GET http://shop?a=b"), b"/?a=b")
        self.assertEqual(target(b"GET http://shop"), b"/")
        self.assertEqual(target(b"GET http://shop/x?y"), b"/x?y")
        self.assertEqual(target(b"GET *"), b"HTTP/1.1 400 Bad Request")
        self.assertEqual(target(b"GET HTTP://shop/x"), b"/x")
        answer = lab.raw(WEB, b"GET http://other/x HTTP/1.1\r\n" + end)
        self.assertIn(b'["Host", "other"]', answer, "RFC 9112 section 3.2.2")
        for host in (b"x..", b".x", b"a..b", b"."):
            answer = lab.raw(WEB, b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n" + end)
            self.assertTrue(answer.startswith(b"HTTP/1.1 400"), host)

    def test_two_websocket_keys_are_refused(self):
        key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        answer = lab.raw(WEB, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n"
                         b"Upgrade: websocket\r\n" + key + key + b"\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 400"), answer)

    def test_pipelined_requests_of_a_client_that_closes_its_side(self):
        one = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
        for _ in range(10):
            answer = lab.raw(WEB, one % 1 + one % 2 + one % 3, shut=True)
            self.assertEqual(re.findall(rb'"target": "(/\d)"', answer), [b"/1", b"/2", b"/3"])
        answer = lab.raw(WEB, one % 1 + b"GET /2 HTTP/1.1\r\nHo", shut=True)
        self.assertEqual(re.findall(rb'"target": "(/\d)"', answer), [b"/1"])

    def test_an_early_answer_to_an_expectation_ends_the_connection(self):
        # The client's next bytes may be the body or a request: nobody could tell.
        answer = lab.raw(WEB, b"POST /refusing HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
                         b"Content-Length: 39\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 401"), answer)
        self.assertIn(b"connection: close", answer)
        self.assertEqual(answer.count(b"HTTP/1.1 "), 1)

    def test_an_early_answer_over_http2_ends_the_stream_alone(self):
        connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        head = [(":scheme", "http"), (":authority", "a")]
        with socket.create_connection(("127.0.0.1", WEB), 20) as s:
            s.settimeout(20)
            connection.initiate_connection()
            connection.send_headers(1, [(":method", "POST"), (":path", "/refusing")] + head +
                                    [("expect", "100-continue"), ("content-length", "5")])
            s.sendall(connection.data_to_send())
            seen = []
            while not any(isinstance(e, h2.events.StreamReset) for e in seen):
                piece = s.recv(65536)
                self.assertTrue(piece, "the connection ended")
                seen += connection.receive_data(piece)
                s.sendall(connection.data_to_send())
            answer = next(e for e in seen if isinstance(e, h2.events.ResponseReceived))
            self.assertEqual(dict(answer.headers)[":status"], "401")
            ends = [e for e in seen if isinstance(e, (h2.events.StreamEnded, h2.events.StreamReset))]
            self.assertIsInstance(ends[0], h2.events.StreamEnded, "the answer is whole")
            self.assertEqual(ends[1].error_code, 0, "RFC 9113 section 8.1: NO_ERROR")
            connection.send_headers(3, [(":method", "GET"), (":path", "/x")] + head, end_stream=True)
            s.sendall(connection.data_to_send())
            while not any(isinstance(e, h2.events.StreamEnded) and e.stream_id == 3 for e in seen):
                piece = s.recv(65536)
                self.assertTrue(piece, "the connection ended")
                seen += connection.receive_data(piece)
                s.sendall(connection.data_to_send())

    def test_trailers_and_their_announcement_go_on(self):
        body = (b"POST /t HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n"
                b"TE: trailers\r\nConnection: TE, close\r\n\r\n2\r\nok\r\n0\r\n\r\n")
        answer = lab.raw(WEB, body)
        self.assertIn(b'["Trailer", "X-Sum"]', answer)
        self.assertIn(b'["te", "trailers"]', answer)

    def test_no_limit_is_no_limit(self):
        with socket.create_connection(("127.0.0.1", PATIENT), 20) as s:
            s.settimeout(20)
            for part in (b"GET /x HT", b"TP/1.1\r\nHost: a\r\n\r\n"):
                s.sendall(part)
            self.assertIn(b"HTTP/1.1 200", s.recv(65536))

    # --- what an app says -------------------------------------------------------------------------
    def test_a_malformed_answer_is_a_bad_gateway(self):
        def logged(path):
            return self.lab.log_lines(f' path="{path}" ')[-1]

        for path in ("/exact/no-http", "/exact/two-lengths", "/exact/bad-chunk", "/exact/unasked-101",
                     "/not-h2", "/broken/no-status", "/broken/upper"):
            for more in ([], ["--http2-prior-knowledge"]):
                status, _, body = lab.curl(f"http://127.0.0.1:{WEB}{path}", *more)
                self.assertEqual(status, 502, path)
                self.assertIn(b"upstream_protocol_error: malformed response", body, path)
            self.assertIn(" response_code=502 response_flags=UPE ", logged(path))
            self.assertIn(" reason=upstream_protocol_error", logged(path))
        # Too late for another status: the client's stream breaks off, and the log says why.
        out = subprocess.run(["curl", "-s", f"http://127.0.0.1:{WEB}/broken/late"], timeout=60,
                             capture_output=True)
        self.assertNotEqual(out.returncode, 0)
        self.assertIn(" response_flags=UPE ", logged("/broken/late"))
        metrics = lab.curl("http://127.0.0.1:15020/metrics")[2].decode()
        self.assertRegex(metrics, r'istio_requests_total\{[^}]*response_flags="UPE"[^}]*response_code="502"')
        # What broke off without being wrong may be tried again.
        for path, flags in (("/exact/close", "UC"), ("/broken/reset", "UR")):
            self.assertEqual(lab.curl(f"http://127.0.0.1:{WEB}{path}", "-X", "POST")[0], 503, path)
            self.assertIn(f" response_code=503 response_flags={flags} ", logged(path))

    def test_answers_without_content(self):
        for more in ([], ["--http2-prior-knowledge"]):
            status, fields, _ = lab.curl(f"http://127.0.0.1:{WEB}/exact/204", *more)
            names = [n.lower() for n, _ in fields]
            self.assertEqual(status, 204)
            self.assertIn("x-kept", names)
            self.assertNotIn("content-length", names, "RFC 9110 section 8.6")
            status, fields, _ = lab.curl(f"http://127.0.0.1:{WEB}/exact/304", *more)
            self.assertEqual((status, {n.lower(): v for n, v in fields}["content-length"]),
                             (304, "7"))

    def test_informational_answers_and_trailers_pass(self):
        close = b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        answer = lab.raw(WEB, b"GET /exact/hints" + close)
        hint, final = answer.split(b"\r\n\r\n")[:2]
        self.assertTrue(hint.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </a>"), hint)
        self.assertNotIn(b"ontent-", hint)
        self.assertTrue(final.startswith(b"HTTP/1.1 200"), final)
        answer = lab.raw(WEB, b"GET /exact/trailers" + close)
        self.assertIn(b"Trailer: X-Sum", answer)
        self.assertTrue(answer.endswith(b"0\r\nX-Sum: 7\r\n\r\n"), answer)

    # --- ports of unknown protocol ------------------------------------------------------------------
    def test_a_server_that_speaks_first_is_heard_at_once(self):
        # A client of HTTP has a minute to say its first word here, and this one waits for no minute.
        with socket.create_connection(("127.0.0.1", SNIFF), 20) as s:
            s.settimeout(20)
            self.assertEqual(s.recv(100), b"220 hello\r\n")
            s.sendall(b"EHLO")
            self.assertEqual(s.recv(100), b"you said EHLO")
        self.assertEqual(lab.curl(f"http://127.0.0.1:{SNIFF}/x")[0], 200, "HTTP is still HTTP")


if __name__ == "__main__":
    unittest.main(verbosity=2)
