"""authorized_keys of a backup host: one exact line for each stanza, and nothing but pgBackRest behind it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from plugins.module_utils import repository_command
from plugins.module_utils.repository_keys import OLD_LINE, entries, line, public_key, strangers
from plugins.modules.host_repository import NAMES
from provision.plan.account import repository_user

BASE64 = "AAAAC3NzaC1lZDI1NTE5AAAAI" + "B" * 43
KEY = f"ssh-ed25519 {BASE64}"
OTHER, THIRD = KEY[:-1] + "C", KEY[:-1] + "D"
LINE = f'command="/usr/local/lib/provision/repository /var/lib/pgbackrest pg1",restrict {KEY} postgres@pg1'
OLD = (
    r'command="case \"$SSH_ORIGINAL_COMMAND\" in space) exec df -B1 --output=avail /var/lib/pgbackrest ;; '
    r"pgbackrest?*:remote) exec pgbackrest ${SSH_ORIGINAL_COMMAND#* } ;; *) echo refused >&2; exit 1 ;; esac"
    rf'",restrict {KEY} postgres@pg1'
)
SENT = (
    "pgbackrest --exec-id=1-a --log-level-console=off --log-level-file=off --log-level-stderr=error "
    "--pg1-path=/var/lib/postgresql/17/main --process=0 --remote-type=repo --repo=1 --repo1-path=/r"
)
"""What pgBackRest 2.45 sends, without stanza and verb."""


def test_the_line_runs_the_one_command_of_the_repository() -> None:
    assert line(f"{KEY} postgres@elsewhere\n", "pg1", "/var/lib/pgbackrest") == LINE


def test_only_lines_of_earlier_versions_are_taken_over() -> None:
    assert OLD_LINE.fullmatch(OLD)
    for planted in (
        KEY,
        OLD.replace("restrict ", ""),
        OLD.replace("df -B1", "sh -c"),
        f"{OLD}\n{KEY}",
        f'command="id" {KEY}',
    ):
        assert not OLD_LINE.fullmatch(planted), planted


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """The command with a pgbackrest and an id that print what they were called with."""
    for name, text in (("pgbackrest", 'echo "$PGBACKREST_LOCK_PATH $*"'), ("id", "echo pgbackrest-pg1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "command").write_text(repository_command.COMMAND)
    return tmp_path


def ask(place: Path, words: str, path: str = "/r") -> tuple[int, str]:
    environment = {"SSH_ORIGINAL_COMMAND": words, "PATH": f"{place}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", place / "command", path, "pg1"], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("verb", ["archive-push", "backup", "stanza-create", "expire", "check", "info", "archive-get"])
def test_command_passes_what_pgbackrest_sends_for_its_own_stanza(asked: Path, verb: str) -> None:
    words = f"{SENT} --archive-async --stanza=pg1 {verb}:remote"
    locks = "/var/lib/provision/repository/pgbackrest-pg1"
    assert ask(asked, words) == (0, f"{locks} {words.partition(' ')[2]}\n")


def test_command_prints_the_space_that_is_left(asked: Path) -> None:
    code, said = ask(asked, "space", str(asked))
    assert (code, said.split()[0], said.split()[1].isdigit()) == (0, "Avail", True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("", "a shell"),
        ("id", "id"),
        ("space; id", "space;"),
        ("sh -c id", "sh"),
        ("/opt/pgbackrest --stanza=pg1 info:remote", "/opt/pgbackrest"),
        ("pgbackrest info", "info"),
        ("pgbackrest --stanza=pg1", "no verb"),
        ("pgbackrest --stanza=pg1 info", "info"),
        ("pgbackrest --stanza=pg1 info:local", "info:local"),
        ("pgbackrest --stanza=pg1 info:remote backup:remote", "backup:remote"),
        ("pgbackrest --stanza=pg1 info:remote; id", "info:remote;"),
        ("pgbackrest --stanza=pg1 repo-put:remote", "repo-put"),
        ("pgbackrest --stanza=pg1 repo-rm:remote", "repo-rm"),
        ("pgbackrest --stanza=pg1 stanza-delete:remote", "stanza-delete"),
        ("pgbackrest --stanza=pg2 archive-push:remote", "archive-push for stanza pg2"),
        ("pgbackrest archive-push:remote", "archive-push for stanza (none)"),
        ("pgbackrest info:remote", "stanza (none)"),
        ("pgbackrest --stanza=../x info:remote", "--stanza=../x"),
        ("pgbackrest --stanza=pg1 --stanza=pg2 info:remote", "--stanza=pg2"),
        ("pgbackrest --stanza=pg1 --repo1-path=/etc info:remote", "--repo1-path=/etc"),
        ("pgbackrest --stanza=pg1 --remote-type=pg backup:remote", "--remote-type=pg"),
        ("pgbackrest --stanza=pg1 --repo=2 info:remote", "--repo=2"),
        ("pgbackrest --stanza=pg1 --config=/tmp/x info:remote", "--config=/tmp/x"),
        ("pgbackrest --stanza=pg1 --no-config info:remote", "--no-config"),
        ("pgbackrest --stanza=pg1 --log-path=/tmp info:remote", "--log-path=/tmp"),
        ("pgbackrest --stanza=pg1 --lock-path=/tmp backup:remote", "--lock-path=/tmp"),
        ("pgbackrest --stanza=pg1 --cmd-ssh=/usr/bin/id info:remote", "--cmd-ssh=/usr/bin/id"),
        ("pgbackrest --stanza=pg1 --repo1-host=evil info:remote", "--repo1-host=evil"),
        ("pgbackrest --stanza=pg1 --repo1-type=s3 info:remote", "--repo1-type=s3"),
        ("pgbackrest -- info:remote", "--"),
        ("pgbackrest --stanza=pg1 * info:remote", "*"),
        ("pgbackrest --stanza=pg1 $(id) info:remote", "$(id)"),
        ("pgbackrest --stanza=pg1 archive-push:remote ../pg2/wal", "../pg2/wal"),
        ("pgbackrest --stanza=pg1 --pg1-path=/a/../../etc archive-push:remote", "--pg1-path=/a/../../etc"),
        ("pgbackrest --stanza=pg1 --pg1-path=.. archive-push:remote", "--pg1-path=.."),
        ("pgbackrest --stanza=pg1 --repo1-path=/r/../etc archive-push:remote", "--repo1-path=/r/../etc"),
        ("pgbackrest --stanza=pg1 --exec-id=1`id` archive-push:remote", "--exec-id=1`id`"),
        ("pgbackrest --stanza=pg1 --exec-id=$HOME archive-push:remote", "--exec-id=$HOME"),
        ('pgbackrest --stanza=pg1 --exec-id="1 2" archive-push:remote', '--exec-id="1'),
        ("pgbackrest --stanza=pg1 --exec-id=a\\b archive-push:remote", "--exec-id=a\\b"),
        ("pgbackrest --stanza=pg1 --exec-id=1|id archive-push:remote", "--exec-id=1|id"),
        ("pgbackrest --stanza=pg1 --exec-id=\x1b[2J archive-push:remote", "--exec-id=?[2J"),
        ("pgbackrest --stanza=pg1 --exec-id=é archive-push:remote", "--exec-id=??"),
    ],
)
def test_command_refuses_everything_else(asked: Path, words: str, reason: str) -> None:
    assert ask(asked, words) == (1, f"refused: {reason}\n")


@pytest.mark.parametrize(
    ("stanza", "user"),
    [
        ("pg1", "pgbackrest-pg1"),
        ("a_b-c", "pgbackrest-a_b-c"),
        ("x" * 21, f"pgbackrest-{'x' * 21}"),
        ("x" * 22, f"pgbackrest-{'x' * 14}-ec4a4f"),
        ("DB1", "pgbackrest-db1-488021"),
        ("db.1", "pgbackrest-db-1-03d163"),
    ],
)
def test_account_of_a_stanza_is_a_name_that_useradd_accepts(stanza: str, user: str) -> None:
    assert repository_user(stanza) == user
    assert NAMES["user"].fullmatch(user)


def test_a_run_for_one_host_never_changes_the_line_of_another() -> None:
    one, ten = line(KEY, "pg1", "/r"), line(OTHER, "pg10", "/r")
    both = entries(entries("", ten), one)
    assert both == f"{ten}\n{one}\n"
    assert entries(both, one) == both
    assert entries(both, ten) == both
    # pg1.eu and pg1.us of two inventories, with one stanza: both keys stay, and the other one is reported.
    us = line(THIRD, "pg1", "/r")
    assert entries(both, us) == f"{both}{us}\n"
    assert strangers(f"{both}{us}\n", us) == [KEY]
    assert strangers(both, ten) == []
    assert strangers(both, line(THIRD, "g1", "/r")) == []


def test_a_renamed_host_and_a_moved_repository_have_one_line() -> None:
    text = entries(f"{LINE}\n", line(OTHER, "pg10", "/r"))
    renamed = entries(text, line(f"{KEY} postgres@old", "db1", "/var/lib/pgbackrest"))
    assert [each.split()[-1] for each in renamed.splitlines()] == ["postgres@pg10", "postgres@db1"]
    moved = entries(renamed, line(KEY, "db1", "/srv/backups"))
    assert [("/srv/backups" in each, each.split()[-1]) for each in moved.splitlines()] == [
        (False, "postgres@pg10"), (True, "postgres@db1"),
    ]  # fmt: skip


def test_a_second_run_changes_nothing_and_lines_of_others_stay() -> None:
    text = f"# an administrator's, once {KEY}\nssh-rsa AAAA admin@desk\n\n{LINE}\n"
    assert entries(text, LINE) == text
    assert entries(f"{text}{KEY}\n", LINE) == text
    assert entries(f"{text}{LINE} pasted twice\n", LINE) == text
    assert entries(f"{OTHER}\n", LINE) == f"{OTHER}\n{LINE}\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected one line"),
        ("ssh-ed25519", "expected one line"),
        (f"{KEY} a\n{OTHER} b\n", "expected one line"),
        (f'command="id" {KEY}', "expected one line"),
        (f"ssh-rsa {BASE64}", "expected one line"),
        (f"ssh-ed25519 {BASE64[:-1]}!", "the key is not base64"),
        (f"ssh-ed25519 {BASE64[:-4]}", "the key is not an Ed25519 key"),
        ("ssh-ed25519 " + "A" * 68, "the key is not an Ed25519 key"),
    ],
)
def test_refuses_what_is_not_one_ed25519_key(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        public_key(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("path", "/var/lib/pg backrest"), ("path", "/var/../etc"), ("path", "relative"), ("path", "/a;id"),
     ("user", "pg;id"), ("user", "-x"), ("stanza", "a b"), ("stanza", "-a"), ("stanza", "a\nb")],
)  # fmt: skip
def test_refuses_names_that_a_shell_would_read(name: str, value: str) -> None:
    assert NAMES[name].fullmatch(value) is None
