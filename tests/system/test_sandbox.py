"""`provision sandbox` makes real hosts, leaves them alone, refuses what it cannot do, and removes every trace."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from provision.controller import image, mirror, sockets
from provision.controller.machine import Machine
from provision.errors import HostError
from tests.sandboxes import PROGRAM, Host, Hosts
from tests.until import until

SENT = "from the other side"
LISTENER = f"""
import socket
with socket.create_server(("0.0.0.0", 5432)) as server:
    connection, _ = server.accept()
    connection.sendall(b"{SENT}")
"""


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Hosts that no other file's tests have made into something else."""
    with Hosts.made(tmp_path_factory.mktemp("project")) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def db1(sandbox: Hosts) -> Host:
    return sandbox.up("db1", shm_size="256m", memory="1g")


@pytest.fixture(scope="module")
def old(sandbox: Hosts) -> Host:
    return sandbox.up("old", os="debian12", group="client")


def identity(host: Host) -> str:
    """What a host that was made again, or booted again, does not keep."""
    return host.run("cat /proc/sys/kernel/hostname /etc/machine-id; stat -c %Z /proc/1").stdout


def podman(*words: str) -> str:
    return subprocess.run(["podman", *words], capture_output=True, text=True, check=True).stdout.strip()


# What a host is


def test_host_has_systemd_and_ansible_reaches_it(db1: Host) -> None:
    assert db1.run("systemctl is-system-running").stdout.strip() == "running"
    answer = db1.ansible("--become", "-m", "command", "-a", "id --user --name")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.splitlines()[-1] == "root"


def test_host_has_the_release_and_the_limits_that_were_asked_for(db1: Host, old: Host) -> None:
    assert "trixie" in db1.run("cat /etc/os-release").stdout
    assert "bookworm" in old.run("cat /etc/os-release").stdout
    assert db1.run("df --block-size=1M --output=size /dev/shm | tail -1").stdout.strip() == "256"
    limit = db1.run("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null")
    assert limit.stdout.strip() == str(1024**3)


def test_host_is_bare(db1: Host) -> None:
    assert db1.run("dpkg-query --list 'postgresql*' 'libpq*'").returncode != 0


def test_hosts_find_each_other_by_name_and_address(db1: Host, old: Host) -> None:
    for target in ("old", old.address):
        words = f"import socket; print(socket.create_connection(('{target}', 22), 5).recv(4))"
        assert db1.run(f'python3 -c "{words}"').stdout.strip() == "b'SSH-'"


def test_database_port_is_published_on_this_machine(db1: Host) -> None:
    words = db1.sandbox.words(db1.container, "timeout", "20", "python3", "-c", LISTENER)
    with subprocess.Popen(words) as listener:
        received, until = b"", time.monotonic() + 10
        while not received and time.monotonic() < until:
            with suppress(ConnectionError), socket.create_connection(("127.0.0.1", db1.ports[5432]), 5) as connection:
                received = connection.recv(100)
        assert received.decode() == SENT
        assert listener.wait(10) == 0


def test_each_host_has_an_ssh_key_of_its_own(db1: Host, old: Host) -> None:
    keys = [host.run("cat /etc/ssh/ssh_host_*_key.pub").stdout.split()[1] for host in (db1, old)]
    assert keys[0] != keys[1]


def test_inventory_says_what_the_releases_offer(db1: Host, old: Host) -> None:
    groups = yaml.safe_load(db1.inventory.read_text())["all"]["children"]
    assert set(groups) == {"database", "client"}
    trixie, bookworm = groups["database"]["hosts"][db1.name], groups["client"]["hosts"][old.name]
    chosen = ("postgresql_version", "postgresql_repository", "pgvector_install_method")
    assert [trixie[key] for key in chosen] == [17, "distribution", "package"]
    assert [bookworm[key] for key in chosen] == [15, "distribution", "source"]


def test_source_of_pgvector_can_be_fetched_and_has_the_checksum(old: Host) -> None:
    variables = old.container.spec.variables
    assert tuple(map(int, variables["pgvector_version"].split("."))) >= (0, 8, 0)
    fetch = f"/usr/lib/apt/apt-helper download-file {variables['pgvector_source_url']} /tmp/pgvector.tar.gz"
    answer = old.run(f"{fetch} SHA256:{variables['pgvector_source_sha256']} && tar -tzf /tmp/pgvector.tar.gz")
    assert answer.returncode == 0, answer.stderr
    assert "/vector.control" in answer.stdout


# Again


def test_up_leaves_a_running_host_alone(sandbox: Hosts, db1: Host) -> None:
    before = identity(db1)
    answer = sandbox.provision("up", "db1", "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)[0]["address"] == db1.address
    assert identity(db1) == before


def test_up_starts_a_stopped_host_once_its_ports_are_free(sandbox: Hosts, old: Host) -> None:
    old.run("echo kept > /root/kept")
    podman("stop", "--time=0", old.container.container)
    assert "old is not running" in sandbox.provision("exec", "old", "--", "true").stderr
    with socket.create_server(("127.0.0.1", old.ports[5432])):
        refused = sandbox.provision("up", "old")
    assert refused.returncode == 1
    assert f"port {old.ports[5432]} of this machine, for its port 5432, is in use" in refused.stderr
    assert f"pid={os.getpid()}" in refused.stderr
    again = sandbox.up("old")
    assert (again.address, again.ports) == (old.address, old.ports)
    assert again.run("cat /root/kept").stdout == "kept\n"
    assert again.ansible("-m", "ping").returncode == 0


@pytest.mark.parametrize(
    "then",
    [
        pytest.param((), id="kill"),
        pytest.param(("restart", "--time=0"), id="restart", marks=pytest.mark.faults),
        pytest.param(("stop", "--time=0"), id="stop", marks=pytest.mark.faults),
    ],
)
def test_up_starts_a_host_whose_processes_are_gone_with_its_data(
    sandbox: Hosts, old: Host, then: tuple[str, ...]
) -> None:
    """As after a reboot: podman goes on calling it running, and its own commands make it worse."""
    name = old.container.container
    old.run("echo kept > /root/kept")
    for field in ("ConmonPid", "Pid"):
        os.kill(int(podman("container", "inspect", f"--format={{{{.State.{field}}}}}", name)), signal.SIGKILL)
    if then:
        subprocess.run(["podman", *then, name], capture_output=True, check=False, timeout=60)
    listed = json.loads(sandbox.provision("list", "--json").stdout)
    assert [each["state"] for each in listed if each["name"] == "old"] == ["dead"]
    refused = sandbox.provision("exec", "old", "--", "true")
    assert (refused.returncode, "next:    provision sandbox up old" in refused.stderr) == (1, True)
    again = sandbox.provision("up", "old")
    assert again.returncode == 0, again.stderr
    assert "old has no processes, although podman reports it as running: starting it with its data" in again.stderr
    assert old.run("cat /root/kept").stdout == "kept\n"
    assert old.ansible("-m", "ping").returncode == 0


def test_up_resumes_a_paused_host(sandbox: Hosts, old: Host) -> None:
    before = identity(old)
    podman("pause", old.container.container)
    assert "was paused: resuming it" in sandbox.provision("up", "old").stderr
    assert identity(old) == before


@pytest.mark.faults
def test_up_makes_a_lost_network_again_for_the_hosts_that_are_there(project: Hosts) -> None:
    host = project.up("one", group="client")
    podman("stop", "--time=0", host.container.container)
    Path("/etc/containers/networks", f"{project.sandbox.prefix}.json").unlink()
    again = project.up("one")
    assert again.address == host.address
    assert again.ansible("-m", "ping").returncode == 0


@pytest.mark.faults
def test_up_restores_lost_keys(sandbox: Hosts, db1: Host) -> None:
    for path in (sandbox.sandbox.folder.key, sandbox.sandbox.folder.known_hosts, sandbox.inventory):
        path.unlink()
    sandbox.up("db1")
    assert db1.ansible("-m", "ping").returncode == 0


def test_two_at_once_make_one_host(project: Hosts) -> None:
    words = [str(PROGRAM), "sandbox", "--project", str(project.project), "up", "db1"]
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    narration = [each.communicate(timeout=60)[1] for each in both]
    assert [each.returncode for each in both] == [0, 0], narration
    assert sum("creating db1" in text for text in narration) == 1
    assert any("waiting for another" in text for text in narration)
    assert len(project.sandbox.hosts()) == 1


def test_new_host_gets_other_ports_if_one_is_taken_before_it_starts(
    project: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any connection of this machine can take a port between its choice and the host's start."""
    taken: list[socket.socket] = []

    def choose(inner: Iterable[int], *, fixed: bool) -> dict[int, int]:
        ports = choose_free(inner, fixed=fixed)
        if not taken:
            taken.append(socket.create_server(("127.0.0.1", ports[6432])))
        return ports

    choose_free = sockets.choose
    monkeypatch.setattr(sockets, "choose", choose)
    host = project.up("one")
    with taken[0]:
        assert taken[0].getsockname()[1] not in host.container.ports.values()
    assert host.ansible("-m", "ping").returncode == 0


# Refusals


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--os", "debian11"], "allowed: debian12, debian13"),
        (["--memory", "lots"], "allowed: a number with k, m or g, such as 256m or 2g"),
        (["--shm-size", "-1"], "--shm-size"),
        (["--group", "web"], "allowed: database, dcs, pooler, backup, client"),
        (["Db_1"], "'Db_1'"),
        (["--", "-db"], "'-db'"),
    ],
)
def test_up_refuses_a_bad_value(sandbox: Hosts, words: list[str], expected: str) -> None:
    answer = sandbox.provision("up", *words)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert expected in answer.stderr


@pytest.mark.parametrize(
    ("option", "value", "seen"),
    [("--os", "debian12", "debian13"), ("--memory", "2g", "1g")],
)
def test_up_refuses_to_change_a_host(sandbox: Hosts, db1: Host, option: str, value: str, seen: str) -> None:
    answer = sandbox.provision("up", "db1", option, value)
    assert answer.returncode == 1
    assert f"db1 exists with another {option}" in answer.stderr
    assert f"seen:    {option} {seen}" in answer.stderr
    assert db1.run("true").returncode == 0


def test_same_size_in_another_unit_is_the_same(sandbox: Hosts, db1: Host) -> None:
    assert sandbox.provision("up", db1.name, "--memory", "1024m").returncode == 0


def test_up_refuses_the_name_of_a_foreign_container(sandbox: Hosts, db1: Host) -> None:
    name = f"{sandbox.sandbox.prefix}-foreign"
    podman("create", f"--name={name}", podman("inspect", "--format={{.ImageName}}", db1.container.container))
    try:
        answer = sandbox.provision("up", "foreign")
        assert answer.returncode == 1
        assert f"the name {name} belongs to a container that provision did not create" in answer.stderr
        assert podman("inspect", "--format={{.State.Status}}", name) == "created"
    finally:
        podman("rm", "--force", name)


def test_up_names_the_mirror_that_does_not_answer(project: Hosts) -> None:
    answer = project.provision("up", "--mirror", "http://127.0.0.1:9/debian")
    assert answer.returncode == 1
    assert "where:   http://127.0.0.1:9/debian/dists/trixie/InRelease" in answer.stderr
    assert "Connection refused" in answer.stderr
    assert project.sandbox.hosts() == []


def test_refuses_a_user_without_rights() -> None:
    words = "import os; from provision.controller import machine; os.setuid(65534); machine.Machine()"
    answer = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False)
    assert "sandbox hosts need root privileges on this machine" in answer.stderr
    assert "user id 65534" in answer.stderr


@pytest.mark.parametrize("words", [["exec", "nobody", "--", "true"], ["url", "nobody"], ["down", "nobody"]])
def test_unknown_host_is_named_with_those_that_are_there(sandbox: Hosts, db1: Host, words: list[str]) -> None:
    answer = sandbox.provision(*words)
    assert answer.returncode == 1
    assert "no sandbox host nobody" in answer.stderr
    assert db1.name in answer.stderr


def test_killed_build_leaves_no_image() -> None:
    machine = Machine()
    source = mirror.find("bookworm" if "bookworm" in Path("/etc/os-release").read_text() else "trixie")
    tag = f"{image.REPOSITORY}:killed"
    script = f"""
from provision.errors import HostError
from provision.controller import image, machine, mirror
source = mirror.{source!r}
machine.Machine().apply("failed", image.build, {tag!r}, source, "trixie")
"""
    build = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        partial = Path(image.BUILD_FOLDER, "trixie.tar.partial")
        assert until(partial.exists, 20)
        time.sleep(1)
    finally:
        os.killpg(build.pid, signal.SIGKILL)
        build.wait()
    assert not Path(image.BUILD_FOLDER, "trixie.tar").exists()
    assert subprocess.run(["podman", "image", "exists", tag], check=False).returncode == 1
    # The next build clears what is left, also when it fails itself.
    with pytest.raises(HostError, match="nonesuch Release"):
        machine.apply("cannot make it", image.build, tag, source, "nonesuch")
    assert not Path(image.BUILD_FOLDER).exists()
    assert subprocess.run(["podman", "image", "exists", tag], check=False).returncode == 1


# Use


def test_exec_passes_input_output_and_exit_code(sandbox: Hosts, db1: Host) -> None:
    words = [
        str(PROGRAM),
        "sandbox",
        "--project",
        str(sandbox.project),
        "exec",
        db1.name,
        "--",
        "sh",
        "-c",
        "cat; exit 7",
    ]
    answer = subprocess.run(words, input="through\n", capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (7, "through\n")


def test_url_takes_the_password_from_the_dev_inventory(sandbox: Hosts, db1: Host) -> None:
    missing = sandbox.provision("url", "db1")
    assert missing.returncode == 1
    assert "allowed: database_owner, database_name, and the owner's password" in missing.stderr
    variables = sandbox.project / "inventories" / "dev" / "group_vars" / "all.yml"
    variables.parent.mkdir(parents=True)
    variables.with_name("hosts.yml").touch()
    credentials = {"minion": {"password": "p@ss/wörd"}}
    settings = {"database_owner": "minion", "database_name": "minion", "database_credentials": credentials}
    variables.write_text(yaml.safe_dump(settings))
    answer = sandbox.provision("url")
    assert answer.stdout == f"postgresql://minion:p%40ss%2Fw%C3%B6rd@127.0.0.1:{db1.ports[5432]}/minion\n", (
        answer.stderr
    )


def test_first_host_has_the_fixed_ports_if_they_are_free(sandbox: Hosts, db1: Host) -> None:
    for inner, outer in db1.ports.items():
        assert outer == inner or outer > 1024
    assert len(set(db1.ports.values())) == 2
    rows = sandbox.provision("list").stdout.splitlines()
    assert rows[0].split()[0] == "NAME"
    assert str(db1.ports[5432]) in next(row for row in rows if row.startswith("db1 "))


# Down


def test_down_removes_one_host_then_every_trace_and_no_one_elses(project: Hosts, db1: Host) -> None:
    made = project.provision("up", "--hosts", "one,two")
    assert made.returncode == 0, made.stderr
    assert project.sandbox.down(["one"]) == ["one"]
    assert set(yaml.safe_load(project.inventory.read_text())["all"]["children"]["database"]["hosts"]) == {"two"}
    last = project.provision("down")
    assert (last.returncode, last.stdout) == (0, "two\n")
    prefix = project.sandbox.prefix
    assert podman("ps", "--all", "--quiet", f"--filter=name={prefix}") == ""
    assert podman("network", "ls", "--quiet", f"--filter=name={prefix}") == ""
    assert list(project.project.iterdir()) == []
    assert project.sandbox.down() == []
    assert db1.ansible("-m", "ping").returncode == 0
