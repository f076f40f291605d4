"""Checks of the audit: what the controller can see of a host over SSH, also where the host's own command is broken.

Pure: judges the facts of one host. Deviations that the host's doctor can report too are further functions of the same
checks, so both use one description.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provision.checks.finding import Finding, Severity
from provision.checks.placed import role
from provision.checks.registry import Row, Scope, also, check
from provision.plan.schema import Plan

COMMAND = "/usr/local/bin/provision"


@dataclass(frozen=True)
class Outside:
    """The facts of one host. `files` is path -> (manifest, checksum); `sums` the checksums of the files now.

    `unreachable` is the error of the connection; `plan` is None where the host has none that can be read, and
    `no_plan` says why; `command` is the checksum of this checkout's command.
    """

    name: str
    address: str
    inventories: tuple[str, ...] = ()
    unreachable: str = ""
    plan: Plan | None = None
    no_plan: str = ""
    doctor: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    sums: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    verified: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, Any] = field(default_factory=dict)

    def ansible(self, words: str) -> str:
        """Return an ad-hoc command on this host, run on the controller."""
        return " ".join(["ansible", *(f"-i {shlex.quote(each)}" for each in self.inventories), self.name, words])

    def findings(self) -> list[Finding]:
        """Return the findings of the host's own doctor. Raises TypeError or ValueError for those of another version."""
        return [Finding.of(each) for each in self.doctor.get("findings", [])]

    def failure(self) -> str:
        """Explain why the doctor gave no findings; '' where it did."""
        if not self.doctor or "failed" in self.doctor:
            return str(self.doctor.get("failed", "no answer"))
        try:
            self.findings()
        except (TypeError, ValueError) as error:
            return f"findings of another version: {error}"
        return ""


@check(
    "unreachable",
    scope=Scope.AUDIT,
    area="host",
    severity=Severity.CRITICAL,
    expected="a host reachable over SSH",
    why="the state of the host is unknown",
    fix="ansible -i INVENTORY HOST -m ping  # INVENTORY: the inventory of this host",
)
def unreachable(host: Outside) -> Iterator[Row]:
    """Report a host that cannot be reached over SSH."""
    if host.unreachable:
        yield host.unreachable.strip().splitlines()[-1], host.ansible("-m ping")


@check(
    "not-converged",
    scope=Scope.AUDIT,
    area="host",
    severity=Severity.CRITICAL,
    expected="a host that site.yml has converged",
    why="the host has no plan to compare it with",
)
def not_converged(host: Outside) -> Iterator[Row]:
    """Report a host without a readable plan."""
    if not host.unreachable and host.plan is None:
        yield host.no_plan


@check(
    "doctor-failed",
    scope=Scope.AUDIT,
    area="host",
    severity=Severity.CRITICAL,
    expected="a working `provision doctor` on the host",
    why="checks that run only on the host are missing",
    tags="toolkit",
)
def doctor_failed(host: Outside) -> Iterator[Row]:
    """Report a host whose own doctor fails."""
    if host.plan and host.failure():
        yield host.failure()


@check(
    "command-differs",
    scope=Scope.AUDIT,
    area="files",
    expected="the command of this checkout",
    why="another version converged the host",
    tags="toolkit",
)
def command_differs(host: Outside) -> Iterator[Row]:
    """Report a `provision` command of another version, or a changed one."""
    if host.plan and host.sums.get(COMMAND) != host.command:
        yield f"{COMMAND} differs from this checkout"


@also("files-changed", Scope.AUDIT)
def changed(host: Outside) -> Iterator[Row]:
    """Compare the checksums of files with their manifests."""
    for path, (manifest, checksum) in sorted(host.files.items()) if host.plan else ():
        if host.sums.get(path, checksum) != checksum:
            yield f"{path} was changed by hand", _site(host, role(manifest))


@also("files-missing", Scope.AUDIT)
def missing(host: Outside) -> Iterator[Row]:
    """Report files without a checksum: they are gone."""
    for path, (manifest, _) in sorted(host.files.items()) if host.plan else ():
        if path not in host.sums:
            yield f"{path} is gone", _site(host, role(manifest))


@also("manifest-damaged", Scope.AUDIT)
def damaged(host: Outside) -> Iterator[Row]:
    """Report manifests that cannot be read."""
    for path in host.damaged if host.plan else ():
        yield f"{path} cannot be read", _site(host, role(Path(path).stem))


@also("packages", Scope.AUDIT)
def packages(host: Outside) -> Iterator[Row]:
    """Compare packages with those of the last verification."""
    for name, version in host.verified.get("packages", {}).items() if host.plan else ():
        now = sorted(host.packages.get(name, []))
        if version not in now:
            state = f"is {now[0]}," if now else "is gone;"
            yield f"package {name} {state} {version} was verified", _site(host, "toolkit,verify" if now else "packages")


@also("service", Scope.AUDIT)
def service(host: Outside) -> Iterator[Row]:
    """Report a server that is down."""
    if host.plan and not host.units.get(host.plan.server.unit):
        yield (
            f"{host.plan.server.unit} is down",
            host.ansible(f"--become -a {shlex.quote(f'systemctl start {host.plan.server.unit}')}"),
        )


def _site(host: Outside, tags: str) -> str:
    assert host.plan  # noqa: S101 - every caller has looked
    return host.plan.site(tags)
