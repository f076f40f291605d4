"""Format the results of the backup and restore commands as text. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

TEST_DUMP = "provision backup drill --type logical"


def size(count: float) -> str:
    """Format bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def moment(at: float) -> str:
    """Format Unix time in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S+00")


def taken(result: dict[str, Any]) -> list[str]:
    """Format a new backup, in one repository or two."""
    if result["kind"] == "logical":
        lines = [f"logical backup {result['label']}: {size(result['size'])} in {result['seconds']} s"]
        lines += [f"removed {name}" for name in result["expired"]]
        lines.append(f"not tested yet: the next restore test includes it; to test now: {TEST_DUMP}")
    else:
        lines = []
        for each in result["sets"]:
            lines += [
                f"{each['kind']} backup {each['label']}: {size(each['size'])}",
                f"in {each['place']} {size(each['repository_size'])}; WAL {each['wal_start']} to {each['wal_stop']}",
            ]
        lines.append(f"took {result['seconds']} s")
        if result["uncounted"]:
            lines += [
                "WARNING: these sets have no reference counts: restore tests use an older set",
                result["uncounted"],
            ]
        else:
            lines.append(f"restore point {result['point']}, with reference counts for the restore test")
    return [*lines, f"restore with: {result['restore']}"]


def prepared(result: dict[str, Any]) -> list[str]:
    """Format a prepared stanza."""
    return [f"stanza {result['stanza']} is ready in {result['repository']}, with {result['sets']} sets"]


def status(seen: dict[str, Any]) -> list[str]:
    """Format the state of backups."""
    lines = _repository(seen)
    if "wal" in seen:
        lines.append(f"WAL: last archived {seen['wal'].get('last_archived')}, {seen['wal']['waiting_mb']} MB waiting")
    if "second" in seen:
        lines += ["", *_repository(seen["second"]), ""]
    lines += [f"  dump {row['name']:<40} {size(row['bytes']):>9}" for row in seen.get("dumps", [])]
    tested = seen.get("dump_drill") or {}
    if seen.get("dumps"):
        outcome = "none" if not tested.get("when") else "passed" if tested["passed"] else "FAILED"
        lines.append(f"last restore test of a dump: {outcome} {tested.get('dump') or ''}".rstrip())
    if tested.get("untested"):
        lines.append(f"the newest dump has not passed a restore test: {tested['untested']}; to test now: {TEST_DUMP}")
    return lines + [f"ALARM: {text}" for text in seen["alarms"]]


def _repository(seen: dict[str, Any]) -> list[str]:
    """Format the sets, the windows and the restore test of one repository."""
    lines = [f"stanza {seen['stanza']} in {seen['repository']['place']}"]
    if "bytes" in seen["repository"]:
        more = seen["repository"]
        full = f", full in {more['days_until_full']} days" if "days_until_full" in more else ""
        free = f", {size(more['free_bytes'])} free{full}" if "free_bytes" in more else ""
        lines.append(f"repository {size(more['bytes'])}{free}, {'encrypted' if more['encrypted'] else 'NOT ENCRYPTED'}")
    for row in seen.get("sets", []):
        lines.append(
            f"  {row['label']:<34} {moment(row['stop'])}  {size(row['size']):>9}  {size(row['repository_size']):>9}"
        )
    if "window" in seen:
        lines += [f"reachable: {each}" for each in seen["windows"] or [seen["window"]]]
    drill = seen.get("drill") or {}
    if drill.get("when"):
        outcome = "passed" if drill["passed"] else "running" if drill["running"] else "FAILED"
        lines.append(f"last restore test {drill['when']}: {outcome}, set {drill['set']}, RTO {drill['rto_s']} s")
    return lines


def verified(seen: dict[str, Any]) -> list[str]:
    """Format the result of verify."""
    return [
        *seen.get("pgbackrest", []),
        *(f"dump {name}: intact" for name in seen["dumps_sound"]),
        *(f"ALARM: {text}" for text in seen["alarms"]),
    ]


def drilled(facts: dict[str, Any]) -> list[str]:
    """Format restore tests that passed: of a set, of a dump, or both."""
    lines = []
    if tested := facts.get("dump_test"):
        lines.append(
            f"restore test of dump {tested['dump']} passed in {tested['seconds']} s: {tested['rows']} rows match"
        )
    if "set" not in facts:
        return lines
    rows = sum(facts["tables"].values())
    second = drilled(facts["second"]) if "second" in facts else []
    return [
        *lines,
        f"restore test of {facts['set']} in {facts['place']} passed in {facts['seconds']} s",
        f"{len(facts['tables'])} tables with {rows} rows match the backup"
        if facts["point"]
        else "WARNING: not compared with the backup, because no set has reference counts",
        *(
            [f"these sets have no reference counts: {', '.join(facts['uncounted'])}; provision backup status explains"]
            if facts["uncounted"]
            else []
        ),
        f"replayed to {facts['replayed_to']}; RTO {facts['rto_s']} s, RPO {facts['rpo_s']} s",
        f"pg_amcheck: no damage; vector indexes used: {', '.join(facts['vector_indexes']) or 'none'}",
        f"effect on production: {facts['effect']}",
        *second,
    ]


def restored(facts: dict[str, Any]) -> list[str]:
    """Format a restore."""
    lines = [
        f"{name}: {value}"
        for name, value in facts.items()
        if name not in ("stages", "next", "inode", "beside", "raised") and value not in ("", None)
    ]
    return [*lines, *(f"next: {text}" for text in facts.get("next", []))]
