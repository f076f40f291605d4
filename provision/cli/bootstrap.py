"""`provision bootstrap`: prepare hosts for Ansible."""

import dataclasses
import json
import sys
from pathlib import Path

import click

from provision.cli._echo import echo
from provision.cli._progress import working


@click.command(name="bootstrap")
@click.argument("hosts", nargs=-1, required=True)
@click.option("--user", default="provision", show_default=True, help="Admin user for Ansible.")
@click.option(
    "--key", type=click.Path(path_type=Path), help="Public key of the admin user [default: the first ~/.ssh/id_*.pub]."
)
@click.option("--ssh-user", default="root", show_default=True, help="User for this login; needs sudo if not root.")
@click.option("--ssh-key", default="", help="Private key for this login [default: agent and SSH configuration].")
@click.option("--known-hosts", default="", help="File of known host keys [default: ~/.ssh/known_hosts].")
@click.option("--port", default=0, help="SSH port [default: SSH configuration, or 22].")
@click.option("--check", is_flag=True, help="Only report pending changes; exit 3 if there are any.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    hosts: tuple[str, ...],
    user: str,
    key: Path | None,
    ssh_user: str,
    ssh_key: str,
    known_hosts: str,
    port: int,
    check: bool,
    as_json: bool,
) -> None:
    """Install python3 and sudo on HOSTS and create an admin user with an SSH key. A host is an SSH name or address, or
    a pyinfra connector such as @local or @podman/CONTAINER."""
    from gevent import monkey  # type: ignore[import-untyped]

    monkey.patch_all()  # pyinfra needs gevent's sockets to wait for many hosts in parallel
    from provision.controller import bootstrap

    key = key or min(Path("~/.ssh").expanduser().glob("id_*.pub"), default=Path("~/.ssh/id_ed25519.pub").expanduser())
    public_key = bootstrap.read_public_key(key)
    connection = bootstrap.Connection(ssh_user, port, ssh_key, known_hosts)
    verb = "checking" if check else "preparing"
    echo(f"{verb} {', '.join(hosts)} ...", err=True)
    with working(verb):
        outcomes = bootstrap.bootstrap(hosts, bootstrap.check_admin(user), public_key, connection, check=check)
    if as_json:
        echo(json.dumps([dataclasses.asdict(each) for each in outcomes], indent=2))
    else:
        width = max(len(each.host) for each in outcomes)
        for each in outcomes:
            echo(f"{each.host.ljust(width)}  {each.status:<12}  {each.detail}".rstrip())
    statuses = {each.status for each in outcomes}
    sys.exit(1 if bootstrap.FAILED in statuses else 3 if bootstrap.PENDING in statuses else 0)
