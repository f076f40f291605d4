"""The restore test of a dump: load the newest one into an empty scratch cluster and compare it with its manifest.

Does IO as postgres. Only this shows that a dump can be restored: pg_dump succeeds on a database whose functions name
tables without their schema, and pg_restore then fails. Roles come from the dump too, so the dump proves to be enough.
The result, passed or failed, is kept in /var/lib/provision/dump-drill.json.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from provision import system
from provision.database import connect_pinned
from provision.host import scratch
from provision.host.backup import dump, load, loader, scratch_cluster, tool
from provision.host.backup.scratch_cluster import SCRATCH, Scratch
from provision.plan.schema import Plan

EVIDENCE = "dump-drill"
DATABASE, ROLE = "restore_test", "provision_restore_test"
NO_PRELOAD = ("pg_cron", "pg_prewarm")
"""Libraries that would act on the scratch cluster: pg_cron would run its jobs, pg_prewarm keep a list of its pages."""
CHEAP = {
    "fsync": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": "0", "max_wal_size": "1GB",
}  # fmt: skip
"""The scratch cluster need not survive a crash."""


def run(plan: Plan, narrate: Callable[[str], None]) -> dict[str, Any]:
    """Test the newest dump and return the evidence. Raises UsageError without a dump, BackupError if the test fails."""
    folder = dump.pick(plan, "")
    begun = time.time()
    facts: dict[str, Any] = {"when": system.stamp(begun), "host": os.uname().nodename, "dump": folder.name}
    last = system.evidence(EVIDENCE).get("last_passed")
    system.keep(EVIDENCE, {**facts, "passed": False, "failure": scratch_cluster.KILLED, "last_passed": last})
    facts["passed"] = False
    try:
        narrate(f"restoring {folder.name} into {SCRATCH}")
        facts["rows"] = _restore(plan, folder.name, facts)
        facts["passed"] = True
    except BaseException as error:
        facts["failure"] = str(error) or type(error).__name__
        raise
    finally:
        facts["seconds"] = round(time.time() - begun, 1)
        facts["last_passed"] = {key: facts[key] for key in ("when", "dump")} if facts["passed"] else last
        system.keep(EVIDENCE, facts)
        scratch_cluster.clear(plan)
    return facts


def _restore(plan: Plan, name: str, facts: dict[str, Any]) -> int:
    """Load a dump into a scratch cluster; return the number of rows, and note in `facts` what was left out."""
    folder = dump.pick(plan, name)
    known = dump.check(folder)
    scratch_cluster.clear(plan)
    scratch_cluster.room(int(known.get("database_bytes", 0)))
    scratch_cluster.make()
    data = SCRATCH / "data"
    tool.run(
        f"{plan.server.programs}/initdb", f"--pgdata={data}", "--username=postgres", "--auth=peer", "--encoding=UTF8",
        "--locale=C", "--no-sync",
    )  # fmt: skip
    server = Scratch(plan, data)
    with server.serving({**CHEAP, "shared_preload_libraries": _preload(plan)}, wait=True):
        # Roles that initdb made are in the file too, so it cannot end without an error.
        tool.run(
            f"{plan.server.programs}/psql", "--no-psqlrc", "--quiet", f"--file={folder / 'roles.sql'}",
            f"--dbname={_url(plan, 'postgres')}", quiet=True,
        )  # fmt: skip
        original = {**known["state"], "tablespace": "pg_default"} if known.get("state") else None
        with connect_pinned(_url(plan, "postgres"), application="provision drill") as session:
            make = functools.partial(scratch.create, session)
            load.create(make, plan, DATABASE, original["owner"] if original else "postgres", original)
            loader.refuse(plan, session, known["extensions"])
            work = loader.Loader(
                plan, session, DATABASE, ROLE, socket=str(scratch_cluster.SOCKET), port=scratch_cluster.PORT
            )
            exists = work.begin(known)
            work.load(folder, SCRATCH, exists, "--no-tablespaces", skip=_indexes(plan, folder, known))
            load.compare(work.admin, known)
            work.finish(folder, SCRATCH, original["owner"] if original else "postgres")
            facts["left_out"] = work.left_out
            if original:
                load.apply(session, DATABASE, original)
    return sum(known["rows"].values())


def _indexes(plan: Plan, folder: Path, known: Mapping[str, Any]) -> list[str]:
    """Return the entries of a dump's vector indexes ("schema name" in the manifest), which the test omits.

    Building one takes longer than the rest of the restore; the restore test of the backup searches with each of them.
    """
    shown = tool.run(f"{plan.server.programs}/pg_restore", "--list", folder / "data").stdout
    return [
        line
        for line in shown.splitlines()
        if " INDEX " in line
        and any(f" {index} " in f"{line.replace(' INDEX ', ' ')} " for index in known.get("vector_indexes", []))
    ]


def _url(plan: Plan, database: str) -> str:
    return plan.server.url(database, socket=str(scratch_cluster.SOCKET), port=scratch_cluster.PORT)


def _preload(plan: Plan) -> str:
    chosen = next((each.text for each in plan.server.settings if each.name == "shared_preload_libraries"), "")
    return ",".join(name for name in chosen.split(",") if name not in NO_PRELOAD)


def untested(plan: Plan, evidence: dict[str, Any]) -> str:
    """Return the name of the newest dump if no restore test of it has passed, else ''."""
    found = dump.find(plan)
    passed = (evidence.get("last_passed") or {}).get("dump")
    return found[-1].name if found and found[-1].name != passed else ""


def why(evidence: dict[str, Any]) -> str:
    """Return the failure of a restore test in one line: what failed, what was seen, and the next step."""
    return "; ".join(line.strip() for line in str(evidence.get("failure")).splitlines())
