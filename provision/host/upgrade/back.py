"""The way back from an upgrade, and its end: start the old server again, or delete the old cluster. Does IO as root.

Before the new server starts, a rollback loses nothing. After that, `link` has none, because both clusters share their
files; `copy` loses later writes, which must be confirmed; `logical` loses nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provision import secure_path, system
from provision.errors import HostError, UsageError
from provision.host.backup import journal as locks
from provision.host.upgrade import commands, journal, members, run, side
from provision.host.upgrade.context import Upgrade


def rollback(upgrade: Upgrade, confirm: str, loss: str) -> dict[str, Any]:
    """Return to the old server. Raises UsageError without the confirmations, HostError where there is no way back."""
    with locks.held(journal.NAME, "an upgrade is running on this host", journal.STATUS):
        upgrade.facts = journal.read()
        state = journal.state(upgrade.facts)
        if state == journal.ROLLED_BACK and upgrade.new_plan.server.patroni:
            if journal.half_moved(upgrade.facts):  # replicas are still to leave
                members.mark(upgrade, back=True)
            return upgrade.facts
        if state not in (*journal.OPEN, journal.FINISHED):
            raise HostError("there is no upgrade to go back from", seen=state or "none", run=journal.STATUS)
        served, method = state in journal.NEW_SERVES, run.METHODS[upgrade.method]
        if served and upgrade.facts["method"] == "link":
            raise HostError(
                "a link upgrade has no way back once its new server has started: both clusters share their files",
                where=str(upgrade.old.data), seen=journal.described(upgrade.facts),
                allowed="a restore of the last backup of the old major, which loses later writes",
                run="docs/move-to-another-major.md",
            )  # fmt: skip
        commands.refuse(upgrade.new_plan, confirm)
        if served and not method.keeps and loss != commands.LOSS:
            raise UsageError(
                f"everything written since PostgreSQL {upgrade.new.major} started is lost",
                where=upgrade.new_plan.name, seen=repr(loss), allowed=f"-e upgrade_confirm_loss={commands.LOSS}",
            )  # fmt: skip
        method.back(upgrade, served)
        upgrade.write(journal.ROLLED_BACK, **{journal.HANDED_OVER: False})
        members.mark(upgrade, back=True)
        return upgrade.facts


def release(upgrade: Upgrade, confirm: str) -> list[str]:
    """Delete the cluster that no longer serves, and return what was deleted. Raises UsageError, HostError."""
    with locks.held(journal.NAME, "an upgrade is running on this host", journal.STATUS):
        upgrade.facts = journal.read()
        state = journal.state(upgrade.facts)
        if state in ("", journal.RELEASED) and upgrade.new_plan.server.patroni:
            return []
        if state not in (journal.FINISHED, journal.ROLLED_BACK):
            raise HostError(
                "there is no old cluster to release", seen=journal.described(upgrade.facts) if state else "no upgrade"
            )
        if journal.half_moved(upgrade.facts):
            raise HostError(
                "the replicas have not left the cluster that no longer serves", seen=journal.described(upgrade.facts),
                run=journal.STATUS,
            )  # fmt: skip
        gone, kept = (upgrade.old, upgrade.new) if state == journal.FINISHED else (upgrade.new, upgrade.old)
        if not kept.running:
            raise HostError("the server to keep is not running", where=str(kept.data), run="provision doctor")
        commands.refuse(upgrade.new_plan, confirm)
        if state == journal.FINISHED:
            run.METHODS[upgrade.method].release(upgrade, upgrade.new_server, upgrade.old_server)
        if gone.running:
            raise HostError("the cluster to delete still has a running server", where=str(gone.data))
        found = [path for path in _paths(gone, upgrade.work) if secure_path.about(path) is not None]
        for path in found:
            secure_path.remove_tree(path)
        if gone.unit:
            system.run("systemctl", "daemon-reload")
        upgrade.write(journal.RELEASED)
        return [str(path) for path in found]


def _paths(gone: side.Side, work: Path) -> list[Path]:
    drop_in = [Path(f"/etc/systemd/system/{gone.unit}.d")] if gone.unit else []
    return [gone.data, gone.configuration, work, *drop_in]
