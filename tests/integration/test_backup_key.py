"""The SSH key for the repository: made once, owned by postgres, its public half checked before it is passed on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.repository import ROOT

SCRIPT = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from provision.errors import ProvisionError
from provision.host.backup import key
try:
    print(json.dumps(asdict(key.make(sys.argv[2], Path(sys.argv[1])))))
except ProvisionError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture
def path() -> Iterator[Path]:
    """A place for the key that postgres can reach."""
    folder = Path(tempfile.mkdtemp(prefix="provision-key-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder / "ssh" / "id_ed25519"
    shutil.rmtree(folder)


def make(path: Path, stanza: str = "pg1") -> dict[str, object]:
    """Make the key in a process of its own, which becomes postgres for good."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, stanza], capture_output=True, text=True, check=True, env=environment
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_key_is_made_once_and_stays_with_postgres(path: Path) -> None:
    if os.geteuid() != 0:
        assert "user id" in str(make(path)["error"])  # another user cannot become postgres
        return
    first = make(path)
    assert first["changed"] is True
    assert str(first["public_key"]).startswith("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5")
    assert str(first["public_key"]).endswith(" postgres@pg1")
    assert make(path) == {**first, "changed": False}
    assert (path.owner(), path.stat().st_mode & 0o777) == ("postgres", 0o600)
    assert (path.parent.owner(), path.parent.stat().st_mode & 0o777) == ("postgres", 0o755)

    public = path.with_name("id_ed25519.pub")
    renamed = make(path, "db1")
    assert renamed == {"changed": True, "public_key": str(first["public_key"]).replace("postgres@pg1", "postgres@db1")}
    assert public.read_text() == f"{renamed['public_key']}\n"
    assert make(path, "db1") == {**renamed, "changed": False}
    assert make(path) == first
    for text in ("ssh-rsa AAAA postgres@pg1\n", f"{first['public_key']}\n{first['public_key']}\n", "$(id)\n"):
        public.write_text(text)
        assert str(make(path)["error"]).startswith(f"not a public key\n  where:   {public}")
    private = path.read_bytes()
    for plant in (os.mkfifo, os.mkdir):
        public.rename(f"{public}.kept")
        plant(public)
        assert str(make(path)["error"]).startswith(f"the public key cannot be read\n  where:   {public}")
        assert path.read_bytes() == private
        (public.rmdir if public.is_dir() else public.unlink)()
        Path(f"{public}.kept").rename(public)
    public.unlink()
    second = make(path)
    assert second["changed"] is True
    assert second["public_key"] != first["public_key"]
