"""The commands on the controller that continue, undo or end an upgrade, complete as they are printed."""

from __future__ import annotations

import os

from provision.plan.schema import Plan

LOSS = "discard"
"""Confirms that what the new server has written is lost."""


def host() -> str:
    """Return the word that confirms: the host's name."""
    return os.uname().nodename


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
    return plan.site(playbook="upgrade.yml", extra=f"{options} -e upgrade_confirm={host()}")
