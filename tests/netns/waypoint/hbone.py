"""HBONE as a program that is not ours speaks it: Python's ssl and h2. A client that opens CONNECT tunnels,
and an endpoint that answers them with an HTTP/1.1 response which tells what arrived.

Certificates are made with the `cryptography` package from the mesh's issuer. Must never be used outside
of a test's own namespace.
"""

import collections
import datetime
import json
import socket
import ssl
import threading

import h2.config
import h2.connection
import h2.events
import lab
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID


class Identity:
    """A leaf for a SPIFFE ID, written as files that ssl can load."""

    def __init__(self, work, ca_dir, uri, name):
        with open(f"{ca_dir}/ca-key.pem", "rb") as f:
            issuer_key = serialization.load_pem_private_key(f.read(), None)
        with open(f"{ca_dir}/ca-cert.pem", "rb") as f:
            chain = f.read()
        issuer = x509.load_pem_x509_certificate(chain)
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.utcnow()
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        cert = (x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(issuer.subject)
                .public_key(key.public_key()).serial_number(x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(minutes=5))
                .not_valid_after(now + datetime.timedelta(hours=1))
                .add_extension(x509.SubjectAlternativeName(
                    [x509.UniformResourceIdentifier(uri)]), critical=True)
                .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
                .add_extension(x509.BasicConstraints(False, None), critical=True)
                .add_extension(x509.KeyUsage(True, *[False] * 8), critical=True)
                .sign(issuer_key, hashes.SHA256()))
        self.cert, self.key = f"{work}/{name}.pem", f"{work}/{name}.key"
        self.root = f"{ca_dir}/root-cert.pem"
        pem = serialization.Encoding.PEM
        with open(self.cert, "wb") as f:
            f.write(cert.public_bytes(pem) + chain)
        with open(self.key, "wb") as f:
            f.write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8,
                                      serialization.NoEncryption()))

    def context(self, server):
        purpose = ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
        context = ssl.SSLContext(purpose)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.cert, self.key)
        context.load_verify_locations(self.root)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(["h2"])
        return context


def spiffe_of(tls):
    names = tls.getpeercert().get("subjectAltName", ())
    return [value for kind, value in names if kind == "URI"]


class Client:
    """One tunnel; exchange() opens a CONNECT stream, sends bytes and returns (status, answer)."""

    def __init__(self, address, identity, source=None):
        raw = socket.create_connection(address, 20, source_address=(source, 0) if source else None)
        self.tls = identity.context(False).wrap_socket(raw)
        self.peer = spiffe_of(self.tls)
        self.serial = self.tls.getpeercert()["serialNumber"]
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(
            header_encoding="utf-8", validate_outbound_headers=False))
        self.h2.initiate_connection()
        self.tls.sendall(self.h2.data_to_send())
        self.pending = collections.deque()  # events that nobody has looked at

    @staticmethod
    def complete(answer):
        """Whether an HTTP/1.1 response with a Content-Length is there in full."""
        head, found, body = answer.partition(b"\r\n\r\n")
        if not found:
            return False
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return len(body) >= int(line.split(b":")[1])
        return True

    def exchange(self, authority, data, timeout=20):
        stream, status = self.open(authority, timeout)
        answer = b""
        if status == "200":
            answer, live = self.ask(stream, data)
            if live:
                self.h2.reset_stream(stream)
                self.tls.sendall(self.h2.data_to_send())
        return status, answer

    def open(self, authority, timeout=20):
        """Asks for a stream; returns it with the status."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [(":method", "CONNECT"), (":authority", authority)])
        self.tls.sendall(self.h2.data_to_send())
        self.tls.settimeout(timeout)
        for event in self.events(stream):
            if isinstance(event, h2.events.ResponseReceived):
                return stream, dict(event.headers)[":status"]
        return stream, None

    def ask(self, stream, data):
        """Sends a request in the stream; returns the answer, and whether the stream goes on."""
        self.h2.send_data(stream, data)
        self.tls.sendall(self.h2.data_to_send())
        answer = b""
        for event in self.events(stream):
            if isinstance(event, h2.events.DataReceived):
                answer += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if self.complete(answer):
                    self.tls.sendall(self.h2.data_to_send())
                    return answer, True
        return answer, False

    def events(self, stream):
        """What comes, until the stream or the tunnel ends."""
        while True:
            while self.pending:
                event = self.pending.popleft()
                yield event
                if isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                    if event.stream_id == stream:
                        self.tls.sendall(self.h2.data_to_send())
                        return
            piece = self.tls.recv(65536)
            if not piece:
                return
            self.pending.extend(self.h2.receive_data(piece))
            self.tls.sendall(self.h2.data_to_send())

    def close(self):
        self.tls.close()


class Endpoint:
    """Port 15008 of a pod: answers every HTTP/1.1 request in every tunnel with what it saw."""

    def __init__(self, ip, identity, name):
        self.name, self.context = name, identity.context(True)
        self.tunnels = 0
        self.live = []
        self.serials = set()  # of the certificates that callers have shown
        self.listener = socket.create_server((ip, 15008))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        try:
            tls = self.context.wrap_socket(connection, server_side=True)
            self.tunnels += 1
            self.live.append(tls)
            self.serials.add(tls.getpeercert()["serialNumber"])
            with tls:
                self.talk(tls, spiffe_of(tls))
        except OSError:
            connection.close()

    def talk(self, tls, peer):
        session = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8",
                                      validate_inbound_headers=False))
        session.initiate_connection()
        tls.sendall(session.data_to_send())
        streams, frames = {}, lab.WithoutGoaway(preface=24)
        while True:
            piece = tls.recv(65536)
            if not piece:
                return
            for event in session.receive_data(frames.feed(piece)):
                if isinstance(event, h2.events.RequestReceived):
                    streams[event.stream_id] = [dict(event.headers), b""]
                    session.send_headers(event.stream_id, [(":status", "200")])
                elif isinstance(event, h2.events.DataReceived):
                    state = streams[event.stream_id]
                    state[1] += event.data
                    session.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    while b"\r\n\r\n" in state[1]:
                        head, _, state[1] = state[1].partition(b"\r\n\r\n")
                        session.send_data(event.stream_id, self.answer(head, state[0], peer))
                elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                    streams.pop(event.stream_id, None)
            tls.sendall(session.data_to_send())

    def answer(self, head, connect, peer):
        body = json.dumps({"pod": self.name, "authority": connect[":authority"], "peer": peer,
                           "head": head.decode("latin-1")}).encode()
        return (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)) + body

    def cut(self):
        """Ends the tunnels that are there; new ones meet the context of now."""
        for tls in self.live:
            try:
                tls.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.live.clear()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)  # or accept() sleeps on, and wakes up on another's descriptor
        self.listener.close()
        self.cut()
