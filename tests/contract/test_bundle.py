"""A bundle holds what every plan with the default extensions asks of apt."""

from __future__ import annotations

import re

import pytest
import yaml

from provision.plan import packages, schema
from tests.contract.repository import ROOT
from tests.plans import sample


@pytest.mark.parametrize("method", ["package", "source"])
def test_bundle_has_the_packages_of_every_role(method: str) -> None:
    plan = sample(
        tls={"enabled": True},
        pgvector={"install_method": method},
        monitoring={"exporters": True},
        backup={"repositories": (schema.Repository(1, "host", "/r", "backup", 22, "backup", "pgbackrest", {}, 2, 7),)},
    )
    needed = {name for names in packages.by_role(plan, built=False).values() for name in names}
    assert needed <= set(packages.bundled(17, method))


def test_no_role_installs_packages_by_itself() -> None:
    """Only role packages calls apt to install; the backup host gets what its module names."""
    for path in (ROOT / "roles").glob("*/tasks/*.yml"):
        for task in yaml.safe_load(path.read_text()) or []:
            for inner in [task, *task.get("block", [])]:
                apt = inner.get("ansible.builtin.apt") or {}
                assert not apt or apt.get("state") == "absent" or path.parts[-3] == "packages", path


def test_backup_host_s_packages_are_in_the_bundle() -> None:
    module = (ROOT / "plugins/modules/host_repository.py").read_text()
    for name in packages.BACKUP_HOST:
        assert re.search(rf'"{name}"', module), name
        assert name in packages.bundled(17, "package")


def test_major_is_filled_in() -> None:
    assert {"postgresql-16", "postgresql-server-dev-16", "gcc"} <= set(packages.bundled(16, "source"))
    assert "gcc" not in packages.bundled(16, "package")
