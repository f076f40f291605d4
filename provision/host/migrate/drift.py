"""Compare the files with what history says of them, before anything runs. Pure, but for reading the files' bytes.

Answers one question for each way in which files and database can disagree; what cannot be known (a database that
golang-migrate has migrated before us has no checksums) is not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from provision.errors import MigrationError
from provision.host.migrate import sql
from provision.host.migrate.directory import Directory
from provision.host.migrate.files import NONE, Catalogue, Problem, Severity
from provision.host.migrate.ledger import Entry, Record
from provision.host.migrate.steps import Step

LARGEST_SCAN = 64 << 20
"""Bytes of a file that are searched for hazards: beyond it the search takes longer than it is worth."""


def known(records: Mapping[int, Record], current: int) -> dict[int, Record]:
    """Keep what history says is applied and the version table does not contradict."""
    return {version: record for version, record in records.items() if record.applied and version <= current}


def all_problems(
    catalogue: Catalogue, records: Mapping[int, Record], current: int, steps: Sequence[Step], directory: Directory
) -> list[Problem]:
    """Find everything that is wrong with a run from `current` by these steps; files that cannot be read come first."""
    if any(problem.severity is Severity.ERROR for problem in catalogue.problems):
        return list(catalogue.problems)
    return [
        *catalogue.problems,
        *against_history(catalogue, records, current, directory),
        *of_halves(catalogue, steps),
        *of_content(steps, directory),
    ]


def against_history(
    catalogue: Catalogue, records: Mapping[int, Record], current: int, directory: Directory
) -> list[Problem]:
    """Find applied files that were edited or deleted, and files that came in below what is applied."""
    applied = known(records, current)
    highest = max(applied, default=NONE)
    problems: list[Problem] = []
    for version, record in sorted(applied.items()):
        pair = catalogue.by_version.get(version)
        if pair is None or pair.up is None:
            if record.checksum is not None:
                problems.append(_deleted(record))
            continue
        if record.checksum in (None, directory.inspect(pair.up).checksum):
            continue
        if directory.same_but_line_ends(pair.up, str(record.checksum)):
            seen, fix = "only its line ends differ from what was applied", "check it out with the line ends it had"
            problems.append(Problem("line ends", pair.up.name, seen, fix, Severity.WARNING))
            continue
        seen = f"was edited after it was applied on {record.at}"
        fix = (
            "bring back the applied text and write a new migration; "
            f"if the database already matches the new text: provision migrate force {current}"
        )
        problems.append(Problem("edited", pair.up.name, seen, fix))
    for pair in catalogue.pairs:
        if pair.version < highest and pair.version not in applied and (pair.up or pair.down):
            name = (pair.up or pair.down).name  # type: ignore[union-attr]
            seen = f"comes before version {highest}, which is applied, so it would never run"
            fix = f"rename it to a version above {max(catalogue.versions)}"
            problems.append(Problem("out of order", name, seen, fix))
    return problems


def _deleted(record: Record) -> Problem:
    return Problem(
        "deleted",
        f"{record.version}_{record.name}.up.sql",
        f"was applied on {record.at} and is gone",
        "bring it back from version control",
    )


def of_halves(catalogue: Catalogue, steps: Sequence[Step]) -> list[Problem]:
    """Find missing halves: refused where the step needs it, a warning where only the way back is missing."""
    problems: list[Problem] = []
    for step in steps:
        if step.file is None:
            name = f"{step.version}_{step.title}.{step.direction}.sql"
            seen = "is missing, so the version would move and nothing would run"
            problems.append(Problem("missing half", name, seen, "write it; a file with only a comment is enough"))
    needed = {(step.version, step.direction) for step in steps}
    for pair in catalogue.pairs:
        if pair.up and pair.down is None and (pair.version, "down") not in needed:
            name = f"{pair.version}_{pair.title}.down.sql"
            seen = "is missing, so this version cannot be reverted"
            problems.append(Problem("missing half", name, seen, "write it", Severity.WARNING))
    return problems


def of_content(steps: Sequence[Step], directory: Directory) -> list[Problem]:
    """Find what in the files of these steps would not run as it was meant. Holds one file at a time."""
    problems: list[Problem] = []
    for step in steps:
        if step.file is None:
            continue
        body = directory.body(step.file)
        problems += directory.inspect(step.file).problems
        if len(body) <= LARGEST_SCAN:
            for hazard in sql.hazards(body):
                line, column = sql.place(body, hazard.offset)
                where = f"{step.file.name}:{line}:{column}"
                problems.append(Problem("statement", where, f"holds {hazard.seen}", hazard.fix))
    return problems


def adoption(
    catalogue: Catalogue,
    records: Mapping[int, Record],
    current: int,
    directory: Directory,
    outcome: str = "adopted",
) -> list[Entry]:
    """List the lines that bring history up to what another tool did: versions it applied, versions it reverted.

    With outcome "forced" the present files are taken for the truth: their checksums replace the recorded ones.
    """
    forced = outcome == "forced"
    applied = known(records, current)
    highest = NONE if forced else max(applied, default=NONE)
    entries = []
    for version, record in sorted(records.items()):
        gone = forced and version not in catalogue.by_version
        if record.applied and (version > current or gone):
            entries.append(Entry(version, record.name, "down", outcome, None))
    for pair in catalogue.pairs:
        if highest < pair.version <= current:
            checksum = directory.inspect(pair.up).checksum if pair.up else None
            if pair.version not in applied or checksum != applied[pair.version].checksum:
                entries.append(Entry(pair.version, pair.title, "up", outcome, checksum))
    return entries


def stopping(problems: Sequence[Problem], *, compatible: bool) -> list[Problem]:
    """Pick the problems that stop a run."""
    stops = {Severity.ERROR} if compatible else {Severity.ERROR, Severity.REFUSAL}
    return [problem for problem in problems if problem.severity in stops]


def refuse(problems: Sequence[Problem], *, compatible: bool, where: str) -> list[Problem]:
    """Raise MigrationError for what must not be passed over; return the rest, the warnings."""
    found = stopping(problems, compatible=compatible)
    if not found:
        return list(problems)
    first, *others = found
    more = "".join(f"; {problem.file} {problem.seen} ({problem.kind})" for problem in others[:5])
    more += f"; and {len(others) - 5} more" if len(others) > 5 else ""
    kind = "duplicate migration file: " if first.kind == "duplicate" else ""
    raise MigrationError(
        f"{kind}{first.file} is refused, and nothing was run",
        where=where,
        seen=f"{first.seen} ({first.kind}){more}",
        allowed=first.fix,
        run="provision migrate status"
        + ("" if first.severity is Severity.ERROR else ", or --compatible to go on as golang-migrate would"),
    )
