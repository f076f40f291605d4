"""Install man pages and shell completion of the command. Does IO.

The man pages are files of the package, made by `make docs`; completion scripts come from click. Pages of commands that
this installation does not have, such as the controller's on a host, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

from provision import system

PREFIX = Path("/usr/local")
MODE = 0o644
MAN = "share/man/man1"
COMPLETIONS: Mapping[str, str] = {
    "bash": "share/bash-completion/completions/provision",
    "zsh": "share/zsh/site-functions/_provision",
    "fish": "share/fish/vendor_completions.d/provision.fish",
}
"""Where each shell looks below /usr and /usr/local."""


def pages(commands: Iterable[str]) -> dict[str, str]:
    """Return the man pages of these commands of `provision` and their subcommands, by file name."""
    known = {"", *commands}
    found = {}
    for entry in resources.files("provision").joinpath("man").iterdir():
        if entry.name.endswith(".1"):
            command = entry.name.removesuffix(".1").removeprefix("provision").removeprefix("-").partition("-")[0]
            if command in known:
                found[entry.name] = entry.read_text()
    return found


def install(prefix: Path, manuals: Mapping[str, str], completions: Mapping[str, str]) -> list[Path]:
    """Write the files below a prefix and remove pages of an older version; return the paths that changed."""
    wanted = {prefix / MAN / name: text for name, text in manuals.items()}
    wanted |= {prefix / COMPLETIONS[shell]: text for shell, text in completions.items()}
    changed = []
    for path, text in wanted.items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            system.write(path, text, mode=MODE)
            changed.append(path)
    for path in (prefix / MAN).glob("provision*.1"):
        if path not in wanted:
            path.unlink()
            changed.append(path)
    return changed
