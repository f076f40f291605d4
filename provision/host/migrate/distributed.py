"""Statements that Citus refuses on the tables of a distributed schema. Pure; needs pglast, as `locks` does.

Sources: src/backend/distributed/commands of Citus 14 (table.c, ErrorIfUnsupportedAlterTableStmt and
PostprocessCreateTableStmt; index.c, ErrorIfUnsupportedDropIndexStmt; trigger.c; cluster.c; statistics.c; schema.c).
Only what a statement's text shows is judged: foreign keys to another schema, for example, need the database.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from provision.host.migrate.locks import parsed

ALONE = "AT_AddConstraint AT_AttachPartition AT_DetachPartition AT_EnableTrig AT_DisableTrig"
"""Subcommands of ALTER TABLE that must be the only one of their statement."""
SUPPORTED = frozenset(
    f"{ALONE} AT_AddColumn AT_DropColumn AT_ColumnDefault AT_AlterColumnType AT_DropNotNull AT_SetNotNull"
    " AT_EnableAlwaysTrig AT_EnableReplicaTrig AT_EnableTrigAll AT_EnableTrigUser AT_DisableTrigAll AT_DisableTrigUser"
    " AT_ReplicaIdentity AT_ChangeOwner AT_EnableRowSecurity AT_DisableRowSecurity AT_ForceRowSecurity"
    " AT_NoForceRowSecurity AT_ValidateConstraint AT_DropConstraint AT_SetCompression AT_SetRelOptions"
    " AT_ResetRelOptions AT_ReplaceRelOptions AT_SetLogged AT_SetUnLogged AT_SetAccessMethod".split()
)
"""Subcommands of ALTER TABLE that Citus passes on; every other one is refused."""
_ALONE = frozenset(ALONE.split())


def refusals(text: str) -> tuple[str, ...]:
    """Return why Citus would refuse one statement, with the form that it accepts; () if nothing is known.

    Also () without the parser, and for a text that is not valid SQL: see `locks.judge`.
    """
    statement = parsed(text)
    rule = _RULES.get(type(statement).__name__)
    return tuple(rule(statement)) if rule else ()


def _alter_table(statement: Any) -> list[str]:
    kinds = [command.subtype.name for command in statement.cmds]
    found = [
        f"{_shown(kind)} is not supported: do it before the schema is distributed"
        for kind in kinds
        if kind not in SUPPORTED
    ]
    if len(kinds) > 1:
        found += [f"{_shown(kind)} must be alone: a statement for each" for kind in kinds if kind in _ALONE]
    for command in statement.cmds:
        if command.subtype.name == "AT_DetachPartition" and getattr(command.def_, "concurrent", False):
            found.append("DETACH PARTITION CONCURRENTLY is not supported: DETACH PARTITION")
    return found


def _shown(kind: str) -> str:
    """Return a subcommand's name as words: AT_SetStorage is SET STORAGE."""
    words = "".join(f" {letter}" if letter.isupper() else letter for letter in kind.removeprefix("AT_"))
    return words.strip().upper()


def _drop(statement: Any) -> list[str]:
    several = len(statement.objects) > 1 and statement.removeType.name in ("OBJECT_INDEX", "OBJECT_TRIGGER")
    return ["several objects in one DROP: a statement for each"] if several else []


def _create_table(statement: Any) -> list[str]:
    found = ["CREATE TABLE OF is not supported: list the columns"] if statement.ofTypename else []
    if statement.inhRelations and not statement.partbound:
        found.append("INHERITS is not supported: a partitioned table, or a table of its own")
    if statement.relation.relpersistence == "t":
        found.append("a temporary table cannot be distributed")
    return found


def _schema(statement: Any) -> list[str]:
    with_tables = any(type(each).__name__ == "CreateStmt" for each in statement.schemaElts or ())
    return ["a table inside CREATE SCHEMA: a statement for each"] if with_tables else []


def _statistics(statement: Any) -> list[str]:
    return [] if statement.defnames else ["CREATE STATISTICS without a name: name it"]


def _cluster(statement: Any) -> list[str]:
    verbose = any(option.defname == "verbose" for option in statement.params or ())
    return ["CLUSTER VERBOSE is not supported: CLUSTER"] if verbose else []


def _trigger(_statement: Any) -> list[str]:
    return ["a trigger needs citus.enable_unsafe_triggers on every node"]


def _foreign_table(_statement: Any) -> list[str]:
    return ["a foreign table cannot be created in a distributed schema"]


_RULES: dict[str, Callable[[Any], list[str]]] = {
    "AlterTableStmt": _alter_table,
    "ClusterStmt": _cluster,
    "CreateForeignTableStmt": _foreign_table,
    "CreateSchemaStmt": _schema,
    "CreateStatsStmt": _statistics,
    "CreateStmt": _create_table,
    "CreateTrigStmt": _trigger,
    "DropStmt": _drop,
}
