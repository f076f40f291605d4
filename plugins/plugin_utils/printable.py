"""Make what a host says fit for the controller's terminal, which Ansible prints as it is.

Names in it come from users of the host and owners of databases: an escape character in a table's name would reach the
terminal, and a line feed in a process's arguments would forge a line.
"""

from __future__ import annotations

from typing import Any

from . import project  # noqa: F401 - makes the package of this collection importable

from provision.quoting import visible  # isort: skip

SENTENCES = ("changes", "warnings", "changed_units", "pending_units", "changed_paths")
"""Lists of a result whose elements are one line each."""


def printable(result: Any, *, lines: bool = True) -> Any:
    """Return a module's result with every text printable; line feeds are kept only in texts that may have several."""
    if isinstance(result, dict):
        return {key: printable(value, lines=lines and key not in SENTENCES) for key, value in result.items()}
    if isinstance(result, (list, tuple)):
        return [printable(value, lines=lines) for value in result]
    return visible(result, lines=lines) if isinstance(result, str) else result


def sentences(texts: Any) -> list[str]:
    """Return texts of one line each."""
    return [visible(str(text)) for text in texts]
