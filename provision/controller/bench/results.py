"""What a comparison of configurations measured, its ratios and its tables. Pure, except `load` and `save`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from provision.controller.bench.intervals import Ratio, ratio
from provision.errors import UsageError

Measured = TypeVar("Measured")
WRITING = ("TPC-B", "mixed")
KEYS = ("server", "pgvector", "machine", "sizes")
"""What must be equal in results that are combined."""


@dataclass(frozen=True)
class Sample:
    """One stage of one round. p95 in ms; CPU time of the server in us and WAL in bytes, per transaction."""

    tps: float
    p95: float
    cpu_us: float
    wal_bytes: float


@dataclass(frozen=True)
class Build:
    """One build of the index on the hard data set: seconds, CPU seconds of the server, WAL in MB; recall by search."""

    seconds: float
    cpu_s: float
    wal_mb: float
    recall: Mapping[str, float]


@dataclass
class Results:
    """Every sample by configuration and round. `configurations` maps a name to its lines of postgresql.conf."""

    when: str
    machine: str
    server: str
    pgvector: str
    sizes: dict[str, float]
    configurations: dict[str, str]
    rounds: dict[str, list[dict[str, Sample]]] = field(default_factory=dict)
    builds: dict[str, list[Build]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def stages(self) -> list[str]:
        """Return the stages in the order in which they ran."""
        return list(next((rounds[0] for rounds in self.rounds.values() if rounds), {}))

    def whole(self, name: str, base: str) -> tuple[list[dict[str, Sample]], list[dict[str, Sample]]]:
        """Return the rounds that both configurations finished: a run may end in the middle of one."""
        count = min(len(self.rounds.get(name, [])), len(self.rounds.get(base, [])))
        return self.rounds.get(name, [])[:count], self.rounds.get(base, [])[:count]


@dataclass(frozen=True)
class Column:
    """One column: a stage, and the number that it shows of its samples."""

    stage: str
    of: Callable[[Sample], float]


def columns(stages: Sequence[str]) -> dict[str, list[Column]]:
    """Return the columns of each table by its title; only stages that write have WAL."""
    parts: dict[str, Callable[[Sample], float]] = {
        "transactions per second": lambda sample: sample.tps,
        "CPU time of the server per transaction": lambda sample: sample.cpu_us,
        "p95 latency": lambda sample: sample.p95,
    }
    found = {title: [Column(stage, of) for stage in stages] for title, of in parts.items()}
    writing = [Column(stage, lambda sample: sample.wal_bytes) for stage in stages if stage in WRITING]
    return {**found, "WAL per transaction": writing} if writing else found


def ratios(results: Results, column: Column, base: str) -> dict[str, Ratio]:
    """Return each configuration's ratio to `base`; configurations without a whole round are left out."""
    found = {}
    for name in results.rounds:
        own, other = results.whole(name, base)
        if own:
            found[name] = ratio(
                [column.of(each[column.stage]) for each in own], [column.of(each[column.stage]) for each in other]
            )
    return found


def build_ratios(results: Results, base: str, of: Callable[[Build], float]) -> dict[str, Ratio]:
    """Return the ratios of builds, by build."""
    found = {}
    for name, builds in results.builds.items():
        count = min(len(builds), len(results.builds.get(base, [])))
        if count:
            found[name] = ratio(
                [of(each) for each in builds[:count]], [of(each) for each in results.builds[base][:count]]
            )
    return found


def tables(results: Results, base: str) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return (title, head, rows) of every table: ratios to `base` with 95 % intervals, then the medians of `base`."""
    made = []
    for title, each in columns(results.stages).items() if results.rounds.get(base) else ():
        by_stage = [ratios(results, column, base) for column in each]
        rows = [
            [name, *(found[name].shown if name in found else "" for found in by_stage)]
            for name in results.rounds
            if any(name in found for found in by_stage)
        ]
        middle = [statistics.median(column.of(one[column.stage]) for one in results.rounds[base]) for column in each]
        rows.append([f"({base})", *(number(value) for value in middle)])
        made.append((f"{title}, ratio to {base}", ["configuration", *(column.stage for column in each)], rows))
    if results.builds.get(base):
        made.append(_builds(results, base))
    return made


def _builds(results: Results, base: str) -> tuple[str, list[str], list[list[str]]]:
    searches = list(results.builds[base][0].recall)
    seconds = build_ratios(results, base, lambda build: build.seconds)
    cpu = build_ratios(results, base, lambda build: build.cpu_s)
    rows = []
    for name, builds in results.builds.items():
        if name in seconds:
            median = statistics.median(build.seconds for build in builds)
            recall = [f"{statistics.median(build.recall[search] for build in builds):.3f}" for search in searches]
            rows.append([name, f"{median:.1f}", seconds[name].shown, cpu[name].shown, *recall])
    head = ["configuration", "seconds", "ratio", "CPU, ratio", *(f"recall, {search}" for search in searches)]
    return f"HNSW build, ratio to {base}, and recall at 10", head, rows


def number(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def text(results: Results, base: str) -> str:
    """Return the tables for the terminal."""
    parts = []
    for title, head, rows in tables(results, base):
        widths = [max(len(row[index]) for row in (head, *rows)) for index in range(len(head))]
        lines = [
            "  ".join(value.ljust(width) if index == 0 else value.rjust(width)
                      for index, (value, width) in enumerate(zip(row, widths, strict=True)))
            for row in (head, *rows)
        ]  # fmt: skip
        parts.append("\n".join([title, *lines]))
    return "\n\n".join([*parts, *results.remarks])


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return one table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def markdown(results: Results, base: str) -> str:
    """Return the tables for a page of docs/."""
    parts = []
    for title, head, rows in tables(results, base):
        parts.append(f"{title}:\n\n{markdown_table(head, rows)}")
    return "\n\n".join(parts) + "\n"


def combined(several: Iterable[Results]) -> Results:
    """Return the rounds of several runs as one: of the configurations and stages that all runs measured.

    A ratio pairs rounds by position, so an unfinished round is left out unless it is the last. Raises UsageError if
    machines, versions or sizes differ.
    """
    first, *others = runs = list(several)
    for other in others:
        for key in KEYS:
            if getattr(first, key) != getattr(other, key):
                seen = f"{getattr(first, key)} and {getattr(other, key)}"
                raise UsageError("these results differ, so they cannot be combined", where=key, seen=seen)
    stages = _shared([run.stages for run in runs])
    rounds = _joined([run.rounds for run in runs])
    builds = _joined([run.builds for run in runs])
    known = {name: conf for run in reversed(runs) for name, conf in run.configurations.items()}
    missing = [name for name in known if name not in rounds and name not in builds]
    remarks = [f"not in every run, so left out: {'; '.join(missing)}"] if missing else []
    return replace(
        first,
        configurations={name: conf for name, conf in known.items() if name not in missing},
        rounds={name: [{stage: one[stage] for stage in stages} for one in each] for name, each in rounds.items()},
        builds=builds,
        remarks=[*(remark for run in runs for remark in run.remarks), *remarks],
    )


def _shared(several: Sequence[Iterable[str]]) -> list[str]:
    first, *others = map(list, several)
    return [name for name in first if all(name in other for other in others)]


def _joined(several: Sequence[Mapping[str, Sequence[Measured]]]) -> dict[str, list[Measured]]:
    """Return the measurements of the names that every run measured, in step: all but the last run are cut for that."""
    names = _shared([[name for name, found in each.items() if found] for each in several])
    joined: dict[str, list[Measured]] = {name: [] for name in names}
    for number, each in enumerate(several, 1):
        finished = None if number == len(several) else min((len(each[name]) for name in names), default=0)
        for name in names:
            joined[name] += each[name][:finished]
    return joined


def save(results: Results, path: Path) -> None:
    """Write the results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(results), indent=1) + "\n")


def load(path: Path) -> Results:
    """Read the JSON of `save`."""
    plain = json.loads(path.read_text())
    plain["rounds"] = {
        name: [{stage: Sample(**sample) for stage, sample in one.items()} for one in rounds]
        for name, rounds in plain["rounds"].items()
    }
    plain["builds"] = {name: [Build(**build) for build in builds] for name, builds in plain["builds"].items()}
    return Results(**plain)
