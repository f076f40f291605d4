"""Settings are judged on the controller: names, types, units, ranges and places, each problem in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provision.tuning import catalogue, lists
from tests.plans import PROBE, SAMPLE, built

SIZE = "an integer with a unit (B, kB, MB, GB, TB; without one: kB)"
LOCALE = {"encoding": "UTF8", "collate": "en_US.UTF-8", "ctype": "en_US.UTF-8", "databases": ["minion"]}


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("wrok_mem", "64MB", "is not a setting of PostgreSQL 17: did you mean work_mem?"),
        ("qqq", 1, "is not a setting of PostgreSQL 17: SHOW ALL on PostgreSQL 17 lists them"),
        ("hnsw.ef_serch", 40, "is not a setting of PostgreSQL 17: did you mean hnsw.ef_search?"),
        ("pg_stat_statement.max", 40, "is not a setting of PostgreSQL 17: did you mean pg_stat_statements.max?"),
        ("io_method", "worker", "is a setting of PostgreSQL 18, postgresql_version is 17: remove the line"),
        ("force_parallel_mode", 1, "is a setting of PostgreSQL 14 to 15, postgresql_version is 17: remove the line"),
        ("checkpoint_segments", 3, "is not a setting of PostgreSQL 17: max_wal_size replaced it"),
        ("server_version", "17", "cannot be set: the server reports it; remove the line"),
        ("app-x.tenant", 1, "is not a setting's name: expected letters, digits, _ and $ around the dot"),
        ("work_mem", "64Mb", f"is '64Mb': expected {SIZE}; write 64MB"),
        ("work_mem", "1kB", "is '1kB': expected 64 to 2147483647 kB"),
        ("work_mem", "a lot", f"is 'a lot': expected {SIZE}"),
        ("work_mem", False, f"is False: expected {SIZE}"),
        ("work_mem", None, "is null: expected a value, or remove the line"),
        ("work_mem", ["64MB"], "is ['64MB']: expected one value, not a list"),
        ("work_mem", {"size": 1}, None),
        ("statement_timeout", "30m", "is '30m': expected an integer with a unit (us, ms, s, min, h, d"),
        ("max_connections", "10%", "is '10%': expected an integer"),
        ("random_page_cost", "fast", "is 'fast': expected a number"),
        ("jit", "maybe", "is 'maybe': expected on or off"),
        ("wal_level", "replicas", "is 'replicas': expected minimal, replica, logical; did you mean replica?"),
        ("log_timezone", "Asia/Kolkatta", "is 'Asia/Kolkatta': expected a name of the time zone database, such as "
         "Europe/Berlin or UTC; did you mean Asia/Kolkata?"),
        ("log_timezone", "UTC+3", "is 'UTC+3': expected a name of the time zone database"),
        ("search_path", "app public", "is 'app public': expected names separated by commas, or a list"),
        ("search_path", [{"a": 1}], "is [{'a': 1}]: expected a list of names"),
        ("search_path", 5, "is 5: expected a list of names"),
        ("log_line_prefix", "%m\n", "is '%m\\n': expected one line without control characters"),
    ],
)  # fmt: skip
def test_a_setting_that_the_server_would_refuse_is_refused(name: str, value: Any, problem: str | None) -> None:
    judged = catalogue.judge("postgresql_settings", {name: value}, 17)
    if problem is None:  # malformed, which tuning refuses
        assert judged.values == {name: value}
    else:
        assert judged.values == {}
        (reported,) = judged.problems
        assert reported.startswith(f"postgresql_settings.{name} {problem}")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("Work_Mem", "64MB", {"work_mem": "64MB"}),
        ("timezone", "Europe/Berlin", {"TimeZone": "Europe/Berlin"}),
        ("TIMEZONE", "<+0330>-3:30", {"TimeZone": "<+0330>-3:30"}),
        ("datestyle", "iso, mdy", {"DateStyle": "iso, mdy"}),
        ("sort_mem", 64, {"work_mem": "64"}),
        ("work_mem", 0x40, {"work_mem": "64"}),
        ("work_mem", "0x40", {"work_mem": "64"}),
        ("work_mem", " 1.5 GB", {"work_mem": "1.5GB"}),
        ("jit", True, {"jit": "on"}),
        ("jit", "TRUE", {"jit": "on"}),
        ("huge_pages", False, {"huge_pages": "off"}),
        ("wal_level", "hot_standby", {"wal_level": "replica"}),
        ("autovacuum_vacuum_scale_factor", 0.05, {"autovacuum_vacuum_scale_factor": "0.05"}),
        ("log_destination", ["stderr", "csvlog"], {"log_destination": "stderr, csvlog"}),
        ("search_path", ["app", "public"], {"search_path": "app, public"}),
        ("search_path", "$user, App", {"search_path": '"$user", app'}),
        ("cron.database_name", "minion", {"cron.database_name": "minion"}),
        ("work_mem", {"value": False, "reason": "no"}, {}),
        ("jit", {"value": False, "reason": "compiling costs more"},
         {"jit": {"value": "off", "reason": "compiling costs more"}}),
    ],
)  # fmt: skip
def test_a_valid_setting_gets_the_server_s_spelling(name: str, value: Any, expected: dict[str, Any]) -> None:
    assert catalogue.judge("postgresql_settings", {name: value}, 17).values == expected


def test_one_setting_under_two_names_is_refused() -> None:
    judged = catalogue.judge("postgresql_settings", {"timezone": "UTC", "TimeZone": "UTC", "sort_mem": 64}, 17)
    assert judged.problems == [
        "postgresql_settings.TimeZone sets TimeZone again, which postgresql_settings.timezone sets: keep one of them"
    ]


@pytest.mark.parametrize("name", ["max_connections", "log_line_prefix", "log_connections", "archive_command"])
def test_a_setting_of_the_whole_server_is_refused_for_a_role(name: str) -> None:
    (reported,) = catalogue.judge("database_roles, role app, settings", {name: "1"}, 17, role=True).problems
    assert reported == (
        f"database_roles, role app, settings.{name} cannot be set for a role, only for the server: set it in "
        "postgresql_settings"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("app, public", ("app", "public")),
        ('"$user", public', ("$user", "public")),
        (' "a""b" ,"c, d"', ('a"b', "c, d")),
        ("App", ("app",)),
        ("", ()),
        ('""', ()),
    ],
)
def test_a_list_is_split_as_the_server_splits_it(text: str, expected: tuple[str, ...]) -> None:
    assert lists.elements("search_path", text) == expected
    assert lists.elements("search_path", lists.text(expected)) == expected


@pytest.mark.parametrize("text", ["a,,b", "a,", '"a', "a b"])
def test_a_malformed_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a list of names"):
        lists.elements("search_path", text)


def problems(given: dict[str, Any], **probe: Any) -> tuple[str, ...]:
    return built("prod", {**SAMPLE, **given}, probe).problems


def test_the_plan_refuses_settings_of_server_and_roles_at_once_before_a_host_is_changed() -> None:
    extra = [{"name": "reports", "kind": "read", "settings": {"search_path": "a b", "statment_timeout": "1s"}}]
    assert problems({"postgresql_settings": {"wrok_mem": 1}, "database_extra_roles": extra}) == (
        "postgresql_settings.wrok_mem is not a setting of PostgreSQL 17: did you mean work_mem?",
        "database_extra_roles, role reports, settings.search_path is 'a b': expected names separated by commas, or a "
        "list",
        "database_extra_roles, role reports, settings.statment_timeout is not a setting of PostgreSQL 17: did you mean "
        "statement_timeout?",
    )


def test_the_plan_keeps_the_server_s_spelling() -> None:
    extra = [{"name": "reports", "kind": "backup", "settings": {"SEARCH_PATH": ["app", "public"], "jit": False}}]
    plan = built("prod", {**SAMPLE, "postgresql_settings": {"Work_Mem": "8MB"}, "database_extra_roles": extra}).plan
    assert plan
    assert plan.server.overrides == {"work_mem": "8MB"}
    assert plan.access.roles[-1].settings == {"search_path": "app, public", "jit": "off"}


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        ("pgvector", "which is not an extension of PostgreSQL 17: did you mean vector?"),
        ("uuid_ossp", "which is not an extension of PostgreSQL 17: did you mean uuid-ossp?"),
        ("pg_stat_statment", "which is not an extension of PostgreSQL 17: did you mean pg_stat_statements?"),
        ("adminpack", ": not found in PostgreSQL 17, in packages that provision installs or on the host"),
        ("timescaledb", ": not found in PostgreSQL 17, in packages that provision installs or on the host"),
    ],
)
def test_an_unknown_extension_is_refused(name: str, reported: str) -> None:
    (problem,) = problems({"database_extensions": ["vector", name]}, extension_files=[])
    assert problem.startswith(f"database_extensions has {name!r}")
    assert reported in problem


def test_an_extension_whose_files_the_host_has_is_accepted_and_one_without_a_host_is_warned_of() -> None:
    assert problems({"database_extensions": ["timescaledb"]}, extension_files=["timescaledb"]) == ()
    found = built("prod", {**SAMPLE, "database_extensions": ["timescaledb"]})
    assert "extension_files" not in PROBE
    assert any("'timescaledb', which only a run on the host can check" in text for text in found.notices)


@pytest.mark.parametrize(
    ("requested", "warned"),
    [("C.UTF-8", True), ("en_US.UTF-8", False), ("en_US.utf8", False), ("de_DE.UTF-8", True)],
)
def test_a_cluster_of_another_locale_is_named(requested: str, warned: bool) -> None:
    found = built("prod", {**SAMPLE, "postgresql_locale": requested}, {"cluster_locale": LOCALE})
    reported = [text for text in found.notices if text.startswith("postgresql_locale")]
    assert bool(reported) is warned
    if warned:
        assert reported[0].startswith(f"postgresql_locale is {requested}, cluster 17/main has en_US.UTF-8 and keeps it")


def test_a_cluster_in_which_no_utf_8_database_can_be_created_is_refused() -> None:
    latin = {**LOCALE, "encoding": "LATIN1", "collate": "en_US", "ctype": "en_US"}
    (reported,) = problems({"postgresql_locale": "en_US", "database_name": "other"}, cluster_locale=latin)
    assert reported.startswith("cluster 17/main has encoding LATIN1 and locale en_US, so database other")
    assert problems({"postgresql_locale": "en_US"}, cluster_locale=latin) == ()
    ascii_ = {**latin, "encoding": "SQL_ASCII", "collate": "C", "ctype": "C"}
    assert problems({"postgresql_locale": "C", "database_name": "other"}, cluster_locale=ascii_) == ()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
NAMES = st.sampled_from([row.name for row in catalogue.rows()]) | st.text() | st.integers()


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.sampled_from([14, 15, 16, 17, 18]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_mapping_gets_values_on_one_line_or_sentences(
    given_settings: dict[Any, Any], major: int, role: bool
) -> None:
    judged = catalogue.judge("postgresql_settings", given_settings, major, role=role)
    assert len(judged.values) + len(judged.problems) == len(given_settings)
    for name, text in judged.values.items():
        assert isinstance(text, str | dict)
        assert "\n" not in str(text) or isinstance(text, dict)
        if isinstance(text, str):
            again = catalogue.judge("postgresql_settings", {name: text}, major, role=role)
            assert again.values == {name: text}, "the server's spelling is judged equal"
    assert all(problem.startswith("postgresql_settings.") for problem in judged.problems)
