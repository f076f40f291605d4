"""The failover ledger: writers that note every acknowledged row, and the count of what is left of them afterwards.

Each writer inserts RATE rows a second through one route, one transaction each, and never repeats an id. A row counts
as acknowledged when its INSERT has returned. A row whose connection broke before that may be there or not.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

RATE = 100
RETRY_S = 0.1
CREATE = "CREATE TABLE IF NOT EXISTS ledger (writer text, id bigint, at timestamptz DEFAULT clock_timestamp())"


@dataclass
class Writer:
    """One client. `acknowledged` is id -> seconds (monotonic) at which its INSERT returned."""

    name: str
    url: str
    acknowledged: dict[int, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    last: int = 0

    def write(self, stop: threading.Event) -> None:
        """Insert rows until `stop` is set; connect again after an error."""
        while not stop.is_set():
            try:
                with psycopg.connect(self.url, autocommit=True, prepare_threshold=None) as session:
                    while not stop.is_set():
                        begun = time.monotonic()
                        self.last += 1
                        session.execute("INSERT INTO ledger (writer, id) VALUES (%s, %s)", (self.name, self.last))
                        self.acknowledged[self.last] = time.monotonic()
                        time.sleep(max(0.0, begun + 1 / RATE - time.monotonic()))
            except psycopg.Error as error:
                self.errors.append(f"{time.monotonic() - self.begun:.1f} s: {str(error).splitlines()[0]}")
                time.sleep(RETRY_S)


@dataclass(frozen=True)
class Account:
    """What became of one writer's rows. `gap_s` is the longest time without an acknowledgement, the end included."""

    writer: str
    acknowledged: int
    lost: tuple[int, ...]
    duplicates: int
    unknown: int
    """Rows that are there without an acknowledgement."""
    errors: tuple[str, ...]
    gap_s: float

    def __str__(self) -> str:
        return (
            f"{self.writer}: {self.acknowledged} acknowledged, {len(self.lost)} lost, {self.duplicates} duplicates, "
            f"{self.unknown} unacknowledged, {len(self.errors)} errors, longest gap {self.gap_s:.2f} s"
        )


@dataclass
class Ledger:
    """Writers by route, and their threads."""

    routes: Mapping[str, str]
    writers: list[Writer] = field(default_factory=list)
    ended: float = 0

    @contextmanager
    def writing(self, settle_s: float = 2) -> Iterator[Ledger]:
        """Write during a `with` block and `settle_s` seconds before and after it."""
        stop = threading.Event()
        self.writers = [Writer(name, url) for name, url in self.routes.items()]
        threads = [threading.Thread(target=writer.write, args=(stop,), daemon=True) for writer in self.writers]
        for thread in threads:
            thread.start()
        time.sleep(settle_s)
        try:
            yield self
            time.sleep(settle_s)
        finally:
            self.ended = time.monotonic()
            stop.set()
            for thread in threads:
                thread.join(60)

    def resumed(self, since: float) -> bool:
        """Whether every writer has had a row acknowledged after a moment (monotonic)."""
        return all(max(writer.acknowledged.values(), default=0) > since for writer in self.writers)

    def written(self, rows: int) -> bool:
        """Whether every writer has had a number of rows acknowledged."""
        return all(len(writer.acknowledged) >= rows for writer in self.writers)

    def accounts(self, url: str) -> list[Account]:
        """Count the rows at a server. `url` must name the primary."""
        with psycopg.connect(url) as session:
            rows = session.execute("SELECT writer, id FROM ledger").fetchall()
        return [self._account(writer, Counter(number for name, number in rows if name == writer.name))
                for writer in self.writers]  # fmt: skip

    def _account(self, writer: Writer, present: Counter[int]) -> Account:
        times = sorted(writer.acknowledged.values())
        gaps = [later - earlier for earlier, later in itertools.pairwise([*times, max([self.ended, *times[-1:]])])]
        return Account(
            writer.name,
            len(times),
            tuple(sorted(set(writer.acknowledged) - set(present))),
            sum(count - 1 for count in present.values()),
            len(set(present) - set(writer.acknowledged)),
            tuple(writer.errors),
            max(gaps, default=float("inf")),
        )
