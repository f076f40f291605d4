"""What state backups are in, and whether somebody must be woken: sets, ages, archiving, WAL, disks, dumps, the drill.

Reads the repository, the server and the host. `look` never fails because one of them does: what cannot be seen is an
alarm.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from provision import system
from provision.database import connect_pinned
from provision.errors import DriftError, ProvisionError
from provision.host.backup import drill, dump, journal, show, tool, wal
from provision.host.backup.catalogue import Catalogue
from provision.plan import load
from provision.plan.schema import Plan

QUEUE_ALARM_SHARE = 4  # a quarter of what may wait: three quarters of the way are left to act in
DISK_ALARM_DAYS = 7  # until the repository is full, as fast as it has grown so far
FUTURE_H = -0.1  # a clock may be a little wrong; what is dated later hides how old it is
SPACE_TIMEOUT_S = 20
HOUR_S, DAY_S = 3600, 86400
COUNTS = re.compile(r"((?:missing|checksum invalid|size invalid|other): (\d+))")  # of each archive and set, in verify
NAMED = re.compile(r"INFO: (invalid result [^:\n]+|(?:invalid|file)[^':\n]* '[^'\n]+')")
NAMES_SHOWN = 5
HISTORY = 400  # sizes that are remembered, to tell how fast the repository grows


def look(plan: Plan) -> dict[str, Any]:
    """Give everything that `provision backup status` shows; `alarms` are sentences, [] when all is well."""
    alarms: list[str] = []
    seen: dict[str, Any] = {
        "when": system.stamp(),
        "stanza": plan.backup.stanza,
        "repository": {"place": plan.backup.repository.place},
    }
    if plan.backup.physical:
        archiver = _archiver(plan, alarms)  # before the repository is listed: what it calls archived must be in there
        catalogue = _repository(plan, seen, alarms)
        _archiving(plan, archiver, catalogue, seen, alarms)
        _drill(plan, seen, alarms)
        unfinished = journal.unfinished(plan.server.data)
        alarms += [unfinished] if unfinished else []
    if plan.backup.logical:
        _dumps(plan, seen, alarms)
    seen["alarms"] = alarms
    return seen


def _repository(plan: Plan, seen: dict[str, Any], alarms: list[str]) -> Catalogue | None:
    try:
        catalogue = Catalogue.read(plan)
    except ProvisionError as error:
        alarms.append(f"{error.what}: {error.seen or error.where}")
        return None
    sets = [asdict(each) for each in catalogue.sets]
    windows = catalogue.windows
    newest = windows[-1] if windows else None
    age = (time.time() - max(each["stop"] for each in sets)) / 3600 if sets else None
    seen |= {
        "sets": sets,
        "age_h": None if age is None else round(age, 2),
        "window": str(newest) if newest else "nothing can be restored",
        "windows": [str(each) for each in windows],
        "gap": newest.gap.name if newest and newest.gap else "",
        "broken": catalogue.broken,
        "last_wal": newest.reached.name if newest else "",
        "system": catalogue.repository.systems.get(catalogue.repository.current),
    }
    space = _space(plan)
    seen["repository"] |= {"encrypted": catalogue.repository.encrypted, "sets": len(sets), **space}
    if "free_bytes" in space:
        fulls = [each["repository_size"] for each in sets if each["kind"] == "full"]
        days, more = filling(space, fulls, system.evidence("backup").get("sizes", []), time.time())
        seen["repository"] |= {} if days is None else {"days_until_full": days}
        alarms += more
    if not sets:
        alarms.append("no backup has been taken yet")
    elif age is not None:
        alarms += old("the newest backup", age, plan.backup.age_limit_h)
    alarms += [f"set {label} cannot be restored: WAL that it needs is missing" for label in catalogue.broken]
    alarms += (
        [f"WAL segment {seen['gap']} is missing from the archive: nothing behind it can be restored"]
        if seen["gap"]
        else []
    )
    alarms += [f"set {each['label']} holds damaged pages" for each in sets if each["damaged"]]
    return catalogue


def _space(plan: Plan) -> dict[str, int]:
    """Give the repository's size, and the free space of its file system where it has one that can be asked."""
    try:
        found = {"bytes": sum(int(row.get("size", 0)) for row in tool.listing("").values())}
    except ProvisionError:
        return {}
    if plan.backup.repository.kind == "local":
        found["free_bytes"] = tool.free_bytes(Path(plan.backup.repository.path))
    elif plan.backup.repository.kind == "host":
        where = f"{plan.backup.repository.user}@{plan.backup.repository.host}"
        # The one word that the key understands beside pgBackRest's own.
        done = tool.run("ssh", where, "space", timeout=SPACE_TIMEOUT_S, quiet=True)
        words = done.stdout.split()  # a heading, then the number
        if done.returncode == 0 and words and words[-1].isdigit():
            found["free_bytes"] = int(words[-1])
    return found


def filling(
    space: Mapping[str, int], fulls: Sequence[int], past: Sequence[tuple[float, int]], now: float
) -> tuple[float | None, list[str]]:
    """Tell in how many days the repository is full (None: it does not grow, or too little is known), and the alarms.

    `space` has bytes and free_bytes, `fulls` the sizes in the repository of full sets, `past` moments with the
    repository's bytes, oldest first. Pure.
    """
    total, free = space["bytes"], space["free_bytes"]
    days = None
    if past and now - past[0][0] > HOUR_S and total > past[0][1]:
        days = round(free / ((total - past[0][1]) / (now - past[0][0])) / DAY_S, 1)
    choice = "give it more room, or lower backup_retention_full: docs/the-repository-is-full.md"
    alarms = []
    if fulls and free < max(fulls):
        alarms.append(
            f"the repository has {show.size(free)} free and a full backup takes {show.size(max(fulls))}: {choice}"
        )
    elif days is not None and days < DISK_ALARM_DAYS:
        alarms.append(f"the repository is full in {days} days, as it has grown so far: {choice}")
    return days, alarms


def _archiver(plan: Plan, alarms: list[str]) -> tuple[object, ...]:
    try:
        with connect_pinned(plan.server.url("postgres"), application="provision backup") as session:
            return session.execute(
                "SELECT last_archived_wal, extract(epoch FROM last_archived_time)::bigint, last_failed_wal,"
                " extract(epoch FROM last_failed_time)::bigint, current_setting('archive_mode') FROM pg_stat_archiver"
            ).fetchall()[0]
    except ProvisionError as error:
        alarms.append(f"the server cannot be asked whether it archives: {error.what}")
        return ()


def _archiving(
    plan: Plan, archiver: tuple[object, ...], catalogue: Catalogue | None, seen: dict[str, Any], alarms: list[str]
) -> None:
    ready = list((plan.server.data / "pg_wal/archive_status").glob("*.ready"))
    waiting = len(ready) * wal.SEGMENT_BYTES // 2**20
    free = tool.free_bytes(plan.server.data)
    seen["wal"] = {"waiting_mb": waiting, "queue_max_mb": plan.backup.queue_max_mb, "disk_free_mb": free // 2**20}
    if free < tool.reserve(plan.server.data):
        alarms.append(f"the data's file system has {show.size(free)} free: docs/the-disk-is-full-of-wal.md")
    choice = (
        "mend the repository; or give WAL up by switching archiving off (no moment before the next full backup); "
        "or let the disk fill (the server stops): docs/the-disk-is-full-of-wal.md"
    )
    limit = (
        plan.backup.queue_max_mb // QUEUE_ALARM_SHARE
        if plan.backup.queue_max_mb
        else free // 2**20 // QUEUE_ALARM_SHARE
    )
    if waiting > limit:
        alarms.append(f"{waiting} MB of WAL wait to be archived, {limit} are allowed; choose: {choice}")
    if not archiver:
        return
    last, last_time, failed, failed_time, mode = archiver
    seen["wal"] |= {"last_archived": last, "last_failed": failed, "archive_mode": mode}
    failing = failed_time is not None and int(str(failed_time)) > int(str(last_time or 0))
    if mode != "on":
        alarms.append("archive_mode is off: it waits for a restart of the server")
    elif failing:
        why = tool.not_archived(plan.backup.stanza)
        alarms.append(
            f"archiving fails since {system.stamp(int(str(failed_time)))} at {failed} ({waiting} MB wait)"
            f"{f', {why}' if why else ''}: {choice}"
        )
    if catalogue and wal.is_segment(str(last)) and not catalogue.holds(str(last)):
        alarms.append(
            f"WAL was given up: {last} left the server and is not in the repository, as when backup_queue_max_mb was "
            "reached: provision backup take --type full; docs/the-disk-is-full-of-wal.md"
        )


def old(what: str, age_h: float, limit_h: float) -> list[str]:
    """Give the alarm of something that is older than its limit (0: none), or dated in the future. Pure."""
    if age_h < FUTURE_H:
        return [f"{what} is dated {-age_h:.1f} h in the future: a clock is or was wrong, and nobody knows its age"]
    return [f"{what} is {age_h:.1f} h old, {limit_h} are allowed"] if limit_h and age_h > limit_h else []


def _drill(plan: Plan, seen: dict[str, Any], alarms: list[str]) -> None:
    last = _own(system.evidence("drill"), plan, seen)
    proof = _own(last.get("last_passed") or {}, plan, seen)
    running = last.get("failure") == drill.KILLED and journal.is_held(drill.LOCK)
    seen["drill"] = {key: last.get(key) for key in ("when", "set", "passed", "rto_s", "rpo_s", "failure")}
    seen["drill"] |= {"last_passed": proof or None, "running": running}
    if last and not last.get("passed") and not running:
        alarms.append(f"the last drill failed: {str(last.get('failure')).splitlines()[0]}")
    if proof:
        age = (time.time() - system.moment(proof["when"])) / HOUR_S
        alarms += old("the last drill that passed", age, plan.backup.drill_age_limit_h)
    elif plan.backup.drill_age_limit_h:
        first = min((each["stop"] for each in seen.get("sets", [])), default=time.time())
        if time.time() - first > HOUR_S * plan.backup.drill_age_limit_h:
            alarms.append("no drill has ever passed: nothing proves that these backups can be restored")


def _own(evidence: dict[str, Any], plan: Plan, seen: dict[str, Any]) -> dict[str, Any]:
    """Give evidence of this host and very cluster; {} for that of another one, which a copied disk carries along."""
    now = (os.uname().nodename, plan.backup.stanza, seen.get("system", evidence.get("system")))
    return evidence if (evidence.get("host"), evidence.get("stanza"), evidence.get("system", now[2])) == now else {}


def _dumps(plan: Plan, seen: dict[str, Any], alarms: list[str]) -> None:
    found = dump.find(plan)
    seen["dumps"] = [
        {"name": path.name, "bytes": tool.folder_size(path), "taken": system.stamp(dump.taken_at(path))}
        for path in found
    ]
    begun = dump.taken_at(found[-1]) if found else load.PATH.stat().st_mtime
    what = "the newest dump" if found else "this host takes dumps and has none; its plan for them"
    alarms += old(what, (time.time() - begun) / HOUR_S, plan.backup.age_limit_h)


def keep(seen: dict[str, Any]) -> None:
    """Write what was seen as evidence: `verified` is what the last drill that passed has proved, and when."""
    past = system.evidence("backup").get("sizes", [])
    size = seen["repository"].get("bytes")
    sizes = [*past, [int(time.time()), size]] if size is not None else past
    if len(sizes) > HISTORY:
        sizes = sizes[::2]
    system.keep("backup", {**seen, "verified": seen.get("drill", {}).get("last_passed"), "sizes": sizes})


def verify(plan: Plan) -> dict[str, Any]:
    """Read every file of the repository and every dump; `alarms` name what is damaged.

    pgBackRest's verify exits 0 when it finds damage: what it prints decides. It looks at no WAL that is not there: the
    archive's listing does.
    """
    alarms: list[str] = []
    seen: dict[str, Any] = {
        "when": system.stamp(),
        "stanza": plan.backup.stanza,
        "repository": {"place": plan.backup.repository.place},
    }
    if plan.backup.physical:
        # Its report counts; only its log has the files' names.
        done = tool.program(
            plan.backup.stanza, "--output=text", "--verbose", "--log-level-stderr=info", "verify", quiet=True
        )  # fmt: skip
        lines = [line.strip() for line in done.stdout.splitlines()]
        seen["pgbackrest"] = lines
        if done.returncode != 0:
            alarms.append(f"pgbackrest verify: {tool.reason(done)}")
        named = list(dict.fromkeys(NAMED.findall(done.stderr)))  # a bundle is named for each file in it
        more = [f"and {len(named) - NAMES_SHOWN} files more"] if len(named) > NAMES_SHOWN else []
        alarms += [f"the repository is damaged: {text}" for text in [*damage(lines), *named[:NAMES_SHOWN], *more]]
        _repository(plan, seen, alarms)
    checked = []
    for path in dump.find(plan):
        try:
            dump.check(path)
            checked.append(path.name)
        except ProvisionError as error:
            alarms.append(f"dump {path.name}: {error.seen}")
    return seen | {"dumps_sound": checked, "alarms": alarms}


def damage(lines: Sequence[str]) -> list[str]:
    """Name what pgBackRest's verify says is damaged: each archive and each set with its counts. Pure.

    Its own words at the top (`status: error`) count only where nothing below them says of what.
    """
    found, part, whole = [], "", ""
    for line in lines:
        status = re.search(r"status: ([^,]+)", line)
        if line.startswith(("archiveId: ", "backup: ")):
            part = line.partition(",")[0]
            # In progress is one that is being taken, or was stopped: the next backup goes on with its files.
            if status and status[1] not in ("valid", "in-progress"):
                found.append(f"{part} is {status[1]}")
        elif status and status[1] != "ok":
            whole = line
        counts = [text for text, count in COUNTS.findall(line) if int(count)]
        if counts:
            found.append(f"{part}, {', '.join(counts)}")
    return found or ([whole] if whole else [])


def alarm(seen: dict[str, Any]) -> None:
    """Raise DriftError (exit 3) when there are alarms."""
    if seen["alarms"]:
        raise DriftError(
            "backups need somebody",
            where=seen["stanza"],
            seen="; ".join(seen["alarms"]),
            run="docs/README.md lists the pages",
        )
