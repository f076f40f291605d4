"""Database packages that are older than those of the host's package sources. Reads apt's package lists, no network.

`provision update check` reads the lists anew; a check must not, so that it reports lists that are too old to tell.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from provision.checks.finding import Severity
from provision.checks.registry import Row, check
from provision.errors import HostError
from provision.host.update import apt
from provision.host.update.apt import Package
from provision.plan.schema import Plan

LISTS = Path("/var/lib/apt/lists")
LISTS_DAYS = 30
"""PostgreSQL releases minor versions every three months, and others for severe defects (versioning policy)."""


@check(
    "updates",
    area="versions",
    expected=f"the newest packages of the host's sources, by package lists younger than {LISTS_DAYS} days",
    why="minor releases fix defects that lose data or let attackers in",
    development=True,
)
def updates(plan: Plan) -> Iterator[Row]:
    """Report packages with a newer version in the package lists; those on hold are accepted."""
    try:
        behind = [each for each in apt.look(plan) if each.newer]
    except HostError as error:
        yield f"{error.what}: {error.seen}", "apt-get check"
        return
    update = plan.site(playbook="update.yml", extra="-e update_apply=yes", every=bool(plan.cluster))  # in its order
    held = [each for each in behind if each.held]
    if seen := _listed(each for each in behind if not each.held):
        yield seen, update
    if held:
        names = " ".join(each.name for each in held)
        yield f"on hold: {_listed(held)}", f"apt-mark unhold {names}  # then {update}", Severity.ACCEPTED
    if plan.source.kind != "bundle" and (age := _age_days()) > LISTS_DAYS:
        yield f"the package lists were read {age:.0f} days ago, so newer packages are unknown", "apt-get update"


def _listed(packages: Iterable[Package]) -> str:
    return ", ".join(f"{each.name} {each.installed} (available: {each.candidate})" for each in packages)


def _age_days() -> float:
    """Return the age of the package lists: apt-get update writes to `partial` even if nothing is new."""
    times = [path.stat().st_mtime for path in (LISTS, LISTS / "partial") if path.exists()]
    return (time.time() - max(times, default=0)) / 86400
