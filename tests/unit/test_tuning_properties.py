"""What holds for every host: inside the budget, growing with memory, written so that a parser reads it."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from provision.errors import UsageError
from provision.tuning import Host, Tuning, tune

GROWING = (
    "shared_buffers",
    "effective_cache_size",
    "work_mem",
    "maintenance_work_mem",
    "max_connections",
    "max_wal_size",
)
UNITS = {"": 1, "B": 1, "kB": 2**10, "MB": 2**20}
MEMORY = st.integers(440, 2**20) | st.integers(440, 8192)
CPUS = st.integers(1, 128)
MAJOR = st.integers(14, 18)
PGVECTOR = st.sampled_from(("0.5.1", "0.7.4", "0.8.0", "0.8.6"))
VECTORS = st.none() | st.integers(0, 50_000_000)


def size(tuning: Tuning, name: str) -> float:
    setting = tuning[name]
    assert isinstance(setting.value, int)
    return setting.value * UNITS[setting.unit]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(MEMORY, CPUS, MAJOR, PGVECTOR, VECTORS, st.booleans(), st.none() | st.integers(1, 2**20))
def test_prod_never_exceeds_the_memory(
    memory: int, cpus: int, major: int, pgvector: str, vectors: int | None, container: bool, shm: int | None
) -> None:
    host = Host(memory, cpus, container=container, shm_mb=shm)
    tuning = tune(host, "prod", postgresql_major=major, pgvector_version=pgvector, vectors=vectors)
    assert tuning.budget_mb <= memory, tuning.budget
    assert size(tuning, "effective_cache_size") >= size(tuning, "shared_buffers")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(MEMORY, CPUS, st.integers(1, 5000), PGVECTOR, VECTORS)
def test_asked_for_connections_fit_or_are_refused(
    memory: int, cpus: int, connections: int, pgvector: str, vectors: int | None
) -> None:
    def ask(number: int) -> Tuning:
        return tune(Host(memory, cpus), "prod", pgvector_version=pgvector, vectors=vectors, max_connections=number)

    try:
        tuning = ask(connections)
    except UsageError as refusal:
        allowed = re.match(r"up to (\d+);", refusal.allowed)
        assert allowed is not None
        assert int(allowed[1]) < connections
        tuning = ask(int(allowed[1]))
    assert tuning.budget_mb <= memory, tuning.budget


@settings(max_examples=400, deadline=None, derandomize=True)
@given(MEMORY, st.integers(1, 4096), CPUS, PGVECTOR, VECTORS, st.sampled_from(("dev", "prod")))
def test_more_memory_never_shrinks_a_size(
    memory: int, more: int, cpus: int, pgvector: str, vectors: int | None, profile: str
) -> None:
    options = {"pgvector_version": pgvector, "vectors": vectors}
    small = tune(Host(memory, cpus), profile, **options)  # type: ignore[arg-type]
    large = tune(Host(memory + more, cpus), profile, **options)  # type: ignore[arg-type]
    for name in GROWING:
        assert size(large, name) >= size(small, name), name


@settings(max_examples=200, deadline=None, derandomize=True)
@given(MEMORY, CPUS, MAJOR, st.sampled_from(("dev", "prod")), st.sampled_from(("ssd", "hdd", "nvme")))
def test_every_line_is_an_assignment_or_a_comment(
    memory: int, cpus: int, major: int, profile: str, storage: str
) -> None:
    tuning = tune(Host(memory, cpus, storage), profile, postgresql_major=major)  # type: ignore[arg-type]
    value = r"(?:\d+(?:\.\d+)?(?:B|kB|MB|GB|ms|s|min)?|[a-z]\w*|'[^']*')"
    for line in tuning.as_conf().splitlines():
        assert re.fullmatch(rf"#.*|[a-z_.]+ = {value}|", line), line
    names = [setting.name for setting in tuning.settings]
    assert len(names) == len(set(names))
    assert all(setting.reason and "\n" not in setting.reason for setting in tuning.settings)
