"""The programs at both ends of the tunnel tests: plain sockets, nothing of ours. Run as
`apps.py NAME ARGS...` inside of a pod; each prints one JSON object and ends by itself.
"""

import hashlib
import json
import resource
import select
import socket
import struct
import sys
import threading
import time

CHUNK = 1 << 18


def listen(port):
    server = socket.socket(socket.AF_INET6)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("::", port))
    server.listen(2048)
    server.settimeout(90)
    print("ready", flush=True)
    return server


def accept(server):
    peer, address = server.accept()
    peer.settimeout(90)
    return peer, address[0].removeprefix("::ffff:")


def say(**facts):
    print(json.dumps(facts), flush=True)


def hash_all(peer):
    digest, total = hashlib.sha256(), 0
    while data := peer.recv(CHUNK):
        digest.update(data)
        total += len(data)
    return digest.hexdigest(), total


def pattern(total):
    """Bytes that no shift or swap leaves alike, made fast."""
    block = hashlib.shake_256(b"meltemi").digest(CHUNK - 1)
    sent = 0
    while sent < total:
        piece = block[:min(len(block), total - sent)]
        sent += len(piece)
        yield piece


def reset(peer):
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


# --- servers -------------------------------------------------------------------------------------

def sink(port):
    """Hashes what comes, answers the hash after the peer's FIN."""
    peer, source = accept(listen(int(port)))
    digest, total = hash_all(peer)
    peer.sendall(digest.encode())
    peer.close()
    say(source=source, bytes=total, sha256=digest)


def half_closer(port):
    """Ends its own side first, then still takes everything."""
    peer, _ = accept(listen(int(port)))
    peer.sendall(b"first and last")
    peer.shutdown(socket.SHUT_WR)
    digest, total = hash_all(peer)
    say(bytes=total, sha256=digest)


def stalled(port, seconds):
    """Reads nothing for a while, then everything."""
    peer, _ = accept(listen(int(port)))
    time.sleep(float(seconds))
    digest, total = hash_all(peer)
    say(bytes=total, sha256=digest)


def resetter(port):
    peer, _ = accept(listen(int(port)))
    peer.recv(5)
    reset(peer)
    say(done=True)


def sees_end(port):
    """How the connection ends, as this side sees it."""
    peer, _ = accept(listen(int(port)))
    got = b""
    try:
        while data := peer.recv(CHUNK):
            got += data
        say(end="fin", bytes=len(got))
    except ConnectionResetError:
        say(end="reset", bytes=len(got))


def crowd(port, count):
    """Holds `count` connections at once; echoes one line on each when all are there."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
    server, peers = listen(int(port)), []
    while len(peers) < int(count):
        peers.append(accept(server)[0])
    for peer in peers:
        line = peer.recv(64)
        peer.sendall(line)
    say(at_once=len(peers))


def pour(port):
    """Sends without end, to a peer that will not read all of it."""
    peer, _ = accept(listen(int(port)))
    block = b"x" * CHUNK
    try:
        while True:
            peer.sendall(block)
    except OSError as error:
        say(ended=type(error).__name__)


# --- clients -------------------------------------------------------------------------------------

def connect(address, port):
    return socket.create_connection((address, int(port)), timeout=90)


def send_all(address, port, total):
    peer = connect(address, port)
    own, other = peer.getsockname()[0], peer.getpeername()[0]
    digest = hashlib.sha256()
    for piece in pattern(int(total)):
        digest.update(piece)
        peer.sendall(piece)
    peer.shutdown(socket.SHUT_WR)
    answer = b""
    while data := peer.recv(CHUNK):
        answer += data
    say(sha256=digest.hexdigest(), answer=answer.decode(), own=own, peer=other)


def send_after_fin(address, port, total):
    """Waits for the server's FIN, then sends; the other half must still work."""
    peer = connect(address, port)
    first = b""
    while data := peer.recv(CHUNK):
        first += data
    digest = hashlib.sha256()
    for piece in pattern(int(total)):
        digest.update(piece)
        peer.sendall(piece)
    peer.shutdown(socket.SHUT_WR)
    peer.close()
    say(first=first.decode(), sha256=digest.hexdigest())


def push(address, port, seconds):
    """How much a connection takes while nobody reads, and that everything arrives later."""
    peer = connect(address, port)
    peer.setblocking(False)
    digest, sent, end = hashlib.sha256(), 0, time.monotonic() + float(seconds)
    source = pattern(1 << 40)
    piece = next(source)
    while time.monotonic() < end:
        _, writable, _ = select.select([], [peer], [], 0.5)
        if not writable:
            continue
        n = peer.send(piece)
        digest.update(piece[:n])
        sent += n
        piece = piece[n:] or next(source)
    peer.shutdown(socket.SHUT_WR)
    say(accepted=sent, sha256=digest.hexdigest())


def await_reset(address, port):
    try:
        peer = connect(address, port)  # a reset may be here before connect has returned
        peer.sendall(b"hello")
        data = peer.recv(100)
        say(end="fin" if not data else "data")
    except ConnectionResetError:
        say(end="reset")


def die_reading(address, port):
    """Ends in the middle of an answer, as a killed process does."""
    peer = connect(address, port)
    got = 0
    while got < CHUNK:
        got += len(peer.recv(CHUNK))
    say(got=got)


def send_and_reset(address, port):
    peer = connect(address, port)
    peer.sendall(b"hello")
    time.sleep(0.5)
    reset(peer)
    say(done=True)


def join_crowd(address, port, count):
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
    peers, failed, lock = [], [], threading.Lock()

    def one(i):
        try:
            peer = connect(address, port)
            peer.sendall(b"%06d" % i)
            with lock:
                peers.append((i, peer))
        except OSError as error:
            failed.append(str(error))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(int(count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    echoed = sum(peer.recv(64) == b"%06d" % i for i, peer in peers)
    say(connected=len(peers), echoed=echoed, failed=failed[:3])


def trickle(address, port, count, pause):
    """One small message every `pause` seconds on one connection, each echoed."""
    peer = connect(address, port)
    for i in range(int(count)):
        peer.sendall(b"%08d" % i)
        if peer.recv(8, socket.MSG_WAITALL) != b"%08d" % i:
            return say(ok=False, at=i)
        time.sleep(float(pause))
    say(ok=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
