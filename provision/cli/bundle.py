"""`provision bundle`: one file with everything that a host needs, for hosts with no route to anywhere."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from provision import distributions
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
        click.echo(json.dumps(dataclasses.asdict(bundle), indent=2))
        return
    made = (
        f"{bundle.release}, {bundle.architecture}, PostgreSQL {bundle.postgresql}, pgvector {bundle.pgvector_version}"
    )
    click.echo(f"{bundle.path}: whole; {made}; {len(bundle.versions)} packages")
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
        click.echo(f"{name}: {value}")


@command.command()
@click.argument("path", type=FILE)
@click.option(
    "--os", "os", default=distributions.DEFAULT_KEY, show_default=True, help=" or ".join(distributions.keys())
)
@click.option("--architecture", default="", help="amd64 or arm64 [default: this machine's].")
@click.option("--postgresql", type=int, default=0, help="Major [default: the release's own].")
@click.option(
    "--pgvector", "method", default="", help="package or source [default: package where the release has one]."
)
@click.option("--pgvector-version", default="", help="Version to build [default: the Debian mirror's newest].")
@click.option("--pgvector-url", default="", help="Its tarball, where --pgvector-version is given.")
@click.option("--mirror", default="", help="Debian mirror [default: the one of this machine's apt].")
@click.option("--repository-uri", default="", help="A repository laid out as PGDG's, for other majors.")
@click.option("--repository-suite", default="", help="Its suite [default: CODENAME-pgdg].")
@click.option("--repository-component", default="main", show_default=True, help="Its component.")
@click.option("--repository-key", type=THERE, help="Its public key.")
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
    """Write the bundle PATH from this machine's Debian mirror, and print the variables that use it."""
    from provision.controller.bundle.make import Repository, Wish
    from provision.controller.bundle.make import make as make_bundle

    extra = None
    if repository_uri:
        if repository_key is None:
            raise click.UsageError("--repository-uri needs --repository-key, the public key that signs it")
        suite = repository_suite or f"{distributions.by_key(os).codename}-pgdg"
        extra = Repository(repository_uri, suite, repository_component, repository_key)
    wish = Wish(os, architecture, postgresql, method, pgvector_version, pgvector_url, mirror, extra)
    _show(make_bundle(path, wish, Stderr()), as_json)


@command.command()
@click.argument("path", type=THERE)
@click.option("--fingerprint", default="", help="The key that must have signed it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(path: Path, fingerprint: str, as_json: bool) -> None:
    """Say whether the bundle PATH is whole and signed, and what it was made for."""
    from provision.controller.bundle.verify import verified

    _show(verified(path, fingerprint), as_json)
