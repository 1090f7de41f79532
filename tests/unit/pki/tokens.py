"""Bearer tokens made by python3-cryptography, good ones and what has been tried against verifiers: one
line of JSON a case.

  {"case", "keys": PEM or JWKS, "token", "why": "" for good ones, else a part of the refusal}
All are issued at the time AT, for an hour.
"""

import base64
import hashlib
import hmac
import json

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

AT = 1_800_000_000
ISSUER = "https://kubernetes.default.svc.cluster.local"
RSA, OTHER_RSA = (rsa.generate_private_key(65537, 2048) for _ in range(2))
P256, P384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
P521, SECP256K1 = ec.generate_private_key(ec.SECP521R1()), ec.generate_private_key(ec.SECP256K1())
ED = ed25519.Ed25519PrivateKey.generate()
HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value, size=None):
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def pem(*keys):
    return "".join(k.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode() for k in keys)


def jwk(key, **more):
    public = key.public_key()
    if isinstance(key, rsa.RSAPrivateKey):
        n = public.public_numbers()
        out = {"kty": "RSA", "n": number(n.n), "e": number(n.e)}
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        n, size = public.public_numbers(), (key.key_size + 7) // 8
        curve = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521",
                 "secp256k1": "secp256k1"}[key.curve.name]
        out = {"kty": "EC", "crv": curve, "x": number(n.x, size), "y": number(n.y, size)}
    else:
        out = {"kty": "OKP", "crv": "Ed25519", "x": b64(public.public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw))}
    return out | more


def jwks(*keys):
    return json.dumps({"keys": list(keys)})


def claims(**change):
    out = {"iss": ISSUER, "aud": ["istio-ca"], "sub": "system:serviceaccount:shop:web", "iat": AT,
           "nbf": AT, "exp": AT + 3600, "jti": "a-b-c",
           "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "web", "uid": "u0"},
                             "pod": {"name": "web-1", "uid": "u1"}, "node": {"name": "n1", "uid": "u2"}}}
    out |= change
    return {k: v for k, v in out.items() if v is not None}


def sign(key, alg, text):
    if alg.startswith("RS"):
        return key.sign(text, padding.PKCS1v15(), HASHES[alg[2:]])
    if alg.startswith("PS"):
        return key.sign(text, padding.PSS(padding.MGF1(HASHES[alg[2:]]), 32), HASHES[alg[2:]])
    if alg.startswith("ES"):
        size = (key.key_size + 7) // 8
        r, s = utils.decode_dss_signature(key.sign(text, ec.ECDSA(HASHES[alg[2:]])))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    if alg.startswith("HS"):
        return hmac.new(key, text, hashlib.sha256).digest()
    return key.sign(text)


def token(key, alg, body=None, header=None, sign_as=None):
    head = json.dumps({"alg": alg} | (header or {})) if not isinstance(header, str) else header
    body = body if isinstance(body, str) else json.dumps(body or claims())
    text = b64(head.encode()) + "." + b64(body.encode())
    return text + "." + b64(sign(key, sign_as or alg, text.encode()))


def say(case, keys, made, why=""):
    print(json.dumps({"case": case, "keys": keys, "token": made, "why": why}))


def algorithms():
    signer = "the signature does not verify"
    none = "no key for its algorithm and kid"
    kid = {"kid": "one"}
    for alg, key in {"RS256": RSA, "RS384": RSA, "RS512": RSA, "ES256": P256, "ES384": P384,
                     "EdDSA": ED}.items():
        say(f"{alg} of a set", jwks(jwk(key, kid="one", alg=alg, use="sig")), token(key, alg, header=kid))
        say(f"{alg} without kid", jwks(jwk(key, kid="one", alg=alg)), token(key, alg))
        say(f"{alg} of another kid", jwks(jwk(key, kid="two", alg=alg)), token(key, alg, header=kid), none)
    for alg, key in {"RS256": RSA, "ES256": P256, "ES384": P384, "EdDSA": ED}.items():
        say(f"{alg} of a PEM file", pem(RSA, P256, P384, ED), token(key, alg, header=kid))
    say("two keys in rotation", jwks(jwk(OTHER_RSA, kid="old"), jwk(RSA, kid="one")),
        token(RSA, "RS256", header=kid))
    say("the wrong one of two", jwks(jwk(OTHER_RSA, kid="one"), jwk(RSA, kid="two")),
        token(RSA, "RS256", header=kid), signer)
    say("kinds that are not ours beside it", jwks(
        {"kty": "oct", "k": "c2VjcmV0"}, jwk(P521), jwk(SECP256K1), jwk(P256, use="enc"), jwk(ED)),
        token(ED, "EdDSA"))
    say("RS384 by a key for RS256", pem(RSA), token(RSA, "RS384"), none)
    say("RS256 by a key for RS512", jwks(jwk(RSA, alg="RS512")), token(RSA, "RS256"), none)
    say("PS256", pem(RSA), token(RSA, "PS256"), none)
    say("PS256 called RS256", pem(RSA), token(RSA, "RS256", sign_as="PS256"), signer)
    say("HS256 with the public key", pem(RSA), token(pem(RSA).encode(), "HS256"), none)
    say("HS256 with the public key called RS256", pem(RSA),
        token(pem(RSA).encode(), "RS256", sign_as="HS256"), signer)
    say("ES256 in DER", pem(P256), der_token(), signer)
    say("ES384 by P-256", pem(P256), token(P256, "ES384"), none)
    say("EdDSA signature as ES256", pem(P256, ED), token(ED, "ES256", sign_as="EdDSA"), signer)
    for alg in ("none", "None", "", "rs256", "RS256 "):
        say(f"alg {alg!r}", pem(RSA, P256), token(RSA, alg, sign_as="RS256"), none)
    say("no alg", pem(RSA), token(RSA, "RS256", header='{"typ":"JWT"}'), none)
    say("unsigned", pem(RSA), token(RSA, "RS256").rsplit(".", 1)[0] + ".", signer)
    zeros = token(P256, "ES256").rsplit(".", 1)[0] + "." + b64(bytes(64))
    say("r and s are zero", pem(P256), zeros, signer)
    say("a key in the header", pem(P256), token(ED, "EdDSA", header={"jwk": jwk(ED)}), none)


def der_token():
    text = token(P256, "ES256").rsplit(".", 1)[0]
    return text + "." + b64(P256.sign(text.encode(), ec.ECDSA(hashes.SHA256())))


def contents():
    def case(name, why="", **change):
        say(name, pem(RSA), token(RSA, "RS256", claims(**change)), why)
    case("as Kubernetes makes them")
    case("one audience as a string", aud="istio-ca")
    case("one of several audiences", aud=["https://kubernetes.default.svc", "istio-ca"])
    case("not bound to a pod", **{"kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "web"}}})
    case("another issuer", "issuer", iss="https://evil.example")
    case("issuer with a slash more", "issuer", iss=ISSUER + "/")
    case("no issuer", "issuer", iss=None)
    case("a list of issuers", "issuer", iss=[ISSUER])
    case("another audience", "audience", aud=["vault"])
    case("no audience", "audience", aud=None)
    case("an audience inside of one", "audience", aud=["istio-ca-2", ["istio-ca"], {"istio-ca": 1}])
    case("expired", "expired", exp=AT - 61)
    case("expired within the skew", exp=AT - 30)
    case("no end", "no exp", exp=None)
    case("end as text", "no exp", exp=str(AT + 9999))
    case("negative end", "no exp", exp=-1)
    case("end beyond all clocks", exp=10 ** 18)
    case("begins later", "not valid before", nbf=AT + 61)
    case("issued later", "not valid before", iat=AT + 61)
    case("issued a little later", iat=AT + 59, nbf=AT + 59)
    case("begin as text", "not a time", nbf="soon")
    case("sub is another", "disagree", sub="system:serviceaccount:kube-system:admin")
    case("names nobody", "no service account", **{"kubernetes.io": {}})
    twice = json.dumps(claims())[:-1]
    say("aud twice", pem(RSA), token(RSA, "RS256", twice + ', "aud": "istio-ca"}'), "not one JSON object")
    nested = twice.replace('"namespace": "shop"', '"namespace": "shop", "namespace": "kube-system"') + "}"
    say("namespace twice", pem(RSA), token(RSA, "RS256", nested), "not one JSON object")
    escaped = twice + ', "\\u0061ud": "vault"}'
    say("aud twice, once escaped", pem(RSA), token(RSA, "RS256", escaped), "not one JSON object")
    say("alg twice", pem(RSA), token(RSA, "RS256", header='{"alg":"none","alg":"RS256"}'), "header")
    say("crit", pem(RSA), token(RSA, "RS256", header={"crit": ["exp"]}), "crit")
    deep = json.dumps(claims())[:-1] + ', "x": ' + "[" * 40 + "]" * 40 + "}"
    say("deeply nested", pem(RSA), token(RSA, "RS256", deep), "not one JSON object")
    say("claims are a list", pem(RSA), token(RSA, "RS256", "[]"), "not one JSON object")


def forms():
    good = token(RSA, "RS256")
    head, body, signature = good.split(".")
    for name, text, why in (
            ("padded", good + "=", "base64url"), ("of another alphabet", f"{head}.{body}.+/+/", "base64url"),
            ("a line break", good + "\n", "base64url"), ("four parts", good + ".x", "base64url"),
            ("two parts", f"{head}.{body}", "compact"), ("empty", "", "compact"), ("dots", "..", "header"),
            ("left-over bits", good[:-1] + other_tail(good[-1]), "base64url"),
            ("large", good + "A" * 16384, "larger")):
        say(name, pem(RSA), text, why)


def other_tail(last):
    """Another letter for the same bytes: 256 bytes leave four bits that must be zero."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return alphabet[alphabet.index(last) + 1]


algorithms()
contents()
forms()
