"""Audit of a fleet: facts read over SSH, and the findings of each host's own doctor. Read-only.

Does IO on every host in parallel through pyinfra. Files, packages and services are also compared from the controller,
with the plan and the manifests on the host, so that drift is reported where the host's own command is broken or gone.
A host that cannot be reached, or has no plan, is a finding, never a failure of the audit.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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
from provision.checks.outside import COMMAND, Outside
from provision.checks.registry import Scope, examine, unknown_site
from provision.controller import archive
from provision.controller.fleet import Target
from provision.errors import HostError
from provision.plan import load
from provision.plan.schema import SCHEMA

CONNECT_TIMEOUT_S = 10
AS_ROOT = {"_sudo": True}
VERIFIED = "/var/lib/provision/verified.json"
URGENCY = (Severity.CRITICAL, Severity.WARNING, Severity.UNSEEN, Severity.ACCEPTED)
"""The order of a host's findings."""
READ_S, MOST_BYTES = 10, 2**20
"""Limits of one file that the group postgres can replace: seconds, and bytes of the evidence."""


class Doctor(FactBase[dict[str, Any]]):
    """The findings of the host's own doctor, or {"failed": reason}."""

    default = dict

    def command(self) -> str:
        """Run it; output other than JSON is kept as the reason."""
        return "provision doctor --json 2>&1 || true"

    def process(self, output: Iterable[str]) -> dict[str, Any]:
        """Parse the output."""
        text = "\n".join(output)
        try:
            found: dict[str, Any] = json.loads(text[text.index("{") :])
        except ValueError:
            return {"failed": text.strip()[-400:] or "no output"}
        return found


class Placed(FactBase[dict[str, Any]]):
    """The traces of the last run: plan, evidence of `provision verify`, placed files with their checksums.

    `plan` and `verified` are {} where the file is missing or damaged; `files` is path -> (manifest, checksum), `sums`
    the checksums of these files now; `damaged` are unreadable manifests.
    """

    default = dict

    def command(self) -> str:
        """Print plan, evidence and manifests, and the checksums of the command and of every file in a manifest."""
        names = 'cat /etc/provision/files.d/*.json 2>/dev/null | sed -n \'s/^ *"path": "\\(.*\\)",$/\\1/p\''
        # The group postgres owns the directory of the evidence, and postgres that of some placed files: a link to a
        # device and a pipe have no end. On one line, no text of the evidence looks like a heading.
        plain = '[ -f "$file" ] && [ ! -L "$file" ] && timeout'
        verified = f"file={VERIFIED}; {plain} {READ_S} head -c {MOST_BYTES} \"$file\" 2>/dev/null | tr '\\n' ' '"
        sums = f'while IFS= read -r file; do {plain} {READ_S} sha256sum "$file"; done'
        return (
            f"echo == verified; {verified}; echo; echo == plan; cat {load.PATH} 2>/dev/null; echo; "
            'for set in /etc/provision/files.d/*.json; do echo "== $set"; cat "$set" 2>/dev/null; echo; done; '
            f"echo == sums; {{ {names}; echo {COMMAND}; }} | {sums} 2>/dev/null; true"
        )

    def process(self, output: Iterable[str]) -> dict[str, Any]:
        """Split and parse the parts."""
        parts: dict[str, list[str]] = {}
        for line in output:
            if line.startswith("== "):
                parts[line[3:]] = []
            elif parts:
                parts[list(parts)[-1]].append(line)
        files, damaged = {}, []
        for path, lines in parts.items():
            if path.startswith("/") and "".join(lines).strip():
                try:
                    for row in json.loads("\n".join(lines))["files"]:
                        files[row["path"]] = (Path(path).stem, row["sha256"])
                except (ValueError, KeyError, TypeError):
                    damaged.append(path)
        sums = {line[66:]: line[:64] for line in parts.get("sums", []) if line[64:66] == "  "}
        known = {name: _object("\n".join(parts.get(name, []))) for name in ("plan", "verified")}
        return {**known, "files": files, "damaged": damaged, "sums": sums}


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@dataclass
class Seen:
    """One host of the fleet with its findings."""

    name: str
    address: str
    about: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def counted(self) -> list[Finding]:
        """The findings that need action."""
        return [each for each in self.findings if each.counts]

    @property
    def state(self) -> str:
        """The worst severity: critical, warning or ok."""
        critical = any(each.severity is Severity.CRITICAL for each in self.findings)
        return "critical" if critical else "warning" if self.counted else "ok"


class _Failures(BaseStateCallback):
    """Keeps the errors of connections, which pyinfra only logs."""

    def __init__(self) -> None:
        self.reasons: dict[Host, str] = {}

    def host_connect_error(self, state: State, host: Host, error: Exception) -> None:  # type: ignore[override]
        del state
        self.reasons[host] = str(error).replace("[Errno None] ", "")


def audit(targets: Sequence[Target], package: Path, inventories: Sequence[str]) -> tuple[list[Seen], float]:
    """Check every host; return them in the inventory's order, and the duration in seconds.

    `package` is the directory of this package; fixes name `inventories`.
    """
    begun = time.monotonic()
    config = Config(CONNECT_TIMEOUT=CONNECT_TIMEOUT_S, PARALLEL=len(targets), ENV={"LC_ALL": "C"})  # type: ignore[no-untyped-call]
    inventory = Inventory(([(each.name, each.data) for each in targets], {}))  # type: ignore[no-untyped-call]
    state, failures = State(inventory, config), _Failures()
    state.add_callback_handler(failures)  # type: ignore[no-untyped-call]
    _on_active_hosts(state, connect_all)
    greenlets = {host: state.pool.spawn(_look, state, host) for host in list(state.active_hosts)}
    facts = {host: greenlet.get() for host, greenlet in greenlets.items()}
    ours = hashlib.sha256(archive.content(package)).hexdigest()
    seen = []
    for target in targets:
        host = inventory.get_host(target.name)
        known = facts.get(host, failures.reasons.get(host, "the connection was lost"))
        seen.append(judge(facts_of(target, known, ours, inventories), inventories))
    _on_active_hosts(state, disconnect_all)
    return seen, time.monotonic() - begun


def _look(state: State, host: Host) -> dict[str, Any] | str:
    """Read every fact of one host, or give the error: a failure on one host must not stop the audit of the others."""
    known = {}
    try:
        with ctx_state.use(state), ctx_host.use(host):
            for fact in (Placed, DebPackages, SystemdStatus, Doctor):
                known[fact.__name__] = get_fact(state, host, fact, kwargs=AS_ROOT)
    except Exception as error:  # of SSH, of pyinfra, or of parsing what a host sent
        return f"{type(error).__name__}: {error}"
    return known


def _on_active_hosts(state: State, step: Any) -> None:
    """Run a step on all hosts. pyinfra raises when no host is left; each host then has its own error."""
    try:
        step(state)
    except PyinfraError:
        if state.active_hosts:
            raise


def facts_of(target: Target, known: dict[str, Any] | str, ours: str, inventories: Sequence[str]) -> Outside:
    """Make the facts of one host; fixes name the inventories of this audit, not those of the last run."""
    about = Outside(target.name, str(target.data["ssh_hostname"]), inventories=tuple(inventories), command=ours)
    if isinstance(known, str):
        return replace(about, unreachable=known)
    placed = known["Placed"]
    plan, problem = None, f"cannot read {load.PATH}"
    if placed["plan"].get("schema", SCHEMA) != SCHEMA:
        problem = f"{load.PATH} was written by another version"
    elif placed["plan"]:
        try:
            plan = replace(load.of(placed["plan"]), inventory=tuple(inventories))
        except HostError as error:
            problem = f"{load.PATH}: {error.seen}"
    return replace(
        about,
        plan=plan,
        no_plan=problem,
        doctor=known.get("Doctor") or {},
        files=placed["files"],
        damaged=tuple(placed["damaged"]),
        sums=placed["sums"],
        verified=placed["verified"],
        packages=known.get("DebPackages") or {},
        units=known.get("SystemdStatus") or {},
    )


def judge(host: Outside, inventories: Sequence[str]) -> Seen:
    """Judge the facts of one host, the most urgent finding first.

    A problem that its own doctor reported is not repeated. Pure.
    """
    one = Seen(host.name, host.address)
    if host.plan:
        one.about = {
            "os": host.plan.host.os,
            "hardware": f"{host.plan.host.cpus} CPUs, {host.plan.host.memory_mb} MB",
            "profile": host.plan.profile,
            "PostgreSQL": str(host.verified.get("server", "")).partition(" ")[0],
            "pgvector": str(host.verified.get("extensions", {}).get("vector", "")),
            "migration": str(host.verified.get("migration", "")),
            "checks": str(host.doctor.get("checks", "none")),
        }
        one.findings += [] if host.failure() else host.findings()
    site = host.plan.site if host.plan else partial(unknown_site, inventories=inventories, limit=host.name)
    reported = {_subject(each) for each in one.findings}
    one.findings += [each for each in examine(Scope.AUDIT, host, site=site) if _subject(each) not in reported]
    one.findings.sort(key=lambda each: URGENCY.index(each.severity))
    return one


def _subject(finding: Finding) -> tuple[str, str]:
    """Return the check and the file, package or unit that begins the finding's text."""
    return finding.id, finding.seen.removeprefix("package ").partition(" ")[0].rstrip(":,;")
