"""authorized_keys of a backup host: one exact line for each stanza, and nothing but pgBackRest behind it."""

from __future__ import annotations

import re
import subprocess

import pytest

from plugins.modules.host_repository import NAMES, entries, line, public_key, strangers

BASE64 = "AAAAC3NzaC1lZDI1NTE5AAAAI" + "B" * 43
KEY = f"ssh-ed25519 {BASE64}"
OTHER, THIRD = KEY[:-1] + "C", KEY[:-1] + "D"
LINE = (
    r'command="case \"$SSH_ORIGINAL_COMMAND\" in space) exec df -B1 --output=avail /var/lib/pgbackrest ;; '
    r"pgbackrest?*:remote) exec pgbackrest ${SSH_ORIGINAL_COMMAND#* } ;; *) echo refused >&2; exit 1 ;; esac"
    rf'",restrict {KEY} postgres@pg1'
)


def test_the_line_lets_pgbackrest_in_and_nothing_else() -> None:
    assert line(f"{KEY} postgres@elsewhere\n", "pg1", "/var/lib/pgbackrest") == LINE


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [("space", 0, r" *Avail\n *\d+\n"), ("", 1, "refused\n"), ("pgbackrest info", 1, "refused\n"),
     ("sh -c id", 1, "refused\n"), ("space; id", 1, "refused\n"), ("pgbackrest:remote", 1, "refused\n")],
)  # fmt: skip
def test_the_shell_runs_the_forced_command(asked: str, code: int, said: str) -> None:
    quoted = re.match(r'command="((?:[^"\\]|\\.)*)",restrict', line(KEY, "pg1", "/var"))
    assert quoted
    command = quoted[1].replace('\\"', '"')  # as sshd reads it
    done = subprocess.run(
        ["sh", "-c", command], env={"SSH_ORIGINAL_COMMAND": asked, "PATH": "/bin:/usr/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert re.fullmatch(said, done.stdout + done.stderr)


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
