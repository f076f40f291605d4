"""Two repositories, a directory and a bucket: backups and WAL go to both, and each is enough for a restore.

The real server, the real pgBackRest with the files that role backup places, moto's bucket behind TLS, and the functions
behind `provision backup` and `provision restore`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from provision.controller import inputs
from provision.host.backup import show
from provision.plan.schema import Plan
from tests import buckets, plans
from tests.buckets import Store
from tests.clusters import Cluster, as_server_user, free_port, run
from tests.contract.repository import ROOT
from tests.templates.test_render import render
from tests.until import until

SYSTEM = Path("/usr/lib/postgresql")
MAJOR = max((int(path.name) for path in SYSTEM.glob("[0-9]*")), default=0)
SECOND = {"passphrase": "another passphrase, of the second", "retention_full": 1, "path": "/copies"}
DEADLINE_S = 90
SCRIPT = """
import _strptime, json, sys
from pathlib import Path
from provision import system
folder = Path(sys.argv[1])
system.EVIDENCE = folder / "evidence"
from provision.host.backup import scratch_cluster, tool
scratch_cluster.SCRATCH, scratch_cluster.SOCKET = folder / "scratch", folder / "scratch/socket"
tool.SPOOL = folder / "spool/archive"
from provision.errors import ProvisionError
from provision.host.backup import drill, request, status, take
from provision.host.backup.targets import parse
from provision.plan import load
system.become()
load.PATH = folder / "plan.json"
plan = load.load()

def look():
    seen = status.look(plan)
    status.keep(seen)
    return seen

def restore(number, label, data):
    asked = request.Request(set=label, repository=int(number))
    repository, window, passed = request._reaching(plan, asked, parse("latest"), "")
    drill.restore(plan.backup.stanza, repository.number, window.set.label, Path(data), parse("latest"))
    return {"from": repository.place, "set": window.set.label, "passed": passed}

work = {
    "prepare": lambda: take.prepare(plan),
    "take": lambda kind, number: take.physical(plan, kind, int(number)),
    "status": look,
    "verify": lambda number: status.verify(plan, int(number)),
    "drill": lambda number: drill.run(plan, kind="physical", number=int(number)),
    "restore": restore,
}
try:
    print(json.dumps(work[sys.argv[2]](*sys.argv[3:]), default=str))
except ProvisionError as error:
    print(json.dumps({"error": error.what, "seen": error.seen, "allowed": error.allowed}))
"""


@dataclass
class Host:
    """A server that archives into both repositories, with its plan and evidence in `folder`."""

    cluster: Cluster
    folder: Path
    plan: Plan

    @property
    def configuration(self) -> Path:
        return self.folder / "pgbackrest.conf"

    @property
    def first(self) -> Path:
        return self.folder / "first"

    def run(self, *words: str) -> dict[str, Any]:
        """Run a function as postgres in a process of its own; return its result or its error."""
        settings = {**os.environ, "PYTHONPATH": str(ROOT), "PGBACKREST_CONFIG": str(self.configuration)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(self.folder), *words],
            capture_output=True, text=True, check=False, env=settings, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def archived(self) -> list[str]:
        """Return the files of the first repository's archive."""
        return [path.name for path in self.first.rglob("0000*")]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="provision-two-", dir="/tmp"))
    shutil.chown(made, "postgres", "postgres")
    for name in ("first", "evidence"):
        (made / name).mkdir()
        shutil.chown(made / name, "postgres", "postgres")
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[Store]:
    with buckets.served(folder) as made:
        yield made


@pytest.fixture(scope="module")
def host(folder: Path, store: Store) -> Iterator[Host]:
    settings = {"archive_mode": "on", "wal_level": "replica", "max_wal_size": "256MB"}
    cluster = Cluster.create(settings, SYSTEM / str(MAJOR) / "bin")
    try:
        s3 = store.variables(**SECOND)
        given = {**plans.SAMPLE, "backup_repository_path": str(folder / "first"), "backup_second_s3": s3}
        built = plans.plan("prod", {**given, "backup_logical": False, "backup_allow_local_only": False})
        server: dict[str, Any] = {
            "major": MAJOR, "port": cluster.port, "socket_directory": cluster.host, "settings": (),
            "data_directory": str(cluster.data),
        }  # fmt: skip
        plan = replace(built, server=replace(built.server, **server))
        plans.write(folder / "plan.json", plan).chmod(0o644)
        host = Host(cluster, folder, plan)
        secret, main = (
            render(ROOT / f"templates/backup/{name}.j2", "prod", plan=inputs.published(plan, None), backup_second_s3=s3)
            for name in ("secrets.conf", "pgbackrest.conf")
        )
        buckets.configured(folder, secret, main, f"pg1-socket-path={cluster.host}\n")
        cluster.psql("CREATE ROLE minion LOGIN")
        cluster.psql("CREATE DATABASE minion OWNER minion TEMPLATE template0")
        push = f"pgbackrest --config={host.configuration} --stanza=db1 archive-push %p"
        cluster.psql(f"ALTER SYSTEM SET archive_command = '{push}'")
        cluster.psql("SELECT pg_reload_conf()")
        yield host
    finally:
        cluster.remove()


def switch(host: Host) -> str:
    """Write a row and end its WAL segment; return the segment's name."""
    host.cluster.psql("INSERT INTO kept VALUES (DEFAULT)", "minion")
    return host.cluster.psql("SELECT pg_walfile_name(pg_switch_wal() - 1)")


def archiving(host: Host, true: Callable[[], bool]) -> bool:
    """Wait until something is true; reloads wake the archiver, which pauses for a minute after failures."""
    return until(lambda: true() or not host.cluster.psql("SELECT pg_reload_conf()"), DEADLINE_S)


def await_in(host: Host, names: Any, segment: str) -> None:
    """Wait until a repository has a segment."""
    assert archiving(host, lambda: any(segment in name for name in names())), segment


def await_alarms(host: Host, wanted: Callable[[list[str]], bool]) -> list[str]:
    """Look until the alarms are the wanted ones, and return them."""
    alarms: list[str] = []

    def seen() -> bool:
        alarms[:] = host.run("status")["alarms"]
        return wanted(alarms)

    assert archiving(host, seen), alarms
    return alarms


def restored(host: Host, number: int, label: str = "") -> tuple[dict[str, Any], str]:
    """Restore into a copy and recover it to the end of the archive. Return the choice and the copy's rows."""
    made = Path(tempfile.mkdtemp(prefix="provision-copy-", dir="/tmp"))
    shutil.chown(made, "postgres", "postgres")
    copy = Cluster(host.cluster.bin, made, free_port())
    try:
        run(*as_server_user("mkdir", "-m", "0700", copy.data))
        choice = host.run("restore", str(number), label, str(copy.data))
        assert "error" not in choice, choice
        with (copy.data / "postgresql.auto.conf").open("a") as config:
            config.write(f"port = {copy.port}\nunix_socket_directories = '{copy.host}'\n")
        (copy.data / "standby.signal").rename(copy.data / "recovery.signal")  # end recovery with the archive
        text = (copy.data / "postgresql.auto.conf").read_text()
        path = f"--config={host.configuration} "
        (copy.data / "postgresql.auto.conf").write_text(
            text.replace("pgbackrest --stanza", f"pgbackrest {path}--stanza")
        )
        copy.start()
        assert until(lambda: copy.psql("SELECT pg_is_in_recovery()") == "f", DEADLINE_S), copy.log.read_text()
        return choice, copy.psql("SELECT count(*), max(n) FROM kept", "minion")
    finally:
        copy.remove()


def test_each_of_two_repositories_is_enough(host: Host, store: Store) -> None:
    prepared = host.run("prepare")
    assert (prepared.get("changed"), prepared.get("sets")) == (True, 0), prepared
    assert host.run("prepare")["changed"] is False
    host.cluster.psql("CREATE TABLE kept (n serial PRIMARY KEY)", "minion")

    taken = host.run("take", "full", "0")
    places = [str(host.first), "s3://backups/copies"]
    assert [each["place"].removeprefix("local:") for each in taken["sets"]] == places, taken
    assert [each["kind"] for each in taken["sets"]] == ["full", "full"]
    segment = switch(host)
    await_in(host, host.archived, segment)
    await_in(host, store.names, segment)
    assert host.run("status")["alarms"] == []

    # One passphrase for each: the first's does not read the second.
    text = host.configuration.read_text()
    assert text.count("another passphrase, of the second") == 1
    assert text.count(plans.SECRETS["backup_repository_passphrase"]) == 1

    # Each repository is tested. The spool belongs to the running server: a restore beside it deletes nothing there.
    noted = host.folder / "spool/archive/db1/in/noted"
    run(*as_server_user("install", "-D", "/dev/null", noted))
    tested = host.run("drill", "0")
    assert "error" not in tested, tested
    assert (tested["passed"], tested["repository"]) == (True, 1)
    assert (tested["second"]["passed"], tested["second"]["place"]) == (True, "s3://backups/copies")
    seen = host.run("status")
    assert seen["drill"]["set"] == taken["sets"][0]["label"]
    assert seen["second"]["drill"]["set"] == taken["sets"][1]["label"]

    # A restore finds the repository by the label of a set that only one has.
    rows = host.cluster.psql("SELECT count(*), max(n) FROM kept", "minion")
    choice, found = restored(host, 0, taken["sets"][1]["label"])
    assert (choice["from"], found) == ("s3://backups/copies", rows)
    assert noted.exists()
    assert host.run("restore", "3", "", "/nowhere") == {
        "error": "this host has no such repository", "seen": "3",
        "allowed": f"1 (local:{host.first}), 2 (s3://backups/copies)",
    }  # fmt: skip

    # Each keeps as many full backups as it should, and more while the cluster from before an upgrade is kept.
    upgraded = host.folder / "evidence/upgrade.json"
    upgraded.write_text(json.dumps({"state": "finished", "from": MAJOR - 1, "to": MAJOR, "method": "copy"}))
    assert "error" not in host.run("take", "full", "0")
    seen = host.run("status")
    assert (len(seen["sets"]), len(seen["second"]["sets"])) == (2, 2)
    upgraded.unlink()
    assert "error" not in host.run("take", "full", "0")
    seen = host.run("status")
    assert (len(seen["sets"]), len(seen["second"]["sets"])) == (2, 1)

    # The first is lost: its alarm names it, and WAL and backups reach the other.
    host.first.rename(host.first.with_name("lost"))
    host.first.write_text("")
    segments = [switch(host) for _ in range(3)]
    await_in(host, store.names, segments[-1])
    # Between two attempts of the archiver, pgBackRest has no reason to show.
    why = "repository 1: [FileOpenError] unable to load info file"
    alarms = await_alarms(host, lambda seen: why in "".join(seen))
    named = f"(repository 1, local:{host.first})"
    assert any(each.startswith("the repository cannot be read") and each.endswith(named) for each in alarms), alarms
    (failing,) = [each for each in alarms if each.startswith("archiving has failed since")]
    assert why in failing
    assert "repository 2" not in "".join(alarms)
    failed = host.run("take", "incr", "0")
    assert failed["error"] == "the backup failed in 1 of 2 repositories"
    assert failed["allowed"].startswith("repository 2 has the new set ")
    assert str(host.first) in failed["seen"]
    rows = host.cluster.psql("SELECT count(*), max(n) FROM kept", "minion")
    choice, found = restored(host, 0)
    assert (choice["from"], found) == ("s3://backups/copies", rows)
    assert choice["passed"] == [f"pass over local:{host.first}: the repository cannot be read"]

    # It is back: waiting WAL arrives.
    host.first.unlink()
    host.first.with_name("lost").rename(host.first)
    await_in(host, host.archived, segments[-1])
    await_alarms(host, lambda seen: not seen)

    # The second is lost.
    store.empty()
    switch(host)
    seen = host.run("status")
    assert "(repository 2, s3://backups/copies)" in "".join(seen["alarms"])
    assert seen["sets"]
    rows = host.cluster.psql("SELECT count(*), max(n) FROM kept", "minion")
    await_in(host, host.archived, switch(host))
    choice, found = restored(host, 0)
    assert choice["from"] == f"local:{host.first}"
    assert int(found.split("|")[0]) == int(rows.split("|")[0]) + 1

    # An empty place becomes a repository again, beside the one that is ready.
    assert host.run("prepare")["changed"] is True
    assert "error" not in host.run("take", "full", "2")
    await_alarms(host, lambda seen: all("restore test" in each for each in seen))


def test_open_transaction_of_an_application_prevents_the_counts_of_a_set_but_no_backup(host: Host) -> None:
    """Attack: a transaction of a role that may write stays open, so that no table can be locked for the counts."""
    assert "error" not in host.run("prepare")
    host.cluster.psql("CREATE ROLE minion_app LOGIN")
    host.cluster.psql("CREATE TABLE IF NOT EXISTS kept (n serial PRIMARY KEY)", "minion")
    assert "error" not in host.run("take", "full", "1")
    before = len(host.run("status")["sets"])
    host.cluster.psql("GRANT INSERT ON kept TO minion_app; GRANT USAGE ON kept_n_seq TO minion_app", "minion")
    with psycopg.connect(host.cluster.url("minion", "minion_app")) as session:
        session.execute("INSERT INTO kept VALUES (DEFAULT)")
        taken = host.run("take", "incr", "1")
        assert "error" not in taken, taken
        pid = session.info.backend_pid
        assert f"process {pid} of minion_app" in taken["uncounted"]
        assert f"SELECT pg_terminate_backend({pid});" in taken["uncounted"]
        assert (taken["point"], len(host.run("status")["sets"])) == ("", before + 1), taken

        # An older set has counts, and is compared.
        tested = host.run("drill", "1")
        assert "error" not in tested, tested
        assert tested["set"] < taken["label"]
        assert (tested["uncounted"], bool(tested["tables"])) == ([taken["label"]], True)
        session.rollback()

    # No set has counts: the newest is restored and checked, and the result does not claim a comparison.
    (host.folder / "evidence/backup-figures.json").unlink()
    tested = host.run("drill", "1")
    assert "error" not in tested, tested
    assert (tested["set"], tested["tables"], tested["passed"]) == (taken["label"], {}, True)
    assert "WARNING: not compared with the backup, because no set has reference counts" in show.drilled(tested)
