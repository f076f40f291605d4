"""SCRAM verifiers and strong random values. Pure but for the randomness; prints and stores nothing.

The server is only ever given a verifier, so no clear-text password reaches it, its log or pg_stat_statements.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

from provision.errors import UsageError

ITERATIONS = 4096  # what PostgreSQL itself uses (scram_iterations, 16 and newer)
SALT_BYTES = 16
PASSWORD_BYTES = 24  # 32 characters of base64url: 192 bits


def new_password() -> str:
    """Make a password that needs no quoting in a URL, a shell or a configuration file."""
    return secrets.token_urlsafe(PASSWORD_BYTES)


def new_salt() -> str:
    """Make a salt, in base64, to be stored beside its password so that the verifier stays the same."""
    return base64.b64encode(secrets.token_bytes(SALT_BYTES)).decode()


def scram_verifier(password: str, salt: str, iterations: int = ITERATIONS) -> str:
    """Compute what pg_authid.rolpassword holds for a password (RFC 5803, RFC 7677). Raises UsageError as `check`."""
    raw = check(password, salt)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), raw, iterations)
    stored = hashlib.sha256(_mac(salted, b"Client Key")).digest()
    server = _mac(salted, b"Server Key")
    return f"SCRAM-SHA-256${iterations}:{salt}${_text(stored)}:{_text(server)}"


def check(password: str, salt: str) -> bytes:
    """Return the bytes of a salt in base64, without the milliseconds that a verifier takes.

    Only ASCII passwords are taken: others would have to be normalised with SASLprep first, and a difference there would
    lock the role out. Raises UsageError.
    """
    if not password or not password.isascii() or not password.isprintable():
        raise UsageError(
            "this password cannot be used",
            seen="it is empty or has characters outside printable ASCII",
            allowed="printable ASCII characters",
        )
    try:
        raw = base64.b64decode(salt, validate=True)
        if not raw:
            raise ValueError
    except ValueError:
        raise UsageError("this salt cannot be used", allowed="base64, as `openssl rand -base64 16` prints") from None
    return raw


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


CLUSTER_LOGINS = ("root", "patroni", "pooler", "follower")
"""Users of etcd: its administrator, Patroni, a member's programs, and the follower of a host with a pooler alone."""
REST_USER = "provision"
"""User of Patroni's REST API."""


def cluster(passphrase: str) -> dict[str, dict[str, str]]:
    """Derive every password inside a cluster from its passphrase: all members compute the same ones.

    Each is HMAC-SHA256 of its purpose, keyed with the passphrase, so that none reveals another (RFC 5869 does so).
    """
    return {
        "etcd": {name: _derived(passphrase, f"etcd {name}") for name in CLUSTER_LOGINS},
        "rest": {"username": REST_USER, "password": _derived(passphrase, "rest")},
    }


def _derived(passphrase: str, purpose: str) -> str:
    raw = _mac(passphrase.encode(), f"provision cluster: {purpose}".encode())
    return base64.urlsafe_b64encode(raw)[:PASSWORD_CHARACTERS].decode()


PASSWORD_CHARACTERS = 32
