"""Order of files, and golang-migrate's lock keys and URL options."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.errors import MigrationError, UsageError
from provision.host.migrate import steps
from provision.host.migrate.files import NONE, Catalogue, arrange
from provision.host.migrate.ledger import lock_keys
from provision.host.migrate.settings import Settings, from_url, seconds
from provision.host.migrate.steps import Route


def catalogue(*versions: int) -> Catalogue:
    return arrange(f"{version}_m.{direction}.sql" for version in versions for direction in ("up", "down"))


def moves(route: Route) -> list[tuple[str, int, int, int]]:
    return [(step.direction, step.version, step.start, step.target) for step in route.steps]


def test_lock_keys_are_those_of_golang_migrate() -> None:
    assert lock_keys("public", "schema_migrations", "minion") == (1543365956, 4026426560)


@given(st.text(), st.text(), st.text())
def test_lock_keys_are_unsigned_and_of_32_bits(schema: str, table: str, database: str) -> None:
    assert all(0 <= key < 2**32 for key in lock_keys(schema, table, database))


def test_up_goes_through_every_version_in_order() -> None:
    assert moves(steps.up(catalogue(1, 2, 7), NONE)) == [("up", 1, -1, 1), ("up", 2, 1, 2), ("up", 7, 2, 7)]
    assert moves(steps.up(catalogue(0, 3), NONE, 1)) == [("up", 0, -1, 0)]
    assert steps.up(catalogue(1, 2), 2) == Route(())


def test_down_leads_to_the_version_before_or_to_none() -> None:
    assert moves(steps.down(catalogue(1, 2, 7), 7, 2)) == [("down", 7, 7, 2), ("down", 2, 2, 1)]
    assert moves(steps.down(catalogue(1, 2), 2)) == [("down", 2, 2, 1), ("down", 1, 1, -1)]
    assert steps.down(catalogue(1, 2), NONE) == Route(())


def test_goto_goes_either_way_or_stays() -> None:
    assert moves(steps.goto(catalogue(1, 2, 3), 1, 3)) == [("up", 2, 1, 2), ("up", 3, 2, 3)]
    assert moves(steps.goto(catalogue(1, 2, 3), 3, 1)) == [("down", 3, 3, 2), ("down", 2, 2, 1)]
    assert steps.goto(catalogue(1, 2, 3), 2, 2) == Route(())


@pytest.mark.parametrize(("limit", "short"), [(None, 0), (2, 0), (5, 3)])
def test_counts_how_many_are_missing_from_a_limit(limit: int | None, short: int) -> None:
    assert steps.up(catalogue(1, 2), NONE, limit).short == short


@pytest.mark.parametrize(
    "call",
    [
        lambda files: steps.up(files, 5),
        lambda files: steps.down(files, 5),
        lambda files: steps.goto(files, 5, 1),
        lambda files: steps.goto(files, 1, 5),
    ],
)
def test_refuses_a_version_without_files(call: object) -> None:
    with pytest.raises(MigrationError, match="no migration found for version 5"):
        call(catalogue(1, 2))  # type: ignore[operator]


@given(st.sets(st.integers(0, 50), min_size=1), st.integers(0, 60))
def test_all_up_and_all_down_returns_to_none(versions: set[int], limit: int) -> None:
    files = catalogue(*versions)
    up = moves(steps.up(files, NONE, limit))
    assert [target for *_, target in up] == sorted(versions)[:limit]
    reached = up[-1][3] if up else NONE
    down = moves(steps.down(files, reached))
    assert [version for _, version, _, _ in down] == [version for _, version, _, _ in reversed(up)]
    assert not down or down[-1][3] == NONE


BASE = Settings("", Path("migrations"))


def test_extracts_golang_migrate_options_from_the_url() -> None:
    url = (
        "postgresql://minion:p%40ss@localhost:5432/minion?sslmode=disable&x-migrations-table=versions"
        "&x-statement-timeout=1500&x-multi-statement=true"
    )
    settings = from_url(url, BASE)
    assert settings.url == "postgresql://minion:p%40ss@localhost:5432/minion?sslmode=disable"
    assert (settings.table, settings.schema) == ("versions", None)
    assert (settings.statement_timeout_s, settings.multi_statement) == (1.5, True)


@pytest.mark.parametrize(
    ("value", "schema", "table"),
    [("%22migrate%22.%22my.versions%22", "migrate", "my.versions"), ("%22versions%22", None, "versions")],
)
def test_reads_a_quoted_table(value: str, schema: str | None, table: str) -> None:
    settings = from_url(f"postgres://h/d?x-migrations-table={value}&x-migrations-table-quoted=1", BASE)
    assert (settings.schema, settings.table, settings.url) == (schema, table, "postgres://h/d")


def test_passes_server_settings_as_lib_pq_does() -> None:
    settings = from_url("postgres://h/d?search_path=app,public&sslmode=require&options=-c%20work_mem=1MB", BASE)
    assert settings.url == (
        "postgres://h/d?sslmode=require&options=-c%20work_mem%3D1MB%20-c%20search_path%3Dapp%2Cpublic"
    )


@pytest.mark.parametrize(
    ("query", "lock", "statement"),
    [
        ("statement_timeout=300", 5.0, 0.3),
        ("lock_timeout=2s&statement_timeout=1min", 2.0, 60.0),
        ("options=-c%20statement_timeout%3D300%20-clock_timeout=0", 0.0, 0.3),
        ("options=--statement-timeout=5s", 5.0, 5.0),
        ("options=-c%20work_mem%3D1MB", 5.0, 0.0),
        ("statement_timeout=300&x-statement-timeout=200", 5.0, 0.2),
    ],
)
def test_time_outs_in_the_url_replace_the_defaults(query: str, lock: float, statement: float) -> None:
    settings = from_url(f"postgres://h/d?{query}", BASE)
    assert (settings.lock_timeout_s, settings.statement_timeout_s) == pytest.approx((lock, statement))


def test_time_outs_of_a_key_value_string_replace_the_defaults() -> None:
    settings = from_url("dbname=d options='-c lock_timeout=7s'", BASE)
    assert settings.lock_timeout_s == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("statement_timeout=soon", "parameter statement_timeout is not a time"),
        ("lock_timeout=-1", "parameter lock_timeout is not a time"),
        ("x-migration-table=a", "unknown option in the database URL"),
        ("x-statement-timeout=5s", "x-statement-timeout is not an integer"),
        ("x-multi-statement=perhaps", "x-multi-statement is not a boolean"),
        ("x-migrations-table=a&x-migrations-table-quoted=true", "x-migrations-table is not quoted"),
    ],
)
def test_refuses_invalid_options(query: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        from_url(f"postgres://h/d?{query}", BASE)
    assert message in str(refused.value)


def test_keeps_key_value_strings_and_sockets() -> None:
    assert from_url("host=/run/postgresql dbname=minion", BASE).url == "host=/run/postgresql dbname=minion"
    assert from_url("postgresql:///minion?host=/run/postgresql", BASE).url == (
        "postgresql:///minion?host=/run/postgresql"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", 5.0), ("0", 0.0), ("1.5s", 1.5), ("500ms", 0.5), ("2min", 120.0), ("2 m", 120.0), ("1h", 3600.0)],
)
def test_parses_durations(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "-1", "5 days", "fast", "1,5"])
def test_refuses_other_durations(text: str) -> None:
    with pytest.raises(UsageError, match="invalid duration"):
        seconds(text)


@pytest.mark.parametrize(
    ("url", "left", "table"),
    [
        ("postgres://u:pa?ss@h/d?x-migrations-table=a", "postgres://u:pa?ss@h/d", "a"),
        ("postgres://u:p@h/d?application_name=a%40b", "postgres://u:p@h/d?application_name=a%40b", "schema_migrations"),
        ("postgres://h/d?x-migrations-table=a%40b", "postgres://h/d", "a@b"),
    ],
)
def test_splits_the_url_where_libpq_does(url: str, left: str, table: str) -> None:
    settings = from_url(url, BASE)
    assert (settings.url, settings.table) == (left, table)
