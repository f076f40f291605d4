"""The sides of a major upgrade in a stanza: a restore reaches those of its own major alone.

Reads the repository. WAL of one major cannot be replayed by another, so that no restore crosses an upgrade. A stanza
has a side for each cluster: after the way back to the old major there are three, two of them of one major.
"""

from __future__ import annotations

import shlex

from provision.errors import UsageError
from provision.host.backup.catalogue import Catalogue
from provision.host.backup.targets import Target, Window

PLACED = ("time", "lsn")
"""Kinds of targets that a window contains or not; others are found by replay only."""


def choose(catalogue: Catalogue, target: Target, label: str, asked: str) -> Window:
    """Choose the set for a target: of this cluster, else of an earlier one of the same major.

    `asked` is the target as it was given. Raises UsageError with the windows of every side where the target is on
    another side, else with those of this one; BackupError.
    """
    try:
        return catalogue.choose(target, label)
    except UsageError as error:
        others = catalogue.others
        found = [(each, window) for each in reversed(others) if (window := _window(each, target, label))]
        own = [window for each, window in found if each.major == catalogue.major]
        if own:
            return own[0]
        if found or _before(catalogue, others, target, label):
            beyond = found[0][0].major if found else ""
            raise _crossing(catalogue, others, beyond, target, label, asked) from None
        raise error


def _window(side: Catalogue, target: Target, label: str) -> Window | None:
    """Return the window of another side that reaches the target: its archive has ended."""
    try:
        found = side.choose(target, label) if label or target.kind in PLACED else None
    except UsageError:
        return None
    return None if found and target.kind == "time" and target.at > found.until else found


def _before(catalogue: Catalogue, others: list[Catalogue], target: Target, label: str) -> bool:
    """Whether a time lies between the sides, or this side has no backup that can be restored."""
    if label or not others:
        return False
    windows = catalogue.windows
    return not windows or (target.kind == "time" and target.at < min(each.since for each in windows))


def _crossing(
    catalogue: Catalogue, others: list[Catalogue], beyond: str, target: Target, label: str, asked: str
) -> UsageError:
    """Return the refusal; `beyond` is the major whose backups reach the target, "" if none do."""
    stanza = catalogue.repository.stanza
    words = [
        "provision",
        "restore",
        "plan",
        "--stanza",
        stanza,
        "--target",
        asked,
        *(["--set", label] if label else []),
    ]
    there = f"reached by the backups of PostgreSQL {beyond}" if beyond else "reached by no backup"
    sides = sorted([catalogue, *others], key=lambda each: each.database)
    return UsageError(
        "the target is on the other side of a major upgrade, which no restore crosses",
        where=f"stanza {stanza}",
        seen=f"{f'set {label}' if label else target}, {there}; this host has PostgreSQL {catalogue.major}",
        allowed="; ".join(f"PostgreSQL {each.major}: {_windows(each)}" for each in sides),
        run=f"{shlex.join(words)} on another host, with PostgreSQL {beyond}, that reads this repository"
        if beyond
        else "provision backup status",
    )


def _windows(side: Catalogue) -> str:
    return ", ".join(map(str, side.windows)) or "nothing: no set has complete WAL"
