"""`provision adopt`: adopt a database that was set up by hand. On the host, as the user postgres."""

from __future__ import annotations

import click

from provision.cli._migrate import Call, options, with_extensions


@click.command("adopt")
@click.option("--owner", required=True, help="New owner of every object; created if it does not exist.")
@with_extensions
@options
def command(call: Call, owner: str, extensions: tuple[str, ...]) -> None:
    """Detect and record the version of the schema, and change the owner of every object in schema public.

    Needs the superuser's URL. Refuses a schema that matches no version, and shows the difference. Does not change
    rows. A second call changes nothing.
    """
    from provision.host.migrate.narrate import Narrator
    from provision.host.migrate.recognise import pinned, recognise
    from provision.host.migrate.runner import Runner
    from provision.host.ownership import own

    found = recognise(call.settings, extensions, lambda settings: Runner(settings, Narrator(), lambda: call.signal))
    changes = []
    if found.record:
        Runner(pinned(call.settings), call.narrator, lambda: call.signal).adopt(found.version)
        changes.append(f"schema_migrations: version {found.version}")
    changes += own(call.settings.url, owner)
    result = {"version": found.version, "how": found.how, "changes": changes}
    call.result(result, "\n".join([found.how, *(changes or ["no change"])]))
