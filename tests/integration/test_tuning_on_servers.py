"""Every major's real server accepts what we compute for it, and has taken over each value once it runs.

Hosts that are larger than this machine start with what is listed in OVERRIDDEN in place of ours, nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provision.tuning import Host, Tuning, tune
from tests.embedded import VERSIONS, Server, cluster

HOSTS = {
    "512MB-1": Host(512, 1, container=True, shm_mb=64),
    "1GB-1": Host(1024, 1),
    "2GB-2": Host(2048, 2),
    "4GB-2": Host(4096, 2, "hdd"),
    "8GB-4": Host(8192, 4),
    "24GB-2": Host(24576, 2),
    "64GB-16": Host(65536, 16, "nvme"),
    "512GB-64": Host(524288, 64, "nvme"),
}
OVERRIDDEN = {"shared_buffers": "128MB", "huge_pages": "off", "min_wal_size": "80MB", "max_wal_size": "1GB"}
NOT_SHOWN_ON_SOCKETS = {"tcp_keepalives_idle": "60", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "6"}
MACHINE_MB = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20


@pytest.fixture(scope="module", params=sorted(VERSIONS))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with cluster(request.param) as made:
        yield made


def tuning_for(host: Host, profile: str, major: int) -> Tuning:
    return tune(host, profile, postgresql_major=major, pgvector_version="0.8.6", has_lz4=False, vectors=500_000)


@pytest.mark.parametrize("profile", ["dev", "prod"])
@pytest.mark.parametrize("name", HOSTS)
def test_server_accepts_and_takes_over_every_value(server: Server, name: str, profile: str) -> None:
    host = HOSTS[name]
    tuning = tuning_for(host, profile, server.major)
    server.configure(tuning.as_conf())
    assert server.check("max_connections") == tuning["max_connections"].text

    overridden = OVERRIDDEN if tuning["shared_buffers"].value * 2 > MACHINE_MB else {}  # type: ignore[operator]
    lines = [f"{setting} = {value}" for setting, value in overridden.items()]
    server.configure("\n".join([tuning.as_conf(), *lines, ""]))
    with server.running() as session:
        session.execute("LOAD 'auto_explain'")
        rows = session.execute("SELECT name, current_setting(name), context, reset_val FROM pg_settings").fetchall()
        errors = session.execute("SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL").fetchall()
    assert errors == []
    wanted = {setting.name: shown(setting.text) for setting in tuning.settings} | overridden | NOT_SHOWN_ON_SOCKETS
    seen = {row[0]: row[3] if row[0] in NOT_SHOWN_ON_SOCKETS else row[1] for row in rows}
    assert {setting: seen[setting] for setting in wanted} == wanted
    context = {row[0]: row[2] for row in rows}
    restart = {setting.name: setting.restart for setting in tuning.settings}
    assert restart == {setting: context[setting] == "postmaster" for setting in restart}


def shown(text: str) -> str:
    """A real number is shown without a trailing zero."""
    return text.removesuffix(".0") if text.replace(".", "").isdigit() else text


@pytest.mark.parametrize("name", ["2GB-2", "8GB-4", "512GB-64"])
def test_reserved_huge_pages_hold_the_shared_memory(server: Server, name: str) -> None:
    tuning = tuning_for(HOSTS[name], "prod", server.major)
    server.configure(tuning.as_conf())
    reserved = {setting.name: setting.value for setting in tuning.kernel}["vm.nr_hugepages"]
    assert isinstance(reserved, int)
    if server.major == 14:  # tells only once it runs
        if name == "512GB-64":
            assert server.check("huge_pages") == "try"
            return
        with server.running() as session:
            (row,) = session.execute("SELECT ceil(sum(allocated_size) / 2097152)::int FROM pg_shmem_allocations")
        needed = row[0]
    else:
        needed = int(server.check("shared_memory_size_in_huge_pages"))
    assert isinstance(needed, int)
    assert needed <= reserved <= needed * 1.08 + 16


@pytest.mark.parametrize("change", [{}, {"max_connections": 137}, {"shared_buffers": 131073}, {"max_wal_senders": 13}])
def test_buffer_pool_begins_at_a_page(server: Server, change: dict[str, object]) -> None:
    options = {"postgresql_major": server.major, "pgvector_version": "0.8.6", "has_lz4": False}
    tuning = tune(HOSTS["4GB-2"], "prod", overrides=change, **options)  # type: ignore[arg-type]
    if server.major >= 16:  # these align it themselves, within its allocation
        assert tuning["wal_buffers"].text == "16MB"
        return
    server.configure(f"{tuning.as_conf()}\nhuge_pages = off\n")
    with server.running() as session:
        query = "SELECT off FROM pg_shmem_allocations WHERE name = 'Buffer Blocks'"
        (row,) = session.execute(query).fetchall()
    assert isinstance(row[0], int)
    assert row[0] % 4096 == 0


@given(
    st.integers(440, 2**20),
    st.integers(1, 128),
    st.sampled_from(("ssd", "hdd", "nvme")),
    st.sampled_from(("dev", "prod")),
    st.none() | st.integers(0, 50_000_000),
)
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_server_parses_whatever_host_there_is(
    server: Server,
    memory: int,
    cpus: int,
    storage: Literal["ssd", "hdd", "nvme"],
    profile: str,
    vectors: int | None,
) -> None:
    host = Host(memory, cpus, storage)
    tuning = tune(
        host, profile, postgresql_major=server.major, pgvector_version="0.8.6", has_lz4=False, vectors=vectors
    )
    server.configure(tuning.as_conf())
    assert server.check("max_worker_processes") == tuning["max_worker_processes"].text


def test_refuses_nonsense_so_that_acceptance_means_something(server: Server) -> None:
    server.configure("work_mem = 12parsecs\n")
    with pytest.raises(AssertionError, match="work_mem"):
        server.check()
