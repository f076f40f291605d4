"""Where PostgreSQL 14 and pgvector 0.5.1 come from here: five environment variables, and hosts that take them."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from provision.distributions import DISTRIBUTIONS
from tests.sandboxes import Hosts

NEEDED = {
    "PROVISION_PG14_MIRROR_URI": "a mirror laid out as PGDG's, as sandbox hosts reach it",
    "PROVISION_PG14_MIRROR_KEY": "path of the mirror's public key",
    "PROVISION_PGVECTOR_URL": "the tarball of pgvector 0.5.1, as sandbox hosts reach it",
}
RELEASES = {each.key: each.codename for each in DISTRIBUTIONS if each.has_sandbox}


@dataclass(frozen=True)
class Mirror:
    """The mirror; CODENAME in its suite stands for the Debian release."""

    uri: str
    suite: str
    component: str
    key: Path

    def suite_of(self, codename: str) -> str:
        """Name the suite for a Debian release."""
        return self.suite.replace("CODENAME", codename)

    def has(self, codename: str) -> bool:
        """Say whether the mirror holds a Debian release. Any answer but "not found" that is no success raises."""
        try:
            urllib.request.urlopen(f"{self.uri}/dists/{self.suite_of(codename)}/Release", timeout=10).close()  # noqa: S310
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise
        return True


def pytest_sessionstart() -> None:
    """Refuse to begin without the variables: to skip would look like success."""
    missing = [f"  {name}: {meaning}" for name, meaning in NEEDED.items() if not os.environ.get(name)]
    if missing:
        raise pytest.UsageError("\n".join(["set these environment variables (see docs/test-pg14.md):", *missing]))
    if not Path(os.environ["PROVISION_PG14_MIRROR_KEY"]).is_file():
        raise pytest.UsageError(f"PROVISION_PG14_MIRROR_KEY: no file {os.environ['PROVISION_PG14_MIRROR_KEY']}")


@pytest.fixture(scope="session")
def mirror() -> Mirror:
    return Mirror(
        os.environ["PROVISION_PG14_MIRROR_URI"].rstrip("/"),
        os.environ.get("PROVISION_PG14_MIRROR_SUITE") or "CODENAME-pgdg",
        os.environ.get("PROVISION_PG14_MIRROR_COMPONENT") or "main",
        Path(os.environ["PROVISION_PG14_MIRROR_KEY"]).resolve(),
    )


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts.made(tmp_path_factory.mktemp("project")) as hosts:
        yield hosts
