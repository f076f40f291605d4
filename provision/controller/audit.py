"""Look at the whole fleet at once, with a second pair of eyes: read-only facts over SSH, and each host's own doctor.

Does IO on every host in parallel through pyinfra. Files, packages and services are compared with what the last run of
site.yml recorded on the host, from outside: so drift is named even where the host's own command is broken or gone. A
host that cannot be reached, or is not one of ours, is a finding, never a failure of the audit.
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
    """What the host's own doctor says, or {} with the reason."""

    default = dict

    def command(self) -> str:
        """Run it; what it prints beside JSON is kept as the reason."""
        return "provision doctor --json 2>&1 || true"

    def process(self, output: Iterable[str]) -> dict[str, Any]:
        """Read it."""
        text = "\n".join(output)
        try:
            found: dict[str, Any] = json.loads(text[text.index("{") :])
        except ValueError:
            return {"failed": text.strip()[-400:] or "it printed nothing"}
        return found


class Left(FactBase[dict[str, Any]]):
    """What the last run left: the host's record, and every file that it placed with its checksum then and now."""

    default = dict

    def command(self) -> str:
        """Print the record, the manifests, and the checksums of the files that these name, and of the command."""
        names = 'cat /etc/provision/files.d/*.json 2>/dev/null | sed -n \'s/^ *"path": "\\(.*\\)",$/\\1/p\''
        return (
            "echo == record; cat /etc/provision/host.json 2>/dev/null; echo; "
            'for set in /etc/provision/files.d/*.json; do echo "== $set"; cat "$set" 2>/dev/null; echo; done; '
            f"echo == sums; {{ {names}; echo /usr/local/bin/provision; }} | xargs -d '\\n' sha256sum 2>/dev/null; true"
        )

    def process(self, output: Iterable[str]) -> dict[str, Any]:
        """Split the parts."""
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
    """One host of the fleet: what it is, and what is wrong with it."""

    name: str
    address: str
    about: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def counted(self) -> list[Finding]:
        """Those for which somebody has to do something."""
        return [each for each in self.findings if each.counts]

    @property
    def state(self) -> str:
        """Say in one word how the host is."""
        critical = any(each.severity is Severity.CRITICAL for each in self.findings)
        return "critical" if critical else "warning" if self.counted else "ok"


class _Failures(BaseStateCallback):
    """Keeps why a host could not be reached; pyinfra only logs it."""

    def __init__(self) -> None:
        self.reasons: dict[Host, str] = {}

    def host_connect_error(self, state: State, host: Host, error: Exception) -> None:  # type: ignore[override]
        del state
        self.reasons[host] = str(error)


def audit(targets: Sequence[Target], package: Path) -> tuple[list[Seen], float]:
    """Look at every host; give them in the inventory's order, with the seconds that it took. `package` is our own."""
    begun = time.monotonic()
    config = Config(CONNECT_TIMEOUT=CONNECT_TIMEOUT_S, PARALLEL=len(targets), ENV={"LC_ALL": "C"})  # type: ignore[no-untyped-call]
    inventory = Inventory(([(each.name, each.data) for each in targets], {}))  # type: ignore[no-untyped-call]
    state, failures = State(inventory, config), _Failures()
    state.add_callback_handler(failures)  # type: ignore[no-untyped-call]
    _whoever_is_left(state, connect_all)
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
    _whoever_is_left(state, disconnect_all)
    return seen, time.monotonic() - begun


def _look(state: State, host: Host) -> dict[str, Any] | str:
    """Read every fact of one host, or say why not: whatever one host does, the others are looked at."""
    known = {}
    try:
        with ctx_state.use(state), ctx_host.use(host):
            for fact in (Left, DebPackages, SystemdStatus, Doctor):
                known[fact.__name__] = get_fact(state, host, fact, kwargs=AS_ROOT)
    except Exception as error:  # of SSH, of pyinfra, or of a host that answers nonsense
        return f"{type(error).__name__}: {error}"
    return known


def _whoever_is_left(state: State, step: Any) -> None:
    """Run a step on all hosts: pyinfra raises only to say that none is left, and each has its own reason."""
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
                "there is no /etc/provision/host.json",
                "a host that site.yml has converged",
                "nothing is known of it",
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
                "a doctor that answers",
                "what only the host can see is not seen",
                _site(one, "toolkit"),
            )
        )
    one.findings += [Finding(**{**each, "severity": Severity(each["severity"])}) for each in doctor.get("findings", [])]
    one.findings += [each for each in _drift(one, known, ours) if not _told(one, each)]


def _drift(one: Seen, known: dict[str, Any], ours: str) -> Iterable[Finding]:
    """Compare from outside what was left with what is there."""
    left, record = known["Left"], known["Left"]["record"]
    for path, (name, checksum) in sorted(left["files"].items()):
        now = left["there"].get(path)
        if now != checksum:
            seen = f"{path} was changed by hand" if now else f"{path} is gone"
            yield Finding(
                "files-changed" if now else "files-missing",
                "files",
                Severity.WARNING,
                seen,
                "what the last run placed",
                "the next run takes it back, and until then nobody knows of it",
                _site(one, name.partition("-")[0]),
            )
    for path in left["damaged"]:
        yield Finding(
            "manifest-damaged",
            "files",
            Severity.WARNING,
            f"{path} cannot be read",
            "what the last run noted",
            "what it names is compared with nothing",
            _site(one, Path(path).stem.partition("-")[0]),
        )
    if left["there"].get("/usr/local/bin/provision") != ours:
        yield Finding(
            "command-differs",
            "files",
            Severity.WARNING,
            "/usr/local/bin/provision is not this checkout's",
            "the command of this checkout",
            "the host was converged by another version",
            _site(one, "toolkit"),
        )
    packages = known.get("DebPackages") or {}
    for package, version in record.get("verified", {}).get("packages", {}).items():
        there = sorted(packages.get(package, []))
        if version not in there:
            seen = (
                f"package {package} is {there[0]}, {version} was proved"
                if there
                else f"package {package} is gone; {version} was proved"
            )
            yield Finding(
                "packages",
                "host",
                Severity.WARNING,
                seen,
                "the packages that were proved",
                "what was proved is not what runs",
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
            "services that run",
            "what they serve is not served",
            f"ssh {one.address} sudo systemctl start {server}",
        )


def _told(one: Seen, finding: Finding) -> bool:
    """Say whether the host's own doctor has told it already."""
    return any(each.id == finding.id and each.seen.startswith(finding.seen) for each in one.findings)


def _unreachable(one: Seen, reason: str) -> Finding:
    return Finding(
        "unreachable",
        "host",
        Severity.CRITICAL,
        reason.strip().splitlines()[-1],
        "a host that answers over SSH",
        "nothing is known of it, and nothing can be mended",
        f"ssh {one.address} true; ansible {one.name} -m ping",
    )


def _site(one: Seen, tags: str = "") -> str:
    more = f" --tags {tags}" if tags else ""
    return f"ansible-playbook site.yml -i INVENTORY --limit {one.name}{more}"
