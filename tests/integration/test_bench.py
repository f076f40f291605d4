"""`provision bench` runs whole with tiny sizes, on the real schema, and leaves nothing behind."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import psycopg

from provision.checks.vector_index import lost
from tests.clusters import Cluster
from tests.integration.conftest import copy_of
from tests.sandboxes import PROGRAM

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
        assert "the earlier benchmark had other conditions" in other.stderr
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
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 30
            while schemas(cluster, name) == "0":
                assert time.monotonic() < deadline
                time.sleep(0.1)
            time.sleep(1.5)  # in the middle of something
            process.send_signal(signal.SIGINT)
            assert process.wait(30) != 0
        assert schemas(cluster, name) == "0"


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
