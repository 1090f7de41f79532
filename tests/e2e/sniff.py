#!/usr/bin/python3
"""What crosses a bridge, seen from its namespace: counts tunnel bytes, checks that they are TLS, and
keeps printable text for whoever wants to prove that something is not in it. Says "ready", reads one
line from stdin as the end, prints one JSON object. Sees only its own network namespace.
"""

import json
import select
import socket
import struct
import sys

ETH_P_ALL = 3
HBONE = 15008
TLS_TYPES = (20, 21, 22, 23)


def tcp_of(frame):
    """(source, destination, source port, destination port, sequence, flags, payload), or None."""
    kind = struct.unpack("!H", frame[12:14])[0]
    if kind == 0x0800 and frame[23] == 6:
        start = 14 + (frame[14] & 15) * 4
        end = 14 + struct.unpack("!H", frame[16:18])[0]
        source, destination = (socket.inet_ntop(socket.AF_INET, frame[i:i + 4]) for i in (26, 30))
    elif kind == 0x86DD and frame[20] == 6:
        start, end = 54, 54 + struct.unpack("!H", frame[18:20])[0]
        source, destination = (socket.inet_ntop(socket.AF_INET6, frame[i:i + 16]) for i in (22, 38))
    else:
        return None
    sport, dport, sequence = struct.unpack("!HHI", frame[start:start + 8])
    offset = (frame[start + 12] >> 4) * 4
    return source, destination, sport, dport, sequence, frame[start + 13], frame[start + offset:end]


def main():
    capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
    print("ready", flush=True)
    seen = {"hbone_bytes": 0, "hbone_frames": 0, "tls_records": 0, "not_tls": 0, "sample_hex": "",
            "plain_destinations": [], "text": ""}
    text, plain, expected = bytearray(), set(), {}
    while True:
        ready, _, _ = select.select([capture, sys.stdin], [], [], 60)
        if not ready or (sys.stdin in ready and capture not in ready):
            break
        if capture not in ready:
            continue
        frame, device = capture.recvfrom(70000)
        # What a pod says to itself crosses nothing.
        packet = None if device[0] == "lo" else tcp_of(frame)
        if packet is None:
            continue
        source, destination, sport, dport, sequence, _, payload = packet
        if not payload:
            continue
        text += payload
        if HBONE not in (sport, dport):
            plain.add(destination)
            continue
        # A segment is looked at where a record must begin: at the start of the connection, and
        # wherever the records before it ended. Copies of one frame (bridge ports) are seen once.
        flow = (source, sport, destination, dport)
        position, rest = expected.get(flow, (sequence, 0))
        if (sequence - position) & 0xFFFFFFFF >= 1 << 31:
            continue  # seen already
        if sequence != position:
            rest = None  # a gap: the records' borders are lost for this flow
        seen["hbone_frames"] += 1
        seen["hbone_bytes"] += len(payload)
        at = rest
        while at is not None and at + 5 <= len(payload):
            kind, version, length = struct.unpack("!BHH", payload[at:at + 5])
            if kind in TLS_TYPES and version in (0x0301, 0x0303) and length <= 16640:
                seen["tls_records"] += 1
                seen["sample_hex"] = seen["sample_hex"] or payload[at:at + 24].hex(" ")
                at += 5 + length
            else:
                seen["not_tls"] += 1
                at = None
        if at is not None and at < len(payload):
            at = None  # a record header was cut: give up on this flow's borders
        expected[flow] = ((sequence + len(payload)) & 0xFFFFFFFF,
                          at - len(payload) if at is not None else None)
    seen["plain_destinations"] = sorted(plain)
    seen["text"] = "".join(chr(b) if 32 <= b < 127 else "." for b in text[-4_000_000:])
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
