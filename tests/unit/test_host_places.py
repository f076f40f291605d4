"""What the probe reads of the place of a data directory, of file systems and of locales, on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plugins.module_utils import host_places


def test_describes_a_place_that_does_not_exist_yet(tmp_path: Path) -> None:
    found = host_places.data_directory(tmp_path / "postgresql/17/main")
    assert (found["link"], found["file"], found["mount"], found["entries"], found["closed"]) == (
        "",
        False,
        False,
        [],
        [],
    )
    assert found["read_only"] is False
    assert found["file_system"] != ""


def test_names_links_entries_and_parents_that_postgres_cannot_enter(tmp_path: Path) -> None:
    main = tmp_path / "postgresql/17/main"
    main.mkdir(parents=True)
    for name in ("lost+found", "d", "c", "b", "a"):
        (main / name).touch()
    (tmp_path / "postgresql").chmod(0o700)
    found = host_places.data_directory(main)
    assert found["entries"] == ["a", "b", "c"]
    assert found["closed"] == [str(tmp_path / "postgresql")]
    link = tmp_path / "postgresql/18/main"
    link.parent.mkdir()
    link.symlink_to(main)
    found = host_places.data_directory(link)
    assert (found["link"], found["target"], found["entries"]) == (str(link), str(main), [])


def test_a_parent_may_be_a_link_unless_it_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "postgresql").symlink_to(tmp_path / "data")
    assert host_places.data_directory(tmp_path / "postgresql/17/main")["link"] == ""
    (tmp_path / "data").rmdir()
    found = host_places.data_directory(tmp_path / "postgresql/17/main")
    assert (found["link"], found["target"]) == (str(tmp_path / "postgresql"), str(tmp_path / "data"))


def test_reads_file_systems_and_locales_of_this_machine() -> None:
    assert host_places.file_system(Path("/proc")) == "proc"
    assert host_places.read_only(Path("/tmp")) is False  # noqa: S108 - only looked at
    assert "C.utf8" in host_places.locales()
    assert [host_places.charmap(name) for name in ("C.UTF-8", "POSIX", "xx_XX.UTF-8")] == [
        "UTF-8", "ANSI_X3.4-1968", "",
    ]  # fmt: skip


def test_tells_a_path_without_the_programs_of_the_administrator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    assert host_places.hidden_programs() == ""
    if not Path("/bin").is_symlink() or not os.path.lexists("/usr/bin/ldconfig"):
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        assert host_places.hidden_programs() == "/usr/bin:/bin"
