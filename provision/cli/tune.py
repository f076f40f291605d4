"""`provision tune`: print computed PostgreSQL settings with their reasons, by default for this host.

Only prints. The Ansible role `postgresql` uses the same functions. Profiles come from profiles/*.yml of the project; a
host has neither these files nor a YAML parser and knows only the built-in profiles.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import click

from provision.cli._echo import echo
from provision.errors import UsageError
from provision.tuning import Choices, Host, as_facts, tune
from provision.tuning.choices import NAMES, built_in
from provision.tuning.detect import detect, installed
from provision.tuning.show import explained

PROFILES = Path(__file__).parents[2] / "profiles"
_MEGABYTES = {"": 1, "M": 1, "MB": 1, "MIB": 1, "G": 1024, "GB": 1024, "GIB": 1024, "TB": 1024**2}


def _megabytes(text: str) -> int:
    """Parse 512MB, 64GB, 64 (MB) or 1.5GB. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _MEGABYTES:
        raise UsageError("invalid memory size", where="--memory", seen=text, allowed="such as 512MB or 64GB")
    return int(float(match[1]) * _MEGABYTES[match[2].upper()])


def _choices(profile: str) -> Choices:
    """Read the section `postgresql` of a profile file. Raises UsageError for an invalid one."""
    path = PROFILES / f"{profile}.yml"
    try:
        import yaml
    except ImportError:  # on a host
        return built_in(profile)
    if not path.exists():
        return built_in(profile)
    return Choices.of(yaml.safe_load(path.read_text())["postgresql"])


@click.command()
@click.option("--memory", help="Memory, such as 64GB.  [default: this host's, within its cgroup limit]")
@click.option("--cpus", type=click.IntRange(1), help="CPUs.  [default: this host's]")
@click.option("--storage", type=click.Choice(["ssd", "hdd", "nvme"]), help="Storage type.  [default: this host's]")
@click.option("--container/--no-container", default=None, help="Tune for a container.  [default: as this host]")
@click.option(
    "--profile",
    type=click.Choice(sorted({*NAMES, *(path.stem for path in PROFILES.glob("*.yml"))})),
    default="prod",
    show_default=True,
    help="Profile: a file in profiles/ of the project, or built in.",
)
@click.option(
    "--max-connections", type=click.IntRange(1), help="Connection limit.  [default: as many as the memory allows]"
)
@click.option("--vectors", type=click.IntRange(0), help="Expected number of vectors.")
@click.option(
    "--dimensions", type=click.IntRange(1, 2000), default=1536, show_default=True, help="Dimensions of a vector."
)
@click.option("--postgresql", type=int, help="Major version.  [default: the installed one, else 14]")
@click.option("--pgvector", help="Version.  [default: the installed one, else 0.5.1]")
@click.option("--without-lz4", is_flag=True, help="For a server built without lz4.")
@click.option("--explain", is_flag=True, help="Print a table of values and reasons, and the memory budget.")
@click.option(
    "--format", "form", type=click.Choice(["conf", "json"]), default="conf", show_default=True, help="Output format."
)
def command(
    memory: str | None,
    cpus: int | None,
    storage: str | None,
    container: bool | None,
    profile: str,
    max_connections: int | None,
    vectors: int | None,
    dimensions: int,
    postgresql: int | None,
    pgvector: str | None,
    without_lz4: bool,
    explain: bool,
    form: str,
) -> None:
    """Compute PostgreSQL settings for a host and profile, with reasons."""
    facts, options, choices = detect(), installed(), _choices(profile)
    if memory is not None:  # another host: memory-dependent facts of this one do not apply
        facts = {"cpus": facts["cpus"], "memory_mb": _megabytes(memory)}
    facts |= _given(cpus=cpus, storage=storage, container=container)
    options |= _given(postgresql_major=postgresql, pgvector_version=pgvector, max_connections=max_connections)
    options |= _given(vectors=vectors, dimensions=dimensions, has_lz4=not without_lz4)
    if form == "json":
        result = as_facts(facts, profile, choices=choices, **options)
        echo(json.dumps({"host": facts, "profile": profile, "for": options} | result, indent=2))
        return
    tuning = tune(Host(**facts), profile, choices=choices, **options)  # type: ignore[arg-type]
    text = explained(tuning, shutil.get_terminal_size((110, 24)).columns) if explain else tuning.as_conf()
    echo(text, nl=False)
    for warning in tuning.warnings:
        echo(f"Warning: {warning}", err=True)


def _given(**options: object) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}
