"""Connection parameters in each format that clients read; expected texts are written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from provision.errors import UsageError
from provision.plan import connect
from tests.plans import sample

HOST = {"client_address": "db1.example.com"}
ODD, QUOTED = 'p&s:w"o\\d', "it's"
TLS = {"enabled": True, "client_ca": "/etc/minion/ca.crt"}
OPEN = {"listen_addresses": ("*",)}


def prod(**options: Any) -> connect.Connection:
    return connect.connection(sample(server=HOST, tls=TLS, pooler=OPEN), **options)


def test_application_uses_the_pooler_and_has_a_direct_url_beside_it() -> None:
    found = prod()
    query = "sslmode=verify-full&sslrootcert=/etc/minion/ca.crt"
    assert found.url() == f"postgresql://minion_app@db1.example.com:6432/minion?{query}"
    assert found.url(found.port) == f"postgresql://minion_app@db1.example.com:5432/minion?{query}"
    assert found.conninfo() == (
        "host=db1.example.com port=6432 dbname=minion user=minion_app sslmode=verify-full "
        "sslrootcert=/etc/minion/ca.crt"
    )
    assert found.pgpass() == ""
    assert found.notes == ()


def test_files_have_the_password_in_each_formats_own_quoting() -> None:
    found = prod(password=ODD, ca="/srv/my app/ca.crt")
    url = "postgresql://minion_app:p%26s%3Aw%22o%5Cd@db1.example.com:{}/minion"
    query = "?sslmode=verify-full&sslrootcert=/srv/my%20app/ca.crt"
    assert found.env().splitlines() == [
        f"DATABASE_URL='{url.format(6432)}{query}'",
        f"DIRECT_DATABASE_URL='{url.format(5432)}{query}'",
        "PGHOST=db1.example.com",
        "PGPORT=6432",
        "PGDATABASE=minion",
        "PGUSER=minion_app",
        "PGPASSWORD='p&s:w\"o\\d'",
        "PGSSLMODE=verify-full",
        "PGSSLROOTCERT='/srv/my app/ca.crt'",
    ]
    assert found.pgpass().splitlines() == [
        'db1.example.com:6432:minion:minion_app:p&s\\:w"o\\\\d',
        'db1.example.com:5432:minion:minion_app:p&s\\:w"o\\\\d',
    ]
    assert "password='p&s:w\"o\\\\d'" in found.conninfo()


def test_service_file_has_the_pooler_and_the_direct_connection() -> None:
    assert prod().service().splitlines() == [
        "[minion]",
        "host=db1.example.com",
        "port=6432",
        "dbname=minion",
        "user=minion_app",
        "sslmode=verify-full",
        "sslrootcert=/etc/minion/ca.crt",
        "",
        "[minion-direct]",
        "host=db1.example.com",
        "port=5432",
        "dbname=minion",
        "user=minion_app",
        "sslmode=verify-full",
        "sslrootcert=/etc/minion/ca.crt",
    ]


def test_quote_in_a_password_is_refused_for_the_env_file_alone() -> None:
    found = prod(password=QUOTED)
    with pytest.raises(UsageError, match="cannot hold this value"):
        found.env()
    assert "it%27s" in found.url()


def test_host_without_a_pooler_gives_the_direct_connection_and_says_so() -> None:
    plan = sample(server=HOST, tls=TLS, pooler={"enabled": False})
    found = connect.connection(plan)
    assert found.url().startswith("postgresql://minion_app@db1.example.com:5432/minion")
    assert found.notes == (
        "role minion_app has no pool at db1: each connection is a server process; pgbouncer_pools adds a pool",
    )
    assert len(found.env().splitlines()) == 8


def test_database_whose_name_the_pooler_cannot_have_is_reached_directly() -> None:
    plan = sample(server=HOST, pooler=OPEN)
    plan = replace(plan, access=replace(plan.access, databases={**plan.access.databases, "Sales Data": "minion"}))
    found = connect.connection(plan, database="Sales Data")
    assert "@db1.example.com:5432/Sales%20Data" in found.url()


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        ({"server": {"client_address": "127.0.0.1"}}, "db1 accepts connections from itself only"),
        (
            {"server": HOST, "pooler": {"listen_addresses": ("localhost",)}},
            "the pooler of db1 accepts connections from",
        ),
        (
            {"server": HOST, "pooler": {**OPEN, "prepared_statements": 0, "version": "1.18.0"}},
            "PgBouncer 1.18.0 has no",
        ),
        ({"server": HOST, "pooler": OPEN, "tls": {"enabled": False}}, "connections are not encrypted"),
    ],
)
def test_notes_name_what_a_client_would_run_into(changed: dict[str, dict[str, object]], note: str) -> None:
    (found,) = connect.connection(sample(**{"tls": TLS, **changed})).notes
    assert found.startswith(note)


def test_unknown_role_and_database_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as refused:
        prod(role="minion_ap")
    assert refused.value.allowed == "minion, minion_app, minion_readonly"
    with pytest.raises(UsageError) as refused:
        prod(database="nope")
    assert refused.value.allowed == "minion"


def test_role_without_a_password_is_no_login_for_clients() -> None:
    with pytest.raises(UsageError, match="no such login role"):
        prod(role="minion_monitor")
