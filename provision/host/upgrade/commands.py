"""The commands on the controller that continue, undo or end an upgrade, complete as they are printed."""

from __future__ import annotations

import os

from provision.errors import UsageError
from provision.plan.schema import Plan

LOSS = "discard"
"""Confirms that what the new server has written is lost."""


def word(plan: Plan) -> str:
    """Return the word that confirms: the host's name, or that of its cluster."""
    return plan.cluster.scope if plan.cluster else os.uname().nodename


def refuse(plan: Plan, confirm: str) -> None:
    """Raise UsageError unless a word confirms what stops the server or deletes a cluster."""
    if confirm != word(plan):
        raise UsageError(
            f"this must be confirmed with the name of the {'cluster' if plan.cluster else 'host'}",
            where=word(plan), seen=repr(confirm), allowed=f"-e upgrade_confirm={word(plan)}",
        )  # fmt: skip


def again(plan: Plan, to: object, method: object) -> str:
    """Return the command that begins an upgrade, or continues it."""
    return _upgrade(plan, f"-e upgrade_to={to} -e upgrade_method={method}")


def rollback(plan: Plan, *, loses: bool = False) -> str:
    """Return the command that goes back to the old server; `loses`: with what the new one has written."""
    return _upgrade(plan, "-e upgrade_rollback=yes") + (f" -e upgrade_confirm_loss={LOSS}" if loses else "")


def release(plan: Plan) -> str:
    """Return the command that deletes the cluster that no longer serves."""
    return _upgrade(plan, "-e upgrade_release=yes")


def _upgrade(plan: Plan, options: str) -> str:
    extra = f"{options} -e upgrade_confirm={word(plan)}"
    if not plan.cluster:
        return plan.site(playbook="upgrade.yml", extra=extra)
    return plan.site(
        playbook="upgrade.yml", extra=f"--limit {','.join(each.name for each in plan.members)} {extra}", every=True
    )
