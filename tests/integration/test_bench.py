"""`provision bench` runs whole with tiny sizes, on the real schema, and leaves nothing behind."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from provision.checks.vector_index import lost
from provision.controller.bench import Sizes, comparison, harness, settings
from provision.controller.bench.harness import Configuration
from provision.controller.bench.results import load
from provision.errors import UsageError
from tests.clusters import Cluster
from tests.integration.conftest import copy_of
from tests.sandboxes import PROGRAM
from tests.until import until

TINY = ("--vectors=400", "--scale=1", "--seconds=1", "--clients=2")
STAGES = {"TPC-B", "read-only", "search, ef 40", "search, ef 100", "search, ef 200", "mixed agent load"}


def bench(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAM), "bench", f"--database={url}", *TINY, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def schemas(cluster: Cluster, name: str) -> str:
    return cluster.psql("SELECT count(*) FROM pg_namespace WHERE nspname = 'provision_bench'", name)


def test_measures_a_guarded_database_with_data_only_with_yes_and_cleans_up(
    cluster: Cluster, migrated: str, tmp_path: Path
) -> None:
    with copy_of(cluster, migrated) as name:
        cluster.psql(f"ALTER DATABASE {name} SET provision.guard = 'on'")
        cluster.psql("INSERT INTO agents (name) VALUES ('somebody')", name)
        refused = bench(cluster.url(name, "minion"))
        assert refused.returncode == 2
        assert "this guarded database holds data" in refused.stderr
        assert schemas(cluster, name) == "0"
        done = bench(cluster.url(name, "minion"), f"--report={tmp_path}", "--json", "--yes")
        assert done.returncode == 0, done.stderr
        other = bench(cluster.url(name, "minion"), f"--compare={tmp_path}/bench.json", "--yes", "--rounds=2")
        assert "the earlier benchmark ran under different conditions" in other.stderr
        assert "allowed: rounds 1, as in the earlier one" in other.stderr
        lost = bench(cluster.url(name, "minion"), "--yes", f"--report={tmp_path}/bench.json/below")
        assert (lost.returncode, "the report cannot be written" in lost.stderr) == (2, True)
        found = json.loads(done.stdout)
        assert schemas(cluster, name) == "0"
        assert cluster.psql("SELECT (SELECT count(*) FROM agents), (SELECT count(*) FROM memories)", name) == "1|0"
    assert set(found["rates"]) == STAGES
    assert all(0 < rate["p50"] <= rate["p95"] <= rate["p99"] for rate in found["rates"].values())
    assert set(found["recall"]) == {"40", "100", "200"}
    assert found["recall"]["200"] > 0.9
    page = (tmp_path / "bench.html").read_text()
    assert "mixed agent load" in page
    assert "<script src=" not in page  # opens without a network
    assert re.search(r"<dt>when<dd>20\d\d-\d\d-\d\dT", page)
    assert re.search(r"<dt>clients ran on<dd>\S+: .*\d+ CPUs, \d+ MB", page)
    assert "@media print" in page
    assert "prefers-color-scheme: dark" in page
    assert page.count('class="plotly-graph-div"') == 3
    assert json.loads((tmp_path / "bench.json").read_text()) == found


def test_interrupted_run_leaves_nothing(cluster: Cluster, migrated: str) -> None:
    with copy_of(cluster, migrated) as name:
        url = cluster.url(name, "minion")
        command = [str(PROGRAM), "bench", f"--database={url}", "--seconds=60", "--vectors=400", "--scale=1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert until(lambda: schemas(cluster, name) != "0", 30)
            time.sleep(1.5)  # in the middle of something
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
            assert process.returncode != 0
        assert schemas(cluster, name) == "0", said


def test_says_when_a_search_would_leave_the_index(cluster: Cluster, migrated: str) -> None:
    with copy_of(cluster, migrated) as name, psycopg.connect(cluster.url(name, "minion"), autocommit=True) as session:
        session.execute("INSERT INTO agents (name) VALUES ('a')")
        (index,) = session.execute(
            "SELECT pg_get_indexdef(indexrelid), indexrelid::regclass::text FROM pg_index JOIN pg_class i"
            " ON i.oid = indexrelid JOIN pg_am a ON a.oid = i.relam"
            " WHERE indrelid = 'memories'::regclass AND amname = 'hnsw'"
        ).fetchall()
        session.execute(f"DROP INDEX {index[1]}".encode())
        session.execute(
            "INSERT INTO memories (agent_id, content, embedding) SELECT a.id, 'x', v FROM agents a,"
            " (SELECT array_agg(random())::vector AS v FROM generate_series(1, 1500) i, generate_series(1, 1536)"
            " GROUP BY i) AS e"
        )
        session.execute(str(index[0]).encode())  # a build in memory takes a tenth of as many insertions
        session.execute("ANALYZE memories")
        session.execute("SET random_page_cost = 1.1")
        kept = {40, 100} - {row.ef_search for row in lost(session, "memories", "embedding")}
        assert kept == {40, 100}
        session.execute("SET random_page_cost = 40")
        found = lost(session, "memories", "embedding")
        assert [row.ef_search for row in found] == [40, 100, 200, 400]
        assert "Seq Scan on memories" in found[-1].plan


def test_settings_of_a_server_are_compared_on_a_second_one(
    cluster: Cluster, migrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def none(_pages: int) -> Iterator[int]:
        yield 0  # other servers on this machine could take the pages that it reserves

    monkeypatch.setattr(harness, "reserved", none)
    before = cluster.psql("SELECT count(*) FROM pg_class", migrated)
    sizes = Sizes(scale=1, vectors=400, seconds=1, clients=2)
    said: list[str] = []
    found = settings.compare(cluster.url(migrated), sizes, tell=said.append)
    assert cluster.psql("SELECT count(*) FROM pg_class", migrated) == before
    assert found.server == cluster.psql("SHOW server_version")
    assert {name: len(each) for name, each in found.rounds.items()} == {"stock": 1, "prod": 1, "yours": 1}
    assert {name: len(each) for name, each in found.builds.items()} == {"stock": 3, "prod": 3, "yours": 3}
    assert "shared_buffers = '256MB'" in found.configurations["yours"]
    assert "fsync = 'off'" in found.configurations["yours"]
    assert not re.search(r"^(port|listen_addresses|hba_file|unix_socket\w*) ", found.configurations["yours"], re.M)
    assert "random_page_cost = 1.1" in found.configurations["prod"]
    assert [text for text in said if "huge pages could be reserved" in text] == found.remarks
    page, numbers = comparison.write(found, settings.STOCK, tmp_path)
    assert load(numbers).rounds == found.rounds
    assert "ratio to stock" in page.read_text()


def test_settings_are_compared_only_by_a_superuser_of_this_host(cluster: Cluster, migrated: str) -> None:
    refused = bench(cluster.url(migrated, "minion"), "--settings")
    assert (refused.returncode, "only a superuser can read all settings" in refused.stderr) == (2, True)
    with copy_of(cluster, migrated) as name:
        cluster.psql(f"ALTER DATABASE {name} SET provision.guard = 'on'")
        guarded = bench(cluster.url(name), "--settings")
        assert (guarded.returncode, "this database is guarded" in guarded.stderr) == (2, True)
    both = bench(cluster.url(migrated), "--settings", f"--compare={__file__}")
    assert (both.returncode, "--compare and --settings exclude each other" in both.stderr) == (2, True)
    assert cluster.psql("SELECT count(*) FROM pg_namespace WHERE nspname = 'provision_bench'", migrated) == "0"


def test_settings_that_take_more_memory_than_is_free_are_refused(
    cluster: Cluster, migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Configuration(f"shared_buffers = {2**27}")  # 1 TB
    monkeypatch.setattr(settings, "yours", lambda _: given)
    with pytest.raises(UsageError, match="too little memory for a second server") as refused:
        settings.compare(cluster.url(migrated), Sizes())
    assert (refused.value.where, refused.value.allowed) == ("shared_buffers of row yours", "1,049,736 MB")
