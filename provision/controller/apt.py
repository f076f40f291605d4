"""Say why apt could not read a package source or install from it, and what to set instead. Pure.

Only words for a person are taken from what apt says; whether it failed is its exit code's matter. The texts are those
of apt 2.6 (Debian 12, gpgv) and 3.0 (Debian 13, sqv) in the locale C.
"""

from __future__ import annotations

import base64
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from provision.errors import HostError

MOST_SHOWN = 1200  # characters of apt's own words: a long list of hashes helps nobody

# What apt says, what it means, and which of "uri", "suite", "component" and "key" a person would change. In this order,
# for what follows from one cause (nothing could be read, nothing is signed) is also said of others.
CAUSES = (
    ("EXPKEYSIG|KEYEXPIRED|Expired on ", "the key that is to verify it has expired", "key"),
    ("the public key .* cannot be read|holds no OpenPGP public key", "its public key is not there", "key"),
    ("NO_PUBKEY|Missing key", "it is signed by another key than the one that is given", "key"),
    ("BADSIG|has been manipulated", "it was changed after it had been signed", "uri"),
    (r"is expired \(invalid since", "it was not renewed in time (its Valid-Until is past)", "uri"),
    ("is not valid yet", "it was made in the future: compare this host's clock", "uri"),
    ("Hash Sum mismatch|unexpected size", "its files are not what its index says (damaged, or just renewed)", "uri"),
    ("does not have a Release file", "it has no such suite", "suite"),
    ("is not signed", "nobody signed it", "uri"),
    ("doesn't have the component", "it has no such component", "component"),
    ("Could not resolve|Temporary failure resolving", "the name of its host cannot be resolved", "uri"),
    ("(?:Could not|Unable to) connect|Cannot initiate|timed out|Network is unreachable", "it cannot be reached", "uri"),
)


def source(said: str, change: Mapping[str, str]) -> str:
    """Say why a package source cannot be read and what to set; `change` names that for each of the four words."""
    for pattern, meaning, word in CAUSES:
        if re.search(pattern, said):
            return f"{meaning}; set {change[word]}. seen: {quote(said)}."
    return f"it cannot be read; compare {change['uri']}. seen: {quote(said)}."


def failure(said: str) -> str:
    """Say which package cannot be had, or which source or file, and at which stage."""
    if missing := re.search(r"No package matching '([^']+)'|Unable to locate package (\S+)", said):
        return f"no package source of this host has {missing[1] or missing[2]}."
    if file := re.search(r"Failed to fetch (\S+\.deb)\s+([^\n]+)", said):
        why = " ".join(file[2].split())
        return f"{file[1]} is listed, but cannot be downloaded ({why})."
    if "Failed to update apt cache" in said:
        cause = next((meaning for pattern, meaning, _ in CAUSES if re.search(pattern, said)), "it cannot be read")
        places = re.findall(r"\b(?:https?|file|copy):/[^\s,']+", said)
        where = " ".join(dict.fromkeys(places)) or "a source"
        return f"reading the package lists, {where}: {cause}. seen: {quote(said)}."
    if "unmet dependencies" in said:
        needed = re.findall(r"^ *(\S+ : .+|\s*Depends: .+)$", said, re.MULTILINE)
        return f"packages that they need are not to be had: {' '.join(' '.join(needed).split())}."
    return f"seen: {quote(said)}."


def quote(said: str) -> str:
    """Keep of apt's output the errors and warnings, each once and on one line."""
    text = re.sub(r"\s+", " ", said).strip()
    told = [part.strip(" ,") for part in re.split(r"(?=\b[EW]: ?)", text) if re.match(r"[EW]:", part)]
    return " ".join(dict.fromkeys(told or [text]))[:MOST_SHOWN].rstrip(". ")


def unreadable(said: str, plan: Mapping[str, Any]) -> str:
    """Say why the package source of a plan (plan.source) cannot be read, and what else could be set."""
    if not plan["hints"]:  # the distribution's own: only files of ours were placed
        return said
    return (
        f"cannot read the package source {plan['uri']} (suite {plan['suite']}, component {plan['component']}): "
        f"{source(said, plan['hints'])} The host's previous source is restored, nothing was installed, and a running "
        "server goes on. Other values of postgresql_repository: distribution, pgdg, mirror, bundle."
    )


def not_installed(said: str, names: Sequence[str], plan: Mapping[str, Any]) -> str:
    """Say why packages cannot be installed, where they come from (plan.source), and what to set instead."""
    place = "the distribution" if plan["kind"] == "distribution" else plan["uri"]
    return (
        f"cannot install {', '.join(names)}: {failure(said)} PostgreSQL's packages come from {place}: set "
        "postgresql_repository or postgresql_version to a source that has them; where pgvector's package is missing, "
        "set pgvector_install_method to source. The other packages of this host are as they were, and a running server "
        "goes on. Run again when it is fixed."
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
