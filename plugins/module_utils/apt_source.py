"""Read one apt source and no other, so that the fault of another source is not blamed on it. Runs apt-get."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def fault(file: str, component: str, config_file: str = "", lists: str = "") -> str:
    """Return apt's words on what is wrong with a source, "" where apt can read it and it has the component.

    `file` is the source's own file. Or, for a source with an apt configuration of its own, `config_file` is that
    configuration and `lists` the directory of lists that it names.
    """
    only = [f"--config-file={config_file}"] if config_file else ["-o", f"Dir::Etc::SourceList={file}"]
    only += [] if config_file else ["-o", "Dir::Etc::SourceParts=/dev/null"]
    # Without List-Cleanup=0 apt would delete the lists of every other source.
    apt = ["apt-get", "-q", *only, "-o", "APT::Get::List-Cleanup=0", "-o", "Acquire::Retries=2"]
    if lists:
        Path(lists, "partial").mkdir(mode=0o755, parents=True, exist_ok=True)  # apt makes its default one alone
    updated = _run(*apt, "update", "--error-on=any")
    if updated.returncode != 0:
        return updated.stderr.strip() or updated.stdout.strip()
    # Of a component that the suite lacks apt only warns.
    indexes = _run(*apt, "indextargets", "--format", "$(FILENAME)", "Created-By: Packages")
    if indexes.returncode != 0:
        return indexes.stderr.strip()
    return "" if indexes.stdout.strip() else f"E: the suite doesn't have the component {component}"


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
