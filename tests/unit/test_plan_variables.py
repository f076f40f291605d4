"""Variables are judged against the roles' specifications: every problem names the variable, its value and the cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provision.controller import inputs
from provision.errors import UsageError
from provision.plan import variables
from tests import plans

SPECS = inputs.specifications()


def judge(**values: Any) -> tuple[dict[str, Any], list[str]]:
    return variables.judge({name: SPECS[name] for name in values}, values)


def problem(**values: Any) -> str:
    typed, (told,) = judge(**values)
    assert typed == {}
    return told


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"postgresql_port": "5433"}, 5433),  # -e postgresql_port=5433 is text
        ({"postgresql_port": 5433}, 5433),
        ({"postgresql_restart_allowed": "true"}, True),
        ({"postgresql_restart_allowed": "False"}, False),
        ({"postgresql_restart_allowed": "yes"}, True),
        ({"postgresql_restart_allowed": 0}, False),
        ({"backup_repository_passphrase": 12345678901234567890}, "12345678901234567890"),
        ({"tls_ca_passphrase": "00123"}, "00123"),
        ({"pgvector_version": 0.8}, "0.8"),
        ({"postgresql_listen_addresses": ["0.0.0.0"]}, ["0.0.0.0"]),  # noqa: S104 - read, not bound
        ({"postgresql_listen_addresses": []}, []),
        ({"pgbouncer_pools": {"minion": 5}}, {"minion": 5}),
    ],
)
def test_reads_values_as_inventories_and_the_command_line_write_them(values: dict[str, Any], expected: Any) -> None:
    typed, problems = judge(**values)
    assert problems == []
    (found,) = typed.values()
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"postgresql_listen_addresses": "0.0.0.0"},  # noqa: S104 - refused, not bound
         "postgresql_listen_addresses is '0.0.0.0': expected a list; write ['0.0.0.0']"),
        ({"tls_extra_names": "a,b"}, "tls_extra_names is 'a,b': expected a list; write ['a,b']"),
        ({"tls_extra_names": {"a": 1}}, "tls_extra_names is a mapping of a: expected a list"),
        ({"tls_extra_names": ["a", ["b"]]}, "tls_extra_names[1] is ['b']: expected a string"),
        ({"postgresql_port": "five"}, "postgresql_port is 'five': expected an integer"),
        ({"postgresql_port": 54.5}, "postgresql_port is 54.5: expected an integer"),
        ({"postgresql_port": True}, "postgresql_port is True: expected an integer"),
        ({"postgresql_port": ""}, "postgresql_port is '': expected an integer"),
        ({"postgresql_port": None}, "postgresql_port is None: expected an integer"),
        ({"postgresql_allowed_networks": None}, "postgresql_allowed_networks is None: expected a list"),
        ({"backup_physical": None}, "backup_physical is None: expected true or false"),
        ({"tls_enabled": "maybe"}, "tls_enabled is 'maybe': expected true or false"),
        ({"tls_enabled": 2}, "tls_enabled is 2: expected true or false"),
        ({"database_name": True}, "database_name is True: expected a string"),
        ({"database_name": ["a"]}, "database_name is ['a']: expected a string"),
        ({"postgresql_settings": ["work_mem"]}, "postgresql_settings is ['work_mem']: expected a mapping"),
        ({"postgresql_repository": "pgdgg"},
         "postgresql_repository is 'pgdgg': expected pgdg, distribution, mirror, bundle; did you mean pgdg?"),
        ({"tls_key_type": "dsa"}, "tls_key_type is 'dsa': expected ecdsa, rsa; did you mean ecdsa?"),
        ({"database_owner": ["x" * 100]}, f"database_owner is ['{'x' * 58}...: expected a string"),
    ],
)  # fmt: skip
def test_refuses_a_value_of_another_type_and_shows_it(values: dict[str, Any], expected: str) -> None:
    assert problem(**values) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"database_credentials": "hunter2hunter2"},
         "database_credentials is a secret of type str: expected a mapping"),
        ({"database_credentials": ["hunter2hunter2"]},
         "database_credentials is a secret of type list: expected a mapping"),
        ({"backup_repository_passphrase": ["hunter2hunter2"]},
         "backup_repository_passphrase is a secret of type list: expected a string"),
        ({"tls_ca_passphrase": {"x": "hunter2hunter2"}},
         "tls_ca_passphrase is a secret of type dict: expected a string"),
        ({"backup_s3": {"key_secret": ["hunter2hunter2"]}},
         "backup_s3.key_secret is a secret of type list: expected a string"),
        ({"backup_s3": {"key": ["hunter2hunter2"]}}, "backup_s3.key is a secret of type list: expected a string"),
        ({"monitoring_users": "hunter2hunter2"}, "monitoring_users is a secret of type str: expected a mapping"),
    ],
)  # fmt: skip
def test_never_shows_a_secret(values: dict[str, Any], expected: str) -> None:
    assert problem(**values) == expected


def test_nested_option_without_a_value_counts_as_left_out() -> None:
    typed, problems = judge(database_extra_roles=[{"name": "web", "kind": "write", "valid_until": None}])
    assert problems == []
    assert typed["database_extra_roles"][0]["valid_until"] is None


def test_every_option_that_is_filled_from_the_vault_is_marked_as_a_secret() -> None:
    named = {name for name, spec in SPECS.items() if "vault" in spec["description"]}
    assert named == {name for name, spec in SPECS.items() if spec.get("no_log")}
    assert {"database_credentials", "backup_repository_passphrase", "tls_ca_passphrase", "monitoring_users"} == named


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"backup_s3": {"buket": "b"}}, ["backup_s3.buket: unknown key; did you mean bucket?"]),
        ({"backup_s3": {"uri_style": "hosts"}},
         ["backup_s3.uri_style is 'hosts': expected host, path; did you mean host?"]),
        ({"maintenance_extra_retention": [{"table": "a", "column": "b", "days": "x"}]},
         ["maintenance_extra_retention[0].days is 'x': expected an integer"]),
        ({"maintenance_extra_retention": [{"table": "a", "zzz": 1}]},
         ["maintenance_extra_retention[0].zzz: unknown key; allowed: table, column, days",
          "maintenance_extra_retention[0].column is required: The column with a row's time, which needs an index.",
          "maintenance_extra_retention[0].days is required: Age in days; 0 keeps rows for ever."]),
        ({"database_extra_roles": [{"name": "web", "kind": "writer"}]},
         ["database_extra_roles[0].kind is 'writer': expected owner, write, read, backup, monitor, pooler; "
          "did you mean write?"]),
    ],
)  # fmt: skip
def test_nested_options_are_judged_with_their_place(values: dict[str, Any], expected: list[str]) -> None:
    assert judge(**values)[1] == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("restore_traget", "unknown variable restore_traget: did you mean restore_target?"),
        ("postgresql_verison", "unknown variable postgresql_verison: did you mean postgresql_version?"),
        ("postgesql_port", "unknown variable postgesql_port: did you mean postgresql_port?"),
        ("pgvector_zzzzzzzzzzz", "unknown variable pgvector_zzzzzzzzzzz: see the README of the role pgvector"),
    ],
)
def test_unknown_variable_is_refused_with_the_nearest_name(name: str, expected: str) -> None:
    assert plans.read("prod", {name: "x"}).problems == (expected,)


def test_variables_of_the_user_s_own_pass() -> None:
    assert plans.read("prod", {"app_release": 1, "site_owner": "x", "ansible_port": 22}).problems == ()


def test_required_option_that_is_missing_is_named() -> None:
    assert variables.judge({"a_b": {"type": "int", "required": True, "description": "The number."}}, {}) == (
        {},
        ["a_b is required: The number."],
    )


def test_renamed_variable_is_read_with_a_warning() -> None:
    found = plans.read("prod", {"preflight_minimum_disk_mb": 77})
    assert found.values["plan_minimum_disk_mb"] == 77
    assert found.warnings == (
        "variable preflight_minimum_disk_mb is now called plan_minimum_disk_mb; the old name is still read",
    )
    assert found.problems == ()


def test_renamed_profile_name_still_chooses_the_profile() -> None:
    given = {"preflight_profile_name": "dev"}
    found = inputs.read(given, plans.defaults(), plans.Template(), (inputs.ROOT,))
    assert found.profile["tls"]["enabled"] is False
    assert found.values["plan_profile_name"] == "dev"
    assert found.warnings[0].startswith("variable preflight_profile_name is now called plan_profile_name")


def test_new_name_wins_over_the_renamed_one() -> None:
    given = {"preflight_minimum_disk_mb": 77, "plan_minimum_disk_mb": 88}
    assert plans.read("prod", given).values["plan_minimum_disk_mb"] == 88


def test_unknown_profile_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        plans.read("prd")
    assert refused.value.what == "plan_profile_name is 'prd'"
    assert refused.value.allowed == "dev, prod; did you mean prod?"
    with pytest.raises(UsageError, match=r"plan_profile_name is '\.\./prod'"):
        inputs.profile("../prod", (tmp_path, inputs.ROOT))


def test_template_that_cannot_be_evaluated_is_a_problem_of_its_variable() -> None:
    loader_trusts = plans.trusted("{{ nowhere_defined }}")
    given = {"plan_profile_name": "prod", **plans.OF_ANSIBLE, "database_name": loader_trusts}
    found = inputs.read(given, plans.defaults(), plans.Template(), (inputs.ROOT,))
    (told,) = found.problems
    assert told.startswith("database_name cannot be evaluated: ")
    assert "nowhere_defined" in told


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=3)
    | st.sampled_from(["true", "5432", "0.0.0.0", "-1", "1e9", "nan"]),  # noqa: S104 - read, not bound
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
PYTHON = {"str": str, "path": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(value=ANYTHING)
@pytest.mark.parametrize("name", sorted(SPECS))
def test_any_value_gives_a_problem_or_a_value_of_the_type(name: str, value: Any) -> None:
    typed, problems = judge(**{name: value})
    assert (name in typed) != bool(problems)
    assert all(text.startswith(name) for text in problems)
    if name in typed:
        assert type(typed[name]) is PYTHON[SPECS[name].get("type", "str")]
