"""Update a host's packages within their major: look, back up, install, restart, verify. Does IO, as root.

Files are replaced while the servers run; each unit that still uses a replaced file is restarted afterwards, the
server behind a paused pooler. The same command continues after a kill.
A failure names the old packages and the command that installs them again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from provision import compatibility, system
from provision.errors import HostError, ProvisionError
from provision.host import rehearsal
from provision.host.backup import fresh
from provision.host.backup import journal as locks
from provision.host.pooler import console
from provision.host.server import configuration
from provision.host.update import apt, stale
from provision.host.update.apt import Package
from provision.host.upgrade import after, search
from provision.plan.packages import EXPORTERS
from provision.plan.schema import Plan
from provision.system import run as program

NAME = "update"
INSTALLING = "installing"
AUTOMATIC = "apt-daily-upgrade.timer"
Narrate = Callable[[str], None]


@dataclass(frozen=True)
class Look:
    """What an update would do: packages, units to restart, defects that it fixes, and notices.

    `unfinished`: an earlier update was killed or failed after it had begun to install.
    """

    packages: tuple[Package, ...]
    restarts: tuple[str, ...]
    fixes: tuple[str, ...]
    notices: tuple[str, ...]
    unfinished: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.packages or self.restarts or self.unfinished)


def look(plan: Plan) -> Look:
    """Read the package lists and ask the host. Changes nothing else. Raises HostError."""
    if plan.cluster:
        raise HostError(
            "an update of packages does not support clusters", seen="cluster_enabled: true", allowed="a single host",
            run="apt-get install --only-upgrade PACKAGES on one member at a time, then provision cluster restart --all",
        )  # fmt: skip
    apt.refresh(plan)
    known = apt.look(plan)
    packages = tuple(each for each in known if each.newer and not each.held)
    found = [
        f"{each.name} {each.candidate} is available, but the package is on hold: apt-mark unhold {each.name}"
        for each in known
        if each.newer and each.held
    ]
    found += [
        f"{each.name} {each.installed} is no longer in any package source: keep its .deb file for a downgrade"
        for each in packages
        if not each.kept
    ]
    if program("systemctl", "is-enabled", "--quiet", AUTOMATIC, check=False).ok:
        found.append(
            f"{AUTOMATIC} is enabled: with unattended-upgrades configured, it restarts servers without a pause"
        )
    if not plan.backup.physical:
        found.append("backup_physical is false: no backup is taken before the update")
    unfinished = system.evidence(NAME, of_root=True).get("state") == INSTALLING
    return Look(packages, tuple(_restarts(plan, packages)), tuple(fixes(packages)), tuple(found), unfinished)


def _units(plan: Plan) -> list[tuple[str, re.Pattern[str]]]:
    """Return the units in the order of their restart, each with the packages whose update needs it."""
    found = [(plan.server.unit, re.compile(rf"postgresql-(?:pl[a-z0-9]+-)?{plan.server.major}(?:-.*)?"))]
    found += [(console.UNIT, re.compile("pgbouncer"))] if plan.pooler.enabled else []
    if plan.monitoring.exporters:
        found += [(f"{name}.service", re.compile(re.escape(name))) for name in EXPORTERS]
    return found


def _restarts(plan: Plan, packages: tuple[Package, ...]) -> Iterator[str]:
    for unit, names in _units(plan):
        if any(names.fullmatch(each.name) for each in packages) or stale.replaced(unit):
            yield unit


def fixes(packages: tuple[Package, ...]) -> Iterator[str]:
    """Yield the known defects that the new versions fix."""
    for each in packages:
        product = "pgvector" if each.name.endswith("-pgvector") else each.name
        left = {row.id for row in compatibility.advisories(product, each.candidate, each.candidate)}
        for row in compatibility.advisories(product, each.installed, each.installed):
            if row.id not in left:
                yield f"{row.id}: {row.message}"


def run(plan: Plan, found: Look, narrate: Narrate) -> dict[str, Any]:
    """Install the packages and restart what uses replaced files. Raises HostError with the command back."""
    with locks.held(NAME, "another update is running on this host"):
        installed = {each.name: each.installed for each in apt.look(plan)}
        packages = since_before(found.packages, system.evidence(NAME, of_root=True), installed)
        facts: dict[str, Any] = {"begun": system.stamp(), "packages": [asdict(each) for each in packages]}
        apt.finish(plan)
        narrate("check for a backup from the last hour")
        fresh.ensure(plan)
        before = {name: search.as_facts(search.measure(plan, name)) for name in plan.access.databases}
        narrate("download the packages")
        if found.packages:
            apt.download(plan, found.packages)
        system.keep(NAME, {**facts, "state": INSTALLING})
        with _with_way_back(plan, packages):
            if found.packages:
                narrate(f"install {len(found.packages)} package{'' if len(found.packages) == 1 else 's'}")
                apt.install(plan, found.packages)
            facts |= _restart(plan, narrate)
            _verify(plan, packages, before)  # before the extensions, which do not go back with the packages
            narrate("update extensions")
            facts["extensions"] = after.update_extensions(plan)
            _verify(plan, packages, before)
        facts |= {"state": "finished", "finished": system.stamp()}
        system.keep(NAME, facts)
        return facts


def since_before(
    packages: tuple[Package, ...], last: Mapping[str, Any], installed: Mapping[str, str]
) -> tuple[Package, ...]:
    """Return the packages of this update and of an unfinished one before it, with the versions from before both.

    Left out: packages that went back, or that another program has updated since.
    """
    found = {each.name: each for each in packages}
    if last.get("state") == INSTALLING:
        for row in last["packages"]:
            old = Package(**row)
            if old.name not in found and installed.get(old.name) != old.candidate:
                continue
            found[old.name] = replace(old, candidate=found.get(old.name, old).candidate)
    return tuple(sorted(found.values(), key=lambda each: each.name))


@contextmanager
def _with_way_back(plan: Plan, packages: tuple[Package, ...]) -> Iterator[None]:
    try:
        yield
    except ProvisionError as error:
        if packages:
            old = ", ".join(f"{each.name} {each.installed}" for each in packages)
            units = " ".join(
                unit for unit, names in _units(plan) if any(names.fullmatch(each.name) for each in packages)
            )
            error.seen = "; ".join(filter(None, [error.seen, f"versions before the update: {old}"]))
            error.run = apt.way_back(packages) + (f" && systemctl restart {units}" if units else "")
        raise


def _restart(plan: Plan, narrate: Narrate) -> dict[str, Any]:
    """Restart each unit that uses replaced files, the server behind a paused pooler. Raises HostError."""
    facts: dict[str, Any] = {"restarted": []}
    for unit, _ in _units(plan):
        if not stale.replaced(unit):
            continue
        narrate(f"restart {unit}")
        if unit == plan.server.unit:
            rehearsal.rehearse(Path(plan.server.programs), plan.server.configuration)  # while the old server runs
            begun = time.monotonic()
            configuration.restart(plan, narrate)
            facts["down_seconds"] = round(time.monotonic() - begun, 1)
        else:
            program("systemctl", "restart", unit)
        facts["restarted"].append(unit)
    return facts


def _verify(plan: Plan, packages: tuple[Package, ...], before: dict[str, list[dict[str, Any]]]) -> None:
    """Raise HostError where a package is not the new one, a unit does not run it, or vector searches find less."""
    now = {each.name: each.installed for each in apt.look(plan)}
    wrong = [f"{each.name} is {now.get(each.name)}" for each in packages if now.get(each.name) != each.candidate]
    for unit, _ in _units(plan):
        if not program("systemctl", "is-active", "--quiet", unit, check=False).ok:
            wrong.append(f"{unit} does not run")
        elif left := stale.replaced(unit):
            wrong.append(f"{unit} still uses {left[0]}")
    for name, rows in before.items():
        wrong += search.differences(rows, search.measure(plan, name))
    if wrong:
        raise HostError("the update is not complete", where=plan.name, seen="; ".join(wrong))


def lines(found: Look) -> list[str]:
    """Return the plan of an update, one line for each part."""
    return [
        *(f"{each.name}: {each.installed} -> {each.candidate}" for each in found.packages),
        *(f"restart, if it uses a replaced file: {unit}" for unit in found.restarts),
        *(f"fixes {each}" for each in found.fixes),
        *(f"note: {each}" for each in found.notices),
        *(["an earlier update is not finished: the next one continues it"] if found.unfinished else []),
        *([] if found.packages else ["no packages to update"]),
        *([] if found.empty else ["to install: update.yml -e update_apply=yes, or provision update run on the host"]),
    ]
