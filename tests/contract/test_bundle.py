"""A bundle holds the packages of every role, and none that no role asks for."""

from __future__ import annotations

import ast

import pytest

from provision.controller.bundle.contents import PACKAGES, PGVECTOR, packages
from provision.plan import build
from tests import plans
from tests.contract.repository import ROOT

PLANS = [
    plans.plan("dev"),
    plans.plan("prod", {"backup_repository_host": "192.0.2.7", "backup_repository_inventory_name": "backup1"}),
    plans.plan("prod", {**plans.SAMPLE, "postgresql_version": 17}),
]
"""Together they need every package that a plan can need."""


def needed(role: str) -> set[str]:
    found = {(name, plan.server.major) for plan in PLANS for name in build.packages(plan)[role]}
    return {name.replace(str(major), "{major}") for name, major in found}


@pytest.mark.parametrize("role", sorted(set(build.packages(PLANS[0])) - {"pgvector", "backup"}))
def test_bundle_has_the_packages_of_the_role(role: str) -> None:
    assert needed(role) == set(PACKAGES[role]), "change provision/controller/bundle/contents.py"


def test_bundle_has_the_packages_of_both_methods_of_pgvector() -> None:
    assert needed("pgvector") == {name for rows in PGVECTOR.values() for name in rows}


def test_bundle_has_the_packages_of_a_host_and_of_its_backup_host() -> None:
    tree = ast.parse((ROOT / "plugins/modules/host_repository.py").read_text())
    values = [node.value for node in tree.body if isinstance(node, ast.Assign) and "PACKAGES" in ast.unparse(node)]
    on_backup_host = set(ast.literal_eval(values[0]))
    assert needed("backup") | on_backup_host == set(PACKAGES["backup"])
    assert on_backup_host == {"pgbackrest", "openssh-server"}


def test_bundle_has_what_ansible_needs_and_the_key_of_the_archive() -> None:
    assert set(PACKAGES["plan"]) == {"python3", "python3-apt", "sudo"}
    state = plans.built("prod", plans.SAMPLE | {"postgresql_repository": "pgdg"}).state
    assert state
    assert set(PACKAGES["packages"]) == set(state.missing_key_packages) == {"postgresql-common"}


def test_no_other_role_has_packages() -> None:
    assert set(PACKAGES) == {"plan", "packages", *build.packages(PLANS[0])} - {"pgvector"}


def test_major_is_filled_in() -> None:
    assert {"postgresql-16", "postgresql-server-dev-16", "gcc"} <= set(packages(16, "source"))
    assert "gcc" not in packages(16, "package")
