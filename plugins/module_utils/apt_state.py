"""Locks, packages, versions and sources of dpkg and apt on this host. Changes nothing; standard library only."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .listeners import process
from .program import run

LOCKS = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
)
UPDATES = Path("/var/lib/dpkg/updates")
SOURCES = Path("/etc/apt")
POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_TEXT = b"#!/bin/sh\nexit 101\n"
"""What Ansible's module apt writes for policy_rc_d: 101, and removes unless it is killed."""
ONE_LINE = re.compile(r"(deb|deb-src)\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)")
SAID = re.compile(r"^E: (.*)", re.M)


def locked(wait: int) -> dict[str, Any] | None:
    """Wait for the package manager's locks; give the holder when they are still held after `wait` seconds."""
    deadline = time.monotonic() + wait
    while True:
        holder = next((held for path in LOCKS if (held := _holder(path)) is not None), None)
        if holder is None or time.monotonic() >= deadline:
            return holder
        time.sleep(1)


def _holder(path: str) -> dict[str, Any] | None:
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with Path(path).open("rb+") as stream:
            answer = struct.unpack("hhqqi4x", fcntl.fcntl(stream, fcntl.F_GETLK, request))
    except OSError:  # there is none, or its file system is read-only
        return None
    return None if answer[0] == fcntl.F_UNLCK else {"path": path, **process(answer[4])}


def interrupted() -> bool:
    """Return whether dpkg was interrupted and must be resumed."""
    updates = [path for path in UPDATES.glob("*") if path.name.isdigit()]
    return bool(updates or run("dpkg", "--audit").stdout.strip())


def services_blocked() -> bool:
    """Return whether a killed installation left its policy-rc.d, which keeps packages from starting services."""
    try:
        return POLICY.read_bytes() == POLICY_TEXT
    except OSError:
        return False


def packages() -> tuple[list[str], list[str]]:
    """Name every package that is installed whole, and every package on hold (apt-mark hold), installed or not."""
    # Without a pattern dpkg-query leaves out packages that are on hold and not installed.
    shown = run("dpkg-query", "--show", "--showformat=${db:Status-Abbrev}${Package}\\n", "*")
    return parse_packages(shown.stdout.splitlines())


def parse_packages(lines: list[str]) -> tuple[list[str], list[str]]:
    """Read dpkg's lines: the desired state, the state (dpkg-query(1)), a space or an error, and the name."""
    return [line[3:] for line in lines if line[1:3] == "i "], [line[3:] for line in lines if line[:1] == "h"]


def policy(names: list[str]) -> dict[str, dict[str, Any]]:
    """Return `version` and `barred` of each package, as apt-cache policy knows them.

    The version is the installed one, else the candidate, "" when unknown. A package is barred where a source has it
    and a pin (apt_preferences(5)) lets apt install none of its versions.
    """
    return parse_policy(run("apt-cache", "policy", *names).stdout, names)


def parse_policy(shown: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """Read the output of `apt-cache policy`; see `policy`."""
    found: dict[str, dict[str, Any]] = {name: {"version": "", "barred": False} for name in names}
    for part in re.split(r"^(?=\S)", shown, flags=re.M):
        name = part.partition(":")[0]
        about = dict(re.findall(r"^  (Installed|Candidate): (\S+)$", part, re.M))
        seen = [about.get(word, "(none)") for word in ("Installed", "Candidate")]
        if name in found:
            version = next((each for each in seen if each != "(none)"), "")
            listed = re.search(r"^  Version table:\n\s+\S", part, re.M)
            found[name] = {"version": version, "barred": not version and listed is not None}
    return found


def lists_age() -> int:
    """Return the age of apt's lists in seconds; a very large number when there are none, as in a minimal image."""
    # Not followed: of a source on this host (file:) apt keeps a link, which may lead nowhere by now.
    lists = [path.lstat().st_mtime for path in Path("/var/lib/apt/lists").glob("*Packages*")]
    stamp = Path("/var/lib/apt/periodic/update-success-stamp")
    newest = max([*lists, *([stamp.stat().st_mtime] if lists and stamp.exists() else [])], default=0)
    return int(time.time() - newest)


def sources_fault() -> str:
    """Return apt's error when it reads its current sources, "" without one. Fetches nothing."""
    done = run("apt-get", "update", "--print-uris")
    said = SAID.search(done.stderr)
    return said[1] if done.returncode != 0 and said else ""


def sources() -> list[dict[str, str]]:
    """Return each enabled source: file, uri, suite, and signed_by ("" for none, "embedded" for a key in the file)."""
    found: list[dict[str, str]] = []
    for path in [SOURCES / "sources.list", *sorted((SOURCES / "sources.list.d").glob("*"))]:
        read = {".list": one_line, ".sources": stanzas}.get(path.suffix)
        if read and re.fullmatch(r"[\w.-]+", path.name, re.A):  # apt reads no file with another name
            try:
                text = path.read_text(errors="replace")
            except OSError:
                continue
            found += [{"file": str(path), **row} for row in read(text)]
    return found


def one_line(text: str) -> Iterator[dict[str, str]]:
    """Read the one-line format of sources.list(5)."""
    for line in text.splitlines():
        entry = ONE_LINE.match(line.partition("#")[0].strip())
        if entry:
            options = dict(word.partition("=")[::2] for word in (entry["options"] or "").split())
            yield {"uri": entry["uri"], "suite": entry["suite"], "signed_by": options.get("signed-by", "")}


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """Read the deb822 format of sources.list(5)."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", lines):
        joined = re.sub(r"\n[ \t]+", " ", stanza)
        fields = {name.strip().lower(): value.strip() for name, _, value in map(_field, joined.splitlines())}
        if fields.get("enabled", "yes").lower() in ("no", "false", "without", "off", "disable", "0"):
            continue
        key = fields.get("signed-by", "")
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield {"uri": uri, "suite": suite, "signed_by": "embedded" if "-----BEGIN" in key else key}


def _field(line: str) -> tuple[str, str, str]:
    return line.partition(":")
