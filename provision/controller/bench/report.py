"""Benchmark report: one self-contained HTML page, and the same numbers as JSON.

Does IO: writes two files. The page embeds plotly's script.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from provision.controller.bench.run import Measured

STYLE = "body{font:16px sans-serif;max-width:960px;margin:2em auto}td,th{padding:.2em .8em;text-align:right}"


def write(measured: Measured, folder: Path) -> tuple[Path, Path]:
    """Write bench.html and bench.json into a folder, created if missing; return their paths. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    page, numbers = folder / "bench.html", folder / "bench.json"
    numbers.write_text(json.dumps(measured.as_json(), indent=2) + "\n")
    page.write_text(_page(measured))
    return page, numbers


def _page(measured: Measured) -> str:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    names = list(measured.rates)
    rates = make_subplots(rows=2, cols=1, subplot_titles=("transactions per second (log)", "latency, ms (log)"))
    rates.add_trace(go.Bar(x=names, y=[rate.tps for rate in measured.rates.values()], name="tps"), 1, 1)
    for label in ("p50", "p95", "p99"):
        rates.add_trace(go.Bar(x=names, y=[getattr(rate, label) for rate in measured.rates.values()], name=label), 2, 1)
    rates.update_yaxes(type="log")
    rates.update_layout(height=760)
    recall = go.Figure(
        go.Scatter(
            x=list(measured.recall.values()),
            y=[measured.rates[f"search, ef {ef}"].tps for ef in measured.recall],
            text=[f"ef_search {ef}" for ef in measured.recall],
            mode="lines+markers+text",
            textposition="bottom left",
        )
    )
    recall.update_layout(title="searches per second by recall", xaxis_title="recall at 10", height=420)
    recall.update_xaxes(range=[min(measured.recall.values()) - 0.02, 1.005])
    sizes = measured.sizes
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{rate.tps:,.0f}</td><td>{rate.p50:.2f}</td><td>{rate.p95:.2f}</td>"
        f"<td>{rate.p99:.2f}</td></tr>"
        for name, rate in measured.rates.items()
    )
    found = "".join(f"<tr><th>ef_search {ef}</th><td>{value:.3f}</td></tr>" for ef, value in measured.recall.items())
    left = "".join(
        f"<li>ef_search {row.ef_search}: {escape(row.plan)}; {escape(row.fix)}</li>" for row in measured.lost
    )
    settings = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in measured.settings.items()
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>provision bench</title>
<style>{STYLE}</style><h1>provision bench</h1>
<p>{escape(measured.database)}: PostgreSQL {escape(measured.server)}, pgvector {escape(measured.pgvector)};
{sizes.vectors:,} vectors, {sizes.clients} clients, {sizes.seconds:g} s per stage, pgbench scale {sizes.scale}.
The HNSW index was built in {measured.build_s:.1f} s.</p>
<table><tr><th></th><th>per second</th><th>p50 ms</th><th>p95 ms</th><th>p99 ms</th></tr>{rows}</table>
{rates.to_html(full_html=False, include_plotlyjs=True)}
<h2>Recall</h2><table>{found}</table>{recall.to_html(full_html=False, include_plotlyjs=False)}
<h2>Does the planner use the index?</h2>{f"<ul>{left}</ul>" if left else "<p>Yes, over the whole documented range.</p>"}
<details><summary>Non-default server settings</summary><table>{settings}</table></details></html>
"""
