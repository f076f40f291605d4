"""The host's command is one file that runs anywhere and is the same for the same sources."""

import hashlib
import subprocess
import sys
from pathlib import Path

from provision import __version__
from provision.controller import archive
from tests.contract.repository import ROOT


def test_same_sources_make_the_same_file(tmp_path: Path) -> None:
    first, digest = archive.pack(ROOT / "provision", tmp_path / "a")
    archive.content.cache_clear()
    second, again = archive.pack(ROOT / "provision", tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert first.parent.name == second.parent.name == digest[:16] == again[:16]
    assert digest == again == hashlib.sha256(first.read_bytes()).hexdigest()


def test_archive_runs_and_knows_its_commands(tmp_path: Path) -> None:
    packed, _ = archive.pack(ROOT / "provision", tmp_path)
    version = subprocess.run([sys.executable, packed, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.strip() == f"provision, version {__version__}"
    listed = subprocess.run([sys.executable, packed, "--help"], capture_output=True, text=True, check=True).stdout
    commands = [line.split()[0] for line in listed.partition("Commands:")[2].splitlines() if line.strip()]
    assert {"migrate", "verify", "tune", "rehearse"} <= set(commands)
    for name in commands:
        # -I: nothing but the archive and what is installed, as on a host.
        subprocess.run([sys.executable, "-I", packed, name, "--help"], capture_output=True, check=True)


def test_archive_installs_the_man_pages_of_its_own_commands(tmp_path: Path) -> None:
    packed, _ = archive.pack(ROOT / "provision", tmp_path)
    command = [sys.executable, "-I", str(packed), "shell", "install", "--prefix", str(tmp_path)]
    subprocess.run(command, capture_output=True, check=True)
    found = {path.name for path in (tmp_path / "share/man/man1").iterdir()}
    assert {"provision.1", "provision-migrate-up.1", "provision-queries.1"} <= found
    assert not {name for name in found if name.startswith(("provision-sandbox", "provision-audit"))}


def test_archive_leaves_out_what_a_host_cannot_import(tmp_path: Path) -> None:
    packed, _ = archive.pack(ROOT / "provision", tmp_path)
    assert b"provision/controller/" not in packed.read_bytes()
