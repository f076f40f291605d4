"""The host around the server: room on its disks, the kernel's settings, packages, and the age of what was proved."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

from provision import compatibility, system
from provision.checks.finding import Severity
from provision.checks.place import HostCheck, Place, Row, ask
from provision.errors import HostError
from provision.plan import load

PACKAGES = ("postgresql-{major}", "postgresql-client-{major}", "postgresql-{major}-pgvector", "postgresql-common",
            "python3-psycopg", "pgbackrest", "pgbouncer")  # fmt: skip
KERNEL = Path("/etc/sysctl.d/60-provision-postgresql.conf")
RESERVED = r"^vm\.nr_hugepages *= *([1-9]\d*)"
TAKEN = r"^HugetlbPages:\s+(\d+) kB"
FULL, NEARLY_FULL = 5, 12  # percent that is free: the server stops at none, and a large sort wants some
WATCH_S = 1800  # the watch looks every five minutes
ROOM = "/var/lib/postgresql", "/var/log", "/var/lib/provision", "/var/backups/provision", "/var/lib/pgbackrest", "/tmp"  # noqa: S108


def disks(place: Place) -> Iterator[Row]:
    """Look at the free space, and the free inodes, of every file system that the database lives on."""
    seen = set()
    for path in (place.data, place.data / "pg_wal", *map(Path, ROOM)):
        try:
            device, room = path.stat().st_dev, os.statvfs(path)
        except FileNotFoundError:
            continue
        if device in seen:
            continue
        seen.add(device)
        for what, free, all_ in (("space", room.f_bavail, room.f_blocks), ("inodes", room.f_favail, room.f_files)):
            percent = 100 * free / all_ if all_ else 100
            if percent < NEARLY_FULL:
                severity = Severity.CRITICAL if percent < FULL else Severity.WARNING
                words = f"the file system of {path} has {percent:.0f} % of its {what} left"
                yield words, f"du -xhd2 {path} | sort -h | tail; docs/the-disk-is-full.md", severity


def kernel(place: Place) -> Iterator[Row]:
    """Compare the kernel's settings with the files that we placed for them."""
    for rows in place.manifests().values():
        for path in (Path(row["path"]) for row in rows if row["path"].startswith("/etc/sysctl.d/")):
            for line in path.read_text().splitlines() if path.exists() else ():
                name, _, wanted = (part.strip() for part in line.partition("="))
                if not wanted or name.startswith("#"):
                    continue
                now = Path("/proc/sys", *name.split(".")).read_text().split()
                if now != wanted.split():
                    fix = f"/usr/lib/systemd/systemd-sysctl {path}"
                    yield f"{name} is {' '.join(now)}, {path} says {wanted}", fix


def huge_pages(place: Place) -> Iterator[Row]:
    """Say when the server runs without the huge pages that were reserved for it: it starts all the same, in silence."""
    reserved = re.search(RESERVED, KERNEL.read_text(), re.M) if KERNEL.exists() else None
    try:
        server = (place.data / "postmaster.pid").read_text().split()[0]
        taken = re.search(TAKEN, Path("/proc", server, "status").read_text(), re.M)
    except FileNotFoundError:
        return  # it does not run, which another check says
    if reserved and taken and not int(taken[1]):
        words = f"the server has none of the {reserved[1]} huge pages that are reserved for it"
        yield words, f"/usr/lib/systemd/systemd-sysctl {KERNEL} && systemctl restart {place.unit}, which ends sessions"


def packages(place: Place) -> Iterator[Row]:
    """Compare installed packages with those that were there when the host was proved."""
    known = system.evidence("verified").get("packages", {})
    now = installed(list(known))
    for name, version in known.items():
        if name not in now:
            yield f"package {name} is gone; {version} was proved", f"apt-get install -y {name}"
        elif now[name] != version:
            yield f"package {name} is {now[name]}, {version} was proved", place.site("toolkit,verify")


def installed(names: list[str]) -> dict[str, str]:
    """Give the versions of those packages that are installed."""
    if not names:
        return {}
    shown = ask("dpkg-query", "-W", "-f", "${db:Status-Abbrev}\\t${Package}\\t${Version}\\n", *names)
    rows = [line.split("\t") for line in shown.splitlines()]
    return {row[1]: row[2] for row in rows if row[0].startswith("ii")}


def ours() -> dict[str, str]:
    """Give the versions of the packages that make this host a database, for its record."""
    major = load.load().server.major
    return installed([name.format(major=major) for name in PACKAGES])


def advisories(place: Place) -> Iterator[Row]:
    """Name known defects of what is installed, but for those that the inventory accepts by name."""
    about, vector = place.record.get("pgvector", {}), system.evidence("verified").get("extensions", {})
    accepted = set(about.get("accept_advisories", []))
    package = f"postgresql-{place.major}-pgvector"
    found = installed([package])
    method = about.get("install_method", "package")
    today: date = datetime.now(UTC).date()
    rows = compatibility.check(
        place.major, vector.get("vector", ""), method, today=today, package=found.get(package, "")
    )
    for row in rows:
        severity = Severity.ACCEPTED if row.id in accepted else Severity.WARNING
        yield f"{row.id}: {row.message}", row.remedy, severity


def backups(place: Place) -> Iterator[Row]:
    """Repeat what the watch saw last, and say where it has not looked for long."""
    del place
    try:
        wanted = load.load().backup
    except HostError:
        return
    seen = system.evidence("backup")
    if not (wanted.physical or wanted.age_limit_h):
        return
    if not seen:
        if time.time() - load.PATH.stat().st_mtime < WATCH_S:
            return  # a host that was just made: its watch has yet to look
        yield "the watch has left no evidence", "systemctl start provision-backup-watch.service"
        return
    age = time.time() - system.moment(seen["when"])
    if age > WATCH_S:
        words = f"the watch looked {age / 3600:.1f} h ago, and should every five minutes"
        yield (
            words,
            "systemctl enable --now provision-backup-watch.timer && systemctl start provision-backup-watch.service",
        )
    stop = max((float(each["stop"]) for each in seen.get("sets", [])), default=None)
    if stop is not None and wanted.age_limit_h and time.time() - stop > 3600 * wanted.age_limit_h:
        words = f"the newest backup is {(time.time() - stop) / 3600:.1f} h old, {wanted.age_limit_h} are allowed"
        yield words, "systemctl start provision-backup@full.service"
    for alarm in seen.get("alarms", []):
        if "newest backup" not in alarm and "restore test" not in alarm:
            yield alarm, "provision backup status"


def drills(place: Place) -> Iterator[Row]:
    """Say when the last drill failed, or is too old."""
    del place
    try:
        wanted = load.load().backup
    except HostError:
        return
    last = system.evidence("drill")
    if not wanted.physical or not last:
        return
    if not last.get("passed"):
        yield (
            f"the last drill failed: {last.get('failure', '')}".splitlines()[0],
            "systemctl start provision-drill.service",
        )
        return
    passed = (last.get("last_passed") or last)["when"]
    age = (time.time() - system.moment(passed)) / 3600
    if wanted.drill_age_limit_h and age > wanted.drill_age_limit_h:
        words = f"the last drill that passed is {age:.1f} h old, {wanted.drill_age_limit_h} are allowed"
        yield words, "systemctl start provision-drill.service"


def house_keeping(place: Place) -> Iterator[Row]:
    """Say when a job of the house-keeping failed, or was put off for too long."""
    del place
    jobs = system.evidence("maintain").get("jobs", {})
    for job, last in jobs.items():
        fix = f"systemctl start provision-maintain@{job}.service"
        if last.get("outcome") == "failed":
            yield f"{job} failed: {last.get('why', '')}", fix
    try:
        limit = load.load().maintenance.age_limit_h
    except HostError:
        return
    done = jobs.get("retention", {}).get("last_done")
    if limit and done and time.time() - system.moment(done) > 3600 * limit:
        age = (time.time() - system.moment(done)) / 3600
        words = f"retention was last applied {age:.1f} h ago, {limit} are allowed"
        yield words, "systemctl start provision-maintain@retention.service"


CHECKS = (
    HostCheck("disk", "host", Severity.WARNING, f"at least {NEARLY_FULL} % free",
              "a full disk stops the server, and a restart needs room for WAL", disks),
    HostCheck("kernel", "host", Severity.WARNING, "the kernel's settings as they were placed",
              "memory is used otherwise than it was computed", kernel, safe=True),
    HostCheck("huge-pages", "host", Severity.WARNING, "shared buffers in the pages that were reserved for them",
              "the reserved memory is lost to everybody, and reads are slower", huge_pages),
    HostCheck("packages", "host", Severity.WARNING, "the packages that were proved",
              "what was proved is not what runs", packages),
    HostCheck("advisories", "versions", Severity.WARNING, "versions without known defects, or accepted by name",
              "the defect is public", advisories),
    HostCheck("backup", "backup", Severity.CRITICAL, "a backup younger than its limit, and WAL that is archived",
              "what came after the last good backup is lost with the host", backups),
    HostCheck("drill", "backup", Severity.CRITICAL, "a drill that passed, younger than its limit",
              "a backup that nobody has restored may not be one", drills),
    HostCheck("house-keeping", "maintenance", Severity.WARNING, "retention that is applied",
              "tables grow, and what should be forgotten is kept", house_keeping),
)  # fmt: skip
