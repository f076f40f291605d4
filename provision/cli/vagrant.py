"""`provision vagrant`: called by the Vagrantfile before it creates a machine."""

import json
from pathlib import Path

import click

from provision import distributions
from provision.cli._echo import echo
from provision.cli._narration import Stderr


@click.group(name="vagrant")
def command() -> None:
    """Prepare Vagrant machines (called by the Vagrantfile)."""


@command.command()
@click.argument("machines", nargs=-1, required=True)
@click.option("--provider", required=True, help="Vagrant provider: docker, libvirt or virtualbox.")
@click.option("--profile", default="dev", show_default=True, help="Name of a file in profiles/.")
@click.option(
    "--os", "os_name", default="", help=f"Distribution: {', '.join(distributions.keys())} [default: by provider]."
)
@click.option("--memory", default=2048, show_default=True, help="Memory of a container in MB.")
@click.option("--cpus", default=2, show_default=True, help="CPUs of a container.")
@click.option(
    "--repository", default="inventory", show_default=True, help="Source of a VM's versions: inventory or distribution."
)
@click.option("--driver", default="", help="libvirt driver: kvm or qemu; recorded for later runs.")
@click.option("--box", default="", help="Box of a virtual machine; recorded for later runs.")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    help="Address of each of MACHINES, in their order. They become a cluster.",
)
@click.option("--public-key", type=click.Path(path_type=Path), required=True, help="Key of Vagrant's first login.")
def prepare(
    machines: tuple[str, ...],
    provider: str,
    profile: str,
    os_name: str,
    memory: int,
    cpus: int,
    repository: str,
    driver: str,
    box: str,
    addresses: tuple[str, ...],
    public_key: Path,
) -> None:
    """Create the image (containers only), the inventory of MACHINES, and secrets that the profile needs.

    Prints JSON.
    """
    from provision.controller import vagrant

    os_name = os_name or vagrant.default_os(provider)
    request = vagrant.Request(
        provider, profile, os_name, memory, cpus, machines, public_key, repository, driver, box, addresses
    )
    echo(json.dumps(vagrant.values(vagrant.prepare(Path(), request, Stderr()))))
