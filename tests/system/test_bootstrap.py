"""`provision bootstrap` prepares real hosts for Ansible, by SSH and through a connector, and says what it would do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandboxes import Answer, Host, Hosts, provision


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Hosts that no other file's tests have made into something else."""
    with Hosts.made(tmp_path_factory.mktemp("project")) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def db1(sandbox: Hosts) -> Host:
    return sandbox.up("db1")


@pytest.fixture(scope="module")
def key(db1: Host) -> Path:
    return db1.sandbox.folder.key


def bootstrap(host: Host, *words: str | Path, ssh_user: str = "provision") -> Answer:
    folder = host.sandbox.folder
    access: list[str | Path] = ["--ssh-user", ssh_user, "--ssh-key", folder.key, "--known-hosts", folder.known_hosts]
    return provision("bootstrap", *access, "--key", folder.public_key, *words)


def test_prepares_a_host_once_and_says_so_before_and_after(db1: Host) -> None:
    planned = bootstrap(db1, "--user", "deploy", "--check", db1.address)
    assert planned.returncode == 3, planned.stderr
    assert planned.stdout.split(maxsplit=1)[1] == "would change  user deploy with the key; sudo for deploy\n"
    assert db1.run("getent passwd deploy; ls /etc/sudoers.d/deploy").stdout == ""
    done = bootstrap(db1, "--user", "deploy", db1.address)
    assert (done.returncode, done.stdout.split()[1]) == (0, "changed"), done.stderr
    login = db1.ansible("--user", "deploy", "-e", "ansible_user=deploy", "--become", "-m", "command", "-a", "whoami")
    assert login.stdout.splitlines()[-1] == "root", login.stdout + login.stderr
    assert db1.run("stat -c '%a %U' /etc/sudoers.d/deploy").stdout == "440 root\n"
    again = bootstrap(db1, "--user", "deploy", db1.address)
    assert (again.returncode, again.stdout.split()[1:]) == (0, ["ok"])
    assert bootstrap(db1, "--user", "deploy", "--check", db1.address).returncode == 0


def test_names_a_host_that_is_unreachable_and_goes_on(db1: Host) -> None:
    nowhere = "nowhere.invalid"
    answer = bootstrap(db1, "--user", "second", nowhere, db1.address)
    rows = {row.split()[0]: row for row in answer.stdout.splitlines()}
    assert answer.returncode == 1
    assert "cannot connect: Could not resolve hostname" in rows[nowhere]
    assert "changed" in rows[db1.address]
    assert db1.run("id second").returncode == 0


def test_names_a_host_where_sudo_is_refused(db1: Host) -> None:
    made = db1.run(
        "useradd -m plain && install -d -o plain -m 0700 ~plain/.ssh"
        " && install -o plain /home/provision/.ssh/authorized_keys ~plain/.ssh/"
    )
    assert made.returncode == 0, made.stderr
    answer = bootstrap(db1, db1.address, ssh_user="plain")
    assert answer.returncode == 1
    assert "sudo is refused for plain: sudo: a password is required" in answer.stdout


def test_refuses_a_host_whose_key_has_changed(db1: Host, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    real = db1.sandbox.folder.known_hosts.read_text().splitlines()
    ours = next(line for line in real if line.startswith(f"{db1.address} "))
    other = db1.sandbox.folder.public_key.read_text().split()[1]
    known_hosts.write_text(f"{db1.address} ssh-ed25519 {other}\n")
    assert other not in ours
    answer = bootstrap(db1, "--known-hosts", known_hosts, db1.address)
    assert answer.returncode == 1
    assert "does not match" in answer.stdout


def test_remembers_the_key_of_a_new_host(db1: Host, tmp_path: Path) -> None:
    known_hosts = tmp_path / "ssh" / "known_hosts"
    assert bootstrap(db1, "--known-hosts", known_hosts, "--check", db1.address).returncode in (0, 3)
    assert known_hosts.read_text().startswith(db1.address)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--user", "root", "host"], "'root'"),
        (["--user", "a b", "host"], "'a b'"),
        (["@nonsense/host"], "Invalid connector: nonsense"),
    ],
)
def test_refuses_a_bad_call(db1: Host, words: list[str], expected: str) -> None:
    answer = bootstrap(db1, *words)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert expected in answer.stderr


def test_refuses_to_install_a_private_key(db1: Host, key: Path) -> None:
    answer = bootstrap(db1, "--key", key, db1.address)
    assert answer.returncode == 2
    assert "a private key" in answer.stderr
    assert "PRIVATE" not in answer.stdout + answer.stderr


def test_installs_python_and_sudo_through_a_connector(db1: Host) -> None:
    gone = db1.run("SUDO_FORCE_REMOVE=yes dpkg --purge --force-depends sudo python3-apt python3 python3-minimal")
    assert gone.returncode == 0, gone.stderr
    assert db1.run("command -v python3").returncode != 0
    target = f"@podman/{db1.container.container}"
    planned = bootstrap(db1, "--check", target)
    assert (planned.returncode, "would change  install python3, python3-apt, sudo" in planned.stdout) == (3, True)
    assert db1.run("command -v python3").returncode != 0
    done = bootstrap(db1, target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert db1.ansible("--become", "-m", "ping").returncode == 0
    assert bootstrap(db1, target).stdout.split()[1:] == ["ok"]
