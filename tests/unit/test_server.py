"""Kernel values and postmaster.pid, from trees as the kernel and PostgreSQL lay them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from provision.host.server import kernel
from provision.host.server.cluster import Postmaster

REQUESTED = {"vm.swappiness": "1", "vm.nr_hugepages": "600"}


@pytest.mark.parametrize(
    ("swappiness", "pages", "differs"),
    [("1", "600", False), ("60", "600", True), ("1", "599", True), ("1", "700", False), ("1", "0", True)],
)
def test_kernel_differs_by_values_and_missing_pages(tmp_path: Path, swappiness: str, pages: str, differs: bool) -> None:
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm/swappiness").write_text(f"{swappiness}\n")
    (tmp_path / "vm/nr_hugepages").write_text(f"{pages}\n")
    present = kernel.values(REQUESTED, tmp_path)
    assert present == {"vm.swappiness": swappiness, "vm.nr_hugepages": pages}
    assert kernel.differs(REQUESTED, present) is differs


def test_memory_is_compacted_where_the_kernel_can(tmp_path: Path) -> None:
    assert not kernel.compact(tmp_path)
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm/compact_memory").touch()
    assert kernel.compact(tmp_path)
    assert (tmp_path / "vm/compact_memory").read_text() == "1"


def test_missing_huge_pages_are_reported_with_what_a_reboot_does() -> None:
    (text,) = kernel.warnings(kernel.Kernel(changed=True, huge_pages=300, expected=600))
    assert text.startswith("the kernel reserved 300 of 600 huge pages")
    assert "until a reboot, which reserves all of them" in text
    assert list(kernel.warnings(kernel.Kernel(changed=False, huge_pages=700, expected=600))) == []


def test_container_without_kernel_settings_has_nothing_to_apply() -> None:
    assert kernel.values({}) == {}
    assert not kernel.differs({}, {})


def test_pid_file_of_a_crashed_server_is_no_server(tmp_path: Path) -> None:
    assert Postmaster.read(tmp_path) is None
    # The process id is that of another program by now: this test.
    lines = [str(os.getpid()), str(tmp_path), "1795857458", "5433", "/run/postgresql", "localhost", "1 2", "ready   "]
    (tmp_path / "postmaster.pid").write_text("\n".join(lines) + "\n")
    assert Postmaster.read(tmp_path) is None
    (tmp_path / "postmaster.pid").write_text("damaged\n")
    assert Postmaster.read(tmp_path) is None
