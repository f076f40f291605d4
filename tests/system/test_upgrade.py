"""A host with PostgreSQL 15 of Debian 12 becomes one with Debian 13's 17, goes back, and is killed on the way.

Needs half an hour, so it runs with `make test-faults`. tests/pairs.py describes the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from tests import upgraded as steps
from tests.pairs import FIFTEEN
from tests.upgraded import Upgraded

pytestmark = pytest.mark.faults
BEFORE = ("prepared", "stopped", "transferred")
"""States of the journal in which the new server has not started."""


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    with steps.converged(FIFTEEN, *map(tmp_path_factory.mktemp, ("upgrade", "project"))) as made:
        yield made


def test_check_shows_the_stages_and_leaves_the_old_server(upgraded: Upgraded) -> None:
    steps.checked(upgraded)


def test_migrations_work_on_both_majors_of_the_host(upgraded: Upgraded) -> None:
    steps.migrations_work(upgraded)


@pytest.mark.parametrize(
    ("method", "state"),
    [*product(("copy", "link"), (*BEFORE, "pg_upgrade")), *product(("logical",), ("copying", *BEFORE[1:]))],
)
def test_command_killed_before_the_new_server_goes_back(upgraded: Upgraded, method: str, state: str) -> None:
    upgraded.killed(method, state)
    back = upgraded.host.run(f"provision upgrade rollback --confirm {upgraded.host.name}")
    assert back.returncode == 0, back.stderr
    upgraded.serves(15)


def test_command_killed_after_the_start_of_the_new_server_continues_and_goes_back(upgraded: Upgraded) -> None:
    upgraded.killed("copy", "started")
    again = upgraded.host.run(f"provision upgrade run --method copy --confirm {upgraded.host.name}")
    assert again.returncode == 0, again.stderr
    upgraded.serves(17)
    refused = upgraded.host.run(f"provision upgrade rollback --confirm {upgraded.host.name}")
    assert "everything written since PostgreSQL 17 started is lost" in refused.stderr
    back = upgraded.host.run(f"provision upgrade rollback --confirm {upgraded.host.name} --confirm-loss discard")
    assert back.returncode == 0, back.stderr
    upgraded.serves(15)


def test_clients_of_the_pooler_wait_for_a_copy_that_can_go_back(upgraded: Upgraded) -> None:
    steps.copy_goes_back(upgraded)


def test_logical_replication_goes_back_with_every_row_of_the_new_server(upgraded: Upgraded) -> None:
    steps.logical_goes_back(upgraded)


def test_link_ends_the_way_back_and_the_old_server_cannot_start(upgraded: Upgraded) -> None:
    steps.link_is_final(upgraded)


def test_backups_continue_and_the_old_cluster_is_released(upgraded: Upgraded) -> None:
    steps.is_backed_up_and_released(upgraded)
