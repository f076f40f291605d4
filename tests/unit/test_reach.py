"""Each message of libpq, the server and the pooler is recognised, and gets the command that fixes it."""

from __future__ import annotations

import shlex

import pytest

from provision.checks.doctor import look_from_afar
from provision.checks.reach import explain, leads_to
from provision.errors import UsageError
from tests.plans import sample

URL = "host=192.0.2.9 port=5432 dbname=minion user=minion_app"


@pytest.mark.parametrize(
    ("message", "check", "fix"),
    [
        (
            'connection failed: could not translate host name "db9" to address: Name or service not known',
            "reach-name",
            "getent hosts 192.0.2.9",
        ),
        ("connection failed: connection timeout expired", "reach-timeout", "bash -c '</dev/tcp/$0/$1' 192.0.2.9 5432"),
        (
            'FATAL:  no pg_hba.conf entry for host "198.51.100.7", user "minion_app", database "minion", no encryption',
            "reach-tls-required",
            "sslmode=verify-full",
        ),
        (
            'FATAL:  no pg_hba.conf entry for host "198.51.100.7", user "minion_app", SSL encryption',
            "reach-hba",
            "postgresql_allowed_networks",
        ),
        (
            'FATAL:  pg_hba.conf rejects connection for host "198.51.100.7", user "postgres"',
            "reach-hba",
            "--limit 192.0.2.9",
        ),
        ("server does not support SSL, but SSL was required", "reach-tls-missing", "--tags tls,postgresql"),
        ("SSL error: certificate verify failed", "reach-certificate", "sslrootcert"),
        ('server certificate for "db1" does not match host name "192.0.2.9"', "reach-certificate", "subjectAltName"),
        (
            'FATAL:  password authentication failed for user "minion_app"',
            "reach-password",
            "provision connect -i INVENTORY --limit HOST --role minion_app --password --show password",
        ),
        ('FATAL:  role "minion_app" is not permitted to log in', "reach-nologin", 'ALTER ROLE "minion_app" LOGIN'),
        ('FATAL:  role "nobody" does not exist', "reach-role", "--tags database"),
        ('FATAL:  database "minoin" does not exist', "reach-database", "pg_database"),
        ('FATAL:  permission denied for database "minion"', "reach-connect", "--tags database"),
        ('FATAL:  too many connections for role "minion_app"', "reach-limit", "6432"),
        ("FATAL:  sorry, too many clients already", "reach-limit", "pg_stat_activity"),
        ("FATAL:  the database system is starting up", "reach-starting", "journalctl"),
        (
            "FATAL:  server login has been failing, cached error: connect failed (server_login_retry)",
            "reach-pooler",
            "5432",
        ),
        ("server closed the connection unexpectedly", "reach-closed", "journalctl"),
        ("a message of the future", "reach-unknown", "provision doctor"),
    ],
)
def test_recognises_the_cause_and_gives_the_command_that_fixes_it(message: str, check: str, fix: str) -> None:
    found = explain(message, URL)
    assert found.id == check
    assert fix in found.fix
    assert found.counts
    assert "{" not in found.fix


def test_quotes_the_error_without_introduction_and_hints() -> None:
    found = explain(
        'connection failed: connection to server at "192.0.2.9", port 5432 failed: timeout expired\n'
        "\tIs the server running on that host and accepting TCP/IP connections?",
        URL,
    )
    assert found.seen == "timeout expired"


def test_quotes_the_servers_error_without_its_details() -> None:
    message = (
        'connection failed: FATAL:  permission denied for database "minion"\n'
        "DETAIL:  User does not have CONNECT privilege."
    )
    assert explain(message, URL).seen == 'FATAL:  permission denied for database "minion"'


def test_site_command_has_a_placeholder_for_the_unknown_inventory() -> None:
    found = explain('FATAL:  role "nobody" does not exist', URL)
    assert found.fix == (
        "ansible-playbook site.yml -i INVENTORY --limit 192.0.2.9 --tags database"
        "  # INVENTORY: the inventory of this host"
    )


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("host=/var/run/postgresql dbname=minion", True),
        ("postgresql://minion@localhost/minion", True),
        ("postgresql://minion@[::1]:5432/minion", True),
        ("postgresql://minion@localhost:6432/minion", False),
        ("postgresql://minion@192.0.2.99/minion", False),
        ("postgresql://minion@localhost,192.0.2.99/minion", False),
    ],
)
def test_commands_of_this_hosts_own_server_have_its_inventory(url: str, own: bool) -> None:
    plan = sample()
    assert leads_to(plan, url) is own
    found = explain('FATAL:  permission denied for database "minion"', url, plan if own else None)
    assert ("INVENTORY" in found.fix) is not own


def test_a_name_in_a_command_is_quoted_for_the_shell() -> None:
    found = explain("connection failed: timeout expired", "host='db 1;x' dbname=minion")
    assert shlex.split(found.fix)[3:7] == ["-c", "</dev/tcp/$0/$1", "db 1;x", "5432"]


def test_says_which_other_port_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr("provision.checks.reach.PORTS", (other.getsockname()[1],))
        found = explain("connection failed: Connection refused", "host=127.0.0.1 port=1 dbname=minion")
        assert found.fix == f"# use port {other.getsockname()[1]} in the URL"


@pytest.mark.parametrize("url", ["nonsense", "postgresql://minion:s%cret@db1/minion"])
def test_a_url_that_cannot_be_read_is_said_so_and_not_quoted(url: str) -> None:
    with pytest.raises(UsageError, match="the database URL cannot be used") as error:
        look_from_afar(url, "db1")
    assert "cret" not in str(error.value)


def test_statement_of_a_fix_quotes_the_name_for_sql_and_for_the_shell() -> None:
    found = explain('FATAL:  role "O\'Brien; x" is not permitted to log in', URL)
    assert found.id == "reach-nologin"
    assert shlex.split(found.fix)[-2:] == ["-c", 'ALTER ROLE "O\'Brien; x" LOGIN']
