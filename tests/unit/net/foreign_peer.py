"""An HBONE peer none of us wrote: Python's ssl (OpenSSL) and the h2 library. Default HTTP/2 windows
and frame sizes, session tickets, coalesced and split records: what a foreign peer looks like.

  foreign_peer.py server DIR            prints the port; echoes CONNECT streams
  foreign_peer.py server DIR busy N     takes N streams at a time, of all connections, and refuses more
  foreign_peer.py server DIR leaving N  its first N connections end with GOAWAY before any stream
  foreign_peer.py client DIR PORT MODE  MODE: echo, halfclose, cancel, flood, ping
Exit code 0 means that everything was as it must be.
"""

import itertools
import socket
import ssl
import sys
import threading

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings


def context(directory, server):
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    c.minimum_version = ssl.TLSVersion.TLSv1_3
    c.check_hostname = False
    c.verify_mode = ssl.CERT_REQUIRED
    end = "far" if server else "near"
    c.load_cert_chain(f"{directory}/{end}.crt", f"{directory}/{end}.key")
    c.load_verify_locations(f"{directory}/root.crt")
    c.set_alpn_protocols(["h2"])
    return c


def flush(conn, sock):
    data = conn.data_to_send()
    if data:
        sock.sendall(data)


def serve_one(sock, room, leaving):
    """`room`: streams that it may take at a time; nothing of it is said in the SETTINGS."""
    # The library's own check does not know that CONNECT has no :path (RFC 9113 section 8.5).
    conn = h2.connection.H2Connection(h2.config.H2Configuration(
        client_side=False, header_encoding="utf-8", validate_inbound_headers=False))
    conn.initiate_connection()
    flush(conn, sock)
    waiting = {}  # stream -> bytes for which there is no window yet
    ended = set()

    def push(stream):
        while waiting.get(stream):
            n = min(conn.local_flow_control_window(stream), conn.max_outbound_frame_size,
                    len(waiting[stream]))
            if n == 0:
                return
            conn.send_data(stream, waiting[stream][:n])
            waiting[stream] = waiting[stream][n:]
        if stream in ended:
            ended.discard(stream)
            conn.end_stream(stream)
            if waiting.pop(stream, None) is not None:
                room.release()

    while True:
        data = sock.recv(65536)
        if not data:
            return
        for event in conn.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                headers = dict(event.headers)
                assert headers[":method"] == "CONNECT", headers
                assert ":path" not in headers and ":scheme" not in headers, headers
                if headers[":authority"].endswith(":404"):
                    conn.send_headers(event.stream_id, [(":status", "401")], end_stream=True)
                    continue
                if leaving:
                    conn.close_connection(last_stream_id=0)
                    flush(conn, sock)
                    while sock.recv(65536):
                        pass
                    return
                if not room.acquire(blocking=False):
                    conn.reset_stream(event.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
                    continue
                conn.send_headers(event.stream_id, [(":status", "200"), ("baggage", "k=v")])
                waiting[event.stream_id] = b""
            elif isinstance(event, h2.events.DataReceived):
                conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                waiting[event.stream_id] += event.data
                push(event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                ended.add(event.stream_id)
                push(event.stream_id)
            elif isinstance(event, h2.events.WindowUpdated):
                for stream in list(waiting):
                    push(stream)
            elif isinstance(event, h2.events.StreamReset):
                if waiting.pop(event.stream_id, None) is not None:
                    room.release()
            elif isinstance(event, h2.events.ConnectionTerminated):
                flush(conn, sock)
                return
        flush(conn, sock)


def server(directory, mode="", number=0):
    listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
    print(listener.getsockname()[1], flush=True)
    c = context(directory, True)
    room = threading.Semaphore(number if mode == "busy" else 1000)

    def serve(raw, leaving):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with c.wrap_socket(raw, server_side=True) as sock:
                serve_one(sock, room, leaving)
        except (ssl.SSLError, OSError):
            pass

    for n in itertools.count():
        raw, _ = listener.accept()
        threading.Thread(target=serve, args=(raw, mode == "leaving" and n < number),
                         daemon=True).start()


class Client:
    def __init__(self, directory, port):
        raw = socket.create_connection(("127.0.0.1", port))
        self.sock = context(directory, False).wrap_socket(raw)
        assert self.sock.version() == "TLSv1.3" and self.sock.selected_alpn_protocol() == "h2"
        self.conn = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8",
                                      validate_outbound_headers=False))
        self.conn.initiate_connection()
        self.flush()
        self.events = []

    def flush(self):
        flush(self.conn, self.sock)

    def wait(self, kind, stream=None):
        while True:
            for i, e in enumerate(self.events):
                if isinstance(e, kind) and (stream is None or e.stream_id == stream):
                    return self.events.pop(i)
            data = self.sock.recv(65536)
            if not data:
                raise SystemExit(f"connection closed while waiting for {kind.__name__}")
            for e in self.conn.receive_data(data):
                if isinstance(e, h2.events.DataReceived):
                    self.conn.acknowledge_received_data(e.flow_controlled_length, e.stream_id)
                self.events.append(e)
            self.flush()

    def connect(self):
        stream = self.conn.get_next_available_stream_id()
        self.conn.send_headers(stream, [(":method", "CONNECT"), (":authority", "10.1.2.3:80"),
                                        ("forwarded", 'for="10.0.0.1:1"'), ("x-unknown", "1")])
        self.flush()
        headers = dict(self.wait(h2.events.ResponseReceived, stream).headers)
        assert headers[":status"] == "200", headers
        return stream

    def read(self, stream, n):
        out = b""
        while len(out) < n:
            out += self.wait(h2.events.DataReceived, stream).data
        return out


def client(directory, port, mode):
    c = Client(directory, port)
    if mode == "echo":
        streams = [c.connect() for _ in range(20)]
        for s in streams:
            c.conn.send_data(s, b"hello %d" % s)
        c.flush()
        for s in streams:
            assert c.read(s, len(b"hello %d" % s)) == b"hello %d" % s
        big = bytes(range(256)) * 1024
        s, got, sent = streams[0], b"", 0
        while len(got) < len(big):
            n = min(c.conn.local_flow_control_window(s), c.conn.max_outbound_frame_size,
                    len(big) - sent)
            if n:
                c.conn.send_data(s, big[sent:sent + n])
                sent += n
                c.flush()
            else:
                got += c.wait(h2.events.DataReceived, s).data
        assert got == big
    elif mode == "halfclose":
        s = c.connect()
        c.conn.send_data(s, b"last words", end_stream=True)
        c.flush()
        assert c.read(s, 10) == b"last words"
        c.wait(h2.events.StreamEnded, s)
    elif mode == "cancel":
        s = c.connect()
        c.conn.reset_stream(s, h2.errors.ErrorCodes.CANCEL)
        t = c.connect()  # the tunnel lives on
        c.conn.send_data(t, b"x")
        c.flush()
        assert c.read(t, 1) == b"x"
    elif mode == "flood":
        # Rapid reset: the tunnel must be ended with ENHANCE_YOUR_CALM, not served forever.
        try:
            for _ in range(2000):
                s = c.conn.get_next_available_stream_id()
                c.conn.send_headers(s, [(":method", "CONNECT"), (":authority", "10.1.2.3:80")])
                c.conn.reset_stream(s, h2.errors.ErrorCodes.CANCEL)
                c.flush()
            e = c.wait(h2.events.ConnectionTerminated)
            assert e.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM, e
        except (ConnectionError, ssl.SSLError):
            pass  # it was closed while we wrote
    elif mode == "outlive":
        # The server's clock passes the end of this certificate when the first stream comes.
        s = c.connect()
        t = c.conn.get_next_available_stream_id()
        c.conn.send_headers(t, [(":method", "CONNECT"), (":authority", "10.1.2.3:80")])
        c.conn.send_data(s, b"still here")
        c.flush()
        # The library takes nothing after GOAWAY, not even what it owes to open streams: frames by hand.
        seen, echoed, raw = set(), b"", b""
        while not ({(3, t), (7, 0)} <= seen and echoed == b"still here"):
            raw += c.sock.recv(65536) or sys.exit(f"closed after {seen}, {echoed}")
            while len(raw) >= 9 and len(raw) >= 9 + int.from_bytes(raw[:3], "big"):
                end = 9 + int.from_bytes(raw[:3], "big")
                kind, stream, body = raw[3], int.from_bytes(raw[5:9], "big"), raw[9:end]
                raw = raw[end:]
                seen.add((kind, stream))
                if (kind, stream) == (3, t):
                    assert int.from_bytes(body, "big") == h2.errors.ErrorCodes.REFUSED_STREAM, body
                if (kind, stream) == (0, s):
                    echoed += body
    elif mode == "ping":
        c.conn.ping(b"12345678")
        c.flush()
        assert c.wait(h2.events.PingAckReceived).ping_data == b"12345678"
    else:
        raise SystemExit("unknown mode")


if __name__ == "__main__":
    if sys.argv[1] == "server":
        server(sys.argv[2], *sys.argv[3:4], *map(int, sys.argv[4:5]))
    else:
        client(sys.argv[2], int(sys.argv[3]), sys.argv[4])
