"""Lock mode, table rewrite and full scan of each ALTER TABLE subcommand. Pure; takes pglast nodes."""

from __future__ import annotations

from typing import Any

from provision.host.migrate.locks import (
    ACCESS_EXCLUSIVE,
    MAYBE,
    NO,
    SHARE_ROW_EXCLUSIVE,
    SHARE_UPDATE_EXCLUSIVE,
    YES,
    walk,
)

Judged = tuple[str, str, str, Any]
"""Lock mode, whether it rewrites the table, the reason, and the table that a foreign key references."""

_WEAK = {
    "AT_SetStatistics", "AT_ClusterOn", "AT_DropCluster", "AT_SetRelOptions", "AT_ResetRelOptions", "AT_SetOptions",
    "AT_ResetOptions", "AT_ValidateConstraint", "AT_AttachPartition", "AT_DetachPartitionFinalize",
}  # fmt: skip
_TRIGGERS = {
    "AT_EnableTrig", "AT_EnableAlwaysTrig", "AT_EnableReplicaTrig", "AT_EnableTrigAll", "AT_EnableTrigUser",
    "AT_DisableTrig", "AT_DisableTrigAll", "AT_DisableTrigUser",
}  # fmt: skip
_REWRITING = {"AT_SetLogged", "AT_SetUnLogged", "AT_SetAccessMethod", "AT_SetTableSpace"}

_VOLATILE = {"random", "gen_random_uuid", "uuid_generate_v1", "uuid_generate_v1mc", "uuid_generate_v4", "uuidv4",
             "uuidv7", "clock_timestamp", "timeofday", "nextval"}  # fmt: skip
_STABLE = {"now", "transaction_timestamp", "statement_timestamp", "current_setting", "current_database", "lower",
           "upper", "concat", "date_trunc", "to_timestamp", "make_interval", "jsonb_build_object", "jsonb_build_array",
           "json_build_object", "array_fill", "repeat", "md5"}  # fmt: skip
_SERIAL = {"serial", "bigserial", "smallserial", "serial4", "serial8", "serial2"}


def judge_command(command: Any) -> Judged:
    """Classify one ALTER TABLE subcommand."""
    kind = command.subtype.name
    if kind in _WEAK:
        return SHARE_UPDATE_EXCLUSIVE, NO, "scans the whole table" if kind == "AT_ValidateConstraint" else "", None
    if kind in _TRIGGERS:
        return SHARE_ROW_EXCLUSIVE, NO, "", None
    if kind in _REWRITING:
        return ACCESS_EXCLUSIVE, YES, "", None
    if kind == "AT_DetachPartition" and command.def_.concurrent:
        return SHARE_UPDATE_EXCLUSIVE, NO, "", None
    if kind == "AT_AddColumn":
        return _add_column(command.def_)
    if kind == "AT_AlterColumnType":
        return (
            ACCESS_EXCLUSIVE,
            MAYBE,
            "no rewrite if the types are binary compatible, such as varchar to text or to a longer varchar",
            None,
        )
    if kind == "AT_AddConstraint":
        return _add_constraint(command.def_)
    if kind == "AT_SetNotNull":
        return ACCESS_EXCLUSIVE, NO, "scans the whole table, unless a valid CHECK (... IS NOT NULL) exists", None
    return ACCESS_EXCLUSIVE, NO, "", None


def _add_column(column: Any) -> Judged:
    rewrites, why, other = NO, "", None
    if column.typeName.names[-1].sval in _SERIAL:
        rewrites, why = YES, "serial"
    for constraint in column.constraints or ():
        kind = constraint.contype.name
        if kind == "CONSTR_DEFAULT":
            rewrites, why = _default(constraint.raw_expr)
        elif kind in ("CONSTR_GENERATED", "CONSTR_IDENTITY"):
            rewrites, why = YES, "each row gets a different value"
        elif kind in ("CONSTR_UNIQUE", "CONSTR_PRIMARY"):
            why = "builds an index"
        elif kind == "CONSTR_FOREIGN":
            other = constraint.pktable
        elif kind == "CONSTR_CHECK":
            why = "scans the whole table"
    return ACCESS_EXCLUSIVE, rewrites, why, other


def _default(expression: Any) -> tuple[str, str]:
    calls = {call.funcname[-1].sval for call in walk(expression) if type(call).__name__ == "FuncCall"}
    if calls & _VOLATILE:
        return YES, f"{min(calls & _VOLATILE)}() differs for every row"
    if calls - _STABLE:
        return MAYBE, f"if {min(calls - _STABLE)}() is volatile"
    return NO, ""


def _add_constraint(constraint: Any) -> Judged:
    kind = constraint.contype.name
    scan = "" if constraint.skip_validation else "scans the whole table; avoid with NOT VALID and a later VALIDATE"
    if kind == "CONSTR_FOREIGN":
        return SHARE_ROW_EXCLUSIVE, NO, scan, constraint.pktable
    if kind in ("CONSTR_UNIQUE", "CONSTR_PRIMARY", "CONSTR_EXCLUSION"):
        why = "" if constraint.indexname else "builds an index; avoid with USING INDEX and an index built concurrently"
        return ACCESS_EXCLUSIVE, NO, why, None
    return ACCESS_EXCLUSIVE, NO, scan, None
