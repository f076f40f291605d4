"""What hosts get, with values worked out by hand from the contract, the reference and pgvector's source."""

import json
from dataclasses import replace

import pytest

from provision.errors import UsageError
from provision.tuning import Host, Tuning, as_facts, tune, vector
from provision.tuning.choices import built_in

CONTRACT = {
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "work_mem": "16MB",
    "max_connections": "100",
    "random_page_cost": "1.1",
    "effective_io_concurrency": "200",
}
REFERENCE_HOST = Host(24576, 2)


def texts(tuning: Tuning, *names: str) -> list[str]:
    return [tuning[name].text for name in names]


@pytest.mark.parametrize("memory", [1920, 2048, 8192, 524288])  # a "2 GiB" machine reports about 1,920 MB
@pytest.mark.parametrize("storage", ["ssd", "hdd"])
@pytest.mark.parametrize("major", [14, 18])
def test_dev_is_exactly_the_contract(memory: int, storage: str, major: int) -> None:
    tuning = tune(Host(memory, 4, storage), "dev", postgresql_major=major)  # type: ignore[arg-type]
    assert {name: tuning[name].text for name in CONTRACT} == CONTRACT
    assert texts(tuning, "log_error_verbosity", "log_min_duration_statement") == ["verbose", "100ms"]


def test_dev_below_two_gigabytes_is_scaled_and_says_so() -> None:
    tuning = tune(Host(1024, 1), "dev")
    assert texts(tuning, "shared_buffers", "effective_cache_size", "work_mem", "max_connections") == [
        "128MB",
        "512MB",
        "8MB",
        "50",
    ]
    assert "the recommended values need 2 GiB; scaled to 50% for 1024 MB" in tuning.warnings


def test_dev_warns_of_an_exceeded_budget_and_prod_does_not_exceed_it() -> None:
    dev, prod = tune(Host(2048, 2), "dev"), tune(Host(2048, 2), "prod")
    assert any("acceptable for development" in warning for warning in dev.warnings)
    assert dev.budget_mb > 2048 >= prod.budget_mb


def test_prod_reaches_the_reference_on_its_host() -> None:
    tuning = tune(REFERENCE_HOST, "prod", postgresql_major=17, pgvector_version="0.8.6")
    assert {
        name: tuning[name].text
        for name in (
            "max_connections",
            "shared_buffers",
            "effective_cache_size",
            "work_mem",
            "autovacuum_work_mem",
        )
    } == {
        "max_connections": "100",
        "shared_buffers": "6GB",
        "effective_cache_size": "18GB",
        "work_mem": "32MB",
        "autovacuum_work_mem": "256MB",
    }
    assert texts(tuning, "maintenance_work_mem", "max_parallel_maintenance_workers") == ["1536MB", "1"]
    assert texts(tuning, "wal_compression", "wal_buffers", "min_wal_size", "max_wal_size") == [
        "lz4",
        "64MB",
        "4GB",
        "8GB",
    ]
    assert texts(tuning, "huge_pages", "random_page_cost", "jit", "checkpoint_timeout") == [
        "try",
        "1.1",
        "off",
        "30min",
    ]
    # 6 GB and 6 % and 16 MB are 6,529 MB.
    assert [setting.line for setting in tuning.kernel] == ["vm.swappiness = 1", "vm.nr_hugepages = 3265"]


def test_size_that_aligns_the_buffer_pool_follows_what_lies_before_it() -> None:
    def buffers(major: int = 15, senders: int = 10, **given: object) -> str:
        options = {"postgresql_major": major, "pgvector_version": "0.8.6", "wal_senders": senders}
        return tune(REFERENCE_HOST, "prod", overrides=given, **options)["wal_buffers"].text  # type: ignore[arg-type]

    assert (buffers(), buffers(16)) == ("68352kB", "64MB")
    assert buffers(senders=13) == buffers(max_wal_senders=13) == "67968kB"  # three semaphores more
    assert (buffers(wal_buffers="32MB"), buffers(shared_buffers="256MB")) == ("32MB", "64MB")


def test_budget_is_the_sum_that_a_reader_can_check() -> None:
    tuning = tune(REFERENCE_HOST, "prod", postgresql_major=17, pgvector_version="0.8.6")
    assert [(line.label, line.mb) for line in tuning.budget] == [
        ("system", 1536),  # 1/16
        ("shared memory", 6529),
        ("sessions", 102 * (5 + 2 * 32)),
        ("autovacuum", 3 * 256),
        ("maintenance", 1536),
    ]
    assert "# Worst-case memory: 17407 of 24576 MB" in tuning.as_conf()


def test_smallest_host_starts_small_and_says_what_is_missing() -> None:
    tuning = tune(Host(512, 1, container=True, shm_mb=64), "prod")
    assert texts(tuning, "shared_buffers", "max_connections", "huge_pages") == ["128MB", "15", "off"]
    assert texts(tuning, "max_parallel_maintenance_workers", "max_parallel_workers_per_gather") == ["0", "0"]
    assert tuning.kernel == ()
    assert tuning.pool_limit == 7
    assert [warning.split(":")[0] for warning in tuning.warnings] == [
        "512 MB allow 15 connections, 7 of them for pools",
        "one CPU",
        "a container cannot change kernel settings",
    ]


@pytest.mark.parametrize(("one", "other"), [(24105, 24090), (1963, 1956), (64301, 64280)])
@pytest.mark.parametrize("profile", ["dev", "prod"])
def test_another_kernel_on_the_same_machine_changes_nothing(one: int, other: int, profile: str) -> None:
    """Otherwise shared_buffers would move, and every kernel update would leave a restart pending."""
    first, second = (tune(Host(memory, 2), profile).settings for memory in (one, other))
    assert first == second


@pytest.mark.parametrize("memory", [439, 64])
def test_refuses_a_host_that_cannot_work(memory: int) -> None:
    with pytest.raises(UsageError, match="too little memory"):
        Host(memory, 1)


def test_small_shm_makes_builds_serial_and_keeps_queries_out_of_it() -> None:
    tuning = tune(Host(8192, 4, container=True, shm_mb=64), "prod", postgresql_major=17, pgvector_version="0.8.6")
    assert texts(tuning, "maintenance_work_mem", "max_parallel_maintenance_workers") == ["704MB", "0"]
    assert tuning["max_parallel_workers_per_gather"].text == "0"
    assert "builds are serial; 720 MB would suffice (--shm-size)" in tuning.warnings[0]


def test_shm_that_holds_the_expected_vectors_keeps_builds_parallel() -> None:
    host = Host(24576, 4, container=True, shm_mb=1024)
    tuning = tune(host, "prod", postgresql_major=17, pgvector_version="0.8.6", vectors=100_000)
    # 100,000 vectors need 666 MB; of 1,024 MB 16 are left to queries, and 960 is the next lower multiple of 64.
    assert texts(tuning, "maintenance_work_mem", "max_parallel_maintenance_workers") == ["960MB", "3"]


@pytest.mark.parametrize(
    ("version", "package", "accepted", "workers"),
    [
        ("0.5.1", "", (), "0"),
        ("0.8.0", "0.8.0-1", (), "0"),
        ("0.8.0", "0.8.0-1", ("CVE-2026-3172",), "3"),
        ("0.8.6", "", (), "3"),
    ],
)
def test_builds_are_parallel_only_where_that_is_safe(
    version: str, package: str, accepted: tuple[str, ...], workers: str
) -> None:
    tuning = tune(Host(8192, 4), "prod", pgvector_version=version, pgvector_package=package, accepted=accepted)
    assert tuning["max_parallel_maintenance_workers"].text == workers


def test_build_memory_agrees_with_the_measured_overflow() -> None:
    """pgvector said: hnsw graph no longer fits into maintenance_work_mem after 9216 tuples, at 64 MB."""
    assert abs(vector.capacity(64, 1536) - 9216) < 9216 * 0.005
    assert vector.build_mb(2_000_000, 1536) == 13262


def test_budget_knows_that_old_builds_take_a_third_more() -> None:
    """palloc rounds the 6,152 bytes of a vector up to 8,192 in 0.5.x."""
    old, new = (tune(REFERENCE_HOST, "prod", pgvector_version=version) for version in ("0.5.1", "0.6.0"))
    assert [tuning["maintenance_work_mem"].text for tuning in (old, new)] == ["1536MB", "1536MB"]
    assert [tuning.budget[-1].mb for tuning in (old, new)] == [2048, 1536]


def test_expected_vectors_raise_buffers_and_build_memory() -> None:
    without = tune(REFERENCE_HOST, "prod", pgvector_version="0.8.6")
    with_vectors = tune(REFERENCE_HOST, "prod", pgvector_version="0.8.6", vectors=500_000)
    # 500,000 x 6,951 bytes and 3 MB are 3,318 MB, in multiples of 64.
    assert texts(with_vectors, "shared_buffers", "maintenance_work_mem") == ["7808MB", "3328MB"]
    assert texts(without, "shared_buffers", "maintenance_work_mem") == ["6GB", "1536MB"]


def test_build_that_cannot_fit_is_announced_with_the_way_out() -> None:
    (warning,) = tune(Host(8192, 4), "prod", pgvector_version="0.8.6", vectors=2_000_000).warnings
    assert "2,000,000 vectors needs 13312 MB" in warning
    assert "SET maintenance_work_mem = '13312MB'" in warning


@pytest.mark.parametrize(("major", "lz4", "value"), [(14, True, "off"), (15, True, "lz4"), (18, False, "off")])
def test_lz4_only_where_the_server_has_it(major: int, lz4: bool, value: str) -> None:
    assert tune(REFERENCE_HOST, "prod", postgresql_major=major, has_lz4=lz4)["wal_compression"].text == value


def test_majors_differ_only_where_they_must() -> None:
    names = {m: {s.name for s in tune(REFERENCE_HOST, "prod", postgresql_major=m).settings} for m in range(14, 19)}
    assert names[15] - names[14] == set()
    assert names[16] - names[15] == {
        "vacuum_buffer_usage_limit",
        "auto_explain.log_parameter_max_length",
        "reserved_connections",
    }
    assert names[17] - names[16] == set()
    assert names[18] - names[17] == {"io_method", "io_workers", "autovacuum_worker_slots"}


def test_searching_roles_get_what_the_extension_has() -> None:
    old, new = tune(REFERENCE_HOST, "prod"), tune(REFERENCE_HOST, "prod", pgvector_version="0.8.0-1")
    assert [setting.line for setting in old.role_settings] == ["hnsw.ef_search = 200"]
    assert [setting.line for setting in new.role_settings] == [
        "hnsw.ef_search = 100",
        "hnsw.iterative_scan = strict_order",
    ]


def test_overrides_win_and_keep_their_reason() -> None:
    overrides = {
        "work_mem": {"value": "64MB", "reason": "reports"},
        "log_lock_waits": False,
        "shared_preload_libraries": "pg_cron",
        "cron.database_name": "minion",
    }
    tuning = tune(REFERENCE_HOST, "prod", overrides=overrides)
    assert tuning["work_mem"].line == "work_mem = 64MB"
    assert tuning["work_mem"].reason.startswith("reports (computed: 32MB")
    assert tuning["log_lock_waits"].line == "log_lock_waits = off"
    assert tuning["shared_preload_libraries"].line == (
        "shared_preload_libraries = 'pg_stat_statements,auto_explain,pg_cron'"
    )
    assert tuning["cron.database_name"].group == "user settings"


def test_preload_names_each_library_once() -> None:
    tuning = tune(REFERENCE_HOST, "prod", preload=["auto_explain", "pg_cron"])
    assert tuning["shared_preload_libraries"].text == "pg_stat_statements,auto_explain,pg_cron"


def test_cache_is_warmed_after_a_restart_where_the_library_is_preloaded() -> None:
    warm = tune(REFERENCE_HOST, "prod", preload=["pg_prewarm"])
    assert texts(warm, "pg_prewarm.autoprewarm", "pg_prewarm.autoprewarm_interval") == ["on", "5min"]
    assert "pg_prewarm" not in tune(REFERENCE_HOST, "prod").as_conf()


def test_containers_use_huge_pages_only_if_configured() -> None:
    few = tune(Host(24576, 2, container=True, huge_pages=100), "prod")
    enough = tune(Host(24576, 2, container=True, huge_pages=3265), "prod")
    reported = tune(Host(24576, 2, container=True), "prod", overrides={"huge_pages": "try"})
    assert [one["huge_pages"].text for one in (few, enough, reported)] == ["off", "off", "try"]
    assert few.as_conf() == enough.as_conf()
    assert any("vm.nr_hugepages = 3265 on its host" in warning for warning in few.warnings)


@pytest.mark.parametrize("disk_mb", [5000, 20000])
def test_wal_stays_below_a_tenth_of_the_disk(disk_mb: int) -> None:
    value = tune(Host(24576, 2, disk_mb=disk_mb), "prod")["max_wal_size"].value
    assert isinstance(value, int)
    assert disk_mb / 10 - 64 < value <= disk_mb / 10


def test_prod_never_logs_values_of_parameters_or_all_statements() -> None:
    tuning = tune(REFERENCE_HOST, "prod", postgresql_major=16)
    names = ("log_parameter_max_length", "auto_explain.log_parameter_max_length", "log_statement")
    assert texts(tuning, *names) == ["0", "0", "ddl"]


def test_profile_decides_on_the_check_for_lost_clients_and_the_timing_of_io() -> None:
    for profile in ("dev", "prod"):
        tuning = tune(Host(2048, 2), profile)
        assert texts(tuning, "client_connection_check_interval", "track_io_timing") == ["10s", "on"]
    off = replace(built_in("prod"), client_connection_check_s=0, track_io_timing=False)
    tuning = tune(Host(2048, 2), "prod", choices=off)
    assert texts(tuning, "client_connection_check_interval", "track_io_timing") == ["0", "off"]
    assert "statement_timeout" in tuning["client_connection_check_interval"].reason


def test_pgaudit_logs_roles_and_objects_but_no_parameters() -> None:
    tuning = tune(REFERENCE_HOST, "prod", postgresql_major=17, preload=["pgaudit"])
    names = ("pgaudit.log", "pgaudit.log_parameter", "pgaudit.log_catalog", "pgaudit.log_statement_once")
    assert texts(tuning, *names) == ["role,ddl", "off", "off", "on"]
    assert tuning["pgaudit.log"].line == "pgaudit.log = 'role,ddl'"
    assert not any(each.name.startswith("pgaudit") for each in tune(REFERENCE_HOST, "prod").settings)


def test_facts_are_plain_and_complete() -> None:
    facts = as_facts({"memory_mb": 24576, "cpus": 2}, "prod", postgresql_major=17)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["kernel"] == {"vm.swappiness": "1", "vm.nr_hugepages": "3265"}
    assert facts["role_settings"] == {"hnsw.ef_search": "200"}
    assert facts["pool_limit"] == 92
    settings = facts["settings"]
    assert isinstance(settings, list)
    assert settings[0]["line"] == "shared_buffers = 6GB"
    assert settings[0]["restart"] is True


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tune(REFERENCE_HOST, "staging"), "unknown profile"),
        (lambda: tune(REFERENCE_HOST, "prod", postgresql_major=13), "unknown PostgreSQL major"),
        (lambda: tune(REFERENCE_HOST, "prod", max_connections=5000), "max_connections does not fit"),
        (lambda: Host(2048, 2, "tape"), "unknown storage kind"),  # type: ignore[arg-type]
        (lambda: Host(2048, 0), "at least one CPU"),
    ],
)
def test_refuses_what_cannot_be_meant(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(UsageError, match=message):
        call()


def test_what_depends_on_the_users_sizes_follows_them() -> None:
    more = tune(REFERENCE_HOST, "prod", overrides={"max_connections": {"value": 200}})
    assert more["max_connections"].text == "200"
    assert more.pool_limit == 192
    assert more.budget_mb <= 24576
    larger = tune(REFERENCE_HOST, "prod", overrides={"shared_buffers": "8GB"})
    kernel = {setting.name: setting.value for setting in larger.kernel}
    assert kernel["vm.nr_hugepages"] == 4350  # 8,192 MB x 1.06 + 16 MB, in pages of 2 MB
    assert [line.mb for line in larger.budget if line.label == "shared memory"] == [8700]


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        ({"work_mem": "1GB"}, "postgresql_settings: the worst case needs 2"),
        ({"work_mem": 2097152}, "postgresql_settings: the worst case needs 4"),
        ({"maintenance_work_mem": "20GB"}, "postgresql_settings: the worst case needs 4"),
    ],
)
def test_warns_where_the_users_sizes_break_the_budget(overrides: dict[str, object], needed: str) -> None:
    tuning = tune(REFERENCE_HOST, "prod", overrides=overrides)
    assert any(warning.startswith(needed) and "of 24576 MB" in warning for warning in tuning.warnings), tuning.warnings


def test_no_huge_pages_are_reserved_where_the_user_turns_them_off() -> None:
    tuning = tune(REFERENCE_HOST, "prod", overrides={"huge_pages": "off"})
    assert [setting.name for setting in tuning.kernel] == ["vm.swappiness"]


def test_the_users_max_connections_must_fit() -> None:
    with pytest.raises(UsageError, match="max_connections does not fit"):
        tune(REFERENCE_HOST, "prod", overrides={"max_connections": 5000})
