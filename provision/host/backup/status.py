"""The state of backups and its alarms: sets, ages, archiving, WAL, disks, dumps, restore tests.

Reads the repository, the server and the host. `look` does not fail if one of them does: it raises an alarm instead.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from provision import system
from provision.database import connect_pinned
from provision.errors import DriftError, ProvisionError
from provision.host import timers
from provision.host.backup import counts, drill, dump, dumptest, journal, scratch_cluster, shared, show, tool, wal
from provision.host.backup.catalogue import Catalogue
from provision.plan import load
from provision.plan.schema import Plan, Repository

QUEUE_ALARM_SHARE = 4  # alarm at a quarter of the allowed WAL queue
DISK_ALARM_DAYS = 7  # alarm if the repository is full in fewer days at its present growth
FUTURE_H = -0.1  # tolerance for clock differences; a later date hides the real age
SPACE_TIMEOUT_S = 20
HOUR_S, DAY_S = 3600, 86400
COUNTS = re.compile(
    r"((?:missing|checksum invalid|size invalid|other): (\d+))"
)  # by archive and set, in verify's output
NAMED = re.compile(r"INFO: (invalid result [^:\n]+|(?:invalid|file)[^':\n]* '[^'\n]+')")
NAMES_SHOWN = 5
HISTORY = 400  # sizes kept to compute the repository's growth


def look(plan: Plan) -> dict[str, Any]:
    """Return everything that `provision backup status` shows; `alarms` is [] if nothing is wrong."""
    alarms: list[str] = []
    shared.sync(plan)
    seen = _head(plan, plan.backup.repository)
    if plan.backup.physical:
        archiver = _archiver(
            plan, alarms
        )  # before the repositories are listed: what it reports as archived must be listed
        catalogues = _repositories(plan, seen, alarms)
        _archiving(plan, archiver, catalogues, seen, alarms)
        for repository in plan.backup.repositories:
            _drill(plan, repository, seen if repository.number == 1 else seen["second"], alarms)
        unfinished = journal.unfinished(plan.server.data)
        alarms += [unfinished] if unfinished else []
    if plan.backup.logical:
        _dumps(plan, seen, alarms)
    names = [f"{each.name}.timer" for each in plan.timers if each.role == "backup" and each.schedule]
    alarms += [f"{name} {said}: {plan.site('backup')}" for name, said in timers.faults(names).items()]
    seen["alarms"] = alarms
    return seen


def _repositories(plan: Plan, seen: dict[str, Any], alarms: list[str]) -> list[tuple[Repository, Catalogue]]:
    """Describe the first repository in `seen`, the second in its `second`; return those that can be read."""
    found = []
    for repository in plan.backup.repositories:
        view, messages = (seen if repository.number == 1 else _head(plan, repository)), list[str]()
        catalogue = _repository(plan, repository, view, messages)
        alarms += [plan.backup.named(text, repository) for text in messages]
        if repository.number > 1:
            seen["second"] = view
        if catalogue:
            found.append((repository, catalogue))
    return found


def _repository(plan: Plan, repository: Repository, seen: dict[str, Any], alarms: list[str]) -> Catalogue | None:
    try:
        catalogue = Catalogue.read(plan, number=repository.number)
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
    space = _space(plan, repository)
    seen["repository"] |= {"encrypted": catalogue.repository.encrypted, "sets": len(sets), **space}
    if "free_bytes" in space:
        fulls = [each["repository_size"] for each in sets if each["kind"] == "full"]
        days, more = filling(space, fulls, _sizes(repository), time.time())
        seen["repository"] |= {} if days is None else {"days_until_full": days}
        alarms += more
    if not sets:
        alarms += [] if _first_runs(plan) else ["there is no backup yet"]
    elif age is not None:
        alarms += old("the newest backup", age, plan.backup.age_limit_h)
    alarms += counts.uncounted(
        sets, system.evidence(shared.FIGURES).get("sets", {}), time.time(), plan.backup.age_limit_h
    )
    alarms += [f"set {label} cannot be restored: WAL is missing" for label in catalogue.broken]
    alarms += (
        [f"WAL segment {seen['gap']} is missing from the archive: nothing after it can be restored"]
        if seen["gap"]
        else []
    )
    alarms += [f"set {each['label']} contains damaged pages" for each in sets if each["damaged"]]
    return catalogue


def _first_runs(plan: Plan) -> bool:
    """Return whether a full backup runs now: on a new host the first one takes its time."""
    unit = "provision-backup@full.service"
    return plan.host.systemd and system.run("systemctl", "is-active", unit, check=False).stdout.strip() == "activating"


def _sizes(repository: Repository) -> list[Any]:
    """Return the past sizes of a repository, oldest first: pairs of Unix time and bytes."""
    past = system.evidence("backup")
    found: list[Any] = (past if repository.number == 1 else past.get("second", {})).get("sizes", [])
    return found


def _space(plan: Plan, repository: Repository) -> dict[str, int]:
    """Return the size of the stanza in a repository, and the free space of its file system if that is known."""
    stanza = plan.backup.stanza
    try:
        rows = [tool.listing(stanza, f"{kind}/{stanza}", repository.number) for kind in ("archive", "backup")]
        found = {"bytes": sum(int(row.get("size", 0)) for each in rows for row in each.values())}
    except ProvisionError:
        return {}
    if repository.kind == "local":
        found["free_bytes"] = tool.free_bytes(Path(repository.path))
    elif repository.kind == "host":
        where = f"{repository.user}@{repository.host}"
        # The only command that the key allows beside pgBackRest.
        done = tool.run("ssh", where, "space", timeout=SPACE_TIMEOUT_S, quiet=True)
        words = done.stdout.split()  # df's heading, then the number
        if done.returncode == 0 and words and words[-1].isdigit():
            found["free_bytes"] = int(words[-1])
    return found


def filling(
    space: Mapping[str, int], fulls: Sequence[int], past: Sequence[tuple[float, int]], now: float
) -> tuple[float | None, list[str]]:
    """Return the days until the repository is full (None if it does not grow or is too new), and the alarms.

    `space` has bytes and free_bytes, `fulls` the repository sizes of the full sets, `past` pairs of Unix time and
    repository bytes, oldest first. Pure.
    """
    total, free = space["bytes"], space["free_bytes"]
    days = None
    if past and now - past[0][0] > HOUR_S and total > past[0][1]:
        days = round(free / ((total - past[0][1]) / (now - past[0][0])) / DAY_S, 1)
    choice = "extend it or lower backup_retention_full: docs/the-repository-is-full.md"
    alarms = []
    if fulls and free < max(fulls):
        alarms.append(
            f"the repository has {show.size(free)} free and a full backup takes {show.size(max(fulls))}: {choice}"
        )
    elif days is not None and days < DISK_ALARM_DAYS:
        alarms.append(f"the repository will be full in {days} days at its present growth: {choice}")
    return days, alarms


def _head(plan: Plan, repository: Repository) -> dict[str, Any]:
    """Return the time, the stanza and the repository of a report."""
    return {
        "when": system.stamp(),
        "stanza": plan.backup.stanza,
        "repository": {"number": repository.number, "place": repository.place},
    }


def _archiver(plan: Plan, alarms: list[str]) -> tuple[object, ...]:
    try:
        with connect_pinned(plan.server.url("postgres"), application="provision backup") as session:
            row = session.execute(
                "SELECT last_archived_wal, extract(epoch FROM last_archived_time)::bigint, last_failed_wal,"
                " extract(epoch FROM last_failed_time)::bigint, current_setting('archive_mode'), pg_is_in_recovery()"
                " FROM pg_stat_archiver"
            ).fetchall()[0]
            return () if row[-1] else row[:-1]  # of a replica: what it archived when it was the primary
    except ProvisionError as error:
        alarms.append(f"the state of archiving is unknown: {error.what}")
        return ()


def _archiving(
    plan: Plan, archiver: tuple[object, ...], catalogues: Sequence[tuple[Repository, Catalogue]], seen: dict[str, Any],
    alarms: list[str],
) -> None:  # fmt: skip
    ready = list((plan.server.data / "pg_wal/archive_status").glob("*.ready"))
    waiting = len(ready) * wal.SEGMENT_BYTES // 2**20
    free = tool.free_bytes(plan.server.data)
    seen["wal"] = {"waiting_mb": waiting, "queue_max_mb": plan.backup.queue_max_mb, "disk_free_mb": free // 2**20}
    if free < tool.reserve(plan.server.data):
        alarms.append(
            f"the file system of the data directory has {show.size(free)} free: docs/the-disk-is-full-of-wal.md"
        )
    choice = (
        "fix the repository; or turn archiving off and lose point-in-time recovery until the next full backup; "
        "or let the disk fill up (the server stops): docs/the-disk-is-full-of-wal.md"
    )
    limit = (
        plan.backup.queue_max_mb // QUEUE_ALARM_SHARE
        if plan.backup.queue_max_mb
        else free // 2**20 // QUEUE_ALARM_SHARE
    )
    if waiting > limit:
        alarms.append(f"{waiting} MB of WAL are waiting to be archived, {limit} MB are allowed; choose: {choice}")
    if not archiver:
        return
    last, last_time, failed, failed_time, mode = archiver
    seen["wal"] |= {"last_archived": last, "last_failed": failed, "archive_mode": mode}
    failing = failed_time is not None and int(str(failed_time)) > int(str(last_time or 0))
    if mode != "on":
        alarms.append("archive_mode is off until the server is restarted")
    elif failing:
        why = tool.not_archived(plan.backup.stanza, several=len(plan.backup.repositories) > 1)
        alarms.append(
            f"archiving has failed since {system.stamp(int(str(failed_time)))} at {failed} ({waiting} MB waiting)"
            f"{f', {why}' if why else ''}: {choice}"
        )
    for repository, catalogue in catalogues if wal.is_segment(str(last)) else ():
        if not catalogue.holds(str(last)):
            text = (
                f"WAL was dropped: the server reports {last} as archived, but the repository lacks it "
                "(backup_queue_max_mb exceeded?): provision backup take --type full; docs/the-disk-is-full-of-wal.md"
            )
            alarms.append(plan.backup.named(text, repository))


def old(what: str, age_h: float, limit_h: float) -> list[str]:
    """Return the alarm for something older than its limit in hours (0 is no limit) or dated in the future. Pure."""
    if age_h < FUTURE_H:
        return [f"{what} is dated {-age_h:.1f} h in the future: a clock is or was wrong, so its age is unknown"]
    return [f"{what} is {age_h:.1f} h old, {limit_h} h are allowed"] if limit_h and age_h > limit_h else []


def _drill(plan: Plan, repository: Repository, seen: dict[str, Any], alarms: list[str]) -> None:
    last = _own(system.evidence(drill.evidence(repository.number)), plan, seen)
    proof = _own(last.get("last_passed") or {}, plan, seen)
    running = last.get("failure") == scratch_cluster.KILLED and journal.is_held(drill.LOCK)
    seen["drill"] = {key: last.get(key) for key in ("when", "set", "passed", "rto_s", "rpo_s", "failure")}
    seen["drill"] |= {"last_passed": proof or None, "running": running}
    messages = []
    if last and not last.get("passed") and not running:
        messages.append(f"the last restore test failed: {str(last.get('failure')).splitlines()[0]}")
    if proof:
        age = (time.time() - system.moment(proof["when"])) / HOUR_S
        messages += old("the last passed restore test", age, plan.backup.drill_age_limit_h)
    elif plan.backup.drill_age_limit_h:
        first = min((each["stop"] for each in seen.get("sets", [])), default=time.time())
        if time.time() - first > HOUR_S * plan.backup.drill_age_limit_h:
            messages.append("no restore test has ever passed")
    alarms += [plan.backup.named(text, repository) for text in messages]


def _own(evidence: dict[str, Any], plan: Plan, seen: dict[str, Any]) -> dict[str, Any]:
    """Return the evidence if it is of this host and cluster, else {}: a copied disk carries another host's evidence.

    Members of a cluster share theirs.
    """
    host = evidence.get("host") if plan.server.patroni else os.uname().nodename
    now = (host, plan.backup.stanza, seen.get("system", evidence.get("system")))
    return evidence if (evidence.get("host"), evidence.get("stanza"), evidence.get("system", now[2])) == now else {}


def _dumps(plan: Plan, seen: dict[str, Any], alarms: list[str]) -> None:
    found = dump.find(plan)
    seen["dumps"] = [
        {"name": path.name, "bytes": tool.folder_size(path), "taken": system.stamp(dump.taken_at(path))}
        for path in found
    ]
    _dump_drill(plan, found, seen, alarms)
    times = [dump.taken_at(path) for path in found[-1:]]
    if plan.server.patroni and (last := system.evidence(shared.DUMP)):  # on the disk of the primary of that time
        times.append(system.moment(last["when"]))
    begun = max(times, default=load.PATH.stat().st_mtime)
    what = "the newest dump" if times else "there is no dump yet; the plan for dumps"
    alarms += old(what, (time.time() - begun) / HOUR_S, plan.backup.age_limit_h)


def _dump_drill(plan: Plan, found: Sequence[Path], seen: dict[str, Any], alarms: list[str]) -> None:
    """Report the last restore test of a dump: a dump counts when one has passed."""
    last = system.evidence(dumptest.EVIDENCE)
    if not plan.server.patroni and last.get("host") != os.uname().nodename:  # a copied disk carries another host's
        last = {}
    running = last.get("failure") == scratch_cluster.KILLED and journal.is_held(drill.LOCK)
    proof = last.get("last_passed") or {}
    seen["dump_drill"] = {key: last.get(key) for key in ("when", "dump", "passed", "failure")}
    seen["dump_drill"] |= {"last_passed": proof or None, "running": running, "untested": dumptest.untested(plan, last)}
    if last and not last.get("passed") and not running:
        alarms.append(f"the restore test of dump {last['dump']} failed: {dumptest.why(last)}")
    limit = plan.backup.drill_age_limit_h
    if proof:
        age = (time.time() - system.moment(proof["when"])) / HOUR_S
        alarms += old("the last passed restore test of a dump", age, limit)
    elif limit and found and time.time() - dump.taken_at(found[0]) > HOUR_S * limit:
        alarms.append(f"no restore test of a dump has ever passed: {show.TEST_DUMP}")


def keep(seen: dict[str, Any]) -> None:
    """Keep the result as evidence; `verified` is the last restore test that passed."""
    past = system.evidence("backup")
    kept = {**seen, "verified": seen.get("drill", {}).get("last_passed"), "sizes": _grown(seen, past)}
    if "second" in seen:
        kept["second"] = {**seen["second"], "sizes": _grown(seen["second"], past.get("second", {}))}
    system.keep("backup", kept)


def _grown(seen: dict[str, Any], past: dict[str, Any]) -> list[Any]:
    """Return the kept sizes of a repository with its present one."""
    sizes, size = past.get("sizes", []), seen["repository"].get("bytes")
    sizes = [*sizes, [int(time.time()), size]] if size is not None else sizes
    return sizes[::2] if len(sizes) > HISTORY else sizes


def verify(plan: Plan, number: int = 0, *, narrate: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Read every file of the repositories, or of the one of a number, and every dump; `alarms` name the damage.

    pgBackRest's verify exits 0 even if it finds damage, so its output is parsed. It does not report missing WAL; the
    listing of the archive does.
    """
    alarms: list[str] = []
    seen = _head(plan, plan.backup.repository)
    if plan.backup.physical:
        for repository in plan.backup.chosen(number):
            narrate(f"reading every file of {repository.place}")
            lines, messages = _verify(plan, repository)
            seen["pgbackrest"] = [*seen.get("pgbackrest", []), *lines]
            alarms += [plan.backup.named(text, repository) for text in messages]
        _repositories(plan, seen, alarms)
    checked = []
    for path in dump.find(plan):
        narrate(f"reading dump {path.name}")
        try:
            dump.check(path)
            checked.append(path.name)
        except ProvisionError as error:
            alarms.append(f"dump {path.name}: {error.seen}")
    return seen | {"dumps_sound": checked, "alarms": alarms}


def _verify(plan: Plan, repository: Repository) -> tuple[list[str], list[str]]:
    """Return the lines of pgBackRest's verify of a repository, and the alarms in them."""
    # The report has counts; only the log has file names.
    words = (f"--repo={repository.number}", "--output=text", "--verbose", "--log-level-stderr=info")
    done = tool.program(plan.backup.stanza, *words, "verify", quiet=True)
    lines = [line.strip() for line in done.stdout.splitlines()]
    alarms = [f"pgbackrest verify: {tool.reason(done)}"] if done.returncode != 0 else []
    named = list(dict.fromkeys(NAMED.findall(done.stderr)))  # a bundle is named once for each file in it
    more = [f"and {len(named) - NAMES_SHOWN} more files"] if len(named) > NAMES_SHOWN else []
    alarms += [f"the repository is damaged: {text}" for text in [*damage(lines), *named[:NAMES_SHOWN], *more]]
    return lines, alarms


def damage(lines: Sequence[str]) -> list[str]:
    """List the damage in the output of pgBackRest's verify: each archive and each set with its counts. Pure.

    The overall status (`status: error`) is used only if no archive or set explains it.
    """
    found, part, whole = [], "", ""
    for line in lines:
        status = re.search(r"status: ([^,]+)", line)
        if line.startswith(("archiveId: ", "backup: ")):
            part = line.partition(",")[0]
            # In progress: a running or interrupted backup, which the next one resumes.
            if status and status[1] not in ("valid", "in-progress"):
                found.append(f"{part} is {status[1]}")
        elif status and status[1] != "ok":
            whole = line
        wrong = [text for text, count in COUNTS.findall(line) if int(count)]
        if wrong:
            found.append(f"{part}, {', '.join(wrong)}")
    return found or ([whole] if whole else [])


def alarm(seen: dict[str, Any]) -> None:
    """Raise DriftError (exit 3) if there are alarms."""
    if seen["alarms"]:
        raise DriftError(
            "backups need attention",
            where=seen["stanza"],
            seen="; ".join(seen["alarms"]),
            run="docs/README.md lists the runbooks",
        )
