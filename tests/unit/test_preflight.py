"""Preflight refuses with what was seen, what is allowed and what to do."""

import copy
import datetime
from typing import Any

import pytest

from provision.checks.preflight import judge

TODAY = datetime.date(2026, 10, 1)
HOST: dict[str, Any] = {
    "distribution": "debian", "distribution_version": "13", "distribution_codename": "trixie",
    "os": "Debian GNU/Linux 13",
    "memory_mb": 4096, "cpus": 2, "shm_mb": 1024, "storage": "ssd", "container": False, "architecture": "x86_64",
    "systemd": True, "root": True, "disk_free_mb": 50000, "listeners": [], "package_lock": None,
    "packages_interrupted": False,
    "cluster_half_made": False, "clusters": [], "unknown_clusters": [], "ours": False, "record": {},
}  # fmt: skip
SALT = "c2FsdCBvZiBhIHRlc3QuLg=="
WANTED: dict[str, Any] = {
    "wanted": {
        "postgresql": {
            "version": 17,
            "repository": "distribution",
            "port": 5432,
            "restart_allowed": False,
            "settings": [],
            "allowed_networks": [],
            "extra_rules": [],
        },
        "tls": {"enabled": False, "passphrase": "", "valid_days": 397, "provided": {}},
        "pgvector": {"install_method": "package", "version": "0.5.1", "accept_advisories": []},
        "database": "minion",
        "owner": "minion",
        "credentials": {"minion": {"password": "minion_secret", "salt": SALT}},
    },
    "profile": "dev",
    "minimum_disk_mb": 2048,
    "minimum_memory_mb": 400,
    "given": ["postgresql_version"],
    "known": ["postgresql_version", "postgresql_port", "pgvector_version"],
}
CLUSTER = {"major": "17", "name": "main", "port": "5432", "data_directory": "/var/lib/postgresql/17/main",
           "version_file": "17", "running_pid": 812, "running_port": 5432}  # fmt: skip


def refusals(host: dict[str, Any] | None = None, **wanted: Any) -> list[str]:
    wishes = copy.deepcopy(WANTED)
    for key, value in wanted.items():
        if key in ("postgresql", "pgvector", "credentials"):
            wishes["wanted"][key] = {**wishes["wanted"][key], **value}
        elif key in ("database", "owner"):
            wishes["wanted"][key] = value
            if key == "owner":
                wishes["wanted"]["credentials"][value] = wishes["wanted"]["credentials"].pop("minion")
        else:
            wishes[key] = value
    return judge({**HOST, **(host or {})}, wishes, TODAY).refusals


def test_accepts_a_plain_host_and_warns_that_it_is_not_the_default() -> None:
    verdict = judge(HOST, WANTED, TODAY)
    assert verdict.refusals == []
    assert "PostgreSQL 17 of the distribution, not the default 14: PGDG is not used" in verdict.warnings


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ({"distribution": "fedora", "os": "Fedora Linux 43"}, "operating system Fedora Linux 43: allowed are"),
        ({"root": False}, "not root: the run needs sudo; run: provision bootstrap HOST"),
        ({"systemd": False}, "systemd is not running"),
        ({"package_lock": {"path": "/var/lib/dpkg/lock", "pid": 77, "command": "apt-get upgrade"}},
         "/var/lib/dpkg/lock is held by process 77 (apt-get upgrade)"),
        ({"disk_free_mb": 100}, "disk: 100 MB free below /var/lib/postgresql, at least 2048"),
        ({"memory_mb": 256}, "memory: 256 MB, at least 400"),
        ({"listeners": [{"port": 5432, "address": "all", "pid": 9, "command": "nc -l 5432"}]},
         "port 5432 is taken by process 9 (nc -l 5432)"),
        ({"clusters": [CLUSTER]}, "was not made by this toolkit: nothing was touched"),
        ({"clusters": [{**CLUSTER, "version_file": "16"}], "ours": True}, "holds data of PostgreSQL 16, wanted is 17"),
        ({"clusters": [{**CLUSTER, "major": "15"}]}, "of PostgreSQL 15 is serving (process 812), wanted is 17"),
        ({"unknown_clusters": [{"data_directory": "/var/lib/postgresql/17/main", "version_file": "17"}]},
         "holds data of PostgreSQL 17 that pg_lsclusters does not know"),
    ],
)  # fmt: skip
def test_refuses_a_host_and_says_what_was_seen(host: dict[str, Any], expected: str) -> None:
    (said,) = refusals(host)
    assert expected in said


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (
            {"given": ["postgresql_versoin"]},
            "variable postgresql_versoin: no role has it; did you mean postgresql_version?",
        ),
        ({"given": ["pgvector_zzzzzzzzzzz"]}, "see the README of the role whose name it begins with"),
        ({"given": ["postgesql_port"]}, "variable postgesql_port: no role has it; did you mean postgresql_port?"),
        ({"database": "my db"}, "database_name 'my db': allowed are a to z"),
        ({"owner": "postgres"}, "database_owner 'postgres': allowed are a to z"),
        ({"postgresql": {"settings": ["port"]}}, "postgresql_settings.port: set postgresql_port instead"),
        ({"postgresql": {"allowed_networks": ["10.0.0.5"]}}, "write 10.0.0.5/32 for one address"),
        ({"postgresql": {"allowed_networks": ["10.0.0.300/24"]}}, "10.0.0.300/24: not a network"),
        ({"postgresql": {"port": 80}}, "postgresql_port 80: allowed are 1024 to 65535"),
        ({"postgresql": {"version": 16}}, "ships 17 only; set postgresql_version: 17, or postgresql_repository: pgdg"),
    ],
)
def test_refuses_a_wish_and_says_what_is_allowed(wanted: dict[str, Any], expected: str) -> None:
    (said,) = refusals(**wanted)
    assert expected in said


@pytest.mark.parametrize(
    ("mirror", "expected"),
    [
        ({"uri": ""}, "postgresql_mirror_uri is empty: postgresql_repository mirror needs it"),
        ({"key": ""}, "postgresql_mirror_key is empty: postgresql_repository mirror needs it"),
        (
            {"suite": "trixie-security"},
            "postgresql_mirror_suite trixie-security: that is the distribution's own; a mirror laid out as PGDG's has "
            "trixie-pgdg",
        ),
    ],
)
def test_refuses_a_mirror_that_is_not_described(mirror: dict[str, str], expected: str) -> None:
    whole = {"uri": "http://192.0.2.1/pg", "suite": "", "key": "key.asc"}
    assert refusals(postgresql={"repository": "mirror", "mirror": whole}) == []
    assert refusals(postgresql={"repository": "mirror", "mirror": {**whole, **mirror}}) == [expected]


def test_refuses_a_package_of_pgvector_where_there_is_none() -> None:
    host = {"distribution_version": "12", "distribution_codename": "bookworm", "os": "Debian GNU/Linux 12"}
    (said,) = refusals(host, postgresql={"version": 15})
    assert said == "pgvector_install_method package: Debian GNU/Linux 12 has no package of pgvector; set it to source"


def test_refuses_versions_that_do_not_go_together() -> None:
    said = refusals(postgresql={"version": 18, "repository": "pgdg"}, pgvector={"install_method": "source"})
    assert len(said) == 1
    assert "0.5.1" in said[0]
    assert "18" in said[0]


def test_accepts_its_own_running_cluster_and_port() -> None:
    listener = {"port": 5432, "address": "all", "pid": 812, "command": "postgres"}
    assert refusals({"clusters": [CLUSTER], "listeners": [listener], "ours": True}) == []


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        (
            {"minion": {"password": "minion_secret", "salt": SALT}},
            "the password of minion is the published one of development",
        ),
        (
            {"minion": {"password": "short", "salt": SALT}},
            "the password of minion has 5 characters, at least 20 are needed",
        ),
        ({"minion": {}}, "database_credentials.minion: this password cannot be used"),
        ({"minion": {"password": "a" * 24}}, "database_credentials.minion: this salt cannot be used"),
        ({"minion": {"password": "a" * 24, "salt": "?"}}, "as `openssl rand -base64 16` prints"),
        (
            {"minion": {"password": "a" * 24, "salt": SALT}, "other": {"password": "a" * 24, "salt": SALT}},
            "the password of minion is used for another",
        ),
    ],
)
def test_prod_refuses_weak_passwords_without_printing_them(credentials: dict[str, Any], expected: str) -> None:
    said = refusals(profile="prod", credentials=credentials)
    assert expected in said[0]
    assert "a" * 24 not in " ".join(said)


@pytest.mark.parametrize("profile", ["dev", "prod"])
def test_refuses_missing_credentials_of_the_owner(profile: str) -> None:
    wishes = copy.deepcopy(WANTED)
    wishes["wanted"]["credentials"], wishes["profile"] = {}, profile
    (said,) = judge(HOST, wishes, TODAY).refusals
    assert said.startswith("database_credentials has nothing for minion: set its password and its salt in inventories/")


def test_new_port_of_a_serving_server_needs_leave_to_restart_it() -> None:
    host = {"clusters": [CLUSTER], "ours": True}
    (said,) = refusals(host, postgresql={"port": 5433})
    assert said.startswith("postgresql_port 5433: the server serves on 5432, and a new port needs a restart")
    assert refusals(host, postgresql={"port": 5433, "restart_allowed": True}) == []


def test_own_variables_of_the_user_are_left_alone() -> None:
    assert refusals(given=["postgresql_version", "app_release", "backup_window"]) == []


def test_cluster_that_a_killed_run_left_half_made_is_ours_to_make_again() -> None:
    host = {
        "unknown_clusters": [{"data_directory": "/var/lib/postgresql/17/main", "version_file": "17"}],
        "cluster_half_made": True,
    }
    assert refusals(host) == []


def test_dev_accepts_the_published_password() -> None:
    assert refusals(profile="dev") == []


def test_warns_of_end_of_life() -> None:
    wishes = copy.deepcopy(WANTED)
    wishes["wanted"]["postgresql"] = {**wishes["wanted"]["postgresql"], "version": 14, "repository": "pgdg"}
    wishes["wanted"]["pgvector"]["install_method"] = "source"
    warnings = judge(HOST, wishes, datetime.date(2026, 11, 13)).warnings
    assert any("14" in text and "2026-11-12" in text for text in warnings)
