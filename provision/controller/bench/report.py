"""Benchmark report: one self-contained HTML page for light, dark and paper, and the same numbers as JSON.

Does IO: writes two files. The page embeds plotly's script.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from provision.checks.vector_index import DOCUMENTED
from provision.controller.bench.run import Measured

STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d1d9e0, #3d444d); --quiet: light-dark(#59636e, #9198a1);
  background: light-dark(#fff, #0d1117); color: light-dark(#1f2328, #e6edf3); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; }
.quiet { color: var(--quiet); margin-top: 0; }
dl { display: grid; grid-template-columns: max-content auto; gap: .15rem 1.2rem; }
dt { color: var(--quiet); } dd { margin: 0; }
table { border-collapse: collapse; } th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); }
th { text-align: left; font-weight: 600; } td { text-align: right; font-variant-numeric: tabular-nums; }
.js-plotly-plot { margin-left: -.5rem; }
@media (prefers-color-scheme: dark) { .js-plotly-plot { filter: invert(1) hue-rotate(180deg); } }
@media print { :root { color-scheme: light; } body { margin: 0; max-width: none; } section { break-inside: avoid; }
  details { display: none; } }
"""
PALETTE = ("#0969da", "#bc4c00", "#8250df")
FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#1f2328"}
CLEAR = "rgba(0,0,0,0)"
BAR_PX, MARGIN_PX = 46, 90
"""Height of a stage's bar group and of axes with titles, in pixels: no empty space for few stages."""


def write(measured: Measured, folder: Path) -> tuple[Path, Path]:
    """Write bench.html and bench.json into a folder, created if missing; return their paths. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    page, numbers = folder / "bench.html", folder / "bench.json"
    numbers.write_text(json.dumps(measured.as_json(), indent=2) + "\n")
    page.write_text(_page(measured))
    return page, numbers


def _page(measured: Measured) -> str:
    sizes = measured.sizes
    facts = {
        "when": measured.when,
        "server": f"PostgreSQL {measured.server}, pgvector {measured.pgvector}",
        "database": measured.database,
        "clients ran on": measured.client,
        "load": f"{sizes.vectors:,} vectors, {sizes.clients} clients, {sizes.seconds:g} s per stage, pgbench scale "
        f"{sizes.scale}, seed {sizes.seed}, rounds {sizes.rounds}",
        "HNSW index": f"built in {measured.build_s:.1f} s",
    }
    rows = ((name, f"{rate.tps:,.0f}", f"{rate.p50:.2f}", f"{rate.p95:.2f}", f"{rate.p99:.2f}")
            for name, rate in measured.rates.items())  # fmt: skip
    found = ((f"ef_search {ef}", f"{value:.3f}") for ef, value in measured.recall.items())
    left = "".join(
        f"<li>ef_search {row.ef_search}: {escape(row.plan)}; {escape(row.fix)}</li>" for row in measured.lost
    )
    searched = ", ".join(map(str, DOCUMENTED))
    ratios = ((name, row["rate"].shown, row["p95"].shown) for name, row in measured.compared.items())
    compared = f"""<section><h2>Compared with the earlier report</h2>
<table>{rows_of(("stage", "rate, ratio", "p95, ratio"), ratios)}</table></section>
""" if measured.compared else ""  # fmt: skip
    throughput, latency, recall = _charts(measured)
    sections = f"""{compared}<section><h2>Throughput</h2>{throughput}</section>
<section><h2>Latency</h2>{latency}
<table>{rows_of(("stage", "per second", "p50 ms", "p95 ms", "p99 ms"), rows)}</table></section>
<section><h2>Recall</h2>{recall}<table>{rows_of(("setting", "recall at 10"), found)}</table></section>
<section><h2>Does the planner use the index?</h2>
{f"<ul>{left}</ul>" if left else f"<p>Yes, at hnsw.ef_search {searched}.</p>"}</section>
<details><summary>Non-default server settings</summary>
<table>{rows_of(("setting", "value"), measured.settings.items())}</table></details>"""
    return page(f"Benchmark, {measured.when}", "provision bench; the same numbers are in bench.json", facts, sections)


def page(title: str, subtitle: str, facts: Mapping[str, str], sections: str) -> str:
    """Return a whole page from its facts and the HTML of its sections."""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
<h1>{escape(title.partition(",")[0])}</h1>
<p class="quiet">{escape(subtitle)}</p>
<dl>{"".join(f"<dt>{escape(name)}<dd>{escape(value)}" for name, value in facts.items())}</dl>
{sections}
</html>
"""


def _charts(measured: Measured) -> tuple[str, str, str]:
    """Return throughput (one series, no legend), latency (one legend), and searches by recall (labelled points)."""
    import plotly.graph_objects as go

    names, rates = list(measured.rates), list(measured.rates.values())
    throughput = go.Figure(
        go.Bar(y=names, x=[rate.tps for rate in rates], orientation="h", marker_color=PALETTE[0],
               text=[f"{rate.tps:,.0f}" for rate in rates], textposition="auto")
    )  # fmt: skip
    latency = go.Figure(
        [
            go.Bar(
                y=names, x=[getattr(rate, label) for rate in rates], orientation="h", name=label, marker_color=colour
            )
            for label, colour in zip(("p50", "p95", "p99"), PALETTE, strict=True)
        ]
    )
    recall = go.Figure(
        go.Scatter(
            x=list(measured.recall.values()),
            y=[measured.rates[f"search, ef {ef}"].tps for ef in measured.recall],
            text=[f"ef_search {ef}" for ef in measured.recall],
            mode="lines+markers+text",
            textposition="bottom left",
            line_color=PALETTE[0],
            cliponaxis=False,
        )
    )
    low = min(measured.recall.values())
    recall.update_xaxes(range=[low - max(1 - low, 0.01) * 0.6, 1.002])
    recall.update_yaxes(rangemode="tozero")
    height = BAR_PX * len(names) + MARGIN_PX
    return (
        drawn(throughput, height, x="transactions per second, logarithmic", log=True, script=True),
        drawn(latency, height + 30, x="milliseconds, logarithmic", log=True),
        drawn(recall, 320, x="recall at 10, against an exact search", y="searches per second"),
    )


def drawn(figure: Any, height: int, *, x: str, y: str = "", log: bool = False, script: bool = False) -> str:
    """Return a chart as HTML; the page's first one brings the script."""
    figure.update_layout(
        template="plotly_white", font=FONT, height=height, paper_bgcolor=CLEAR, plot_bgcolor=CLEAR,
        margin={"l": 10, "r": 20, "t": 10, "b": 50}, bargap=0.25,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
    )  # fmt: skip
    figure.update_xaxes(title_text=x, automargin=True, **({"type": "log", "dtick": 1} if log else {}))
    figure.update_yaxes(title_text=y, automargin=True, **({"autorange": "reversed"} if log else {}))
    options = {"displayModeBar": False, "responsive": True}
    return str(figure.to_html(full_html=False, include_plotlyjs=script, config=options))


def rows_of(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return the rows of a table as HTML; the first cell of each is its heading."""
    head = "".join(f"<th>{escape(title)}" for title in titles)
    body = "".join(
        f"<tr><th>{escape(first)}" + "".join(f"<td>{escape(cell)}" for cell in rest) + "</tr>" for first, *rest in rows
    )
    return f"<tr>{head}</tr>{body}"
