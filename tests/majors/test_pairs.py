"""PostgreSQL 14 becomes Debian 13's 17, and that becomes Debian testing's 18, by each method, on one host a pair.

Runs with `make test-majors`. The tests of a pair build on each other: logical and copy go back, link stays.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import upgraded as steps
from tests.pairs import EIGHTEEN, FOURTEEN
from tests.upgraded import Upgraded

PAIRS = (FOURTEEN, EIGHTEEN)


@pytest.fixture(scope="module", params=PAIRS, ids=str)
def upgraded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    with steps.converged(request.param, *map(tmp_path_factory.mktemp, ("upgrade", "project"))) as made:
        yield made


def test_check_shows_the_stages_and_leaves_the_old_server(upgraded: Upgraded) -> None:
    steps.checked(upgraded)


def test_migrations_work_on_both_majors_of_the_host(upgraded: Upgraded) -> None:
    steps.migrations_work(upgraded)


def test_logical_replication_goes_back_with_every_row_of_the_new_server(upgraded: Upgraded) -> None:
    steps.logical_goes_back(upgraded)


def test_clients_of_the_pooler_wait_for_a_copy_that_can_go_back(upgraded: Upgraded) -> None:
    steps.copy_goes_back(upgraded)


def test_link_ends_the_way_back_and_the_old_server_cannot_start(upgraded: Upgraded) -> None:
    steps.link_is_final(upgraded)


def test_backups_continue_and_the_old_cluster_is_released(upgraded: Upgraded) -> None:
    steps.is_backed_up_and_released(upgraded)
