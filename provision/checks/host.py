"""The host around the server: disk space, kernel settings, packages, and the age of backups and maintenance runs.

Reads files, evidence in /var/lib/provision and dpkg's database. Changes nothing.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from provision import compatibility, secure_path
from provision.checks.finding import Severity
from provision.checks.placed import ask, manifests
from provision.checks.registry import Row, check
from provision.host.backup import drill, exchange
from provision.host.maintain.run import JOBS
from provision.plan import load
from provision.plan.schema import Plan
from provision.system import evidence, moment
from provision.tuning.extensions import PREWARM_INTERVAL_S

PACKAGES = ("postgresql-{major}", "postgresql-client-{major}", "postgresql-{major}-pgvector", "postgresql-common",
            "python3-psycopg", "pgbackrest", "pgbouncer")  # fmt: skip
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
"""A name of a package (Debian policy, 5.6.7)."""
KERNEL = Path("/etc/sysctl.d/60-provision-postgresql.conf")
PAGES = Path("/proc/sys/vm/nr_hugepages")
RESERVED = r"^vm\.nr_hugepages *= *([1-9]\d*)"
TAKEN = r"^HugetlbPages:\s+(\d+) kB"
FULL, NEARLY_FULL = 5, 12  # percent free: the server stops at 0, and a large sort needs some
PREWARM_INTERVALS = 3
INTERVAL, PREWARM_LIST = "pg_prewarm.autoprewarm_interval", "autoprewarm.blocks"
WATCH_S = 1800  # the backup watch runs every five minutes
WATCH = "provision-backup-watch"
JUDGED_HERE = re.compile(r"the (newest backup|last passed restore test) is [\d.]+ h old|the last restore test failed"
                         r"|the restore test of dump \S+ failed")  # fmt: skip
"""Alarms of the watch that the checks `backup`, `drill` and `dump-drill` judge anew."""
SHOW_BACKUPS = "provision backup status  # shows sets, WAL and alarms; docs/backups-are-old.md"
ALARM_FIXES = (
    ("archive_mode is off", "{site}"),
    ("there is no backup yet", "systemctl start provision-backup@full.service"),
    ("WAL was dropped", "systemctl start provision-backup@full.service"),
    ("WAL segment", "systemctl start provision-backup@full.service"),
    ("the newest dump", "systemctl start provision-backup@logical.service"),
    ("there is no dump yet", "systemctl start provision-backup@logical.service"),
    ("no restore test", "systemctl start provision-drill.service"),
    ("the last passed restore test of a dump", "systemctl start provision-drill.service"),
)
"""How alarms of the watch begin, and the command that ends each."""
DIRECTORIES = ("/var/lib/postgresql", "/var/log", "/var/lib/provision", "/var/backups/provision", "/var/lib/pgbackrest",
               "/tmp")  # noqa: S108  # fmt: skip


@check(
    "disk",
    area="host",
    expected=f"at least {NEARLY_FULL} % free",
    why="a full disk stops the server, and a restart needs space for WAL",
)
def disks(plan: Plan) -> Iterator[Row]:
    """Check free space and free inodes of every file system that the database uses."""
    data = Path(plan.server.data_directory)
    devices = set()
    for path in (data, data / "pg_wal", *map(Path, DIRECTORIES)):
        try:
            device, usage = path.stat().st_dev, os.statvfs(path)
        except FileNotFoundError:
            continue
        if device in devices:
            continue
        devices.add(device)
        for what, free, total in (
            ("space", usage.f_bavail, usage.f_blocks),
            ("inodes", usage.f_favail, usage.f_files),
        ):
            percent = 100 * free / total if total else 100
            if percent < NEARLY_FULL:
                severity = Severity.CRITICAL if percent < FULL else Severity.WARNING
                seen = f"the file system of {path} has {percent:.0f} % of its {what} left"
                yield seen, f"du -xhd2 {path} | sort -h | tail  # docs/the-disk-is-full.md", severity


@check(
    "kernel",
    area="host",
    expected="kernel settings as placed in /etc/sysctl.d",
    why="memory use differs from the plan",
    safe=True,
)
def kernel(plan: Plan) -> Iterator[Row]:
    """Compare the kernel's settings with the placed files."""
    del plan
    for rows in manifests().values():
        for path in (Path(row["path"]) for row in rows if row["path"].startswith("/etc/sysctl.d/")):
            for line in path.read_text().splitlines() if path.exists() else ():
                name, _, expected = (part.strip() for part in line.partition("="))
                if not expected or name.startswith("#"):
                    continue
                now = Path("/proc/sys", *name.split(".")).read_text().split()
                if now != expected.split():
                    fix = f"/usr/lib/systemd/systemd-sysctl {path}"
                    yield f"{name} is {' '.join(now)}, {path} sets {expected}", fix


@check(
    "huge-pages",
    area="host",
    expected="shared buffers in the reserved huge pages",
    why="the reserved memory is lost to every process, and reads are slower",
)
def huge_pages(plan: Plan) -> Iterator[Row]:
    """Report a server that started without its reserved huge pages; it does so without an error.

    The postmaster's count of huge pages is the same on every major; huge_pages_status exists from 17 on.
    """
    reserved = re.search(RESERVED, KERNEL.read_text(), re.M) if KERNEL.exists() else None
    try:
        server = int(secure_path.text(Path(plan.server.data_directory, "postmaster.pid")).split()[0])
        taken = re.search(TAKEN, Path("/proc", str(server), "status").read_text(), re.M)
    except (OSError, IndexError, ValueError):
        return  # not running: the check `service` reports it
    if reserved and taken and not int(taken[1]):
        seen = f"the server uses none of the {reserved[1]} huge pages reserved for it"
        if (present := int(PAGES.read_text())) < int(reserved[1]):
            seen = f"the kernel reserved {present} of {reserved[1]} huge pages, so the server uses ordinary ones"
        yield seen, f"provision server kernel --again && systemctl restart {plan.server.unit}  # ends all sessions"


@check(
    "prewarm",
    area="host",
    expected=f"a list of cached pages younger than {PREWARM_INTERVALS} intervals of pg_prewarm",
    why="after a crash the cache is cold, and searches are slow until it is warm",
)
def prewarm(plan: Plan) -> Iterator[Row]:
    """Report a server whose autoprewarm worker no longer writes its list; the server runs on without it."""
    settings = {each.name: each for each in plan.server.settings}
    if INTERVAL not in settings or INTERVAL in plan.server.overrides:
        return
    data, limit = Path(plan.server.data_directory), PREWARM_INTERVALS * PREWARM_INTERVAL_S
    try:
        newest = (data / "postmaster.pid").stat().st_mtime
    except OSError:
        return  # not running: the check `service` reports it
    with suppress(FileNotFoundError):
        newest = max(newest, (data / PREWARM_LIST).stat().st_mtime)
    if (age := time.time() - newest) > limit:
        every = f"the interval is {PREWARM_INTERVAL_S // 60} min"
        seen = f"{data / PREWARM_LIST} was last written {age / 60:.0f} min ago; {every}"
        yield seen, f"systemctl restart {plan.server.unit}  # ends all sessions"


@check(
    "packages",
    area="host",
    expected="the package versions of the last `provision verify`",
    why="the installed versions are unverified",
)
def packages(plan: Plan) -> Iterator[Row]:
    """Compare installed packages with those of the last verification."""
    rows: dict[str, Any] = evidence("verified").get("packages", {})
    # The group postgres can write the file: a name becomes an argument, and part of a command that is shown.
    verified = {name: str(version) for name, version in rows.items() if PACKAGE.fullmatch(name)}
    now = installed(list(verified))
    for name, version in verified.items():
        if name not in now:
            yield f"package {name} is gone; {version} was verified", f"apt-get install -y {name}"
        elif now[name] != version:
            yield f"package {name} is {now[name]}, {version} was verified", plan.site("toolkit,verify")


def installed(names: list[str]) -> dict[str, str]:
    """Return the versions of the installed packages among `names`."""
    if not names:
        return {}
    shown = ask("dpkg-query", "-W", "-f", "${db:Status-Abbrev}\\t${Package}\\t${Version}\\n", *names)
    rows = [line.split("\t") for line in shown.splitlines()]
    return {row[1]: row[2] for row in rows if row[0][1:2] == "i"}  # hi: installed, and on hold


def ours() -> dict[str, str]:
    """Return the installed versions of the database packages, for the evidence of `provision verify`."""
    major = load.load().server.major
    return installed([name.format(major=major) for name in PACKAGES])


@check(
    "advisories",
    area="versions",
    expected="versions without known defects, or defects accepted by name",
    why="the defect is public",
)
def advisories(plan: Plan) -> Iterator[Row]:
    """Report known defects of the installed versions; those accepted in the inventory as accepted."""
    package = f"postgresql-{plan.server.major}-pgvector"
    version = str(evidence("verified").get("extensions", {}).get("vector", ""))
    today: date = datetime.now(UTC).date()
    rows = compatibility.check(
        plan.server.major,
        version,
        plan.pgvector.install_method,
        today=today,
        package=installed([package]).get(package, ""),
    )
    for row in rows:
        accepted = row.id in plan.pgvector.accept_advisories
        yield f"{row.id}: {row.message}", f"# {row.remedy}", Severity.ACCEPTED if accepted else Severity.WARNING


@check(
    "backup",
    area="backup",
    severity=Severity.CRITICAL,
    expected="a backup younger than its limit, and WAL archiving that works",
    why="changes after the last good backup are lost with the host",
    tags="postgresql",
    extra="-e postgresql_restart_allowed=true",
)
def backups(plan: Plan) -> Iterator[Row]:
    """Report the alarms of the backup watch, and a watch that has stopped."""
    if not (plan.backup.physical or plan.backup.age_limit_h):
        return
    seen = evidence("backup")
    if not seen:
        if time.time() - load.PATH.stat().st_mtime >= WATCH_S:  # on a new host the watch has not run yet
            yield "the backup watch has left no evidence", f"systemctl start {WATCH}.service"
        return
    if (age := _hours_since(moment(seen["when"]))) > WATCH_S / 3600:
        yield (
            f"the backup watch ran {age:.1f} h ago; its interval is five minutes",
            f"systemctl enable --now {WATCH}.timer && systemctl start {WATCH}.service",
        )
    limit = plan.backup.age_limit_h
    for repository in plan.backup.repositories:
        view = seen if repository.number == 1 else seen.get("second", {})
        stop = max((float(each["stop"]) for each in view.get("sets", [])), default=None)
        if stop is not None and limit and _hours_since(stop) > limit:
            text = f"the newest backup is {_hours_since(stop):.1f} h old; the limit is {limit} h"
            yield plan.backup.named(text, repository), "systemctl start provision-backup@full.service"
    for alarm in _alarms(seen):
        if not JUDGED_HERE.match(alarm):
            yield alarm, next((fix for start, fix in ALARM_FIXES if alarm.startswith(start)), SHOW_BACKUPS)


def _alarms(seen: Mapping[str, Any]) -> list[str]:
    """Return the alarms as they are now, since the cause may be gone; where the command fails, the evidence's."""
    if not (before := seen.get("alarms", [])):
        return []
    try:
        return list(json.loads(ask("provision", "backup", "status", "--json"))["alarms"])
    except (ValueError, KeyError, TypeError):
        minutes = _hours_since(moment(seen["when"])) * 60
        return [f"{alarm} (seen {minutes:.0f} min ago)" for alarm in before]


@check(
    "drill",
    area="backup",
    severity=Severity.CRITICAL,
    expected="a passed restore test younger than its limit",
    why="an untested backup may not restore",
)
def drills(plan: Plan) -> Iterator[Row]:
    """Report a failed or overdue restore test."""
    for repository in plan.backup.repositories if plan.backup.physical else ():
        last = evidence(drill.evidence(repository.number))
        for text in _drill_faults(last, plan.backup.drill_age_limit_h) if last else ():
            yield plan.backup.named(text, repository), "systemctl start provision-drill.service"


def _drill_faults(last: Mapping[str, Any], limit: float) -> Iterator[str]:
    if not last.get("passed"):
        yield f"the last restore test failed: {last.get('failure', '')}".splitlines()[0]
        return
    age = _hours_since(moment((last.get("last_passed") or last)["when"]))
    if limit and age > limit:
        yield f"the last passed restore test is {age:.1f} h old; the limit is {limit} h"


@check(
    "restore-dump",
    area="backup",
    severity=Severity.CRITICAL,
    expected="no unfinished restore of a dump",
    why="the database may refuse connections, and a scratch database takes up space",
    fix="provision restore clean-up  # then repeat the restore",
)
def restored_dump(plan: Plan) -> Iterator[Row]:
    """Report leftovers of a killed restore of a dump."""
    del plan
    if left := exchange.unfinished():
        yield f"a restore of a dump was killed: {left}"


@check(
    "dump-drill",
    area="backup",
    severity=Severity.CRITICAL,
    expected="a passed restore test of the newest tested dump",
    why="pg_dump succeeds on databases that pg_restore cannot restore",
)
def dump_drills(plan: Plan) -> Iterator[Row]:
    """Report a dump whose restore test failed."""
    last = evidence("dump-drill")
    if plan.backup.logical and last and not last.get("passed"):
        yield (
            f"the restore test of dump {last.get('dump')} failed: {' '.join(str(last.get('failure')).split())}",
            "provision backup drill --type logical  # if it fails again: docs/a-dump-cannot-be-restored.md",
        )


@check(
    "maintenance",
    area="maintenance",
    expected="maintenance jobs that succeed on schedule",
    why="tables grow, and expired rows are kept",
)
def maintenance(plan: Plan) -> Iterator[Row]:
    """Report a failed maintenance job, and overdue retention."""
    rows = evidence("maintain").get("jobs", {})
    jobs = {job: last for job, last in rows.items() if job in JOBS}  # the job becomes part of a command that is shown
    for job, last in jobs.items():
        if last.get("outcome") == "failed":
            yield f"{job} failed: {last.get('why', '')}", f"systemctl start provision-maintain@{job}.service"
    limit, done = plan.maintenance.age_limit_h, jobs.get("retention", {}).get("last_done")
    if limit and done and (age := _hours_since(moment(done))) > limit:
        yield (
            f"retention last ran {age:.1f} h ago; the limit is {limit} h",
            "systemctl start provision-maintain@retention.service",
        )


def _hours_since(at: float) -> float:
    return (time.time() - at) / 3600
