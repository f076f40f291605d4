"""Tenants that take every connection they can: administrators, backup and monitoring still log in, on every major."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace

import psycopg
import pytest

from plugins.filter.filters import access as access_filter
from provision.host.access import converge
from provision.plan import schema, secrets
from tests import embedded, plans, poolers
from tests.clusters import free_port
from tests.embedded import Server
from tests.networks import SERVER, Network

HALF_OPEN = 500
TENANTS = ("minion", "minion_app", "minion_readonly")
OPERATORS = ("postgres", "minion_backup", "minion_monitor")
SETTINGS = ("max_connections", "superuser_reserved_connections", "reserved_connections", "authentication_timeout")


def planned(major: int, memory_mb: int = 2048, **variables: object) -> schema.Plan:
    given = {**plans.SAMPLE, "postgresql_version": major, "postgresql_repository": "pgdg", **variables}
    built = plans.built("prod", given, {"memory_mb": memory_mb, "cpus": 2})
    assert built.plan is not None, built.problems
    return built.plan


@contextmanager
def serving(
    major: int, plan: schema.Plan, lan: Network | None = None, address: str = SERVER
) -> Iterator[tuple[Server, int]]:
    """Run a server with the plan's connections and roles; passwords over TCP for the application's role only.

    In a network of its own it listens on the server's address there.
    """
    port, address = (free_port(), "127.0.0.1") if lan is None else (plan.server.port, address)
    with embedded.cluster(major) as server:
        if lan:
            server.namespace = lan.server
        lines = [f"{each.line}\n" for each in plan.server.settings if each.name in SETTINGS]
        server.configure("".join(lines))
        hba = server.data / "pg_hba.conf"
        hba.write_text(f"host minion minion_app all scram-sha-256\n{hba.read_text()}")
        with server.running(port, address):
            facts = asdict(replace(plan.access, extensions=()))
            expected = access_filter(facts, plans.SECRETS["database_credentials"])
            where = f"host={server.socket} port={port} user=postgres"
            converge(where, expected)
            assert converge(where, expected) == []
            yield server, port


def logged_in(server: Server, port: int, role: str, database: str = "minion") -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        host=str(server.socket), port=port, user=role, dbname=database, autocommit=True, connect_timeout=5
    )


def log_in_for(seconds: float, server: Server, port: int) -> None:
    """Log in as the superuser again and again, until a login fails or the time has passed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        logged_in(server, port, "postgres").close()


def fill(stack: ExitStack, server: Server, port: int, role: str, most: int = 200) -> int:
    """Open sessions of a role until the server refuses one; return their number."""
    for number in range(most):
        try:
            stack.enter_context(logged_in(server, port, role))
        except psycopg.OperationalError as error:
            assert "too many" in str(error) or "reserved" in str(error)  # noqa: PT017 - the only refusal expected
            return number
    return most


def half_open(stack: ExitStack, port: int, number: int = HALF_OPEN) -> list[socket.socket]:
    """Begin logins and never send a password."""
    body = b"user\0minion_app\0database\0minion\0\0"
    opened = []
    for _ in range(number):
        with suppress(OSError):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            client.sendall(struct.pack("!ii", len(body) + 8, 196608) + body)
            opened.append(client)
    return opened


@contextmanager
def pooler(server: Server, port: int) -> Iterator[int]:
    """Run PgBouncer before the server, with the size of the plan's profile."""
    secret = plans.SECRETS["database_credentials"]["minion_app"]
    users = {"minion_app": secrets.scram_verifier(secret["password"], secret["salt"])}
    databases = {"minion": f"host={server.socket} port={port}"}
    sizes = {"max_client_conn": 1000, "client_login_timeout": 15}
    with poolers.running(
        server.socket, databases, users, auth_type="scram-sha-256", pool_mode="transaction", **sizes
    ) as found:
        yield found.port


@pytest.mark.parametrize("major", embedded.MAJORS)
def test_operators_log_in_while_tenants_hold_all_they_can(major: int) -> None:
    plan = planned(major)
    with serving(major, plan) as (server, port), pooler(server, port) as front, ExitStack() as stack:
        limits = {role.name: role.connection_limit for role in plan.access.roles}
        held = {role: fill(stack, server, port, role) for role in TENANTS}
        assert held == {role: limits[role] for role in TENANTS}
        strangers = half_open(stack, front)
        assert len(strangers) == HALF_OPEN
        for role in OPERATORS:
            for _ in range(2):
                stack.enter_context(logged_in(server, port, role))
        for _ in range(limits["minion_pooler"]):
            stack.enter_context(logged_in(server, port, "minion_pooler"))
        waiting = [client for client in strangers if client.recv(1, socket.MSG_DONTWAIT) == b"R"]
        assert len(waiting) == HALF_OPEN, "the half-open logins did not last"


@pytest.mark.parametrize("major", embedded.MAJORS)
def test_role_without_a_limit_leaves_the_reserved_connections(major: int) -> None:
    plan = planned(major)
    with serving(major, plan) as (server, port), ExitStack() as stack:
        with logged_in(server, port, "postgres") as session:
            session.execute("CREATE ROLE stranger LOGIN")
            session.execute("GRANT CONNECT ON DATABASE minion TO stranger")
        kept = 1 + 3 + (4 if major >= 16 else 0)  # the server's own session of these tests, and the reserved ones
        assert fill(stack, server, port, "stranger") == plan.server.max_connections - kept
        if major >= 16:
            for role in ("minion_backup", "minion_monitor") * 2:
                stack.enter_context(logged_in(server, port, role))
        for _ in range(3):
            stack.enter_context(logged_in(server, port, "postgres"))


def test_unfinished_logins_on_the_servers_own_port_end_within_the_time_limit() -> None:
    """No limit of a role counts a login without a password: only its duration is bounded."""
    plan = planned(17)
    assert {each.name: each.text for each in plan.server.settings}["authentication_timeout"] == "10s"
    with serving(17, plan) as (server, port), ExitStack() as stack:
        half_open(stack, port, plan.server.max_connections + 90)
        with pytest.raises(psycopg.OperationalError, match="too many clients"):
            log_in_for(8, server, port)  # a slow machine has not begun all those logins yet
        time.sleep(11)
        for role in OPERATORS:
            stack.enter_context(logged_in(server, port, role))


@pytest.mark.parametrize("major", [14, 18])
def test_tenants_cannot_fill_the_disk_or_leave_objects_where_no_quota_is(major: int) -> None:
    own = [{"name": "reports", "kind": "read", "connection_limit": 2}]
    plan = planned(major, database_extra_roles=own)
    with serving(major, plan) as (server, port):
        with logged_in(server, port, "minion_app") as session:
            assert session.execute("SHOW temp_file_limit").fetchone() == ("1GB",)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute("SET temp_file_limit = -1")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute("ALTER ROLE minion_app SET temp_file_limit = -1")
            session.execute("SET statement_timeout = 0")  # every role may: nothing in PostgreSQL forbids it
        with logged_in(server, port, "reports") as session:
            assert session.execute("SHOW temp_file_limit").fetchone() == ("1GB",)
        for role in ("minion_app", "minion_readonly"):
            for call in ("lo_creat(-1)", "lo_create(0)", "lo_from_bytea(0, '\\x00')"):
                for database in ("minion", "postgres"):
                    with (
                        logged_in(server, port, role, database) as session,
                        pytest.raises(psycopg.errors.InsufficientPrivilege),
                    ):
                        session.execute(f"SELECT {call}".encode())
        with logged_in(server, port, "minion") as session:
            session.execute("SELECT lo_unlink(lo_create(0))")
        for database in ("postgres", "template1"):
            with (
                logged_in(server, port, "minion_app", database) as session,
                pytest.raises(psycopg.errors.InsufficientPrivilege),
            ):
                session.execute("CREATE TEMPORARY TABLE mine (id int)")
