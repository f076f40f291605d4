"""Each check of the pooler reports its deviation; a hardened pooler has no findings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from provision.checks.finding import Finding, Severity
from provision.checks.pooler import Seen
from provision.checks.registry import Scope, examine, of
from provision.host import lookup
from tests.plans import sample

SETTINGS = {
    "client_tls_sslmode": "require",
    "client_tls_protocols": "secure",
    "server_tls_sslmode": "verify-full",
    "auth_type": "hba",
    "auth_query": lookup.QUERY,
    "admin_users": "",
    "stats_users": "",
    "unix_socket_mode": "0700",
    "listen_addr": "localhost,10.0.0.5",
    "query_wait_timeout": "15",
}
PLAN = sample()
SOUND = Seen(SETTINGS, {"minion": "127.0.0.1"}, 105, "1.26.1-1", (), ())


def judge(seen: Seen, *, development: bool = False) -> list[Finding]:
    return examine(Scope.POOLER, seen, site=PLAN.site, development=development)


def test_a_hardened_pooler_has_no_findings() -> None:
    assert judge(SOUND) == []


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        ({"user": 0}, "pooler-user", "the pooler runs as root"),
        ({"client_tls_sslmode": "allow"}, "pooler-client-tls", "client_tls_sslmode = allow"),
        ({"client_tls_protocols": "all"}, "pooler-tls-version", "client_tls_protocols = all"),
        ({"server_tls_sslmode": "require"}, "pooler-server-tls", "minion is reached at 127.0.0.1 without verify-full"),
        ({"auth_type": "trust"}, "pooler-auth-type", "auth_type = trust"),
        ({"auth_query": "SELECT 1"}, "pooler-auth-query", "auth_query = SELECT 1"),
        ({"secrets": ("/etc/pgbouncer/userlist.txt has minion",)}, "pooler-secrets", "userlist.txt has minion"),
        ({"admin_users": "minion"}, "pooler-admins", "admin_users = minion"),
        ({"unix_socket_mode": "0777"}, "pooler-socket", "unix_socket_mode = 0777"),
        ({"listen_addr": "*"}, "pooler-listen", "listen_addr = *"),
        ({"query_wait_timeout": "0"}, "pooler-wait", "query_wait_timeout = 0"),
        ({"open_files": ("/etc/pgbouncer/pgbouncer.ini is 0644 of user 105",)}, "pooler-files", "0644 of user 105"),
        ({"package": "1.24.1-1+deb13u1"}, "pooler-version", "CVE-2026-6664"),
    ],
)  # fmt: skip
def test_reports_the_deviation(broken: dict[str, Any], check: str, said: str) -> None:
    of_seen = {key: value for key, value in broken.items() if key not in SETTINGS}
    settings = {**SETTINGS, **{key: value for key, value in broken.items() if key in SETTINGS}}
    (found,) = judge(replace(SOUND, settings=settings, **of_seen))
    assert (found.id, found.area) == (check, "pooler")
    assert said in found.seen
    assert found.counts


def test_every_check_of_the_pooler_is_tested_above() -> None:
    marks = test_reports_the_deviation.pytestmark
    assert {case[1] for case in marks[0].args[1]} == {check.id for check, _ in of(Scope.POOLER)}


def test_the_socket_needs_no_encryption() -> None:
    seen = replace(SOUND, settings={**SETTINGS, "server_tls_sslmode": "disable"}, servers={"minion": "/run/postgresql"})
    assert judge(seen) == []


def test_development_accepts_clients_without_tls() -> None:
    (found,) = judge(replace(SOUND, settings={**SETTINGS, "client_tls_sslmode": "disable"}), development=True)
    assert found.severity is Severity.ACCEPTED


def test_fix_names_inventory_and_host_of_the_plan() -> None:
    (found,) = judge(replace(SOUND, settings={**SETTINGS, "auth_type": "trust"}))
    assert found.fix == "ansible-playbook site.yml -i inventories/prod --limit db1 --tags pgbouncer"
