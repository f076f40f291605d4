"""Make the pictures of the documents: `make docs`. The picture of the schema is drawn from the migrations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pglast import ast, enums, parse_sql

from tests.contract.drawing import Box, area, line, picture, text
from tests.contract.repository import ROOT

SCHEMA, ARCHITECTURE = ROOT / "docs/schema.svg", ROOT / "docs/architecture.svg"
COLUMNS = (("metrics", "evaluations"), ("agents", "agent_tools", "tools"), ("sessions", "memories"),
           ("activities", "feedback"))  # fmt: skip
"""Tables from left to right, each column from top to bottom."""
KINDS = {"agents": "a", "sessions": "b", "activities": "c", "tools": "d"}
DELETES = {"c": "cascade", "n": "set null", "r": "restrict", "a": "no action"}
WIDTH, GAP, TOP, SPACE = 236, 64, 40, 28
"""Width of a table, space between columns, above them, and between tables of a column, in pixels."""
TYPES = {"int2": "smallint", "int4": "integer", "int8": "bigint", "float4": "real", "float8": "double precision",
         "bool": "boolean"}  # fmt: skip


@dataclass
class Table:
    """Columns by name with their types, and foreign keys by column: table and what a deletion does."""

    columns: dict[str, str] = field(default_factory=dict)
    key: tuple[str, ...] = ()
    references: dict[str, tuple[str, str]] = field(default_factory=dict)


def tables(folder: Path = ROOT / "migrations") -> dict[str, Table]:
    """Read the tables that the migrations create. Raises ValueError if one later changes a column."""
    found: dict[str, Table] = {}
    for path in sorted(folder.glob("*.up.sql")):
        parsed: Any = parse_sql(path.read_text())
        for statement in (raw.stmt for raw in parsed):
            if _is(statement, ast.CreateStmt):
                found[statement.relation.relname] = _table(statement)
            elif _is(statement, ast.AlterTableStmt):
                kinds = {each.subtype for each in statement.cmds}
                if kinds & {enums.AlterTableType.AT_AddColumn, enums.AlterTableType.AT_DropColumn}:
                    raise ValueError(f"{path.name} changes columns: teach this module to read it")
    return found


def _is(node: object, kind: type) -> bool:
    """Compare the kind; isinstance would bring pglast's own types, in which every field is optional."""
    return isinstance(node, kind)


def _table(statement: Any) -> Table:
    table = Table()
    for each in statement.tableElts:
        if _is(each, ast.ColumnDef):
            name = each.typeName.names[-1].sval
            size = f"({each.typeName.typmods[0].val.ival})" if each.typeName.typmods else ""
            table.columns[each.colname] = f"{TYPES.get(name, name)}{size}"
        elif each.contype == enums.ConstrType.CONSTR_PRIMARY:
            table.key = tuple(key.sval for key in each.keys)
        elif each.contype == enums.ConstrType.CONSTR_FOREIGN:
            table.references[each.fk_attrs[0].sval] = (each.pktable.relname, DELETES[each.fk_del_action])
    return table


def schema() -> str:
    """Draw the tables and their foreign keys."""
    found = tables()
    boxes: dict[str, Box] = {}
    for number, names in enumerate(COLUMNS):
        y = TOP
        for name in names:
            boxes[name] = Box(name, SPACE + number * (WIDTH + GAP), y, WIDTH, _rows(found[name]))
            y = boxes[name].bottom + SPACE
    parts = [_edge(boxes, child, column, parent) for child, table in found.items()
             for column, (parent, _) in table.references.items()]  # fmt: skip
    height = max(box.bottom for box in boxes.values()) + SPACE
    width = 2 * SPACE + len(COLUMNS) * WIDTH + (len(COLUMNS) - 1) * GAP
    return picture(
        "The nine tables and their foreign keys", width, height, [*(box.svg() for box in boxes.values()), *parts]
    )


def _rows(table: Table) -> tuple[tuple[str, str], ...]:
    rows = []
    for name, kind in table.columns.items():
        note = kind
        if name in table.references:
            note = "{} ({})".format(*table.references[name])
        rows.append((name, f"{note}, key" if name in table.key else note))
    return tuple(rows)


def _edge(boxes: dict[str, Box], child: str, column: str, parent: str) -> str:
    """Draw one foreign key in the channels between the columns; keys to the same table share a channel's line."""
    source, target = boxes[child], boxes[parent]
    here, there = source.row(column), target.row("id")
    offset = {"a": 22, "b": 42, "c": 14, "d": 14}[KINDS[parent]]
    if source.x == target.x:
        left = parent == "tools"
        edge = source.x - offset if left else source.right + offset - (14 if parent == "sessions" else 0)
        x0, x1 = (source.x, target.x) if left else (source.right, target.right)
        points = [(x0, here), (edge, here), (edge, there), (x1, there)]
    elif source.x < target.x:
        channel = target.x - offset
        points = [(source.right, here), (channel, here), (channel, there), (target.x, there)]
    elif source.x - target.right <= GAP:
        channel = target.right + offset - (14 if parent == "sessions" else 0)
        points = [(source.x, here), (channel, here), (channel, there), (target.right, there)]
    else:  # over the columns in between
        near, far, above = source.x - 14, target.right + offset, TOP - 18
        points = [(source.x, here), (near, here), (near, above), (far, above), (far, there), (target.right, there)]
    return line(KINDS[parent], points)


def architecture() -> str:
    """Draw the hosts of a production environment, and what connects them."""
    controller = Box(
        "your machine", 28, 40, 216, (("inventories/prod", "hosts, vault"), ("profiles/prod.yml", "values"),
                                      ("site.yml", "converges"), ("provision audit", "compares")),
    )  # fmt: skip
    application = Box("applications", 28, 212, 216, (("provision connect", ".env, CA"), ("minion_app", "port 6432")))
    pooler = Box("PgBouncer", 340, 84, 172, (("port 6432", "TLS"), ("pools", "by role")))
    server = Box(
        "PostgreSQL", 560, 84, 172, (("port 5432", "TLS"), ("pgvector", "HNSW"), ("nine tables", "migrations"))
    )
    command = Box(
        "provision", 340, 200, 172, (("doctor, queries", ""), ("migrate, restore", ""), ("timers", "systemd"))
    )
    exporters = Box("exporters", 560, 220, 172, (("node", "port 9100"), ("postgres", "port 9187")))
    backup = Box(
        "backup host or S3", 816, 64, 216, (("pgBackRest", "full, diff, incr"), ("WAL", "at most 60 s late"),
                                            ("restore test", "every night")),
    )  # fmt: skip
    monitoring = Box(
        "Prometheus, Grafana", 816, 220, 216, (("rules.yml", "alerts, runbooks"), ("dashboard.json", "panels"))
    )
    boxes = (controller, application, pooler, server, command, exporters, backup, monitoring)
    edges = [
        line("d", [(controller.right, 95), (316, 95)]),
        text(256, 88, "SSH", "note"),
        line("a", [(application.right, application.row("minion_app")), (282, application.row("minion_app")),
                   (282, pooler.row("port 6432")), (pooler.x, pooler.row("port 6432"))]),
        line("a", [(pooler.right, pooler.row("port 6432")), (server.x, server.row("port 5432"))]),
        line("c", [(server.right, server.row("port 5432")), (backup.x, server.row("port 5432"))]),
        line("c", [(command.x + 86, command.y), (command.x + 86, pooler.bottom)]),
        line("b", [(monitoring.x, monitoring.row("rules.yml")), (exporters.right, exporters.row("node"))]),
        line("b", [(exporters.x + 86, exporters.y), (exporters.x + 86, server.bottom)]),
    ]  # fmt: skip
    host = area("database host: Debian 12 or 13", 316, 40, 440, 284)
    return picture(
        "A production environment: controller, database host, backups, monitoring, applications", 1060, 348,
        [host, *(box.svg() for box in boxes), *edges],
    )  # fmt: skip


PICTURES = {SCHEMA: schema, ARCHITECTURE: architecture}

if __name__ == "__main__":
    for path, draw in PICTURES.items():
        path.write_text(draw())
