"""Start-up parameters of drivers through a real PgBouncer with the line that the role places: kept, ignored or refused.

The packets are written here, because libpq sends few parameters of its own and drivers in other languages send more.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests import poolers
from tests.clusters import Cluster

PLACED = Path(__file__).parents[1] / "templates/golden/prod/pgbouncer-settings.ini"
DATABASE = "startup"


@pytest.fixture(scope="module")
def pooler(cluster: Cluster) -> Iterator[int]:
    """PgBouncer in transaction mode with one server connection, which all clients share."""
    for statement in (
        f"CREATE DATABASE {DATABASE}",
        "CREATE ROLE driver LOGIN",
        f"ALTER ROLE driver IN DATABASE {DATABASE} SET search_path = ours",
        f"ALTER ROLE driver IN DATABASE {DATABASE} SET statement_timeout = '7s'",
    ):
        cluster.psql(statement)
    (ignored,) = re.findall(r"^ignore_startup_parameters = (.+)$", PLACED.read_text(), re.M)
    databases = {DATABASE: f"host={cluster.host} port={cluster.port}"}
    settings = {"pool_mode": "transaction", "default_pool_size": 1, "ignore_startup_parameters": ignored}
    with poolers.running(cluster.root, databases, {"driver": ""}, auth_type="trust", **settings) as found:
        yield found.port
    cluster.psql(f"DROP DATABASE {DATABASE} WITH (FORCE)")
    cluster.psql("DROP ROLE driver")


class Driver:
    """One client that speaks the protocol: the error of its start-up, or a session."""

    def __init__(self, port: int, parameters: Mapping[str, str]) -> None:
        """Log in with these start-up parameters."""
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        pairs = {"user": "driver", "database": DATABASE, **parameters}
        body = b"".join(f"{key}\0{value}\0".encode() for key, value in pairs.items()) + b"\0"
        self.socket.sendall(struct.pack("!ii", len(body) + 8, 196608) + body)
        self.error, self.rows = self._read()

    def show(self, name: str) -> str:
        """Return a setting as the session has it."""
        text = f"SHOW {name}".encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!i", len(text) + 4) + text)
        error, rows = self._read()
        assert not error, error
        return rows[0]

    def _read(self) -> tuple[str, list[str]]:
        """Read up to ReadyForQuery or the end; give the error's message and the first column of each row."""
        error, rows = "", []
        while header := self._take(5):
            kind, length = header[:1], struct.unpack("!i", header[1:])[0]
            body = self._take(length - 4)
            if kind == b"E":
                error = next(part[1:].decode() for part in body.split(b"\0") if part[:1] == b"M")
            elif kind == b"D":
                size = struct.unpack("!i", body[2:6])[0]
                rows.append(body[6 : 6 + size].decode())
            elif kind == b"Z":
                break
        return error, rows

    def _take(self, size: int) -> bytes:
        found = b""
        while len(found) < size and (more := self.socket.recv(size - len(found))):
            found += more
        return found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("client_encoding", "LATIN1"),
        ("DateStyle", "German, DMY"),
        ("TimeZone", "Asia/Tokyo"),
        ("standard_conforming_strings", "off"),
    ],
)
def test_keeps_what_the_server_reports_for_each_client(pooler: int, name: str, value: str) -> None:
    plain, driver = Driver(pooler, {}), Driver(pooler, {name: value})
    assert (plain.error, driver.error) == ("", "")
    usual = plain.show(name)
    assert usual != value
    assert [driver.show(name), plain.show(name), driver.show(name)] == [value, usual, value]


def test_keeps_the_application_name_of_each_client_that_sends_one(pooler: int) -> None:
    agent, report = (Driver(pooler, {"application_name": name}) for name in ("agent", "report"))
    names = [each.show("application_name") for each in (agent, report, agent)]
    assert names == ["agent", "report", "agent"]


@pytest.mark.parametrize(("name", "value"), [("jit", "on"), ("extra_float_digits", "-3")])
def test_ignores_what_changes_no_result_that_counts(pooler: int, name: str, value: str) -> None:
    """`jit` is what SQLAlchemy's dialect for asyncpg recommends, `extra_float_digits` what pgjdbc sends."""
    plain, driver = Driver(pooler, {}), Driver(pooler, {name: value})
    assert driver.error == ""
    assert driver.show(name) == plain.show(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("search_path", "theirs"),
        ("statement_timeout", "1000"),
        ("lock_timeout", "1000"),
        ("idle_in_transaction_session_timeout", "1000"),
        ("default_transaction_read_only", "on"),
        ("role", "postgres"),
    ],
)
def test_refuses_what_would_change_results_or_limits(pooler: int, name: str, value: str) -> None:
    assert Driver(pooler, {name: value}).error == f"unsupported startup parameter: {name}"


def test_options_are_ignored_and_the_role_s_own_settings_apply(pooler: int) -> None:
    """As docs/the-pooler.md says: two clients that ask for two search paths both get the role's."""
    first = Driver(pooler, {"options": "-c search_path=theirs -c statement_timeout=1s"})
    second = Driver(pooler, {"options": "-c search_path=public"})
    assert (first.error, second.error) == ("", "")
    assert [each.show("search_path") for each in (first, second, first)] == ["ours", "ours", "ours"]
    assert first.show("statement_timeout") == "7s"
