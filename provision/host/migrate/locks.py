"""Table locks of a statement: lock mode, table rewrite, full table scan. Pure.

Needs pglast (PostgreSQL's own parser), which is installed on the controller but not on hosts. Without it the verdict
is "unknown". The lock modes come from PostgreSQL's manual ("Explicit Locking") and AlterTableGetLockLevel in
tablecmds.c; a test compares them with a running server.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

ACCESS_SHARE = "ACCESS SHARE"
ROW_SHARE = "ROW SHARE"
ROW_EXCLUSIVE = "ROW EXCLUSIVE"
SHARE_UPDATE_EXCLUSIVE = "SHARE UPDATE EXCLUSIVE"
SHARE = "SHARE"
SHARE_ROW_EXCLUSIVE = "SHARE ROW EXCLUSIVE"
EXCLUSIVE = "EXCLUSIVE"
ACCESS_EXCLUSIVE = "ACCESS EXCLUSIVE"

MODES = (ACCESS_SHARE, ROW_SHARE, ROW_EXCLUSIVE, SHARE_UPDATE_EXCLUSIVE, SHARE, SHARE_ROW_EXCLUSIVE, EXCLUSIVE,
         ACCESS_EXCLUSIVE)  # fmt: skip
"""Weakest first, as in the manual and in the numbers of LOCK TABLE (AccessShareLock = 1)."""

BLOCKS = {
    SHARE_UPDATE_EXCLUSIVE: "blocks other DDL and VACUUM",
    SHARE: "blocks writes",
    SHARE_ROW_EXCLUSIVE: "blocks writes",
    EXCLUSIVE: "blocks writes",
    ACCESS_EXCLUSIVE: "blocks reads and writes",
}

YES, NO, MAYBE = "yes", "no", "maybe"


@dataclass(frozen=True)
class Lock:
    """A lock on one table, and whether the table is rewritten under it."""

    table: str
    mode: str
    rewrites: str = NO
    why: str = ""

    @property
    def blocks(self) -> str:
        """The statements that the lock blocks; empty for locks that do not affect applications."""
        return BLOCKS.get(self.mode, "")


@dataclass(frozen=True)
class Verdict:
    """The locks of one statement on existing tables, and the tables that it creates."""

    locks: tuple[Lock, ...] = ()
    creates: tuple[str, ...] = ()
    unknown: str = ""
    """Why the locks are unknown; empty if they are known."""


@dataclass
class _Found:
    locks: list[Lock] = field(default_factory=list)
    creates: list[str] = field(default_factory=list)
    unknown: str = ""

    def lock(self, relation: Any, mode: str, rewrites: str = NO, why: str = "") -> None:
        if relation is not None:
            self.locks.append(Lock(relation if isinstance(relation, str) else _name(relation), mode, rewrites, why))


@functools.cache
def _parser() -> Any:
    try:
        return importlib.import_module("pglast")
    except ImportError:  # a host
        return None


def available() -> bool:
    """Return whether the parser is installed."""
    return _parser() is not None


def parsed(text: str) -> Any:
    """Return the syntax tree of one statement; None without the parser, and for a text that is not one statement."""
    pglast = _parser()
    if pglast is None:
        return None
    try:
        (found,) = pglast.parse_sql(text)
    except (pglast.parser.ParseError, ValueError):
        return None
    return found.stmt


def judge(text: str) -> Verdict:
    """Determine the locks of one statement."""
    pglast = _parser()
    if pglast is None:
        return Verdict(unknown="pglast is not installed here")
    try:
        (parsed,) = pglast.parse_sql(text)
    except (pglast.parser.ParseError, ValueError) as error:
        return Verdict(unknown=f"not valid PostgreSQL {pglast.get_postgresql_version()[0]}: {error.args[0]}")
    found = _Found()
    kind = type(parsed.stmt).__name__
    rule = _RULES.get(kind)
    if rule:
        rule(parsed.stmt, found)
    elif kind not in _HARMLESS:
        found.unknown = "this statement type is not supported"
    strongest: dict[str, Lock] = {}
    for lock in found.locks:
        known = strongest.get(lock.table)
        strongest[lock.table] = _merge(known, lock) if known else lock
    return Verdict(tuple(strongest.values()), tuple(found.creates), found.unknown)


def _merge(one: Lock, other: Lock) -> Lock:
    mode = max(one.mode, other.mode, key=MODES.index)
    rewrites = min(one.rewrites, other.rewrites, key=(YES, MAYBE, NO).index)
    return Lock(one.table, mode, rewrites, "; ".join(filter(None, (one.why, other.why))))


def _name(relation: Any) -> str:
    return f"{relation.schemaname}.{relation.relname}" if relation.schemaname else str(relation.relname)


def _enum(value: Any) -> str:
    return str(value.name)


def walk(node: Any) -> Iterator[Any]:
    """Yield a node and all its descendants."""
    if isinstance(node, tuple | list):
        for each in node:
            yield from walk(each)
    elif hasattr(node, "__slots__") and type(node).__module__.startswith("pglast"):
        yield node
        for name in node:
            yield from walk(getattr(node, name))


def _reads(node: Any, found: _Found, mode: str = ACCESS_SHARE) -> None:
    made = {cte.ctename for cte in walk(node) if type(cte).__name__ == "CommonTableExpr"}
    for each in walk(node):
        if type(each).__name__ == "RangeVar" and each.relname not in made:
            found.lock(each, mode)


def _select(stmt: Any, found: _Found) -> None:
    _reads(stmt, found, ROW_SHARE if stmt.lockingClause else ACCESS_SHARE)
    if any(type(node).__name__ == "FuncCall" for node in walk(stmt)):
        found.unknown = "calls functions, which may take any lock"


def _writes(stmt: Any, found: _Found) -> None:
    _reads(stmt, found)
    found.lock(stmt.relation, ROW_EXCLUSIVE)


def _create_table(stmt: Any, found: _Found) -> None:
    found.creates.append(_name(stmt.relation))
    for parent in stmt.inhRelations or ():
        partition = stmt.partbound is not None
        found.lock(parent, ACCESS_EXCLUSIVE if partition else SHARE_UPDATE_EXCLUSIVE)
    for node in walk(stmt.tableElts or ()):
        if (
            type(node).__name__ == "Constraint"
            and node.pktable is not None
            and _name(node.pktable) != _name(stmt.relation)
        ):
            found.lock(node.pktable, SHARE_ROW_EXCLUSIVE, why="foreign key")
        elif type(node).__name__ == "TableLikeClause":
            found.lock(node.relation, ACCESS_SHARE)


def _create_as(stmt: Any, found: _Found) -> None:
    found.creates.append(_name(stmt.into.rel))
    _reads(stmt.query, found)


def _view(stmt: Any, found: _Found) -> None:
    found.creates.append(_name(stmt.view))
    _reads(stmt.query, found)
    if stmt.replace:
        found.lock(stmt.view, ACCESS_EXCLUSIVE, why="if the view exists")


def _index(stmt: Any, found: _Found) -> None:
    mode = SHARE_UPDATE_EXCLUSIVE if stmt.concurrent else SHARE
    found.lock(stmt.relation, mode, why="scans the whole table twice" if stmt.concurrent else "scans the whole table")


_DROPS = {
    "OBJECT_TABLE": ACCESS_EXCLUSIVE,
    "OBJECT_VIEW": ACCESS_EXCLUSIVE,
    "OBJECT_MATVIEW": ACCESS_EXCLUSIVE,
    "OBJECT_FOREIGN_TABLE": ACCESS_EXCLUSIVE,
    "OBJECT_SEQUENCE": ACCESS_EXCLUSIVE,
}


def _drop(stmt: Any, found: _Found) -> None:
    kind = _enum(stmt.removeType)
    for each in stmt.objects:
        names = [part.sval for part in each] if isinstance(each, tuple | list) else []
        if kind in _DROPS:
            found.lock(".".join(names), _DROPS[kind])
        elif kind == "OBJECT_INDEX":
            mode = SHARE_UPDATE_EXCLUSIVE if stmt.concurrent else ACCESS_EXCLUSIVE
            found.lock(f"the table of {'.'.join(names)}", mode)
        elif kind in ("OBJECT_TRIGGER", "OBJECT_RULE", "OBJECT_POLICY"):
            found.lock(".".join(names[:-1]), ACCESS_EXCLUSIVE)
        elif kind in ("OBJECT_SCHEMA", "OBJECT_TYPE", "OBJECT_EXTENSION", "OBJECT_DOMAIN") and stmt.behavior:
            found.unknown = "CASCADE drops dependent objects under ACCESS EXCLUSIVE"


def _rename(stmt: Any, found: _Found) -> None:
    if stmt.relation is not None:
        index = _enum(stmt.renameType) == "OBJECT_INDEX"
        found.lock(stmt.relation, SHARE_UPDATE_EXCLUSIVE if index else ACCESS_EXCLUSIVE)


def _lock_table(stmt: Any, found: _Found) -> None:
    for relation in stmt.relations:
        found.lock(relation, MODES[stmt.mode - 1])


def _truncate(stmt: Any, found: _Found) -> None:
    for relation in stmt.relations:
        found.lock(relation, ACCESS_EXCLUSIVE, why="empties the table")


def _comment(stmt: Any, found: _Found) -> None:
    kind = _enum(stmt.objtype)
    if kind in ("OBJECT_TABLE", "OBJECT_COLUMN", "OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_INDEX", "OBJECT_SEQUENCE"):
        names = [part.sval for part in stmt.object]
        found.lock(".".join(names[:-1] if kind == "OBJECT_COLUMN" else names), SHARE_UPDATE_EXCLUSIVE)


def _vacuum(stmt: Any, found: _Found) -> None:
    full = any(option.defname == "full" for option in stmt.options or ())
    for each in stmt.rels or ():
        found.lock(each.relation, ACCESS_EXCLUSIVE if full else SHARE_UPDATE_EXCLUSIVE, YES if full else NO)


def _reindex(stmt: Any, found: _Found) -> None:
    concurrently = any(option.defname == "concurrently" for option in stmt.params or ())
    target = stmt.relation
    if target is not None:
        index = _enum(stmt.kind) == "REINDEX_OBJECT_INDEX"
        table = f"the table of {_name(target)}" if index else _name(target)
        found.lock(table, SHARE_UPDATE_EXCLUSIVE if concurrently else SHARE, why="scans the whole table")


def _refresh(stmt: Any, found: _Found) -> None:
    found.lock(stmt.relation, EXCLUSIVE if stmt.concurrent else ACCESS_EXCLUSIVE, NO if stmt.concurrent else YES)


def _moved(stmt: Any, found: _Found) -> None:
    found.lock(stmt.relation, ACCESS_EXCLUSIVE)


def _code(_stmt: Any, found: _Found) -> None:
    found.unknown = "runs code, which may take any lock"


def _alter_table(stmt: Any, found: _Found) -> None:
    from provision.host.migrate.alter import judge_command

    table = _name(stmt.relation)
    for command in stmt.cmds:
        mode, rewrites, why, other = judge_command(command)
        found.lock(table, mode, rewrites, why)
        if other is not None:
            found.lock(other, SHARE_ROW_EXCLUSIVE, why="foreign key")


def _on(attribute: str, mode: str, rewrites: str = NO) -> Any:
    return lambda stmt, found: found.lock(getattr(stmt, attribute), mode, rewrites)


_RULES: dict[str, Any] = {
    "AlterObjectSchemaStmt": _moved,
    "AlterPolicyStmt": _on("table", ACCESS_EXCLUSIVE),
    "AlterSeqStmt": _on("sequence", SHARE_ROW_EXCLUSIVE),
    "AlterTableStmt": _alter_table,
    "CallStmt": _code,
    "ClusterStmt": _on("relation", ACCESS_EXCLUSIVE, YES),
    "CommentStmt": _comment,
    "CopyStmt": lambda stmt, found: found.lock(stmt.relation, ROW_EXCLUSIVE if stmt.is_from else ACCESS_SHARE),
    "CreatePolicyStmt": _on("table", ACCESS_EXCLUSIVE),
    "CreateStatsStmt": lambda stmt, found: [found.lock(each, SHARE_UPDATE_EXCLUSIVE) for each in stmt.relations],
    "CreateStmt": _create_table,
    "CreateTableAsStmt": _create_as,
    "CreateTrigStmt": _on("relation", SHARE_ROW_EXCLUSIVE),
    "DeleteStmt": _writes,
    "DoStmt": _code,
    "DropStmt": _drop,
    "IndexStmt": _index,
    "InsertStmt": _writes,
    "LockStmt": _lock_table,
    "MergeStmt": _writes,
    "RefreshMatViewStmt": _refresh,
    "ReindexStmt": _reindex,
    "RenameStmt": _rename,
    "RuleStmt": _on("relation", ACCESS_EXCLUSIVE),
    "SelectStmt": _select,
    "TruncateStmt": _truncate,
    "UpdateStmt": _writes,
    "VacuumStmt": _vacuum,
    "ViewStmt": _view,
}

_HARMLESS = {
    "AlterDatabaseSetStmt", "AlterDefaultPrivilegesStmt", "AlterDomainStmt", "AlterEnumStmt", "AlterExtensionStmt",
    "AlterFunctionStmt", "AlterOwnerStmt", "AlterRoleSetStmt", "AlterRoleStmt", "CompositeTypeStmt", "CreateCastStmt",
    "CreateDomainStmt", "CreateEnumStmt", "CreateExtensionStmt", "CreateFunctionStmt", "CreateRangeStmt",
    "CreateRoleStmt", "CreateSchemaStmt", "CreateSeqStmt", "DefineStmt", "DropRoleStmt", "ExplainStmt", "GrantRoleStmt",
    "GrantStmt", "NotifyStmt", "TransactionStmt", "VariableSetStmt", "VariableShowStmt",
}  # fmt: skip
"""Statements without locks on application tables."""
