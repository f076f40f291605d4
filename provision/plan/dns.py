"""Judge names and addresses for certificates, and convert names to A-labels. Pure.

Certificates, servers and clients compare A-labels (RFC 6125, section 6.4.2). A name outside ASCII is converted by the
library idna (IDNA 2008), which only the controller needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from provision import addresses

LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?")
"""Underscores occur in names of containers and services, and clients compare them literally."""
LONGEST_LABEL, LONGEST_NAME = 63, 253
"""RFC 1035, section 2.3.4."""
EXAMPLES = "db.example.com, *.example.com or 203.0.113.7"


def certificate_name(text: str) -> str:
    """Return a name or address in the form for a certificate: A-labels in lower case, the shortest form of an address.

    Raises ValueError with the reason and, if there is one, the form to write.
    """
    address = addresses.parsed(text)
    if address:
        return str(address)
    _refuse_forms(text)
    name = _ascii(text.removesuffix(".")).lower()
    labels = name.split(".")
    if labels[0] == "*":
        labels = labels[1:]
        if len(labels) < 2:
            raise ValueError("a wildcard needs at least two labels after it, as in *.example.com")
    for label in labels:
        if not LABEL.fullmatch(label):
            raise ValueError(f"{label!r} is not a label of a DNS name")
        if len(label) > LONGEST_LABEL:
            raise ValueError(f"a label has {len(label)} characters; at most {LONGEST_LABEL} are allowed")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"the name has {len(name)} characters; at most {LONGEST_NAME} are allowed")
    if labels[-1].isdigit():
        raise ValueError("neither an IP address nor a DNS name (its last label is a number)")
    return name


def certificate_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in the form for a certificate, each once; a name that cannot be converted is unchanged."""
    return tuple(dict.fromkeys(_lenient(name) for name in names))


def _lenient(name: str) -> str:
    try:
        return certificate_name(name)
    except ValueError:
        return name


def _refuse_forms(text: str) -> None:
    """Refuse a URL, an address with a prefix or zone, or a host with a port, and say what to write."""
    if not text.strip():
        raise ValueError("empty")
    host, slash, _ = text.partition("/")
    if slash and addresses.parsed(host):
        raise ValueError(f"an address with a prefix length; write {host}")
    if "%" in text:
        raise ValueError(f"an address with a zone; write {text.partition('%')[0].lstrip('[')}")
    inner = re.split(r"[/?#]", text.partition("://")[2] or text)[0].rpartition("@")[2]
    bare = inner[1:].partition("]")[0] if inner.startswith("[") else re.sub(r":\d*$", "", inner)
    if bare != text and bare:
        kind = (
            "a URL" if "://" in text else "an address in brackets" if text.startswith("[") else "more than a host name"
        )
        raise ValueError(f"{kind}; write {bare}")
    if re.search(r"\s", text):
        raise ValueError("contains white space")


def _ascii(text: str) -> str:
    """Convert a name to A-labels; a wildcard label stays."""
    if text.isascii():
        return text
    try:
        import idna  # on the controller only, and only for such a name
    except ImportError:
        raise ValueError("a non-ASCII name; write its A-labels (xn--...), or run pip install idna") from None
    star, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    try:
        return star + idna.encode(name, uts46=True).decode()
    except idna.IDNAError as error:
        raise ValueError(f"not an internationalized name (IDNA 2008): {error}") from None
