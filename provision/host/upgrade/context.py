"""One upgrade: its two plans, its journal, and what every method does around its own stages. Does IO as root."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provision import secure_path, system
from provision.database import ask
from provision.errors import HostError, ProvisionError
from provision.host.upgrade import after, journal, search, side
from provision.host.upgrade.closed import Server
from provision.host.upgrade.sessions import session_of
from provision.host.upgrade.side import Side
from provision.plan import load
from provision.plan.schema import Plan

Narrate = Callable[[str], None]
HELPERS = ("provision-backup@*.service", "provision-drill.service", "provision-maintain@*.service")
"""Units that use the old server, and would be cut off."""
CHECK, BACKUP, RECALL, VERIFY, STATISTICS = (
    "check the old server",
    "take a backup",
    "measure the recall of vector searches",
    "verify the new server",
    "collect all statistics",
)
"""Stages of every method."""


@dataclass
class Upgrade:
    """One upgrade: plans of both majors, the method, the journal and where stages are reported."""

    old_plan: Plan
    new_plan: Plan
    method: str
    narrate: Narrate
    stages: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    made: bool = False
    """This process has made the new cluster, and pg_upgrade has only checked it since."""

    @property
    def old(self) -> Side:
        """The old cluster."""
        return Side.of(self.old_plan)

    @property
    def new(self) -> Side:
        """The new cluster."""
        return Side.of(self.new_plan)

    @property
    def old_server(self) -> Server:
        """The old server, where it may be closed."""
        return Server(self.old_plan, self.old, self.work / "old")

    @property
    def new_server(self) -> Server:
        """The new server, where it may be closed."""
        return Server(self.new_plan, self.new, self.work / "new")

    @property
    def work(self) -> Path:
        """The directory of pg_upgrade's own files, and of the sockets of closed servers."""
        return self.new.data.parent.parent / f"upgrade-{self.new.major}"

    def write(self, state: str, **more: Any) -> None:
        """Write the state to the journal before its stage begins."""
        self.facts = journal.write(self.facts, state=state, **more)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Report a stage, with its number and its time, and keep the time."""
        title = f"{self.stages.index(name) + 1}/{len(self.stages)} {name}"
        self.narrate(title)
        begun = time.monotonic()
        yield
        seconds = round(time.monotonic() - begun, 1)
        self.facts.setdefault("seconds", {})[name] = seconds
        self.narrate(f"{title}: {seconds} s")


def plans() -> tuple[Plan, Plan]:
    """Return the plans of the old and the new major. Raises HostError where upgrade.yml has not prepared the host."""
    now = load.load()
    new = load.load(journal.NEW_PLAN)
    old = load.load(journal.OLD_PLAN) if journal.state(journal.read()) in journal.NEW_SERVES else now
    return old, new


def refuse(upgrade: Upgrade, problems: list[str]) -> None:
    """Raise HostError if there are problems, all of which have left the old server as it was."""
    if problems:
        raise HostError(
            f"PostgreSQL {upgrade.old.major} cannot be upgraded to {upgrade.new.major} yet; the old server serves",
            seen="\n".join(problems), run=f"provision upgrade check --method {upgrade.method}, once each is resolved",
        )  # fmt: skip


def keep_old(upgrade: Upgrade) -> None:
    """Keep plan and configuration of the old server, for a way back."""
    side.keep_configuration(upgrade.old, journal.FOLDER)
    system.write(journal.OLD_PLAN, load.text(upgrade.old_plan), mode=0o640, owner=owner(load.PATH))


def owner(path: Path) -> tuple[int, int]:
    """Return the ids of a file's owner and group, those of root if there is none."""
    found = secure_path.about(path)
    return (found.st_uid, found.st_gid) if found else (0, 0)


@contextmanager
def or_back(back: Callable[[], None]) -> Iterator[None]:
    """Let the old server serve again if the `with` block fails or is interrupted, and say so in its error."""
    try:
        yield
    except BaseException as error:
        back()
        if isinstance(error, ProvisionError):
            said = "the old server serves again; repeat the command once it is resolved"
            error.run = f"{error.run}; {said}" if error.run else said
        raise


def publish(plan: Plan) -> None:
    """Make a plan the host's: every command and timer reads it from now on."""
    system.write(load.PATH, load.text(plan), mode=0o640, owner=owner(load.PATH))


def verify(upgrade: Upgrade, plan: Plan) -> list[str]:
    """Return how the new server differs from what the old one had: its major, its contents, its vector searches."""
    with session_of(plan) as session:
        version = int(str(ask(session, "SHOW server_version_num")[0][0])) // 10000
    found = [] if version == plan.server.major else [f"the server is {version}"]
    found += after.missing(upgrade.facts.get("databases", {}), after.contents(plan))
    for name, rows in upgrade.facts.get("before", {}).items():
        found += search.differences(rows, search.measure(plan, name))
    return found
