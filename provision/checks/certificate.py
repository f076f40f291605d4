#!/usr/bin/env python3
"""Judge certificates before a server meets them: the key, its keeper, the time, the names, the authority.

`judge` and `due` are pure. `look` reads files with the `openssl` command, on the host, with the standard library alone
(the Ansible module `host_certificates` carries this file). Nothing here shows a key, and nothing is changed.
Names are compared as RFC 6125 has it: a wildcard stands for one label, and an address only for itself.
"""

from __future__ import annotations

import datetime
import grp
import ipaddress
import pwd
import re
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

RENEW_BELOW = 1 / 3
"""Share of its life that a certificate has left when it is renewed: of 397 days the last 132."""
DAY_S = 86400
PURPOSES = {"server": "sslserver", "client": "sslclient"}


@dataclass(frozen=True)
class Leaf:
    """What a certificate and its key are to be: where, for whom, and who keeps the key ("": anybody)."""

    certificate: Path
    key: Path
    names: tuple[str, ...] = ()
    common_name: str = ""
    purpose: str = "server"
    keeper: str = "root:ssl-cert"


@dataclass(frozen=True)
class Certificate:
    """What is in a certificate; times are seconds since 1970, `untrusted` says why the authority does not vouch."""

    common_name: str
    names: tuple[str, ...]
    begins: float
    ends: float
    public_key: str
    fingerprint: str
    key_type: str = "ecdsa"
    untrusted: str = ""


@dataclass(frozen=True)
class Key:
    """Who keeps a key, and the public half of it; `unreadable` says why there is none."""

    keeper: str
    mode: int
    public_key: str = ""
    unreadable: str = ""


@dataclass(frozen=True)
class Seen:
    """What is on disk, and when the authority ends. A text instead of a value says why it could not be read."""

    authority: float | str
    certificate: Certificate | str
    key: Key | str


def judge(leaf: Leaf, authority: Path, seen: Seen, now: float) -> list[str]:
    """Name everything for which a server must not take these files, each with the file and the reason."""
    found = []
    if isinstance(seen.authority, str):
        found.append(f"{authority}: {seen.authority}")
    elif seen.authority <= now:
        found.append(f"{authority}: the authority expired on {day(seen.authority)}")
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
        problems.append(f"does not belong to the key {leaf.key}")
    return found + [f"{leaf.certificate}: {problem}" for problem in problems]


def _keeping(leaf: Leaf, key: Key) -> list[str]:
    found = []
    if key.mode & 0o007:
        found.append(f"mode {key.mode:04o} lets others at the key: allowed is 0640 or less")
    elif key.mode & 0o137:
        found.append(f"mode {key.mode:04o}: allowed is 0640 or less")
    if leaf.keeper and key.keeper != leaf.keeper:
        found.append(f"belongs to {key.keeper}, allowed is {leaf.keeper}")
    return found + ([key.unreadable] if key.unreadable else [])


def _content(leaf: Leaf, certificate: Certificate, now: float) -> list[str]:
    found = []
    if now < certificate.begins:
        found.append(f"not valid before {day(certificate.begins)}; this host's clock says {day(now)}")
    if now >= certificate.ends:
        found.append(f"expired on {day(certificate.ends)}")
    missing = [name for name in leaf.names if not covers(certificate.names, name)]
    if missing:
        names = ", ".join(certificate.names) or "no name at all"
        found.append(f"is for {names}, and not for {', '.join(missing)}")
    if leaf.common_name and certificate.common_name != leaf.common_name:
        found.append(f"its common name is {certificate.common_name!r}, wanted is {leaf.common_name!r}")
    return found


def covers(names: tuple[str, ...], wanted: str) -> bool:
    """Say whether one of a certificate's names stands for the wanted name or address."""
    if canonical(wanted) in names or _is_address(wanted):
        return canonical(wanted) in names
    parent = wanted.lower().partition(".")[2]
    return bool(parent) and f"*.{parent}" in names


def canonical(name: str) -> str:
    """Write an address in its shortest form, and a name in lower case."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def due(certificate: Certificate, now: float) -> bool:
    """Say whether less than a third of a certificate's life is left."""
    return certificate.ends - now < (certificate.ends - certificate.begins) * RENEW_BELOW


def days_left(certificate: Certificate, now: float) -> int:
    """Give the whole days that are left; negative once it has expired."""
    return int((certificate.ends - now) // DAY_S)


def day(moment: float) -> str:
    """Write a moment for a person, in UTC."""
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def look(leaf: Leaf, authority: Path) -> Seen:
    """Read what is on disk."""
    ends = _authority(authority)
    trusted = None if isinstance(ends, str) else authority
    return Seen(ends, read_certificate(leaf.certificate, trusted, leaf.purpose), read_key(leaf.key))


def read_certificate(path: Path, authority: Path | None, purpose: str) -> Certificate | str:
    """Read the first certificate of a file, and ask whether the authority vouches for it, whatever the time."""
    form = ("-nameopt", "multiline,utf8,-esc_msb", "-subject", "-dates", "-ext", "subjectAltName")
    if (text := _text(path)) is None:
        return "cannot be read"
    if "-----BEGIN CERTIFICATE-----" not in text:
        return "holds no certificate (PEM)"
    code, said = _openssl("x509", "-in", path, "-noout", *form, "-fingerprint", "-sha256", "-pubkey")
    if code:
        return f"holds no certificate that openssl can read: {_last(said)}"
    untrusted = ""
    if authority:
        trust = ("-CAfile", authority, "-no-CApath", "-no-CAstore", "-untrusted", path)
        code, told = _openssl("verify", "-no_check_time", "-purpose", PURPOSES[purpose], *trust, path)
        untrusted = _reason(told) if code else ""
    names = re.findall(r"(?:DNS|IP Address):([^,\s]+)", said)
    return Certificate(
        common_name=_find(r"commonName\s+= (.*)", said),
        names=tuple(canonical(name) for name in names),
        begins=ssl.cert_time_to_seconds(_find("notBefore=(.*)", said)),
        ends=ssl.cert_time_to_seconds(_find("notAfter=(.*)", said)),
        public_key=_public(said),
        fingerprint=_find(r"Fingerprint=([0-9A-F:]+)", said),
        key_type=_key_type(path),
        untrusted=untrusted,
    )


def _key_type(path: Path) -> str:
    _, said = _openssl("x509", "-in", path, "-noout", "-text", "-certopt", "no_sigdump,no_extensions")
    found = _find(r"Public Key Algorithm: (\S+)", said)
    return {"rsaEncryption": "rsa", "id-ecPublicKey": "ecdsa"}.get(found, found)


def read_key(path: Path) -> Key | str:
    """Read who keeps a key, and its public half."""
    try:
        about = path.stat()
    except OSError as error:
        return f"{error.strerror}"
    keeper = f"{_name(pwd.getpwuid, about.st_uid)}:{_name(grp.getgrgid, about.st_gid)}"
    # An empty passphrase, so that an encrypted key is an error and not a question.
    code, said = _openssl("pkey", "-in", path, "-passin", "pass:", "-pubout")
    if code:
        return Key(keeper, about.st_mode & 0o7777, unreadable="holds no key that can be read without a passphrase")
    return Key(keeper, about.st_mode & 0o7777, public_key=_public(said))


def _authority(path: Path) -> float | str:
    """Give the moment at which the first of a file's authorities ends, or why they are none."""
    if (text := _text(path)) is None:
        return "cannot be read: there is no certificate of an authority"
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    if not blocks:
        return "holds no certificate of an authority (PEM)"
    ends = float("inf")
    for block in blocks:
        code, said = _openssl("x509", "-noout", "-enddate", "-ext", "basicConstraints", text=block + "\n")
        if code:
            return f"holds a certificate that openssl cannot read: {_last(said)}"
        if "CA:TRUE" not in said:
            return "holds a certificate that is no authority's (CA:TRUE is missing)"
        ends = min(ends, ssl.cert_time_to_seconds(_find("notAfter=(.*)", said)))
    return ends


def _openssl(*words: str | Path, text: str | None = None) -> tuple[int, str]:
    command = ["openssl", *map(str, words)]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        return 127, "the command openssl is not installed"
    return done.returncode, done.stdout + done.stderr


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1].strip() if found else ""


def _public(text: str) -> str:
    return _find(r"(?s)(-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----)", text)


def _reason(said: str) -> str:
    return _find(r"depth lookup: (.*)", said) or _last(said)


def _last(said: str) -> str:
    return (said.strip().splitlines() or [""])[-1]


def _name(look_up: object, number: int) -> str:
    try:
        return str(look_up(number)[0])  # type: ignore[operator]
    except KeyError:
        return str(number)
