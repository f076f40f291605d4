"""Bring systemd units into the requested state, decided by what systemd says and not by what this run changed.

A run may have been killed between placing a file and starting its unit. `parse` and `decide` are pure; the rest asks
systemd and changes it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from . import timers
from .listeners import holder, listening, serves

SYSTEM = Path("/etc/systemd/system")
LISTEN_S = 5.0
"""Time for a started unit to listen on its port."""
RUNNING = ("active", "reloading", "refreshing")
ENABLED = ("enabled", "enabled-runtime", "static", "alias", "indirect", "generated")
"""States for which `systemctl is-enabled` exits 0 (systemctl(1)): there is nothing to enable."""
PROPERTIES = (
    "Names,LoadState,ActiveState,SubState,UnitFileState,ActiveEnterTimestamp,NeedDaemonReload,MainPID,ControlGroup"
)


class UnitError(Exception):
    """A unit could not be brought into the requested state."""


@dataclass(frozen=True)
class Unit:
    """The requested state of one unit, as the module's option `units` describes it."""

    name: str
    state: str = "started"
    enabled: bool | None = None
    reload_files: tuple[str, ...] = ()
    listens: int | None = None
    restart: bool = True
    only_if: str = ""
    creates: str = ""

    @property
    def at_boot(self) -> bool | None:
        """Whether the unit is to be enabled; None leaves that alone."""
        if self.enabled is not None:
            return self.enabled
        return None if self.creates or self.state == "ignored" else self.state == "started"


@dataclass(frozen=True)
class Seen:
    """What systemd says of a unit; `since` is the second (Unix time) in which it became active, 0 for never.

    `fault` says why a timer will not elapse, "" for one that will and for every other unit.
    """

    load: str
    active: str
    enabled: str
    since: int
    reload: bool
    main_pid: int
    group: str
    fault: str = ""


def parse(shown: str) -> dict[str, Seen]:
    """Read the output of `systemctl show --property=PROPERTIES` with TZ=UTC, by every name of each unit."""
    found = {}
    for block in shown.strip().split("\n\n"):
        row = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        names = row.get("Names", "").split()
        states = [row.get(name, "") for name in ("LoadState", "ActiveState", "SubState")]
        seen = Seen(
            row.get("LoadState", ""),
            row.get("ActiveState", ""),
            row.get("UnitFileState", ""),
            _second(row.get("ActiveEnterTimestamp", "")),
            row.get("NeedDaemonReload") == "yes",
            int(row.get("MainPID") or 0),
            row.get("ControlGroup", ""),
            timers.fault(*states) if names and names[0].endswith(".timer") else "",
        )
        found.update(dict.fromkeys(names, seen))
    return found


def _second(timestamp: str) -> int:
    """Read a timestamp such as "Sat 2026-11-28 09:17:38 UTC"; "" and "n/a" are 0."""
    words = timestamp.split()
    if len(words) != 4:
        return 0
    return int(datetime.fromisoformat(f"{words[1]} {words[2]}").replace(tzinfo=UTC).timestamp())


def decide(unit: Unit, seen: Seen, newest: int, *, created: bool = True) -> tuple[str, ...]:
    """Say what to do with a unit: words of VERBS, or pending for a forbidden restart.

    `newest` is the second in which the last of its files was written, 0 where it has none. A file of the very second
    in which the unit started may be newer than the unit, so it counts as newer. `created` says that the file of
    `creates` is there.
    """
    if seen.load == "not-found":
        return ()
    running, actions = seen.active in RUNNING, []
    if unit.state == "stopped":
        actions += ["disable"] if seen.enabled == "enabled" and unit.at_boot is False else []
        return (*actions, "stop") if running or seen.active == "activating" else tuple(actions)
    if unit.at_boot and seen.enabled not in ENABLED:
        actions.append("enable")
    if unit.at_boot is False and seen.enabled == "enabled":
        actions.append("disable")
    if unit.creates:
        return tuple(actions) if created else (*actions, "start")
    if unit.state == "started" and not running:
        # Without a reset systemd refuses to start a unit that failed five times in ten seconds.
        actions += ["reset-failed", "start"] if seen.active == "failed" else ["start"]
    elif running and newest and seen.since <= newest:
        actions.append("restart" if unit.restart else "pending")
    elif running and seen.fault and unit.state == "started":
        actions.append("restart")  # systemd gives it no next time when only its file is fixed
    return tuple(actions)


VERBS = ("disable", "stop", "enable", "reset-failed", "start", "restart")
"""Commands of systemctl, in the order in which they are run."""
DONE = {"enable": "enabled", "disable": "disabled", "start": "started", "stop": "stopped", "restart": "restarted"}


def sentences(unit: Unit, actions: Iterable[str]) -> list[str]:
    """Say what was done, or would be done, with a unit."""
    return [f"{DONE[action]} {unit.name}" for action in actions if action in DONE]


def patterns(paths: Iterable[Path]) -> list[str]:
    """Name the units that these files of /etc/systemd/system describe; an instance is matched if it is loaded."""
    found = []
    for path in paths:
        name = path.name if path.parent == SYSTEM else path.parent.name.removesuffix(".d")
        if path.is_relative_to(SYSTEM) and "." in name:
            found.append(name.replace("@.", "@*.", 1))
    return list(dict.fromkeys(found))


def show(names: Sequence[str]) -> dict[str, Seen]:
    """Ask systemd about all these units in one call. Raises UnitError."""
    return parse(systemctl("show", f"--property={PROPERTIES}", *names)) if names else {}


def systemctl(*words: str) -> str:
    """Run systemctl and give its output. Raises UnitError with its own words."""
    environment = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False, env=environment)  # noqa: S603, S607
    if done.returncode != 0:
        raise UnitError(f"systemctl {' '.join(words)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout


def newest(unit: Unit, changing: Iterable[str] = ()) -> int:
    """Return the second of the last change of a unit's files; `changing` are files that this run would write."""
    if set(unit.reload_files) & set(changing):
        return int(time.time()) + 1
    return max((int(path.stat().st_mtime) for path in map(Path, unit.reload_files) if path.exists()), default=0)


def plan(
    units: Sequence[Unit], seen: dict[str, Seen], changing: Iterable[str] = ()
) -> list[tuple[Unit, tuple[str, ...]]]:
    """Decide for every unit whose `only_if` is there, by what systemd and the files say now."""
    found = []
    for unit in units:
        if unit.only_if and not Path(unit.only_if).exists():
            continue
        made = not unit.creates or (Path(unit.creates).exists() and Path(unit.creates).stat().st_size > 0)
        found.append((unit, decide(unit, seen[unit.name], newest(unit, changing), created=made)))
    return found


def apply(planned: Sequence[tuple[Unit, tuple[str, ...]]]) -> list[str]:
    """Do what `plan` decided, one call of systemctl for each kind of action. Raises UnitError."""
    names = {verb: [unit.name for unit, actions in planned if verb in actions] for verb in VERBS}
    _next_second([newest(unit) for unit, actions in planned if {"start", "restart"} & set(actions)])
    for verb in VERBS:
        if names[verb]:
            try:
                systemctl(verb, *names[verb])
            except UnitError as error:
                raise UnitError(f"{error} {' '.join(f'{name}: {last_words(name)}' for name in names[verb])}") from None
    return [text for unit, actions in planned for text in sentences(unit, actions)]


def _next_second(written: Sequence[int]) -> None:
    """Wait until the second in which the last file was written is over, so that the next run sees a younger unit."""
    left = max(written, default=0) + 1 - time.time()
    if 0 < left <= 1:
        time.sleep(left)


def require_elapsing(units: Iterable[Unit], seen: dict[str, Seen]) -> None:
    """Prove that each timer that should run will elapse. Raises UnitError with the command that shows its schedule."""
    for unit in units:
        found = seen[unit.name]
        if unit.state == "started" and found.load != "not-found" and found.fault:
            raise UnitError(
                f"{unit.name} {found.fault}: see systemctl cat {unit.name}, and systemctl status {unit.name}"
            )


def require_listening(units: Iterable[Unit], seen: dict[str, Seen], timeout_s: float = LISTEN_S) -> None:
    """Wait until each unit that has a port runs and its own processes listen there. Raises UnitError."""
    waiting = [(unit, unit.listens) for unit in units if unit.listens]
    deadline = time.monotonic() + timeout_s
    while waiting := [(unit, port) for unit, port in waiting if not _listens(seen[unit.name], port)]:
        if time.monotonic() >= deadline:
            unit, port = waiting[0]
            other = holder(listening(port))
            raise UnitError(
                f"{unit.name} ({seen[unit.name].active}) does not listen on port {port}"
                + (f", which {other} holds" if other else "")
                + f": {last_words(unit.name)}"
            )
        time.sleep(0.25)
        seen = show([unit.name for unit, _ in waiting])


def _listens(seen: Seen, port: int) -> bool:
    return seen.active in RUNNING and serves(seen.group, seen.main_pid, port)


def last_words(name: str) -> str:
    """Return the last line that a unit wrote to the journal, else the last one that systemd wrote about it."""
    for which in (f"_SYSTEMD_UNIT={name}", f"--unit={name}"):
        words = ["journalctl", which, "--lines=1", "--output=cat", "--no-pager", "--quiet"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
        if text := done.stdout.strip():
            return text
    return "its journal is empty"
