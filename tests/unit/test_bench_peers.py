"""Settings of other systems: valid on every major, and equal to what their sources compute for one host."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest

from benchmarks.database import chosen, configurations
from benchmarks.peers import Peer, all_peers
from provision.compatibility import POSTGRESQL
from provision.controller.bench.harness import Configuration, turn
from provision.errors import UsageError
from provision.tuning import Host

HOST = Host(memory_mb=24105, cpus=2, disk_mb=252 * 1024)
BY_NAME = {peer.name: peer for peer in all_peers()}


@pytest.mark.parametrize("major", POSTGRESQL)
@pytest.mark.parametrize("name", BY_NAME)
def test_every_setting_is_valid_on_every_major(name: str, major: int) -> None:
    assert len(BY_NAME[name].values(HOST, major)) >= 14


@pytest.mark.parametrize("peer", BY_NAME.values(), ids=BY_NAME)
def test_a_source_has_a_commit_and_a_date(peer: Peer) -> None:
    assert peer.source.startswith("https://github.com/")
    assert re.fullmatch(r"[0-9a-f]{40}", peer.commit)
    assert f"{peer.commit[:7]}, {peer.date}" in peer.conf(HOST, 15).splitlines()[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tpa", {"shared_buffers": "6026MB", "effective_cache_size": "12052MB", "random_page_cost": "4.0"}),
        ("autobase", {"shared_buffers": "6026MB", "effective_cache_size": "18078MB", "max_worker_processes": "16"}),
        ("pigsty oltp", {"shared_buffers": "6027MB", "maintenance_work_mem": "1507MB", "work_mem": "64MB",
                         "max_wal_size": "52GB", "max_worker_processes": "24", "effective_cache_size": "18078MB"}),
    ],
)  # fmt: skip
def test_values_follow_the_host_by_the_rules_of_the_source(name: str, expected: dict[str, str]) -> None:
    found = BY_NAME[name].values(HOST, 17)
    assert {key: found[key] for key in expected} == expected


def test_pgtune_divides_the_memory_among_its_connections() -> None:
    host = Host(memory_mb=24576, cpus=2)
    web, mixed = BY_NAME["pgtune web"].values(host, 17), BY_NAME["pgtune mixed"].values(host, 17)
    # 18 GiB in kB / (208 x 3), and / (108 x 3) / 2
    assert (web["work_mem"], mixed["work_mem"]) == ("30247kB", "29127kB")
    assert (web["shared_buffers"], web["huge_pages"]) == ("6291456kB", "try")
    assert BY_NAME["pgtune web"].values(Host(4096, 8), 17)["max_parallel_workers_per_gather"] == "4"


def test_settings_that_a_system_adds_later_are_left_out_before() -> None:
    assert "wal_compression" not in BY_NAME["pigsty oltp"].values(HOST, 14)
    assert BY_NAME["pigsty oltp"].values(HOST, 15)["wal_compression"] == "lz4"
    assert "sync_replication_slots" not in BY_NAME["pigsty oltp"].values(HOST, 16)


def test_refuses_a_setting_that_the_server_would_refuse() -> None:
    wrong = dataclasses.replace(BY_NAME["tpa"], settings={"shared_bufers": "1GB"})
    with pytest.raises(UsageError, match="settings that PostgreSQL refuses"):
        wrong.values(HOST, 17)


def test_only_one_system_reserves_huge_pages() -> None:
    assert {name: peer.huge_pages(HOST) for name, peer in BY_NAME.items() if peer.huge_pages(HOST)} == {"tpa": 3374}


def test_parallel_builds_are_a_row_of_their_own_where_the_package_has_their_defect() -> None:
    assert "prod, parallel builds" in configurations(15, "0.8.0", 400)
    assert "prod, parallel builds" not in configurations(15, "0.8.6", 400)


def test_single_changes_are_rows_beside_the_base() -> None:
    known = {"stock": Configuration(""), "prod": Configuration("jit = off", 5), "tpa": Configuration("")}
    assert list(chosen(known, [], [], "stock")) == ["stock", "prod", "tpa"]
    found = chosen(known, [], ["jit = on"], "prod")
    assert list(found) == ["prod", "prod, jit = on"]
    assert found["prod, jit = on"].conf == "jit = off\njit = on"
    with pytest.raises(UsageError, match="unknown configuration"):
        chosen(known, ["tpas"], [], "stock")


def test_a_setting_is_left_at_its_default_without_the_pages_of_others() -> None:
    whole = Configuration("# jit = on\njit = off\nhuge_pages = try\njit_above_cost = 5", 7)
    assert whole.without("jit") == Configuration("# jit = on\nhuge_pages = try\njit_above_cost = 5", 7)
    assert whole.without("huge_pages").pages == 0


def test_each_round_has_an_order_of_its_own_that_every_run_repeats() -> None:
    names = [str(number) for number in range(20)]
    orders = [turn(names, number) for number in range(5)]
    assert all(sorted(each) == sorted(names) for each in orders)
    assert orders == [turn(names, number) for number in range(5)]
    assert len({tuple(each) for each in orders}) == 5
    neighbours = [set(itertools.pairwise(each)) for each in orders]
    assert not neighbours[0] & neighbours[1] & neighbours[2]
