"""Supported distributions: identity, shipped versions and Vagrant box of each, in one table.

Pure, standard library only: controller and hosts both import it. To add a distribution, add a row to DISTRIBUTIONS.
A lookup returns None for an unknown distribution; only `by_key` raises.

Sources: packages.debian.org and packages.ubuntu.com (shipped versions); os-release(5) (id, version, code name).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from provision.errors import UsageError

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Debian's name of each supported architecture, by the kernel's name (`uname -m`)."""


@dataclass(frozen=True)
class Distribution:
    """One release of a distribution. An empty version means not packaged (pgvector) or not recorded (the others)."""

    id: str
    """ID in os-release, such as debian."""
    version: str
    """VERSION_ID in os-release, such as 13."""
    codename: str
    """VERSION_CODENAME in os-release: the suite of its apt archive."""
    tested: bool
    """Covered by the test suite. Other distributions are accepted with a warning."""
    postgresql: int
    """Major of its PostgreSQL packages."""
    pgvector: str
    """Upstream version of its pgvector package."""
    pgbouncer: str
    pgbackrest: str
    patroni: str = ""
    etcd: str = ""
    haproxy: str = ""
    box: str = ""
    """Vagrant box for virtualbox and libvirt."""

    @property
    def name(self) -> str:
        """Name for messages: Debian 13."""
        return f"{self.id.capitalize()} {self.version}"

    @property
    def key(self) -> str:
        """Short name for command options: debian13, ubuntu2404."""
        return self.id + self.version.replace(".", "")

    @property
    def has_sandbox(self) -> bool:
        """Whether sandboxes and bundles can be made: both come from a Debian mirror."""
        return self.id == "debian"

    @property
    def pgvector_install_method(self) -> str:
        """The pgvector installation that its own archive allows: package or source."""
        return "package" if self.pgvector else "source"

    def variables(self) -> dict[str, int | str]:
        """Return the inventory variables of a host that installs only from its own archive."""
        return {
            "postgresql_version": self.postgresql,
            "postgresql_repository": "distribution",
            "pgvector_install_method": self.pgvector_install_method,
        }


DISTRIBUTIONS = (
    Distribution(
        "debian", "12", "bookworm", tested=True, postgresql=15, pgvector="", pgbouncer="1.18.0", pgbackrest="2.45",
        patroni="3.0", etcd="3.4", haproxy="2.6", box="debian/bookworm64",
    ),
    Distribution(
        "debian", "13", "trixie", tested=True, postgresql=17, pgvector="0.8.0", pgbouncer="1.24.1", pgbackrest="2.55.1",
        patroni="4.0", etcd="3.5", haproxy="3.0", box="debian/trixie64",
    ),
    Distribution(
        "ubuntu", "24.04", "noble", tested=False, postgresql=16, pgvector="0.6.0", pgbouncer="1.22.0", pgbackrest="",
    ),
)  # fmt: skip
"""Every known distribution, oldest first within each id."""

DEFAULT_KEY = "debian13"
"""Default for sandboxes, bundles and Vagrant containers."""
DEFAULT_VM_KEY = "debian12"
"""Default for Vagrant virtual machines: the Debian 13 kernel has panicked under QEMU 7.2 with two emulated CPUs."""


def by_codename(codename: str) -> Distribution | None:
    """Look up a distribution by code name (VERSION_CODENAME)."""
    return next((each for each in DISTRIBUTIONS if each.codename == codename), None)


def of(id: str, version: str) -> Distribution | None:  # noqa: A002 - the field's name in os-release
    """Look up a distribution by ID and VERSION_ID."""
    return next((each for each in DISTRIBUTIONS if (each.id, each.version) == (id, version)), None)


def by_key(key: str, where: str = "--os") -> Distribution:
    """Look up a distribution that can be a sandbox. Raises UsageError with `where` and the allowed keys."""
    for each in DISTRIBUTIONS:
        if each.has_sandbox and each.key == key:
            return each
    raise UsageError("unknown distribution", where=where, seen=key, allowed=", ".join(keys()))


def keys() -> list[str]:
    """Return the keys that `by_key` accepts."""
    return [each.key for each in DISTRIBUTIONS if each.has_sandbox]


def box(key: str = DEFAULT_VM_KEY) -> str:
    """Return the Vagrant box of a distribution; for an unknown key, the default's."""
    boxes = {each.key: each.box for each in DISTRIBUTIONS if each.box}
    return boxes.get(key, boxes[DEFAULT_VM_KEY])


def supported() -> str:
    """List the supported distributions for a message: Debian 12 and 13, and Ubuntu 24.04 (untested)."""
    groups: dict[tuple[bool, str], list[str]] = {}
    for each in sorted(DISTRIBUTIONS, key=lambda row: not row.tested):
        groups.setdefault((each.tested, each.id.capitalize()), []).append(each.version)
    phrases = [
        f"{name} {_enumerate(versions)}{'' if tested else ' (untested)'}" for (tested, name), versions in groups.items()
    ]
    return _enumerate(phrases, comma=True)


def _enumerate(words: Iterable[str], *, comma: bool = False) -> str:
    *first, last = words
    return f"{', '.join(first)}{',' if comma else ''} and {last}" if first else last
