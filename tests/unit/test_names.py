"""Every name that becomes an identifier is judged before anything changes, with the reason in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from provision import quoting
from provision.plan import build, names, validate
from tests import plans
from tests.plans import SAMPLE

ROLE = {"name": "reporting", "kind": "read"}
NAMES = st.text(max_size=70) | st.text(alphabet="aé_'\" /\\{,\0\n%=@.-ﬁI", max_size=70)


def problems(**given: Any) -> tuple[str, ...]:
    return plans.built("prod", {**SAMPLE, **given}).problems


def credentials(owner: str) -> dict[str, Any]:
    secrets = {role: {"password": f"a secret for {role}", "salt": plans.SALT} for role in names.with_passwords(owner)}
    return {"database_credentials": secrets}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"database_name": "a" * 64}, f"database_name is '{'a' * 64}': expected at most 63 bytes, it has 64"),
        ({"database_name": "Sales Data"}, "database_name is 'Sales Data': expected 1 to 63 of a to z"),
        ({"database_name": "pgbouncer"}, "database_name is 'pgbouncer': expected 1 to 63 of a to z"),
        ({"database_name": "pg_data"}, "database_name is 'pg_data': expected 1 to 63 of a to z"),
        ({"database_name": "sameuser"}, "database_name is 'sameuser': expected 1 to 63 of a to z"),
        ({"database_owner": "a" * 60, **credentials("a" * 60)}, "expected at most 54 bytes, it has 60"),
        ({"database_owner": "a" * 55, **credentials("a" * 55)}, "expected at most 54 bytes, it has 55"),
        ({"database_owner": "O'Brien", **credentials("O'Brien")}, "expected 1 to 54 of a to z"),
        ({"database_extra_databases": {"é" * 32: "minion"}}, "expected at most 63 bytes, it has 64"),
        ({"database_extra_databases": {'a"b': "minion"}}, 'expected a name without ", which every quoted identifier'),
        ({"database_extra_databases": {"a\nb": "minion"}}, "without the character U+000A, which is not printable"),
        ({"database_extra_databases": {"a\u200bb": "minion"}}, "without the character U+200B, which is not printable"),
        ({"database_extra_databases": {"a\u00a0b": "minion"}}, "without the character U+00A0, which is not printable"),
        ({"database_extra_databases": {" a": "minion"}}, "expected a name without leading or trailing spaces"),
        ({"database_extra_databases": {"": "minion"}}, "the name is '': expected a name"),
        ({"database_extra_databases": {"/a": "minion"}}, "does not begin with /, which has a special meaning"),
        ({"database_extra_databases": {"a,b": "minion"}}, "expected a name without ,, which separates names"),
        ({"database_extra_databases": {"a\\b": "minion"}}, "expected a name without \\, which pg_ident.conf"),
        ({"database_extra_databases": {"e\u0301": "minion"}}, "expected the composed form (NFC) 'é'"),
        ({"database_extra_databases": {"PgBouncer": "minion"}}, "expected a name other than all, pgbouncer"),
        ({"database_extra_databases": {"replication": "minion"}}, "expected a name other than all, pgbouncer"),
        ({"database_extra_databases": {"a_restoring_0123456789ab": "minion"}}, "expected another ending: the names of"),
        ({"database_extra_databases": {"minion": "minion_app"}}, "database 'minion' repeats database_name 'minion'"),
        ({"database_extra_databases": {"Minion": "minion"}}, "which differs only in case or Unicode form"),
        ({"database_extra_databases": {"more": "absent"}}, "database_extra_databases.more is 'absent': expected a"),
        ({"database_extra_databases": {"more": None}}, "database_extra_databases[more] is None: expected a string"),
        ({"database_extra_databases": {"more": ["minion"]}}, "database_extra_databases[more] is ['minion']: expected"),
        ({"database_extra_roles": [{**ROLE, "name": "b" * 64}]}, "at most 63 bytes, it has 64: PostgreSQL truncates"),
        ({"database_extra_roles": [{**ROLE, "name": "minion_app"}]}, "role 'minion_app' repeats database_roles, role"),
        ({"database_extra_roles": [{**ROLE, "name": "Minion_App"}]}, "which differs only in case or Unicode form"),
        ({"database_extra_roles": [ROLE, ROLE]}, "role 2: role 'reporting' repeats database_extra_roles, role 1"),
        ({"database_extra_roles": [{**ROLE, "name": "pg_monitor"}]}, "does not begin with pg_, which the server"),
        ({"database_extra_roles": [{**ROLE, "name": "public"}]}, "expected a name other than all, none"),
        ({"database_extra_roles": [{**ROLE, "name": "postgres"}]}, "expected a name other than all, none"),
        ({"database_extra_roles": [{**ROLE, "name": "{{ x"}]}, "without {, which Ansible reads as a template"),
        ({"database_extensions": ["vector", "../evil"]}, "database_extensions has '../evil': expected an extension's"),
        ({"database_extensions": ["PostGIS"]}, "database_extensions has 'PostGIS': expected an extension's name"),
        ({"backup_stanza": "global"}, "backup_stanza is 'global': expected letters, digits"),
        ({"backup_stanza": "-x"}, "backup_stanza is '-x': expected letters, digits"),
        ({"backup_stanza": "pg1\n[global]"}, "expected one line of printable characters"),
        ({"postgresql_maps": [{"map": "a b", "system": "x", "role": "minion"}]}, "line 1: map 'a b': expected letters"),
        ({"postgresql_maps": [{"map": "m", "system": "x\ny", "role": "minion"}]}, "expected one line of"),
        ({"postgresql_maps": [{"map": "m", "system": "x", "role": "all"}]}, "line 1: role 'all': expected a name"),
        ({"postgresql_maps": [{"map": "m", "system": "x", "role": "\\1"}]}, "line 1: role '\\\\1': expected a name"),
        ({"postgresql_local_users": "^root$\nhost"}, "expected one line of printable characters"),
    ],
)  # fmt: skip
def test_name_that_a_target_cannot_hold_is_refused(given: dict[str, Any], expected: str) -> None:
    assert [text for text in problems(**given) if expected in text], problems(**given)


def test_role_that_the_pooler_cannot_name_is_refused_in_a_pool_alone() -> None:
    role = {**ROLE, "name": "jan.kowalski@corp.com", "connection_limit": 9}
    assert problems(database_extra_roles=[role]) == ()
    (refused,) = problems(database_extra_roles=[role], pgbouncer_pools={"jan.kowalski@corp.com": 2})
    assert refused.startswith("pgbouncer_pools.jan.kowalski@corp.com: PgBouncer supports only A to Z, ")


@pytest.mark.parametrize(
    "name", ["Sales Data", "O'Brien", "ünïcödé", "a=b", "100%", "*", "%include", "[users]", "#", ";x"]
)
def test_unusual_database_is_accepted_and_reached_directly(name: str) -> None:
    plan = plans.plan("prod", {**SAMPLE, "database_extra_databases": {name: "minion"}})
    assert plan.access.databases[name] == "minion"
    assert [text for text in plan.warnings if text.startswith(f"database {name!r} is reached on port 5432 only")]


@pytest.mark.parametrize("name", ["pg_metrics", "public", "none"])
def test_what_is_reserved_for_roles_can_name_a_database(name: str) -> None:
    assert problems(database_extra_databases={name: "minion"}) == ()


@pytest.mark.parametrize("name", ["a" * 63, "_app", "a-b", "x_"])
def test_unusual_main_database_is_accepted(name: str) -> None:
    assert plans.plan("prod", {**SAMPLE, "database_name": name}).access.database == name


def test_longest_owner_is_accepted_with_every_role() -> None:
    owner = "b" * 54
    access = plans.plan("prod", {**SAMPLE, "database_owner": owner, **credentials(owner)}).access
    assert max(len(role.name) for role in access.roles) == 63
    assert access.backup == f"{owner}_backup"


@pytest.mark.parametrize("length", [40, 52, 53, 54, 62, 63])
def test_derived_name_is_never_the_name_and_never_too_long(length: int) -> None:
    for name in ("a" * length, "é" * (length // 2)):
        found = names.derived(name, "_restoring_0123456789ab")
        assert found != name
        assert len(found.encode()) <= 63
        assert names.SCRATCH.fullmatch(found)
    assert names.derived("a" * 63, "_before_x") != names.derived("a" * 62 + "b", "_before_x")


def test_owner_whose_role_would_be_cut_is_refused_wherever_it_is_derived() -> None:
    with pytest.raises(ValueError, match="has 64 bytes: expected at most 63"):
        names.of_owner("a" * 57, "backup")


@given(NAMES, NAMES)
def test_any_name_gets_a_sentence_or_works_in_every_target(name: str, other: str) -> None:
    why = names.problem(name)
    assert "\n" not in why
    if why:
        return
    assert 0 < len(name.encode()) <= 63
    assert conninfo_to_dict(quoting.conninfo({"dbname": name, "user": name})) == {"dbname": name, "user": name}
    assert conninfo_to_dict(f"postgresql://{quoting.url(name)}@h/{quoting.url(name)}")["dbname"] == name
    for target in ("pg_hba", "pg_hba name", "pgbouncer value", "pgbouncer auth", "systemd", "postgresql.conf", "yaml"):
        assert "\n" not in quoting.TARGETS[target](name)
    assert names.derived(name, "_before_x") not in (name, other)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=200)
@given(NAMES, NAMES, NAMES)
def test_any_names_are_judged_and_built_without_a_traceback(one: str, two: str, three: str) -> None:
    found = plans.values("prod", SAMPLE)
    changed = {
        "database_name": one,
        "database_extra_databases": {two: one, three: two},
        "database_extra_roles": [{**ROLE, "name": three}],
        "postgresql_maps": [{"map": one, "system": two, "role": three}],
        "postgresql_extra_rules": [{"users": [one, f"+{two}"], "databases": [three], "method": "reject"}],
        "database_extensions": [one],
        "backup_stanza": two,
        "pgbouncer_pools": {three: 1},
    }
    result = build.build({**found.values, **changed}, plans.PROBE, found.profile, plans.CONTEXT, judge=validate.judge)
    assert (result.plan is None) == bool(result.problems)
