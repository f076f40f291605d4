"""When a recovery that gets nowhere is stuck, and when its repository is merely slow."""

from __future__ import annotations

import pytest

from provision.host.backup.recovery import STUCK_S, _Progress


@pytest.mark.parametrize(
    ("looks", "stuck"),
    [
        # One command that takes its time may yet answer.
        ([("RestoreCommand", "71")] * 50, False),
        # Its server pauses between two ...
        ([("RestoreCommand", "71"), ("RecoveryRetrieveRetryInterval", "")] * 10, True),
        # ... or never does, since each takes longer than the pause: every look finds one at work, but another one.
        ([("RestoreCommand", str(pid)) for pid in range(11)], True),
        ([("RestoreCommand", str(pid)) for pid in range(10)], False),
        # It replays, and so waits for nothing.
        ([("", "")] * 50, False),
    ],
)
def test_recovery_is_stuck_once_command_after_command_brought_nothing(
    looks: list[tuple[str, str]], stuck: bool
) -> None:
    seen = _Progress()
    for waits, command in looks:
        seen.note(7, waits, command)
    assert not seen.stuck  # for it has not lasted
    seen.moved -= STUCK_S + 1
    assert seen.stuck is stuck
    seen.note(8, "RestoreCommand", "99")
    assert not seen.stuck
