"""Every template, rendered from a plan of dev and of prod, is what was approved.

Ansible's own engine renders in this process; no host and no playbook is needed. After an intended change run
PROVISION_APPROVE=1 pytest tests/templates, then read the diff of golden/.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

from provision.controller import inputs
from provision.plan import connect, validate
from tests import plans, topologies
from tests.contract.repository import ROOT

GOLDEN = Path(__file__).with_name("golden")
TEMPLATES = sorted((ROOT / "templates").glob("*/*.j2"))
PROBE = {
    "distribution_version": "12",
    "distribution_codename": "bookworm",
    "os": "Debian GNU/Linux 12 (bookworm)",
    "disk_mb": 200000,
    "package_versions": {"pgbouncer": "1.24.1-1+deb13u2", "pgbackrest": "2.57.0-1"},
}
GIVEN: dict[str, Any] = {
    "postgresql_repository": "mirror",
    "postgresql_mirror_uri": "http://mirror.example/postgresql",
    "postgresql_mirror_key": "key.asc",
    "postgresql_extra_rules": [
        {"users": ["minion_readonly"], "databases": ["minion"], "from": ["10.0.2.0/24"], "method": "scram-sha-256"},
        {"users": ["minion_readonly"], "method": "peer", "map": "reports"},
    ],
    "postgresql_maps": [{"map": "reports", "system": "reporter", "role": "minion_readonly"}],
    "backup_repository_host": "192.0.2.7",
    "backup_repository_inventory_name": "backup1",
}
BUNDLE = {
    "problem": "", "path": "b.tar", "release": "bookworm", "architecture": "amd64", "postgresql": 14,
    "pgvector_install_method": "source", "pgvector_version": "0.5.1", "pgvector_file": "pgvector.tar.gz",
    "pgvector_sha256": "cc7a8e034a96e30a819911ac79d32f6bc47bdd1aa2de4d7d4904e26b83209dc8", "manifest_sha256": "0" * 64,
}  # fmt: skip
SECRET = {"backup-secrets.conf"}
"""Files that hold a secret: readable by their service alone."""


@functools.cache
def _roles() -> dict[str, Any]:
    """Give what every role keeps in vars/main.yml: a template may name its own role's."""
    init_plugin_loader()  # lookups and filters of Ansible and of this collection
    loader = DataLoader()
    found: dict[str, Any] = {}
    for path in sorted((ROOT / "roles").glob("*/vars/main.yml")):
        found |= loader.load_from_file(str(path), trusted_as_template=True) or {}
    return found


@functools.cache
def variables(profile: str, repository: str) -> dict[str, Any]:
    given = {**GIVEN, "postgresql_repository": repository}
    found = plans.built(profile, given, PROBE, bundle=BUNDLE if repository == "bundle" else {})
    assert found.plan, found.problems
    secrets = plans.values(profile, given).values
    return {
        **_roles(),
        "plan": inputs.published(found.plan, found.state),
        "timer": vars(next(each for each in found.plan.timers if each.schedule)),
        "backup_repository_passphrase": secrets["backup_repository_passphrase"],
        "backup_s3": {},
        "monitoring_users": {},
        "inventory_hostname": "db1",
        "groups": {"database": ["db1"]},
        "hostvars": {"db1": {}},
    }


@functools.cache
def of_member(profile: str) -> dict[str, Any]:
    """Give what differs for the templates of a cluster: the plan of a member, and the passphrase."""
    given = {"balancer_enabled": True, "balancer_address": "192.0.2.100/24"}
    found = topologies.built("db2", given, {"interfaces": {"192.0.2.2": "eth0"}}, profile=profile)
    assert found.plan, found.problems
    return {"plan": inputs.published(found.plan, found.state), "cluster_passphrase": topologies.PASSPHRASE}


@functools.cache
def of_fleet(profile: str) -> dict[str, Any]:
    """Give what differs for a worker of a fleet."""
    found = topologies.in_fleet("db2", profile=profile)
    assert found.plan, found.problems
    return {"plan": inputs.published(found.plan, found.state), "cluster_passphrase": topologies.PASSPHRASE}


def render(template: Path, profile: str, **changed: Any) -> str:
    if template.parent.name in ("balancer", "etcd", "patroni"):
        changed = {**of_member(profile), **changed}
    if "citus" in template.name:
        changed = {**of_fleet(profile), **changed}
    repository = "bundle" if template.name.startswith("bundle") else "mirror"
    # As the action host_files does: beside the template, then among the shared ones.
    places = [str(template.parent), str(ROOT / "templates/toolkit")]
    shown = {**variables(profile, repository), **changed, "the_path": str(template), "ansible_search_path": places}
    engine = Templar(loader=DataLoader(), variables=shown)
    text: str = engine.template(trust_as_template("{{ lookup('ansible.builtin.template', the_path) }}"))
    return text


@pytest.mark.parametrize("profile", ["dev", "prod"])
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_template_renders_as_approved(template: Path, profile: str) -> None:
    name = f"{template.parent.name}-{template.stem}"
    approved = GOLDEN / profile / name
    text = render(template, profile)
    if os.environ.get("PROVISION_APPROVE"):
        approved.parent.mkdir(parents=True, exist_ok=True)
        approved.write_text(text)
    assert text == approved.read_text()
    secrets = str(plans.SECRETS)
    held = [line.partition("=")[2] for line in text.splitlines() if len(line.partition("=")[2]) > 8]
    assert any(value in secrets for value in held) == (name in SECRET)


def test_every_approved_file_is_rendered() -> None:
    names = {f"{path.parent.name}-{path.stem}" for path in TEMPLATES}
    for profile in ("dev", "prod"):
        assert {path.name for path in (GOLDEN / profile).iterdir()} == names


def template(name: str) -> Path:
    return ROOT / "templates" / name


def published(given: dict[str, Any], probe: dict[str, Any] | None = None) -> dict[str, Any]:
    return inputs.published(plans.plan("prod", {**GIVEN, **given}, probe={**PROBE, **(probe or {})}), None)


def test_bucket_is_written_without_its_keys_beside_them() -> None:
    s3 = {"bucket": "b", "endpoint": "s3.example.com", "region": "eu", "key": "the-key", "key_secret": "the-secret",
          "port": 9000, "ca_file": "/etc/ca.crt", "uri_style": "path"}  # fmt: skip
    plan = published({"backup_s3": s3})
    main = render(template("backup/pgbackrest.conf.j2"), "prod", plan=plan, backup_s3=s3)
    assert [line for line in main.splitlines() if line.startswith(("repo1-s3", "repo1-storage", "repo1-type"))] == [
        "repo1-type=s3",
        "repo1-s3-bucket=b",
        "repo1-s3-endpoint=s3.example.com",
        "repo1-s3-region=eu",
        "repo1-s3-uri-style=path",
        "repo1-storage-port=9000",
        "repo1-storage-ca-file=/etc/ca.crt",
    ]
    assert "repo1-host" not in main
    secret = render(template("backup/secrets.conf.j2"), "prod", plan=plan, backup_s3=s3)
    assert [line for line in secret.splitlines() if "s3" in line and not line.startswith("#")] == [
        "repo1-s3-key=the-key",
        "repo1-s3-key-secret=the-secret",
    ]


def test_exporters_beyond_the_loopback_speak_tls_and_ask_for_a_password() -> None:
    users = {"prometheus": "$2y$10$" + "a" * 53}
    plan = published({"monitoring_listen_address": "192.0.2.1", "monitoring_users": users})
    text = render(template("monitoring/exporters.yml.j2"), "prod", plan=plan, monitoring_users=users)
    assert "cert_file: /etc/provision/tls/server.crt" in text
    assert yaml.safe_load(text)["basic_auth_users"] == users
    targets = render(template("monitoring/targets.json.j2"), "prod", plan=plan)
    assert '"__scheme__": "https"' in targets


def test_older_pooler_is_limited_by_database() -> None:
    plan = published({}, {"package_versions": {"pgbouncer": "1.18.0-1", "pgbackrest": "2.57.0-1"}})
    assert "max_db_connections=39" in render(template("pgbouncer/databases.ini.j2"), "prod", plan=plan)
    assert "max_prepared_statements" not in render(template("pgbouncer/settings.ini.j2"), "prod", plan=plan)


def test_pooler_limits_the_roles_of_tenants_and_keeps_those_of_your_own() -> None:
    roles = ("acme", "acme_app", "acme_readonly", "reports")
    secrets = {role: {"password": f"a secret of the test for {role}", "salt": plans.SALT} for role in roles}
    plan = published({
        "database_credentials": {**plans.SECRETS["database_credentials"], **secrets},
        "database_tenants": [{"name": "acme", "connection_limit": 8}],
        "database_extra_roles": [{"name": "reports", "kind": "read", "connection_limit": 3}],
    })  # fmt: skip
    lines = render(template("pgbouncer/users.ini.j2"), "prod", plan=plan).splitlines()
    assert [line for line in lines if line.startswith(("acme", "reports"))] == [
        "reports = max_user_connections=25",
        "acme = max_user_connections=2",
        "acme_app = max_user_connections=4",
        "acme_readonly = max_user_connections=2",
    ]


def test_pooler_of_a_member_leads_to_the_primary() -> None:
    member = of_member("prod")["plan"]
    (line,) = [
        line
        for line in render(template("pgbouncer/databases.ini.j2"), "prod", plan=member).splitlines()
        if line.startswith("minion =")
    ]
    assert line.startswith("minion = host=@primary@ port=5432 dbname=minion auth_user=minion_pooler")
    assert "%include /etc/pgbouncer/provision/follow/databases.ini\n" in render(
        template("pgbouncer/pgbouncer.ini.j2"), "prod", plan=member
    )
    assert "server_tls_sslmode = verify-full\n" in render(template("pgbouncer/tls.ini.j2"), "prod", plan=member)
    assert "tcp_user_timeout = 10000\n" in render(template("pgbouncer/settings.ini.j2"), "prod", plan=member)


def test_firewall_lets_the_other_members_in() -> None:
    text = render(template("postgresql/firewall.nft.j2"), "prod", plan=of_member("prod")["plan"])
    assert [line.strip() for line in text.splitlines() if "saddr 192" in line] == [
        f"ip saddr 192.0.2.{number} accept" for number in (1, 2, 3)
    ]


def test_timer_without_a_schedule_never_starts() -> None:
    (off,) = [each for each in plans.plan("dev", GIVEN, probe=PROBE).timers if each.name == "provision-drill"]
    text = render(template("toolkit/provision-timer.timer.j2"), "dev", timer=vars(off))
    assert "OnCalendar=*" not in text


def test_ipv6_addresses_have_brackets_before_a_port_and_none_for_ssh() -> None:
    given = {
        "monitoring_listen_address": "fd00::5",
        "backup_repository_host": "fd00::9",
        "backup_repository_port": 2222,
    }
    plan = published({**given, "postgresql_listen_addresses": ["::"]}, {"addresses": ["fd00::5"]})
    hosts = {"db1": {"ansible_host": "fd00::5"}}
    targets = json.loads(render(template("monitoring/targets.json.j2"), "prod", plan=plan, hostvars=hosts))
    assert [each["targets"] for each in targets] == [["[fd00::5]:9100"], ["[fd00::5]:9187"]]
    exporter = render(template("monitoring/prometheus-node-exporter.conf.j2"), "prod", plan=plan)
    assert "--web.listen-address=[fd00::5]:9100 " in exporter
    ssh = render(template("backup/ssh.conf.j2"), "prod", plan=plan)
    assert "Match host fd00::9 user pgbackrest-db1\n  Port 2222\n" in ssh
    assert "repo1-host=fd00::9\n" in render(template("backup/pgbackrest.conf.j2"), "prod", plan=plan)
    assert plan["backup"]["repository"]["known_host"] == "[fd00::9]:2222"


def test_url_of_a_host_on_ipv6_has_brackets() -> None:
    given = {**GIVEN, "postgresql_listen_addresses": ["::"]}
    found = plans.plan("prod", given, probe={**PROBE, "addresses": ["10.0.0.5", "fd00::5"]}, address="fd00::5")
    application = connect.connection(found)
    assert application.url().startswith("postgresql://minion_app@[fd00::5]:6432/minion?sslmode=verify-full")
    assert application.url(5432).startswith("postgresql://minion_app@[fd00::5]:5432/minion?")
    other = plans.plan("prod", given, probe={**PROBE, "addresses": ["10.0.0.5", "fd00::5"]}, address="10.0.0.5")
    assert connect.connection(other).url(5432).startswith("postgresql://minion_app@[fd00::5]:5432/minion?")


def test_patroni_of_a_worker_has_its_group_and_admits_the_whole_fleet() -> None:
    found = yaml.safe_load(render(template("patroni/config.yml.j2"), "prod", **of_fleet("prod")))
    assert (found["scope"], found["citus"]) == ("minion", {"group": 1, "database": "minion"})
    assert found["restapi"]["allowlist"] == ["127.0.0.1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]
    assert found["bootstrap"]["dcs"]["postgresql"]["parameters"]["shared_preload_libraries"].startswith("citus,")
    rules = render(template("postgresql/firewall.nft.j2"), "prod", **of_fleet("prod"))
    assert "ip saddr 192.0.2.4 tcp dport 5432 accept" in rules


def of_host(name: str) -> dict[str, Any]:
    """Give the variables of a host in a cluster with a pooler that has no server, app1."""
    hosts, alone = topologies.listed(poolers=("app1",)), name == "app1"
    given = {"pgbouncer_listen_addresses": ["*"], "postgresql_listen_addresses": ["*"]}
    judge = validate.judge_other if alone else validate.judge
    found = topologies.built(name, given, hosts=hosts, database=not alone, judge=judge)
    assert found.plan, found.problems
    return {"plan": inputs.published(found.plan, found.state), "cluster_passphrase": topologies.PASSPHRASE}


def test_pooler_without_a_server_leads_to_the_primary_with_its_own_certificate() -> None:
    given = of_host("app1")
    lines = render(template("pgbouncer/databases.ini.j2"), "prod", **given).splitlines()
    assert [line.partition(" auth_user")[0] for line in lines if line.startswith("minion ")] == [
        "minion = host=@primary@ port=5432 dbname=minion"
    ]
    assert "%include /etc/pgbouncer/provision/follow/databases.ini" in render(
        template("pgbouncer/pgbouncer.ini.j2"), "prod", **given
    )
    tls = render(template("pgbouncer/tls.ini.j2"), "prod", **given)
    assert "server_tls_sslmode = verify-full" in tls
    assert "server_tls_cert_file = /etc/provision/tls/pooler-client.crt" in tls
    assert "tcp_user_timeout = 10000" in render(template("pgbouncer/settings.ini.j2"), "prod", **given)


def test_firewall_limits_a_pooler_without_a_server_and_lets_it_reach_the_members() -> None:
    rules = render(template("postgresql/firewall.nft.j2"), "prod", **of_host("app1"))
    assert "tcp dport 6432 ct state new jump pgbouncer" in rules
    assert "5432" not in rules
    assert "accept" not in rules.replace("policy accept", "").replace('iif "lo" accept', "")
    member = render(template("postgresql/firewall.nft.j2"), "prod", **of_host("db1"))
    assert member.count("ip saddr 192.0.2.103 tcp dport 5432 accept") == 1
    assert member.count("192.0.2.103") == 1


@pytest.mark.parametrize(
    ("name", "users", "rest"), [("db1", ["patroni", "pooler"], True), ("app1", ["follower"], False)]
)
def test_hosts_of_a_cluster_have_the_passwords_that_they_need(name: str, users: list[str], rest: bool) -> None:
    engine = Templar(loader=DataLoader(), variables={**variables("prod", "mirror"), **of_host(name)})
    (file,) = engine.template(trust_as_template("{{ __etcd_secrets }}"))
    found = json.loads(file["content"])
    assert (list(found["etcd"]), "rest" in found) == (users, rest)
