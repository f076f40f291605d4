"""Preflight refuses with what was seen, what is allowed and what to do."""

import copy
import datetime
from typing import Any

import pytest

from provision.plan.validate import judge

TODAY = datetime.date(2026, 10, 1)
HOST: dict[str, Any] = {
    "distribution": "debian", "distribution_version": "13", "distribution_codename": "trixie",
    "os": "Debian GNU/Linux 13",
    "memory_mb": 4096, "cpus": 2, "shm_mb": 1024, "storage": "ssd", "container": False, "architecture": "x86_64",
    "systemd": True, "root": True, "disk_free_mb": 50000, "listeners": [], "package_lock": None,
    "packages_interrupted": False,
    "package_versions": {"pgbouncer": "", "pgbackrest": ""}, "networks": ["10.0.0.0/24"],
    "cluster_half_made": False, "clusters": [], "unknown_clusters": [], "ours": False, "record": {},
}  # fmt: skip
SALT = "c2FsdCBvZiBhIHRlc3QuLg=="
WANTED: dict[str, Any] = {
    "wanted": {
        "postgresql": {
            "version": 17,
            "repository": "distribution",
            "adopt": "",
            "port": 5432,
            "restart_allowed": False,
            "settings": [],
            "allowed_networks": [],
            "extra_rules": [],
        },
        "tls": {"enabled": False, "passphrase": "", "valid_days": 397, "provided": {}},
        "pgvector": {"install_method": "package", "version": "0.5.1", "accept_advisories": []},
        "backup": {"physical": True, "remote": False},
        "pooler": {
            "port": 6432,
            "allowed_networks": [],
            "pools": {},
            "wished": {"minion": 5, "minion_app": 25, "minion_readonly": 5},
            "roles": [
                {"name": "minion", "connection_limit": 20},
                {"name": "minion_app", "connection_limit": 60},
                {"name": "minion_readonly", "connection_limit": 10},
            ],
            "max_connections": 100,
            "accept_advisories": [],
        },
        "database": "minion",
        "owner": "minion",
        "credentials": {"minion": {"password": "minion_secret", "salt": SALT}},
    },
    "profile": "dev",
    "minimum_disk_mb": 2048,
    "minimum_memory_mb": 400,
    "systemd_required": True,
    "given": ["postgresql_version"],
    "known": ["postgresql_version", "postgresql_port", "pgvector_version"],
}
CLUSTER = {"major": "17", "name": "main", "port": "5432", "data_directory": "/var/lib/postgresql/17/main",
           "version_file": "17", "running_pid": 812, "running_port": 5432, "includes_conf_d": True}  # fmt: skip


def refusals(host: dict[str, Any] | None = None, **wanted: Any) -> list[str]:
    wishes = copy.deepcopy(WANTED)
    for key, value in wanted.items():
        if key in ("postgresql", "pgvector", "credentials", "pooler"):
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


def test_does_without_systemd_only_where_that_is_allowed_and_says_what_is_left_out() -> None:
    verdict = judge({**HOST, "systemd": False}, {**WANTED, "systemd_required": False}, TODAY)
    assert verdict.refusals == []
    assert any("pg_ctlcluster 17 main start" in text and "left out are the pooler" in text for text in verdict.warnings)


def test_takes_a_foreign_cluster_over_only_when_it_is_named() -> None:
    host = {"clusters": [CLUSTER], "listeners": [{"port": 5432, "address": "all", "pid": 812, "command": "postgres"}]}
    (said,) = refusals(host)
    assert "-e adopt_cluster=17/main --check --diff (docs/adopt-an-existing-database.md)" in said
    wishes = copy.deepcopy(WANTED)
    wishes["wanted"]["postgresql"]["adopt"] = "17/main"
    verdict = judge({**HOST, **host}, wishes, TODAY)
    assert (verdict.refusals, verdict.adopting, verdict.serving_port) == ([], True, 5432)
    again = judge({**HOST, **host, "ours": True}, wishes, TODAY)
    assert (again.refusals, again.adopting) == ([], False)


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


def test_refuses_a_taken_port_of_the_pooler_but_not_our_own_pooler() -> None:
    listener = {"port": 6432, "address": "all", "pid": 31, "command": "/usr/sbin/pgbouncer /etc/x.ini"}
    (said,) = refusals({"listeners": [listener]})
    assert said.startswith("port 6432 is taken by process 31 (/usr/sbin/pgbouncer /etc/x.ini)")
    assert refusals({"listeners": [listener], "record": {"pooler": {"port": 6432}}}) == []


@pytest.mark.parametrize(
    ("pooler", "expected"),
    [
        ({"port": 80}, "pgbouncer_port 80: allowed are 1024 to 65535"),
        ({"port": 5432}, "pgbouncer_port 5432: that is the server's own"),
        ({"allowed_networks": ["10.0.0.5"]}, "pgbouncer_allowed_networks 10.0.0.5: not a network"),
        ({"pools": {"minion_app": 90}, "roles": [{"name": "minion_app", "connection_limit": -1}]},
         "minion 1 + minion_readonly 1 + minion_app 90 + 4 for auth_query = 96 server connections, but "
         "max_connections 100 - 3 for administrators - 5 for direct connections leaves 92"),
        ({"pools": {"minion_app": 61}}, "pgbouncer_pools.minion_app: 61 exceeds the role's connection limit"),
        ({"pools": {"minion_ap": 6}}, "pgbouncer_pools.minion_ap: no such login role"),
    ],
)  # fmt: skip
def test_refuses_a_pooler_that_could_not_work(pooler: dict[str, Any], expected: str) -> None:
    (said,) = refusals(pooler=pooler)
    assert expected in said


def test_warns_of_what_is_known_of_the_installed_pooler() -> None:
    host = {**HOST, "package_versions": {**HOST["package_versions"], "pgbouncer": "1.18.0-1"}}
    warnings = judge(host, WANTED, TODAY).warnings
    assert [each for each in warnings if "CVE-2026-6664" in each and "until then allow only trusted networks" in each]
    (covered,) = [each for each in warnings if "not fixed, but prevented by the configuration" in each]
    assert covered.endswith(": CVE-2025-2291, CVE-2025-12819, CVE-2026-107350")


OLD = "pgbackrest 2.45-1 is too old for PostgreSQL 15 with a repository on another host: allowed are 2.55 and newer"


@pytest.mark.parametrize(
    ("found", "major", "repository", "backup", "expected"),
    [
        ("2.45-1", 15, "distribution", {"remote": True}, OLD),
        ("2.45-1", 15, "pgdg", {"remote": True}, OLD),  # whose own is not taken: the distribution's knows 15
        ("2.45-1", 16, "pgdg", {"remote": True}, ""),  # whose own is: the role asks it
        ("2.45-1", 15, "distribution", {"remote": False}, ""),
        ("2.45-1", 15, "distribution", {"remote": True, "physical": False}, ""),
        ("2.57.0-1.pgdg12+1", 15, "distribution", {"remote": True}, ""),
        ("", 15, "distribution", {"remote": True}, OLD.replace("2.45-1", "2.45")),  # apt has never been asked
    ],
)
def test_refuses_a_pgbackrest_that_is_too_old_before_anything_is_made(
    found: str, major: int, repository: str, backup: dict[str, bool], expected: str
) -> None:
    host = {
        **HOST, "distribution_version": "12", "distribution_codename": "bookworm",
        "package_versions": {"pgbouncer": "", "pgbackrest": found},
    }  # fmt: skip
    wanted = copy.deepcopy(WANTED)
    wanted["wanted"]["backup"] |= backup
    wanted["wanted"]["postgresql"] |= {"version": major, "repository": repository}
    told = [each for each in judge(host, wanted, TODAY).refusals if "pgbackrest" in each]
    assert len(told) == (expected != "")
    assert expected in "".join(told)


BUNDLE: dict[str, Any] = {
    "problem": "", "path": "b.tar", "release": "trixie", "architecture": "amd64", "postgresql": 17,
    "pgvector_install_method": "package", "pgvector_version": "0.8.0", "pgvector_sha256": "", "pgvector_file": "",
    "manifest_sha256": "c" * 64,
}  # fmt: skip


def bundled(host: dict[str, Any] | None = None, pgvector: dict[str, Any] | None = None, **other: Any) -> list[str]:
    wish = {"repository": "bundle", "bundle": {**BUNDLE, **other}}
    return refusals(host, postgresql=wish, pgvector={"source_sha256": "", **(pgvector or {})})


def test_accepts_a_bundle_that_was_made_for_this_host_and_this_run() -> None:
    assert bundled() == []


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"release": "bookworm"}, "made for another release of the system: its release is bookworm, wanted is trixie"),
        ({"architecture": "arm64"}, "made for another architecture: its architecture is arm64, wanted is amd64"),
        ({"postgresql": 16}, "made for another major: its postgresql_version is 16, wanted is 17"),
        ({"pgvector_install_method": "source"},
         "made for another method: its pgvector_install_method is source, wanted is package"),
    ],
)  # fmt: skip
def test_refuses_a_bundle_that_was_made_for_something_else(other: dict[str, Any], expected: str) -> None:
    (refusal,) = bundled(**other)
    assert (
        refusal
        == f"postgresql_bundle b.tar: {expected}; make one with provision bundle make, or set what it was made for"
    )


def test_refuses_a_bundle_with_another_tarball_of_pgvector() -> None:
    wish = {"install_method": "source", "version": "0.5.1", "source_sha256": "a" * 64}
    made: dict[str, Any] = {
        "pgvector_install_method": "source",
        "pgvector_version": "0.8.0",
        "pgvector_sha256": "b" * 64,
    }
    found = bundled(pgvector=wish, **made)
    assert [text.split(": ", 1)[1].split(";")[0] for text in found] == [
        "made for another tarball: its pgvector_version is 0.8.0, wanted is 0.5.1",
        f"made for another tarball: its pgvector_source_sha256 is {'b' * 64}, wanted is {'a' * 64}",
    ]


def test_refuses_a_damaged_bundle_with_its_reason_alone() -> None:
    assert bundled(problem="pool/p.deb; its SHA-256 is 00") == ["postgresql_bundle: pool/p.deb; its SHA-256 is 00"]
