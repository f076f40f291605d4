"""Data that building and validating a plan share: the run's context, the verdict, the kind of repository. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Context:
    """What is known of the run beside variables: the host's names, inventories, and what the controller read.

    `roles` are those of the play, whose packages are installed. `bundle` is what `controller.bundle.verify` found (and
    `problem`), `provided` and `plain_vaults` name files of the controller that must not be used as they are, and
    `credentials` the file that sets database_credentials, if it is not the vault. `database` is false for a host
    beside the databases, `toolkit_sha256` the checksum of the packed command.
    """

    name: str
    address: str
    inventory: tuple[str, ...]
    roles: tuple[str, ...]
    today: datetime.date
    bundle: Mapping[str, Any] = field(default_factory=dict)
    provided: tuple[str, ...] = ()
    plain_vaults: tuple[str, ...] = ()
    credentials: str = ""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    database: bool = True
    toolkit_sha256: str = ""


@dataclass
class Verdict:
    """Refusals stop the run. Warnings are kept in the plan; notices are only shown, for a later run differs."""

    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    serving_port: int = 0
    adopting: bool = False


def repository_kind(v: Mapping[str, Any]) -> str:
    """Return the kind of the backup repository: s3, host or local."""
    return "s3" if v["backup_s3"] else "host" if v["backup_repository_host"] else "local"
