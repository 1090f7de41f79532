"""What a test or a benchmark needs to run processes under a real meltemid without a sandbox: bearer tokens,
pods in its configuration directory, the node's word that a pod is enrolled, and leaf certificates of
its authority. Made with openssl and grpcio; never imports anything of ours.

  control.py enrolled ADDRESS CA_DIR TOKEN_DIR POD...    for callers that are in another namespace
"""

import base64
import json
import os
import subprocess
import sys
import time

import grpc


def _openssl(*argv, data=None):
    return subprocess.run(["openssl", *argv], input=data, check=True, capture_output=True).stdout


def write(path, text):
    """As a whole or not at all: meltemid watches the directory."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/.{name}", "w") as f:
        f.write(text)
    os.rename(f"{folder}/.{name}", path)


class Tokens:
    """An issuer of service account tokens, ES256. Its key is kept in the folder."""

    def __init__(self, work):
        self.key, self.public = f"{work}/token.key", f"{work}/token.pub"
        if os.path.exists(self.public):
            return
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.key)
        _openssl("ec", "-in", self.key, "-pubout", "-out", self.public)

    def make(self, namespace, account, pod="", node=""):
        now = int(time.time())
        bound = {"namespace": namespace, "serviceaccount": {"name": account, "uid": "u"}}
        if pod:
            bound["pod"] = {"name": pod, "uid": f"uid-{pod}"}
        if node:
            bound["node"] = {"name": node, "uid": "n"}
        claims = {"iss": "https://kubernetes.default.svc.cluster.local", "aud": ["istio-ca"],
                  "sub": f"system:serviceaccount:{namespace}:{account}", "iat": now, "nbf": now,
                  "exp": now + 3600, "kubernetes.io": bound}
        parts = [self._part(json.dumps(p).encode())
                 for p in ({"alg": "ES256", "typ": "JWT"}, claims)]
        der = _openssl("dgst", "-sha256", "-sign", self.key, data=".".join(parts).encode())
        return ".".join(parts + [self._part(self._raw_signature(der))])

    @staticmethod
    def _part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    @staticmethod
    def _raw_signature(der):
        """SEQUENCE { INTEGER r, INTEGER s } as the 64 bytes of a JWT."""
        at, out = 2, b""
        for _ in range(2):
            size = der[at + 1]
            out += der[at + 2:at + 2 + size].lstrip(b"\0").rjust(32, b"\0")
            at += 2 + size
        return out


def pod(namespace, name, ip, account, labels, node="n1"):
    return json.dumps({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", "labels": labels},
        "spec": {"nodeName": node, "serviceAccountName": account,
                 "containers": [{"name": "c", "image": "none"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                   "conditions": [{"type": "Ready", "status": "True"}]}})


def report_enrolled(address, ca_dir, tokens, pods, node="n1"):
    """What the node's agent would say (meltemi.node.v1.NodeStatus): these pods are enrolled."""

    def field(number, payload):
        return bytes([number << 3 | 2, len(payload)]) + payload

    message = field(1, node.encode())
    for name in pods:
        message += field(2, field(1, f"uid-{name}".encode()) + b"\x10\x01")
    with open(f"{ca_dir}/root-cert.pem", "rb") as f:
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(f.read()))
    token = tokens.make("istio-system", "meltemi-agent", node=node)
    channel.unary_unary("/meltemi.node.v1.NodeStatus/Report")(
        message, timeout=30, wait_for_ready=True, metadata=(("authorization", "Bearer " + token),))
    channel.close()


def issue(ca_dir, uri, out):
    """A leaf of meltemid's authority for a SPIFFE ID: out.crt with its chain, out.key."""
    _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
             f"{out}.key", "-out", f"{out}.csr", "-subj", "/")
    with open(f"{out}.ext", "w") as f:
        f.write(f"subjectAltName=critical,URI:{uri}\nextendedKeyUsage=clientAuth,serverAuth\n"
                "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n")
    leaf = _openssl("x509", "-req", "-in", f"{out}.csr", "-CA", f"{ca_dir}/ca-cert.pem", "-CAkey",
                    f"{ca_dir}/ca-key.pem", "-set_serial", str(time.time_ns()), "-days", "2",
                    "-extfile", f"{out}.ext")
    with open(f"{ca_dir}/ca-cert.pem", "rb") as f:
        chain = f.read()
    with open(f"{out}.crt", "wb") as f:
        f.write(leaf + chain)


if __name__ == "__main__" and sys.argv[1:2] == ["enrolled"]:
    report_enrolled(sys.argv[2], sys.argv[3], Tokens(sys.argv[4]), sys.argv[5:])
