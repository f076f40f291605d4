"""A repository in an S3 bucket behind TLS: pgBackRest, with the files that role backup places, against moto's server.

The real server, the real pgBackRest; moto keeps the bucket in memory and speaks S3 over HTTPS with a certificate of
this test. Paths of another host are replaced on the command line.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from provision.controller import inputs
from tests import buckets, plans
from tests.buckets import Store
from tests.clusters import Cluster, as_server_user, free_port, run
from tests.contract.repository import ROOT
from tests.templates.test_render import GIVEN, PROBE, render
from tests.until import until

ROW = "a row that no one else may read"
PASSPHRASE = plans.SECRETS["backup_repository_passphrase"]


def directory() -> Path:
    """Make a directory of the server's user, with a path that is short enough for a socket."""
    made = Path(tempfile.mkdtemp(prefix="provision-s3-", dir="/tmp"))
    shutil.chown(made, "postgres", "postgres")
    return made


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A directory for the files of this module."""
    made = directory()
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[Store]:
    with buckets.served(folder) as made:
        yield made


@pytest.fixture(scope="module")
def configuration(folder: Path, store: Store) -> Path:
    """The two files of role backup for this bucket, as one."""
    s3 = store.variables()
    given = {**GIVEN, "backup_s3": s3, "backup_repository_path": "/prod"}
    made = plans.built("prod", given, PROBE)
    assert made.plan, made.problems
    assert made.plan.backup.repository.place == "s3://backups/prod"
    secrets, main = (
        render(ROOT / f"templates/backup/{name}.j2", "prod", plan=inputs.published(made.plan, made.state), backup_s3=s3)
        for name in ("secrets.conf", "pgbackrest.conf")
    )
    return buckets.configured(folder, secrets, main)


def words(configuration: Path, data: Path, port: int = 0) -> list[str]:
    """Return the command line of pgBackRest up to its command; `port` where the command asks the server."""
    server = [f"--pg1-port={port}", f"--pg1-socket-path={data.parent}"] if port else []
    return ["pgbackrest", f"--config={configuration}", "--stanza=db1", f"--pg1-path={data}", *server]


@contextmanager
def archiving(configuration: Path) -> Iterator[tuple[Cluster, list[str]]]:
    """Give a server that archives into the bucket, and pgBackRest's command line for it."""
    cluster = Cluster.create({"archive_mode": "on", "wal_level": "replica", "archive_timeout": "60"})
    try:
        tool = words(configuration, cluster.data, cluster.port)
        push = words(configuration, cluster.data)
        cluster.psql(f"ALTER SYSTEM SET archive_command = '{' '.join(push)} archive-push \"%p\"'")
        cluster.psql("SELECT pg_reload_conf()")
        yield cluster, tool
    finally:
        cluster.remove()


def test_backups_and_wal_travel_through_tls_and_restore(configuration: Path, store: Store) -> None:
    with archiving(configuration) as (cluster, tool):
        run(*as_server_user(*tool, "stanza-create"))
        run(*as_server_user(*tool, "check"))
        cluster.psql(f"CREATE TABLE kept AS SELECT '{ROW}'::text AS text")
        run(*as_server_user(*tool, "--type=full", "backup"))
        cluster.psql("INSERT INTO kept VALUES ('after the backup'); SELECT pg_switch_wal()")
        run(*as_server_user(*tool, "check"))  # waits until the segment is archived
        expected = cluster.psql("SELECT text FROM kept ORDER BY text")
        held = store.objects()
        assert any(name.startswith("prod/backup/db1/") for name in held)
        assert any(name.startswith("prod/archive/db1/") for name in held)
        assert not any(ROW.encode() in body for body in held.values())
        assert PASSPHRASE not in configuration.read_text().partition("[db1]")[2]
        copy = Cluster(cluster.bin, directory(), free_port())
        try:
            target = words(configuration, copy.data)
            run(*as_server_user("mkdir", "-m", "0700", copy.data))
            run(*as_server_user(*target, "--archive-mode=off", "restore"))
            with (copy.data / "postgresql.auto.conf").open("a") as config:
                config.write(f"port = {copy.port}\nunix_socket_directories = '{copy.host}'\n")
            copy.start()
            assert until(lambda: copy.psql("SELECT pg_is_in_recovery()") == "f", 30), copy.log.read_text()
            assert copy.psql("SELECT text FROM kept ORDER BY text") == expected
        finally:
            copy.remove()


def test_a_bucket_with_an_unknown_authority_is_refused(folder: Path, configuration: Path, store: Store) -> None:
    other = folder / "without-authority.conf"
    other.write_text(configuration.read_text().replace(f"repo1-storage-ca-file={store.authority}\n", ""))
    shutil.chown(other, "postgres", "postgres")
    other.chmod(0o600)
    done = subprocess.run(
        as_server_user("pgbackrest", f"--config={other}", "--stanza=db1", "--io-timeout=5", "info"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "certificate" in done.stdout + done.stderr
    assert "unable to verify" in done.stdout + done.stderr
