"""Upgrades between two real servers on this machine, of its own major and started by pg_ctl instead of systemd.

`python -m tests.upgrades ROOT METHOD run|rollback` is the command of such an upgrade, which a test can kill.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from provision import system
from provision.host.upgrade import after, back, commands, journal, run, search, side, transfer
from provision.host.upgrade.context import Upgrade
from provision.host.upgrade.side import Side
from provision.plan import load
from provision.plan.schema import Plan, Setting
from tests import clusters, embedded, plans
from tests.clusters import SETTINGS, free_port

FORM = transfer.Form("UTF8", "C.UTF-8", "C.UTF-8", "libc", "", checksums=True, segment_mb=16)
PLANS = ("plan-old.json", "plan-new.json")
ROWS = 3000
SCHEMA = f"""
CREATE ROLE minion LOGIN PASSWORD 'a secret of this test';
CREATE DATABASE minion OWNER minion;
\\connect minion
CREATE EXTENSION vector;
CREATE SCHEMA acme;
CREATE TABLE memories (id bigserial PRIMARY KEY, at timestamptz DEFAULT clock_timestamp(), embedding vector(8),
  note text);
CREATE INDEX memories_embedding_idx ON memories USING hnsw (embedding vector_cosine_ops);
CREATE INDEX memories_note_idx ON memories (note);
CREATE TABLE acme.events (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, memory bigint REFERENCES memories,
  double int, twice int GENERATED ALWAYS AS (double * 2) STORED);
CREATE TABLE log (said text);
CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL);
CREATE MATERIALIZED VIEW notes AS SELECT count(*) AS n FROM memories;
SELECT setseed(0.5);
INSERT INTO memories (embedding, note)
  SELECT ARRAY(SELECT random() + n * 0 FROM generate_series(1, 8))::vector, md5(n::text)
FROM generate_series(1, {ROWS}) n;
INSERT INTO acme.events (memory, double) SELECT n, n FROM generate_series(1, 500) n;
INSERT INTO log SELECT 'line ' || n FROM generate_series(1, 100) n;
INSERT INTO schema_migrations VALUES (7, false);
REFRESH MATERIALIZED VIEW notes;
SELECT nextval('memories_id_seq') FROM generate_series(1, 50);
"""
DIGEST = """
SELECT (SELECT count(*) || ' ' || md5(string_agg(m::text, ',' ORDER BY id)) FROM memories m),
  (SELECT count(*) || ' ' || md5(string_agg(e::text, ',' ORDER BY id)) FROM acme.events e),
  (SELECT count(*) || ' ' || md5(string_agg(said, ',' ORDER BY said)) FROM log)
"""


@dataclass
class Loopback(Upgrade):
    """An upgrade on this machine, whose servers have the programs of a test."""

    root: Path = Path()

    @classmethod
    def of(cls, root: Path, method: str) -> Loopback:
        """Return the upgrade in a directory, and let the product read and write there."""
        system.EVIDENCE, load.PATH = root / "evidence", root / "plan.json"
        old, new = (load.load(root / name) for name in PLANS)
        return cls(old, new, method, print, run.METHODS[method].stages, root=root)

    @property
    def old(self) -> Side:
        return self._side(self.old_plan)

    @property
    def new(self) -> Side:
        return self._side(self.new_plan)

    @property
    def work(self) -> Path:
        return self.root / "closed"

    def _side(self, plan: Plan) -> Side:
        major = plan.server.major
        return Side(major, self.root / f"bin-{major}", plan.server.configuration, plan.server.data)

    @property
    def url(self) -> str:
        """Return where clients connect, before and after the upgrade."""
        return self.old_plan.server.url("minion")

    def do(self, *statements: str) -> None:
        """Run statements on the old server."""
        for each in statements:
            self.ask(self.old_plan, f"{each}; SELECT 1")

    def ask(self, plan: Plan, query: str) -> list[tuple[object, ...]]:
        with psycopg.connect(plan.server.url("minion"), autocommit=True) as session:
            found = session.execute(query.encode())
            while found.nextset():
                pass
            return found.fetchall()


def begin(upgrade: Loopback) -> None:
    """Do what precedes the move, but for the check of the majors and the backup: the real stages find one major."""
    upgrade.facts = {"from": upgrade.old.major, "to": upgrade.new.major, "method": upgrade.method}
    upgrade.old_server.start()
    upgrade.write(journal.CHECKED)
    run.METHODS[upgrade.method].make(upgrade)
    plan = upgrade.old_plan
    before = {"minion": search.as_facts(search.measure(plan, "minion"))}
    upgrade.write(journal.PREPARED, before=before, databases=after.contents(plan), systems=[after.identifier(plan)])
    upgrade.write(journal.COPYING if upgrade.method == "logical" else journal.STOPPED)


def finished(upgrade: Loopback) -> None:
    """Upgrade, or continue after a kill, as the command does."""
    assert run.run(upgrade, commands.word(upgrade.new_plan))["state"] == journal.FINISHED


def returned(upgrade: Loopback) -> None:
    """Go back, also with the loss of later writes."""
    assert back.rollback(upgrade, commands.word(upgrade.new_plan), commands.LOSS)["state"] == journal.ROLLED_BACK


def command(upgrade: Loopback, action: str) -> None:
    """Do what the command of this name does."""
    if action == "rollback":
        returned(upgrade)
        return
    if journal.state(journal.read()) in ("", journal.CHECKED, journal.PREPARED):
        begin(upgrade)
    finished(upgrade)


def place(root: Path, name: str, port: int, major: int) -> Plan:
    """Make the configuration of a cluster and return its plan."""
    folder = root / name
    (folder / "conf" / "conf.d").mkdir(parents=True)
    data = folder / "data"
    own = {"port": str(port), "data_directory": str(data), "unix_socket_directories": str(root)}
    lines = {**SETTINGS, "wal_level": "logical", "shared_buffers": "64MB", "max_prepared_transactions": "2", **own}
    text = "".join(f"{key} = '{value}'\n" for key, value in lines.items())
    (folder / "conf/postgresql.conf").write_text(f"{text}include_dir 'conf.d'\n")
    (folder / "conf/pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 trust\n")
    (folder / "conf/pg_ident.conf").touch()
    level = Setting("wal_level", "logical", "wal_level = logical", "of the test", "", restart=True)
    places = {"socket_directory": str(root), "data_directory": str(data), "configuration_directory": f"{folder}/conf"}
    server = {"settings": (level,), "port": port, "major": major, **places}
    return plans.sample(
        server=server,
        host={"systemd": False, "cpus": 2},
        pooler={"enabled": False},
        access={"databases": {"minion": "minion"}},
    )


@contextmanager
def loopback(
    monkeypatch: pytest.MonkeyPatch,
    major: int,
    schema: str,
    method: str = "logical",
    *,
    ports: int = 1,
    root: Path | None = None,
) -> Iterator[Loopback]:
    """Make an old server of a major, or for 0 of the machine's own, which is that of the new one.

    With two ports, clients see which server they reach. `root` is an empty directory.
    """
    root = root or Path(tempfile.mkdtemp(prefix="provision-upgrade-", dir="/tmp"))
    programs = clusters.install(root)
    own = int(re.findall(r"\d+", clusters.run(programs / "postgres", "--version"))[0])
    (root / f"bin-{own}").symlink_to(programs)
    if major:
        embedded.unpack(major, root / "embedded")
        (root / f"bin-{major}").symlink_to(root / "embedded/bin")
    port = free_port()
    old = place(root, "old", port, major or own)
    new = place(root, "new", port if ports == 1 else free_port(), own)
    for name, plan in zip(PLANS, (old, new), strict=True):
        plans.write(root / name, plan)
    monkeypatch.setattr(system, "EVIDENCE", root / "evidence")
    monkeypatch.setattr(load, "PATH", plans.write(root / "plan.json", old))
    upgrade = Loopback.of(root, method)
    for server in (upgrade.old_server, upgrade.new_server):
        server.folder.mkdir(parents=True)
    if os.geteuid() == 0:
        for path in (root, *root.glob("*"), *root.glob("closed/*"), *root.glob("*/conf"), *root.glob("*/conf/*")):
            shutil.chown(path, "postgres", "postgres")
    try:
        transfer.make(upgrade.old, FORM, upgrade.work, auth="trust")
        upgrade.old_server.open()
        words = ("-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", root, "-p", str(port), "-U", "postgres", "-f", "-")
        clusters.run(programs / "psql", *words, text=schema)
        yield upgrade
    finally:
        for each in (upgrade.old, upgrade.new):
            side.stop(each)
        shutil.rmtree(root, ignore_errors=root.is_mount())


if __name__ == "__main__":
    command(Loopback.of(Path(sys.argv[1]), sys.argv[2]), sys.argv[3])
