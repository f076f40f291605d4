"""The fixtures that every integration test stands on."""

import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.clusters import Cluster
from tests.until import until

ROOT = Path(__file__).parents[2]


def test_a_fresh_database_belongs_to_minion_and_has_the_extensions(cluster: Cluster, database: str) -> None:
    with psycopg.connect(cluster.url(database, "minion")) as connection:
        owner = connection.execute("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()")
        assert owner.fetchone() == ("minion",)
        near = connection.execute("SELECT '[1,0]'::vector <=> '[0,1]'::vector, uuid_generate_v4() IS NOT NULL")
        assert near.fetchone() == (1.0, True)


def test_two_databases_share_nothing(cluster: Cluster, database: str) -> None:
    cluster.psql("CREATE TABLE mark ()", database)
    cluster.psql("CREATE DATABASE minion_second TEMPLATE minion_template")
    try:
        assert cluster.psql("SELECT to_regclass('mark') IS NULL", "minion_second") == "t"
    finally:
        cluster.psql("DROP DATABASE minion_second")


def test_psql_stops_at_the_first_error(cluster: Cluster, database: str) -> None:
    with pytest.raises(AssertionError, match="division by zero"):
        cluster.psql("SELECT 1/0; CREATE TABLE later ()", database)
    assert cluster.psql("SELECT to_regclass('later') IS NULL", database) == "t"


def test_the_server_does_not_run_as_root(cluster: Cluster) -> None:
    pid = (cluster.data / "postmaster.pid").read_text().split()[0]
    assert Path("/proc", pid).stat().st_uid != 0
    assert (cluster.data.stat().st_mode & 0o777) == 0o700


def test_a_killed_cluster_recovers_and_a_removed_one_leaves_nothing(cluster: Cluster) -> None:
    other = Cluster.create({"shared_buffers": "16MB"}, server=cluster.bin)
    try:
        assert other.psql("SHOW shared_buffers") == "16MB"
        other.psql("CREATE TABLE kept AS SELECT 7 AS seven")
        other.kill()
        assert not other.ready()
        other.start()
        assert other.psql("SELECT seven FROM kept") == "7"
        other.stop()
        other.start()
    finally:
        assert other.processes()
        other.remove()
    assert not other.root.exists()
    assert not other.processes()


def test_a_killed_test_run_leaves_no_server_behind(cluster: Cluster) -> None:
    program = f"""import time; from pathlib import Path; from tests.clusters import Cluster
other = Cluster.create(server=Path("{cluster.bin}")); print(other.root, flush=True); time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT) as run:
        assert run.stdout
        orphan = Cluster(cluster.bin, Path(run.stdout.readline().strip()), 0)
        assert orphan.processes()
        run.kill()
    try:
        assert until(lambda: not orphan.processes(), 10), "the server outlived its test run"
    finally:
        shutil.rmtree(orphan.root)
