"""`inventories/local` makes a database of the very machine: while an image is built, then in that image, booted.

One image is built as its page says, without systemd, by the ansible of the distribution. Two containers come of
it: one whose first process is `sleep`, one that boots systemd.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.controller import containers
from provision.controller.containers import spec_of
from provision.controller.sandbox import Sandbox
from tests.system import checkouts
from tests.system.playbooks import Run

PLAY = "PYTHONPATH=. ANSIBLE_NOCOLOR=1 COLUMNS=200 ansible-playbook site.yml -i inventories/local"
# As docs/localhost.md has it; FROM is what the Debian archive gives.
CONTAINERFILE = f"""FROM {{base}}
RUN apt-get -q update && apt-get -qy install --no-install-recommends ansible sudo
ADD project.tar /src
WORKDIR /src
RUN {PLAY} > /root/built.log && pg_ctlcluster 17 main stop
"""
LIMITS = [*containers.limits(), "--shm-size=256m"]


def podman(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["podman", *containers.runtime(), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


class Machine:
    """A container, and what is run in it as root."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return podman("exec", self.name, "sh", "-c", command, check=False)

    def play(self, *arguments: str) -> Run:
        done = self.run(f"cd /src && {PLAY} {' '.join(arguments)} 2>&1")
        return Run(done.returncode, done.stdout)

    def tables(self) -> str:
        """Ask as a user of the machine does: with the published password, over TCP."""
        url = "postgresql://minion:minion_secret@127.0.0.1:5432/minion"
        return self.run(
            f"psql -XAtc \"SELECT count(*) FROM pg_tables WHERE tableowner = 'minion'\" {url}"
        ).stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("image")
    base = Sandbox(Path(folder)).prepare(spec_of({"os": "debian13"}))[1]
    name = f"localhost/provision-test-local:{secrets.token_hex(4)}"
    (folder / "project.tar").write_bytes(checkouts.archive())
    (folder / "Containerfile").write_text(CONTAINERFILE.format(base=base))
    limits = [word for word in LIMITS if word.startswith("--ulimit")]
    try:
        podman("build", "--quiet", "--tag", name, *limits, "--shm-size=256m", str(folder))
        yield name
    finally:
        podman("rmi", "--force", name, check=False)


@pytest.fixture
def machine(image: str, request: pytest.FixtureRequest) -> Iterator[Machine]:
    made = Machine(f"provision-test-local-{secrets.token_hex(4)}")
    podman("run", "--detach", f"--name={made.name}", *LIMITS, *request.param[0], image, *request.param[1])
    try:
        yield made
    finally:
        podman("rm", "--force", "--time=0", "--volumes", made.name, check=False)


BOOT = """for _ in $(seq 200); do
  case $(systemctl is-system-running --wait 2>&1) in running | degraded) exit 0 ;; esac
  sleep 0.2
done
systemctl --failed; exit 1"""
Kind = tuple[list[str], list[str]]  # podman's options, and the first process
PLAIN: Kind = ([], ["sleep", "infinity"])
BOOTED: Kind = (["--systemd=always"], ["/sbin/init"])


@pytest.mark.parametrize("machine", [PLAIN], indirect=True, ids=["plain"])
def test_image_that_was_built_without_systemd_serves_once_it_is_started(machine: Machine) -> None:
    built = machine.run("cat /root/built.log").stdout
    for part in (
        "systemd is not running: start the server with pg_ctlcluster 17 main start after each boot",
        "the pooler, the exporters and every timer",
        "PostgreSQL 17 comes from the distribution, not the default 14",
        "verified by writing a memory and finding it by vector (rolled back)",
    ):
        assert part in built, built
    state = machine.run(
        "LC_ALL=C /usr/lib/postgresql/17/bin/pg_controldata /var/lib/postgresql/17/main | grep 'cluster state'"
    )
    assert state.stdout.split(":")[1].strip() == "shut down"  # whole, not to be recovered at the first start
    started = machine.run("pg_ctlcluster 17 main start")
    assert started.returncode == 0, started.stderr
    assert machine.tables() == "11"
    assert (
        machine.run("psql -XAtc 'SHOW listen_addresses' postgresql://minion:minion_secret@127.0.0.1/minion").stdout
        == "localhost\n"
    )
    again = machine.play()
    assert again.code == 0, again.output
    assert {name: row.changed for name, row in again.recap.items()} == {"localhost": 0}, again.output


@pytest.mark.parametrize("machine", [BOOTED], indirect=True, ids=["systemd"])
def test_machine_with_systemd_gets_its_unit_and_its_timers(machine: Machine) -> None:
    booted = machine.run(BOOT)
    assert booted.returncode == 0, booted.stdout
    first = machine.play()
    assert first.code == 0, first.output
    assert "systemd is not running" not in first.output
    assert machine.run("systemctl is-active postgresql@17-main.service").stdout.strip() == "active"
    timers = json.loads(machine.run("systemctl list-timers 'provision-*' --output=json").stdout)
    assert "provision-backup-logical.timer" in {each["unit"] for each in timers}
    assert machine.tables() == "11"
