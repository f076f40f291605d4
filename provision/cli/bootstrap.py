"""`provision bootstrap`: make hosts ready for Ansible."""

import dataclasses
import json
import sys
from pathlib import Path

import click


@click.command(name="bootstrap")
@click.argument("hosts", nargs=-1, required=True)
@click.option("--user", default="provision", show_default=True, help="The admin user that Ansible will log in as.")
@click.option("--key", type=click.Path(path_type=Path), help="Its public key [default: the first ~/.ssh/id_*.pub].")
@click.option("--ssh-user", default="root", show_default=True, help="Who logs in now; needs sudo if not root.")
@click.option("--ssh-key", default="", help="Private key to log in with [default: agent and SSH configuration].")
@click.option("--known-hosts", default="", help="File of known host keys [default: ~/.ssh/known_hosts].")
@click.option("--port", default=0, help="SSH port [default: SSH configuration, or 22].")
@click.option("--check", is_flag=True, help="Change nothing, say what would change; exit 3 if something would.")
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
    """Give HOSTS python3, sudo and an admin user with a key. A host is a name or address for SSH, or any pyinfra
    connector such as @local or @podman/CONTAINER."""
    from gevent import monkey  # type: ignore[import-untyped]

    monkey.patch_all()  # pyinfra waits for many hosts at once only if sockets are gevent's
    from provision.controller import bootstrap

    key = key or min(Path("~/.ssh").expanduser().glob("id_*.pub"), default=Path("~/.ssh/id_ed25519.pub").expanduser())
    public_key = bootstrap.read_public_key(key)
    connection = bootstrap.Connection(ssh_user, port, ssh_key, known_hosts)
    click.echo(f"{'looking at' if check else 'preparing'} {', '.join(hosts)} ...", err=True)
    outcomes = bootstrap.bootstrap(hosts, bootstrap.check_admin(user), public_key, connection, check=check)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(each) for each in outcomes], indent=2))
    else:
        width = max(len(each.host) for each in outcomes)
        for each in outcomes:
            click.echo(f"{each.host.ljust(width)}  {each.status:<12}  {each.detail}".rstrip())
    statuses = {each.status for each in outcomes}
    sys.exit(1 if bootstrap.FAILED in statuses else 3 if bootstrap.PENDING in statuses else 0)
