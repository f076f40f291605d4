"""Settings reach a production server without a surprise: judged, placed, taken, pending, refused, shadowed.

The host is shared: every test leaves it with the settings that it found.
"""

from __future__ import annotations

import json
import re

import psycopg
import pytest

from tests.system.playbooks import Run
from tests.system.production import Production

CONF = "/etc/postgresql/17/main/conf.d/50-provision.conf"
ONLY = ("--tags", "postgresql", "--limit", "prod1")


def play(production: Production, settings: dict[str, object], *arguments: str) -> Run:
    return production.play(*ONLY, "-e", json.dumps({"postgresql_settings": settings}), *arguments)


def ask(production: Production, sql: str) -> str:
    done = production.database.run(f'runuser -u postgres -- psql -XAtc "{sql}"')
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def state(production: Production) -> tuple[str, str]:
    """What must not change when a run refuses: the file, and the server's process."""
    return production.database.run(f"sha256sum {CONF}").stdout, ask(production, "SELECT pg_postmaster_start_time()")


def held(production: Production) -> psycopg.Connection[tuple[object, ...]]:
    """Open a session over the network, as an application would."""
    password = production.passwords["minion"]
    return psycopg.connect(
        host=production.database.address, user="minion", dbname="minion", password=password, autocommit=True
    )


def test_reload_keeps_connections_and_a_restart_that_is_not_allowed_waits(production: Production) -> None:
    usual = ask(production, "SHOW max_connections"), ask(production, "SHOW work_mem")
    started = ask(production, "SELECT pg_postmaster_start_time()")
    variables = {"work_mem": {"value": "7MB", "reason": "wide sorts\nof reports"}, "max_connections": 77}
    with held(production) as session:
        session.execute("SET application_name = 'held'")
        run = play(production, variables)
        assert run.code == 0, run.output
        assert session.execute("SHOW application_name").fetchall() == [("held",)]
        assert session.execute("SHOW work_mem").fetchall() == [("7MB",)]
    assert re.search(
        r"wait for a restart, which postgresql_restart_allowed forbids: [a-z_, ]*max_connections", run.text()
    )
    assert ask(production, "SHOW max_connections") == usual[0]
    assert ask(production, "SELECT pg_postmaster_start_time()") == started
    assert "# wide sorts of reports (computed: " in production.database.run(f"cat {CONF}").stdout

    # An allowed restart, under load, is in test_pgbouncer.py.
    back = play(production, {})
    assert back.code == 0, back.output
    assert (ask(production, "SHOW max_connections"), ask(production, "SHOW work_mem")) == usual


@pytest.mark.parametrize(
    "arguments",
    [pytest.param((), id="run"), pytest.param(("--check", "--diff"), id="check", marks=pytest.mark.faults)],
)
def test_catalogue_refuses_all_misfits_at_once_before_anything_is_placed(
    production: Production, arguments: tuple[str, ...]
) -> None:
    before = state(production)
    variables = {
        "work_memory": "64MB",
        "maintenance_work_mem": "12parsecs",
        "random_page_cost": -3,
        "wal_compression": "zip",
        "auto_explain.log_min_durration": 3,
        "auto_explain.log_format": "csv",
        "effective_cache_size": "5GB",
        "mine.own": "anything",
    }
    run = play(production, variables, *arguments)
    said = run.text()
    assert run.code != 0
    assert "nothing was changed on this host" in said, run.output
    for words in (
        "postgresql_settings.work_memory is not a setting of PostgreSQL 17: did you mean work_mem?",
        "postgresql_settings.maintenance_work_mem is '12parsecs': expected an integer with a unit",
        "postgresql_settings.random_page_cost is -3: expected 0 to",
        "postgresql_settings.wal_compression is 'zip': expected pglz, on, off, lz4, zstd",
        "log_min_durration is not a setting of PostgreSQL 17: did you mean auto_explain.log_min_duration?",
        "postgresql_settings.auto_explain.log_format is 'csv': expected text, xml, json, yaml",
    ):
        assert words in said, run.output
    assert "postgresql_settings.effective_cache_size" not in said
    assert "postgresql_settings.mine.own" not in said
    assert state(production) == before


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"postgresql_preload_libraries": ["not_there"]}, 'could not access file "not_there"'),
        (
            {"postgresql_settings": {"huge_pages": "on", "huge_page_size": "1GB"}},
            "could not map anonymous shared memory",
        ),
    ],
)
def test_refuses_a_start_that_would_fail_and_puts_the_old_file_back(
    production: Production, variables: dict[str, object], expected: str
) -> None:
    before = state(production)
    run = production.play(*ONLY, "-e", json.dumps(variables))
    assert run.code != 0
    assert expected in run.text().replace('\\"', '"'), run.output
    assert state(production) == before


def test_reports_settings_shadowed_by_alter_system_and_its_command_resets_them(production: Production) -> None:
    usual = ask(production, "SHOW work_mem")
    ask(production, "ALTER SYSTEM SET work_mem = '3MB'")
    try:
        run = play(production, {})
        assert run.code == 0, run.output
        command = "runuser -u postgres -- psql -c 'ALTER SYSTEM RESET work_mem'"
        assert command in run.text(), run.output
        assert production.database.run(command).returncode == 0
    finally:
        ask(production, "ALTER SYSTEM RESET work_mem")
    ask(production, "SELECT pg_reload_conf()")
    assert ask(production, "SHOW work_mem") == usual
    assert "ALTER SYSTEM settings on this host" not in play(production, {}).text()
