"""Where PostgreSQL 14 and pgvector 0.5.1 come from here: five environment variables (docs/test-pg14.md)."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from provision.distributions import DISTRIBUTIONS

ROOT = Path(__file__).parents[2]
NEEDED = {
    "PROVISION_PG14_MIRROR_URI": "a mirror laid out as PGDG's, as sandbox hosts reach it",
    "PROVISION_PG14_MIRROR_KEY": "path of the mirror's public key",
    "PROVISION_PGVECTOR_URL": "the tarball of pgvector 0.5.1, as sandbox hosts reach it",
}
RELEASES = {each.key: each.codename for each in DISTRIBUTIONS if each.has_sandbox}


def require(instead: str = "") -> None:
    """Refuse to begin without the variables: to skip would look like success. `instead` names what runs without them.

    Raises pytest.UsageError.
    """
    missing = [f"  {name}: {meaning}" for name, meaning in NEEDED.items() if not os.environ.get(name)]
    if missing:
        lines = ["set these environment variables (see docs/test-pg14.md):", *missing, *([instead] if instead else [])]
        raise pytest.UsageError("\n".join(lines))
    if not Path(os.environ["PROVISION_PG14_MIRROR_KEY"]).is_file():
        raise pytest.UsageError(f"PROVISION_PG14_MIRROR_KEY: no file {os.environ['PROVISION_PG14_MIRROR_KEY']}")


@dataclass(frozen=True)
class Mirror:
    """The mirror; CODENAME in its suite stands for the Debian release."""

    uri: str
    suite: str
    component: str
    key: Path

    @classmethod
    def given(cls) -> Mirror:
        """Return the one that the variables name."""
        return cls(
            os.environ["PROVISION_PG14_MIRROR_URI"].rstrip("/"),
            os.environ.get("PROVISION_PG14_MIRROR_SUITE") or "CODENAME-pgdg",
            os.environ.get("PROVISION_PG14_MIRROR_COMPONENT") or "main",
            Path(os.environ["PROVISION_PG14_MIRROR_KEY"]).resolve(),
        )

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

    def variables(self, suite: str) -> dict[str, object]:
        """Return the variables that lead to the default; version and checksum of the tarball are the role's own."""
        role = yaml.safe_load((ROOT / "roles/pgvector/defaults/main.yml").read_text())
        return {
            "postgresql_version": 14,
            "postgresql_repository": "mirror",
            "postgresql_mirror_uri": self.uri,
            "postgresql_mirror_suite": suite,
            "postgresql_mirror_component": self.component,
            "postgresql_mirror_key": str(self.key),
            "pgvector_install_method": "source",
            "pgvector_version": role["pgvector_version"],
            "pgvector_source_url": os.environ["PROVISION_PGVECTOR_URL"],
            "pgvector_source_sha256": role["pgvector_source_sha256"],
        }
