"""Checks of the host against real servers and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.checks import host
from tests.clusters import Cluster
from tests.plans import sample


def test_reports_a_server_without_the_huge_pages_reserved_for_it(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = sample(server={"data_directory": str(cluster.data)})
    monkeypatch.setattr(host, "KERNEL", tmp_path / "60-provision-postgresql.conf")
    assert list(host.huge_pages(plan)) == []
    host.KERNEL.write_text("# ours\nvm.swappiness = 1\nvm.nr_hugepages = 0\n")
    assert list(host.huge_pages(plan)) == []
    host.KERNEL.write_text("# ours\nvm.swappiness = 1\nvm.nr_hugepages = 150\n")
    (row,) = host.huge_pages(plan)
    assert row[0] == "the server uses none of the 150 huge pages reserved for it"
    assert "systemctl restart postgresql@17-main.service" in row[1]
