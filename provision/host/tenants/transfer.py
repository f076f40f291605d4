"""Export one tenant to a folder, and import it into this or another installation. Does IO as postgres.

An export is a folder like that of a dump: `data/` (pg_dump's directory format) and `manifest.json` with the size and
SHA-256 of each file, the version of the schema, and the rows of each table in the dumped snapshot. pg_dump and
pg_restore run as the tenant, so that an export can do nothing that the tenant could not.
"""

from __future__ import annotations

import itertools
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from provision import pins, system
from provision.database import Connection, connect, identifier
from provision.errors import DatabaseError, UsageError
from provision.host import plain
from provision.host.access import Access
from provision.host.backup import dump, tool
from provision.host.backup.tool import BackupError
from provision.host.migrate.ledger import Ledger
from provision.host.tenants import catalog, converge, login
from provision.host.tenants.login import Login
from provision.plan.schema import Plan

FOLDER = "tenants"
"""Folder of exports in the directory of dumps."""
LOCK_WAIT = "60s"
"""Longest wait for a table's lock."""
_ENTRY = re.compile(r"\d+; \d+ \d+ (?P<rest>.*)")


def place(plan: Plan, name: str) -> Path:
    """Return the folder of a new export of a tenant, which another export of the same second does not have."""
    first = Path(plan.backup.dump_directory) / FOLDER / f"{name}-{system.compact()}"
    numbered = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([first], numbered) if not folder.exists())


def export(plan: Plan, session: Connection, name: str, folder: Path) -> dict[str, Any]:
    """Export a tenant to a folder that does not exist, and return its manifest without the files.

    `session` is the superuser's. Raises UsageError, BackupError.
    """
    catalog.find(session, name)
    if folder.exists():
        raise UsageError(
            "the folder for the export already exists", seen=str(folder), allowed="a path that does not exist"
        )
    begun, partial = time.time(), folder.with_name(folder.name + dump.PARTIAL)
    try:
        partial.mkdir(mode=0o700, parents=True)
        with login.acting(plan, session, name) as acting:
            facts = _dump(plan, acting, name, partial)
        dump.seal(partial, {"tenant": name, "database": plan.access.database, "taken": system.stamp(begun), **facts})
        partial.rename(folder)
        system.sync(folder.parent)
    except OSError as error:
        raise BackupError("the export cannot be written", where=str(folder), seen=str(error)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {
        "tenant": name, "folder": str(folder), "version": facts["version"], "rows": facts["rows"],
        "size": tool.folder_size(folder), "seconds": round(time.time() - begun, 1),
    }  # fmt: skip


def _dump(plan: Plan, acting: Login, name: str, folder: Path) -> dict[str, Any]:
    with connect(acting.url, application="provision tenant export", autocommit=False) as inside:
        inside.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        snapshot = inside.execute("SELECT pg_export_snapshot()").fetchone()
        assert snapshot is not None  # noqa: S101 - it gives a row or raises
        if plan.fleet:  # each connection has a snapshot of its own on the tenant's server: no writers
            _lock(inside, name)
        version = inside.execute("SHOW server_version").fetchone()
        pack = "zstd:3" if plan.server.major >= dump.ZSTD_SINCE else "3"
        tool.run(
            f"{plan.server.programs}/pg_dump", "--format=directory", f"--jobs={plan.backup.processes}",
            f"--compress={pack}", f"--snapshot={snapshot[0]}", f"--lock-wait-timeout={LOCK_WAIT}", "--no-owner",
            "--no-privileges", "--no-password", f"--schema={name}", f"--file={folder / 'data'}",
            f"--dbname={acting.place}", environment=_environment(acting),
        )  # fmt: skip
        state, _ = Ledger(inside, name).peek()
        return {
            "server": version[0] if version else "", "major": plan.server.major, "version": str(state),
            "rows": _rows(inside, name),
        }  # fmt: skip


def _environment(acting: Login) -> dict[str, str]:
    """Return the environment of a program that logs in as a tenant: its settings are pinned, but for its own role."""
    kept = {name: value for name, value in pins.EVERYWHERE.items() if name not in ("role", "search_path")}
    return {"PGPASSWORD": acting.password, "PGOPTIONS": pins.options(kept)}


def _lock(inside: Connection, name: str) -> None:
    """Keep writers out of the tenant's tables until the session's transaction ends. Raises BackupError."""
    inside.execute(f"SET LOCAL lock_timeout = '{LOCK_WAIT}'")
    try:
        for table in _tables(inside, name):
            inside.execute(f"LOCK TABLE {table} IN SHARE MODE".encode())  # quoted by the server
    except psycopg.errors.LockNotAvailable as error:
        raise BackupError(
            f"the tables of tenant {name} are in use, and an export in a fleet keeps writers out",
            where=f"schema {name}", seen=str(error).strip(), allowed=f"no longer transactions than {LOCK_WAIT}",
            run="repeat this command",
        ) from None  # fmt: skip


def _rows(inside: Connection, name: str) -> dict[str, int]:
    """Count the rows of the tenant's tables in the session's snapshot."""
    return plain.counts(inside, _tables(inside, name))


def _tables(inside: Connection, name: str) -> dict[str, plain.Table]:
    prefix = f"{_quoted(inside, name)}."
    return {key: each for key, each in plain.tables(inside).items() if key.startswith(prefix)}


def _quoted(inside: Connection, name: str) -> str:
    row = inside.execute("SELECT quote_ident(%s)", (name,)).fetchone()
    return str(row[0]) if row else identifier(name)


def check(folder: Path, name: str) -> dict[str, Any]:
    """Compare an export with its manifest and return the manifest. Raises BackupError, UsageError."""
    facts = dump.check(folder)
    if facts.get("tenant") != name:
        raise UsageError(
            "this export is of another tenant",
            where=str(folder),
            seen=str(facts.get("tenant") or "a dump of a whole database"),
            allowed=f"an export of tenant {name}, because an import keeps the schema's name",
            run=f"provision tenant import {facts['tenant']} {folder}" if facts.get("tenant") else "",
        )
    return facts


def load(plan: Plan, session: Connection, name: str, folder: Path) -> dict[str, Any]:
    """Load an export into the empty schema of a tenant, in one transaction, and compare the rows.

    Raises UsageError for a schema that has objects, BackupError; the schema is then empty.
    """
    facts, begun = check(folder, name), time.time()
    catalog.find(session, name)
    _refuse_filled(session, name)
    listing = tool.run(f"{plan.server.programs}/pg_restore", "--list", folder / "data").stdout
    lines = entries(listing, name)
    with login.acting(plan, session, name) as acting, tempfile.NamedTemporaryFile("w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)
        stream.flush()
        tool.run(
            f"{plan.server.programs}/pg_restore", "--no-owner", "--no-privileges", "--no-password", "--exit-on-error",
            "--single-transaction", f"--use-list={stream.name}", f"--dbname={acting.place}", folder / "data",
            environment=_environment(acting),
        )  # fmt: skip
        with connect(acting.url, application="provision tenant import") as inside:
            rows = _rows(inside, name)
            inside.execute("ANALYZE")
    access = Access(session)
    converge.schemas(access, converge.present(access, [name]))
    if rows != facts["rows"]:
        different = sorted(key for key in {*rows, *facts["rows"]} if rows.get(key) != facts["rows"].get(key))
        raise BackupError(
            "the imported tenant differs from its export",
            where=str(folder),
            seen="; ".join(f"{key}: {rows.get(key)} rows instead of {facts['rows'].get(key)}" for key in different),
            run=f"provision tenant drop {name}, then repeat the import",
        )
    return {
        "tenant": name, "folder": str(folder), "version": facts["version"], "rows": rows,
        "seconds": round(time.time() - begun, 1),
    }  # fmt: skip


def entries(listing: str, name: str) -> list[str]:
    """Return the lines of `pg_restore --list` that are loaded: all but the schema itself and its default privileges.

    Pure. The tenant has no right outside its schema, so that an entry of another schema fails.
    """
    kept = []
    for line in listing.splitlines():
        entry = _ENTRY.fullmatch(line)
        if entry and not entry["rest"].startswith((f"SCHEMA - {name} ", f"COMMENT - SCHEMA {name} ", "DEFAULT ACL ")):
            kept.append(line)
    return kept


def _refuse_filled(session: Connection, name: str) -> None:
    rows = session.execute(
        "SELECT count(*)::int FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s",
        (name,),
    ).fetchone()
    if rows and rows[0]:
        raise DatabaseError(
            f"the schema of tenant {name} is not empty",
            where=f"database {session.info.dbname}",
            seen=f"{rows[0]} tables, views and indexes",
            allowed="an empty schema",
            run=f"provision tenant drop {name}, which exports it first; then import again",
        )
