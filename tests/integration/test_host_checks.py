"""Checks of the host against real servers and files."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from provision.checks import host, updates
from provision.checks.finding import Severity
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


def test_reports_a_major_without_further_fixes() -> None:
    rows = [row for row in host.advisories(sample(server={"major": 14})) if "end-of-life" in row[0]]
    assert [row[0] for row in rows] == [
        "postgresql-end-of-life: PostgreSQL 14 reached its end of life on 2026-11-12: it gets no more fixes"
    ]
    assert rows[0][1].endswith("existing hosts: docs/move-to-another-major.md")


STANZAS = """Package: {name}
Status: {wanted} ok installed
Version: {version}
Architecture: all
Maintainer: a test <test@example.com>
Description: a package of a test
{more}
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dpkg database and a package source of this test alone, which the real apt has read; returns the lists."""
    for name in ("dpkg/info", "dpkg/updates", "state/lists/partial", "cache/archives/partial", "archive"):
        (tmp_path / name).mkdir(parents=True)
    installed = (("pgbouncer", "install", "1.24.1-1"), ("pgbackrest", "hold", "2.55.1-1"), ("other", "install", "1"))
    text = [STANZAS.format(name=name, wanted=wanted, version=version, more="") for name, wanted, version in installed]
    (tmp_path / "dpkg/status").write_text("\n".join(text))
    newer = (("pgbouncer", "1.25.2-1"), ("pgbackrest", "2.57.0-1"), ("other", "2"))
    offered = [
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nFilename: {name}.deb\nSize: 1\n"
        for name, version in newer
    ]
    (tmp_path / "archive/Packages").write_text("\n".join(offered))
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] copy:{tmp_path}/archive ./\n")
    conf = tmp_path / "apt.conf"
    conf.write_text(
        f'Dir::State "{tmp_path}/state/"; Dir::State::status "{tmp_path}/dpkg/status"; Dir::Cache "{tmp_path}/cache/";'
        f' Dir::Etc::SourceList "{tmp_path}/sources.list"; Dir::Etc::SourceParts "/dev/null";'
        ' APT::Sandbox::User "root";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(conf))
    monkeypatch.setenv("DPKG_ADMINDIR", str(tmp_path / "dpkg"))
    monkeypatch.setattr(updates, "LISTS", tmp_path / "state/lists")
    subprocess.run(["apt-get", "-q", "update"], check=True, capture_output=True)
    return tmp_path / "state/lists"


def test_reports_packages_older_than_those_of_the_sources(sources: Path) -> None:
    behind, held = updates.updates(sample())
    assert behind[0] == "pgbouncer 1.24.1-1 (available: 1.25.2-1)"
    assert behind[1].startswith("ansible-playbook update.yml ")
    assert behind[1].endswith(" -e update_apply=yes")
    assert held[0] == "on hold: pgbackrest 2.55.1-1 (available: 2.57.0-1)"
    assert held[1].startswith("apt-mark unhold pgbackrest  # then ansible-playbook update.yml ")
    assert held[2:] == (Severity.ACCEPTED,)
    month_ago = time.time() - 31 * 86400
    for path in (sources, sources / "partial"):
        os.utime(path, (month_ago, month_ago))
    *_, old = updates.updates(sample())
    assert old == ("the package lists were read 31 days ago, so newer packages are unknown", "apt-get update")


def test_reports_nothing_for_the_newest_packages(sources: Path) -> None:
    status = sources.parents[1] / "dpkg/status"
    status.write_text(status.read_text().replace("1.24.1-1", "1.25.2-1").replace("2.55.1-1", "2.57.0-1"))
    assert list(updates.updates(sample())) == []
