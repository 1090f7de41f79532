"""Small servers and clients that the tests run inside pods. One mode an invocation, see main()."""

import hashlib
import http.server
import os
import socket
import struct
import sys
import threading
import time


def listen(port):
    s = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    print("ready", flush=True)
    return s


def each(port, handle):
    server = listen(port)
    while True:
        connection, peer = server.accept()
        threading.Thread(target=handle, args=(connection, peer), daemon=True).start()


def web(port):
    """HTTP: answers with the client's address as the server sees it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            client = self.client_address[0].removeprefix("::ffff:")
            body = f"{client} saw {self.path} SECRET-MARKER\n".encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6

    server = Server(("::", port), Handler)
    print("ready", flush=True)
    server.serve_forever()


def digest(port):
    """Reads until FIN, then answers with the SHA-256 and the length: half-close from the client."""

    def handle(connection, _):
        h, n = hashlib.sha256(), 0
        while chunk := connection.recv(1 << 18):
            h.update(chunk)
            n += len(chunk)
        connection.sendall(f"{h.hexdigest()} {n}".encode())
        connection.close()

    each(port, handle)


def talk_first(port):
    """Sends, shuts its side down, then reads until the client is done: half-close from the server."""

    def handle(connection, _):
        connection.sendall(b"server first")
        connection.shutdown(socket.SHUT_WR)
        got = b""
        while chunk := connection.recv(65536):
            got += chunk
        print("got", got.decode(), flush=True)
        connection.close()

    each(port, handle)


def reset(port):
    """Reads one piece, then resets."""

    def handle(connection, _):
        connection.recv(100)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    each(port, handle)


def echo(port):
    def handle(connection, _):
        try:
            while chunk := connection.recv(1 << 16):
                connection.sendall(chunk)
        except OSError as e:
            print("ended", e.errno, flush=True)
        connection.close()

    each(port, handle)


def upload(ip, port, size):
    """Sends `size` random bytes, half-closes, compares what the digest server says."""
    s = socket.create_connection((ip, port), timeout=60)
    h, left, block = hashlib.sha256(), size, os.urandom(1 << 20)
    while left > 0:
        piece = block[:min(left, len(block))]
        h.update(piece)
        s.sendall(piece)
        left -= len(piece)
    s.shutdown(socket.SHUT_WR)
    answer = b""
    while chunk := s.recv(4096):
        answer += chunk
    assert answer.decode() == f"{h.hexdigest()} {size}", answer
    print("same", flush=True)


def slow_reader(ip, port, size, pause):
    """Talks to the echo server, but reads late: everything must still come back."""
    s = socket.create_connection((ip, port), timeout=60)
    data = os.urandom(size)
    sender = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
    sender.start()
    time.sleep(pause)
    got = b""
    while len(got) < size:
        chunk = s.recv(1 << 16)
        assert chunk, f"ended at {len(got)}"
        got += chunk
    sender.join()
    assert got == data
    print("same", flush=True)


def many(ip, port, count):
    """`count` connections at once, one exchange on each, twice."""
    sockets = [socket.create_connection((ip, port), timeout=60) for _ in range(count)]
    for turn in range(2):
        for i, s in enumerate(sockets):
            s.sendall(f"{turn}-{i}".encode())
        for i, s in enumerate(sockets):
            want = f"{turn}-{i}".encode()
            got = b""
            while len(got) < len(want):
                chunk = s.recv(len(want) - len(got))
                assert chunk
                got += chunk
            assert got == want
    print("same", flush=True)


def server_first(ip, port):
    s = socket.create_connection((ip, port), timeout=30)
    got = b""
    while chunk := s.recv(4096):
        got += chunk
    assert got == b"server first", got
    s.sendall(b"client last")
    s.close()
    print("same", flush=True)


def expect_reset(ip, port):
    s = socket.create_connection((ip, port), timeout=30)
    s.sendall(b"x")
    try:
        got = s.recv(100)
        print("eof" if got == b"" else got, flush=True)
    except ConnectionResetError:
        print("reset", flush=True)


def hold(ip, port):
    """Opens, exchanges once, then says how the connection ends."""
    s = socket.create_connection((ip, port), timeout=60)
    s.sendall(b"hello")
    assert s.recv(100) == b"hello"
    print("open", flush=True)
    try:
        print("eof" if s.recv(1) == b"" else "data", flush=True)
    except ConnectionResetError:
        print("reset", flush=True)


def crowd(ip, port, count, mark=0):
    """Opens connections, one behind the other, and holds what it gets without ever saying anything."""
    held = []
    for _ in range(count):
        s = socket.socket()
        if mark:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        s.settimeout(5)
        try:
            s.connect((ip, port))
        except OSError:
            continue  # refused
        held.append(s)
    print("open", flush=True)
    time.sleep(120)


def sniff(interface, needle):
    """Counts frames that carry the needle, until a line comes on stdin; prints frames, hits."""
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    s.bind((interface, 0))
    s.settimeout(0.1)
    done = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), done.set()), daemon=True).start()
    print("ready", flush=True)
    frames = hits = 0
    while not done.is_set():
        try:
            frame = s.recv(65536)
        except TimeoutError:
            continue
        frames += 1
        hits += needle.encode() in frame
    print(frames, hits, flush=True)


MODES = {"web": web, "digest": digest, "talk_first": talk_first, "reset": reset, "echo": echo,
         "upload": upload, "slow_reader": slow_reader, "many": many, "server_first": server_first,
         "expect_reset": expect_reset, "hold": hold, "crowd": crowd, "sniff": sniff}

if __name__ == "__main__":
    def number(text):
        try:
            return int(text, 0)
        except ValueError:
            return text
    MODES[sys.argv[1]](*[number(a) for a in sys.argv[2:]])
