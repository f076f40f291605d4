"""A cluster that was set up by hand is left alone until it is named, and then taken over without losing a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from tests.sandboxes import INSTALLED, Host, Hosts
from tests.system import handmade
from tests.system.playbooks import Run, play, url

PSQL, GOLANG = "handmade", "golang"
# Checksums on one of the two only, as an administrator would allow it for a host.
ALLOWED = '{"adopt_cluster": "17/main", "adopt_enable_checksums": "{{ inventory_hostname == \'golang\' }}"}'


@dataclass
class Adoption:
    """Both hosts, what was in them, and the runs: without the variable, planned, and meant."""

    hosts: dict[str, Host]
    before: dict[str, list[str]]
    files: dict[str, str]
    refused: Run
    plan: Run
    untouched: dict[str, str]
    run: Run

    def after(self, name: str, query: str) -> str:
        """Ask one of the databases as postgres."""
        return handmade.sql(self.hosts[name], query)


def files(host: Host) -> str:
    """Everything that a run could change before it names the cluster."""
    return host.run(
        "cat /etc/postgresql/17/main/*.conf /etc/postgresql/17/main/conf.d/* 2>/dev/null | sha256sum; "
        "ls /etc/provision /usr/local/bin; cat /var/lib/postgresql/17/main/postmaster.pid"
    ).stdout


@pytest.fixture(scope="module")
def adoption(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adoption]:
    with Hosts.made(tmp_path_factory.mktemp("adopt"), INSTALLED) as sandbox:
        hosts = {name: sandbox.up(name) for name in (PSQL, GOLANG)}
        handmade.make(hosts[PSQL], hosts[GOLANG])
        before = {name: handmade.checksums(host) for name, host in hosts.items()}
        found = {name: files(host) for name, host in hosts.items()}
        refused = play("site.yml", sandbox.inventory)
        plan = play("site.yml", sandbox.inventory, "-e", ALLOWED, "--check", "--diff")
        untouched = {name: files(host) for name, host in hosts.items()}
        run = play("site.yml", sandbox.inventory, "-e", ALLOWED)
        yield Adoption(hosts, before, found, refused, plan, untouched, run)


def test_without_the_variable_it_is_refused_and_the_command_is_named(adoption: Adoption) -> None:
    assert adoption.refused.code != 0
    assert {name: (row.failed, row.changed) for name, row in adoption.refused.recap.items()} == {
        PSQL: (1, 0), GOLANG: (1, 0),
    }  # fmt: skip
    assert "-e adopt_cluster=17/main --check --diff" in adoption.refused.text()


def test_plan_shows_what_is_there_and_what_would_go_and_changes_nothing(adoption: Adoption) -> None:
    assert adoption.plan.code == 0, adoption.plan.output
    said = adoption.plan.text()
    for part in (
        "database minion: ",
        "table public.memories: ",
        "owner postgres",
        "no schema_migrations: the schema is compared with migrations/",
        "schema_migrations exists: ",
        "superusers other than postgres",
        "-host all all 0.0.0.0/0 md5 # let everybody in",
        "deadlock_timeout = 3s",
        "log_min_duration_statement = 7s",
        "checksums: off",
    ):
        assert part in said, part
    assert adoption.untouched == adoption.files


def test_adoption_succeeds_and_every_row_is_there(adoption: Adoption) -> None:
    assert adoption.run.code == 0, adoption.run.output
    for name, host in adoption.hosts.items():
        after = handmade.checksums(host)
        assert after == adoption.before[name]
        assert any(line.startswith("memories 121 ") for line in after), after


@pytest.mark.parametrize("name", [PSQL, GOLANG])
def test_schema_is_recognised_and_brought_up_to_date(adoption: Adoption, name: str) -> None:
    said = adoption.run.text()
    assert "the schema matches version 1" in said
    newest = max(int(line.split("_")[0]) for line in _migrations(adoption.hosts[name]))
    assert adoption.after(name, "SELECT version, dirty FROM schema_migrations") == f"{newest}|f"
    first = "SELECT outcome FROM schema_migrations_history WHERE version = 1"
    assert adoption.after(name, first) == {PSQL: "forced", GOLANG: "adopted"}[name]


def _migrations(host: Host) -> list[str]:
    return host.run("cd /usr/local/share/provision/migrations && ls *.up.sql").stdout.split()


@pytest.mark.parametrize("name", [PSQL, GOLANG])
def test_application_uses_it_as_its_owner(adoption: Adoption, name: str) -> None:
    with psycopg.connect(url(adoption.hosts[name])) as connection:
        owners = connection.execute(
            "SELECT DISTINCT relowner::regrole::text FROM pg_class c WHERE relnamespace = 'public'::regnamespace"
            " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')"
        ).fetchall()
        assert owners == [("minion",)]
        routines = connection.execute(
            "SELECT DISTINCT proowner::regrole::text FROM pg_proc p WHERE pronamespace = 'public'::regnamespace"
            " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')"
        ).fetchall()
        assert routines == [("minion",)]
        assert connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = 'minion'").fetchone() == (False,)
        query = (
            "SELECT content FROM memories ORDER BY embedding <=> (SELECT embedding FROM memories WHERE id = %s) LIMIT 1"
        )
        key, content = connection.execute(
            "SELECT id, content FROM memories WHERE embedding IS NOT NULL ORDER BY id LIMIT 1"
        ).fetchone() or ("", "")
        assert connection.execute(query, (key,)).fetchone() == (content,)


def test_found_configuration_is_kept_aside_and_ours_rules(adoption: Adoption) -> None:
    host = adoption.hosts[PSQL]
    kept = host.run(
        "cat /etc/provision/adopted/17-main/pg_hba.conf /etc/provision/adopted/17-main/postgresql.auto.conf"
    )
    assert "let everybody in" in kept.stdout
    assert "log_min_duration_statement" in kept.stdout
    assert "let everybody in" not in host.run("cat /etc/postgresql/17/main/pg_hba.conf").stdout
    assert adoption.after(PSQL, "SHOW deadlock_timeout") == "3s"  # below include_dir: it wins, and is reported
    said = adoption.run.text()
    assert "ALTER SYSTEM RESET log_min_duration_statement" in said
    assert "work_mem is set again in /etc/postgresql/17/main/postgresql.conf line" in said


def test_checksums_are_switched_on_only_where_that_was_allowed(adoption: Adoption) -> None:
    assert adoption.after(PSQL, "SHOW data_checksums") == "off"
    assert adoption.after(GOLANG, "SHOW data_checksums") == "on"
    assert "the cluster has no checksums, so damage on the disk is noticed late or never" in adoption.run.text()


def test_next_run_needs_no_variable_and_changes_nothing(adoption: Adoption) -> None:
    again = play("site.yml", adoption.hosts[PSQL].inventory)
    assert again.code == 0, again.output
    assert {name: row.changed for name, row in again.recap.items()} == {PSQL: 0, GOLANG: 0}, again.output


def test_schema_that_is_no_version_of_ours_is_refused_with_the_difference(adoption: Adoption) -> None:
    host = adoption.hosts[PSQL]
    handmade.sql(
        host, "DROP TABLE schema_migrations, schema_migrations_history; ALTER TABLE agents ADD COLUMN mood text"
    )
    command = (
        "runuser -u postgres -- provision adopt --owner minion --path /usr/local/share/provision/migrations"
        " --database 'host=/var/run/postgresql dbname=minion user=postgres'"
    )
    refused = host.run(command)
    assert refused.returncode == 1
    assert "the schema matches no migration version" in refused.stderr
    assert "+    mood text" in refused.stderr
    assert adoption.after(PSQL, "SELECT count(*) FROM pg_database WHERE datname LIKE 'provision_verify%'") == "0"
    handmade.sql(host, "ALTER TABLE agents DROP COLUMN mood")
    known = host.run(command)
    assert known.returncode == 0, known.stderr
    assert "schema_migrations: version" in known.stdout
