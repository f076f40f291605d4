"""Run a program of this host for its output, whatever the host lacks. Standard library only."""

from __future__ import annotations

import os
import subprocess

TIMEOUT_S = 60
MISSING, HUNG = 127, 124
"""Exit codes of a program that is not there and of one that did not end, as a shell and timeout(1) give them."""


def run(*words: str, timeout: float = TIMEOUT_S, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it in the C locale. A program that is missing or does not end has a code of its own and no output.

    A host of another distribution has no dpkg, and must be refused by its name, not by an exception.
    """
    settings = {**os.environ, "LC_ALL": "C", **environment}
    try:
        return subprocess.run(  # noqa: S603 - words, never a shell
            words, capture_output=True, text=True, errors="replace", check=False, env=settings, cwd="/", timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, HUNG, "", f"{words[0]} did not end within {timeout:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(words, MISSING, "", f"{words[0]}: {error.strerror}")
