"""What the controller reads for a plan: inventories' paths, the authority's folder, the user's own certificate."""

from __future__ import annotations

from pathlib import Path

from provision.controller import inputs
from tests import plans


def test_authority_is_beside_the_hosts_of_the_first_inventory_that_exists(tmp_path: Path) -> None:
    (tmp_path / "prod").mkdir()
    hosts = tmp_path / "other" / "hosts.yml"
    hosts.parent.mkdir()
    hosts.touch()
    project = Path("/p")
    assert inputs.tls_directory([str(tmp_path / "prod"), str(hosts)], project, "prod") == f"{tmp_path}/prod/tls"
    assert inputs.tls_directory([str(hosts), str(tmp_path / "prod")], project, "prod") == f"{tmp_path}/other/tls"
    assert inputs.tls_directory(["db1,"], project, "dev") == "/p/inventories/dev/tls"


def test_inventory_is_named_as_it_is_typed_in_the_project(tmp_path: Path) -> None:
    inside = tmp_path / "inventories" / "prod"
    inside.mkdir(parents=True)
    assert inputs.relative(str(inside), tmp_path) == "inventories/prod"
    assert inputs.relative("/etc/ansible/hosts", tmp_path) == "/etc/ansible/hosts"
    assert inputs.relative("db1,", tmp_path) == "db1,"


def context(tmp_path: Path, **values: str) -> tuple[str, ...]:
    return inputs.context(
        {"postgresql_repository": "distribution", **values},
        name="db1",
        address="db1",
        sources=[],
        roles=["minion.provision.postgresql", "plan"],
        groups={},
        root=tmp_path,
        toolkit="",
    ).provided


def test_own_certificate_files_that_are_missing_or_open_to_others_are_named(tmp_path: Path) -> None:
    key, certificate = tmp_path / "a.key", tmp_path / "a.crt"
    key.touch()
    certificate.touch()
    key.chmod(0o640)
    given = {"tls_provided_certificate": str(certificate), "tls_provided_key": str(key)}
    assert context(tmp_path, **given, tls_provided_ca="/none/ca.crt") == (
        f"tls_provided_key {key}: mode 0640 gives other users access to the key; expected 0600",
        "tls_provided_ca /none/ca.crt: No such file or directory",
    )
    key.chmod(0o600)
    assert context(tmp_path, **given, tls_provided_ca=str(certificate)) == ()
    assert context(tmp_path, **given, tls_provided_ca="") == ()  # refused by name before any file is read


def test_play_for_hosts_beside_the_databases_is_known_by_its_roles(tmp_path: Path) -> None:
    def database(*roles: str, hosts: tuple[str, ...] = ()) -> bool:
        given, groups = {"postgresql_repository": "distribution"}, {"database": hosts, "backup": ("b",)}
        return inputs.context(
            given, name="b", address="b", sources=[], roles=roles, groups=groups, root=tmp_path, toolkit=""
        ).database

    assert not database("plan", "packages", "minion.provision.tls")
    assert not database("plan", "packages", "minion.provision.tls", hosts=("db1",))
    assert database("plan", "tls", "minion.provision.postgresql")
    # In both groups: the play for backup hosts must not remove the package source.
    assert database("plan", "packages", "minion.provision.tls", hosts=("db1", "b"))


def test_published_plan_has_properties_and_the_state_beside_the_fields() -> None:
    found = plans.built("prod", plans.SAMPLE)
    assert found.plan
    published = inputs.published(found.plan, found.state)
    assert published["server"]["settings_file"] == "/etc/postgresql/17/main/conf.d/50-provision.conf"
    assert published["server"]["data"] == "/var/lib/postgresql/17/main"
    assert published["access"]["monitor"] == "minion_monitor"
    assert published["backup"]["repository"]["place"] == "local:/var/lib/pgbackrest"
    assert published["timers"][0]["name"] == "provision-backup-full"
    assert published["state"]["cluster"] == "absent"
    assert inputs.published(found.plan, None)["state"] == {}


def test_an_old_name_is_read_although_ansible_has_set_the_new_one_to_its_default() -> None:
    found = plans.read(given={"plan_minimum_disk_mb": 2048, "preflight_minimum_disk_mb": "4096"})
    assert found.values["plan_minimum_disk_mb"] == 4096
