"""Update a host's packages within their versions: look, back up, install, restart, verify. Does IO, as root.

Files are replaced while the servers run; each unit that still uses a replaced file is restarted afterwards, the
server behind a paused pooler. The same command continues after a kill, because it asks the host what is left to do.
A failure names the old packages and the command that installs them again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
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
from provision.plan.schema import Plan
from provision.system import run as program

NAME = "update"
INSTALLING = "installing"
EXPORTERS = ("prometheus-node-exporter.service", "prometheus-postgres-exporter.service")
AUTOMATIC = "apt-daily-upgrade.timer"
Narrate = Callable[[str], None]


@dataclass(frozen=True)
class Look:
    """What an update would do: packages, units to restart, defects that end, and notices."""

    packages: tuple[Package, ...]
    restarts: tuple[str, ...]
    ends: tuple[str, ...]
    notices: tuple[str, ...]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.packages or self.restarts)


def look(plan: Plan) -> Look:
    """Read the package lists and ask the host. Changes nothing else. Raises HostError."""
    if plan.cluster:
        raise HostError(
            "update.yml takes single hosts", seen="a member of a cluster", allowed="cluster_enabled: false",
            run="apt-get install --only-upgrade on one member at a time, then provision cluster restart",
        )  # fmt: skip
    apt.refresh(plan)
    known = apt.look(plan)
    packages = tuple(each for each in known if each.newer and not each.held)
    found = [f"{each.name} {each.candidate} is available, and held: apt-mark unhold" for each in known
             if each.newer and each.held]  # fmt: skip
    found += [
        f"{each.name} {each.installed} is in no package source any more: the way back needs its file"
        for each in packages
        if not each.kept
    ]
    if program("systemctl", "is-enabled", "--quiet", AUTOMATIC, check=False).ok:
        found.append(
            f"{AUTOMATIC} is enabled: where unattended-upgrades is set up, it restarts servers without a pause"
        )
    if not plan.backup.physical:
        found.append("backup_physical is false: no backup is taken before the update")
    return Look(packages, tuple(_restarts(plan, packages)), tuple(ends(packages)), tuple(found))


def _units(plan: Plan) -> list[tuple[str, re.Pattern[str]]]:
    """Return the units in the order of their restart, each with the packages whose update needs it."""
    found = [(plan.server.unit, re.compile(rf"postgresql-{plan.server.major}(?:-.*)?"))]
    found += [(console.UNIT, re.compile("pgbouncer"))] if plan.pooler.enabled else []
    if plan.monitoring.exporters:
        found += [(unit, re.compile(re.escape(unit.removesuffix(".service")))) for unit in EXPORTERS]
    return found


def _restarts(plan: Plan, packages: tuple[Package, ...]) -> Iterator[str]:
    for unit, names in _units(plan):
        if any(names.fullmatch(each.name) for each in packages) or stale.replaced(unit):
            yield unit


def ends(packages: tuple[Package, ...]) -> Iterator[str]:
    """Yield the known defects that the new versions end."""
    for each in packages:
        product = "pgvector" if each.name.endswith("-pgvector") else each.name
        left = {row.id for row in compatibility.advisories(product, each.candidate, each.candidate)}
        for row in compatibility.advisories(product, each.installed, each.installed):
            if row.id not in left:
                yield f"{row.id}: {row.message}"


def run(plan: Plan, found: Look, narrate: Narrate) -> dict[str, Any]:
    """Install the packages and restart what uses replaced files. Raises HostError with the command back."""
    with locks.held(NAME, "another update is running on this host"):
        packages = since_before(found.packages, system.evidence(NAME, of_root=True))
        facts: dict[str, Any] = {"begun": system.stamp(), "packages": [asdict(each) for each in packages]}
        apt.finish(plan)
        narrate("take a backup")
        fresh.ensure(plan)
        before = {name: search.as_facts(search.measure(plan, name)) for name in plan.access.databases}
        narrate("download the packages")
        apt.download(plan, found.packages)
        system.keep(NAME, {**facts, "state": INSTALLING})
        with _with_way_back(plan, packages):
            if found.packages:
                narrate(f"install {len(found.packages)} packages")
                apt.install(plan, found.packages)
            facts |= _restart(plan, narrate)
            narrate("update extensions")
            facts["extensions"] = after.update_extensions(plan)
            _verify(plan, packages, before)
        facts |= {"state": "finished", "finished": system.stamp()}
        system.keep(NAME, facts)
        return facts


def since_before(packages: tuple[Package, ...], last: dict[str, Any]) -> tuple[Package, ...]:
    """Return the packages of this update and of an unfinished one before it, with the versions from before both."""
    found = {each.name: each for each in packages}
    if last.get("state") == INSTALLING:
        for row in last["packages"]:
            old = Package(**row)
            found[old.name] = replace(old, candidate=found.get(old.name, old).candidate)
    return tuple(sorted(found.values(), key=lambda each: each.name))


@contextmanager
def _with_way_back(plan: Plan, packages: tuple[Package, ...]) -> Iterator[None]:
    try:
        yield
    except ProvisionError as error:
        if packages:
            old = ", ".join(f"{each.name} {each.installed}" for each in packages)
            error.seen = f"{error.seen}; before the update: {old}"
            error.run = f"{apt.way_back(packages)}, then systemctl restart {plan.server.unit}"
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
        *(f"restart: {unit}" for unit in found.restarts),
        *(f"ends {each}" for each in found.ends),
        *(f"note: {each}" for each in found.notices),
        *([] if found.packages else ["every package has the newest version of its source"]),
        *([] if found.empty else ["nothing was changed; to start: update.yml -e update_apply=yes"]),
    ]
