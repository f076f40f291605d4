"""What the doctor sees of a running server from outside, on real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.checks import host
from provision.checks.place import Place
from tests.clusters import Cluster


def test_a_server_without_the_huge_pages_that_are_reserved_is_named(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place({"postgresql": {"major": 17, "data_directory": str(cluster.data)}}, "db1")
    monkeypatch.setattr(host, "KERNEL", tmp_path / "60-provision-postgresql.conf")
    assert list(host.huge_pages(place)) == []
    host.KERNEL.write_text("# ours\nvm.swappiness = 1\nvm.nr_hugepages = 0\n")
    assert list(host.huge_pages(place)) == []
    host.KERNEL.write_text("# ours\nvm.swappiness = 1\nvm.nr_hugepages = 150\n")
    (row,) = host.huge_pages(place)
    assert row[0] == "the server has none of the 150 huge pages that are reserved for it"
    assert "systemctl restart postgresql@17-main.service" in row[1]
