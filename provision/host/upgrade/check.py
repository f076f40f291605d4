"""What would stop an upgrade or lose something in it, found while the old server serves. Reads only, as root.

Problems stop the upgrade; notices are shown with the plan of its stages. pg_upgrade's own check comes last, against
a new cluster that `transfer.make` has just made.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from provision.compatibility import version_key
from provision.database import Connection, ask
from provision.host.backup import journal as restores
from provision.host.upgrade.sessions import databases, session_of
from provision.host.upgrade.side import Side
from provision.plan.schema import Plan

SPARE_MB = 1024
"""Free MiB that every method needs: catalogs of the new cluster, WAL and logs."""
LEAST_MB = 256
"""Free MiB below which a copy beside a serving server ends: the server needs them for its WAL."""
COPY_SHARE = 1.1
RECREATED = ("pgaudit",)
"""Extensions with a version of their own for each major, without scripts between them and without data."""
MD5_ENDS = 18
"""The major from which the server warns of MD5 passwords (release notes of PostgreSQL 18)."""
COLLATION_VERSIONS_SINCE = 15


@dataclass
class Found:
    """Problems, each one sentence with the next step; notices; and facts for the journal."""

    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    size_mb: int = 0


def look(old_plan: Plan, new_plan: Plan, method: str) -> Found:
    """Check everything but pg_upgrade's own part. Raises DatabaseError if the old server does not answer."""
    found = Found()
    old, new = Side.of(old_plan), Side.of(new_plan)
    found.problems += shape(old_plan, new_plan)
    if found.problems:
        return found
    if not (new.programs / "pg_upgrade").exists():
        found.problems.append(f"{new.programs}/pg_upgrade is missing: run upgrade.yml, which installs the packages")
        return found
    if seen := restores.unfinished(old.data):
        found.problems.append(seen)
    with session_of(old_plan) as session:
        found.problems += blockers(session, [slot(each.name) for each in old_plan.members])
        found.size_mb = _size_mb(session)
        found.notices += _notices(session, new.major)
    found.problems += space(old, new, method, found.size_mb)
    there = Path(f"/usr/share/postgresql/{new.major}/extension")
    for database in databases(old_plan):
        with session_of(old_plan, database) as session:
            rows = ask(session, "SELECT extname::text, extversion FROM pg_extension")
        found.problems += extensions({str(name): str(version) for name, version in rows}, there, database)
    found.notices += _backups(old_plan)
    return found


def shape(old: Plan, new: Plan) -> list[str]:
    """Refuse hosts and majors that an upgrade does not take."""
    if new.server.major <= old.server.major:
        return [
            f"upgrade_to is {new.server.major}: this host has PostgreSQL {old.server.major}; expected a newer major"
        ]
    return [
        f"{name} is {there}, this host has {here}: change one thing at a time; run site.yml for it before or after the "
        "upgrade"
        for name, here, there in (
            ("cluster_enabled", old.server.patroni, new.server.patroni),
            ("postgresql_port", old.server.port, new.server.port),
            ("database_name", old.access.database, new.access.database),
        )
        if here != there
    ]


def slot(member: str) -> str:
    """Return the name of a member's replication slot (Patroni's `slot_name_from_member_name`)."""
    return re.sub(r"[^a-z0-9_]", lambda seen: "_" if seen[0] in "-." else f"u{ord(seen[0]):04d}", member.lower())[:63]


def blockers(session: Connection, members: Sequence[str] = ()) -> list[str]:
    """Return what the new cluster could not have, beside the slots of `members`. Raises DatabaseError."""
    found = []
    found += prepared(session)
    query = "SELECT slot_name::text, slot_type FROM pg_replication_slots WHERE slot_name::text <> ALL (%s)"
    slots = [f"{name} ({kind})" for name, kind in ask(session, query, [list(members)])]
    if slots:
        found.append(
            f"replication slots do not move: {', '.join(slots)}; end their consumers and drop each with "
            "pg_drop_replication_slot"
        )
    places = [str(row[0]) for row in ask(session, "SELECT spcname FROM pg_tablespace WHERE oid >= 16384")]
    if places:
        found.append(
            f"tablespaces: {', '.join(places)}; this tool upgrades the data directory alone: move their tables with "
            "ALTER TABLE ... SET TABLESPACE pg_default, and drop them"
        )
    publications = [str(row[0]) for row in ask(session, "SELECT subname FROM pg_subscription")]
    if publications:
        found.append(f"subscriptions: {', '.join(publications)}; drop them before, and create them again after")
    return found


def prepared(session: Connection) -> list[str]:
    """Return the prepared transactions, which no method moves. Raises DatabaseError."""
    names = [str(row[0]) for row in ask(session, "SELECT gid FROM pg_prepared_xacts ORDER BY 1")]
    if not names:
        return []
    return [f"prepared transactions: {', '.join(names)}; end each with COMMIT PREPARED or ROLLBACK PREPARED"]


def space(old: Side, new: Side, method: str, size_mb: int) -> list[str]:
    """Return whether the disk has no room for the method, or cannot link. Raises OSError."""
    place, free = free_mb(new)
    needed = SPARE_MB + (0 if method == "link" else round(size_mb * COPY_SHARE))
    found = []
    if free < needed:
        other = "; upgrade_method=link needs no second copy" if method in ("copy", "logical") else ""
        what = "a clone" if method == "clone" else f"upgrade_method {method}"
        found.append(f"{free} MB are free in {place}: {what} needs {needed} MB{other}")
    if method == "link" and place.stat().st_dev != old.data.stat().st_dev:
        found.append(f"upgrade_method is link: {old.data} and {place} are on different file systems; use copy")
    return found


def free_mb(new: Side) -> tuple[Path, int]:
    """Return the directory of the new data, or the one that will hold it, and its free MiB. Raises OSError."""
    place = next(path for path in (new.data, *new.data.parents) if path.exists())
    return place, shutil.disk_usage(place).free // 2**20


def extensions(installed: Mapping[str, str], there: Path, database: str) -> list[str]:
    """Return the extensions that the new major lacks, or has only older or without a way from this version."""
    found = []
    for name, version in sorted(installed.items()):
        try:
            control = (there / f"{name}.control").read_text()
        except OSError:
            found.append(
                f"extension {name} {version} of database {database}: the new major has no such extension; install its "
                "package, or DROP EXTENSION"
            )
            continue
        match = re.search(r"^\s*default_version\s*=\s*'([^']+)'", control, re.M)
        default = match[1] if match else version
        if default == version:
            continue
        if version[:1].isdigit() and default[:1].isdigit() and version_key(default) < version_key(version):
            found.append(
                f"extension {name} {version} of database {database}: the new major has {default} only, which is older; "
                "install a newer one" + (" (pgvector_version)" if name == "vector" else "")
            )
        elif name not in RECREATED and not leads(
            version, default, (path.name for path in there.glob(f"{name}--*--*.sql"))
        ):
            found.append(
                f"extension {name} {version} of database {database}: no script of the new major leads to {default}; "
                f"update it on the old major first: ALTER EXTENSION {name} UPDATE"
            )
    return found


def leads(version: str, default: str, scripts: Iterable[str]) -> bool:
    """Whether update scripts (NAME--FROM--TO.sql) lead from a version to another."""
    steps: dict[str, set[str]] = {}
    for script in scripts:
        _, start, end = script.removesuffix(".sql").split("--")[-3:]
        steps.setdefault(start, set()).add(end)
    reached, new = {version}, {version}
    while new:
        new = {end for start in new for end in steps.get(start, ())} - reached
        reached |= new
    return default in reached


def _size_mb(session: Connection) -> int:
    return int(str(ask(session, "SELECT sum(pg_database_size(oid))::bigint / 1048576 FROM pg_database")[0][0]))


def _notices(session: Connection, major: int) -> list[str]:
    """Return what changes, or is left behind, without stopping the upgrade."""
    found = []
    own = "SELECT name FROM pg_file_settings WHERE sourcefile LIKE '%postgresql.auto.conf' ORDER BY 1"
    if names := [str(row[0]) for row in ask(session, own)]:
        found.append(f"ALTER SYSTEM settings do not move: {', '.join(names)}; put them into postgresql_settings")
    weak = "SELECT rolname FROM pg_authid WHERE rolpassword LIKE 'md5%' ORDER BY 1"
    if names := [str(row[0]) for row in ask(session, weak)]:
        later = f"; PostgreSQL {MD5_ENDS} warns of them" if major >= MD5_ENDS else ""
        found.append(f"MD5 passwords: {', '.join(names)}{later}; set them again with SCRAM (docs/rotate-a-password.md)")
    if ask(session, "SHOW data_checksums") == [("off",)]:
        found.append("the cluster has no checksums, and neither has the new one (provision server checksums --enable)")
    if session.info.server_version // 10000 >= COLLATION_VERSIONS_SINCE:
        changed = (
            "SELECT datname FROM pg_database WHERE datcollversion <> pg_database_collation_actual_version(oid)"
            " ORDER BY 1"
        )
        if names := [str(row[0]) for row in ask(session, changed)]:
            found.append(
                f"the system's collation changed since {', '.join(names)} was created: REINDEX DATABASE is due, before "
                "or after the upgrade"
            )
    return found


def _backups(plan: Plan) -> list[str]:
    if not plan.backup.physical:
        return ["backup_physical is false: no backup is taken before the upgrade"]
    return []
