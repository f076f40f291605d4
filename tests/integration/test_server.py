"""`provision server` on real servers: loading, reports and refusals; and with Debian's tools in a private /etc."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from provision.errors import HostError
from provision.host.server import configuration
from provision.host.server.cluster import NO_CHECKSUMS
from provision.plan.schema import Plan
from tests import plans
from tests.clusters import Cluster, free_port

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-c", "from provision.cli import main; main()", "server"]
HBA = "local all all trust\nhost all all 127.0.0.1/32 trust\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    made = Cluster.create()
    try:
        with (made.data / "postgresql.conf").open("a") as text:
            text.write("include_dir 'conf.d'\n")
        (made.data / "conf.d").mkdir()
        yield made
    finally:
        made.remove()


@pytest.fixture
def plan(server: Cluster) -> Plan:
    """The plan of a server whose files the test changes; it has loaded them."""
    folder = str(server.data)
    plan = plans.sample(
        server={"data_directory": folder, "configuration_directory": folder, "socket_directory": server.host},
        host={"systemd": False},
        pooler={"enabled": False},
    )
    server.psql("ALTER SYSTEM RESET ALL")
    (server.data / "pg_hba.conf").write_text(HBA)
    place(plan, "work_mem = '4MB'\n")
    configuration.apply(plan)
    return plan


def place(plan: Plan, text: str) -> None:
    """Write our settings; a file of this very moment counts as newer only if the clock has gone on."""
    time.sleep(0.02)
    Path(plan.server.settings_file).write_text(text)


def append(server: Cluster, text: str) -> int:
    """Add a line to postgresql.conf and give the length that it had."""
    path = server.data / "postgresql.conf"
    length = path.stat().st_size
    path.write_text(path.read_text() + text)
    return length


def test_second_call_finds_nothing_to_do(plan: Plan) -> None:
    done = configuration.apply(plan)
    assert not done.changed
    assert (done.pending, done.shadowed, done.overruled) == ((), (), ())


def test_newer_file_is_loaded_before_the_call_ends(plan: Plan, server: Cluster) -> None:
    place(plan, "work_mem = '7MB'\n")
    done = configuration.apply(plan)
    assert (done.started, done.reloaded, done.restarted) == (False, True, False)
    assert server.psql("SHOW work_mem") == "7MB"


def test_access_rules_count_as_newer_files_too(plan: Plan, server: Cluster) -> None:
    time.sleep(0.02)
    (server.data / "pg_hba.conf").write_text(HBA + "host all all 192.0.2.0/24 scram-sha-256\n")
    assert configuration.apply(plan).reloaded


def test_setting_for_a_restart_is_pending_until_the_file_is_as_before(plan: Plan) -> None:
    place(plan, "max_connections = 77\n")
    done = configuration.apply(plan)
    assert done.pending == ("max_connections",)
    assert not done.restarted
    place(plan, "work_mem = '4MB'\n")
    assert configuration.apply(plan).pending == ()


def test_alter_system_is_reported_as_shadowing(plan: Plan, server: Cluster) -> None:
    server.psql("ALTER SYSTEM SET work_mem = '9MB'")
    server.psql("ALTER SYSTEM SET maintenance_work_mem = '99MB'")  # not one of ours
    assert configuration.apply(plan).shadowed == ("work_mem",)


def test_line_after_ours_is_reported_as_overruling(plan: Plan, server: Cluster) -> None:
    path = server.data / "postgresql.conf"
    length = append(server, "work_mem = '5MB'\n")
    try:
        server.psql("SELECT pg_reload_conf()")
        line = len(path.read_text().splitlines())
        assert configuration.apply(plan).overruled == (f"work_mem is set again in {path} line {line}",)
    finally:
        os.truncate(path, length)
        server.psql("SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    ("name", "text", "seen"),
    [
        ("pg_hba.conf", HBA + "host all all 192.0.2.0/33 scram-sha-256\n", "pg_hba.conf line 3: invalid CIDR mask"),
        ("conf.d/50-provision.conf", "no_such = 1\n", "conf.d/50-provision.conf line 1: unrecognized configuration"),
    ],
)
def test_file_that_the_server_refuses_is_an_error(plan: Plan, server: Cluster, name: str, text: str, seen: str) -> None:
    time.sleep(0.02)
    (server.data / name).write_text(text)
    with pytest.raises(HostError, match="PostgreSQL rejected its configuration") as error:
        configuration.apply(plan)
    assert seen in error.value.seen
    assert error.value.run.endswith("then ansible-playbook site.yml -i inventories/prod --limit db1 --tags postgresql")
    assert server.psql("SHOW work_mem") == "4MB"


def test_error_names_the_settings_of_alter_system_that_may_cause_it(plan: Plan, server: Cluster) -> None:
    server.psql("ALTER SYSTEM SET ssl = off")
    place(plan, "ssl = 'off'\n")
    (server.data / "pg_hba.conf").write_text(HBA + "hostssl all all 192.0.2.0/24 scram-sha-256\n")
    with pytest.raises(HostError, match="PostgreSQL rejected its configuration") as error:
        configuration.apply(plan)
    assert "line 3: hostssl record cannot match because SSL is disabled; set by ALTER SYSTEM: ssl" in error.value.seen
    reset = (
        "runuser -u postgres -- psql -c 'ALTER SYSTEM RESET ssl' -c 'SELECT pg_reload_conf()', then ansible-playbook"
    )
    assert error.value.run.startswith(reset)


def test_missing_include_dir_is_an_error(plan: Plan, server: Cluster) -> None:
    path = server.data / "postgresql.conf"
    before = path.read_text()
    path.write_text(before.replace("include_dir 'conf.d'\n", ""))
    try:
        with pytest.raises(HostError) as error:
            configuration.apply(plan)
        assert error.value.seen == "postgresql.conf does not include conf.d: put back its line include_dir"
    finally:
        path.write_text(before)


def test_without_a_server_the_error_says_where_to_look(tmp_path: Path) -> None:
    elsewhere = plans.sample(server={"data_directory": str(tmp_path)}, host={"systemd": False})
    with pytest.raises(HostError, match="no PostgreSQL server runs on this host"):
        configuration._load(elsewhere)


class Debian:
    """This machine with an /etc, /var/lib/postgresql, log and socket directory of its own: for root alone."""

    def __init__(self, scratch: Path) -> None:
        major = max(int(path.parts[4]) for path in Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        self.plan = plans.sample(
            server={
                "major": major,
                "port": free_port(),
                "data_directory": f"/var/lib/postgresql/{major}/main",
                "configuration_directory": f"/etc/postgresql/{major}/main",
            },
            host={"systemd": False},
            pooler={"enabled": False},
        )
        script = f"""
            set -e
            mount -t tmpfs tmpfs {scratch}
            cp -a /etc {scratch}/etc
            mount --bind {scratch}/etc /etc
            rm -rf /etc/postgresql/* /etc/provision
            mkdir -p /etc/provision /etc/postgresql
            for place in /var/lib/postgresql /var/log/postgresql /run/postgresql; do
                mkdir -p $place
                mount -t tmpfs -o mode=2775,uid=$(id -u postgres),gid=$(id -g postgres) tmpfs $place
            done
            [ ! -d /run/systemd/system ] || mount -t tmpfs tmpfs /run/systemd
            echo ready
            exec sleep 600
        """
        words = ["unshare", "--mount", "--propagation=private", "sh", "-c", script]
        self.holder = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == "ready\n", "needs root, for a mount namespace"
        self.root = Path(f"/proc/{self.holder.pid}/root")
        self.write(self.plan)

    def write(self, plan: Plan) -> None:
        plans.write(self.root / "etc/provision/plan.json", plan)

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a program in there and demand its exit code."""
        where = ["nsenter", f"--target={self.holder.pid}", "--mount", f"--wd={ROOT}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*where, *words], capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == code, f"{words}\n{done.stdout}{done.stderr}"
        return done

    def server(self, *words: str) -> dict[str, object]:
        """Run `provision server ... --json`."""
        found: dict[str, object] = json.loads(self.run(*PROGRAM, *words, "--json").stdout)
        return found

    def sql(self, text: str) -> str:
        psql = ("psql", "-XAtq", "-p", str(self.plan.server.port), "-c", text)
        return self.run("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *psql).stdout.strip()

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def remove(self) -> None:
        """Stop the server and end the namespace with the process that holds it."""
        if (self.path(self.plan.server.data_directory) / "postmaster.pid").exists():
            self.run("pg_ctlcluster", str(self.plan.server.major), "main", "stop", "-m", "immediate")
        self.holder.kill()
        self.holder.wait()


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Debian]:
    made = Debian(tmp_path)
    try:
        yield made
    finally:
        made.remove()


def test_cluster_is_made_once_started_and_restarted_when_allowed(debian: Debian) -> None:
    assert debian.server("create") == {"changed": True}
    assert debian.server("create") == {"changed": False}
    settings = debian.path(debian.plan.server.settings_file)
    settings.write_text("max_connections = 77\n")
    first = debian.server("apply")
    assert (first["changed"], first["started"], first["pending"]) == (True, True, [])
    layout = "SELECT current_setting('data_checksums'), current_setting('server_encoding'), datcollate FROM pg_database"
    assert debian.sql(f"{layout} WHERE datname = 'template1'") == "on|UTF8|C.UTF-8"
    settings.write_text("max_connections = 78\n")
    pending = debian.server("apply")
    assert (pending["reloaded"], pending["restarted"], pending["pending"]) == (True, False, ["max_connections"])
    assert debian.sql("SHOW max_connections") == "77"
    restarted = debian.server("apply", "--restart-allowed")
    assert (restarted["restarted"], restarted["pending"]) == (True, [])
    assert debian.sql("SHOW max_connections") == "78"
    assert debian.server("apply")["changed"] is False


def test_half_made_cluster_is_moved_aside_and_made_again(debian: Debian) -> None:
    data = debian.path(debian.plan.server.data_directory)
    data.mkdir(parents=True)
    (data / "half").write_text("made")
    debian.path("/etc/provision/cluster-being-made").touch()
    done = debian.run(*PROGRAM, "create")
    assert done.stdout == "cluster created\n"
    assert "an earlier run was killed while it created the cluster" in done.stderr
    (aside,) = debian.path("/var/lib/postgresql").glob("half-made-*")
    assert (aside / "data/half").read_text() == "made"
    assert (data / "PG_VERSION").exists()
    assert not debian.path("/etc/provision/cluster-being-made").exists()


def test_failed_creation_leaves_the_marker_and_no_directory_at_each_repetition(debian: Debian) -> None:
    debian.write(replace(debian.plan, server=replace(debian.plan.server, locale="xx_XX.UTF-8")))
    for _ in range(3):
        failed = debian.run(*PROGRAM, "create", code=1)
        assert "pg_createcluster failed (exit 1)" in failed.stderr
        assert debian.path("/etc/provision/cluster-being-made").exists()
    assert [path.name for path in debian.path("/var/lib/postgresql").iterdir()] in ([], [str(debian.plan.server.major)])
    debian.write(debian.plan)
    assert debian.server("create") == {"changed": True}


@pytest.mark.parametrize("content", ["", "lost+found", "half"])
def test_mount_point_is_refused_and_left_alone(debian: Debian, content: str) -> None:
    data = debian.plan.server.data_directory
    debian.run("mkdir", "-p", data)
    debian.run("mount", "-t", "tmpfs", "tmpfs", data)
    debian.run("sh", "-c", f"test -z '{content}' || mkdir {data}/{content}")
    debian.run("touch", "/etc/provision/cluster-being-made")
    refused = debian.run(*PROGRAM, "create", code=1)
    assert "the data directory is a mount point" in refused.stderr
    assert "mount that file system at /var/lib/postgresql instead" in refused.stderr
    assert [path.name for path in debian.path(data).iterdir()] == ([content] if content else [])
    assert list(debian.path("/var/lib/postgresql").glob("half-made-*")) == []


@pytest.mark.parametrize("place", ["/var/lib/postgresql", "/var/lib/postgresql/{major}"])
def test_cluster_is_made_below_a_mount_point_with_lost_and_found(debian: Debian, place: str) -> None:
    mounted = place.format(major=debian.plan.server.major)
    debian.run("mkdir", "-p", mounted)
    debian.run("mount", "-t", "tmpfs", "-o", "mode=0755,noexec", "tmpfs", mounted)  # as mkfs leaves it: root's
    debian.run("mkdir", "-m", "0700", f"{mounted}/lost+found")
    assert debian.server("create") == {"changed": True}
    debian.path(debian.plan.server.settings_file).write_text("max_connections = 77\n")
    assert debian.server("apply")["started"] is True
    assert debian.server("create") == {"changed": False}


def test_checksums_are_enabled_and_the_server_serves_again(debian: Debian) -> None:
    major = str(debian.plan.server.major)
    debian.run("pg_createcluster", f"--port={debian.plan.server.port}", "--locale=C.UTF-8", major, "main")
    debian.run("pg_ctlcluster", major, "main", "start")
    assert debian.sql("SHOW data_checksums") == "off"
    assert debian.server("checksums") == {"changed": False, "warnings": [NO_CHECKSUMS]}
    assert debian.sql("SHOW data_checksums") == "off"
    assert debian.server("checksums", "--enable") == {"changed": True, "warnings": []}
    assert debian.sql("SHOW data_checksums") == "on"
    assert debian.server("checksums", "--enable") == {"changed": False, "warnings": []}
    assert debian.server("checksums") == {"changed": False, "warnings": []}


def test_server_that_does_not_start_is_quoted(debian: Debian) -> None:
    debian.server("create")
    debian.path(debian.plan.server.settings_file).write_text("shared_preload_libraries = 'no_such'\n")
    failed = debian.run(*PROGRAM, "apply", code=1)
    assert "the server did not start" in failed.stderr
    assert 'could not access file "no_such"' in failed.stderr
