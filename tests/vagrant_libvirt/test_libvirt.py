"""`vagrant up --provider=libvirt` from a clean clone, with a box made here, emulated: up, used, again, gone."""

from __future__ import annotations

import errno
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from provision.distributions import by_key
from tests.system import checkouts
from tests.system.test_vagrant import URL, Vagrant, recap
from tests.vagrant_libvirt.conftest import Libvirt

BOX = "provision/test"
UP_TIMEOUT_S = 3600  # emulated: all takes many times longer than it would


@pytest.fixture(scope="module")
def before(libvirt: Libvirt) -> dict[str, set[str]]:
    return libvirt.has()


@pytest.fixture(scope="module")
def vagrant(
    libvirt: Libvirt,
    before: dict[str, set[str]],
    made_box: Path,
    os_name: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Vagrant]:
    assert "networks" in before  # read before anything is made
    clone, home = checkouts.clone(tmp_path_factory.mktemp("clone")), tmp_path_factory.mktemp("home")
    made = Vagrant(clone, home, UP_TIMEOUT_S, {"LIBVIRT_DEFAULT_URI": libvirt.uri})
    added = made.run("box", "add", "--name", BOX, str(made_box))
    assert added.returncode == 0, added.stdout
    wanted = {"MINION_BOX": BOX, "MINION_OS": os_name, "MINION_REPOSITORY": "distribution", "MINION_DRIVER": "qemu"}
    try:
        with taken(5432):
            made.up = made.run("up", "--provider=libvirt", **wanted)
        yield made
    finally:
        with suppress(subprocess.TimeoutExpired):
            made.run("destroy", "-f")


@contextmanager
def taken(port: int) -> Iterator[None]:
    """Keep a port of this machine taken: by another program while it has it, and by us as soon as it ends."""
    ended = threading.Event()

    def hold() -> None:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            while not ended.wait(0.02):
                try:
                    listener.bind(("127.0.0.1", port))
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                else:
                    listener.listen()
                    ended.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_url_leads_to_the_database_through_a_port_that_was_free(vagrant: Vagrant, os_name: str) -> None:
    assert vagrant.up is not None
    assert vagrant.up.returncode == 0, vagrant.up.stdout
    urls = URL.findall(vagrant.up.stdout)
    assert len(urls) == 1, vagrant.up.stdout
    assert ":5432/" not in urls[0]
    major = by_key(os_name).postgresql
    assert f"PostgreSQL {major} of the distribution, not the default 14: PGDG is not used" in vagrant.up.stdout
    words = ["psql", urls[0], "-XAtc", "SELECT current_setting('provision.guard'), count(*) FROM agents"]
    asked = subprocess.run(words, capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == "off|0"
    with psycopg.connect(urls[0]) as connection:
        assert connection.info.server_version // 10000 == major
        place = connection.execute("SELECT inet_server_addr() << '192.168.121.0/24'").fetchone()
        assert place == (True,)  # vagrant-libvirt's own network: no other server of this machine


def test_guest_is_an_emulated_machine_of_the_release(vagrant: Vagrant, os_name: str, libvirt: Libvirt) -> None:
    asked = vagrant.run("ssh", "db1", "-c", "systemctl is-system-running; cat /etc/os-release; sudo -n id -un")
    assert asked.returncode == 0, asked.stdout
    for word in ("running", by_key(os_name).codename, "root"):
        assert word in asked.stdout
    machine = (vagrant.clone / ".vagrant/machines/db1/libvirt/id").read_text()
    assert "<domain type='qemu'" in libvirt.virsh("dumpxml", machine).stdout


def test_provisioning_again_changes_nothing_and_tells_the_same_url(vagrant: Vagrant) -> None:
    again = vagrant.run("provision")
    assert again.returncode == 0, again.stdout
    assert {name: row.changed for name, row in recap(again.stdout).items()} == {"db1": 0}
    assert vagrant.up is not None
    assert URL.findall(again.stdout) == URL.findall(vagrant.up.stdout)


def test_destroy_leaves_nothing(vagrant: Vagrant, before: dict[str, set[str]], libvirt: Libvirt) -> None:
    assert libvirt.has()["domains"] - before["domains"] == {f"{vagrant.clone.name}_db1"}
    gone = vagrant.run("destroy", "-f")
    assert gone.returncode == 0, gone.stdout
    after = libvirt.has()
    for kind in ("domains", "networks"):
        assert after[kind] == before[kind]
    # The pool and the box's own disk are vagrant-libvirt's, for the next machine.
    left = after["volumes"] - before["volumes"]
    assert [name for name in left if "_vagrant_box_image_" not in name] == []
    assert not (vagrant.clone / ".provision/vagrant").exists()
    assert list((vagrant.clone / ".vagrant/machines").glob("*/*/id")) == []
