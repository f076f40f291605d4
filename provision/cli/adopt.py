"""`provision adopt`: take over a database that was set up by hand. On the host, as the user postgres."""

from __future__ import annotations

import click

from provision.cli._migrate import Call, options


@click.command("adopt")
@click.option("--owner", required=True, help="Role that owns every object afterwards; made if it is missing.")
@click.option(
    "--extension",
    "extensions",
    multiple=True,
    default=("vector", "uuid-ossp"),
    show_default=True,
    help="To be created in the scratch database, if the server has it; may be repeated.",
)
@options
def command(call: Call, owner: str, extensions: tuple[str, ...]) -> None:
    """Recognise the version of the schema, record it, and give every object of schema public to the owner.

    The superuser's URL is needed. A schema that is equal to no version is refused, with the difference; rows are not
    touched. A second call changes nothing.
    """
    from provision.host.access import own
    from provision.host.migrate.narrate import Narrator
    from provision.host.migrate.recognise import recognise
    from provision.host.migrate.runner import Runner

    found = recognise(call.settings, extensions, lambda settings: Runner(settings, Narrator(), lambda: call.signal))
    changes = []
    if found.record:
        Runner(call.settings, call.narrator, lambda: call.signal).force(found.version)
        changes.append(f"schema_migrations: version {found.version}")
    changes += own(call.settings.url, owner)
    result = {"version": found.version, "how": found.how, "changes": changes}
    call.result(result, "\n".join([found.how, *(changes or ["no change"])]))
