"""The few lines that end a run and open `provision status`: what is there, how to reach it, what to know. Pure."""

from __future__ import annotations

from typing import Any


def lines(name: str, host: dict[str, Any], verified: dict[str, Any], warnings: list[str], url: str) -> list[str]:
    """Tell a host's state from its probe, what verify proved, and preflight's warnings; `url` has no password."""
    extensions = ", ".join(f"{key} {value}" for key, value in sorted(verified["extensions"].items()))
    return [
        f"{name}: {host['os']}, {host['cpus']} CPUs, {host['memory_mb']} MB",
        f"PostgreSQL {verified['server']} with {extensions}",
        f"migration {verified['migration']}, {len(verified['tables'])} tables; a memory was written, found by its "
        "vector and rolled back",
        f"connect: psql '{url}'",
        *(f"warning: {text}" for text in warnings),
        "next: point the application at this URL; docs/ has a page for each thing that can go wrong",
    ]
