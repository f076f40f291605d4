"""Explain why apt could not read a package source or install from it, and which option to change. Pure.

Translates apt's output only into messages; the exit code decides whether it failed. The patterns match apt 2.6
(Debian 12, gpgv) and 3.0 (Debian 13, sqv) in locale C.
"""

from __future__ import annotations

import base64
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from provision.errors import HostError

MOST_SHOWN = 1200  # characters of apt's output in a message

# apt's text, its meaning, and which of "uri", "suite", "component" and "key" to change. The order matters: apt also
# reports consequences of a cause, such as an unsigned or unreadable source.
CAUSES = (
    ("EXPKEYSIG|KEYEXPIRED|Expired on ", "its signing key has expired", "key"),
    ("the public key .* cannot be read|holds no OpenPGP public key", "its public key is missing", "key"),
    ("NO_PUBKEY|Missing key", "it is signed by another key than the configured one", "key"),
    ("BADSIG|has been manipulated", "it was changed after signing", "uri"),
    (r"is expired \(invalid since", "its index has expired (Valid-Until)", "uri"),
    ("is not valid yet", "its index is dated in the future: check this host's clock", "uri"),
    ("Hash Sum mismatch|unexpected size", "its files do not match its index (damaged, or being updated)", "uri"),
    ("does not have a Release file", "it has no such suite", "suite"),
    ("is not signed", "it is not signed", "uri"),
    ("doesn't have the component", "it has no such component", "component"),
    ("Could not resolve|Temporary failure resolving", "its host name cannot be resolved", "uri"),
    ("(?:Could not|Unable to) connect|Cannot initiate|timed out|Network is unreachable", "it cannot be reached", "uri"),
)


def source(said: str, change: Mapping[str, str]) -> str:
    """Explain why a package source cannot be read; `change` maps the four words to variables or options."""
    for pattern, meaning, word in CAUSES:
        if re.search(pattern, said):
            return f"{meaning}; set {change[word]}. seen: {quote(said)}."
    return f"it cannot be read; check {change['uri']}. seen: {quote(said)}."


def failure(said: str) -> str:
    """Explain a failed installation: the missing package, the source or the file."""
    if missing := re.search(r"No package matching '([^']+)'|Unable to locate package (\S+)", said):
        return f"no package source of this host provides {missing[1] or missing[2]}."
    if file := re.search(r"Failed to fetch (\S+\.deb)\s+([^\n]+)", said):
        why = " ".join(file[2].split())
        return f"{file[1]} is in the index but cannot be downloaded ({why})."
    if "Failed to update apt cache" in said:
        cause = next((meaning for pattern, meaning, _ in CAUSES if re.search(pattern, said)), "it cannot be read")
        places = re.findall(r"\b(?:https?|file|copy):/[^\s,']+", said)
        where = " ".join(dict.fromkeys(places)) or "a source"
        return f"reading the package lists, {where}: {cause}. seen: {quote(said)}."
    if "unmet dependencies" in said:
        needed = re.findall(r"^ *(\S+ : .+|\s*Depends: .+)$", said, re.MULTILINE)
        return f"dependencies are not available: {' '.join(' '.join(needed).split())}."
    return f"seen: {quote(said)}."


def quote(said: str) -> str:
    """Return the errors and warnings of apt's output, without duplicates, on one line."""
    text = re.sub(r"\s+", " ", said).strip()
    messages = [part.strip(" ,") for part in re.split(r"(?=\b[EW]: ?)", text) if re.match(r"[EW]:", part)]
    return " ".join(dict.fromkeys(messages or [text]))[:MOST_SHOWN].rstrip(". ")


def unreadable(said: str, plan: Mapping[str, Any]) -> str:
    """Explain why the package source of a plan (plan.source) cannot be read, and what else could be set."""
    if not plan["hints"]:  # the distribution's own: only files of ours were placed
        return said
    return (
        f"cannot read the package source {plan['uri']} (suite {plan['suite']}, component {plan['component']}): "
        f"{source(said, plan['hints'])} The host's previous source is restored, nothing was installed, and a running "
        "server keeps running. Other values of postgresql_repository: distribution, pgdg, mirror, bundle."
    )


def not_installed(said: str, names: Sequence[str], plan: Mapping[str, Any]) -> str:
    """Explain why packages cannot be installed, where they come from (plan.source), and what to set instead."""
    place = "the distribution" if plan["kind"] == "distribution" else plan["uri"]
    return (
        f"cannot install {', '.join(names)}: {failure(said)} PostgreSQL's packages come from {place}: set "
        "postgresql_repository or postgresql_version to a source that has them; if pgvector's package is missing, "
        "set pgvector_install_method to source. No other package was changed, and a running server keeps running. "
        "Run again after the fix."
    )


def armoured(path: Path) -> str:
    """Read an OpenPGP public key, ASCII-armoured or binary, as armoured text. Raises HostError."""
    try:
        key = path.read_bytes()
    except OSError as error:
        raise HostError(f"the public key '{path}' cannot be read: {error.strerror}") from None
    if key.lstrip().startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----"):
        return key.decode()
    if key[:1] < b"\x80":  # every binary OpenPGP packet begins with this bit (RFC 9580, section 4.2)
        raise HostError(f"'{path}' holds no OpenPGP public key")
    # No checksum line: it is optional, and apt's own reader leaves it out.
    body = "\n".join(textwrap.wrap(base64.b64encode(key).decode(), 64))
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{body}\n-----END PGP PUBLIC KEY BLOCK-----\n"
