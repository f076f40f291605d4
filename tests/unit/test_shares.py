"""Connection limits of roles: their sum leaves the reserved connections free; sums that do not fit are refused."""

from __future__ import annotations

from typing import Any

import pytest

from provision.tuning.pools import fit
from provision.tuning.shares import Shares, share
from tests import plans

POOLS = {"minion": 5, "minion_app": 25, "minion_readonly": 5}
ROLES: list[dict[str, Any]] = [
    {"name": "minion", "kind": "owner", "connection_limit": 20},
    {"name": "minion_app", "kind": "write", "connection_limit": 60},
    {"name": "minion_readonly", "kind": "read", "connection_limit": 10},
    {"name": "minion_backup", "kind": "backup", "connection_limit": 8},
    {"name": "minion_monitor", "kind": "monitor", "connection_limit": 8},
    {"name": "minion_pooler", "kind": "pooler", "connection_limit": 8},
]


def shared(max_connections: int, *more: dict[str, Any]) -> Shares:
    limits = {role["name"]: role["connection_limit"] for role in ROLES}
    pools = fit(max_connections, POOLS, {}, limits).sizes
    return share(max_connections, [*ROLES, *more], pools, {role["name"] for role in more})


def test_roomy_server_gives_the_limits_of_the_profile() -> None:
    assert shared(200).limits == {role["name"]: role["connection_limit"] for role in ROLES}


@pytest.mark.parametrize("max_connections", range(15, 160))
def test_sum_leaves_the_reserved_connections_and_every_pool(max_connections: int) -> None:
    found = shared(max_connections)
    assert (found.refusals, found.warnings) == ((), ())
    assert sum(found.limits.values()) <= max_connections - 3
    for role, size in fit(max_connections, POOLS, {}, {}).sizes.items():
        assert found.limits[role] >= size
    assert found.limits["minion_backup"] >= 2
    assert found.limits["minion_monitor"] >= 2
    assert found.limits["minion_pooler"] >= 4


def test_limits_of_57_connections() -> None:
    assert sum(shared(57).limits.values()) <= 50  # it was 114
    assert shared(57).limits["minion_app"] >= 25


def test_own_roles_keep_their_limits_or_are_refused_with_the_sum() -> None:
    fits = {"name": "reporting", "kind": "read", "connection_limit": 7}
    assert shared(57, fits).limits["reporting"] == 7
    (refusal,) = shared(57, {**fits, "connection_limit": 40}).refusals
    assert "+ reporting 40 = " in refusal
    assert "max_connections 57 - 3 for administrators leaves 54" in refusal
    assert "database_extra_roles.connection_limit" in refusal


def test_own_role_without_a_limit_is_named() -> None:
    (warning,) = shared(57, {"name": "reporting", "kind": "read"}).warnings
    assert "role reporting has no connection_limit" in warning


def test_plan_refuses_a_sum_that_does_not_fit_and_keeps_one_that_does() -> None:
    roles = [{"name": "reporting", "kind": "read", "connection_limit": 90}]
    given = {**plans.SAMPLE, "database_extra_roles": roles}
    (problem,) = plans.built("prod", given).problems
    assert "reporting 90" in problem
    plan = plans.built("prod", {**given, "database_extra_roles": [{**roles[0], "connection_limit": 5}]}).plan
    assert plan is not None
    limits = {role.name: role.connection_limit for role in plan.access.roles}
    assert limits["reporting"] == 5
    assert sum(limits.values()) <= plan.server.max_connections - 3


def test_development_has_no_limits_for_its_own_roles() -> None:
    plan = plans.built("dev", plans.SAMPLE).plan
    assert plan is not None
    assert {role.connection_limit for role in plan.access.roles if role.kind in ("owner", "write", "read")} == {-1}
