"""The journal of an upgrade: its stages in order, what each found, and whether there is a way back. Reads and writes.

A stage is written before it begins, so that the same command continues after a kill. Until STARTED, the old server is
the database and a failure goes back to it. From STARTED on, the new server is: it may have accepted writes. RETURNING
is of a way back after that: the new server is closed. RETURNED is of one that loses nothing: the old server has every
row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provision import system
from provision.plan import upgrade

NAME = "upgrade"
STATUS = "provision upgrade status"
FOLDER = Path("/etc/provision/upgrade")
"""Of root: the plan of the new major, the plan and the configuration of the old one."""
NEW_PLAN, OLD_PLAN = FOLDER / "plan.json", FOLDER / "plan-before.json"
METHODS = ("copy", "link", "logical")

DOWN, NEW_SERVES = upgrade.DOWN, upgrade.NEW_SERVES
STOPPED, TRANSFERRED, STARTED, RETURNING, RETURNED = DOWN
_, SERVING, FINISHED, RETURNING, RETURNED = NEW_SERVES
COPYING = upgrade.COPYING
CHECKED, PREPARED, RELEASED, ROLLED_BACK = "checked", "prepared", "released", "rolled back"
ALONE, PRIMARY, REPLICA = "alone", "primary", "replica"
"""Parts of a host in an upgrade."""
HANDED_OVER, half_moved = upgrade.HANDED_OVER, upgrade.half_moved
OPEN = (CHECKED, PREPARED, COPYING, *DOWN, SERVING)
GOING_BACK = upgrade.GOING_BACK


def read() -> dict[str, Any]:
    """Return the journal, {} if this host was never upgraded."""
    return system.evidence(NAME, of_root=True)


def write(facts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Write the journal with these changes and return it."""
    facts = {**facts, **more, "when": system.stamp()}
    system.keep(NAME, facts)
    return facts


def state(facts: dict[str, Any]) -> str:
    """Return the state, "" if no upgrade was started."""
    return str(facts.get("state", ""))


def kept(facts: dict[str, Any]) -> bool:
    """Return whether a cluster is kept that no longer serves."""
    return state(facts) in (FINISHED, ROLLED_BACK)


def continues(identifier: int) -> bool:
    """Whether a cluster, by its system identifier, is one of the two of this host's last upgrade: one backup stanza
    holds both."""
    facts = read()
    clone = facts.get("part") == REPLICA and state(facts) == FINISHED
    return clone or identifier in facts.get("systems", [])


def described(facts: dict[str, Any]) -> str:
    """Describe the upgrade in one line."""
    return f"{facts.get('from')} to {facts.get('to')} by {facts.get('method')}: {state(facts)}, {facts.get('when')}"
