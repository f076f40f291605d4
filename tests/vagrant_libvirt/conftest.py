"""A libvirt to talk to: the one that runs on this machine, or one that is started for the run and ended with it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from provision.distributions import DEFAULT_KEY
from tests.until import until
from tests.vagrant_libvirt import box

SYSTEM = "qemu:///system"
START_TIMEOUT_S = 30
KINDS = {"domains": ("list", "--all"), "networks": ("net-list", "--all"), "pools": ("pool-list", "--all")}


@dataclass(frozen=True)
class Libvirt:
    """A libvirt, by its URI."""

    uri: str

    def virsh(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["virsh", "-c", self.uri, *words], capture_output=True, text=True, check=check)

    def names(self, kind: str) -> set[str]:
        """Name what there is of a kind."""
        return set(self.virsh(*KINDS[kind], "--name").stdout.split())

    def volumes(self) -> set[str]:
        """Name every disk, as POOL/NAME."""
        pools = self.names("pools")
        rows = {pool: self.virsh("vol-list", pool).stdout.splitlines()[2:] for pool in pools}
        return {f"{pool}/{row.split()[0]}" for pool, lines in rows.items() for row in lines if row.strip()}

    def has(self) -> dict[str, set[str]]:
        """Give all that a machine could leave behind."""
        return {**{kind: self.names(kind) for kind in KINDS}, "volumes": self.volumes()}

    def remove(self, name: str) -> None:
        """Remove what `has` named as a pool or a volume."""
        pool, _, volume = name.partition("/")
        if volume:
            self.virsh("vol-delete", "--pool", pool, volume)
        else:
            self.virsh("pool-destroy", pool)
            self.virsh("pool-undefine", pool)


@contextmanager
def running(*words: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a program running, and end that one."""
    with log.open("wb") as stream, subprocess.Popen(words, stdout=stream, stderr=stream) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def started(folder: Path) -> Iterator[Libvirt]:
    """Start a libvirtd with sockets in a folder that nobody else may enter."""
    folder.chmod(0o700)
    settings = folder / "libvirtd.conf"
    settings.write_text(f'unix_sock_dir = "{folder}"\nauth_unix_ro = "none"\nauth_unix_rw = "none"\n')
    found = Libvirt(f"{SYSTEM}?socket={folder}/libvirt-sock")
    log = folder / "libvirtd.log"
    with ExitStack() as stack:
        if not Path("/run/libvirt/virtlogd-sock").is_socket():  # it takes what machines print
            stack.enter_context(running("virtlogd", log=folder / "virtlogd.log"))
        words = ("libvirtd", "--config", str(settings), "--pid-file", str(folder / "pid"))
        process = stack.enter_context(running(*words, log=log))
        answers = until(
            lambda: process.poll() is not None or found.virsh("version", check=False).returncode == 0, START_TIMEOUT_S
        )
        assert answers, log.read_text()
        assert process.poll() is None, log.read_text()
        yield found


@pytest.fixture(scope="session")
def libvirt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirt]:
    with ExitStack() as stack:
        found = Libvirt(SYSTEM)
        if found.virsh("version", check=False).returncode:
            found = stack.enter_context(started(tmp_path_factory.mktemp("libvirt")))
        before = found.has()
        try:
            yield found
        finally:  # the box's disk and the pool, which vagrant-libvirt keeps for the next machine
            after = found.has()
            for kind in ("volumes", "pools"):
                for name in after[kind] - before[kind]:
                    found.remove(name)


@pytest.fixture(scope="session")
def os_name() -> str:
    return os.environ.get("MINION_OS", DEFAULT_KEY)


@pytest.fixture(scope="session")
def made_box(os_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("box") / f"{os_name}.box"
    box.make(os_name, box.vagrant_key(), path)
    return path
