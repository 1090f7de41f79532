"""Certificates for the table of the X.509-SVID profile, made by python3-cryptography: one line of JSON
a case, with what a verifier must say. The reader checks form only, so each is signed by its own key.

  {"case", "role": leaf|client|server|signer, "why": "" for good ones, else a part of the refusal, "pem"}
"""

import datetime
import json

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku

GOOD = "spiffe://cluster.local/ns/shop/sa/web"
KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([])
NOW = datetime.datetime.utcnow()
USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
          "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")


def certificate(uris=(GOOD,), usage=("digital_signature",), eku=(Eku.CLIENT_AUTH, Eku.SERVER_AUTH),
                ca=False, others=()):
    builder = (x509.CertificateBuilder().subject_name(NAME).issuer_name(NAME)
               .public_key(KEY.public_key()).serial_number(x509.random_serial_number())
               .not_valid_before(NOW).not_valid_after(NOW + datetime.timedelta(hours=1)))
    names = [x509.UniformResourceIdentifier(u) for u in uris] + list(others)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    if usage is not None:
        flags = {name: name in usage for name in USAGES}
        builder = builder.add_extension(x509.KeyUsage(**flags), critical=True)
    if eku:
        builder = builder.add_extension(x509.ExtendedKeyUsage(eku), critical=False)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    return builder.sign(KEY, hashes.SHA256())


def der_patched(old, new, **options):
    """A certificate in which bytes were exchanged after signing: what no library makes."""
    der = certificate(**options).public_bytes(serialization.Encoding.DER)
    assert der.count(old) == 1 and len(old) == len(new)
    return x509.load_der_x509_certificate(der.replace(old, new))


def twice_named():
    """Two subjectAltName extensions: the second came under another identifier of the same length."""
    spare = x509.ObjectIdentifier("2.5.29.99")
    other = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(GOOD + "2")]).public_bytes()
    builder = (x509.CertificateBuilder().subject_name(NAME).issuer_name(NAME)
               .public_key(KEY.public_key()).serial_number(1)
               .not_valid_before(NOW).not_valid_after(NOW + datetime.timedelta(hours=1))
               .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(GOOD)]), True)
               .add_extension(x509.KeyUsage(True, *[False] * 8), True)
               .add_extension(x509.UnrecognizedExtension(spare, other), False))
    der = builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    return x509.load_der_x509_certificate(der.replace(b"\x06\x03\x55\x1d\x63", b"\x06\x03\x55\x1d\x11"))


def say(case, cert, why="", role="leaf"):
    pem = cert.public_bytes(serialization.Encoding.PEM).decode()
    print(json.dumps({"case": case, "role": role, "why": why, "pem": pem}))


def main():
    say("as Istio's CA makes them", certificate(usage=("digital_signature", "key_encipherment")))
    say("no basicConstraints", certificate(ca=None))
    say("no extendedKeyUsage", certificate(eku=()))
    say("DNS and address beside it", certificate(
        others=[x509.DNSName("web.shop.svc"), x509.RFC822Name("a@b.example")]))
    say("longest trust domain", certificate(uris=(f"spiffe://{'t' * 255}/ns/n/sa/s",)))
    say("longest name", certificate(uris=("spiffe://td/ns/n/sa/" + "s" * (2048 - 20),)))

    say("no name at all", certificate(uris=()), "0 URI names")
    say("DNS only", certificate(uris=(), others=[x509.DNSName("cluster.local")]), "0 URI names")
    say("two names", certificate(uris=(GOOD, GOOD + "2")), "2 URI names")
    say("the same name twice", certificate(uris=(GOOD, GOOD)), "2 URI names")
    say("a web page beside it", certificate(uris=(GOOD, "https://shop.example/")), "2 URI names")
    say("two subjectAltNames", twice_named(), "twice")
    say("NUL in the name", der_patched(b"/sa/web", b"/sa/w\x00b"), "service account")
    for name, uri in {
            "no scheme": "cluster.local/ns/shop/sa/web", "https": "https://cluster.local/ns/shop/sa/web",
            "upper-case scheme": "SPIFFE://cluster.local/ns/shop/sa/web",
            "no trust domain": "spiffe:///ns/shop/sa/web",
            "upper-case trust domain": "spiffe://Cluster.local/ns/shop/sa/web",
            "port": "spiffe://cluster.local:443/ns/shop/sa/web",
            "user": "spiffe://me@cluster.local/ns/shop/sa/web",
            "query": GOOD + "?a=b", "fragment": GOOD + "#a", "percent": GOOD + "%2e",
            "trailing slash": GOOD + "/", "empty part": "spiffe://cluster.local/ns//sa/web",
            "dots": "spiffe://cluster.local/ns/../sa/web", "dot": "spiffe://cluster.local/ns/./sa/web",
            "space": "spiffe://cluster.local/ns/shop/sa/we b", "no path": "spiffe://cluster.local",
            "another shape": "spiffe://cluster.local/workload/web",
            "long trust domain": f"spiffe://{'t' * 256}/ns/n/sa/s",
            "too long": "spiffe://td/ns/n/sa/" + "s" * (2049 - 20)}.items():
        say(name, certificate(uris=(uri,)), "SPIFFE ID")

    say("a CA as a leaf", certificate(ca=True), "no workload's")
    say("no keyUsage", certificate(usage=None), "no keyUsage")
    say("no digitalSignature", certificate(usage=("key_agreement",)), "digitalSignature")
    say("keyCertSign", certificate(usage=("digital_signature", "key_cert_sign")), "keyCertSign")
    say("cRLSign", certificate(usage=("digital_signature", "crl_sign")), "cRLSign")
    say("server only, own", certificate(eku=(Eku.SERVER_AUTH,)), "clientAuth")
    say("client only, own", certificate(eku=(Eku.CLIENT_AUTH,)), "serverAuth")
    say("for code", certificate(eku=(Eku.CODE_SIGNING,)), "clientAuth", "client")
    say("for anything", certificate(eku=(x509.ObjectIdentifier("2.5.29.37.0"),)), "serverAuth", "server")
    say("server as server", certificate(eku=(Eku.SERVER_AUTH,)), "", "server")
    say("client as client", certificate(eku=(Eku.CLIENT_AUTH,)), "", "client")
    say("server as client", certificate(eku=(Eku.SERVER_AUTH,)), "clientAuth", "client")
    say("client as server", certificate(eku=(Eku.CLIENT_AUTH,)), "serverAuth", "server")

    signs = ("key_cert_sign", "crl_sign")
    say("issuer", certificate(uris=(), usage=signs, eku=(), ca=True), "", "signer")
    say("issuer of a trust domain", certificate(uris=("spiffe://td",), usage=signs, eku=(), ca=True), "",
        "signer")
    say("leaf as issuer", certificate(), "no CA", "signer")
    say("issuer without usage", certificate(uris=(), usage=None, eku=(), ca=True), "keyCertSign", "signer")
    say("issuer that signs CRLs only", certificate(uris=(), usage=("crl_sign",), eku=(), ca=True),
        "keyCertSign", "signer")
    say("issuer with a workload's name", certificate(usage=signs, eku=(), ca=True), "trust domain", "signer")
    say("issuer with two names", certificate(uris=("spiffe://a", "spiffe://b"), usage=signs, eku=(), ca=True),
        "more than one", "signer")


main()
