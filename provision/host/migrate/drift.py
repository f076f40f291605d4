"""Compare migration files with the recorded history before anything runs. Pure, except that it reads the files.

One function per kind of difference. Versions without a checksum (applied by golang-migrate) are not compared.
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
"""Largest file, in bytes, that is scanned for hazards: scanning larger ones takes too long."""


def known(records: Mapping[int, Record], current: int) -> dict[int, Record]:
    """Return the versions that the history records as applied and that are not above the current version."""
    return {version: record for version, record in records.items() if record.applied and version <= current}


def all_problems(
    catalogue: Catalogue,
    records: Mapping[int, Record],
    current: int,
    steps: Sequence[Step],
    directory: Directory,
    *,
    separately: bool,
) -> list[Problem]:
    """Find every problem of a run from `current` through these steps; `separately`: x-multi-statement is set.

    Returns only the problems of the catalogue if one of them is an error, because such files cannot be read.
    """
    if any(problem.severity is Severity.ERROR for problem in catalogue.problems):
        return list(catalogue.problems)
    return [
        *catalogue.problems,
        *against_history(catalogue, records, current, directory),
        *of_halves(catalogue, steps),
        *of_content(steps, directory, separately=separately),
    ]


def against_history(
    catalogue: Catalogue, records: Mapping[int, Record], current: int, directory: Directory
) -> list[Problem]:
    """Find applied files that were edited or deleted, and new files below the highest applied version."""
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
            seen, fix = (
                "differs from the applied file only in line endings",
                "check it out with the original line endings",
            )
            problems.append(Problem("line ends", pair.up.name, seen, fix, Severity.WARNING))
            continue
        seen = f"was edited after it was applied at {record.at}"
        fix = (
            "restore the applied file and write a new migration; "
            f"if the database already matches the edited file: provision migrate force {current}"
        )
        problems.append(Problem("edited", pair.up.name, seen, fix))
    for pair in catalogue.pairs:
        if pair.version < highest and pair.version not in applied and (pair.up or pair.down):
            name = (pair.up or pair.down).name  # type: ignore[union-attr]
            seen = f"is below version {highest}, which is already applied, so it would never run"
            fix = f"rename it to a version above {max(catalogue.versions)}"
            problems.append(Problem("out of order", name, seen, fix))
    return problems


def _deleted(record: Record) -> Problem:
    return Problem(
        "deleted",
        f"{record.version}_{record.name}.up.sql",
        f"was applied at {record.at} and no longer exists",
        "restore it from version control",
    )


def of_halves(catalogue: Catalogue, steps: Sequence[Step]) -> list[Problem]:
    """Find missing up or down files: refused if a step needs them, a warning for other missing down files."""
    problems: list[Problem] = []
    for step in steps:
        if step.file is None:
            name = f"{step.version}_{step.title}.{step.direction}.sql"
            seen = "is missing, so the version would change although nothing runs"
            problems.append(Problem("missing half", name, seen, "create it; a file with only a comment is enough"))
    needed = {(step.version, step.direction) for step in steps}
    for pair in catalogue.pairs:
        if pair.up and pair.down is None and (pair.version, "down") not in needed:
            name = f"{pair.version}_{pair.title}.down.sql"
            seen = "is missing, so this version cannot be reverted"
            problems.append(Problem("missing half", name, seen, "create it", Severity.WARNING))
    return problems


def of_content(steps: Sequence[Step], directory: Directory, *, separately: bool) -> list[Problem]:
    """Find content in the files of these steps that would not run as intended. Holds one file at a time."""
    problems: list[Problem] = []
    for step in steps:
        if step.file is None:
            continue
        body = directory.body(step.file)
        problems += directory.inspect(step.file).problems
        if len(body) <= LARGEST_SCAN:
            for hazard in sql.hazards(body, separately=separately):
                line, column = sql.place(body, hazard.offset)
                where = f"{step.file.name}:{line}:{column}"
                problems.append(Problem("statement", where, f"contains {hazard.seen}", hazard.fix))
    return problems


def adoption(
    catalogue: Catalogue,
    records: Mapping[int, Record],
    current: int,
    directory: Directory,
    outcome: str = "adopted",
) -> list[Entry]:
    """List the history entries for versions that another tool applied or reverted.

    With outcome "forced" the checksums of the current files replace the recorded ones.
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
    """Select the problems that stop a run."""
    stops = {Severity.ERROR} if compatible else {Severity.ERROR, Severity.REFUSAL}
    return [problem for problem in problems if problem.severity in stops]


def refuse(problems: Sequence[Problem], *, compatible: bool, where: str) -> list[Problem]:
    """Raise MigrationError if a problem stops the run; otherwise return the problems as warnings."""
    found = stopping(problems, compatible=compatible)
    if not found:
        return list(problems)
    first, *others = found
    more = "".join(f"; {problem.file} {problem.seen} ({problem.kind})" for problem in others[:5])
    more += f"; and {len(others) - 5} more" if len(others) > 5 else ""
    kind = "duplicate migration file: " if first.kind == "duplicate" else ""
    raise MigrationError(
        f"{kind}{first.file} is refused; nothing was run",
        where=where,
        seen=f"{first.seen} ({first.kind}){more}",
        allowed=first.fix,
        run="provision migrate status"
        + ("" if first.severity is Severity.ERROR else ", or --compatible to continue as golang-migrate would"),
    )
