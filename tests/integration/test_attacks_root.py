"""The user postgres against root: links, exchanged directories, hard links and pipes below paths that root uses.

Every test plays an attack with a directory that postgres owns, as root and postgres have them on a host.
"""

from __future__ import annotations

import gzip
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from click.testing import CliRunner

from plugins.modules import host_files
from provision import secure_path, system
from provision.checks import files as file_checks
from provision.cli import own
from provision.errors import HostError
from provision.host import logs
from provision.host.backup import dump, journal, recovery, restore, tool
from provision.host.backup.tool import BackupError
from provision.host.migrate import evidence
from provision.host.pooler import configuration
from provision.host.server import patroni
from provision.host.server.cluster import Postmaster
from tests.plans import sample

pytestmark = pytest.mark.usefixtures("root")
SHADOW = "root:$y$j9T$verifier:20000:0:99999:7:::\n"
OWNER = pwd.getpwnam("postgres").pw_uid, pwd.getpwnam("postgres").pw_gid


@pytest.fixture
def root() -> None:
    """Refuse to test as another user, whom the kernel would keep from the damage anyway."""
    assert os.geteuid() == 0, "run these tests as root"


@pytest.fixture
def host() -> Iterator[Path]:
    """A folder with `etc/apt` of root, `etc/shadow` of root alone, and `main` and `home` of postgres."""
    folder = Path(tempfile.mkdtemp(prefix="provision-attack-"))
    folder.chmod(0o755)
    (folder / "etc/apt").mkdir(parents=True)
    (folder / "etc/shadow").write_text(SHADOW)
    (folder / "etc/shadow").chmod(0o600)
    for name in ("main", "home"):
        (folder / name).mkdir()
        os.chown(folder / name, *OWNER)
    yield folder
    shutil.rmtree(folder)


def attack(script: str, folder: Path) -> None:
    """Run a shell script as postgres in a folder."""
    subprocess.run(["runuser", "-u", "postgres", "--", "sh", "-euc", script], cwd=folder, check=True)


def untouched(host: Path) -> bool:
    about = (host / "etc/shadow").stat()
    return (host / "etc/shadow").read_text() == SHADOW and (about.st_uid, about.st_mode & 0o777) == (0, 0o600)


def place(capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    with (
        patch_module_args({"name": "set", "_ansible_remote_tmp": tempfile.gettempdir(), **options}),
        pytest.raises(SystemExit),
    ):
        host_files.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def manifests(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_files, "MANIFESTS", host / "etc/provision/files.d")


@pytest.mark.usefixtures("manifests")
def test_roll_back_does_not_bring_postgres_content_into_a_directory_of_root(
    host: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attack("mkdir conf.d; echo 'APT::Update::Pre-Invoke {\"id\";};' > conf.d/50-provision.conf", host / "main")
    file = {"path": f"{host}/main/conf.d/50-provision.conf", "content": "port = 5432\n", "owner": "postgres"}
    # The check plays the time between reading and restoring, in which postgres exchanges the directory.
    swap = (
        f"runuser -u postgres -- sh -c 'mv {host}/main/conf.d {host}/main/old; ln -s {host}/etc/apt {host}/main/conf.d'"
    )
    said = place(capsys, files=[file], check=[["sh", "-c", f"{swap}; exit 1"]])
    assert secure_path.PLANTED in said["msg"]
    assert list((host / "etc/apt").iterdir()) == []
    for again in ("files", "directories"):  # and the run after, which finds the link in place
        rows = {"files": [file], "directories": [{"path": f"{host}/main/conf.d/own", "owner": "postgres"}]}
        journal = host / "etc/provision/files.d/.set.failed"
        journal.unlink(missing_ok=True)
        said = place(capsys, **{again: rows[again]})
        assert secure_path.PLANTED in said["msg"], again
        assert list((host / "etc/apt").iterdir()) == []


@pytest.mark.usefixtures("manifests")
def test_difference_shows_nothing_of_a_file_that_postgres_linked(
    host: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = {"path": f"{host}/main/pg_hba.conf", "content": "x\n", "owner": "postgres"}
    attack(f"ln -s {host}/etc/shadow pg_hba.conf", host / "main")
    said = place(capsys, files=[file], _ansible_diff=True, _ansible_check_mode=True)
    assert "verifier" not in json.dumps(said)
    assert secure_path.NOT_PLAIN in said["msg"]
    # A hard link needs no link to be followed; kernels with fs.protected_hardlinks off allow it to postgres itself.
    (host / "main/pg_hba.conf").unlink()
    os.link(host / "etc/shadow", host / "main/pg_hba.conf")
    said = place(capsys, files=[file], _ansible_diff=True, _ansible_check_mode=True)
    assert "verifier" not in json.dumps(said)
    assert secure_path.LINKED in said["msg"]


@pytest.mark.parametrize(
    ("make", "attempt"),
    [
        ("ln -s {host}/etc main/data", lambda host: restore._own(host / "main/data")),
        ("ln -s {host}/etc main/17", lambda host: restore._own(host / "main/17/data")),
        ("ln -s {host}/etc main/17", lambda host: secure_path.rename(host / "main/17/apt", "apt.before")),
        ("ln -s {host}/etc main/17", lambda host: secure_path.remove_tree(host / "main/17/apt")),
        ("ln -s {host}/etc main/17", lambda host: secure_path.remove(host / "main/17/shadow")),
        ("ln -s {host}/etc main/17", lambda host: system.write(host / "main/17/new", "x")),
        ("ln -s {host}/etc main/17", lambda host: secure_path.chown(host / "main/17/shadow", OWNER, 0o644)),
        ("ln -s {host}/etc/shadow main/x", lambda host: secure_path.chown(host / "main/x", OWNER, 0o644)),
        ("ln -s {host}/etc main/tree", lambda host: secure_path.chown_tree(host / "main/tree", OWNER)),
        ("ln -s {host}/etc/new.lock main/x.lock", lambda host: secure_path.open_lock(host / "main/x.lock")),
        ("ln -s {host}/etc/shadow main/x", lambda host: secure_path.read(host / "main/x")),
        ("mkfifo main/x", lambda host: secure_path.read(host / "main/x")),
        ("mkfifo main/x", lambda host: secure_path.open_lock(host / "main/x")),
    ],
)  # fmt: skip
def test_root_refuses_links_and_pipes_of_postgres(host: Path, make: str, attempt: Callable[[Path], object]) -> None:
    attack(make.format(host=host).replace("main/", f"{host}/main/"), host)
    before = sorted(str(path) for path in (host / "etc").rglob("*"))
    with pytest.raises(OSError, match=r"another user|not a plain file|symbolic links"):
        attempt(host)
    assert untouched(host)
    assert sorted(str(path) for path in (host / "etc").rglob("*")) == before
    assert (host / "etc").stat().st_uid == (host / "etc/apt").stat().st_uid == 0


def test_tree_changes_owner_without_the_targets_of_its_links(host: Path) -> None:
    attack(
        f"mkdir -p tree/deep; ln -s {host}/etc/shadow tree/deep/x; ln -s {host}/etc tree/etc; touch tree/own",
        host / "main",
    )
    secure_path.chown_tree(host / "main/tree", (0, 0), 0o750)
    secure_path.chown_tree(host / "main/tree", OWNER, 0o750)
    assert untouched(host)
    assert (host / "etc").stat().st_uid == 0
    assert [(host / "main/tree" / name).lstat().st_uid for name in ("own", "deep/x", "etc")] == [OWNER[0]] * 3
    os.link(host / "etc/shadow", host / "main/tree/hard")
    with pytest.raises(OSError, match="second name"):
        secure_path.chown_tree(host / "main/tree", OWNER)
    assert untouched(host)


def test_directory_that_is_exchanged_all_the_time_never_leads_root_elsewhere(host: Path) -> None:
    attack("mkdir real", host / "main")
    script = f"while :; do mv real away; ln -s {host}/etc/apt real; rm real; mv away real; done"
    with subprocess.Popen(
        ["runuser", "-u", "postgres", "--", "sh", "-c", script], cwd=host / "main", stderr=-3
    ) as racer:
        try:
            refused = 0
            for _ in range(1500):
                try:
                    secure_path.replace(host / "main/real/x", b"x", 0o644, OWNER, flush=False)
                except OSError:
                    refused += 1
        finally:
            subprocess.run(["pkill", "-P", str(racer.pid)], check=False)
            racer.kill()
    assert 0 < refused < 1500  # the race took place, and was not all that happened
    assert list((host / "etc/apt").iterdir()) == []


def test_links_of_root_are_followed(host: Path) -> None:
    (host / "disk").mkdir()
    (host / "data").symlink_to(host / "disk")
    secure_path.replace(host / "data/deep/x", b"1", 0o640, OWNER, make=True)
    assert (host / "disk/deep/x").read_text() == "1"
    assert ((host / "disk/deep/x").owner(), (host / "disk/deep").owner()) == ("postgres", "root")
    (host / "relative").symlink_to("./disk/../data")
    assert secure_path.text(host / "relative/deep/x") == "1"
    (host / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="is a link"):
        secure_path.text(host / "loop/x")


def test_evidence_is_no_way_to_a_file_of_root(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "EVIDENCE", host / "main")
    (host / "etc/shadow").write_text('{"secret": 1}')
    attack(f"ln -s {host}/etc/shadow drill.json; ln -s {host}/etc/nologin restore.lock", host / "main")
    assert system.evidence("drill") == {}
    with pytest.raises(OSError, match="not a plain file"), journal.held("restore", "busy"):
        pass
    assert not (host / "etc/nologin").exists()
    system.keep("drill", {"passed": True})
    assert json.loads((host / "etc/shadow").read_text()) == {"secret": 1}
    assert system.evidence("drill")["passed"] is True
    # A journal that decides what root does counts only if root wrote it.
    attack("""echo '{"state": "paused", "port": 1}' > restore.json""", host / "main")
    assert (journal.read("restore"), system.evidence("restore")["port"]) == ({}, 1)


def test_messages_show_nothing_of_files_that_postgres_linked(host: Path) -> None:
    lines = "1\n2\n3\n" + SHADOW + "/run\n"
    (host / "etc/shadow").write_text(lines)
    attack(f"ln -s {host}/etc/shadow postmaster.pid; ln -s {host}/etc/shadow log", host / "main")
    assert Postmaster.read(host / "main") is None
    log = recovery.Log(host / "main/log")
    log.offset = 0
    with pytest.raises(OSError, match="not a plain file"):
        log()
    attack("rm log; mkfifo log postmaster.fifo; mv postmaster.fifo postmaster.pid", host / "main")
    assert Postmaster.read(host / "main") is None  # and root does not wait for a writer


def test_logs_are_read_without_links(host: Path) -> None:
    message = {"timestamp": "2026-11-24 14:05:00.000 UTC", "error_severity": "ERROR", "message": "in the log"}
    line = f"{json.dumps(message)}\n"
    (host / "etc/shadow").write_text(line.replace("in the log", "secret"))
    attack(f"ln -s {host}/etc/shadow postgresql-17-main.json.1; touch postgresql-17-main.json", host / "main")
    (host / "main/postgresql-17-main.json").write_text(line)
    with gzip.open(host / "main/postgresql-17-main.json.2.gz", "wt") as stream:
        stream.write(line)
    found = logs.files(17, datetime(2026, 1, 1, tzinfo=UTC), host / "main")
    said = [entry.lines[0] for entry in logs.read(found, datetime(2026, 1, 1, tzinfo=UTC), UTC)]
    assert said == ["in the log"] * 2
    skipped: list[str] = []
    link = [host / "main/postgresql-17-main.json.1"]
    assert list(logs.read(link, datetime(2026, 1, 1, tzinfo=UTC), UTC, lambda _path, why: skipped.append(why))) == []
    assert "not a plain file" in skipped[0]


def test_pipes_in_place_of_files_are_refused_at_once(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: every file of postgres that a command reads becomes a pipe without a writer."""
    attack(
        "mkdir -p dump stanza/out; for f in backup.json start.conf log dump/manifest.json stanza/out/1.error; do "
        "mkfifo $f; done; mkfifo key.pub; touch key; printf '%%include pgbouncer.ini\n' > pgbouncer.ini",
        host / "main",
    )
    main = host / "main"
    monkeypatch.setattr(tool, "SPOOL", main)
    plan = sample(server={"configuration_directory": str(main), "data_directory": str(main)})
    log = recovery.Log(main / "log")
    signal.alarm(30)  # a command that waits for a writer ends the test
    assert "not a plain file" in evidence.doubt("localhost", main / "backup.json")
    assert patroni.owns(plan) is False
    assert tool.not_archived("stanza") == ""
    with pytest.raises(BackupError) as damaged:
        dump.check(main / "dump")
    assert "not a plain file" in damaged.value.seen
    with pytest.raises(OSError, match="not a plain file"):
        log()
    assert configuration.settings(main / "pgbouncer.ini") == {}
    signal.alarm(0)


def test_log_of_a_program_is_opened_as_its_user(host: Path) -> None:
    attack(f"ln -s {host}/etc/shadow log", host / "home")
    with pytest.raises(PermissionError), system.running("true", log=host / "home/log", directory=host, user="postgres"):
        pass
    assert untouched(host)


def test_fix_of_an_owner_follows_no_link(host: Path) -> None:
    attack("mkdir conf.d", host / "main")
    placed = host / "main/conf.d/shadow"
    placed.write_text("mine")
    fix = next(iter(file_checks._mode(placed, 0o640, "postgres", "postgres")))[1]
    assert fix == f"provision own {placed} postgres:postgres 0640"
    done = CliRunner().invoke(own.command, fix.split()[2:])
    assert (done.exit_code, placed.owner(), placed.stat().st_mode & 0o777) == (0, "postgres", 0o640)
    attack(f"rm -r conf.d; ln -s {host}/etc conf.d", host / "main")
    done = CliRunner().invoke(own.command, fix.split()[2:])
    assert isinstance(done.exception, HostError)
    assert secure_path.PLANTED in str(done.exception)
    assert untouched(host)


def test_restored_directory_is_made_for_postgres(host: Path) -> None:
    restore._own(host / "main/17/restored")
    assert ((host / "main/17/restored").owner(), (host / "main/17/restored").stat().st_mode & 0o777) == (
        "postgres",
        0o700,
    )
    restore._own(host / "main/17/restored")
    moved = secure_path.rename(host / "main/17/restored", "restored.before-1Z")
    assert moved.is_dir()
    with pytest.raises(FileExistsError):
        secure_path.rename(moved, "restored.before-1Z")
    secure_path.remove_tree(moved)
    assert not moved.exists()
