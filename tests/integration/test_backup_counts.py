"""Reference counts: they describe one moment, whatever the names of tables and columns."""

from __future__ import annotations

import threading

import psycopg
import pytest

from provision.database import Connection, connect
from provision.errors import DatabaseError
from provision.host.backup import counts, dump
from tests.clusters import Cluster

ODD = """
CREATE TABLE "a ""b"" {c} %d" (t text, "its" int);
INSERT INTO "a ""b"" {c} %d" VALUES ('x', 1), (NULL, NULL);
CREATE TABLE empty (t int);
"""


def test_count_rows_and_tell_a_changed_one_whatever_its_table_is_called(cluster: Cluster, database: str) -> None:
    cluster.psql(ODD, database)
    before = counts.take(cluster.url(database), "one")
    name = 'public."a ""b"" {c} %d"'
    assert before["tables"][name]["rows"] == 2
    assert before["tables"]["public.empty"] == {"rows": 0, "checksum": "0"}
    assert set(before["extensions"]) == {"plpgsql", "uuid-ossp", "vector"}
    assert counts.differences(before, counts.take(cluster.url(database), "two")) == []
    cluster.psql('UPDATE "a ""b"" {c} %d" SET t = \'y\' WHERE its = 1', database)
    assert [
        text.partition(":")[0] for text in counts.differences(before, counts.take(cluster.url(database), "three"))
    ] == [name]


def test_order_of_rows_does_not_matter_but_which_rows_do(cluster: Cluster, database: str) -> None:
    cluster.psql("CREATE TABLE here (n int); INSERT INTO here VALUES (1), (2), (3)", database)
    before = counts.take(cluster.url(database), "one")
    cluster.psql("TRUNCATE here; INSERT INTO here VALUES (3), (1), (2)", database)
    assert counts.differences(before, counts.take(cluster.url(database), "two")) == []
    cluster.psql("TRUNCATE here; INSERT INTO here VALUES (3), (3), (0)", database)
    assert len(counts.differences(before, counts.take(cluster.url(database), "three"))) == 1


def test_moment_is_one_although_writers_never_stop(cluster: Cluster, database: str) -> None:
    cluster.psql("CREATE TABLE pairs_a (n int); CREATE TABLE pairs_b (n int)", database)
    over = threading.Event()

    def write() -> None:
        with psycopg.connect(cluster.url(database)) as session:
            while not over.is_set():
                session.execute("INSERT INTO pairs_a VALUES (1); INSERT INTO pairs_b VALUES (1)")
                session.commit()

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    try:
        taken = [counts.take(cluster.url(database), f"p{number}")["tables"] for number in range(8)]
    finally:
        over.set()
        for writer in writers:
            writer.join()
    pairs = [(each["public.pairs_a"]["rows"], each["public.pairs_b"]["rows"]) for each in taken]
    assert all(one == other for one, other in pairs), pairs
    assert pairs[-1][0] > pairs[0][0]


def test_table_that_is_held_for_long_is_given_up_with_its_reason(
    cluster: Cluster, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.psql("CREATE TABLE held (n int)", database)
    monkeypatch.setattr(counts, "LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(counts, "LOCK_TRIES", 2)
    with connect(cluster.url(database), application="test", autocommit=False) as holder:
        holder.execute("LOCK TABLE held IN ROW EXCLUSIVE MODE")
        with pytest.raises(DatabaseError, match="the tables could not be locked for the reference counts") as refused:
            counts.take(cluster.url(database), "never")
        assert "lock timeout" in refused.value.seen
        pid = holder.info.backend_pid
        assert f"process {pid} of postgres (test), in a transaction for " in refused.value.seen
        assert refused.value.run == f'runuser -u postgres -- psql -XAtc "SELECT pg_terminate_backend({pid});"'
        holder.rollback()


def test_temporary_and_unlogged_tables_of_others_are_neither_read_nor_missed(cluster: Cluster, database: str) -> None:
    cluster.psql("CREATE TABLE kept (n int); CREATE UNLOGGED TABLE cache (n int)", database)
    with psycopg.connect(cluster.url(database), autocommit=True) as other:
        other.execute("CREATE TEMP TABLE mine (n int)")
        assert list(counts.take(cluster.url(database), "one")["tables"]) == ["public.kept"]
        with connect(cluster.url(database), application="test") as session:
            # A dump has the unlogged one, with its rows.
            assert list(dump.contents(session)["rows"]) == ["public.cache", "public.kept"]


def test_columns_named_as_the_query_s_own_names_change_no_count(cluster: Cluster, database: str) -> None:
    columns = ("its row", "t", "count", "record_send", "row", "sha256", "*")
    cluster.psql("CREATE TYPE two AS (a int, b text)", database, "minion")
    for number, column in enumerate(columns):
        for kind, value in (("text", "'x'"), ("two", "ROW(1, 'x')"), ("bytea", "'x'")):
            table = f"named_{number}_{kind}"
            cluster.psql(
                f'CREATE TABLE {table} ("{column}" {kind}, other int); INSERT INTO {table} VALUES ({value}, 1)',
                database, "minion",
            )  # fmt: skip
    before = counts.take(cluster.url(database), "one")
    tables = {name for name in before["tables"] if "named_" in name}
    assert len(tables) == 3 * len(columns)
    for name in tables:
        cluster.psql(f"UPDATE {name} SET other = 2", database)
    # The other column counts too: with a composite column of that name, only this one did.
    changed = counts.differences(before, counts.take(cluster.url(database), "two"))
    assert {text.partition(":")[0] for text in changed} == tables


def test_owner_who_locks_a_table_against_reading_cannot_hold_a_backup_for_ever(
    cluster: Cluster, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: the lock is taken after the snapshot, when no wait for writers is limited any more."""
    cluster.psql("CREATE TABLE closed (n int)", database)
    monkeypatch.setattr(counts, "READ_WAIT_MS", 500)
    freeze = counts._freeze
    with psycopg.connect(cluster.url(database)) as owner:

        def then_lock(locker: Connection, reader: Connection, point: str) -> str:
            lsn = freeze(locker, reader, point)
            owner.execute("LOCK TABLE closed IN ACCESS EXCLUSIVE MODE")
            return lsn

        monkeypatch.setattr(counts, "_freeze", then_lock)
        with pytest.raises(DatabaseError, match="a table cannot be read") as refused:
            counts.take(cluster.url(database), "one")
    assert "lock timeout" in refused.value.seen
    assert refused.value.where == "public.closed"
