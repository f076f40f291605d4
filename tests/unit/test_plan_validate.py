"""A run refuses variables and hosts with the value seen, the values allowed and the next step."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from provision import compatibility
from provision.controller import inputs
from provision.plan import validate, versions
from tests import plans
from tests.plans import PROBE, SALT, SAMPLE, built, read

CLUSTER = {"major": "17", "name": "main", "port": "5432", "data_directory": "/var/lib/postgresql/17/main",
           "version_file": "17", "running_pid": 812, "running_port": 5432, "includes_conf_d": True}  # fmt: skip
BOOKWORM = {"distribution_version": "12", "distribution_codename": "bookworm", "os": "Debian GNU/Linux 12"}
STRONG = "a" * 24


def refusals(probe: dict[str, Any] | None = None, profile: str = "prod", **given: Any) -> tuple[str, ...]:
    return built(profile, {**SAMPLE, **given}, probe).problems


def warnings(probe: dict[str, Any] | None = None, **given: Any) -> tuple[str, ...]:
    found = built("prod", {**SAMPLE, **given}, probe)
    assert found.plan
    return found.notices


def test_accepts_a_fresh_host_and_warns_of_a_version_that_is_not_the_default() -> None:
    assert refusals() == ()
    assert "PostgreSQL 17 comes from the distribution, not the default 14 from PGDG" in warnings()


def test_reports_every_problem_at_once() -> None:
    found = built(
        "prod", {**SAMPLE, "postgresql_port": 80, "database_name": "my db"}, {"root": False, "memory_mb": 256}
    )
    assert found.plan is None
    assert found.state is None
    assert [text.split(" ")[0] for text in found.problems] == [
        "database_name",
        "not",
        "the",
        "postgresql_port",
    ]


def test_does_without_systemd_only_where_that_is_allowed_and_names_what_is_left_out() -> None:
    (reported,) = refusals({"systemd": False})
    assert reported.startswith("systemd is not running, so no service can be started: ")
    found = warnings({"systemd": False}, plan_systemd_required=False)
    assert any("pg_ctlcluster 17 main start after each boot; the pooler, the exporters" in text for text in found)


@pytest.mark.parametrize("major", [0, 9, 13, 19, 140])
def test_refuses_an_unknown_major_version(major: int) -> None:
    found = built("prod", {"postgresql_version": major})
    assert found.plan is None
    assert found.problems == (f"postgresql_version is {major}: expected 14, 15, 16, 17, 18",)


def test_adopts_a_foreign_cluster_only_when_it_is_named() -> None:
    host = {
        "clusters": [CLUSTER],
        "listeners": [{"port": 5432, "address": "::", "pid": 812, "command": "postgres", "unit": ""}],
    }
    (reported,) = refusals(host)
    assert reported == (
        "cluster 17/main (/var/lib/postgresql/17/main, port 5432) exists and was not created by provision: use a new "
        "host, or preview its adoption with "
        "-e adopt_cluster=17/main --check --diff (docs/adopt-an-existing-database.md)"
    )
    given = {**SAMPLE, "adopt_cluster": "17/main"}
    state = built("prod", given, host).state
    assert state
    assert (state.adopting, state.serving_port, state.serving) == (True, 5432, True)
    again = built("prod", given, {**host, "ours": True}).state
    assert again
    assert not again.adopting


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ({"distribution": "fedora", "os": "Fedora Linux 43"},
         "operating system Fedora Linux 43: supported are "),
        ({"root": False}, "not root: the run needs sudo; run: provision bootstrap HOST"),
        ({"package_lock": {"path": "/var/lib/dpkg/lock", "pid": 77, "command": "apt-get upgrade"}},
         "/var/lib/dpkg/lock is held by process 77 (apt-get upgrade): let it finish, then run again"),
        ({"disk_free_mb": 100}, "100 MB are free below /var/lib/postgresql: at least 2048 MB are required"),
        ({"listeners": [{"port": 5432, "address": "::", "pid": 9, "command": "nc -l 5432", "unit": ""}]},
         "port 5432 is taken by process 9 (nc -l 5432): stop it, or set postgresql_port to a free port"),
        ({"listeners": [{"port": 5432, "address": "::", "pid": 0, "command": "unknown", "unit": ""}]},
         "port 5432 is taken by a process that the host does not show: stop it"),
        ({"clusters": [{**CLUSTER, "version_file": "16"}], "ours": True}, "holds data of PostgreSQL 16"),
        ({"clusters": [{**CLUSTER, "major": "15"}]},
         "of PostgreSQL 15 is running (process 812), postgresql_version is 17"),
        ({"unknown_clusters": [{"data_directory": "/var/lib/postgresql/17/main", "version_file": "17"}]},
         "/var/lib/postgresql/17/main holds data of PostgreSQL 17 that pg_lsclusters does not know: move it away"),
    ],
)  # fmt: skip
def test_refuses_a_host_and_names_what_was_seen(probe: dict[str, Any], expected: str) -> None:
    (reported,) = refusals(probe)
    assert expected in reported


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"database_name": "my db"}, "database_name is 'my db': expected 1 to 63 of a to z, digits, _ and -"),
        ({"database_name": "template1"}, "database_name is 'template1': expected 1 to 63"),
        ({"database_owner": "postgres"}, "database_owner is 'postgres': expected 1 to 54"),
        ({"postgresql_settings": {"port": 1}}, "postgresql_settings.port: set postgresql_port instead"),
        ({"postgresql_settings": {"ssl": "on"}}, "postgresql_settings.ssl: set tls_enabled instead"),
        ({"postgresql_settings": {"log_line_prefix": None}}, "postgresql_settings.log_line_prefix is null: expected"),
        ({"postgresql_settings": {"hba_file": "x"}}, "set nothing (Debian's paths are required) instead"),
        ({"pgbouncer_allowed_networks": ["10.0.0.5"]}, "write 10.0.0.5/32 for one address"),
        ({"pgbouncer_listen_addresses": []}, "pgbouncer_listen_addresses is empty: expected at least one address"),
        ({"postgresql_extra_rules": [{"users": ["minion"], "method": "cert"}]},
         "postgresql_extra_rules, rule 1: cert needs TLS (tls_enabled) and from"),
        ({"postgresql_port": 80}, "postgresql_port is 80: expected 1024 to 65535"),
        ({"postgresql_version": 13}, "postgresql_version is 13: expected 14, 15, 16, 17, 18"),
        ({"postgresql_version": 16}, "ships 17 only; set postgresql_version to 17, or postgresql_repository to pgdg"),
    ],
)  # fmt: skip
def test_refuses_a_variable_and_names_the_allowed_values(given: dict[str, Any], expected: str) -> None:
    (reported,) = [text for text in refusals(**given) if not text.startswith("database_credentials has no entry")]
    assert expected in reported


def test_refuses_too_little_memory() -> None:
    for memory in (64, 439):
        (reported,) = refusals({"memory_mb": memory})
        assert reported == f"the host has {memory} MB of memory: at least 440 MB are required (plan_minimum_memory_mb)"
    assert refusals({"memory_mb": 440}, profile="dev") == ()
    assert refusals(plan_minimum_memory_mb=400) == ("plan_minimum_memory_mb is 400: expected 440 or more",)
    assert refusals({"memory_mb": 600}, plan_minimum_memory_mb=1000) == (
        "the host has 600 MB of memory: at least 1000 MB are required (plan_minimum_memory_mb)",
    )


def test_a_host_beside_the_databases_may_be_smaller_than_a_database_host() -> None:
    found = built("prod", SAMPLE, {"memory_mb": 256}, judge=validate.judge_other, database=False)
    assert found.problems == ()


def test_the_pooler_takes_networks_and_addresses_of_the_server_where_it_has_none_of_its_own() -> None:
    given: dict[str, Any] = {"postgresql_allowed_networks": ["10.0.0.300/24"], "postgresql_listen_addresses": []}
    assert [text.partition(":")[0] for text in refusals(**given)] == [
        "postgresql_allowed_networks has '10.0.0.300/24'",
        "pgbouncer_allowed_networks has '10.0.0.300/24'",
        "postgresql_listen_addresses is empty",
        "pgbouncer_listen_addresses is empty",
    ]


@pytest.mark.parametrize(
    ("mirror", "expected"),
    [
        ({"uri": ""}, "postgresql_mirror_uri is empty: postgresql_repository mirror needs it"),
        ({"key": ""}, "postgresql_mirror_key is empty: postgresql_repository mirror needs it"),
        ({"suite": "trixie-security"},
         "postgresql_mirror_suite is trixie-security, a suite of the distribution: a mirror laid out as PGDG's has "
         "trixie-pgdg"),
    ],
)  # fmt: skip
def test_refuses_a_mirror_that_is_not_described(mirror: dict[str, str], expected: str) -> None:
    def asked(**other: str) -> dict[str, Any]:
        whole = {"uri": "http://192.0.2.1/pg", "suite": "", "key": "key.asc", **other}
        return {f"postgresql_mirror_{name}": value for name, value in whole.items()}

    assert refusals(postgresql_repository="mirror", **asked()) == ()
    assert refusals(postgresql_repository="mirror", **asked(**mirror)) == (expected,)


def test_refuses_a_package_of_pgvector_where_there_is_none() -> None:
    assert refusals(BOOKWORM, postgresql_version=15) == (
        "pgvector_install_method is package: Debian GNU/Linux 12 has no package of pgvector; set it to source",
    )


def test_refuses_versions_that_do_not_go_together() -> None:
    given: dict[str, Any] = {
        "postgresql_version": 18,
        "postgresql_repository": "pgdg",
        "pgvector_install_method": "source",
    }
    (reported,) = refusals(**given)
    assert "0.5.1" in reported
    assert "18" in reported


def test_accepts_its_own_running_cluster_and_port() -> None:
    listener = {"port": 5432, "address": "::", "pid": 812, "command": "postgres", "unit": ""}
    assert refusals({"clusters": [CLUSTER], "listeners": [listener], "ours": True}) == ()


def test_a_copy_that_restore_made_beside_the_cluster_is_no_obstacle() -> None:
    copy = {
        **CLUSTER,
        "name": "restored-1",
        "data_directory": "/var/lib/postgresql/17/restored-1",
        "running_port": 5499,
    }
    assert refusals({"clusters": [CLUSTER, copy], "ours": True}) == ()


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        ({"minion": {"password": "minion_secret", "salt": SALT}},
         "the password of minion is the published one of development: set database_credentials.minion.password in "
         "inventories/prod/group_vars/all/vault.yml (ansible-vault edit)"),
        ({"minion": {"password": "short", "salt": SALT}},
         "the password of minion has 5 characters, at least 20 are required"),
        ({"minion": {}}, "database_credentials.minion: this password cannot be used"),
        ({"minion": "text"}, "database_credentials.minion is a secret of type str: expected a mapping"),
        ({"minion": {"password": STRONG}}, "database_credentials.minion: this salt cannot be used"),
        ({"minion": {"password": STRONG, "salt": "?"}}, "as `openssl rand -base64 16` prints"),
        ({"minion": {"password": STRONG, "salt": SALT}, "other": {"password": STRONG, "salt": SALT}},
         "the password of minion is also the password of another role"),
    ],
)  # fmt: skip
def test_prod_refuses_weak_passwords_without_printing_them(credentials: dict[str, Any], expected: str) -> None:
    reported = refusals(database_credentials={**plans.SECRETS["database_credentials"], **credentials})
    assert expected in reported[0]
    assert STRONG not in " ".join(reported)


@pytest.mark.parametrize("profile", ["dev", "prod"])
def test_refuses_missing_credentials_of_each_role_that_logs_in(profile: str) -> None:
    reported = refusals(profile=profile, database_credentials={})
    assert [text.partition(":")[0] for text in reported] == [
        f"database_credentials has no entry for {role}" for role in ("minion", "minion_app", "minion_readonly")
    ]
    assert reported[0].endswith(
        ": set its password and its salt in inventories/prod/group_vars/all/vault.yml (ansible-vault edit); "
        "provision secrets init inventories/prod generates both"
    )


@pytest.mark.parametrize("name", ["hosts.yml", "hosts", "hosts.ini"])
def test_next_step_names_the_directory_of_an_inventory_given_as_a_file(name: str) -> None:
    reported = built("prod", {**SAMPLE, "database_credentials": {}}, inventory=(f"inventories/prod/{name}",)).problems
    assert reported[0].endswith(
        " in inventories/prod/group_vars/all/vault.yml (ansible-vault edit); "
        "provision secrets init inventories/prod generates both"
    )


def test_dev_accepts_the_published_password() -> None:
    published = {"password": "minion_secret", "salt": SALT}
    roles = ("minion", "minion_app", "minion_readonly")
    assert refusals(profile="dev", database_credentials=dict.fromkeys(roles, published)) == ()


def test_prod_refuses_a_vault_that_is_not_encrypted() -> None:
    given, path = {**SAMPLE}, "inventories/prod/group_vars/all/vault.yml"
    assert built("prod", given, plain_vaults=(path,)).problems == (
        f"{path} is not encrypted: ansible-vault encrypt {path}",
    )
    assert built("dev", given, plain_vaults=(path,)).problems == ()


def test_new_port_of_a_running_server_needs_permission_to_restart() -> None:
    host = {"clusters": [CLUSTER], "ours": True}
    (reported,) = refusals(host, postgresql_port=5433)
    assert reported.startswith(
        "postgresql_port is 5433, the server listens on 5432: a new port needs a restart, which "
    )
    assert refusals(host, postgresql_port=5433, postgresql_restart_allowed=True) == ()


def test_cluster_that_a_killed_run_left_half_made_is_ours_to_make_again() -> None:
    stranger = {"data_directory": "/var/lib/postgresql/17/main", "version_file": "17"}
    assert refusals({"unknown_clusters": [stranger], "cluster_half_made": True}) == ()


@pytest.mark.parametrize(
    ("today", "expected"),
    [
        ("2026-11-13", "PostgreSQL 14 reached its end of life on 2026-11-12: it gets no more fixes; new hosts: set "),
        ("2026-10-01", "PostgreSQL 14 reaches its end of life on 2026-11-12; new hosts: set postgresql_version to "),
    ],
)
def test_warns_of_end_of_life(today: str, expected: str) -> None:
    given = {**SAMPLE, "postgresql_version": 14, "postgresql_repository": "pgdg", "pgvector_install_method": "source"}
    assert built("prod", given, today=datetime.date.fromisoformat(today)).notices[0].startswith(expected)


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ({"memory_mb": 700}, "700 MB of memory are enough to start, but not to build a large HNSW index"),
        ({"shm_mb": 64}, "shared memory (/dev/shm) has 64 MB, which limits parallel index builds"),
    ],
)
def test_warns_of_a_small_host(probe: dict[str, Any], expected: str) -> None:
    assert any(text.startswith(expected) for text in warnings(probe))


def test_warns_of_a_distribution_that_is_not_tested() -> None:
    found = warnings({"distribution": "ubuntu", "distribution_version": "24.04", "distribution_codename": "noble",
                      "os": "Ubuntu 24.04 LTS"}, postgresql_repository="pgdg")  # fmt: skip
    assert "Ubuntu 24.04 LTS takes the same path as Debian, but is not tested" in found


def test_refuses_a_taken_port_of_the_pooler_but_not_our_own_pooler() -> None:
    listener = listening(6432, "pgbouncer.service", "/usr/sbin/pgbouncer /etc/x.ini")
    (reported,) = refusals({"listeners": [listener]})
    assert reported == (
        "port 6432 is taken by process 31 (/usr/sbin/pgbouncer /etc/x.ini, pgbouncer.service), which this host runs "
        "with other settings: stop it (systemctl disable --now pgbouncer.service)"
    )
    assert refusals({"listeners": [listener], "pooler_port": 6432, "ours": True}) == ()
    hidden = {**listener, "pid": 0, "unit": ""}
    assert refusals({"listeners": [hidden], "pooler_port": 6432}) == ()
    guessed = {**hidden, "units": ["pgbouncer.service", "postgresql@17-main.service"]}
    assert refusals({"listeners": [guessed], "ours": True}) == ()  # plan.json was removed
    (reported,) = refusals({"listeners": [guessed]})
    assert reported.startswith("port 6432 is taken by a process that the host does not show")
    (reported,) = refusals({"listeners": [hidden]})
    assert reported.startswith(
        "port 6432 is taken by a process that the host does not show: stop it, or set pgbouncer_port"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"pgbouncer_port": 80}, "pgbouncer_port is 80: expected 1024 to 65535"),
        ({"pgbouncer_port": 5432}, "pgbouncer_port is 5432, as is postgresql_port: choose another port"),
        ({"pgbouncer_pools": {"minion_app": 61}}, "pgbouncer_pools.minion_app: 61 exceeds"),
        ({"pgbouncer_pools": {"minion_ap": 6}}, "pgbouncer_pools.minion_ap: no such login role"),
        ({"database_extra_roles": [{"name": "web", "kind": "write"}], "pgbouncer_pools": {"web": 90}},
         "max_connections 100 - 3 for administrators - 5 for direct connections leaves 92"),
    ],
)  # fmt: skip
def test_refuses_a_pooler_that_could_not_work(given: dict[str, Any], expected: str) -> None:
    (reported,) = refusals(**given)
    assert expected in reported


def listening(port: int, unit: str, command: str = "x", address: str = "127.0.0.1") -> dict[str, Any]:
    return {"port": port, "address": address, "pid": 31, "command": command, "unit": unit, "units": []}


NODE = "prometheus-node-exporter.service"


@pytest.mark.parametrize(
    ("row", "given", "expected"),
    [
        (listening(9100, "node_exporter.service", "/opt/node_exporter", "::"), {},
         "port 9100 is taken by process 31 (/opt/node_exporter, node_exporter.service): stop it (systemctl disable "
         "--now node_exporter.service), or set monitoring_node_port to a free port"),
        (listening(9187, "session-3.scope", "./postgres_exporter"), {},
         "port 9187 is taken by process 31 (./postgres_exporter, session-3.scope): stop it, or set "
         "monitoring_postgres_port to a free port"),
        (listening(9100, NODE, "/usr/bin/prometheus-node-exporter", "::"), {},
         f"port 9100 is taken by process 31 (/usr/bin/prometheus-node-exporter, {NODE}), which this host runs with "
         f"other settings: stop it (systemctl disable --now {NODE}), or set monitoring_exporters to false to keep it"),
        (listening(9100, "other.service"), {"monitoring_node_port": 9101}, ""),
        (listening(9101, "other.service"), {"monitoring_node_port": 9101}, "port 9101 is taken by process 31"),
        (listening(9100, "other.service"), {"monitoring_exporters": False}, ""),
        (listening(9100, "other.service", address="10.0.0.5"), {}, ""),  # ours listens on the loopback alone
        (listening(9100, "other.service", address="10.0.0.5"),
         {"monitoring_listen_address": "db1", "tls_enabled": True},
         "port 9100 is taken by process 31"),
        (listening(5432, "other.service"), {}, "or set postgresql_port to a free port"),
        (listening(5432, "other.service", address="::ffff:127.0.0.1"), {}, "or set postgresql_port to a free port"),
        (listening(5432, "other.service", address="fd00::5"), {"postgresql_listen_addresses": ["0.0.0.0"]}, ""),  # noqa: S104
        (listening(5432, "other.service", address="0.0.0.0"), {"postgresql_listen_addresses": ["::1"]}, ""),  # noqa: S104
        (listening(8080, "other.service"), {}, ""),
    ],
)  # fmt: skip
def test_refuses_a_port_that_another_service_holds(row: dict[str, Any], given: dict[str, Any], expected: str) -> None:
    reported = refusals({"listeners": [row]}, **given)
    assert len(reported) == bool(expected)
    assert expected in "".join(reported)


def test_a_name_to_listen_on_is_the_addresses_that_the_host_resolves() -> None:
    taken = {"listeners": [listening(5432, "other.service")], "addresses": ["10.0.0.5"]}
    own: dict[str, Any] = {"postgresql_listen_addresses": ["db.lan"], "pgbouncer_listen_addresses": ["127.0.0.1"]}
    assert refusals({**taken, "listen": {"db.lan": {"10.0.0.5": True}}}, **own) == ()
    (reported,) = refusals({**taken, "listen": {"db.lan": {"127.0.0.1": True}}}, **own)
    assert reported.startswith("port 5432 is taken by process 31")


def test_unit_of_a_container_without_systemd_is_not_a_service_of_the_host() -> None:
    row = listening(6432, "docker-0a1b.scope", "/usr/sbin/pgbouncer")
    converged = {"ours": True, "pooler_port": 6432, "listeners": [row], "systemd": False}
    assert refusals(converged, plan_systemd_required=False) == ()


def test_exporters_of_an_earlier_run_are_ours_by_their_unit_alone() -> None:
    converged = {"ours": True, "exporter_ports": [9100, 9187]}
    assert refusals({**converged, "listeners": [listening(9100, NODE)]}) == ()
    hidden = {**listening(9100, ""), "pid": 0}
    assert refusals({**converged, "listeners": [hidden]}) == ()
    # Recorded as ours, but held by another service while ours fails.
    (reported,) = refusals({**converged, "listeners": [listening(9100, "other.service")]})
    assert reported.startswith("port 9100 is taken by process 31 (x, other.service): ")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"monitoring_node_port": 9187},
            "monitoring_postgres_port is 9187, as is monitoring_node_port: choose another",
        ),
        ({"monitoring_node_port": 5432}, "monitoring_node_port is 5432, as is postgresql_port: choose another port"),
        ({"monitoring_postgres_port": 6432}, "monitoring_postgres_port is 6432, as is pgbouncer_port: choose another"),
        ({"monitoring_node_port": 80}, "monitoring_node_port is 80: expected 1024 to 65535"),
        ({"monitoring_postgres_port": 65536}, "monitoring_postgres_port is 65536: expected 1024 to 65535"),
    ],
)
def test_refuses_ports_that_cannot_be_bound_together(given: dict[str, Any], expected: str) -> None:
    (reported,) = refusals(**given)
    assert reported.startswith(expected)
    if "as is" in expected and "pgbouncer" not in expected and "postgresql_port" not in expected:
        assert refusals(**given, monitoring_exporters=False) == ()


def test_refuses_the_port_that_the_server_leaves_for_another_service() -> None:
    serving = {**listening(5432, "postgresql@17-main.service"), "pid": 812}
    host = {"clusters": [CLUSTER], "ours": True, "listeners": [serving]}
    reported = refusals(host, postgresql_port=5433, pgbouncer_port=5432, postgresql_restart_allowed=True)
    assert reported[0] == "pgbouncer_port is 5432, where the server listens now: choose another port"


def test_warns_of_known_defects_of_the_installed_pooler() -> None:
    found = warnings({"package_versions": {**PROBE["package_versions"], "pgbouncer": "1.18.0-1"}})
    assert [each for each in found if "CVE-2026-6664" in each and "until then allow only trusted networks" in each]
    (covered,) = [each for each in found if "not fixed, but prevented by the configuration" in each]
    assert covered.endswith(": CVE-2025-2291, CVE-2025-12819, CVE-2026-107350")


OLD = "pgBackRest 2.45-1 is too old for PostgreSQL 15 with a repository on another host: 2.55 or newer is required"


@pytest.mark.parametrize(
    ("found", "major", "repository", "given", "expected"),
    [
        ("2.45-1", 15, "distribution", {}, OLD),
        ("2.45-1", 15, "pgdg", {}, OLD),  # pgBackRest still comes from the distribution, which knows 15
        ("2.45-1", 16, "pgdg", {}, ""),  # pgBackRest comes from PGDG: the role asks the installed one
        ("2.45-1", 15, "distribution", {"backup_repository_host": ""}, ""),
        ("2.45-1", 15, "distribution", {"backup_physical": False}, ""),
        ("2.57.0-1.pgdg12+1", 15, "distribution", {}, ""),
        ("", 15, "distribution", {}, OLD.replace("2.45-1", "2.45")),  # apt has no lists yet
    ],
)
def test_refuses_a_pgbackrest_that_is_too_old_before_anything_is_made(
    found: str, major: int, repository: str, given: dict[str, Any], expected: str
) -> None:
    host = {**BOOKWORM, "package_versions": {"pgbouncer": "", "pgbackrest": found}}
    remote = {"backup_repository_host": "192.0.2.7", "backup_repository_inventory_name": "backup1"}
    versions = {"postgresql_version": major, "postgresql_repository": repository, "pgvector_install_method": "source"}
    reported = [each for each in refusals(host, **{**remote, **versions, **given}) if "pgBackRest" in each]
    assert len(reported) == (expected != "")
    assert expected in "".join(reported)


BUNDLE: dict[str, Any] = {
    "problem": "", "path": "b.tar", "release": "trixie", "architecture": "amd64", "postgresql": 17,
    "pgvector_install_method": "package", "pgvector_version": "0.8.0", "pgvector_sha256": "", "pgvector_file": "",
    "manifest_sha256": "c" * 64,
}  # fmt: skip


def bundled(given: dict[str, Any] | None = None, **other: Any) -> tuple[str, ...]:
    whole = {**SAMPLE, "postgresql_repository": "bundle", "postgresql_bundle": "b.tar", **(given or {})}
    return built("prod", whole, bundle={**BUNDLE, **other}).problems


def test_accepts_a_bundle_that_was_made_for_this_host_and_this_run() -> None:
    assert bundled() == ()


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"release": "bookworm"}, "release: bookworm, this run has trixie"),
        ({"architecture": "arm64"}, "architecture: arm64, this run has amd64"),
        ({"postgresql": 16}, "postgresql_version: 16, this run has 17"),
        ({"pgvector_install_method": "source"}, "pgvector_install_method: source, this run has package"),
    ],
)
def test_refuses_a_bundle_that_was_made_for_something_else(other: dict[str, Any], expected: str) -> None:
    assert bundled(**other) == (
        f"postgresql_bundle b.tar was made for another {expected}; make a bundle for it with provision bundle make, or "
        "set the value that the bundle was made for",
    )


def test_refuses_a_bundle_with_another_tarball_of_pgvector() -> None:
    given = {"pgvector_install_method": "source", "pgvector_version": "0.8.1", "pgvector_source_sha256": "a" * 64}
    made: dict[str, Any] = {
        "pgvector_install_method": "source", "pgvector_version": "0.8.0", "pgvector_sha256": "b" * 64,
    }  # fmt: skip
    assert [text.partition("another ")[2].partition(";")[0] for text in bundled(given, **made)] == [
        "pgvector_version: 0.8.0, this run has 0.8.1",
        f"pgvector_source_sha256: {'b' * 64}, this run has {'a' * 64}",
    ]


def test_refuses_a_damaged_bundle_with_its_reason_alone() -> None:
    whole = {**SAMPLE, "postgresql_repository": "bundle", "postgresql_bundle": "b.tar"}
    found = built("prod", whole, bundle={"problem": "pool/p.deb; its SHA-256 is 00"})
    assert found.problems == ("postgresql_bundle: pool/p.deb; its SHA-256 is 00",)


TLS: dict[str, Any] = {"tls_enabled": True}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"tls_ca_passphrase": "short"},
         "tls_ca_passphrase has 5 characters: expected at least 20; provision secrets init inventories/prod generates "
         "it"),
        ({"tls_valid_days": 826}, "tls_valid_days is 826: expected 1 to 825"),
        ({"tls_provided_certificate": "c.crt", "tls_provided_key": "c.key"},
         "tls_provided_ca: empty; your own certificate needs all three of tls_provided_certificate, "
         "tls_provided_key, tls_provided_ca"),
    ],
)  # fmt: skip
def test_refuses_certificates_that_could_not_be_issued(given: dict[str, Any], expected: str) -> None:
    assert refusals(**TLS, **given) == (expected,)
    assert refusals(**given) == ()  # without TLS nothing of it is used


def test_refuses_files_of_the_user_s_own_certificate_that_the_controller_named() -> None:
    problem = "tls_provided_key /k: mode 0640 gives other users access to the key; expected 0600"
    assert built("prod", {**SAMPLE, **TLS}, provided=(problem,)).problems == (problem,)


BUCKET = {"bucket": "b", "endpoint": "s3.example.com", "region": "r", "key": "k", "key_secret": "s"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"backup_allow_local_only": False},
         "the only backup repository would be on the host that it protects: put a host into the group backup of the "
         "inventory, set backup_s3, or accept it with backup_allow_local_only: true"),
        ({"backup_repository_passphrase": ""}, "backup_repository_passphrase has 0 characters: expected at least 20"),
        ({"backup_retention_full": 0}, "backup_retention_full is 0: expected 1 or more"),
        ({"backup_retention_diff": 0}, "backup_retention_diff is 0: expected 1 or more"),
        ({"backup_dump_keep": 0}, "backup_dump_keep is 0: expected 1 or more"),
        ({"backup_s3": {"bucket": "b", "endpoint": "e", "region": "r", "key": "k"}},
         "backup_s3.key_secret is empty: a bucket needs it"),
        ({"backup_second_s3": {**BUCKET, "key": ""}}, "backup_second_s3.key is empty: a bucket needs it"),
        ({"backup_s3": BUCKET, "backup_second_s3": {**BUCKET, "endpoint": "https://S3.example.com",
                                                    "path": "/var/lib/pgbackrest"}},
         "backup_second_s3 is bucket b at s3.example.com, path /var/lib/pgbackrest, where the first repository is: "),
        ({"backup_physical": False, "backup_second_s3": BUCKET},
         "backup_second_s3 is set and backup_physical is false: a second repository copies the first one's backups; "),
        ({"backup_second_s3": {**BUCKET, "retention_full": 0}},
         "backup_second_s3.retention_full is 0: expected 1 or more"),
        ({"backup_second_s3": {**BUCKET, "passphrase": "short"}},
         "backup_second_s3.passphrase has 5 characters: expected at least 20"),
        ({"backup_second_s3": {**BUCKET, "path": "copies"}},
         "backup_second_s3.path is 'copies': expected an absolute path"),
        ({"backup_stanza": "../x"}, "backup_stanza is '../x': expected letters, digits, _ . and -"),
        ({"backup_repository_host": "192.0.2.9", "backup_repository_inventory_name": "nowhere"},
         "backup_repository_inventory_name is 'nowhere': expected the name of 192.0.2.9 in the inventory"),
        ({"backup_repository_host": "192.0.2.1", "backup_repository_inventory_name": "db1"},
         "backup_repository_inventory_name is 'db1', a host of the group database: put a host without a database"),
    ],
)  # fmt: skip
def test_refuses_backups_that_would_not_protect(given: dict[str, Any], expected: str) -> None:
    (reported,) = refusals(**given)
    assert reported.startswith(expected)


def test_a_local_repository_that_was_accepted_is_still_warned_of() -> None:
    assert any(text.startswith("the backup repository is on the host that it protects") for text in warnings())
    assert not any("repository" in text for text in warnings(backup_s3=BUCKET))


def test_a_bucket_beside_a_local_repository_needs_no_acceptance() -> None:
    given: dict[str, Any] = {"backup_allow_local_only": False, "backup_second_s3": BUCKET}
    assert refusals(**given) == ()
    assert not any("repository" in text for text in warnings(**given))
    # The same bucket with another path is another place.
    assert refusals(backup_s3=BUCKET, backup_second_s3=BUCKET) == ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"monitoring_listen_address": "192.0.2.1"},
         "monitoring_listen_address is 192.0.2.1, where metrics would travel unencrypted: set tls_enabled to true"),
        ({"monitoring_listen_address": "0.0.0.0", **TLS},  # noqa: S104 - refused
         "monitoring_listen_address is '0.0.0.0': expected one address of this host"),
        ({"monitoring_listen_address": "", **TLS}, "monitoring_listen_address is '': expected one address"),
        ({"monitoring_log_max_mb": 0}, "monitoring_log_max_mb is 0: expected 1 to 2147483647"),
        ({"monitoring_log_keep": 0}, "monitoring_log_keep is 0: expected 1 to 2147483647"),
        ({"monitoring_journal_max_mb": 15}, "monitoring_journal_max_mb is 15: expected 16 to 2147483647"),
        ({"monitoring_users": {"prometheus": "in-clear"}},
         "monitoring_users.prometheus: expected a bcrypt hash (htpasswd -nBC 10 prometheus)"),
    ],
)  # fmt: skip
def test_refuses_monitoring_that_would_leak_or_fill_the_disk(given: dict[str, Any], expected: str) -> None:
    (reported,) = refusals(**given)
    assert reported.startswith(expected)
    assert "in-clear" not in reported


def test_accepts_exporters_on_an_address_with_tls_and_hashes() -> None:
    users = {"prometheus": "$2y$10$" + "a" * 53}
    assert refusals(monitoring_listen_address="192.0.2.1", monitoring_users=users, **TLS) == ()


@pytest.mark.parametrize("key", ["table", "column"])
def test_refuses_names_of_retention_that_are_no_plain_identifiers(key: str) -> None:
    rule = {"table": "tool_calls", "column": "created_at", "days": 30}
    assert refusals(maintenance_extra_retention=[rule]) == ()
    assert refusals(maintenance_extra_retention=[rule, {**rule, key: "x; DROP"}]) == (
        f"maintenance_extra_retention, rule 2: {key} 'x; DROP': expected a to z, digits and _",
    )


def test_host_beside_the_databases_is_judged_by_its_system_and_certificates_alone() -> None:
    given = {"tls_enabled": True, "backup_retention_full": 0, "tls_valid_days": 0}
    found = built("prod", {**SAMPLE, **given}, {"disk_free_mb": 1, "root": False}, judge=validate.judge_other)
    assert found.problems == (
        "not root: the run needs sudo; run: provision bootstrap HOST",
        "tls_valid_days is 0: expected 1 to 825",
    )


def test_a_restore_is_never_refused_for_the_state_of_the_host() -> None:
    for host, given in (
        ({"disk_free_mb": 1, "memory_mb": 500}, {}),
        ({"memory_mb": 100}, {}),
        ({"packages_held": ["postgresql-17"], "sources_fault": "x", "unwritable": ["/usr"]}, {}),
        ({}, {"postgresql_settings": {"max_connections": "many"}}),
        ({"memory_mb": 1024}, {"postgresql_settings": {"max_connections": 5000}}),
        ({}, {"postgresql_settings": {"work_mem": {"value": "4MB", "why": "misspelt"}}}),
    ):
        found = built("prod", {**SAMPLE, **given}, host, judge=validate.judge_nothing)
        assert found.problems == ()
        assert found.plan


def test_migrations_that_are_not_on_the_controller_are_refused_where_they_are_applied() -> None:
    own = {**SAMPLE, "migrations_source": "/nope"}
    (reported,) = built("prod", own, absent=("migrations_source",)).problems
    assert reported == "migrations_source is '/nope': expected a directory of the controller that exists"
    assert built("prod", own, absent=("migrations_source",), selected=frozenset({"backup"})).problems == ()
    values = read("prod", own).values
    found = inputs.context(values, name="db1", address="db1", sources=(), roles=("migrations",), groups={},
                           root=inputs.ROOT, toolkit="")  # fmt: skip
    assert found.absent == ("migrations_source",)


def test_another_pgvector_is_one_variable() -> None:
    for version, row in compatibility.PGVECTOR.items():
        given = {**plans.SAMPLE, "pgvector_install_method": "source", "pgvector_version": version}
        found = plans.built("prod", given)
        if found.plan is None:
            assert 17 not in row.compiles, found.problems
            continue
        assert found.plan.pgvector.url.endswith(f"/v{version}.tar.gz")
        assert found.plan.pgvector.sha256 == row.sha256


def test_tarball_of_one_s_own_is_kept() -> None:
    own = {"pgvector_source_url": "http://192.0.2.1/v.tar.gz", "pgvector_source_sha256": "a" * 64}
    for version in ("0.8.6", "9.0.0"):
        given = {**plans.SAMPLE, **own, "pgvector_install_method": "source", "pgvector_version": version}
        found = plans.plan("prod", given).pgvector
        assert (found.url, found.sha256) == (own["pgvector_source_url"], own["pgvector_source_sha256"])


@pytest.mark.parametrize(
    ("version", "checksum", "expected"),
    [
        (
            "0.8.6",
            compatibility.source_checksum("0.5.1").upper(),
            "pgvector_source_sha256 is the checksum of pgvector 0.5.1, but pgvector_version is 0.8.6: remove it, and "
            "pgvector_source_url if that is a tarball of 0.5.1, or set pgvector_version to 0.5.1",
        ),
        (
            "9.0.0",
            "",
            "pgvector_source_sha256 is empty, and no checksum is recorded for pgvector 9.0.0: download "
            f"{versions.RELEASES.format('9.0.0')}, check it, and set pgvector_source_sha256 to the output of "
            f"sha256sum; or set pgvector_version to {list(compatibility.PGVECTOR)[-1]}",
        ),
    ],
)
def test_refuses_to_build_one_pgvector_under_the_name_of_another(version: str, checksum: str, expected: str) -> None:
    given = {"pgvector_install_method": "source", "pgvector_version": version, "pgvector_source_sha256": checksum}
    assert plans.built("prod", {**plans.SAMPLE, **given}).problems == (expected,)
