"""Prometheus' text format 0.0.4. Pure.

Debian's python3-prometheus-client does the same, but adds a package with a registry and a server that a file does not
need.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from provision.errors import UsageError
from provision.quoting import prometheus_label

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True)
class Metric:
    """A metric with its samples: (labels, value) pairs. `kind` is gauge or counter; names carry their base unit."""

    name: str
    help: str
    samples: tuple[tuple[Mapping[str, str], float], ...] = ()
    kind: str = field(default="gauge")


def single(name: str, help_: str, value: float | None) -> Metric:
    """Return a metric without labels. None, for an unknown value, is no sample."""
    return Metric(name, help_, () if value is None else (({}, value),))


def render(metrics: Iterable[Metric]) -> str:
    """Render metrics that have samples. Raises UsageError for invalid or duplicate names, which Prometheus rejects."""
    lines: list[str] = []
    seen: set[str] = set()
    for metric in metrics:
        labels = {label for each, _ in metric.samples for label in each}
        if metric.name in seen or not NAME.fullmatch(metric.name) or not all(map(LABEL.fullmatch, labels)):
            raise UsageError("Prometheus would reject this metric", seen=f"{metric.name} {sorted(labels)}"[:200])
        seen.add(metric.name)
        if metric.samples:
            lines += [f"# HELP {metric.name} {_text(metric.help)}", f"# TYPE {metric.name} {metric.kind}"]
            lines += [f"{metric.name}{_labels(each)} {value:.17g}" for each, value in metric.samples]
    return "".join(f"{line}\n" for line in lines)


def _text(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _labels(labels: Mapping[str, str]) -> str:
    shown = ",".join(f"{key}={prometheus_label(value)}" for key, value in labels.items())
    return f"{{{shown}}}" if shown else ""
