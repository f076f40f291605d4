"""Audit all hosts in parallel: read-only facts over SSH, and the findings of each host's `provision doctor`.

Does IO through pyinfra. Compares files, packages and services with the record of the last run of site.yml, so drift is
found even if the host's own command is broken or missing. An unreachable or unknown host is a finding, not a failure
of the audit.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyinfra.api.config import Config
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.facts import FactBase, get_fact
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import BaseStateCallback, State
from pyinfra.context import ctx_host, ctx_state
from pyinfra.facts.deb import DebPackages
from pyinfra.facts.systemd import SystemdStatus

from provision.checks.finding import Finding, Severity
from provision.controller import archive
from provision.controller.fleet import Target

CONNECT_TIMEOUT_S = 10
AS_ROOT = {"_sudo": True}


class Doctor(FactBase[dict[str, Any]]):
    """Output of the host's `provision doctor`, or the reason of its failure."""

    default = dict

    def command(self) -> str:
        """Run it; output that is not JSON becomes the reason."""
        return "provision doctor --json 2>&1 || true"

    def process(self, output: Iterable[str]) -> dict[str, Any]:
        """Parse the JSON."""
        text = "\n".join(output)
        try:
            found: dict[str, Any] = json.loads(text[text.index("{") :])
        except ValueError:
            return {"failed": text.strip()[-400:] or "no output"}
        return found


class Left(FactBase[dict[str, Any]]):
    """State left by the last run: the host's record, and the recorded and current checksum of each managed file."""

    default = dict

    def command(self) -> str:
        """Print the record, the manifests, and the checksums of the listed files and of the command."""
        names = 'cat /etc/provision/files.d/*.json 2>/dev/null | sed -n \'s/^ *"path": "\\(.*\\)",$/\\1/p\''
        return (
            "echo == record; cat /etc/provision/host.json 2>/dev/null; echo; "
            'for set in /etc/provision/files.d/*.json; do echo "== $set"; cat "$set" 2>/dev/null; echo; done; '
            f"echo == sums; {{ {names}; echo /usr/local/bin/provision; }} | xargs -d '\\n' sha256sum 2>/dev/null; true"
        )

    def process(self, output: Iterable[str]) -> dict[str, Any]:
        """Parse the sections."""
        parts: dict[str, list[str]] = {}
        for line in output:
            if line.startswith("== "):
                parts[line[3:]] = []
            elif parts:
                parts[list(parts)[-1]].append(line)
        wanted, damaged = {}, []
        for path, lines in parts.items():
            if path.startswith("/") and "".join(lines).strip():
                try:
                    for row in json.loads("\n".join(lines))["files"]:
                        wanted[row["path"]] = (Path(path).stem, row["sha256"])
                except (ValueError, KeyError, TypeError):
                    damaged.append(path)
        record = "\n".join(parts.get("record", []))
        sums = {line[66:]: line[:64] for line in parts.get("sums", []) if line[64:66] == "  "}
        try:
            known = json.loads(record) if record.strip() else {}
        except ValueError:
            known = {}
        return {"record": known, "files": wanted, "damaged": damaged, "there": sums}


@dataclass
class Seen:
    """One host with its facts and findings."""

    name: str
    address: str
    about: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def counted(self) -> list[Finding]:
        """Return the findings that need action."""
        return [each for each in self.findings if each.counts]

    @property
    def state(self) -> str:
        """Return critical, warning or ok."""
        critical = any(each.severity is Severity.CRITICAL for each in self.findings)
        return "critical" if critical else "warning" if self.counted else "ok"


class _Failures(BaseStateCallback):
    """Keeps the reasons of connection failures, which pyinfra only logs."""

    def __init__(self) -> None:
        self.reasons: dict[Host, str] = {}

    def host_connect_error(self, state: State, host: Host, error: Exception) -> None:  # type: ignore[override]
        del state
        self.reasons[host] = str(error)


def audit(targets: Sequence[Target], package: Path) -> tuple[list[Seen], float]:
    """Audit hosts; return them in inventory order, and the seconds taken. `package` is this package's folder."""
    begun = time.monotonic()
    config = Config(CONNECT_TIMEOUT=CONNECT_TIMEOUT_S, PARALLEL=len(targets), ENV={"LC_ALL": "C"})  # type: ignore[no-untyped-call]
    inventory = Inventory(([(each.name, each.data) for each in targets], {}))  # type: ignore[no-untyped-call]
    state, failures = State(inventory, config), _Failures()
    state.add_callback_handler(failures)  # type: ignore[no-untyped-call]
    _on_active_hosts(state, connect_all)
    greenlets = {host: state.pool.spawn(_look, state, host) for host in list(state.active_hosts)}
    facts = {host: greenlet.get() for host, greenlet in greenlets.items()}
    with tempfile.TemporaryDirectory() as folder:
        ours = hashlib.sha256(archive.pack(package, Path(folder)).read_bytes()).hexdigest()
    seen = []
    for target in targets:
        host = inventory.get_host(target.name)
        one = Seen(target.name, str(target.data["ssh_hostname"]))
        known = facts.get(host, failures.reasons.get(host, "the connection was lost"))
        if isinstance(known, str):
            one.findings.append(_unreachable(one, known))
        else:
            _judge(one, known, ours)
        seen.append(one)
    _on_active_hosts(state, disconnect_all)
    return seen, time.monotonic() - begun


def _look(state: State, host: Host) -> dict[str, Any] | str:
    """Return every fact of one host, or the reason of a failure, which must not affect other hosts."""
    known = {}
    try:
        with ctx_state.use(state), ctx_host.use(host):
            for fact in (Left, DebPackages, SystemdStatus, Doctor):
                known[fact.__name__] = get_fact(state, host, fact, kwargs=AS_ROOT)
    except Exception as error:  # from SSH, pyinfra, or invalid output of the host
        return f"{type(error).__name__}: {error}"
    return known


def _on_active_hosts(state: State, step: Any) -> None:
    """Run a step on all hosts. pyinfra raises if none is left; each host's reason is already kept."""
    try:
        step(state)
    except PyinfraError:
        if state.active_hosts:
            raise


def _judge(one: Seen, known: dict[str, Any], ours: str) -> None:
    left, doctor = known["Left"], known.get("Doctor") or {"failed": "no answer"}
    record = left["record"]
    if not record:
        one.findings.append(
            Finding(
                "not-converged",
                "host",
                Severity.CRITICAL,
                "/etc/provision/host.json is missing",
                "a host converged by site.yml",
                "the host cannot be checked",
                _site(one),
            )
        )
        return
    verified = record.get("verified", {})
    one.about = {
        "os": str(record.get("about", {}).get("host", {}).get("os", "")),
        "profile": str(record.get("profile", "")),
        "PostgreSQL": str(verified.get("server", "")).partition(" ")[0],
        "pgvector": str(verified.get("extensions", {}).get("vector", "")),
        "migration": str(verified.get("migration", "")),
        "checks": str(doctor.get("checks", "none")),
    }
    if "failed" in doctor:
        one.findings.append(
            Finding(
                "doctor-failed",
                "host",
                Severity.CRITICAL,
                str(doctor["failed"]),
                "a working `provision doctor`",
                "checks that run on the host are missing",
                _site(one, "toolkit"),
            )
        )
    one.findings += [Finding(**{**each, "severity": Severity(each["severity"])}) for each in doctor.get("findings", [])]
    one.findings += [each for each in _drift(one, known, ours) if not _reported(one, each)]


def _drift(one: Seen, known: dict[str, Any], ours: str) -> Iterable[Finding]:
    """Compare the recorded state with the current state."""
    left, record = known["Left"], known["Left"]["record"]
    for path, (name, checksum) in sorted(left["files"].items()):
        now = left["there"].get(path)
        if now != checksum:
            seen = f"{path} was changed by hand" if now else f"{path} is missing"
            yield Finding(
                "files-changed" if now else "files-missing",
                "files",
                Severity.WARNING,
                seen,
                "the file as placed by the last run",
                "the next run will overwrite the change",
                _site(one, name.partition("-")[0]),
            )
    for path in left["damaged"]:
        yield Finding(
            "manifest-damaged",
            "files",
            Severity.WARNING,
            f"{path} cannot be read",
            "the manifest as written by the last run",
            "its files cannot be checked",
            _site(one, Path(path).stem.partition("-")[0]),
        )
    if left["there"].get("/usr/local/bin/provision") != ours:
        yield Finding(
            "command-differs",
            "files",
            Severity.WARNING,
            "/usr/local/bin/provision differs from this checkout",
            "the command of this checkout",
            "the host was converged by another version",
            _site(one, "toolkit"),
        )
    packages = known.get("DebPackages") or {}
    for package, version in record.get("verified", {}).get("packages", {}).items():
        there = sorted(packages.get(package, []))
        if version not in there:
            seen = (
                f"package {package} is {there[0]}, but {version} was verified"
                if there
                else f"package {package} is missing, but {version} was verified"
            )
            yield Finding(
                "packages",
                "host",
                Severity.WARNING,
                seen,
                "the verified package versions",
                "the installed version was never verified",
                _site(one, "toolkit,verify"),
            )
    units = known.get("SystemdStatus") or {}
    server = f"postgresql@{record['postgresql']['major']}-main.service"
    if not units.get(server):
        yield Finding(
            "service",
            "services",
            Severity.CRITICAL,
            f"{server} is down",
            "a running service",
            "the database is not available",
            f"ssh {one.address} sudo systemctl start {server}",
        )


def _reported(one: Seen, finding: Finding) -> bool:
    """Tell whether the host's doctor has already reported the same problem of the same subject."""
    return any(each.id == finding.id and _subject(each) == _subject(finding) for each in one.findings)


def _subject(finding: Finding) -> str:
    """Return the file, package or unit, which begins the text of a finding."""
    return finding.seen.removeprefix("package ").partition(" ")[0].rstrip(":,;")


def _unreachable(one: Seen, reason: str) -> Finding:
    return Finding(
        "unreachable",
        "host",
        Severity.CRITICAL,
        reason.strip().splitlines()[-1],
        "a host reachable over SSH",
        "the host can be neither checked nor fixed",
        f"ssh {one.address} true; ansible {one.name} -m ping",
    )


def _site(one: Seen, tags: str = "") -> str:
    more = f" --tags {tags}" if tags else ""
    return f"ansible-playbook site.yml -i INVENTORY --limit {one.name}{more}"
