#!/usr/bin/env python3
"""Judge certificates before a server loads them: key, owner, mode, validity, names and chain.

`judge` and `due` are pure; `look` reads files. Nothing here prints a key or changes a file. Names are compared as in
RFC 6125: a wildcard matches one label, an IP address matches only itself. The Ansible module `tls_certificates`
carries this file and `certificate_reader` to the host, hence the relative imports.
"""

from __future__ import annotations

import datetime
import grp
import ipaddress
import pwd
from dataclasses import dataclass
from pathlib import Path

RENEW_BELOW = 1 / 3
"""Renew when less than this share of the lifetime is left: of 397 days the last 132."""
DAY_S = 86400


@dataclass(frozen=True)
class Leaf:
    """What a certificate and its key must be. `keeper` is the key's OWNER:GROUP, "" for any."""

    certificate: Path
    key: Path
    names: tuple[str, ...] = ()
    common_name: str = ""
    purpose: str = "server"
    keeper: str = "root:ssl-cert"


@dataclass(frozen=True)
class Certificate:
    """Contents of a certificate file; times in seconds since 1970. `untrusted` and `weakness` are reasons, or ""."""

    common_name: str
    names: tuple[str, ...]
    begins: float
    ends: float
    public_key: str
    fingerprint: str
    key_type: str = "ecdsa"
    untrusted: str = ""
    weakness: str = ""
    intermediates_end: float = float("inf")


@dataclass(frozen=True)
class Key:
    """Owner, mode and public half of a key; `unreadable` is the reason why there is no public half."""

    keeper: str
    mode: int
    public_key: str = ""
    unreadable: str = ""


@dataclass(frozen=True)
class Seen:
    """Authority's end, certificate and key as found. A text instead of a value is the reason why it cannot be read."""

    authority: float | str
    certificate: Certificate | str
    key: Key | str


def judge(leaf: Leaf, authority: Path, seen: Seen, now: float) -> list[str]:
    """Return every reason why a server must not load these files, each with its file."""
    found = []
    if isinstance(seen.authority, str):
        found.append(f"{authority}: {seen.authority}")
    elif seen.authority <= now:
        found.append(f"{authority}: the CA expired on {day(seen.authority)}")
    if isinstance(seen.key, str):
        found.append(f"{leaf.key}: {seen.key}")
    else:
        found += [f"{leaf.key}: {problem}" for problem in _keeping(leaf, seen.key)]
    if isinstance(seen.certificate, str):
        return [*found, f"{leaf.certificate}: {seen.certificate}"]
    problems = _content(leaf, seen.certificate, now)
    if not isinstance(seen.authority, str) and seen.certificate.untrusted:
        problems.append(f"not issued by {authority} for a {leaf.purpose}: {seen.certificate.untrusted}")
    if isinstance(seen.key, Key) and seen.key.public_key and seen.key.public_key != seen.certificate.public_key:
        problems.append(f"does not match the key {leaf.key}")
    return found + [f"{leaf.certificate}: {problem}" for problem in problems]


def _keeping(leaf: Leaf, key: Key) -> list[str]:
    found = []
    if key.mode & 0o007:
        found.append(f"mode {key.mode:04o} gives other users access to the key; allowed: 0640 or less")
    elif key.mode & 0o137:
        found.append(f"mode {key.mode:04o}; allowed: 0640 or less")
    if leaf.keeper and key.keeper != leaf.keeper:
        found.append(f"owner {key.keeper}; expected {leaf.keeper}")
    return found + ([key.unreadable] if key.unreadable else [])


def _content(leaf: Leaf, certificate: Certificate, now: float) -> list[str]:
    found = []
    if now < certificate.begins:
        found.append(f"not valid before {day(certificate.begins)}; this host's clock says {day(now)}")
    if now >= certificate.ends:
        found.append(f"expired on {day(certificate.ends)}")
    if now >= certificate.intermediates_end:
        found.append(f"an intermediate certificate expired on {day(certificate.intermediates_end)}")
    missing = ", ".join(name for name in leaf.names if not covers(certificate.names, name))
    if missing and certificate.names:
        found.append(f"valid for {', '.join(certificate.names)}, not for {missing}")
    elif missing:
        found.append(f"no subject alternative name; expected {missing}")
    if leaf.common_name and certificate.common_name != leaf.common_name:
        found.append(f"common name {certificate.common_name!r}; expected {leaf.common_name!r}")
    return found + ([certificate.weakness] if certificate.weakness else [])


def covers(names: tuple[str, ...], name: str) -> bool:
    """Return whether one of a certificate's names matches a host name or address."""
    try:
        return str(ipaddress.ip_address(name)) in names
    except ValueError:
        parent = name.lower().partition(".")[2]
    return name.lower() in names or (bool(parent) and f"*.{parent}" in names)


def canonical(name: str) -> str:
    """Write an address in its shortest form and a name in lower case."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


def due(certificate: Certificate, now: float) -> bool:
    """Return whether less than a third of a certificate's lifetime is left."""
    return certificate.ends - now < (certificate.ends - certificate.begins) * RENEW_BELOW


def days_left(certificate: Certificate, now: float) -> int:
    """Return the whole days left; negative after expiry."""
    return int((certificate.ends - now) // DAY_S)


def day(moment: float) -> str:
    """Format a moment in UTC for a message."""
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def look(leaf: Leaf, authority: Path | bytes) -> Seen:
    """Read the files of a certificate, its key and the authority, whose text may be given instead."""
    from .certificate_reader import inspect  # a host without TLS has no python3-cryptography

    keeper, mode = _keeper(leaf.key)
    root = read(authority) if isinstance(authority, Path) else authority
    return inspect(root, read(leaf.certificate), read(leaf.key), leaf.purpose, keeper, mode)


def read(path: Path) -> bytes | str:
    """Read a file; a text is the reason why it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _keeper(path: Path) -> tuple[str, int]:
    try:
        about = path.stat()
    except OSError:  # `read` says why
        return "", 0
    return f"{_name(pwd.getpwuid, about.st_uid)}:{_name(grp.getgrgid, about.st_gid)}", about.st_mode & 0o7777


def _name(look_up: object, number: int) -> str:
    try:
        return str(look_up(number)[0])  # type: ignore[operator]
    except KeyError:
        return str(number)
