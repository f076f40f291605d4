"""The age of the newest backup, and a new one where it is older than an hour: before upgrades and updates. Does IO."""

from __future__ import annotations

import time

from provision import system
from provision.errors import ProvisionError
from provision.host.backup import tool
from provision.plan.schema import Plan

FRESH_H = 1.0
PROGRAM = "/usr/local/bin/provision"


def age_h(plan: Plan) -> float | None:
    """Return the age of the newest sound backup in hours, None without one. Skips repositories that cannot be read."""
    ages = []
    for repository in plan.backup.repositories:
        try:
            sets = [each for each in tool.info(plan.backup.stanza, repository.number).sets if not each.damaged]
        except ProvisionError:
            continue
        ages += [(time.time() - each.stop) / 3600 for each in sets[-1:]]
    return min(ages) if ages else None


def ensure(plan: Plan) -> None:
    """Take a backup, unless physical backups are off or the newest is less than an hour old. Raises HostError."""
    if not plan.backup.physical:
        return
    age = age_h(plan)
    if age is None or age > FRESH_H:
        system.run(PROGRAM, "backup", "take", "--type", "incr" if age is not None else "full")
