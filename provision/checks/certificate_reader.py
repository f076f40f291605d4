#!/usr/bin/env python3
"""Read certificates and keys (PEM) and verify chains, with python3-cryptography. Pure.

Works with cryptography 38 (Debian 12) and newer, so it verifies chains itself: x509.verification came with 42. Validity
is not judged here. A test compares the verdicts with OpenSSL's.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, SignatureAlgorithmOID

from .certificate import Certificate, Key, Seen, canonical

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

Extension = TypeVar("Extension", bound=x509.ExtensionType)

MINIMUM_RSA_BITS = 2048
"""OpenSSL's security level 2, Debian's default, refuses shorter RSA keys and SHA-1 signatures."""
WEAK_HASHES = ("md5", "sha1")
PSS_HASHES = (hashes.SHA256(), hashes.SHA384(), hashes.SHA512())
MAXIMUM_DEPTH = 8
"""Intermediate certificates in a chain; longer chains are loops."""
PURPOSES = {
    "server": (ExtendedKeyUsageOID.SERVER_AUTH,),
    "client": (ExtendedKeyUsageOID.CLIENT_AUTH,),
    "peer": (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
}


def inspect(
    authority: bytes | str, certificate: bytes | str, key: bytes | str, purpose: str, keeper: str, mode: int
) -> Seen:
    """Read the three texts (PEM). A str is the reason why there is none. `mode` and `keeper` are the key's."""
    roots = authority if isinstance(authority, str) else parse(authority)
    anchors = [] if isinstance(roots, str) else roots
    return Seen(
        authority=roots if isinstance(roots, str) else _authority_end(roots),
        certificate=certificate if isinstance(certificate, str) else _certificate(certificate, anchors, purpose),
        key=key if isinstance(key, str) else _key(key, keeper, mode),
    )


def parse(text: bytes) -> list[x509.Certificate] | str:
    """Read every certificate of a PEM text; a text is the reason why there is none."""
    blocks = re.findall(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    try:  # load_pem_x509_certificates came with cryptography 39
        found = [x509.load_pem_x509_certificate(block) for block in blocks]
        for each in found:
            _ = each.extensions  # read when first used: a damaged one must fail here
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        return f"contains a damaged certificate: {error}"
    return found or "contains no certificate (PEM)"


def _certificate(text: bytes, roots: list[x509.Certificate], purpose: str) -> Certificate | str:
    found = parse(text)
    if isinstance(found, str):
        return found
    leaf, *others = found
    common = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    begins, ends = validity(leaf)
    try:
        key = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        return f"contains a public key that cannot be read: {error}"
    return Certificate(
        common_name=str(common[0].value) if common else "",
        names=_names(leaf),
        begins=begins,
        ends=ends,
        public_key=_public_text(key),
        fingerprint=leaf.fingerprint(hashes.SHA256()).hex(),
        key_type=_key_type(key),
        untrusted=_unfit(leaf, purpose) or _chain(leaf, others, roots, purpose),
        weakness=_weakness(leaf, key),
        intermediates_end=min((validity(each)[1] for each in others), default=float("inf")),
    )


def validity(certificate: x509.Certificate) -> tuple[float, float]:
    """Return begin and end in seconds since 1970. The attributes with a time zone came with cryptography 42."""
    begins, ends = (
        getattr(certificate, f"{name}_utc", None) or getattr(certificate, name).replace(tzinfo=datetime.UTC)
        for name in ("not_valid_before", "not_valid_after")
    )
    return begins.timestamp(), ends.timestamp()


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    found = _extension(certificate, x509.SubjectAlternativeName) or ()
    return tuple(canonical(str(each.value)) for each in found if isinstance(each, x509.DNSName | x509.IPAddress))


def _extension(certificate: x509.Certificate, kind: type[Extension]) -> Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _public_text(key: PublicKeyTypes) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode().strip()


def _key_type(key: PublicKeyTypes) -> str:
    kinds = {"rsa": rsa.RSAPublicKey, "ecdsa": ec.EllipticCurvePublicKey, "ed25519": ed25519.Ed25519PublicKey}
    return next((name for name, kind in kinds.items() if isinstance(key, kind)), type(key).__name__)


def _weakness(certificate: x509.Certificate, key: PublicKeyTypes) -> str:
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MINIMUM_RSA_BITS:
        return f"RSA key of {key.key_size} bits; allowed: {MINIMUM_RSA_BITS} or more"
    try:
        digest = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return ""
    if digest and digest.name in WEAK_HASHES:
        return f"signed with {digest.name}; allowed: sha256 or stronger"
    return ""


def _key(text: bytes, keeper: str, mode: int) -> Key:
    # An old openssl writes the curve's parameters in a block before the key.
    block = re.search(rb"-----BEGIN ([A-Z]+ )*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", text, re.DOTALL)
    try:
        key = load_pem_private_key(block[0] if block else text, None)
    except TypeError:
        return Key(keeper, mode, unreadable="encrypted; expected a key without a passphrase")
    except (ValueError, UnsupportedAlgorithm):
        return Key(keeper, mode, unreadable="contains no private key (PEM)")
    return Key(keeper, mode, public_key=_public_text(key.public_key()))


def _authority_end(roots: list[x509.Certificate]) -> float | str:
    for each in roots:
        constraints = _extension(each, x509.BasicConstraints)
        if not (constraints and constraints.ca):
            return "contains a certificate that is not a CA certificate (CA:TRUE is missing)"
    return min(validity(each)[1] for each in roots)


def _unfit(certificate: x509.Certificate, purpose: str) -> str:
    """Explain why a certificate must not be used for a purpose; RFC 5280, sections 4.2.1.3 and 4.2.1.12."""
    uses = _extension(certificate, x509.ExtendedKeyUsage)
    if uses and not set(PURPOSES[purpose]) <= set(uses):
        return f"extended key usage excludes {purpose} authentication"
    usage = _extension(certificate, x509.KeyUsage)
    if usage:
        encipherment = purpose != "client" and usage.key_encipherment
        if not (usage.digital_signature or usage.key_agreement or encipherment):
            return f"key usage excludes {purpose} authentication"
    return ""


def _chain(
    certificate: x509.Certificate,
    others: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    purpose: str,
    below: int = 0,
) -> str:
    """Return "" if a chain leads to a self-signed root, else the reason why none does; validity is judged elsewhere."""
    reason = f"issuer {certificate.issuer.rfc4514_string()} not found"
    for issuer in [*roots, *others]:
        if issuer.subject != certificate.issuer:
            continue
        if not _signed(certificate, issuer):
            reason = f"the signature is not one of issuer {certificate.issuer.rfc4514_string()}"
        elif problem := _no_issuer(issuer, purpose, below):
            reason = problem
        elif issuer in roots and issuer.subject == issuer.issuer:
            return ""
        else:
            above = below + 1
            reason = _chain(issuer, others, roots, purpose, above) if above <= MAXIMUM_DEPTH else "the chain is a loop"
            if not reason:
                return ""
    return reason


def _no_issuer(issuer: x509.Certificate, purpose: str, below: int) -> str:
    name = issuer.subject.rfc4514_string()
    constraints = _extension(issuer, x509.BasicConstraints)
    if not (constraints and constraints.ca):
        return f"issuer {name} is not a CA"
    if constraints.path_length is not None and below > constraints.path_length:
        return f"issuer {name} allows {constraints.path_length} intermediate certificates"
    usage, uses = _extension(issuer, x509.KeyUsage), _extension(issuer, x509.ExtendedKeyUsage)
    if usage and not usage.key_cert_sign:
        return f"issuer {name} may not sign certificates (key usage)"
    if uses and not set(PURPOSES[purpose]) <= set(uses):
        return f"issuer {name} may not issue {purpose} certificates (extended key usage)"
    return ""


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Verify a signature; cryptography 40 has verify_directly_issued_by for it, 38 does not."""
    signature, content = certificate.signature, certificate.tbs_certificate_bytes
    try:
        key = issuer.public_key()
        if certificate.signature_algorithm_oid == SignatureAlgorithmOID.RSASSA_PSS:
            # 38 does not give the parameters: one of these hashes, with any length of salt.
            forms: list[tuple[Any, Any]] = [
                (padding.PSS(padding.MGF1(each), padding.PSS.AUTO), each) for each in PSS_HASHES
            ]
        else:
            forms = [(padding.PKCS1v15(), certificate.signature_hash_algorithm)]
    except (UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return any(_verified(key, signature, content, form, digest) for form, digest in forms)


def _verified(key: PublicKeyTypes, signature: bytes, content: bytes, form: Any, digest: Any) -> bool:
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, content, form, digest)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, content, ec.ECDSA(digest))
        elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            key.verify(signature, content)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True
