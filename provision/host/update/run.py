"""Update a host's packages within their major: look, back up, install, restart, verify. Does IO, as root.

Files are replaced while the servers run; each unit that still uses a replaced file is restarted afterwards, the
server behind a paused pooler, or in a cluster through Patroni (`rolling`). The same command continues after a kill.
A failure names the old packages and the command that installs them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from provision import compatibility, system
from provision.errors import HostError, ProvisionError
from provision.host.backup import fresh
from provision.host.backup import journal as locks
from provision.host.cluster import life
from provision.host.member import restart as member
from provision.host.update import apt, rolling, units
from provision.host.update.apt import Package
from provision.host.upgrade import after, search
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
    last: bool = False
    """The host is the primary of its cluster, which is updated after the other hosts."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.packages or self.restarts or self.unfinished)


def look(plan: Plan) -> Look:
    """Read the package lists and ask the host. Changes nothing else. Raises HostError."""
    unfinished = system.evidence(NAME, of_root=True).get("state") == INSTALLING
    if plan.cluster:
        rolling.refuse(plan, unfinished=unfinished)
    apt.refresh(plan)
    known = apt.look(plan)
    packages = tuple(each for each in known if each.newer and not each.held)
    if plan.cluster:
        rolling.refuse_etcd(plan, packages)
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
    if units.serves(plan) and not plan.backup.physical:
        found.append("backup_physical is false: no backup is taken before the update")
    if any(each.kind == "host" for each in plan.backup.repositories):
        found += [
            f"{each.name} {each.candidate}: the backup host needs the same version, so update it there first"
            for each in packages
            if each.name == "pgbackrest"
            and compatibility.version_key(each.candidate) != compatibility.version_key(each.installed)
        ]
    return Look(
        packages, tuple(_restarts(plan, packages)), tuple(fixes(packages)), tuple(found), unfinished,
        last=rolling.is_primary(plan),
    )  # fmt: skip


def _restarts(plan: Plan, packages: tuple[Package, ...]) -> Iterator[str]:
    for unit in units.of(plan):
        if any(unit.packages.fullmatch(each.name) for each in packages) or unit.replaced():
            yield unit.name


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
        if plan.members:
            member.finish(plan)
            member.refuse_pause(plan)
        installed = {each.name: each.installed for each in apt.look(plan)}
        packages = since_before(found.packages, system.evidence(NAME, of_root=True), installed)
        facts: dict[str, Any] = {"begun": system.stamp(), "packages": [asdict(each) for each in packages]}
        apt.finish(plan)
        if found.last or not plan.cluster:  # a replica is a copy, and takes no backups
            narrate("check for a backup from the last hour")
            fresh.ensure(plan)
        before = _searches(plan)
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
            if not plan.cluster:
                narrate("update extensions")
                facts["extensions"] = after.update_extensions(plan)
                _verify(plan, packages, before)
        facts |= {"state": "finished", "finished": system.stamp()}
        system.keep(NAME, facts)
        return facts


def extensions(plan: Plan) -> tuple[dict[str, list[str]], list[str]]:
    """Update extensions, in a cluster on the primary alone, once every member has the new files.

    Return what was updated, by database, and what waits for a member. Raises HostError if a search then finds less.
    """
    if plan.cluster and not rolling.is_primary(plan):
        return {}, []
    if plan.cluster and (waits := rolling.behind(plan)):
        return {}, waits
    before = _searches(plan)
    done = after.update_extensions(plan)
    if done and (wrong := list(_worse(plan, before))):
        raise HostError("a search finds less after the update of extensions", where=plan.name, seen="; ".join(wrong))
    return done, []


def _searches(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    names = plan.access.databases if units.serves(plan) else ()
    return {name: search.as_facts(search.measure(plan, name)) for name in names}


def _worse(plan: Plan, before: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
    for name, rows in before.items():
        yield from search.differences(rows, search.measure(plan, name))


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
        state = _state(plan)
        if packages:
            old = ", ".join(f"{each.name} {each.installed}" for each in packages)
            concerned = [
                unit.back for unit in units.of(plan) if any(unit.packages.fullmatch(each.name) for each in packages)
            ]
            error.seen = "; ".join(filter(None, [error.seen, f"versions before the update: {old}", state]))
            back = " && ".join([apt.way_back(packages), *concerned])
            error.run = f"{error.run}; or go back: {back}" if error.run else back
        raise


def _state(plan: Plan) -> str:
    """Say what a failure left of the cluster, "" on a host without a server of it."""
    if not plan.members:
        return ""
    try:
        found = rolling.gaps(plan)
    except ProvisionError as error:
        found = [str(error)]
    return f"the cluster is not complete: {'; '.join(found)}" if found else "the cluster is complete"


def _restart(plan: Plan, narrate: Narrate) -> dict[str, Any]:
    """Restart each unit that uses replaced files. Raises HostError."""
    facts: dict[str, Any] = {"restarted": []}
    program("systemctl", "daemon-reload")  # a package that may start no service leaves a new unit file unread
    for unit in units.of(plan):
        if not unit.replaced():
            continue
        narrate(f"restart {unit.name}")
        facts |= unit.restart(narrate)
        facts["restarted"].append(unit.name)
    return facts


def _verify(plan: Plan, packages: tuple[Package, ...], before: dict[str, list[dict[str, Any]]]) -> None:
    """Raise HostError where a package is not the new one, a unit does not run it, or vector searches find less."""
    now = {each.name: each.installed for each in apt.look(plan)}
    wrong = [f"{each.name} is {now.get(each.name)}" for each in packages if now.get(each.name) != each.candidate]
    for unit in units.of(plan):
        if not unit.runs():
            wrong.append(f"{unit.name} does not run")
        elif left := unit.replaced():
            wrong.append(f"{unit.name} still uses {left[0]}")
    wrong += _worse(plan, before)
    if plan.cluster:
        wrong += rolling.settled(plan, life.RETURN_S)
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
        *(["the primary: updated after the other hosts of the cluster"] if found.last and not found.empty else []),
        *([] if found.packages else ["no packages to update"]),
        *([] if found.empty else ["to install: update.yml -e update_apply=yes, or provision update run on the host"]),
    ]
