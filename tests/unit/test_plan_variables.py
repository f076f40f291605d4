"""Variables are judged against the roles' specifications: every problem names the variable, its value and the cure."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provision.controller import inputs
from provision.errors import UsageError
from provision.plan import build, limits, validate, variables
from tests import plans

SPECS = inputs.specifications()


def judge(**values: Any) -> tuple[dict[str, Any], list[str]]:
    return variables.judge({name: SPECS[name] for name in values}, values)


def problem(**values: Any) -> str:
    typed, (reported,) = judge(**values)
    assert typed == {}
    return reported


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"postgresql_port": "5433"}, 5433),  # -e postgresql_port=5433 is text
        ({"postgresql_port": 5433}, 5433),
        ({"postgresql_restart_allowed": "true"}, True),
        ({"postgresql_restart_allowed": "False"}, False),
        ({"postgresql_restart_allowed": "yes"}, True),
        ({"postgresql_restart_allowed": 0}, False),
        ({"tls_ca_passphrase": "00123"}, "00123"),
        ({"postgresql_port": " 5433 "}, 5433),
        ({"backup_queue_max_mb": -1}, -1),
        ({"database_name": 20240101}, "20240101"),
        ({"pgbouncer_pools": {"minion": "5"}}, {"minion": 5}),
        ({"database_timeouts": {"statement_timeout": 0}}, {"statement_timeout": "0"}),
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
        ({"database_name": True}, "database_name is True: expected a string; put it in quotes"),
        ({"database_name": datetime.date(2026, 1, 1)},
         "database_name is '2026-01-01': expected a string; put it in quotes"),
        ({"pgvector_version": 0.1}, "pgvector_version is 0.1: expected a string; put it in quotes"),  # 0.10
        ({"backup_repository_passphrase": 5349},  # 012345
         "backup_repository_passphrase is a secret of type int: expected a string; put it in quotes"),
        ({"tls_ca_passphrase": True},
         "tls_ca_passphrase is a secret of type bool: expected a string; put it in quotes"),
        ({"tls_ca_passphrase": None}, "tls_ca_passphrase is a secret of type NoneType: expected a string"),
        ({"postgresql_allowed_networks": "10.0.0.0/8"},
         "postgresql_allowed_networks is '10.0.0.0/8': expected a list; write ['10.0.0.0/8']"),
        ({"backup_s3": True}, "backup_s3 is True: expected a mapping"),
        ({"database_extra_roles": {"web": {"kind": "write"}}},
         "database_extra_roles is a mapping of web: expected a list"),
        ({"database_extensions": ["vector", None]}, "database_extensions[1] is None: expected a string"),
        ({"postgresql_version": 15.0}, "postgresql_version is 15.0: expected an integer; write 15"),
        ({"postgresql_version": "v15"}, "postgresql_version is 'v15': expected an integer"),
        ({"postgresql_version": "15.4"}, "postgresql_version is '15.4': expected an integer"),
        ({"postgresql_version": "1_5"}, "postgresql_version is '1_5': expected an integer"),
        ({"postgresql_version": "\uff11\uff15"}, "postgresql_version is '\uff11\uff15': expected an integer"),
        ({"postgresql_version": "9" * 5000}, f"postgresql_version is '{'9' * 59}...: expected an integer"),
        ({"plan_minimum_disk_mb": "5GB"}, "plan_minimum_disk_mb is '5GB': expected an integer"),
        ({"plan_minimum_memory_mb": "1,024"}, "plan_minimum_memory_mb is '1,024': expected an integer"),
        ({"backup_retention_full": float("nan")}, "backup_retention_full is nan: expected an integer"),
        ({"backup_retention_full": float("inf")}, "backup_retention_full is inf: expected an integer"),
        ({"backup_queue_max_mb": -2}, "backup_queue_max_mb is -2: expected -1 to 2147483647"),
        ({"backup_processes": -1}, "backup_processes is -1: expected 0 to 999"),
        ({"plan_lock_wait": -1}, "plan_lock_wait is -1: expected 0 to 2147483647"),
        ({"pgbouncer_max_clients": 0}, "pgbouncer_max_clients is 0: expected 1 to 1000000"),
        ({"pgbouncer_max_clients": 10**12}, "pgbouncer_max_clients is 1000000000000: expected 1 to 1000000"),
        ({"postgresql_vector_dimensions": 16001}, "postgresql_vector_dimensions is 16001: expected 1 to 16000"),
        ({"maintenance_batch_rows": 0}, "maintenance_batch_rows is 0: expected 1 to 2147483647"),
        ({"pgbouncer_pools": {"minion": "five"}}, "pgbouncer_pools[minion] is 'five': expected an integer"),
        ({"pgbouncer_pools": {"minion": -1}}, "pgbouncer_pools[minion] is -1: expected 0 to 2147483647"),
        ({"database_extra_databases": {"a": {"owner": "b"}}},
         "database_extra_databases[a] is a mapping of owner: expected a string"),
        ({"monitoring_users": {"prometheus": ["hunter2"]}},
         "monitoring_users[prometheus] is a secret of type list: expected a string"),
        ({"backup_dump_directory": "/a\nport=1"},
         "backup_dump_directory is '/a\\nport=1': expected one line of printable characters"),
        ({"database_name": "a\0"}, "database_name is 'a\\x00': expected one line of printable characters"),
        ({"tls_extra_names": ["a\tb"]}, "tls_extra_names[0] is 'a\\tb': expected one line of printable characters"),
        ({"backup_repository_passphrase": "hunter2\nhunter2"},
         "backup_repository_passphrase is a secret of type str: expected one line of printable characters"),
        ({"postgresql_preload_libraries": [""]}, "postgresql_preload_libraries[0] is '': expected no empty element"),
        ({"postgresql_preload_libraries": ["a,b"]},
         "postgresql_preload_libraries[0] is 'a,b': expected one library, without quotes and commas"),
        ({"backup_s3": {"bucket": "my.bucket"}},
         "backup_s3.bucket is 'my.bucket': expected 1 to 63 letters, digits, _ and -; pgBackRest accepts no dots, "
         "because the certificate would not match"),
        ({"postgresql_pgdg_uri": "apt.example.com"},
         "postgresql_pgdg_uri is 'apt.example.com': expected a URI with its scheme, such as "
         "https://apt.example.com/debian, without spaces"),
        ({"pgvector_source_sha256": "abc"}, "pgvector_source_sha256 is 'abc': expected 64 hexadecimal digits"),
        ({"postgresql_mirror_suite": "a b"}, "postgresql_mirror_suite is 'a b': expected one word"),
        ({"backup_s3": {"endpoint": "http://s3.example.com"}},
         "backup_s3.endpoint is 'http://s3.example.com': expected a host name, or https:// and a host name, "
         "without a path"),
        ({"backup_s3": {"endpoint": "https://s3.example.com/backups"}},
         "backup_s3.endpoint is 'https://s3.example.com/backups': expected a host name, or https:// and a "
         "host name, without a path"),
        ({"backup_s3": {"port": 99999}}, "backup_s3.port is 99999: expected 1 to 65535"),
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


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("hunter2hunter2", "database_credentials.minion_app is a secret of type str: expected a mapping with"),
        (None, "database_credentials.minion_app is a secret of type NoneType: expected a mapping with"),
        ({"password": 123456789012345678901234, "salt": plans.SALT}, "password is a secret of type int: expected text"),
        ({"password": 1e30, "salt": plans.SALT}, "password is a secret of type float: expected text in quotes"),
        ({"password": True, "salt": plans.SALT}, "password is a secret of type bool: expected text in quotes"),
        ({"password": ["hunter2"] * 4, "salt": plans.SALT}, "password is a secret of type list: expected text in"),
        ({"password": "hunter2" * 4, "salt": 12345678}, "salt is a secret of type int: expected text in quotes"),
        ({"passwrod": "hunter2" * 4, "salt": plans.SALT}, "passwrod: unknown key; allowed: password, salt"),
        ({"password": "md5" + "0123456789abcdef" * 2, "salt": plans.SALT}, "password is a verifier (md5... or SCRAM"),
        ({"password": "SCRAM-SHA-256$4096:hunter2", "salt": plans.SALT}, "password is a verifier (md5... or SCRAM"),
    ],
)
def test_credentials_of_another_type_are_refused_without_showing_them(entry: Any, expected: str) -> None:
    given = {"database_credentials": {**plans.SECRETS["database_credentials"], "minion_app": entry}}
    problems = plans.built(given={**given, "backup_allow_local_only": True}).problems
    assert expected in problems[0]
    assert not any(secret in str(problems) for secret in ("hunter2", "12345678", "0123456789abcdef", "1e+30"))


def test_line_break_at_the_end_of_a_vault_value() -> None:
    secret = "\n".join(["hunter2hunter2hunter2", ""])
    assert problem(backup_repository_passphrase=secret) == (
        "backup_repository_passphrase is a secret of type str: expected one line of printable characters, without a "
        "line break at its end"
    )
    typed, problems = judge(tls_ca_passphrase=secret)  # the authority's key is encrypted with it
    assert (typed["tls_ca_passphrase"], problems) == (secret, [])


def test_ranges_patterns_and_types_name_options_that_exist() -> None:
    def names(prefix: str, specs: Any) -> set[str]:
        found = {f"{prefix}{name}" for name in specs}
        return found.union(*(names(f"{prefix}{name}.", spec.get("options") or {}) for name, spec in specs.items()))

    every = {*limits.RANGES, *limits.PATTERNS, *limits.VALUES, *limits.NOT_EMPTY}
    assert every <= names("", SPECS)


def test_nested_option_without_a_value_counts_as_left_out() -> None:
    typed, problems = judge(database_extra_roles=[{"name": "web", "kind": "write", "valid_until": None}])
    assert problems == []
    assert typed["database_extra_roles"][0]["valid_until"] is None


def test_every_option_that_is_filled_from_the_vault_is_marked_as_a_secret() -> None:
    named = {name for name, spec in SPECS.items() if "vault" in spec["description"]}
    assert named == {name for name, spec in SPECS.items() if spec.get("no_log")}
    assert {
        "database_credentials",
        "backup_repository_passphrase",
        "tls_ca_passphrase",
        "cluster_passphrase",
        "monitoring_users",
    } == named


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
          "maintenance_extra_retention[0].column is required: Column with the row's time; it needs an index.",
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
    (reported,) = found.problems
    assert reported.startswith("database_name cannot be evaluated: ")
    assert "nowhere_defined" in reported


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


SECRET = "zqxSecretOfTheProperty"  # noqa: S105 - of the test
HIDDEN = {name for name, spec in SPECS.items() if spec.get("no_log")}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(SPECS)), value=ANYTHING | ANYTHING.map(lambda each: {SECRET: each, "minion": each}))
def test_any_value_of_any_option_gives_a_plan_or_sentences_that_name_the_option(name: str, value: Any) -> None:
    base = plans.values("prod", {"backup_allow_local_only": True})
    typed, problems = judge(**{name: value})
    if problems:
        assert all(text.startswith(name) for text in problems)
        return
    made = build.build({**base.values, **typed}, plans.PROBE, base.profile, plans.CONTEXT, judge=validate.judge)
    assert made.plan or made.problems
    assert all(isinstance(text, str) and text.strip() for text in made.problems)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(HIDDEN)), value=ANYTHING)
def test_no_value_of_a_secret_is_ever_shown(name: str, value: Any) -> None:
    base = plans.values("prod", {"backup_allow_local_only": True})
    for wrapped in ([SECRET, value], {"minion": {"password": [SECRET, value]}}, {"minion": [SECRET]}, SECRET):
        typed, problems = judge(**{name: wrapped})
        made = build.build({**base.values, **typed}, plans.PROBE, base.profile, plans.CONTEXT)
        assert SECRET not in str((problems, made.problems, made.notices))
