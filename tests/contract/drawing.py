"""Draw SVG pictures from text: boxes with rows, lines with arrows, one style for light and dark. Pure.

A picture is an image in Markdown, so it has no script and no font of its own; it follows the reader's colour scheme.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

ROW, TITLE, PAD = 20, 28, 10
"""Heights of a row and of a title, and the space beside a text, in pixels."""
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 13px; }
.note { fill: #59636e; }
.box { fill: #ffffff; stroke: #8c959f; }
.head { fill: #eaeef2; stroke: #8c959f; }
.area { fill: #f6f8fa; stroke: #d1d9e0; }
.back { fill: #ffffff; }
path { fill: none; stroke-width: 1.5; }
.a { stroke: #0969da; } .b { stroke: #bc4c00; } .c { stroke: #1a7f37; } .d { stroke: #8250df; }
.fa { fill: #0969da; } .fb { fill: #bc4c00; } .fc { fill: #1a7f37; } .fd { fill: #8250df; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; }
.note { fill: #9198a1; }
.box { fill: #151b23; stroke: #656c76; }
.head { fill: #262c36; stroke: #656c76; }
.area { fill: #0d1117; stroke: #3d444d; }
.back { fill: #0d1117; }
.a { stroke: #4493f8; } .b { stroke: #f0883e; } .c { stroke: #3fb950; } .d { stroke: #ab7df8; }
.fa { fill: #4493f8; } .fb { fill: #f0883e; } .fc { fill: #3fb950; } .fd { fill: #ab7df8; }
}
"""


@dataclass(frozen=True)
class Box:
    """A titled box at a place; each row is a name on the left and a note on the right."""

    title: str
    x: int
    y: int
    width: int
    rows: tuple[tuple[str, str], ...] = ()

    @property
    def height(self) -> int:
        """Title and rows."""
        return TITLE + len(self.rows) * ROW + (PAD // 2 if self.rows else 0)

    @property
    def right(self) -> int:
        """The right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """The lower edge."""
        return self.y + self.height

    def row(self, name: str) -> int:
        """Return the middle of a row."""
        return self.y + TITLE + [each for each, _ in self.rows].index(name) * ROW + ROW // 2 + 2

    def svg(self) -> str:
        """Draw it."""
        parts = [
            f'<rect class="box" x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="4"/>',
            f'<path class="head" d="M{self.x} {self.y + TITLE}V{self.y + 4}a4 4 0 0 1 4-4H{self.right - 4}'
            f'a4 4 0 0 1 4 4V{self.y + TITLE}Z"/>',
            text(self.x + PAD, self.y + 19, self.title, "title"),
        ]
        for name, note in self.rows:
            y = self.row(name) + 4
            parts += [text(self.x + PAD, y, name), text(self.right - PAD, y, note, "note", end=True)]
        return "\n".join(parts)


def text(x: int, y: int, said: str, kind: str = "", *, end: bool = False) -> str:
    """Draw a line of text from its left end, or up to its right end."""
    style = f' class="{kind}"' if kind else ""
    anchor = ' text-anchor="end"' if end else ""
    return f'<text{style} x="{x}" y="{y}"{anchor}>{escape(said)}</text>'


def area(title: str, x: int, y: int, width: int, height: int) -> str:
    """Draw a titled background for several boxes."""
    return f'<rect class="area" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>\n' + text(
        x + PAD, y + 20, title, "title"
    )


def line(kind: str, points: Sequence[tuple[int, int]], *, arrow: bool = True) -> str:
    """Draw a line through points, with an arrow at its end; `kind` is a, b, c or d."""
    (x, y), *rest = points
    path = f'<path class="{kind}" d="M{x} {y}{"".join(f"L{a} {b}" for a, b in rest)}"/>'
    if not arrow:
        return path
    (x0, y0), (x1, y1) = points[-2:]
    dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
    tip = f"{x1},{y1} {x1 - 7 * dx - 4 * dy},{y1 - 7 * dy - 4 * dx} {x1 - 7 * dx + 4 * dy},{y1 - 7 * dy + 4 * dx}"
    return f'{path}\n<polygon class="f{kind}" points="{tip}"/>'


def picture(title: str, width: int, height: int, parts: Iterable[str]) -> str:
    """Return the whole file."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title, quote=True)}">'
    )
    back = f'<rect class="back" width="{width}" height="{height}"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", back, *parts, "</svg>\n"])
