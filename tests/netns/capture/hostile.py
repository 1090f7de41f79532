"""What a pod with NET_RAW and NET_ADMIN may try to get TCP out past ztunnel, one way a name.

    hostile.py NAME TARGET4 TARGET6 PORT GATEWAY_MAC

Runs inside the pod, sends what it can and ends with 0; whether anything arrived is for the caller to see.
Every way ends with a SYN for TARGET:PORT on the wire, if nobody stops it.
"""

import socket
import struct
import subprocess
import sys

SOURCE_PORT = 4444
ETH_IP, ETH_IP6, ETH_VLAN = 0x0800, 0x86DD, 0x8100
FASTOPEN_CONNECT, FASTOPEN_NO_COOKIE = 30, 34  # <linux/tcp.h>
MPTCP = 262


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Target:
    def __init__(self, ip4, ip6, port, gateway):
        self.ip4, self.ip6, self.port = ip4, ip6, port
        self.gateway = bytes.fromhex(gateway.replace(":", ""))

    def own(self, family):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((self.ip(family), 9))
            return probe.getsockname()[0]

    def ip(self, family):
        return self.ip4 if family == socket.AF_INET else self.ip6


def syn(target, family, flags=0x02):
    source = socket.inet_pton(family, target.own(family))
    to = socket.inet_pton(family, target.ip(family))
    tcp = struct.pack("!HHIIBBHHH", SOURCE_PORT, target.port, 1, 0, 5 << 4, flags, 65535, 0, 0)
    pseudo = source + to + struct.pack("!II", len(tcp), socket.IPPROTO_TCP)
    return tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]


def ip4(target, payload, protocol=socket.IPPROTO_TCP, options=b"", fragment=0, ident=77):
    header = struct.pack("!BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 20 + len(options) + len(payload),
                         ident, fragment, 64, protocol, 0,
                         socket.inet_aton(target.own(socket.AF_INET)), socket.inet_aton(target.ip4))
    header += options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def ip6(target, payload, next_header=socket.IPPROTO_TCP):
    return struct.pack("!IHBB16s16s", 6 << 28, len(payload), next_header, 64,
                       socket.inet_pton(socket.AF_INET6, target.own(socket.AF_INET6)),
                       socket.inet_pton(socket.AF_INET6, target.ip6)) + payload


def wire(target, *packets, tags=b""):
    """Ethernet frames through AF_PACKET: below routing, netfilter and every hook of the pod."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind(("eth0", 0))
        mac = out.getsockname()[4]
        for packet in packets:
            kind = ETH_IP if packet[0] >> 4 == 4 else ETH_IP6
            out.send(target.gateway + mac + tags + struct.pack("!H", kind) + packet)


def run(*argv):
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def forget_rules():
    for family in ("-4", "-6"):
        run("ip", family, "rule", "del", "pref", "1")


def connect(target, family, protocol=0, before=None, after=None):
    with socket.socket(family, socket.SOCK_STREAM, protocol) as app:
        app.settimeout(1)
        try:
            if before:
                before(app)
            app.connect((target.ip(family), target.port))
            if after:
                after(app)
            app.send(b"x")
        except OSError as error:
            print(f"{family.name}: {error}")


def both(attempt):
    for family in (socket.AF_INET, socket.AF_INET6):
        attempt(family)


def tagged(tag):
    return struct.pack("!HH", ETH_VLAN, tag)


def v6_fragments(target, first, rest_offset):
    """The SYN behind a fragment header, cut at `rest_offset`; 0: whole, an atomic fragment."""
    segment = first
    if not rest_offset:
        return [ip6(target, struct.pack("!BBHI", 6, 0, 0, 9) + segment, 44)]
    return [ip6(target, struct.pack("!BBHI", 6, 0, 1, 9) + segment[:rest_offset], 44),
            ip6(target, struct.pack("!BBHI", 6, 0, rest_offset, 9) + segment[rest_offset:], 44)]


def mark(target):
    both(lambda f: connect(target, f, before=lambda s: s.setsockopt(
        socket.SOL_SOCKET, socket.SO_MARK, 0x539)))


def syn_at_the_first_write(app):
    app.setsockopt(socket.IPPROTO_TCP, FASTOPEN_NO_COOKIE, 1)
    app.setsockopt(socket.IPPROTO_TCP, FASTOPEN_CONNECT, 1)


def mark_taken_off_before_the_syn(target):
    both(lambda f: connect(target, f, before=syn_at_the_first_write,
                           after=lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0)))


def device_bound_before_the_syn(target):
    def bind(app):
        app.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0)
        app.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    both(lambda f: connect(target, f, before=syn_at_the_first_write, after=bind))


def raw_socket(target):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as out:
        out.sendto(syn(target, socket.AF_INET), (target.ip4, 0))
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_TCP) as out:
        out.sendto(syn(target, socket.AF_INET6), (target.ip6, 0))


def packet_socket(target):
    wire(target, ip4(target, syn(target, socket.AF_INET)), ip6(target, syn(target, socket.AF_INET6)))


def odd_flags(target):
    for flags in (0x02 | 0x08, 0x02 | 0xC0, 0x02 | 0x20):  # PSH, ECE+CWR, URG
        wire(target, ip4(target, syn(target, socket.AF_INET, flags)),
             ip6(target, syn(target, socket.AF_INET6, flags)))


def ip_options(target):
    wire(target, ip4(target, syn(target, socket.AF_INET), options=b"\x01" * 40))


def fragments(target):
    segment = syn(target, socket.AF_INET)
    for cut in (8, 16):
        wire(target, ip4(target, segment[:cut], fragment=0x2000, ident=cut),
             ip4(target, segment[cut:], fragment=cut // 8, ident=cut))
    # The last piece first, and the head twice with the flags only in the second.
    plain = syn(target, socket.AF_INET, 0x10)
    wire(target, ip4(target, plain, fragment=0x2000, ident=5),
         ip4(target, segment[8:], fragment=0x2000 | 1, ident=5),
         ip4(target, b"x" * 8, fragment=3, ident=5))


def v6_extension_headers(target):
    segment = syn(target, socket.AF_INET6)
    pad = b"\x01\x04\0\0\0\0"
    hop = bytes([60, 0]) + pad       # hop-by-hop, then destination options
    options = bytes([6, 0]) + pad
    wire(target, ip6(target, hop + options + segment, 0))
    wire(target, ip6(target, bytes([60, 0]) + pad + (bytes([60, 0]) + pad) * 20 + options + segment, 60))
    wire(target, ip6(target, bytes([6, 2, 0, 0]) + b"\0" * 12 + segment, 51))  # AH
    for cut in (0, 8, 16):
        wire(target, *v6_fragments(target, segment, cut))


def ip_in_ip(target):
    inner4, inner6 = ip4(target, syn(target, socket.AF_INET)), ip6(target, syn(target, socket.AF_INET6))
    wire(target, ip4(target, inner4, 4), ip4(target, inner6, 41), ip6(target, inner4, 4),
         ip6(target, inner6, 41))


def vlan_tags(target):
    packets = (ip4(target, syn(target, socket.AF_INET)), ip6(target, syn(target, socket.AF_INET6)))
    for tags in (tagged(0), tagged(7), tagged(0) * 2, tagged(0) * 3, tagged(0) * 5):
        wire(target, *packets, tags=tags)


def rule_deleted(target):
    forget_rules()
    both(lambda f: connect(target, f))


def route_deleted(target):
    for family in ("-4", "-6"):
        run("ip", family, "route", "flush", "table", "27953")
    both(lambda f: connect(target, f))


def rule_before_ours(target):
    for family in ("-4", "-6"):
        run("ip", family, "rule", "add", "pref", "0", "lookup", "main")
    both(lambda f: connect(target, f))


def mptcp(target):
    forget_rules()
    both(lambda f: connect(target, f, protocol=MPTCP))


def added_address(target):
    run("ip", "addr", "add", "10.66.0.99/32", "dev", "eth0")
    run("ip", "addr", "add", "fd66::99/128", "dev", "eth0", "nodad")
    forget_rules()
    sources = {socket.AF_INET: "10.66.0.99", socket.AF_INET6: "fd66::99"}
    both(lambda f: connect(target, f, before=lambda s: s.bind((sources[f], 0))))


def transparent(target):
    forget_rules()
    sources = {socket.AF_INET: ("10.9.9.9", socket.SOL_IP, 19), socket.AF_INET6: ("fd99::9", 41, 75)}

    def steal(app, family):
        ip, level, option = sources[family]
        app.setsockopt(level, option, 1)
        app.bind((ip, 0))
    both(lambda f: connect(target, f, before=lambda s: steal(s, f)))


def macvlan_in_a_namespace_of_its_own(target):
    run("ip", "link", "add", "mv0", "link", "eth0", "type", "macvlan", "mode", "bridge")
    nested(target, "mv0")


def interface_moved_away(target):
    nested(target, "eth0")


def nested(target, device):
    """A namespace that nobody has enrolled, behind the pod's own veth."""
    own = {f: target.own(f) for f in (socket.AF_INET, socket.AF_INET6)}
    holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo ready; exec sleep 30"],
                              stdout=subprocess.PIPE)
    holder.stdout.readline()
    try:
        inside = ["nsenter", "-t", str(holder.pid), "-n"]
        run("ip", "link", "set", device, "netns", str(holder.pid))
        run(*inside, "ip", "link", "set", device, "up")
        run(*inside, "ip", "addr", "add", own[socket.AF_INET] + "/32", "dev", device)
        run(*inside, "ip", "addr", "add", own[socket.AF_INET6] + "/128", "dev", device, "nodad")
        for family, gateway in (("-4", "169.254.1.1"), ("-6", "fd66:ffff::1")):
            run(*inside, "ip", family, "route", "add", gateway, "dev", device)
            run(*inside, "ip", family, "route", "add", "default", "via", gateway, "dev", device)
        for ip in (target.ip4, target.ip6):
            subprocess.run([*inside, "curl", "-s", "-g", "--max-time", "2",
                            f"http://{'[%s]' % ip if ':' in ip else ip}:{target.port}/"], check=False)
    finally:
        holder.kill()
        holder.wait()


def main():
    name, ip_4, ip_6, port, gateway = sys.argv[1:]
    globals()[name](Target(ip_4, ip_6, int(port), gateway))


if __name__ == "__main__":
    main()
