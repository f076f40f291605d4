"""How a cost grows: the exponent of a power law fitted to sizes and costs, a table, and a plot as SVG. Pure.

An exponent of 1 is linear, 0 constant. The fit is least squares on logarithms, so that every size counts alike. Where a
fixed cost dominates at small sizes, the exponent of the last step is the better one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from provision.errors import UsageError

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, COLUMNS = 280, 190, 52, 34, 28, 3
"""Sizes of one panel in pixels, and panels in a row."""
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #1f2328; } .title { font-size: 12px; font-weight: 600; }
.axis { stroke: #8c959f; } .line { stroke: #0969da; fill: none; } .dot { fill: #0969da; } .fit { stroke: #bc4c00; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .axis { stroke: #656c76; }
.line { stroke: #4493f8; } .dot { fill: #4493f8; } .fit { stroke: #f0883e; } }
"""


@dataclass(frozen=True)
class Series:
    """One cost at several sizes: `unit` of the costs, `of` for what the sizes count."""

    name: str
    of: str
    unit: str
    points: tuple[tuple[float, float], ...]

    @property
    def exponent(self) -> float:
        """Return the fitted exponent."""
        return fit(self.points)[0]

    @property
    def last(self) -> float:
        """Return the exponent between the two largest sizes, which a fixed cost distorts least."""
        return fit(sorted(self.points)[-2:])[0]


def fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return (exponent, cost at size 1) of cost = factor x size ^ exponent. Raises UsageError below two sizes."""
    if len({size for size, _ in points}) < 2 or min(min(point) for point in points) <= 0:
        raise UsageError("a fit needs positive costs at two sizes", seen=str(list(points)))
    slope, start = statistics.linear_regression(
        [math.log(size) for size, _ in points], [math.log(cost) for _, cost in points]
    )
    return slope, math.exp(start)


def table(every: Sequence[Series]) -> str:
    """Return a Markdown table with the cost at each size and the exponent; one for each kind of size."""
    parts = []
    for kind in dict.fromkeys(series.of for series in every):
        chosen = [series for series in every if series.of == kind]
        sizes = sorted({size for series in chosen for size, _ in series.points})
        lines = [
            f"| {kind} | {' | '.join(f'{size:,.0f}' for size in sizes)} | exponent | last step |",
            f"|{'---|' * (len(sizes) + 3)}",
        ]
        for series in chosen:
            costs = dict(series.points)
            cells = [_short(costs[size]) if size in costs else "" for size in sizes]
            lines.append(
                f"| {series.name}, {series.unit} | {' | '.join(cells)} | {series.exponent:.2f} | {series.last:.2f} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def plot(every: Sequence[Series]) -> str:
    """Return one panel for each series, logarithmic on both axes, with the fitted line and its exponent."""
    rows = -(-len(every) // COLUMNS)
    panels = [
        f'<g transform="translate({index % COLUMNS * WIDTH} {index // COLUMNS * HEIGHT})">{_panel(series)}</g>'
        for index, series in enumerate(every)
    ]
    size = f'width="{COLUMNS * WIDTH}" height="{rows * HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>How costs grow</title>'
    return "\n".join([head, f"<style>{STYLE}</style>", *panels, "</svg>\n"])


def _panel(series: Series) -> str:
    exponent, factor = fit(series.points)
    sizes = [size for size, _ in series.points]
    fitted = [(size, factor * size**exponent) for size in (min(sizes), max(sizes))]
    costs = [cost for _, cost in (*series.points, *fitted)]
    low, high = min(costs) / 1.3, max(costs) * 1.3
    left, right, top, bottom = LEFT, WIDTH - 14, TOP, HEIGHT - BOTTOM

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across = math.log(point[0] / min(sizes)) / math.log(max(sizes) / min(sizes))
        up = math.log(point[1] / low) / math.log(high / low)
        return round(left + across * (right - left), 1), round(bottom - up * (bottom - top), 1)

    dots = [place(point) for point in sorted(series.points)]
    (x1, y1), (x2, y2) = map(place, fitted)
    return "".join(
        [
            f'<text class="title" x="{left}" y="16">{escape(f"{series.name}, {series.unit}: {exponent:.2f}")}</text>',
            f'<path class="axis" fill="none" d="M{left} {top}V{bottom}H{right}"/>',
            f'<line class="fit" stroke-dasharray="4 3" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>',
            f'<polyline class="line" points="{" ".join(f"{x},{y}" for x, y in dots)}"/>',
            *(f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>' for x, y in dots),
            f'<text x="{left}" y="{bottom + 14}">{min(sizes):,.0f}</text>',
            f'<text x="{right}" y="{bottom + 14}" text-anchor="end">{max(sizes):,.0f}</text>',
            f'<text x="{(left + right) / 2}" y="{bottom + 27}" text-anchor="middle">{escape(series.of)}</text>',
            f'<text x="{left - 4}" y="{dots[0][1] + 4}" text-anchor="end">{_short(min(series.points)[1])}</text>',
            f'<text x="{left - 4}" y="{dots[-1][1] + 4}" text-anchor="end">{_short(max(series.points)[1])}</text>',
        ]
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
