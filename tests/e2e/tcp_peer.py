"""Both ends of a TCP conversation that is checked to the byte, with plain sockets. Without arguments the
server on port 9000; with WHAT HOST PORT [COUNT] the client, which prints "ok" or fails."""
import hashlib
import select
import socket
import struct
import sys
import threading


def stream(count):
    """`count` bytes that repeat nowhere near a buffer's size."""
    out = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(count // 32 + 1))
    return out[:count]


def read_all(s):
    out = bytearray()
    while piece := s.recv(65536):
        out += piece
    return bytes(out)


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def serve(s, resets):
    command = b""
    while not command.endswith(b"\n"):
        piece = s.recv(1)
        if not piece:
            s.sendall(b"you said " + command)
            return s.close()
        command += piece
    what, count = command.split()[0], int(command.split()[1])
    if what == b"upload":
        s.sendall(hashlib.sha256(read_all(s)).hexdigest().encode())
    elif what == b"download":
        s.sendall(stream(count))
        s.shutdown(socket.SHUT_WR)
        if read_all(s) != b"still here":
            return reset(s)
    elif what == b"reset-me":
        s.sendall(b"soon")
        s.recv(1)
        return reset(s)
    elif what == b"reset-you":
        s.sendall(b"go")
        try:
            s.recv(1)
            resets.append("end")
        except ConnectionResetError:
            resets.append("reset")
    elif what == b"hold":
        s.sendall(b"go")
        s.sendall(s.recv(1))
    elif what == b"resets":
        s.sendall(b",".join(r.encode() for r in resets))
        del resets[:]
    s.close()


def call(host, port, what, count):
    s = socket.create_connection((host, port), 20)
    s.settimeout(20)
    if what == "word":  # could be the beginning of a request, for all that can be seen
        s.sendall(b"GET")
        s.shutdown(socket.SHUT_WR)
    else:
        s.sendall(b"%s %d\n" % (what.encode(), count))
    return s


def client(what, host, port, count=0):
    port, count = int(port), int(count)
    with call(host, port, what, count) as s:
        if what == "upload":
            s.sendall(stream(count))
            s.shutdown(socket.SHUT_WR)
            assert read_all(s).decode() == hashlib.sha256(stream(count)).hexdigest()
        elif what == "download":
            assert read_all(s) == stream(count), "bytes differ"
            s.sendall(b"still here")
            s.shutdown(socket.SHUT_WR)
            assert s.recv(1) == b""
        elif what == "word":
            assert read_all(s) == b"you said GET"
        elif what == "hold":
            assert s.recv(2) == b"go"
            print("open", flush=True)
            if s in select.select([s, sys.stdin], [], [], 60)[0]:
                return print("cut")
            s.sendall(b"x")
            assert s.recv(1) == b"x"
        elif what == "reset-me":
            assert s.recv(4) == b"soon"
            s.sendall(b"x")
            try:
                raise AssertionError("no reset but %r" % s.recv(1))
            except ConnectionResetError:
                pass
        elif what == "reset-you":
            assert s.recv(2) == b"go"
            reset(s)
            for _ in range(100):
                with call(host, port, "resets", 0) as again:
                    told = read_all(again)
                if told:
                    break
                threading.Event().wait(0.1)
            assert told == b"reset", told
    print("ok")


if len(sys.argv) > 1:
    client(*sys.argv[1:])
else:
    resets = []
    listener = socket.create_server(("", 9000), backlog=64)
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=serve, args=(peer, resets), daemon=True).start()
