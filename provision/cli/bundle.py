"""`provision bundle`: one file with everything that a host without network access needs."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from provision import distributions
from provision.cli._echo import echo
from provision.cli._narration import Stderr

if TYPE_CHECKING:
    from provision.controller.bundle.contents import Bundle

FILE = click.Path(dir_okay=False, path_type=Path)
THERE = click.Path(dir_okay=False, exists=True, path_type=Path)


@click.group(name="bundle")
def command() -> None:
    """Make and verify a bundle (docs/without-a-network.md)."""


def _show(bundle: "Bundle", as_json: bool) -> None:
    if as_json:
        echo(json.dumps(dataclasses.asdict(bundle), indent=2))
        return
    made = (
        f"{bundle.release}, {bundle.architecture}, PostgreSQL {bundle.postgresql}, pgvector {bundle.pgvector_version}"
    )
    echo(f"{bundle.path}: valid; {made}; {len(bundle.versions)} packages")
    variables = {
        "postgresql_repository": "bundle",
        "postgresql_bundle": Path(bundle.path).resolve(),
        "postgresql_bundle_fingerprint": bundle.fingerprint,
        "postgresql_version": bundle.postgresql,
        "pgvector_install_method": bundle.pgvector_install_method,
    }
    if bundle.pgvector_install_method == "source":
        variables |= {"pgvector_version": bundle.pgvector_version, "pgvector_source_sha256": bundle.pgvector_sha256}
    for name, value in variables.items():
        echo(f"{name}: {value}")


@command.command()
@click.argument("path", type=FILE)
@click.option(
    "--os",
    "os",
    default=distributions.DEFAULT_KEY,
    show_default=True,
    help=f"Distribution: {', '.join(distributions.keys())}",
)
@click.option("--architecture", default="", help="amd64 or arm64 [default: this machine's].")
@click.option("--postgresql", type=int, default=0, help="PostgreSQL major [default: the distribution's].")
@click.option(
    "--pgvector", "method", default="", help="package or source [default: package if the distribution has one]."
)
@click.option(
    "--pgvector-version", default="", help="Version to build from source [default: the newest of the Debian mirror]."
)
@click.option("--pgvector-url", default="", help="URL of the tarball of --pgvector-version.")
@click.option("--mirror", default="", help="Debian mirror [default: this machine's].")
@click.option("--repository-uri", default="", help="Repository with PGDG's layout, for other majors.")
@click.option("--repository-suite", default="", help="Suite of that repository [default: CODENAME-pgdg].")
@click.option("--repository-component", default="main", show_default=True, help="Component of that repository.")
@click.option("--repository-key", type=THERE, help="Public key of that repository.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def make(
    path: Path,
    os: str,
    architecture: str,
    postgresql: int,
    method: str,
    pgvector_version: str,
    pgvector_url: str,
    mirror: str,
    repository_uri: str,
    repository_suite: str,
    repository_component: str,
    repository_key: Path | None,
    as_json: bool,
) -> None:
    """Write the bundle PATH from this machine's Debian mirror and print the variables for its use."""
    from provision.controller.bundle.make import Repository, Request
    from provision.controller.bundle.make import make as make_bundle

    extra = None
    if repository_uri:
        if repository_key is None:
            raise click.UsageError("--repository-uri requires --repository-key")
        suite = repository_suite or f"{distributions.by_key(os).codename}-pgdg"
        extra = Repository(repository_uri, suite, repository_component, repository_key)
    request = Request(os, architecture, postgresql, method, pgvector_version, pgvector_url, mirror, extra)
    _show(make_bundle(path, request, Stderr()), as_json)


@command.command()
@click.argument("path", type=THERE)
@click.option("--fingerprint", default="", help="Fingerprint of the expected signing key.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(path: Path, fingerprint: str, as_json: bool) -> None:
    """Check that the bundle PATH is complete and signed, and print the variables for its use."""
    from provision.controller.bundle.verify import verified

    _show(verified(path, fingerprint), as_json)
