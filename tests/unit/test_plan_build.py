"""The plan of a host, section by section; expected values are written by hand."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from provision import addresses
from provision.controller import inputs
from provision.plan import build, load, packages, schema, validate
from tests import plans
from tests.plans import SAMPLE

BOOKWORM = {"distribution_version": "12", "distribution_codename": "bookworm", "os": "Debian GNU/Linux 12 (bookworm)"}
REMOTE = {"backup_repository_host": "192.0.2.7", "backup_repository_inventory_name": "backup1"}


def words(lines: tuple[str, ...]) -> list[str]:
    return [" ".join(line.split()) for line in lines]


@pytest.fixture(scope="module")
def prod() -> schema.Plan:
    return plans.plan("prod", REMOTE)


@pytest.fixture(scope="module")
def dev() -> schema.Plan:
    return plans.plan("dev")


def test_prod_lets_in_by_tls_alone(prod: schema.Plan) -> None:
    assert words(prod.server.hba) == [
        "local all postgres peer",
        "local minion minion peer map=minion",
        "local all minion_backup peer map=minion_backup",
        "local all minion_monitor peer map=minion_monitor",
        "local all minion_pooler peer map=minion_pooler",
        "local all all scram-sha-256",
        "host all postgres all reject",
        "hostssl all minion_pooler 127.0.0.1/32 cert",
        "hostssl all minion_pooler ::1/128 cert",
        "host all minion_pooler all reject",
        "host all all 127.0.0.1/32 scram-sha-256",
        "host all all ::1/128 scram-sha-256",
        "hostnossl all all all reject",
    ]


def test_dev_lets_in_the_host_s_own_networks(dev: schema.Plan) -> None:
    assert words(dev.server.hba)[-4:] == [
        "host all postgres all reject",
        "host all all 127.0.0.1/32 scram-sha-256",
        "host all all ::1/128 scram-sha-256",
        "host all all samenet scram-sha-256",
    ]
    assert dev.pooler.networks == ("127.0.0.1/32", "::1/128", "192.0.2.0/24")


def test_system_users_log_in_by_map() -> None:
    own = [{"map": "reports", "system": "reporter", "role": "minion_readonly"}]
    assert plans.plan("prod", {**REMOTE, "postgresql_maps": own}).server.ident == (
        schema.Ident("minion", "/^(root|postgres)$", "minion"),
        schema.Ident("minion_backup", "/^(root|postgres)$", "minion_backup"),
        schema.Ident("minion_monitor", "/^prometheus$", "minion_monitor"),
        schema.Ident("minion_pooler", "/^postgres$", "minion_pooler"),
        schema.Ident("reports", "reporter", "minion_readonly"),
    )


def test_pools_fit_below_the_connections(prod: schema.Plan, dev: schema.Plan) -> None:
    assert prod.pooler.pools == {"minion": 5, "minion_app": 25, "minion_readonly": 5}
    assert (prod.pooler.total, prod.pooler.lookups, prod.server.max_connections) == (39, 4, 100)
    assert prod.pooler.open_files == 1000 + 39 + 200
    assert dev.pooler.pools == {"minion": 10, "minion_app": 10, "minion_readonly": 5}
    assert plans.plan("prod", {**REMOTE, "pgbouncer_pools": {"minion_app": 50}}).pooler.pools["minion_app"] == 50


@pytest.mark.parametrize(
    ("version", "per_role", "prepared"), [("1.18.0-1", False, 0), ("1.21.0-1", False, 200), ("1.24.1-1", True, 200)]
)
def test_pooler_has_the_abilities_of_its_version(version: str, per_role: bool, prepared: int) -> None:
    found = plans.plan("prod", REMOTE, probe={"package_versions": {"pgbouncer": version, "pgbackrest": ""}})
    assert (found.pooler.per_role_limits, found.pooler.prepared_statements) == (per_role, prepared)
    shares = {"minion": 142, "minion_app": 714, "minion_readonly": 142}
    assert found.pooler.clients == (shares if version == "1.24.1-1" else {})


def test_pooler_reaches_the_server_by_tls_or_by_its_socket(prod: schema.Plan, dev: schema.Plan) -> None:
    assert prod.pooler.server == "127.0.0.1"
    assert dev.pooler.server == "/var/run/postgresql"
    own = {f"tls_provided_{part}": f"/{part}" for part in ("certificate", "key", "ca")}
    assert plans.plan("prod", {**REMOTE, **own}).pooler.server == "/var/run/postgresql"
    elsewhere = {"postgresql_listen_addresses": ["192.0.2.1"]}
    assert plans.plan("prod", {**REMOTE, **elsewhere}).pooler.server == "/var/run/postgresql"


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        (["*"], "127.0.0.1"),
        (["localhost"], "127.0.0.1"),
        (["0.0.0.0"], "127.0.0.1"),  # noqa: S104 - compared, not bound
        (["192.0.2.1", "127.0.0.1"], "127.0.0.1"),
        (["192.0.2.1", "192.0.2.2"], "192.0.2.1"),
        (["::"], "::1"),
        (["::1"], "::1"),
        (["2001:db8::1"], "2001:db8::1"),
        (["db1.example.com"], "db1.example.com"),
    ],
)
def test_address_is_where_the_host_itself_reaches_the_service(listen: list[str], expected: str) -> None:
    assert addresses.reached(listen) == expected


def test_exporters_on_an_ipv6_address_are_written_in_brackets() -> None:
    found = plans.plan("prod", {**REMOTE, "monitoring_listen_address": "2001:db8::1"}).monitoring
    assert (found.address, found.loopback) == ("[2001:db8::1]", False)


def schedules(plan: schema.Plan) -> dict[str, str]:
    return {timer.name.removeprefix("provision-"): timer.schedule for timer in plan.timers}


def test_timers_of_prod_are_all_on(prod: schema.Plan) -> None:
    assert schedules(prod) == {
        "backup-full": "Sun *-*-* 01:30",
        "backup-diff": "Mon..Sat *-*-* 01:30",
        "backup-incr": "*-*-* 07,13,19:30",
        "backup-logical": "*-*-* 03:30",
        "drill": "*-*-* 04:30",
        "backup-watch": "*-*-* *:0/5",
        "maintain-sessions": "*-*-* *:17",
        "maintain-retention": "*-*-* 02:40",
        "maintain-index": "Sat *-*-* 05:10",
    }
    full = prod.timers[0]
    assert (full.starts, full.jitter_s, full.role) == ("provision-backup@full", 900, "backup")
    assert prod.timers[-1] == schema.Timer(
        "provision-maintain-index", "Sat *-*-* 05:10", "provision-maintain@index", 300, "maintenance"
    )


def test_timers_of_dev_are_off_but_for_the_dump(dev: schema.Plan) -> None:
    assert {name: text for name, text in schedules(dev).items() if text} == {"backup-logical": "*-*-* 01:30"}
    assert len(dev.timers) == 9


@pytest.mark.parametrize(
    ("given", "off"),
    [
        ({"backup_logical": False}, {"backup-logical"}),
        ({"backup_physical": False}, {"backup-full", "backup-diff", "backup-incr"}),
        ({"backup_physical": False, "backup_age_limit_h": 0},
         {"backup-full", "backup-diff", "backup-incr", "backup-watch"}),
        ({"backup_physical": False, "backup_logical": False, "backup_age_limit_h": 0},
         {"backup-full", "backup-diff", "backup-incr", "backup-logical", "backup-watch", "drill"}),
        ({"maintenance_cleanup": False}, {"maintain-sessions"}),
        ({"maintenance_index_schedule": ""}, {"maintain-index"}),
    ],
)  # fmt: skip
def test_timer_is_off_where_its_work_is(given: dict[str, Any], off: set[str]) -> None:
    found = schedules(plans.plan("prod", {**REMOTE, **given}))
    assert {name for name, schedule in found.items() if not schedule} == off


def test_source_is_pgdg_until_the_end_of_life_and_its_archive_afterwards() -> None:
    maintained = plans.plan("prod", REMOTE, today=datetime.date(2026, 11, 11)).source
    assert (maintained.kind, maintained.suite, maintained.component) == ("pgdg", "trixie-pgdg", "main")
    assert maintained.uri == "https://apt.postgresql" + ".org/pub/repos/apt"
    assert maintained.pin == 'origin "apt.postgresql' + '.org"'
    assert "postgresql-14" in maintained.pinned
    over = plans.plan("prod", REMOTE, today=datetime.date(2026, 11, 12)).source
    assert over.uri == "https://apt-archive.postgresql" + ".org/pub/repos/apt"
    assert over.suite == "trixie-pgdg-archive"
    assert over.pin == 'origin "apt-archive.postgresql' + '.org"'
    assert over.hints
    assert over.hints["uri"] == "postgresql_pgdg_archive_uri"


def test_source_mirror_is_distinguished_by_its_suite() -> None:
    given = {**REMOTE, "postgresql_repository": "mirror", "postgresql_mirror_uri": "http://192.0.2.1/pg",
             "postgresql_mirror_key": "k.asc"}  # fmt: skip
    found = plans.plan("prod", given).source
    assert (found.uri, found.suite, found.component) == ("http://192.0.2.1/pg", "trixie-pgdg", "main")
    assert found.key == "/etc/apt/keyrings/provision-postgresql.asc"
    assert found.pin == "release trixie-pgdg"
    own = plans.plan("prod", {**given, "postgresql_mirror_suite": "own"}).source
    assert (own.suite, own.pin) == ("own", "release own")


def test_source_is_a_bundle_with_its_checksums() -> None:
    bundle = {
        "problem": "", "path": "b.tar", "release": "trixie", "architecture": "amd64", "postgresql": 17,
        "pgvector_install_method": "package", "pgvector_version": "0.8.1", "pgvector_sha256": "",
        "pgvector_file": "pgvector.tar.gz", "manifest_sha256": "c" * 64,
    }  # fmt: skip
    given = {**SAMPLE, "postgresql_repository": "bundle", "postgresql_bundle": "b.tar"}
    found = plans.built("prod", given, {"package_lists_age_s": 99999}, bundle=bundle)
    assert found.plan
    assert found.state
    source = found.plan.source
    assert (source.kind, source.uri, source.bundle_sha256) == ("bundle", "b.tar", "c" * 64)
    assert source.bundle_pgvector_file == "pgvector.tar.gz"
    assert source.pin == ""
    assert found.plan.pgvector.version == "0.8.1"
    assert not found.state.update_lists  # the bundle has lists of its own


def test_source_is_the_distribution_without_a_file_of_ours() -> None:
    assert plans.sample().source == schema.Source("distribution")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "0.5.1"),
        ({"postgresql_version": 17, "pgvector_install_method": "package"}, "0.8.6"),
        ({"postgresql_version": 17, "pgvector_install_method": "package", "postgresql_repository": "distribution"},
         "0.8.0"),
        ({"postgresql_version": 17, "pgvector_version": "0.8.1"}, "0.8.1"),
    ],
)  # fmt: skip
def test_pgvector_version_is_the_one_that_the_host_will_have(given: dict[str, Any], expected: str) -> None:
    assert plans.plan("prod", {**REMOTE, **given}).pgvector.version == expected


def test_backup_of_prod_goes_to_the_backup_host(prod: schema.Plan) -> None:
    assert prod.backup.stanza == "db1"
    assert prod.backup.repository == schema.Repository(
        1, "host", "/var/lib/pgbackrest", "192.0.2.7", 22, "backup1", "pgbackrest-db1", {}, 2, 7
    )
    assert prod.backup.repositories == (prod.backup.repository,)
    assert prod.server.archive_command == "pgbackrest --stanza=db1 archive-push %p"
    assert (prod.backup.processes, prod.backup.queue_max_mb) == (2, 1024)
    assert plans.plan("prod", REMOTE, probe={"disk_mb": 200000}).backup.queue_max_mb == 40000
    assert plans.plan("prod", REMOTE, probe={"cpus": 16}).backup.processes == 8
    assert plans.plan("prod", REMOTE, probe={"cpus": 1}).backup.processes == 1


def test_repository_is_the_first_host_of_the_group_backup() -> None:
    given = {"groups": {"all": ["db1", "backup1"], "backup": ["backup1"]}}
    found = plans.plan("prod", given).backup.repository
    assert (found.kind, found.host, found.inventory_name) == ("host", "192.0.2.7", "backup1")


def test_bucket_wins_over_a_host_and_keeps_its_keys_out_of_the_plan() -> None:
    s3 = {"bucket": "b", "endpoint": "s3.example.com", "region": "eu", "key": "the-key", "key_secret": "the-secret",
          "port": 9000}  # fmt: skip
    found = plans.plan("prod", {**REMOTE, "backup_s3": s3})
    assert found.backup.repository.kind == "s3"
    assert found.backup.repository.s3 == {
        "uri_style": "host", "bucket": "b", "endpoint": "s3.example.com", "region": "eu", "port": "9000",
    }  # fmt: skip
    assert found.backup.repository.host == ""
    assert "the-key" not in load.text(found)
    assert "the-secret" not in load.text(found)


def test_second_repository_has_its_own_path_and_retention_and_no_secret_in_the_plan() -> None:
    s3 = {
        "bucket": "copies", "endpoint": "s3.example.com", "region": "eu", "key": "the-key", "key_secret": "the-secret",
        "passphrase": "the passphrase of the second", "retention_full": 5, "port": None,
    }  # fmt: skip
    found = plans.plan("prod", {**REMOTE, "backup_second_s3": s3})
    first, second = found.backup.repositories
    assert (first.number, first.kind, first.retention_full, first.retention_diff) == (1, "host", 2, 7)
    assert (second.number, second.kind, second.path) == (2, "s3", "/pgbackrest")
    assert (second.retention_full, second.retention_diff) == (5, 7)
    assert second.s3 == {
        "uri_style": "host", "bucket": "copies", "endpoint": "s3.example.com", "region": "eu",
    }  # fmt: skip
    assert second.place == "s3://copies/pgbackrest"
    assert load.of(json.loads(load.text(found))) == found
    assert not any(secret in load.text(found) for secret in ("the-key", "the-secret", "the passphrase"))


def test_dev_archives_nothing(dev: schema.Plan) -> None:
    assert dev.server.archive_command == ""
    assert not dev.backup.physical
    assert dev.backup.logical


def test_certificate_has_the_names_by_which_clients_know_the_host() -> None:
    found = plans.plan("prod", {**REMOTE, "tls_extra_names": ["db.example.com", "db1"]}, address="192.0.2.1").tls
    server, pooler = found.certificates
    assert server.names == ("192.0.2.1", "db.example.com", "db1", "localhost", "127.0.0.1", "::1")
    assert (server.common_name, server.purpose, server.own_names) == ("db1", "server", True)
    assert (pooler.name, pooler.common_name, pooler.purpose, pooler.names) == (
        "pooler-client", "minion_pooler", "client", (),
    )  # fmt: skip
    assert (found.name, found.client_ca) == ("192.0.2.1", "inventories/prod/tls/ca.crt")


def test_common_name_of_a_long_host_name_is_cut_where_x520_ends() -> None:
    name = "d" * 70
    assert plans.plan("prod", REMOTE, name=name).tls.certificate("server").common_name == "d" * 64


def test_own_certificate_needs_only_the_client_s_name() -> None:
    own = {f"tls_provided_{part}": f"/{part}" for part in ("certificate", "key", "ca")}
    found = plans.plan("prod", {**REMOTE, **own}, address="db.example.com").tls
    server = found.certificate("server")
    assert (server.names, server.common_name, server.own_names) == (("db.example.com",), "", False)
    assert found.client_ca == "/ca"


def test_dev_has_no_certificates(dev: schema.Plan) -> None:
    assert not dev.tls.enabled
    assert dev.tls.certificates == ()


def test_roles_that_search_vectors_begin_with_its_settings() -> None:
    given = {**REMOTE, "postgresql_version": 17, "pgvector_version": "0.8.1",
             "database_extra_roles": [{"name": "web", "kind": "write", "state": "absent"}]}  # fmt: skip
    found = {role.name: role for role in plans.plan("prod", given).access.roles}
    assert list(found) == [
        "minion", "minion_app", "minion_readonly", "minion_backup", "minion_monitor", "minion_pooler", "web",
    ]  # fmt: skip
    assert found["minion_app"].settings["statement_timeout"] == "30s"
    assert any(name.startswith("hnsw.") for name in found["minion_app"].settings)
    assert found["minion_backup"].settings == {}
    assert (found["minion"].connection_limit, found["minion_app"].connection_limit) == (15, 49)
    assert (found["minion"].has_password, found["minion_backup"].has_password) == (True, False)
    assert (found["web"].state, found["web"].connection_limit, found["web"].settings) == (
        "absent",
        -1,
        {"temp_file_limit": "1GB"},
    )


def test_guard_and_restarts_come_from_the_profile(prod: schema.Plan, dev: schema.Plan) -> None:
    assert (prod.access.guard, prod.server.restart_allowed, prod.pooler.restart_allowed) == (True, False, False)
    assert (dev.access.guard, dev.server.restart_allowed, dev.pooler.restart_allowed) == (False, True, True)


def test_settings_of_the_user_are_in_the_plan_as_text() -> None:
    found = plans.plan("prod", {**REMOTE, "postgresql_settings": {"work_mem": "64MB"}}).server
    assert found.overrides == {"work_mem": "64MB"}
    assert {each.name: each.text for each in found.settings}["work_mem"] == "64MB"


def test_kernel_settings_are_for_machines_of_their_own(prod: schema.Plan) -> None:
    assert prod.server.kernel["vm.swappiness"] == "1"
    assert plans.plan("prod", REMOTE, probe={"container": True}).server.kernel == {}


def test_retention_has_the_user_s_tables_after_ours() -> None:
    rule = {"table": "tool_calls", "column": "created_at", "days": 30}
    found = plans.plan("prod", {**REMOTE, "maintenance_extra_retention": [rule]}).maintenance.retention
    assert [(each.name, each.days, each.action) for each in found] == [
        ("activities", 90, "delete"),
        ("metrics", 30, "delete"),
        ("closed sessions", 7, "archive"),
        ("tool_calls", 30, "delete"),
    ]
    assert found[-1].due == "created_at < {cutoff}"


def test_packages_are_those_of_each_role(prod: schema.Plan, dev: schema.Plan) -> None:
    assert packages.by_role(prod, built=False) == {
        "toolkit": ("python3-click", "python3-psycopg"),
        "tls": ("openssl", "python3-cryptography", "ssl-cert"),
        "postgresql": ("postgresql-14", "postgresql-client-14"),
        "upgrade": ("postgresql-14", "postgresql-client-14", "gcc", "libc6-dev", "make", "postgresql-server-dev-14"),
        "pgvector": ("gcc", "libc6-dev", "make", "postgresql-server-dev-14"),
        "database": (),
        "pgbouncer": ("pgbouncer",),
        "backup": ("pgbackrest", "openssh-client"),
        "monitoring": ("logrotate", "prometheus-node-exporter", "prometheus-postgres-exporter"),
    }
    found = packages.by_role(dev, built=False)
    assert (found["tls"], found["backup"], found["monitoring"]) == ((), (), ("logrotate",))
    assert packages.by_role(prod, built=True)["pgvector"] == ()
    assert packages.by_role(plans.sample(), built=False)["pgvector"] == ("postgresql-17-pgvector",)
    assert packages.by_role(plans.sample(), built=False)["backup"] == ("pgbackrest",)


def test_packaged_extension_brings_its_package_and_its_preloaded_library() -> None:
    found = plans.plan("prod", {**REMOTE, "database_extensions": ["vector", "pg_cron", "pg_trgm"]})
    assert packages.by_role(found, built=False)["database"] == ("postgresql-14-cron",)
    settings = {each.name: each.text for each in found.server.settings}
    assert "pg_cron" in settings["shared_preload_libraries"]


def test_host_without_systemd_needs_neither_pooler_nor_exporters() -> None:
    found = plans.plan("prod", {**REMOTE, "plan_systemd_required": False}, probe={"systemd": False})
    assert not found.pooler.enabled
    assert packages.by_role(found, built=False)["pgbouncer"] == ()
    assert packages.by_role(found, built=False)["monitoring"] == ()


def test_state_names_packages_of_the_roles_of_this_play_alone() -> None:
    probe = {"packages": ["postgresql-14", "gcc"], "package_lists_age_s": 7200}
    found = plans.built("prod", REMOTE, probe, roles=("postgresql", "pgvector")).state
    assert found
    assert found.missing_packages == ("libc6-dev", "make", "postgresql-client-14", "postgresql-server-dev-14")
    assert found.missing_key_packages == ("postgresql-common",)
    assert found.new_build_packages == ("libc6-dev", "make", "postgresql-server-dev-14")
    assert found.update_lists
    assert (found.cluster, found.serving, found.serving_port) == ("absent", False, 5432)


def test_build_packages_of_a_failed_run_are_known_by_its_record() -> None:
    probe = {"packages": ["gcc", "make"], "build_packages": ["make", "git"]}
    found = plans.built("prod", REMOTE, probe, roles=("postgresql", "pgvector")).state
    assert found
    assert found.new_build_packages == ("libc6-dev", "make", "postgresql-server-dev-14")


def test_state_knows_what_earlier_runs_left(prod: schema.Plan) -> None:
    left = {"pgvector_build": build.stamp(prod), "toolkit_sha256": "t", "proved": True, "cluster_half_made": True}
    found = plans.built("prod", REMOTE, left, toolkit_sha256="t").state
    assert found
    assert (found.pgvector_built, found.toolkit_current, found.proved) == (True, True, True)
    assert found.cluster == "half-made"
    assert "gcc" not in found.missing_packages


@pytest.mark.parametrize("profile", ["dev", "prod"])
def test_equal_inputs_give_equal_bytes(profile: str) -> None:
    first = plans.plan(profile, REMOTE)
    # A second run finds packages, a cluster, fresh lists: none of it is in the plan.
    cluster = {"major": "14", "name": "main", "port": "5432", "data_directory": "/var/lib/postgresql/14/main",
               "version_file": "14", "running_pid": 812, "running_port": 5432, "includes_conf_d": True}  # fmt: skip
    after = {"ours": True, "proved": True, "packages": ["postgresql-14"], "package_lists_age_s": 9999,
             "clusters": [cluster], "pooler_port": 6432, "toolkit_sha256": "t", "disk_free_mb": 40000}  # fmt: skip
    assert load.text(plans.plan(profile, REMOTE, probe=after)) == load.text(first)
    assert load.of(json.loads(load.text(first))) == first


@pytest.mark.parametrize("profile", ["dev", "prod"])
def test_plan_holds_no_secret(profile: str) -> None:
    users = {"prometheus": "$2y$10$" + "h" * 53}
    found = plans.built(profile, {**REMOTE, "monitoring_users": users})
    assert found.plan
    text = load.text(found.plan) + str(inputs.published(found.plan, found.state))
    secrets = [
        *(part for each in plans.SECRETS["database_credentials"].values() for part in each.values()),
        plans.SECRETS["backup_repository_passphrase"],
        plans.SECRETS["tls_ca_passphrase"],
        *users.values(),
    ]
    assert len(secrets) == 9
    assert [secret for secret in secrets if secret in text] == []


def test_third_profile_works_by_existing(tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    staging = yaml.safe_load((inputs.ROOT / "profiles/prod.yml").read_text())
    staging["database"]["guard"] = False
    staging["pgbouncer"]["app_pool"] = 12
    (folder / "staging.yml").write_text(yaml.safe_dump(staging, sort_keys=False))
    found = plans.read("staging", REMOTE, tmp_path)
    assert found.problems == ()
    made = build.build(found.values, plans.PROBE, found.profile, plans.CONTEXT)
    assert made.plan, made.problems
    assert (made.plan.profile, made.plan.access.guard, made.plan.pooler.pools["minion_app"]) == ("staging", False, 12)
    prod = {each.name: each.text for each in plans.plan("prod", REMOTE).server.settings}
    assert {each.name: each.text for each in made.plan.server.settings} == prod


def test_commands_name_the_inventory_and_the_host_of_the_run(prod: schema.Plan) -> None:
    assert prod.site("tls") == "ansible-playbook site.yml -i inventories/prod --limit db1 --tags tls"
    assert prod.selection() == "-i inventories/prod --limit db1"


def test_settings_that_cannot_be_computed_are_refused_with_all_other_problems() -> None:
    given = {**SAMPLE, "postgresql_settings": {"max_connections": "many"}, "backup_dump_keep": 0}
    found = plans.built("prod", given)
    assert found.plan is None
    assert found.problems[0].startswith("backup_dump_keep is 0")
    assert found.problems[1] == "postgresql_settings.max_connections is 'many': expected an integer"


def test_small_backup_host_is_not_judged_by_the_pools_of_the_databases() -> None:
    pools = {**SAMPLE, "pgbouncer_pools": {"minion_app": 55}, "tls_enabled": True, "tls_ca_passphrase": "p" * 32}
    small = {"memory_mb": 512, "cpus": 1, "packages": []}
    roles = ("packages", "plan", "tls", "toolkit")
    (problem,) = plans.built("prod", pools, small).problems
    assert "max_connections" in problem
    found = plans.built("prod", pools, small, judge=validate.judge_other, database=False, roles=roles)
    assert (found.problems, found.notices) == ((), ())
    assert found.state
    assert found.state.missing_packages == ("openssl", "python3-cryptography", "ssl-cert")
