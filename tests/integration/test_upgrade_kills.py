"""Upgrades that are killed several times each: their command, its programs and the servers, while clients write.

`make test-upgrade-kills ROUNDS=10` runs ten rounds of each method, with SEED as those of an earlier run. The first kill
of a round comes in one of the states of the journal, the others at random. Then the same command continues, or the way
back is taken, without a kill. Rounds are counted from FIRST, so that one of them can be repeated.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from provision.host.server.cluster import Postmaster
from provision.host.upgrade import journal, replication, side
from provision.host.upgrade.side import Side
from tests import ledger
from tests.ledger import Ledger
from tests.upgrades import DIGEST, SCHEMA, Loopback, loopback

pytestmark = pytest.mark.faults
FIRST, ROUNDS = int(os.environ.get("UPGRADE_KILL_FIRST", "1")), int(os.environ.get("UPGRADE_KILL_ROUNDS", "1"))
SEED = os.environ.get("UPGRADE_KILL_SEED") or str(random.randrange(10**6))
PG_UPGRADE = "pg_upgrade runs the old server"
"""A moment beside those of the journal: this server has another socket than the clients'."""
OWN = (journal.CHECKED, PG_UPGRADE, journal.STARTED, journal.STOPPED, journal.TRANSFERRED, journal.PREPARED,
       journal.SERVING)  # fmt: skip
MOMENTS = {
    "copy": (*OWN, journal.RETURNING),
    "link": OWN,
    "logical": (journal.COPYING, journal.STOPPED, journal.STARTED, journal.TRANSFERRED, journal.SERVING,
                journal.RETURNING, journal.RETURNED, journal.CHECKED),
}  # fmt: skip
ROOT = Path(__file__).parents[2]
ORDER = ("", journal.CHECKED, journal.PREPARED, journal.COPYING, *journal.DOWN[:3], journal.SERVING, journal.FINISHED,
         journal.RETURNING, journal.RETURNED, journal.ROLLED_BACK)  # fmt: skip
VICTIMS = ("command", "command and programs", "programs", "old server", "new server", "all")
OVER = (journal.FINISHED, journal.ROLLED_BACK)
LIMIT_S = 240
ROWS = f"""
{ledger.CREATE};
CREATE TABLE counts (writer text PRIMARY KEY, n bigint);
INSERT INTO counts VALUES ('old', 0), ('new', 0);
CREATE FUNCTION count_row() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN UPDATE public.counts SET n = n + 1 WHERE writer = NEW.writer; RETURN NEW; END';
CREATE TRIGGER counted AFTER INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION count_row();
"""
COUNTED = "SELECT c.n - (SELECT count(*) FROM ledger l WHERE l.writer = c.writer) FROM counts c ORDER BY c.writer"
WRITTEN = "SELECT writer, count(*) FROM ledger GROUP BY 1 ORDER BY 1"


@dataclass
class Round:
    """One upgrade with its kills, and what it did."""

    upgrade: Loopback
    random: random.Random
    done: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        return journal.state(journal.read())

    @property
    def log(self) -> Path:
        return self.upgrade.root / "commands.log"

    def start(self, action: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "tests.upgrades", str(self.upgrade.root), self.upgrade.method, action]
        with self.log.open("a") as log:
            log.write(f"=== {action}, {self.state or 'new'}\n")
            log.flush()
            return subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def action(self) -> str:
        """Choose how to go on: with the same command, or back where there is a way."""
        served = self.state in journal.NEW_SERVES
        if self.state in journal.GOING_BACK:
            return "rollback"
        if self.state in ("", journal.CHECKED) or (served and self.upgrade.method == "link"):
            return "run"
        return self.random.choice(("run", "run", "rollback"))

    def kill(self, action: str, moment: str = "") -> None:
        """Run a command and kill something: soon after it has reached a moment, or at a random one."""
        delay = self.random.uniform(0, 0.6) if moment else self.random.uniform(0.5, 9)
        victim = self.random.choice(VICTIMS)
        process = self.start(action)
        deadline = time.monotonic() + LIMIT_S
        while moment and not self.reached(moment) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        with suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        found, seen = self.victims(victim, process.pid), self.state
        over = process.poll() is not None
        dead = [] if over else found or [process.pid]
        servers = [each for each in (self.upgrade.old, self.upgrade.new) if set(postmaster(each)) & set(dead)]
        for pid in dead:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10  # or the command has started it again
        while any(list(side._within(each.data, "postgres")) for each in servers) and time.monotonic() < deadline:
            time.sleep(0.05)  # systemd ends the rest of a killed server; here it ends by itself
        code = process.wait(LIMIT_S)
        killed = "ended before the kill" if over else f"{victim if found else 'command'} killed"
        self.done.append(f"{action}: {killed} in {seen or 'new'} (exit {code})")
        time.sleep(0.3)  # a child that is about to become another program still holds the lock

    def reached(self, moment: str) -> bool:
        if moment == PG_UPGRADE:
            found = Postmaster.read(self.upgrade.old.data)
            return found is not None and found.socket_directory == str(self.upgrade.work)
        return ORDER.index(self.state) >= ORDER.index(moment)  # a state may last less than a look at the journal

    def victims(self, victim: str, command: int) -> list[int]:
        """Return the processes to kill, none if there are no such programs or no such server now."""
        programs = [pid for pid in descendants(command) if not name(pid).startswith("postgres")]
        return {
            "command": [command],
            "command and programs": [command, *programs],
            "programs": programs,
            "old server": postmaster(self.upgrade.old),
            "new server": postmaster(self.upgrade.new),
            "all": [command, *programs, *postmaster(self.upgrade.old), *postmaster(self.upgrade.new)],
        }[victim]

    def end(self) -> None:
        """Continue or go back without a kill; each such command must succeed."""
        while self.state not in OVER:
            self.succeed(self.action())

    def succeed(self, action: str) -> None:
        code = self.start(action).wait(LIMIT_S)
        assert code == 0, f"{self.done}\n{self.log.read_text()[-4000:]}"
        self.done.append(action)


def descendants(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from descendants(int(child))
            yield int(child)


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def postmaster(place: Side) -> list[int]:
    found = Postmaster.read(place.data)
    return [found.pid] if found else []


@pytest.mark.parametrize("number", range(FIRST, FIRST + ROUNDS))
@pytest.mark.parametrize("method", journal.METHODS)
def test_killed_upgrade_ends_on_one_server_with_every_row(
    monkeypatch: pytest.MonkeyPatch, method: str, number: int
) -> None:
    begun, seed = time.monotonic(), f"{SEED}:{method}:{number}"
    with loopback(monkeypatch, 0, SCHEMA + ROWS, method, ports=2) as upgrade:
        rows = upgrade.ask(upgrade.old_plan, DIGEST)
        this = Round(upgrade, random.Random(seed))
        places = {"old": upgrade.old_plan, "new": upgrade.new_plan}
        written = Ledger({name: plan.server.url("minion") for name, plan in places.items()})
        with written.writing(0.5):
            _kill(this, MOMENTS[method][(number - 1) % len(MOMENTS[method])])
            this.end()
        accounts = _judge(this, written, rows)
    line = f"{method} {number}, seed {SEED}: {'; '.join(this.done)} -> {accounts}; {time.monotonic() - begun:.0f} s"
    print(f"\n{line}", flush=True)


def _kill(this: Round, moment: str) -> None:
    if moment in journal.GOING_BACK:
        this.succeed("run")
        this.kill("rollback", moment)
    else:
        this.kill("run", moment)
    for _ in range(this.random.randint(0, 2)):
        if this.state not in OVER:
            this.kill(this.action())


def _judge(this: Round, written: Ledger, rows: list[tuple[object, ...]]) -> str:
    """Compare what is left with what was acknowledged, and return it as text."""
    upgrade, end = this.upgrade, this.state
    plan, other = (upgrade.new_plan, upgrade.old) if end == journal.FINISHED else (upgrade.old_plan, upgrade.new)
    (upgrade.new_server if end == journal.FINISHED else upgrade.old_server).start()  # if it was killed at the end
    assert upgrade.ask(plan, DIGEST) == rows, this.done
    assert upgrade.ask(plan, COUNTED) == [(0,), (0,)], this.done
    old, new = written.accounts(plan.server.url("minion"))
    said = f"{end}, {old.acknowledged} and {new.acknowledged} rows acknowledged by the old and the new server"
    assert old.acknowledged > 0, said
    assert (old.lost, old.duplicates, new.duplicates) == ((), 0, 0), f"{said}: {this.done}, {old}"
    if upgrade.method != "copy" or end == journal.FINISHED:
        assert new.lost == (), f"{said}: {this.done}, {new}"
    if (upgrade.method, end) == ("logical", journal.FINISHED):
        this.succeed("run")  # starts the old server again, if it was killed
        replication.settle(upgrade.new_plan, upgrade.old_server.here, most=0, show=print)
        found = [upgrade.ask(each, WRITTEN) for each in (upgrade.new_plan, upgrade.old_server.here)]
        assert found[0] == found[1], this.done
    else:
        assert not other.running, this.done
    return f"{said}, {len(old.lost)} and {len(new.lost)} lost"
