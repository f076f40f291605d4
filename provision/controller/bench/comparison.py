"""The HTML report of a comparison, in the style of `provision bench`. Does IO: writes two files."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from provision.controller.bench.report import BAR_PX, MARGIN_PX, PALETTE, drawn, page, rows_of
from provision.controller.bench.results import Column, Results, columns, ratios, save, tables

NUMBERS = "comparison.json"
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5, 10)


def write(results: Results, base: str, folder: Path) -> tuple[Path, Path]:
    """Write comparison.html and comparison.json into a folder; return their paths. Raises OSError."""
    numbers, shown = folder / NUMBERS, folder / "comparison.html"
    save(results, numbers)
    shown.write_text(_page(results, base))
    return shown, numbers


def _page(results: Results, base: str) -> str:
    facts = {
        "when": results.when,
        "machine": results.machine,
        "server": f"PostgreSQL {results.server}, pgvector {results.pgvector}",
        "load": ", ".join(f"{name} {value:,g}" for name, value in results.sizes.items()),
        "rounds": str(max((len(rounds) for rounds in results.rounds.values()), default=0)),
        "intervals": "95 %, bootstrap over rounds",
    }
    charts = {
        title: _chart(results, base, each, script=index == 0)
        for index, (title, each) in enumerate(columns(results.stages).items())
        if results.rounds.get(base)
    }
    sections = []
    for title, head, rows in tables(results, base):
        chart = next((chart for name, chart in charts.items() if title.startswith(name)), "")
        sections.append(f"<section><h2>{escape(title)}</h2>{chart}<table>{rows_of(head, rows)}</table></section>")
    notes = "".join(f"<li>{escape(remark)}" for remark in results.remarks)
    files = "".join(
        f"<details><summary>{escape(name)}</summary><pre>{escape(conf)}</pre></details>"
        for name, conf in results.configurations.items()
    )
    notes = f"<section><h2>Remarks</h2><ul>{notes}</ul></section>" if notes else ""
    body = "\n".join([*sections, notes, f"<section><h2>Configurations</h2>{files}</section>"])
    return page(
        f"Comparison, {results.when}",
        f"provision bench or make bench-db; the same numbers are in {NUMBERS}",
        facts,
        body,
    )


def _chart(results: Results, base: str, each: list[Column], *, script: bool) -> str:
    """Return points with intervals: a row for each configuration, a colour for each stage."""
    import plotly.graph_objects as go

    figure: Any = go.Figure()
    for index, column in enumerate(each):
        found = ratios(results, column, base)
        names = [name for name in found if name != base]
        error = {
            "type": "data",
            "symmetric": False,
            "array": [found[name].high - found[name].value for name in names],
            "arrayminus": [found[name].value - found[name].low for name in names],
        }
        colour = (*PALETTE, "#1a7f37", "#9a6700", "#cf222e")[index % 6]
        figure.add_trace(
            go.Scatter(
                x=[found[name].value for name in names],
                y=[f"{name} " for name in names],
                error_x=error if all(found[name].low > 0 for name in names) else None,
                mode="markers",
                name=column.stage,
                marker_color=colour,
            )
        )
    figure.add_vline(x=1, line_dash="dot")
    figure.update_layout(scattermode="group")
    figure.update_xaxes(tickvals=TICKS, ticktext=[f"{value:g}" for value in TICKS])
    height = BAR_PX * len(results.rounds) + MARGIN_PX + 30
    return drawn(figure, height, x=f"ratio to {base}, logarithmic", log=True, script=script)
