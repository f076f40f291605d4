"""An upgrade by logical replication between two real servers: rows, sequences, the way back, kills, and refusals.

Both servers are of the machine's own major and are started by pg_ctl instead of systemd; the steps are those of a
major upgrade. tests/system/test_upgrade.py upgrades a host from 15 to 17.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from provision import system
from provision.host.upgrade import journal, logical, replication, side, transfer
from provision.host.upgrade.context import Upgrade
from provision.host.upgrade.side import Side
from provision.plan import load
from provision.plan.schema import Plan
from tests import clusters, plans
from tests.clusters import SETTINGS, free_port

FORM = transfer.Form("UTF8", "C.UTF-8", "C.UTF-8", "libc", "", checksums=True, segment_mb=16)
ROWS = 3000
SCHEMA = f"""
CREATE ROLE minion LOGIN PASSWORD 'a secret of this test';
CREATE DATABASE minion OWNER minion;
\\connect minion
CREATE EXTENSION vector;
CREATE SCHEMA acme;
SET ROLE minion;
RESET ROLE;
CREATE TABLE memories (id bigserial PRIMARY KEY, at timestamptz DEFAULT clock_timestamp(), embedding vector(8), note text);
CREATE INDEX memories_embedding_idx ON memories USING hnsw (embedding vector_cosine_ops);
CREATE INDEX memories_note_idx ON memories (note);
CREATE TABLE acme.events (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, memory bigint REFERENCES memories, double int,
  twice int GENERATED ALWAYS AS (double * 2) STORED);
CREATE TABLE log (said text);
CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL);
CREATE MATERIALIZED VIEW notes AS SELECT count(*) AS n FROM memories;
SELECT setseed(0.5);
INSERT INTO memories (embedding, note) SELECT ARRAY(SELECT random() + n * 0 FROM generate_series(1, 8))::vector, md5(n::text)
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
WRITES = (
    "INSERT INTO memories (embedding, note) SELECT ARRAY(SELECT random() FROM generate_series(1, 8))::vector, 'new'",
    "UPDATE memories SET note = 'again', embedding = embedding WHERE id = 1 + floor(random() * 1000)::int",
    "DELETE FROM acme.events WHERE id = (SELECT min(id) FROM acme.events WHERE id > 1)",
    "INSERT INTO log VALUES (clock_timestamp()::text); UPDATE log SET said = said || '!' WHERE said = 'line 7'",
)


@dataclass
class Loopback(Upgrade):
    """An upgrade on this machine, whose servers have the programs of a test."""

    root: Path = Path()

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
        return Side(15, self.root / "bin", plan.server.configuration, plan.server.data)

    @property
    def url(self) -> str:
        """Return where clients connect, before and after the upgrade."""
        return self.old_plan.server.url("minion")

    def ask(self, plan: Plan, query: str) -> list[tuple[object, ...]]:
        with psycopg.connect(plan.server.url("minion"), autocommit=True) as session:
            return session.execute(query.encode()).fetchall()


def place(root: Path, name: str, port: int, settings: dict[str, str]) -> Plan:
    """Make the configuration of a cluster and return its plan."""
    folder = root / name
    (folder / "conf" / "conf.d").mkdir(parents=True)
    data = folder / "data"
    lines = {**SETTINGS, **settings, "port": str(port), "data_directory": str(data), "unix_socket_directories": str(root),
             "wal_level": "logical", "shared_buffers": "64MB"}  # fmt: skip
    text = "".join(f"{key} = '{value}'\n" for key, value in lines.items())
    (folder / "conf/postgresql.conf").write_text(f"{text}include_dir 'conf.d'\n")
    (folder / "conf/pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 trust\n")
    (folder / "conf/pg_ident.conf").touch()
    server = {"socket_directory": str(root), "port": port, "data_directory": str(data), "major": 15,
              "configuration_directory": str(folder / "conf")}  # fmt: skip
    return plans.sample(server=server, host={"systemd": False, "cpus": 2}, pooler={"enabled": False})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    root = Path(tempfile.mkdtemp(prefix="provision-logical-", dir="/tmp"))
    programs = clusters.install(root)
    (root / "bin").symlink_to(programs)
    port = free_port()
    old, new = (place(root, name, port, {}) for name in ("old", "new"))
    monkeypatch.setattr(system, "EVIDENCE", root / "evidence")
    monkeypatch.setattr(load, "PATH", plans.write(root / "plan.json", old))
    upgrade = Loopback(old, new, "logical", print, logical.STAGES, root=root)
    if os.geteuid() == 0:
        for path in (root, *root.glob("*"), *root.glob("*/conf"), *root.glob("*/conf/*")):
            shutil.chown(path, "postgres", "postgres")
    try:
        transfer.make(upgrade.old, FORM, auth="trust")
        upgrade.old_server.open()
        clusters.run(programs / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", root, "-p", str(port), "-U", "postgres",
                     "-f", "-", text=SCHEMA)  # fmt: skip
        yield upgrade
    finally:
        for each in (upgrade.old, upgrade.new):
            side.stop(each)
        shutil.rmtree(root)


class Writers:
    """Clients that write until they are stopped; `done` counts what the server acknowledged."""

    def __init__(self, url: str, number: int = 2) -> None:
        self.url, self.done, self.over = url, 0, threading.Event()
        self.threads = [threading.Thread(target=self._write, daemon=True) for _ in range(number)]

    def __enter__(self) -> Writers:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def _write(self) -> None:
        while not self.over.is_set():
            try:
                with psycopg.connect(self.url, autocommit=True) as session:
                    while not self.over.is_set():
                        for write in WRITES:
                            session.execute(write.encode())
                            self.done += 1
                        time.sleep(0.01)
            except psycopg.Error:
                time.sleep(0.05)


def prepared(upgrade: Loopback) -> None:
    """Do what precedes the copy, but for the backup."""
    logical.make(upgrade)
    upgrade.write(journal.PREPARED)


def test_copy_and_hand_over_under_writes_keep_every_row_and_go_back_with_all(made: Loopback) -> None:
    with Writers(made.url) as writers:
        prepared(made)
        logical.copy(made)
        logical.move(made)
        logical.finish(made)
    assert writers.done > 50
    assert journal.state(journal.read()) == journal.SERVING
    replication.settle(made.new_plan, made.old_server.here, most=0, show=print)
    assert made.ask(made.new_plan, DIGEST) == made.ask(made.old_server.here, DIGEST)
