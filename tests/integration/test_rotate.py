"""`provision secrets rotate`, ended at every step: the vault always has a password that the server accepts."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from plugins.filter.filters import access as access_filter
from provision.controller.vault import Vault, initialise, rotate, settle
from provision.host.access import converge
from provision.plan import schema
from tests.clusters import Cluster
from tests.plans import SALT, SAMPLE, built

ROOT = Path(__file__).parents[2]
STEPS = ("open", "os.rename", "os.remove", "fcntl.flock")
"""Audited events of Python that can change the vault; a rotation is killed before each of them."""
ROLES = ("minion", "minion_app", "minion_app_2", "minion_readonly")


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """A server that asks for passwords over TCP, as a host does."""
    cluster = Cluster.create()
    hba = cluster.data / "pg_hba.conf"
    hba.write_text(f"host all {','.join(ROLES)} all scram-sha-256\n{hba.read_text()}")
    cluster.psql("SELECT pg_reload_conf()")
    try:
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    (tmp_path / "hosts.yml").write_text("all: {}\n")
    vault = Vault(tmp_path, "x")
    initialise(vault)
    return vault


@functools.cache
def access(logins: frozenset[str]) -> schema.Access:
    """Build the plan's databases and roles for a vault with these logins."""
    credentials = {name: {"password": f"a password of the test for {name}", "salt": SALT} for name in logins}
    plan = built(given={**SAMPLE, "database_credentials": credentials}).plan
    assert plan is not None
    return replace(plan.access, extensions=("vector",))


def apply(server: Cluster, vault: Vault) -> list[str]:
    """Do what the role database does: converge the roles of the plan, with the verifiers of the vault."""
    credentials = vault.read()["database_credentials"]
    expected = access_filter(asdict(access(frozenset(credentials))), credentials)
    return converge(f"host={server.host} port={server.port} user=postgres", expected)


def can_log_in(server: Cluster, role: str, secret: dict[str, Any] | None) -> bool:
    if not secret:
        return False
    try:
        psycopg.connect(server.url("minion", role), password=str(secret["password"])).close()
    except psycopg.OperationalError as error:
        if "password authentication failed" in str(error):
            return False
        raise
    return True


def valid(server: Cluster, vault: Vault, role: str = "minion_app") -> list[str]:
    """Return which passwords of the vault the server accepts."""
    kept = vault.read()["database_credentials"][role]
    pairs = {"password": kept, "previous": kept.get("previous")}
    return [name for name, pair in pairs.items() if can_log_in(server, role, pair)]


def rotated(server: Cluster, vault: Vault, kill_at: int, *, undo: bool = False) -> bool:
    """Rotate in a child process that SIGKILL ends before its step number `kill_at`; tell whether it reached the end."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            seen = 0

            def step(event: str, arguments: tuple[Any, ...]) -> None:
                nonlocal seen
                ours = event != "open" or str(arguments[0]).startswith(str(vault.inventory))
                if event == "run" or (event in STEPS and ours):
                    seen += 1
                    if seen == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(step)
            rotate(vault, "minion_app", undo=undo)
            step("run", ())
            apply(server, vault)
            step("run", ())
            settle(vault, "minion_app")
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


@pytest.mark.parametrize("undo", [False, True])
def test_valid_password_is_in_the_vault_at_every_step(server: Cluster, vault: Vault, undo: bool) -> None:
    apply(server, vault)
    seen, finished, number = set(), False, 0
    while not finished:
        number += 1
        before = vault.read()["database_credentials"]["minion_app"]
        finished = rotated(server, vault, number)
        found = valid(server, vault)
        assert found, f"killed at step {number}: the server accepts no password of the vault"
        seen.add(found[0])
        if "previous" in vault.read()["database_credentials"]["minion_app"]:
            assert rotated(server, vault, 0, undo=undo)  # a later run
        after = vault.read()["database_credentials"]["minion_app"]
        assert set(after) == {"password", "salt"}
        assert valid(server, vault) == ["password"]
        if undo and not finished and found == ["previous"]:
            assert after == before
    assert number > 8
    assert seen == {"password", "previous"}


def test_second_login_gives_a_window_with_two_passwords(server: Cluster, vault: Vault) -> None:
    apply(server, vault)
    rotate(vault, "minion_app_2")
    assert any("role minion_app_2: role = minion_app" in each for each in apply(server, vault))
    assert apply(server, vault) == []
    assert valid(server, vault, "minion_app") == ["password"]
    assert valid(server, vault, "minion_app_2") == ["password"]
    server.psql("CREATE TABLE public.thing (id int)", "minion")
    server.psql(
        "ALTER TABLE public.thing OWNER TO minion; GRANT INSERT, SELECT ON public.thing TO minion_app", "minion"
    )
    second = str(vault.read()["database_credentials"]["minion_app_2"]["password"])
    with psycopg.connect(server.url("minion", "minion_app_2"), password=second, autocommit=True) as session:
        for reset in ("SELECT 1", "RESET ROLE", "DISCARD ALL"):
            session.execute(reset.encode())
            assert session.execute("SELECT session_user::text, current_user::text, current_setting('statement_timeout')"
                                   ).fetchone() == ("minion_app_2", "minion_app", "30s")  # fmt: skip
        session.execute("INSERT INTO thing VALUES (1)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("DROP TABLE thing")
    kept = vault.read()
    old = kept["database_credentials"]["minion_app"]
    rotate(vault, "minion_app")  # closes the window: no application has this password
    apply(server, vault)
    settle(vault, "minion_app")
    assert not can_log_in(server, "minion_app", old)
    assert valid(server, vault, "minion_app_2") == ["password"]
    secrets = vault.read()
    del secrets["database_credentials"]["minion_app_2"]
    vault.write(secrets)
    assert apply(server, vault)[-1] == "role minion_app_2: dropped, with its privileges"
    assert apply(server, vault) == []


def test_role_of_the_same_name_that_no_run_made_is_kept(server: Cluster, vault: Vault) -> None:
    server.psql("CREATE ROLE minion_readonly_2 LOGIN; GRANT minion_readonly TO minion_readonly_2")
    assert not [each for each in apply(server, vault) if "minion_readonly_2" in each]
    server.psql("DROP ROLE minion_readonly_2")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_rotation_that_is_ended_keeps_both_passwords(tmp_path: Path, number: signal.Signals) -> None:
    key = tmp_path / "key"
    key.write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = {"ansible_host": "127.0.0.1", "ansible_port": silent.getsockname()[1], "ansible_ssh_timeout": 10}
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"database": {"hosts": {"db1": host}}}))
        vault = Vault(tmp_path, "x")
        initialise(vault)
        before = vault.read()["database_credentials"]["minion_app"]
        words = ["secrets", "rotate", str(tmp_path), "minion_app", "--vault-password-file", str(key)]
        with subprocess.Popen(
            [str(Path(sys.executable).parent / "provision"), *words], cwd=ROOT, stdout=subprocess.DEVNULL
        ) as running:
            silent.settimeout(60)
            session, _ = silent.accept()  # the run has come to the host
            meanwhile = vault.read()
            running.send_signal(number)
            assert running.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
            session.close()
    kept = vault.read()
    assert kept == meanwhile
    assert kept["database_credentials"]["minion_app"]["previous"] == before
    assert kept["database_credentials"]["minion_app"]["password"] != before["password"]
