"""What a machine's own release has of PostgreSQL and pgvector."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from provision.controller.local import release


@pytest.mark.parametrize(
    ("codename", "major", "pgvector"), [("trixie", 17, "0.8.0"), ("noble", 16, "0.6.0"), ("nobody-knows-it", 14, "0")]
)
def test_release_with_a_package(
    codename: str, major: int, pgvector: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"VERSION_CODENAME": codename})
    found = release(tmp_path)
    assert (found["postgresql_version"], found["pgvector_install_method"]) == (major, "package")
    assert found["pgvector_version"] == pgvector
    assert list(tmp_path.iterdir()) == []


def test_release_without_a_package_remembers_the_tarball_that_the_mirror_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"VERSION_CODENAME": "bookworm"})
    kept = tmp_path / ".provision/local/pgvector-bookworm.json"
    kept.parent.mkdir(parents=True)
    source = {"pgvector_version": "0.8.2", "pgvector_source_url": "http://x/y", "pgvector_source_sha256": "ab" * 32}
    kept.write_text(json.dumps(source))
    assert release(tmp_path) == {"postgresql_version": 15, "pgvector_install_method": "source", **source}
