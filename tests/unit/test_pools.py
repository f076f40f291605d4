"""Pools of server connections fit into what a server has; what a user has set is kept or refused with its numbers."""

from __future__ import annotations

from typing import Any

import pytest

from provision.host import lookup
from provision.tuning.pools import clients, fit, limits
from tests.contract.repository import ROOT

WISHED = {"minion": 5, "minion_app": 25, "minion_readonly": 5}
LIMITS = {"minion": 20, "minion_app": 60, "minion_readonly": 10}


def test_uses_the_pool_sizes_of_the_profile_where_they_fit() -> None:
    found = fit(100, WISHED, {}, LIMITS)
    assert dict(found.sizes) == WISHED
    assert found.total == 39
    assert (found.limit, found.refusals, found.warnings) == (92, (), ())


@pytest.mark.parametrize(
    ("max_connections", "sizes"),
    [
        (47, {"minion": 5, "minion_app": 25, "minion_readonly": 5}),
        (30, {"minion": 2, "minion_app": 12, "minion_readonly": 2}),
        (15, {"minion": 1, "minion_app": 1, "minion_readonly": 1}),
    ],
)
def test_reduces_pool_sizes_on_a_small_server_and_warns(max_connections: int, sizes: dict[str, int]) -> None:
    found = fit(max_connections, WISHED, {}, LIMITS)
    assert dict(found.sizes) == sizes
    assert found.refusals == ()
    assert bool(found.warnings) is (max_connections < 47)


def test_keeps_what_the_user_set_and_fits_the_others_around_it() -> None:
    found = fit(60, WISHED, {"minion_app": 40}, LIMITS)
    assert dict(found.sizes) == {"minion": 4, "minion_readonly": 4, "minion_app": 40}
    assert found.total == 52


def test_a_role_with_no_connections_does_not_pass_through_the_pooler() -> None:
    assert dict(fit(100, WISHED, {"minion_readonly": 0}, LIMITS).sizes) == {"minion": 5, "minion_app": 25}


def test_a_pool_is_no_larger_than_the_role_s_own_limit() -> None:
    assert fit(100, WISHED, {}, {**LIMITS, "minion_app": 10}).sizes["minion_app"] == 10


def test_refuses_with_the_numbers_what_cannot_be_open_at_once() -> None:
    (said,) = fit(100, WISHED, {"minion_app": 100}, {**LIMITS, "minion_app": -1}).refusals
    assert "= 106 server connections, but max_connections 100 - 3 for administrators - 5" in said
    assert "leaves 92" in said


def test_reads_limits_of_roles_and_leaves_out_those_that_go() -> None:
    roles: list[dict[str, Any]] = [
        {"name": "a", "connection_limit": 3},
        {"name": "b"},
        {"name": "c", "state": "absent"},
    ]
    assert limits(roles) == {"a": 3, "b": -1}


def test_the_role_s_query_is_the_one_whose_function_is_made() -> None:
    assert f"__pgbouncer_lookup: {lookup.QUERY}\n" in (ROOT / "roles/pgbouncer/vars/main.yml").read_text()


def test_clients_are_shared_as_the_pools_are() -> None:
    assert clients(1000, WISHED) == {"minion": 142, "minion_app": 714, "minion_readonly": 142}
    assert clients(2, WISHED) == {"minion": 1, "minion_app": 1, "minion_readonly": 1}
