"""Tenants of an inventory are judged before anything changes, and their roles are derived from one name."""

from __future__ import annotations

from typing import Any

import pytest

from provision.checks import tenants as checks
from provision.host.tenants import transfer
from provision.plan import schema, tenants
from tests import plans
from tests.plans import SAMPLE

LIMITS = schema.TenantLimits(10, 0, {"hnsw.ef_search": "100", "statement_timeout": "30s", "temp_file_limit": "1GB"})


def credentials(*roles: str) -> dict[str, Any]:
    secrets = {role: {"password": f"a secret of the test for {role}", "salt": plans.SALT} for role in roles}
    return {"database_credentials": {**plans.SECRETS["database_credentials"], **secrets}}


def declared(*names: str, **more: Any) -> dict[str, Any]:
    roles = [role for name in names for role in tenants.role_names(name)]
    return {**SAMPLE, "database_tenants": [{"name": name, **more} for name in names], **credentials(*roles)}


def problems(*names: str, **given: Any) -> tuple[str, ...]:
    return plans.built("prod", {**declared(*names), **given}).problems


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Acme", "database_tenants, tenant 1: name is 'Acme': expected 1 to 54 of a to z, digits and _"),
        ("1st", "expected 1 to 54 of a to z, digits and _, beginning with a letter"),
        ("a-b", "expected 1 to 54 of a to z"),
        ("a" * 55, "expected 1 to 54"),
        ("pg_acme", "expected a name that does not begin with pg_, and none of"),
        ("public", "and none of"),
        ("information_schema", "and none of"),
        ("acme_readonly", "expected a name that does not end with _readonly"),
        ("acme_backup", "expected a name that does not end with _backup"),
        ("acme_2", "expected a name that does not end with _2"),
        ("acme_job_0123456789ab", "expected another ending"),
        ("acme_verify_0123456789ab", "expected another ending"),
        ("minion", "its role minion is also a role of database_roles or database_extra_roles"),
    ],
)
def test_refuses_names_that_cannot_be_tenants(name: str, expected: str) -> None:
    found = [each for each in problems(name) if each.startswith("database_tenants")]
    assert len(found) == 1
    assert expected in found[0]


def test_refuses_a_tenant_twice_and_a_role_of_the_inventory() -> None:
    assert "database_tenants, tenant 2: name is 'acme': expected each tenant once" in problems("acme", "acme")
    (clash,) = problems("acme", database_extra_roles=[{"name": "acme_app", "kind": "read", "connection_limit": 1}])
    assert clash.startswith("database_tenants, tenant 1: name is 'acme': its role acme_app is also a role of")


def test_refuses_a_tenant_without_passwords() -> None:
    given = {**SAMPLE, "database_tenants": [{"name": "acme"}]}
    found = plans.built("prod", given).problems
    assert [each.partition(":")[0] for each in found] == [
        f"database_credentials has no entry for {role}" for role in ("acme", "acme_app", "acme_readonly")
    ]
    assert "provision secrets init" in found[0]


def test_longest_name_is_accepted() -> None:
    assert problems("a" * 54) == ()


def test_plan_has_the_tenants_and_the_limits_of_the_profile() -> None:
    plan = plans.plan("prod", declared("acme", connection_limit=3, size_mb=500))
    (acme,) = plan.access.tenants
    assert (acme.name, acme.connections, acme.size_mb) == ("acme", 3, 500)
    assert [(each.name, each.kind, each.connection_limit) for each in acme.roles] == [
        ("acme", "owner", 2), ("acme_app", "write", 3), ("acme_readonly", "read", 2),
    ]  # fmt: skip
    assert {each.settings["search_path"] for each in acme.roles} == {"acme, public"}
    assert (plan.access.tenant_limits.connections, plan.access.tenant_limits.size_mb) == (10, 0)
    assert plan.pooler.tenant_pool == 4


def test_owner_has_no_timeouts_but_limited_temporary_files() -> None:
    owner, app, _ = tenants.roles("acme", LIMITS)
    assert owner.settings == {"hnsw.ef_search": "100", "temp_file_limit": "1GB", "search_path": "acme, public"}
    assert app.settings == {**LIMITS.settings, "search_path": "acme, public"}


def test_second_logins_act_as_their_role() -> None:
    found = {each.name: each for each in tenants.roles("acme", LIMITS, ("acme_app", "acme_app_2"))}
    assert (found["acme_app_2"].kind, found["acme_app_2"].settings["role"]) == ("second", "acme_app")


def test_warns_about_more_connections_than_the_server_has() -> None:
    names = [f"t{number}" for number in range(40)]
    built = plans.built("prod", declared(*names))
    assert built.plan
    (warning,) = [each for each in built.plan.warnings if each.startswith("database_tenants")]
    assert "40 tenants may open 800 connections together" in warning


def test_names_the_schema_with_most_tables_when_a_dump_cannot_lock_all() -> None:
    assert checks.shortage({"acme": 4000, "public": 1000}, 6400) == ""
    assert checks.shortage({"acme": 4000, "public": 1200}, 6400) == (
        "5200 tables, views and sequences, 6400 locks; most are in schema acme: 4000"
    )


def test_import_leaves_out_the_schema_and_default_privileges() -> None:
    listing = (
        ";\n; Archive created at 2026-11-28\n"
        "6; 2615 16400 SCHEMA - acme acme\n"
        "3500; 0 0 COMMENT - SCHEMA acme acme\n"
        "215; 1259 16401 TABLE acme agents acme\n"
        "216; 1259 16402 TABLE acme SCHEMA - acme acme\n"
        "2100; 826 16500 DEFAULT ACL acme DEFAULT PRIVILEGES FOR TABLES acme\n"
        "3400; 0 16401 TABLE DATA acme agents acme\n"
    )
    assert transfer.entries(listing, "acme") == [
        "215; 1259 16401 TABLE acme agents acme",
        "216; 1259 16402 TABLE acme SCHEMA - acme acme",
        "3400; 0 16401 TABLE DATA acme agents acme",
    ]
