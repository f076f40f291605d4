"""A URL is judged before anything connects, and no message repeats a password or a part of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provision import urls
from provision.database import connect, environment
from provision.errors import DatabaseError, UsageError

MANY = "more than one @, or an @ or / inside the password"
PORT = "1 to 65535 after the host: postgresql://USER:PASSWORD@HOST:5432/DATABASE"


@pytest.mark.parametrize(
    ("url", "seen", "allowed"),
    [
        # a password that shifts every part of the URL
        ("postgresql://minion:hunter2/x@db1/minion", MANY, "%40 for @, %2F for /"),
        ("postgresql://minion:hun@ter2@db1/minion", MANY, "%40 for @"),
        ("postgresql://minion:hun?k=/ter2@db1/minion", MANY, "%2F for /"),
        ("postgresql://jan@corp:hunter2@db1/minion", MANY, "%40 for @"),
        ("postgresql://db1/minion?password=hun@ter2", MANY, "%40 for @"),
        (
            "postgresql://minion:hunter2%zz@localhost/minion",
            "a % without two hex digits after it",
            "%25 for a percent sign",
        ),
        ("postgresql://minion:hunter2%@localhost/minion", "a % without two hex digits after it", "%25"),
        ("postgresql://minion:hunter2%00@localhost/minion", "a % without two hex digits after it", "%25"),
        ("postgresql://minion:hunter2 x@localhost/minion", "a space or line break in it", "%20 for a space"),
        ("postgresql://minion:hunter2@localhost/min\nion", "a space or line break in it", "%20"),
        ("postgresql://minion:hunter2/minion", "a port that is not a number, or a password without @HOST", PORT),
        ("postgresql://minion:hunter2,db2/minion", "a port that is not a number, or a password without @HOST", PORT),
        # schemes
        ("pgx5://minion:hunter2@db1/minion", "scheme pgx5, a driver's name for PostgreSQL", urls.FORM),
        ("pgx://minion:hunter2@db1/minion", "scheme pgx, a driver's name for PostgreSQL", urls.FORM),
        ("postgresql+asyncpg://m:hunter2@db1/m", "scheme postgresql+asyncpg, a driver's name", urls.FORM),
        ("postgresql+psycopg://m:hunter2@db1/m", "scheme postgresql+psycopg, a driver's name", urls.FORM),
        ("jdbc:postgresql://db1/m?user=m&password=hunter2", "scheme jdbc:postgresql, a driver's name", urls.FORM),
        ("postgis://m:hunter2@db1/m", "scheme postgis, a driver's name for PostgreSQL", urls.FORM),
        ("cockroachdb://m:hunter2@db1/m", "scheme cockroachdb, a driver's name for PostgreSQL", urls.FORM),
        ("POSTGRESQL://m:hunter2@db1/m", "scheme POSTGRESQL, a driver's name for PostgreSQL", urls.FORM),
        ("mysql://m:hunter2@db1/m", "scheme mysql, which is unknown", urls.FORM),
        ("postgres:m:hunter2@db1/m", "postgres: without //", urls.FORM),
        ("postgresql:/m:hunter2@db1/m", "postgresql: without //", urls.FORM),
        ("hunter2:x@db1/m", "no scheme", urls.FORM),
        ('"postgresql://m:hunter2@db1/m"', "quotes around it", "the URL alone"),
        # hosts and ports
        ("postgresql://m:hunter2@::1:5432/m", "an IPv6 address without brackets", "[::1]:5432"),
        ("postgresql://m:hunter2@fe80::1/m", "an IPv6 address without brackets", "[::1]:5432"),
        ("postgresql://m:hunter2@[::1:5432/m", "a [ or ] that does not enclose an address", "[::1]:5432"),
        ("postgresql://m:hunter2@db1:99999/m", "port 99999", PORT),
        ("postgresql://m:hunter2@db1:0/m", "port 0", PORT),
        ("postgresql://m:hunter2@db1:abc/m", "port abc", PORT),
        ("postgresql://m:hunter2@db1:\uff15432/m", "port \uff15432", PORT),
        ("postgresql://m:hunter2@db1:5432,db2:abc/m", "port abc", PORT),
        ("postgresql://m:hunter2@db1/m?port=99999", "port 99999", "1 to 65535"),
        # parameters
        ("postgresql://m:hunter2@db1/m?schema=app", "parameter schema", "search_path=SCHEMA instead"),
        ("postgresql://m:hunter2@db1/m?currentSchema=app", "parameter currentSchema", "search_path=SCHEMA instead"),
        ("postgresql://m:hunter2@db1/m?pgbouncer=true", "parameter pgbouncer, which only Prisma reads", "without it"),
        ("postgresql://m:hunter2@db1/m?binary_parameters=yes", "which only lib/pq reads", "without it"),
        ("postgresql://m:hunter2@db1/m?sslmdoe=require", "parameter sslmdoe", "did you mean sslmode?"),
        ("postgresql://m:hunter2@db1/m?sslMode=require", "parameter sslMode", "did you mean sslmode?"),
        ("postgresql://m:hunter2@db1/m?searchpath=app", "parameter searchpath", "did you mean search_path?"),
        ("postgresql://m:hunter2@db1/m?sslmode=verify_full", "sslmode=verify_full", "did you mean verify-full?"),
        ("postgresql://m:hunter2@db1/m?ssl=false", "parameter ssl=false", "sslmode=disable"),
        ("postgresql://m:hunter2@db1/m?connect_timeout=soon", "connect_timeout=soon", "an integer"),
        ("postgresql://m:hunter2@db1/m?sslmode", "a parameter without a name or without =", "?sslmode=verify-full"),
        ("postgresql://m:hunter2@db1/m?target_session_attrs=master", "target_session_attrs=master", "read-write"),
        # key=value
        ("host=db1 password=hunter2 word", "libpq cannot parse it", "password='a b'"),
        ("host=db1 password=abc hunter2=x", "libpq cannot parse it", "password='a b'"),
        ("host=db1 password='hunter2", "libpq cannot parse it", "password='a b'"),
        ("host=db1 port=99999 password=hunter2", "port 99999", "1 to 65535"),
        ("host=db1 sslmode=full password=hunter2", "sslmode=full", "verify-full"),
        ("minion", "libpq cannot parse it", "key=value pairs"),
    ],
)
def test_unusable_url_is_refused_with_its_form_and_without_its_password(url: str, seen: str, allowed: str) -> None:
    with pytest.raises(UsageError) as refused:
        connect(url, application="test")
    assert refused.value.what == "the database URL cannot be used"
    assert seen in refused.value.seen
    assert allowed in refused.value.allowed
    assert not any(part in str(refused.value) for part in ("hunter2", "ter2", "hun@", "hun?"))
    assert urls.describe(url) == "an unusable database URL"
    assert urls.redacted(f"failed: {url}", url) == "not shown, because the URL cannot be parsed"


@pytest.mark.parametrize(
    ("url", "described"),
    [
        ("", "the PG* environment"),
        ("postgresql://", "the PG* environment"),
        ("postgresql://minion:hunter2@db1:5433/agents", "host=db1 port=5433 dbname=agents user=minion"),
        ("postgres://minion:hunter2@db1/agents\n", "host=db1 dbname=agents user=minion"),
        ("postgresql://minion@/agents", "dbname=agents user=minion"),
        ("postgresql:///agents?host=/run/postgresql&user=minion", "host=/run/postgresql dbname=agents user=minion"),
        ("postgresql://minion:hunter2@%2Fvar%2Frun/agents", "host=/var/run dbname=agents user=minion"),
        ("postgresql://minion:hunter2@h1:5432,h2/agents", "host=h1,h2 port=5432, dbname=agents user=minion"),
        ("postgresql://minion:hunter2@[::1]:5432/agents", "host=::1 port=5432 dbname=agents user=minion"),
        ("postgresql://minion:hun%40ter%2F2@db1/a", "host=db1 dbname=a user=minion"),
        ("postgresql://minion:hunter2?#&=+@db1/a", "host=db1 dbname=a user=minion"),
        ("postgresql://db1/a?ssl=true&password=hunter2", "host=db1 dbname=a"),
        ("service=minion password=hunter2", "service=minion"),
        ("host=db1 password='hunter2 word'", "host=db1"),
    ],
)
def test_usable_url_is_described_without_its_password(url: str, described: str) -> None:
    assert urls.describe(url) == described


def test_other_parameters_become_settings_of_the_server_and_golang_migrate_s_own_are_kept_apart() -> None:
    found = urls.read("postgres://h/d?search_path=a,b&TimeZone=Europe/Berlin&x-migrations-table=v&app.tenant=a%20b")
    assert found.own == {"x-migrations-table": "v"}
    assert found.server == {"search_path": "a,b", "timezone": "Europe/Berlin", "app.tenant": "a b"}
    assert urls.read(found.url) == urls.Read(found.url, {}, found.server)


def test_plus_in_a_password_of_the_query_stays_a_plus() -> None:
    assert environment("postgresql://h/d?password=a+b&x-migrations-table=v")["PGPASSWORD"] == "a+b"


def test_message_of_libpq_loses_the_password() -> None:
    url = "postgresql://m:hun%40ter@h/d"
    assert urls.redacted("bad value hun@ter in hun%40ter", url) == "bad value *** in ***"


def test_refused_connection_is_described_without_the_password() -> None:
    with pytest.raises(DatabaseError, match="cannot connect to PostgreSQL") as refused:
        connect("postgresql://minion:hunter2@127.0.0.1:1/agents", application="test")
    assert refused.value.where == "host=127.0.0.1 port=1 dbname=agents user=minion"
    assert "hunter2" not in str(refused.value)


SPECIAL = st.text(st.sampled_from("@/:?#[]%&=+,; \\'\"\n"), min_size=1, max_size=3)
URLS = st.sampled_from(
    [
        "postgresql://minion:{}@127.0.0.1:1/minion",
        "postgresql://minion:{}@127.0.0.1:1/minion?sslmode=disable",
        "postgresql://127.0.0.1:1/minion?user=m&password={}",
        "postgresql+asyncpg://minion:{}@127.0.0.1:1/minion",
        "postgres:minion:{}@127.0.0.1/minion",
        "jdbc:postgresql://127.0.0.1:1/minion?user=m&password={}",
        "host=127.0.0.1 port=1 password={} user=m",
        "host=127.0.0.1 port=1 password='{}' user=m",
    ]
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(form=URLS, left=SPECIAL, right=SPECIAL)
def test_no_part_of_any_password_is_ever_repeated(form: str, left: str, right: str) -> None:
    url = form.format(f"zqx{left}qzy{right}xyq")
    reported = urls.describe(url)
    try:
        urls.read(url)
    except UsageError as error:
        reported += str(error)
    assert not any(part in reported for part in ("zqx", "qzy", "xyq")), url


def test_link_local_address_with_its_zone_is_accepted() -> None:
    url = "postgresql://m@[fe80::1%25eth0]:5433/m"
    assert urls.describe(url) == "host=fe80::1%eth0 port=5433 dbname=m user=m"
