"""What a sandbox host may be called and given, what podman's record of it means, and the inventory made of it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from provision.controller import containers, fleet, image, inventory
from provision.controller.containers import Container, Spec
from provision.controller.mirror import Mirror
from provision.controller.sandbox import url
from provision.distributions import by_key
from provision.errors import HostError, UsageError

RECORD: dict[str, Any] = {
    "Name": "provision-0a1b2c3d-db1",
    "State": {"Status": "running", "Pid": 4711},
    "Config": {
        "Labels": {
            containers.LABEL: "/home/ann/db",
            containers.SPEC: json.dumps({"name": "db1", "os": "debian12", "memory": "2g", "shm_size": "1g"}),
        }
    },
    "HostConfig": {
        "PortBindings": {
            "5432/tcp": [{"HostIp": "127.0.0.1", "HostPort": "40001"}],
            "6432/tcp": [{"HostIp": "127.0.0.1", "HostPort": "40002"}],
        }
    },
}
MIRROR = Mirror("http://mirror.example/debian", "", False, ())


@pytest.mark.parametrize("name", ["db1", "a", "db-primary-01", "a" * 32])
def test_takes_a_good_name(name: str) -> None:
    assert containers.check_name(name) == name


@pytest.mark.parametrize("name", ["", "1db", "db_1", "DB", "db-", "-db", "db.one", "a" * 33, "db1\n", "dé"])
def test_refuses_a_bad_name(name: str) -> None:
    with pytest.raises(UsageError, match="invalid host name"):
        containers.check_name(name)


@pytest.mark.parametrize(
    ("text", "size"), [("1024", 1024), ("64k", 65536), ("256m", 268435456), ("2g", 2147483648), ("2GB", 2147483648)]
)
def test_reads_a_size(text: str, size: int) -> None:
    assert containers.size_bytes(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "0", "-1g", "1.5g", "2t", "g", "2 g"])
def test_refuses_a_bad_size_by_the_name_of_its_option(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        containers.size_bytes(text, "--shm-size")
    assert refused.value.where == "--shm-size"


def test_a_new_host_gets_the_defaults_for_what_is_not_asked_for() -> None:
    assert containers.spec_of({"memory": "512m"}) == Spec("", "debian13", "512m", "1g", "database")


def test_a_host_agrees_with_the_same_size_in_another_unit_only() -> None:
    spec = Spec("db1", memory="2g")
    containers.require_agreement(spec, {"memory": "2048m", "os": "debian13"})
    with pytest.raises(HostError, match="db1 exists with another --memory"):
        containers.require_agreement(spec, {"memory": "2047m"})
    with pytest.raises(HostError, match="--shm-size"):
        containers.require_agreement(spec, {"shm_size": "2g"})


def test_projects_do_not_share_names() -> None:
    one, two = containers.prefix(Path("/home/ann/db")), containers.prefix(Path("/home/bob/db"))
    assert one != two
    assert one == containers.prefix(Path("/home/ann/db"))


def test_reads_what_podman_says() -> None:
    each = containers.parse_container(RECORD, {4711}.__contains__)
    assert each == Container(
        Spec("db1", "debian12", "2g", "1g"), "provision-0a1b2c3d-db1", "running", {5432: 40001, 6432: 40002}
    )
    assert each.running


@pytest.mark.parametrize(
    ("said", "alive", "expected"),
    [
        ("running", True, "running"),
        ("running", False, "dead"),
        ("paused", False, "dead"),
        ("stopping", False, "dead"),
        ("paused", True, "paused"),
        ("exited", False, "exited"),
        ("created", False, "created"),
    ],
)
def test_a_container_without_processes_is_dead_whatever_podman_says(said: str, alive: bool, expected: str) -> None:
    record = {**RECORD, "State": {"Status": said, "Pid": 4711}}
    each = containers.parse_container(record, lambda pid: pid == 4711 and alive)
    assert (each.state, each.running) == (expected, expected == "running")


def test_a_process_of_this_machine_is_no_container() -> None:
    assert [containers.is_init(pid) for pid in (os.getpid(), os.getppid(), 0, 2**22 + 1)] == [False] * 4


def test_inventory_puts_each_host_in_its_group_with_key_and_address() -> None:
    hosts = [
        Container(Spec("db1", address="10.1.0.2", variables={"postgresql_version": 17}), "c1", "running", {}),
        Container(Spec("repo", group="backup", address="10.1.0.3"), "c2", "running", {}),
    ]
    text = inventory.render(hosts, Path("/p q/key"), Path("/p q/known_hosts"))
    groups = yaml.safe_load(text)["all"]["children"]
    assert set(groups) == {"database", "backup"}
    assert groups["backup"]["hosts"]["repo"]["ansible_host"] == "10.1.0.3"
    assert groups["database"]["hosts"]["db1"] == {
        "ansible_host": "10.1.0.2",
        "ansible_port": 22,
        "ansible_user": "provision",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": "/p q/key",
        "ansible_ssh_common_args": "-o 'UserKnownHostsFile=\"/p q/known_hosts\"' -o StrictHostKeyChecking=yes",
        "postgresql_version": 17,
    }


@pytest.mark.parametrize(
    "folder", ["plain", "a b", "it's", "50%d", 'say "hi"', "back\\slash", "münchen", "$HOME", "a" * 200, "a  b; c&d"]
)
def test_ssh_and_the_audit_read_the_paths_that_the_inventory_holds(folder: str, tmp_path: Path) -> None:
    key, known = tmp_path / folder / "id", tmp_path / folder / "known_hosts"
    hosts = [Container(Spec("db1", address="10.1.0.2"), "c1", "running", {})]
    file = tmp_path / "inventory.yml"
    file.write_text(inventory.render(hosts, key, known))
    words = yaml.safe_load(file.read_text())["all"]["children"]["database"]["hosts"]["db1"]
    shown = subprocess.run(
        ["ssh", "-G", *shlex.split(words["ansible_ssh_common_args"]), "db1"], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert f"userknownhostsfile {known}\n" in shown.stdout
    (target,) = fleet.read([str(file)])
    assert (target.data["ssh_key"], target.data["ssh_known_hosts_file"]) == (str(key), str(known))


def test_a_path_that_ssh_would_expand_is_refused() -> None:
    with pytest.raises(HostError, match="path has characters that ssh and Ansible expand"):
        inventory.escape(Path("/home/${USER}/clone"))


def test_image_changes_with_release_mirror_and_local_certificates_and_with_nothing_else() -> None:
    tag = image.tag(by_key("debian13"), MIRROR, {})
    assert tag.startswith("localhost/provision-sandbox:debian13-")
    assert tag == image.tag(by_key("debian13"), MIRROR, {})
    others = {
        image.tag(by_key("debian12"), MIRROR, {}),
        image.tag(by_key("debian13"), Mirror("http://other.example/debian", "", False, ()), {}),
        image.tag(by_key("debian13"), MIRROR, {"ca.crt": b"one"}),
        image.tag(by_key("debian13"), MIRROR, {"ca.crt": b"two"}),
    }
    assert len(others | {tag}) == 5


def test_image_holds_no_postgresql() -> None:
    command = " ".join(image.build_command(MIRROR, "trixie"))
    assert "postgres" not in command
    assert "openssh-server" in command


def test_image_with_packages_creates_no_cluster_and_its_name_changes_with_base_packages_and_archive() -> None:
    recipe = image.containerfile("localhost/base:1", ["postgresql-17", "pgbackrest"], "a1")
    assert recipe.startswith(
        "FROM localhost/base:1\nLABEL provision.indexes=a1\nRUN echo create_main_cluster = false | install -D "
    )
    assert "apt-get -qqy install --no-install-recommends postgresql-17 pgbackrest && " in recipe
    assert recipe.endswith(" && rm /etc/postgresql-common/createcluster.d/00-image.conf\n")
    tags = {
        image.derived_tag(image.PACKAGES_REPOSITORY, "debian13", each)
        for each in (
            recipe,
            image.containerfile("localhost/base:2", ["postgresql-17", "pgbackrest"], "a1"),
            image.containerfile("localhost/base:1", ["postgresql-17"], "a1"),
            image.containerfile("localhost/base:1", ["postgresql-17", "pgbackrest"], "b2"),
        )
    }
    assert len(tags) == 4
    assert all(tag.startswith("localhost/provision-packages:debian13-") for tag in tags)
    assert image.REPOSITORIES[-1] == image.REPOSITORY  # a parent is removed after its children


def test_url_encodes_what_would_end_a_part_of_it() -> None:
    assert url("minion", "a:b/c@d%e", 5433, "my db") == "postgresql://minion:a%3Ab%2Fc%40d%25e@127.0.0.1:5433/my%20db"
