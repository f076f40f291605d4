"""Whom bootstrap makes an admin, and which key it installs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from provision.controller.bootstrap import check_admin, read_public_key
from provision.errors import UsageError


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ann", "-f", str(path)], check=True)
    return path


@pytest.mark.parametrize("name", ["provision", "_apt", "a-b_c9", "a" * 31])
def test_takes_a_name_that_debian_takes(name: str) -> None:
    assert check_admin(name) == name


@pytest.mark.parametrize("name", ["root", "", "Ann", "9a", "a b", "a.b", "a/../b", "a" * 32, "ann\n"])
def test_refuses_a_name_that_debian_or_sudo_would_not_take(name: str) -> None:
    with pytest.raises(UsageError, match="invalid admin user name"):
        check_admin(name)


def test_reads_a_public_key(key: Path) -> None:
    text = read_public_key(key.with_suffix(".pub"))
    assert text.startswith("ssh-ed25519 AAAA")
    assert text.endswith(" ann")


@pytest.mark.parametrize("content", ["", "hello\n", "ssh-ed25519 AAAA\n", None])
def test_refuses_what_is_not_one_public_key(key: Path, content: str | None) -> None:
    path = key.with_name("bad.pub")
    public = key.with_suffix(".pub").read_text()
    path.write_text(public + public if content is None else content)
    with pytest.raises(UsageError, match="not a public key"):
        read_public_key(path)


def test_refuses_a_private_key_without_showing_it(key: Path) -> None:
    with pytest.raises(UsageError) as refused:
        read_public_key(key)
    assert refused.value.seen == "a private key"
    assert "BEGIN" not in str(refused.value)


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        read_public_key(tmp_path / "none.pub")
    assert refused.value.seen == "no such file"
