"""Checks of the host against real servers and files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from provision.checks import host
from provision.tuning import Host, tune
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
    monkeypatch.setattr(host, "PAGES", tmp_path / "nr_hugepages")
    host.PAGES.write_text("40\n")
    host.KERNEL.write_text("# ours\nvm.swappiness = 1\nvm.nr_hugepages = 150\n")
    (row,) = host.huge_pages(plan)
    assert row[0] == "the kernel reserved 40 of 150 huge pages, so the server uses ordinary ones"
    assert "provision server kernel --again" in row[1]
    host.PAGES.write_text("150\n")
    (row,) = host.huge_pages(plan)
    assert row[0] == "the server uses none of the 150 huge pages reserved for it"
    assert "systemctl restart postgresql@17-main.service" in row[1]


def test_reports_a_server_that_no_longer_lists_its_cached_pages(cluster: Cluster) -> None:
    settings = tune(Host(8192, 4), "prod", preload=["pg_prewarm"]).settings
    plan = sample(server={"data_directory": str(cluster.data), "settings": settings, "overrides": {}})
    pid, listed = cluster.data / "postmaster.pid", cluster.data / "autoprewarm.blocks"
    started = pid.stat().st_mtime
    try:
        assert list(host.prewarm(plan)) == []  # the server has just started
        hour_ago = time.time() - 3600
        os.utime(pid, (hour_ago, hour_ago))
        (row,) = host.prewarm(plan)
        assert row[0] == f"{listed} was last written 60 min ago; the interval is 5 min"
        assert "systemctl restart postgresql@17-main.service" in row[1]
        listed.write_text("<<0>>\n")
        assert list(host.prewarm(plan)) == []
        os.utime(listed, (hour_ago, hour_ago))
        assert len(list(host.prewarm(plan))) == 1
        assert list(host.prewarm(sample(server={"data_directory": str(cluster.data), "settings": ()}))) == []
    finally:
        listed.unlink(missing_ok=True)
        os.utime(pid, (started, started))
