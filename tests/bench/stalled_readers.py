"""What readers that never read cost a ztunnel, and whether it comes back.

  stalled_readers.py [READERS] [SECONDS]     MELTEMI_BIN_DIR names the binaries; needs root

Two pods with a ztunnel each (tests/netns/ztunnel/pair.py). READERS connections go through the tunnel to
a server that sends without end, and read nothing. Prints resident memory of both ztunnels, MiB, before,
at its highest while they last, and SECONDS after they have gone. Not a test: nothing is asserted.
"""

import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "netns", "ztunnel"))
import pair  # noqa: E402

PYTHON = "/usr/bin/python3"

SERVER = """
import select, socket
listener = socket.create_server(("::", 8081), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
listener.setblocking(False)
poll = select.epoll()
poll.register(listener, select.EPOLLIN)
print("ready", flush=True)
piece, open_ = bytes(1 << 20), {}
while True:
    for fd, events in poll.poll():
        if fd == listener.fileno():
            connection = listener.accept()[0]
            connection.setblocking(False)
            open_[connection.fileno()] = connection
            poll.register(connection, select.EPOLLOUT)
            continue
        try:
            open_[fd].send(piece)
        except BlockingIOError:
            pass
        except OSError:
            poll.unregister(fd)
            open_.pop(fd).close()
"""

CLIENT = """
import socket, sys, time
held = []
for _ in range(int(sys.argv[3])):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.connect((sys.argv[1], int(sys.argv[2])))
    held.append(s)
print("open", flush=True)
time.sleep(600)
"""


def resident(node):
    with open(f"/proc/{node.ztunnel.pid}/smaps_rollup") as f:
        return sum(int(line.split()[1]) for line in f if line.startswith("Rss:")) / 1024


def main():
    readers = int(sys.argv[1]) if len(sys.argv) > 1 else 1200
    seconds = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    p = pair.Pair()
    try:
        p.start()
        server = p.spawn(p.b, [PYTHON, "-c", SERVER])
        server.wait_line("ready")
        # One that reads, so that what is made at the first flow is there.
        p.run_in(p.a, ["sh", "-c", f"timeout 1 bash -c 'head -c 65536 </dev/tcp/{pair.VIP}/81' >/dev/null"])
        nodes, before = (p.a, p.b), {n.letter: resident(n) for n in (p.a, p.b)}
        client = p.spawn(p.a, [PYTHON, "-c", CLIENT, pair.VIP, "81", str(readers)])
        client.wait_line("open", timeout=120)
        most = dict(before)
        for _ in range(100):
            time.sleep(0.1)
            for n in nodes:
                most[n.letter] = max(most[n.letter], resident(n))
        client.stop()
        server.stop()
        for second in range(seconds + 1):
            after = {n.letter: resident(n) for n in nodes}
            if second % 5 == 0:
                print(f"{second:3} s after: " + ", ".join(f"{k} {v:.1f}" for k, v in after.items()), flush=True)
            time.sleep(1)
        for n in nodes:
            k = n.letter
            print(f"{readers} readers, ztunnel {k}: before {before[k]:.1f} MiB, at most {most[k]:.1f}, "
                  f"{seconds} s after {after[k]:.1f} ({100 * after[k] / before[k] - 100:+.0f} %)")
    finally:
        p.close()


if __name__ == "__main__":
    main()
