"""Data that building and validating a plan share: the run's context, the verdict, the kind of repository. Pure."""

from __future__ import annotations

import datetime
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SECOND_PATH = "/pgbackrest"
"""Path of a second repository within its bucket, unless `backup_second_s3.path` is set."""


@dataclass(frozen=True)
class Peer:
    """Another host of the group database: the stanza that it would use, and its repositories."""

    name: str
    stanza: str
    repositories: frozenset[tuple[str, ...]]
    """Kind and place of each: equal for hosts that share a repository."""


@dataclass(frozen=True)
class Listed:
    """A host of the inventory that may take part in a cluster: its groups, its address for the others, its options.

    `pooler` is the group of hosts with a pooler and no server.
    """

    name: str
    address: str
    database: bool
    dcs: bool
    values: Mapping[str, Any]
    pooler: bool = False


@dataclass(frozen=True)
class Context:
    """What is known of the run beside variables: the host's names, inventories, and what the controller read.

    `roles` are those of the play, whose packages are installed. `bundle` is what `controller.bundle.verify` found (and
    `problem`), `provided` and `plain_vaults` name files of the controller that must not be used as they are, and
    `credentials` the file that sets database_credentials, if it is not the vault. `database` is false for a host
    beside the databases, `toolkit_sha256` the checksum of the packed command. `peers` are the other hosts of the group
    database, `selected` the roles that the run applies, None for all.
    """

    name: str
    address: str
    inventory: tuple[str, ...]
    roles: tuple[str, ...]
    today: datetime.date
    bundle: Mapping[str, Any] = field(default_factory=dict)
    provided: tuple[str, ...] = ()
    plain_vaults: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    """Variables whose directory on the controller does not exist."""
    credentials: str = ""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    database: bool = True
    toolkit_sha256: str = ""
    peers: tuple[Peer, ...] = ()
    listed: tuple[Listed, ...] = ()
    """Hosts of the groups database, dcs and pooler, this one included; empty where a host has no use for them."""
    selected: frozenset[str] | None = None

    @property
    def pooler(self) -> bool:
        """Whether the host is one of the group pooler, without a server."""
        return not self.database and self.name in self.groups.get("pooler", ())

    def runs(self, role: str) -> bool:
        """Return whether this run applies a role."""
        return self.selected is None or role in self.selected


@dataclass
class Verdict:
    """Refusals stop the run. Warnings are kept in the plan; notices are only shown, for a later run differs."""

    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    serving_port: int = 0
    adopting: bool = False


def repository_kind(v: Mapping[str, Any]) -> str:
    """Return the kind of the first backup repository: s3, host or local."""
    return "s3" if v["backup_s3"] else "host" if v["backup_repository_host"] else "local"


def repositories(v: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return kind and place of each repository that hosts could share, in the order of their numbers.

    Equal for hosts that share one. A repository on the database host itself is left out.
    """
    found, kind = [], repository_kind(v)
    if kind == "s3":
        found.append(_bucket(v["backup_s3"], v["backup_repository_path"]))
    elif kind == "host":
        found.append((kind, str(v["backup_repository_host"]), str(v["backup_repository_path"])))
    if second := v["backup_second_s3"]:
        found.append(_bucket(second, second.get("path") or SECOND_PATH))
    return found


def _bucket(s3: Mapping[str, Any], path: object) -> tuple[str, ...]:
    endpoint = str(s3.get("endpoint", "")).removeprefix("https://").lower()
    return ("s3", endpoint, str(s3.get("bucket", "")), posixpath.normpath(str(path)))
