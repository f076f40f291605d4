"""A restore after a major upgrade: one stanza holds backups of both majors, and each host reaches those of its own.

Real servers of two majors and the real pgBackRest, with the file that role backup places. The newer server is a new
cluster instead of an upgraded one: pgBackRest's `stanza-upgrade`, and what it leaves in the repository, are the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from provision.controller import inputs
from provision.plan.schema import Plan
from tests import buckets, embedded, plans
from tests.clusters import Cluster, as_server_user, free_port, run
from tests.contract.repository import ROOT
from tests.templates.test_render import render
from tests.until import until

SYSTEM = Path("/usr/lib/postgresql")
NEWER = max((int(path.name) for path in SYSTEM.glob("[0-9]*")), default=0)
OLDER = NEWER - 1
SETTINGS = {"archive_mode": "on", "wal_level": "replica", "archive_timeout": "0"}
SCRIPT = """
import _strptime, json, sys
from pathlib import Path
from provision.errors import ProvisionError
from provision.host.backup import drill, request
from provision.host.backup.targets import parse
from provision import system
from provision.plan import load
system.become()
load.PATH = Path(sys.argv[1])
plan = load.load()
asked = request.Request(target=sys.argv[2], set=sys.argv[3], stanza=sys.argv[4])
try:
    _, window, _ = request._reaching(plan, asked, parse(asked.target), "")
    if len(sys.argv) > 5:
        drill.restore(plan.backup.stanza, 1, window.set.label, Path(sys.argv[5]), parse(asked.target))
    print(json.dumps({"set": window.set.label}))
except ProvisionError as error:
    print(json.dumps({name: getattr(error, name) for name in ("what", "where", "seen", "allowed", "run")}))
"""


@dataclass
class Stanza:
    """A stanza in a directory, and of each of its clusters in turn: the set, a moment after it, and when it stopped."""

    folder: Path
    clusters: dict[int, Cluster]
    labels: list[str] = field(default_factory=list)
    moments: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path:
        """The configuration of pgBackRest."""
        return self.folder / "pgbackrest.conf"

    def add(self, major: int, cluster: Cluster) -> None:
        """Keep a cluster that archives into the stanza, and its host's plan."""
        self.clusters[major] = cluster
        cluster.psql(
            f"ALTER SYSTEM SET archive_command = 'pgbackrest --config={self.file} --stanza=db1 archive-push %p'"
        )
        cluster.psql("CREATE TABLE kept (n serial)")
        cluster.stop()
        (cluster.data / "pg_wal/archive_status").mkdir(exist_ok=True)
        plans.write(self.folder / f"{major}.json", self.plan(major)).chmod(0o644)

    def plan(self, major: int) -> Plan:
        """Return the plan of a host of a major."""
        cluster = self.clusters[major]
        given = {**plans.SAMPLE, "backup_repository_path": str(self.folder / "repository")}
        built = plans.plan("prod", {**given, "backup_logical": False, "backup_retention_full": 3})
        server: dict[str, Any] = {
            "major": major, "port": cluster.port, "socket_directory": cluster.host, "settings": (),
            "data_directory": str(cluster.data),
        }  # fmt: skip
        return replace(built, server=replace(built.server, **server))

    def use(self, major: int, word: str) -> None:
        """Configure pgBackRest as on a host of this major, start its server, and let it archive into the stanza.

        `word` is the command that prepares the stanza; an archiver that fails before it would pause for a minute.
        """
        cluster = self.clusters[major]
        for name in ("spool", "lock", "log"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        secret, main = (
            render(ROOT / f"templates/backup/{name}.j2", "prod", plan=inputs.published(self.plan(major), None))
            for name in ("secrets.conf", "pgbackrest.conf")
        )
        buckets.configured(self.folder, secret, main, f"pg1-socket-path={cluster.host}\n")
        (cluster.data / "postgresql.auto.conf").write_text("")
        cluster.start()
        self.tool(word)
        push = f"pgbackrest --config={self.file} --stanza=db1 archive-push %p"
        cluster.psql(f"ALTER SYSTEM SET archive_command = '{push}'")
        cluster.psql("SELECT pg_reload_conf()")

    def tool(self, *words: str) -> str:
        """Run pgbackrest for the stanza as postgres."""
        return run(*as_server_user("pgbackrest", f"--config={self.file}", "--stanza=db1", *words))

    def back_up(self, major: int) -> None:
        """Take a full backup, note a moment after it that is archived, and stop the server."""
        cluster = self.clusters[major]
        self.tool("--type=full", "backup")
        self.labels.append(json.loads(self.tool("--output=json", "info"))[0]["backup"][-1]["label"])
        time.sleep(1.1)  # windows are in seconds
        cluster.psql("INSERT INTO kept VALUES (DEFAULT)")
        self.moments.append(cluster.psql("SELECT clock_timestamp()"))
        time.sleep(1.1)
        cluster.psql("INSERT INTO kept VALUES (DEFAULT); SELECT pg_switch_wal()")
        cluster.stop()  # which archives all WAL
        time.sleep(1.1)
        self.stops.append(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S+00:00}")
        time.sleep(1.1)

    def choose(self, major: int, target: str, label: str = "", *words: str) -> dict[str, Any]:
        """Check a restore on a host of a major; return the chosen set or the refusal."""
        settings = {**os.environ, "PYTHONPATH": str(ROOT), "PGBACKREST_CONFIG": str(self.file)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(self.folder / f"{major}.json"), target, label, "", *words],
            capture_output=True, text=True, check=False, env=settings, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def stanza() -> Iterator[Stanza]:
    """The older major, the newer one, and the older one again, as an upgrade with a way back leaves it."""
    folder = Path(tempfile.mkdtemp(prefix="provision-sides-", dir="/tmp"))
    shutil.chown(folder, "postgres", "postgres")
    (folder / "repository").mkdir()
    shutil.chown(folder / "repository", "postgres", "postgres")
    made = Stanza(folder, {})
    with embedded.cluster(OLDER) as older:
        installed = SYSTEM / str(NEWER) / "bin"
        for name in ("psql", "pg_isready"):  # which the package lacks
            (older.home / "bin" / name).symlink_to(installed / name)
        try:
            for major, programs in ((OLDER, older.home / "bin"), (NEWER, installed)):
                made.add(major, Cluster.create(SETTINGS, programs))
            for major, word in ((OLDER, "stanza-create"), (NEWER, "stanza-upgrade"), (OLDER, "stanza-upgrade")):
                made.use(major, word)
                made.back_up(major)
            yield made
        finally:
            for cluster in made.clusters.values():
                cluster.remove()
            shutil.rmtree(folder)


def test_each_host_reaches_the_backups_of_its_own_major(stanza: Stanza) -> None:
    first, newer, last = stanza.labels
    before, during, after = stanza.moments
    assert stanza.choose(NEWER, f"time:{during}") == {"set": newer}
    assert stanza.choose(NEWER, "latest") == {"set": newer}
    assert stanza.choose(OLDER, f"time:{after}") == {"set": last}
    assert stanza.choose(OLDER, "latest") == {"set": last}
    # After the way back, the first cluster has the number of a third one, and reaches what it backed up before.
    assert stanza.choose(OLDER, f"time:{before}") == {"set": first}
    assert stanza.choose(OLDER, "latest", first) == {"set": first}


def test_target_before_the_upgrade_is_refused_with_the_windows_of_both_sides(stanza: Stanza) -> None:
    refused = stanza.choose(NEWER, f"time:{stanza.moments[0]}")
    assert refused["what"] == "the target is on the other side of a major upgrade, which no restore crosses"
    assert refused["where"] == "stanza db1"
    assert f"reached by the backups of PostgreSQL {OLDER}; this host has PostgreSQL {NEWER}" in refused["seen"]
    sides = refused["allowed"].split("; ")
    assert [side.partition(":")[0] for side in sides] == [f"PostgreSQL {major}" for major in (OLDER, NEWER, OLDER)]
    assert all(f"(set {label}, " in side for label, side in zip(stanza.labels, sides, strict=True))
    command = f"provision restore plan --stanza db1 --target 'time:{stanza.moments[0]}'"
    assert refused["run"] == f"{command} on another host, with PostgreSQL {OLDER}, that reads this repository"


def test_set_of_the_other_major_is_refused_by_name(stanza: Stanza) -> None:
    refused = stanza.choose(OLDER, "latest", stanza.labels[1])
    assert f"set {stanza.labels[1]}, reached by the backups of PostgreSQL {NEWER}" in refused["seen"]
    refused = stanza.choose(NEWER, "latest", "20200101-000000F")
    assert refused["what"] == "no such set, or its WAL is missing"


def test_moment_between_the_sides_is_refused_as_reached_by_no_backup(stanza: Stanza) -> None:
    stopped = stanza.stops[0]
    refused = stanza.choose(NEWER, f"time:{stopped}")
    assert f"reached by no backup; this host has PostgreSQL {NEWER}" in refused["seen"]
    assert refused["run"] == "provision backup status"


def test_moment_before_all_backups_or_in_the_future_is_refused(stanza: Stanza) -> None:
    refused = stanza.choose(NEWER, "time:2020-01-01 00:00:00+00")
    assert "reached by no backup" in refused["seen"]
    refused = stanza.choose(NEWER, "time:2099-01-01 00:00:00+00")
    assert refused["what"] == "the target is in the future"
    assert f"set {stanza.labels[1]}" in refused["allowed"]


def test_host_of_the_older_major_restores_the_moment_that_the_newer_one_refused(stanza: Stanza) -> None:
    made = Path(tempfile.mkdtemp(prefix="provision-copy-", dir="/tmp"))
    shutil.chown(made, "postgres", "postgres")
    copy = Cluster(stanza.clusters[OLDER].bin, made, free_port())
    try:
        run(*as_server_user("mkdir", "-m", "0700", copy.data))
        target = f"time:{stanza.moments[0]}"
        assert stanza.choose(OLDER, target, "", str(copy.data)) == {"set": stanza.labels[0]}
        automatic = copy.data / "postgresql.auto.conf"
        place = f"port = {copy.port}\nunix_socket_directories = '{copy.host}'\nrecovery_target_action = promote\n"
        text = automatic.read_text().replace("pgbackrest --stanza", f"pgbackrest --config={stanza.file} --stanza")
        automatic.write_text(text + place)
        (copy.data / "standby.signal").rename(copy.data / "recovery.signal")
        copy.start()
        assert until(lambda: copy.psql("SELECT pg_is_in_recovery()") == "f", 60), copy.log.read_text()
        assert copy.psql("SELECT count(*) FROM kept") == "1"  # the second row is from after the moment
    finally:
        copy.remove()
