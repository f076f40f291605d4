"""Logical dumps: written under a temporary name, synced, checksummed, renamed; verified in full before a restore.

Does IO as postgres. A dump is a folder: `data/` (pg_dump's directory format), `roles.sql` (without passwords) and
`manifest.json` (size and SHA-256 of each file, server version, extensions, and row counts from the snapshot that was
dumped). The manifest decides whether a dump is intact: `pg_restore --list` accepts truncated and corrupted dumps.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from provision import secure_path, system
from provision.database import Connection, connect_pinned
from provision.errors import UsageError
from provision.host import lookup, plain
from provision.host.backup import exchange, journal, shared, show, state, tool
from provision.host.backup.tool import BackupError
from provision.plan.schema import Plan
from provision.quoting import extra_vars

MANIFEST = "manifest.json"
PARTIAL = ".part"
LOCK_WAIT_MS = 60_000
"""How long pg_dump, and the count of rows after it, wait for a table that its owner has locked against reading."""
ZSTD_SINCE = 16  # the first major whose pg_dump supports zstd
_VECTOR_INDEXES = """
SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_am a ON a.oid = c.relam
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE a.amname IN ('hnsw', 'ivfflat') ORDER BY 1, 2
"""

# Objects of other owners than the database's. The first superuser's are in no pg_shdepend; initdb's are below 16384.
_OTHERS = """
WITH owner AS (SELECT oid, datdba FROM pg_database WHERE datname = current_database()), found AS (
  SELECT classid, objid, objsubid, refobjid AS role FROM pg_shdepend, owner
  WHERE dbid = oid AND deptype = 'o' AND refclassid = 'pg_authid'::regclass
  UNION ALL SELECT 'pg_class'::regclass, oid, 0, relowner FROM pg_class
  WHERE relowner = 10 AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND oid >= 16384
  UNION ALL SELECT 'pg_proc'::regclass, oid, 0, proowner FROM pg_proc
  WHERE proowner = 10 AND oid >= 16384 AND pronamespace::regnamespace::text <> %s)
SELECT pg_describe_object(f.classid, f.objid, f.objsubid), pg_get_userbyid(f.role)::text FROM found f, owner o
WHERE f.role <> o.datdba AND NOT EXISTS (SELECT FROM pg_depend d
  WHERE d.classid = f.classid AND d.objid = f.objid AND d.deptype IN ('e', 'i')) ORDER BY 1
"""
_SCHEMAS = "SELECT extname::text, nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"


def take(plan: Plan, database: str = "") -> dict[str, Any]:
    """Take a dump. Return its name, size, duration and restore command. Raises BackupError, HostError, UsageError."""
    database = database or plan.access.database
    folder = Path(plan.backup.dump_directory)
    begun = time.time()
    name = f"{quote(database, safe='')}-{system.compact(begun)}"
    partial = folder / f"{name}{PARTIAL}"
    if (folder / name).exists() or partial.exists():
        raise BackupError("another dump started within the same second", where=str(folder / name))
    for stale in folder.glob(f"*{PARTIAL}"):  # left by a killed dump
        if time.time() - stale.stat().st_mtime > 24 * 3600:
            shutil.rmtree(stale, ignore_errors=True)
    journal.refuse_unfinished(plan.server.data)
    with connect_pinned(plan.server.url("postgres"), application="provision backup") as superuser:
        exchange.clean_up(superuser)
    _room(plan, folder, database)
    try:
        partial.mkdir(mode=0o700)
        with connect_pinned(
            plan.server.url(database), application="provision backup", autocommit=False, lock_timeout_ms=LOCK_WAIT_MS
        ) as session:
            session.commit()  # the limit of the wait began a transaction
            facts = _dump(plan, session, database, partial)
        seal(partial, {"database": database, "taken": system.stamp(begun), **facts})
        partial.rename(folder / name)
        system.sync(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    expired = expire(plan, database)
    system.keep(shared.DUMP, {"when": system.stamp(begun), "host": os.uname().nodename, "dump": name})
    shared.sync(plan)
    return {
        "label": name, "kind": "logical", "database": database, "size": tool.folder_size(folder / name),
        "seconds": round(time.time() - begun, 1), "start": int(begun), "expired": expired,
        "restore": plan.site(playbook="restore.yml", extra=extra_vars(restore_source="dump", restore_set=name)),
    }  # fmt: skip


def _dump(plan: Plan, session: Connection, database: str, partial: Path) -> dict[str, Any]:
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    snapshot = session.execute("SELECT pg_export_snapshot()").fetchone()
    version = session.execute("SHOW server_version").fetchone()
    assert snapshot is not None  # noqa: S101 - both give a row or raise
    assert version is not None  # noqa: S101
    pack = "zstd:3" if plan.server.major >= ZSTD_SINCE else "3"
    tool.run(
        f"{plan.server.programs}/pg_dump", "--format=directory", f"--jobs={plan.backup.processes}",
        f"--compress={pack}", f"--snapshot={snapshot[0]}", f"--lock-wait-timeout={LOCK_WAIT_MS}",
        f"--file={partial / 'data'}", f"--dbname={plan.server.url(database)}",
    )  # fmt: skip
    tool.run(
        f"{plan.server.programs}/pg_dumpall", "--roles-only", "--no-role-passwords", f"--file={partial / 'roles.sql'}",
        f"--dbname={plan.server.url('postgres')}",
    )  # fmt: skip
    size = session.execute("SELECT pg_database_size(current_database())").fetchone()
    return {
        "server": version[0], "major": plan.server.major, "database_bytes": size[0] if size else 0, **contents(session),
        "state": state.read(session, database),
        "extension_schemas": {str(name): str(schema) for name, schema in session.execute(_SCHEMAS)},
        "others": [[str(what), str(who)] for what, who in session.execute(_OTHERS, (lookup.SCHEMA,))],
        "vector_indexes": [f"{schema} {index}" for schema, index in session.execute(_VECTOR_INDEXES)],
    }  # fmt: skip


def _room(plan: Plan, folder: Path, database: str) -> None:
    """Raise BackupError if a dump might fill the file system."""
    last = [path for path in find(plan) if _of(path) == database]
    need, free = int(1.2 * tool.folder_size(last[-1])) if last else 0, tool.free_bytes(folder)
    if tool.same_disk(folder, plan.server.data):
        need += tool.reserve(folder)
    if free < need:
        raise BackupError(
            "too little disk space for a dump",
            where=str(folder), seen=f"{show.size(free)} free",
            allowed=f"{show.size(need)} (1.2 times the last dump, plus a reserve if the data is on this disk)",
            run="free space, or set backup_dump_directory",
        )  # fmt: skip


def contents(session: Connection) -> dict[str, Any]:
    """Return the extensions and the row count of each table in the session's snapshot."""
    known = plain.tables(session)
    # As pg_dump does: CREATE EXTENSION makes the tables of extensions.
    rows = {name: rows for name, rows in plain.counts(session, known).items() if not known[name].of_extension}
    found = session.execute("SELECT extname, extversion FROM pg_extension ORDER BY 1")
    extensions = {str(name): str(version) for name, version in found}
    return {"rows": rows, "extensions": extensions}


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Checksum and sync every file. The last line of the manifest is its own checksum."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": _sum(path)}
            path.chmod(0o600)
            system.sync(path)
    body = json.dumps({"schema": 1, **facts, "files": files}, indent=1, default=str)
    manifest = folder / MANIFEST
    manifest.write_text(f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n")
    manifest.chmod(0o600)
    system.sync(manifest)
    for path in [*(each for each in folder.rglob("*") if each.is_dir()), folder]:
        system.sync(path)


def check(folder: Path) -> dict[str, Any]:
    """Compare every file of a dump with its manifest and return the manifest. Raises BackupError for any difference."""
    if not folder.is_dir() or folder.name.endswith(PARTIAL):
        raise BackupError("no such dump", where=str(folder), run="provision backup status")
    try:
        body, _, total = secure_path.text((folder / MANIFEST).absolute()).rstrip("\n").rpartition("\n")
    except OSError as error:
        raise _damaged(folder, f"{MANIFEST} cannot be read: {error}") from None
    if hashlib.sha256(body.encode()).hexdigest() != total:
        raise _damaged(folder, f"{MANIFEST} does not match its checksum")
    facts: dict[str, Any] = json.loads(body)
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    for name in sorted(set(facts["files"]) ^ there):
        raise _damaged(folder, f"{name} is {'missing' if name in facts['files'] else 'not part of this dump'}")
    for name, known in facts["files"].items():
        size = (folder / name).stat().st_size
        if size != known["bytes"]:
            raise _damaged(folder, f"{name} has {size} bytes instead of {known['bytes']}")
        if _sum(folder / name) != known["sha256"]:
            raise _damaged(folder, f"{name} does not match its SHA-256")
    return facts


def _damaged(folder: Path, seen: str) -> BackupError:
    return BackupError(
        "this dump is damaged; nothing was changed",
        where=str(folder), seen=seen, allowed="a dump that matches its manifest",
        run="provision backup status",
    )  # fmt: skip


def find(plan: Plan) -> list[Path]:
    """List complete dumps, oldest first."""
    folder = Path(plan.backup.dump_directory)
    whole = (path for path in folder.glob("*-*Z") if (path / MANIFEST).exists()) if folder.is_dir() else iter(())
    return sorted((path for path in whole if taken_at(path)), key=taken_at)


def _of(path: Path) -> str:
    """Return the database of a dump, whose name in the folder's is percent-encoded."""
    return unquote(path.name.rpartition("-")[0])


def taken_at(path: Path) -> float:
    """Return the Unix time in a dump's name, 0 if there is none. A folder's mtime changes, its name does not."""
    try:
        return datetime.strptime(path.name.rpartition("-")[2], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0


def pick(plan: Plan, name: str) -> Path:
    """Return the folder of the named dump, or of the newest for ''. Raises UsageError."""
    known = find(plan)
    if name:
        known = [path for path in known if path.name == name]
    if not known:
        raise UsageError(
            f"no dump {name}".rstrip(),
            where=plan.backup.dump_directory,
            allowed=", ".join(path.name for path in find(plan)) or "none exists",
            run="provision backup take --type logical",
        )
    return known[-1]


def expire(plan: Plan, database: str) -> list[str]:
    """Remove dumps of a database that exceed both the count and the age. Return their names."""
    old = [path for path in find(plan) if _of(path) == database]
    limit = time.time() - 86400 * plan.backup.dump_keep_days
    gone = []
    for path in old[: -max(1, plan.backup.dump_keep)]:
        if taken_at(path) < limit:
            shutil.rmtree(path)
            gone.append(path.name)
    return gone


def _sum(path: Path) -> str:
    with os.fdopen(secure_path.open_file(path.absolute()), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
