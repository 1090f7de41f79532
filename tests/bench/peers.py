"""The peers of the tunnel rows: direct, a pair of HAProxy plain relays, a pair of HAProxy with mutual
TLS 1.3, and Meltemi's own pair. Each says where the client connects to and whose CPU counts.

One TLS cipher for all: TLS_AES_128_GCM_SHA256. One worker thread each.
"""

import os
import subprocess

import netlab

ECHO, SINK = 9700, 9701
CIPHER = "TLS_AES_128_GCM_SHA256"


def certificates(folder):
    """ca.pem and peer.pem (chain and key), the identity of all mutual TLS peers, made once."""
    if os.path.exists(f"{folder}/peer.pem"):
        return

    def openssl(*argv):
        subprocess.run(("openssl",) + argv, check=True, capture_output=True, cwd=folder)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=bench",
            "-days", "2")
    openssl("req", *key, "-keyout", "peer.key", "-out", "peer.csr", "-subj", "/CN=peer")
    with open(f"{folder}/peer.ext", "w") as out:
        out.write("subjectAltName=DNS:peer\n")
    openssl("x509", "-req", "-in", "peer.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-out", "peer.crt", "-days", "2", "-extfile", "peer.ext")
    with open(f"{folder}/peer.pem", "w") as out:
        for part in ("peer.crt", "peer.key"):
            with open(f"{folder}/{part}") as f:
                out.write(f.read())


class Direct:
    name = "direct"

    def __init__(self, lab):
        self.lab = lab

    def start(self):
        pass

    def cgroup(self, end):
        return None

    def target(self, port):
        return self.lab.a, self.lab.ip_b, port

    def near(self):
        return []

    far = near

    def stop(self):
        pass


class HaproxyPair:
    """client -> 127.0.0.1:near (HAProxy) -> ip_b:far (HAProxy) -> 127.0.0.1:server"""

    def __init__(self, lab, work, tls):
        self.lab, self.work, self.tls = lab, work, tls
        self.name = "haproxy-mtls" if tls else "haproxy"
        self.base = 9800 if tls else 9750
        self.children = []

    def _config(self, end):
        d = self.work
        lines = [
            "global", "  nbthread 1", "  maxconn 8000", "  tune.bufsize 65536",
            f"  ssl-default-bind-ciphersuites {CIPHER}", f"  ssl-default-server-ciphersuites {CIPHER}",
            "  tune.ssl.default-dh-param 2048",
            "defaults", "  mode tcp", "  timeout connect 10s", "  timeout client 1h",
            "  timeout server 1h", "  option clitcpka", "  no log",
        ]
        mtls = f"ssl crt {d}/peer.pem ca-file {d}/ca.pem verify required"
        for i, port in enumerate((ECHO, SINK)):
            lines += [f"listen l{port}"]
            if end == "near":
                lines += [f"  bind 127.0.0.1:{self.base + i}",
                          f"  server far {self.lab.ip_b}:{self.base + 10 + i} " + (mtls if self.tls else "")]
            else:
                lines += [f"  bind {self.lab.ip_b}:{self.base + 10 + i} "
                          + (mtls + " alpn bench" if self.tls else ""),
                          f"  server app {self.lab.ip_b}:{port}"]
        path = f"{d}/{self.name}-{end}.cfg"
        with open(path, "w") as f:
            f.write("\n".join(line.rstrip() for line in lines) + "\n")
        return path

    def start(self):
        if self.tls:
            certificates(self.work)
        for end, ns in (("near", self.lab.a), ("far", self.lab.b)):
            self.children.append(self.lab.start(
                ["haproxy", "-db", "-q", "-f", self._config(end)], netns=ns, cpu=0,
                stdout=subprocess.DEVNULL))
        netlab.wait_port(self.lab.a, self.base)

    def target(self, port):
        return self.lab.a, "127.0.0.1", self.base + (0 if port == ECHO else 1)

    def cgroup(self, end):
        return None

    def near(self):
        return [self.children[0].pid] if self.children else []

    def far(self):
        return [self.children[1].pid] if self.children else []

    def stop(self):
        for child in self.children:
            child.stop()
        self.children = []
