"""The default itself, PostgreSQL 14 with pgvector 0.5.1 from source, on Debian 12 and, where the mirror has it, 13."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psycopg
import pytest
import yaml

from tests.pg14.mirror import RELEASES, Mirror
from tests.sandboxes import Host, Hosts
from tests.system.playbooks import Run, play, url
from tests.system.test_provisioning import TABLES

MEANT = {
    "libpq-dev", "libpq5", "postgresql-14", "postgresql-14-pgvector", "postgresql-client-14",
    "postgresql-client-common", "postgresql-common", "postgresql-common-dev", "postgresql-server-dev-14",
}  # fmt: skip
LEFT = (
    "find /usr/local/src -mindepth 1 ! -name pgvector-build-packages; "
    "find /usr/lib/postgresql /usr/share/postgresql -name 'vector*'"
)


@dataclass
class Fleet:
    """The hosts, the run with a wrong checksum and what it left on each of them, and the two runs that followed."""

    hosts: dict[str, Host]
    refused: Run
    left: dict[str, str]
    first: Run
    second: Run


@pytest.fixture(scope="module")
def fleet(sandbox: Hosts, mirror: Mirror, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    systems = [name for name, codename in RELEASES.items() if name == "debian12" or mirror.has(codename)]
    hosts = {name: sandbox.up(name, os=name) for name in systems}
    variables = tmp_path_factory.mktemp("variables") / "pg14.yml"
    variables.write_text(yaml.safe_dump(wanted(mirror)))

    def run(*arguments: str) -> Run:
        inventory = next(iter(hosts.values())).inventory
        return play("site.yml", inventory, "-e", f"@{variables}", *arguments, timeout=1200)

    refused = run("-e", f"pgvector_source_sha256={'0' * 64}")
    left = {name: host.run(LEFT).stdout for name, host in hosts.items()}
    return Fleet(hosts, refused, left, run(), run())


def wanted(mirror: Mirror) -> dict[str, object]:
    """Give the variables that lead to the default on each release."""
    suite = mirror.suite.replace("CODENAME", f"{{{{ {RELEASES}[inventory_hostname] }}}}")
    return {
        **mirror.variables("" if mirror.suite == "CODENAME-pgdg" else suite),
        "pgvector_keep_build_packages": False,
    }


def test_wrong_checksum_is_refused_before_anything_is_unpacked(fleet: Fleet) -> None:
    assert {name: row.failed for name, row in fleet.refused.recap.items()} == dict.fromkeys(fleet.hosts, 1)
    assert f"did not match {'0' * 64}; it was" in fleet.refused.text(), fleet.refused.output
    assert fleet.left == dict.fromkeys(fleet.hosts, "")


def test_converges_and_a_second_run_changes_nothing(fleet: Fleet) -> None:
    assert fleet.first.code == 0, fleet.first.output
    assert fleet.second.code == 0, fleet.second.output
    assert {name: row.changed for name, row in fleet.second.recap.items()} == dict.fromkeys(fleet.hosts, 0)


def test_versions_are_those_of_the_default(fleet: Fleet) -> None:
    for host in fleet.hosts.values():
        with psycopg.connect(url(host)) as connection:
            assert connection.info.server_version // 10000 == 14
            extension = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
            assert extension == ("0.5.1",)


def test_nine_tables_belong_to_the_application(fleet: Fleet) -> None:
    for host in fleet.hosts.values():
        with psycopg.connect(url(host)) as connection:
            tables = connection.execute("SELECT tablename, tableowner FROM pg_tables WHERE schemaname = 'public'")
            assert {table for table, owner in tables.fetchall() if owner == "minion"} >= TABLES


def test_compiler_is_removed_although_the_run_that_installed_it_failed(fleet: Fleet) -> None:
    for host in fleet.hosts.values():
        assert host.run("command -v gcc make; ls /usr/local/src/pgvector-build-packages").stdout == ""


def test_hnsw_index_answers_a_search(fleet: Fleet) -> None:
    for host in fleet.hosts.values():
        with psycopg.connect(url(host)) as connection:
            connection.execute("CREATE TEMP TABLE points (name text, place vector(3))")
            connection.execute("INSERT INTO points VALUES ('x', '[1,0,0]'), ('y', '[0,1,0]'), ('z', '[0,0,1]')")
            connection.execute("CREATE INDEX ON points USING hnsw (place vector_cosine_ops)")
            connection.execute("SET enable_seqscan = off")  # three rows: the planner would never take the index
            search = "SELECT name FROM points ORDER BY place <=> '[0.1,0.2,0.9]'"
            plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {search}"))
            assert "Index Scan using points_place_idx" in plan
            assert connection.execute(search).fetchall() == [("z",), ("y",), ("x",)]


def test_summary_warns_of_end_of_life_and_of_searches_without_iterative_scan(fleet: Fleet) -> None:
    _, _, summary = fleet.first.text().partition("Report the host and keep the report on the controller")
    warnings = (
        "warning: PostgreSQL 14 reached its end of life on 2026-11-12",
        "warning: pgvector 0.5.1 filters after the search: a filtered search can return too few rows",
    )
    assert [summary.count(text) for text in warnings] == [len(fleet.hosts)] * 2, fleet.first.output


def test_only_the_packages_that_are_meant_come_from_the_mirror(fleet: Fleet, mirror: Mirror) -> None:
    for host in fleet.hosts.values():
        priorities = priorities_of(host, mirror)
        assert {name for name, priority in priorities.items() if priority > 0} <= MEANT
        assert {priorities[name] for name in MEANT & set(priorities)} == {700}
        assert {"postgresql-14", "postgresql-client-14", "postgresql-server-dev-14"} <= set(priorities)
        # What else the host installs comes from Debian as before, even where one machine serves both.
        assert "Candidate: (none)" not in host.run("apt-cache policy bash").stdout


def priorities_of(host: Host, mirror: Mirror) -> dict[str, int]:
    """Give the priority of each package that the mirror offers, as the host's apt sees it."""
    indexes = f"apt-get indextargets --format '$(FILENAME)' 'Created-By: Packages' 'Repo-URI: {mirror.uri}/'"
    names = f"{indexes} | xargs /usr/lib/apt/apt-helper cat-file | sed -n 's/^Package: //p' | sort -u"
    policy = host.run(f"{names} | xargs apt-cache policy").stdout
    priorities, name, priority = {}, "", 0
    for line in policy.splitlines():
        if package := re.match(r"(\S+):$", line):
            name = package[1]
        elif version := re.match(r" (?:\*\*\*|   ) \S+ (-?\d+)$", line):
            priority = int(version[1])
        elif f" {mirror.uri} " in line:
            priorities[name] = priority
    return priorities
