"""Tenants on a real server behind a real PgBouncer: created, repaired, migrated, exported, imported and dropped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from provision import system
from provision.checks import drift
from provision.checks import tenants as checks
from provision.cli import root
from provision.errors import ConfirmationError, DatabaseError, ProvisionError, UsageError
from provision.host.backup import dump
from provision.host.backup.load import load as restore
from provision.host.backup.tool import BackupError
from provision.host.maintain import tenants as maintain
from provision.host.migrate.settings import Settings
from provision.host.tenants import catalog, login, manage, migrations, statistics
from provision.plan import load, schema, tenants
from provision.plan.schema import Tenant
from tests.plans import write
from tests.tenants import MIGRATIONS, Place, place


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    with place() as found:
        yield found


@pytest.fixture(autouse=True)
def _as_postgres(here: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Act as postgres, whom the commands become, with evidence of its own."""
    monkeypatch.setattr(system, "EVIDENCE", here.server.root / "evidence")
    with system.as_user():
        yield


@pytest.fixture
def fresh(here: Place) -> Iterator[Place]:
    """The server without tenants."""
    yield here
    for name in known(here):
        with login.superuser(here.plan) as session:
            manage.drop(here.plan, session, name)


@pytest.fixture
def command(here: Place, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(load, "PATH", write(here.server.root / "plan.json", here.plan))
    monkeypatch.setattr(system, "become", lambda: None)  # this process is postgres already, and must become root again
    return Command()


class Command:
    """Runs `provision` in this process."""

    def __call__(self, *words: str, code: int = 0) -> Any:
        done = self.result(*words, "--json")
        assert done.exit_code == code, (done.output, done.exception)
        return json.loads(done.stdout)

    def result(self, *words: str) -> Result:
        return CliRunner().invoke(root, list(words))


def known(here: Place) -> list[str]:
    with login.superuser(here.plan) as session:
        return [each.name for each in catalog.known(session)]


def test_tenant_stores_and_finds_a_memory_through_the_pooler(fresh: Place) -> None:
    for name in ("acme", "beta"):
        fresh.add(name)
        fresh.remember(name, f"only of {name}")
    for name in ("acme", "beta"):
        for pooled in (False, True):
            assert fresh.ask(f"{name}_app", "SELECT content FROM memories", pooled=pooled) == [(f"only of {name}",)]
            assert fresh.ask(f"{name}_readonly", "SELECT count(*) FROM memories", pooled=pooled) == [(1,)]
    nearest = "SELECT content FROM memories ORDER BY embedding <=> %s LIMIT 1"
    assert fresh.ask("acme_app", nearest, "[" + ",".join(["0.2"] * 1536) + "]", pooled=True) == [("only of acme",)]
    assert fresh.ask("acme_app", "SELECT version, dirty FROM schema_migrations") == [(2, False)]
    assert known(fresh) == ["acme", "beta"]


def test_limits_are_those_of_the_plan(fresh: Place) -> None:
    fresh.add("acme")
    for role, timeout in (("acme", "0"), ("acme_app", "30s"), ("acme_readonly", "30s")):
        assert fresh.ask(role, "SHOW statement_timeout") == [(timeout,)]
        assert fresh.ask(role, "SHOW temp_file_limit") == [("1GB",)]
    held = [fresh.session("acme_app") for _ in range(4)]
    with pytest.raises(psycopg.OperationalError, match="too many connections for role"):
        fresh.session("acme_app")
    for each in held:
        each.close()
    assert fresh.ask("acme_app", "SHOW search_path", pooled=True) == [("acme, public",)]


def test_second_call_changes_nothing(fresh: Place) -> None:
    fresh.add("twice")
    assert fresh.add("twice") == manage.Added("twice", (), {})
    assert fresh.migrate("twice") == []
    assert fresh.converge() == []


def test_settings_that_a_role_changed_for_itself_are_restored(fresh: Place) -> None:
    fresh.add("acme")
    fresh.ask("acme_app", "ALTER ROLE acme_app SET search_path = public")
    fresh.ask("acme_app", "ALTER ROLE acme_app SET statement_timeout = 0")
    assert findings(fresh)["access"] == [
        "to apply: role acme_app: search_path = acme, public", "to apply: role acme_app: statement_timeout = 30s",
    ]  # fmt: skip
    assert fresh.converge() == ["role acme_app: search_path = acme, public", "role acme_app: statement_timeout = 30s"]
    assert fresh.converge() == []


def test_new_passwords_end_the_old_ones(fresh: Place) -> None:
    fresh.add("acme", migrate=False)
    old = fresh.url("acme_app")
    made = manage.add(fresh.plan, "acme", new_passwords=True)
    assert sorted(made.passwords) == ["acme", "acme_app", "acme_readonly"]
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(old)
    fresh.passwords |= made.passwords
    assert fresh.ask("acme_app", "SELECT current_user::text", pooled=True) == [("acme_app",)]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Acme", "expected 1 to 54 of a to z, digits and _"),
        ("x" * 55, "expected 1 to 54"),
        ("pg_acme", "does not begin with pg_"),
        ("public", "none of"),
        ("acme_app", "does not end with _app"),
        ("acme_2", "does not end with _2"),
        ("minion", "role minion belongs to the database"),
    ],
)
def test_refuses_a_name_that_cannot_be_a_tenant_s(fresh: Place, name: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        manage.add(fresh.plan, name)
    assert why.removeprefix("expected ") in f"{refused.value.allowed} {refused.value.seen}"
    assert known(fresh) == []


def test_longest_name_works(fresh: Place) -> None:
    name = "x" * tenants.LONGEST
    fresh.add(name)
    fresh.remember(name, "a memory")
    assert fresh.ask(f"{name}_readonly", "SELECT count(*) FROM memories") == [(1,)]


def test_interrupted_creation_is_completed_by_the_same_command(fresh: Place) -> None:
    fresh.add("acme", migrate=False)
    fresh.server.psql("DROP OWNED BY acme_app; DROP ROLE acme_app; DROP SCHEMA acme CASCADE", "minion")
    fresh.server.psql("ALTER ROLE acme NOLOGIN")
    made = fresh.add("acme")
    assert sorted(made.passwords) == ["acme_app"]
    fresh.remember("acme", "complete")
    assert fresh.add("acme").changes == ()


def test_refuses_a_role_that_belongs_to_no_tenant(fresh: Place) -> None:
    fresh.server.psql("CREATE ROLE taken_app LOGIN")
    try:
        with pytest.raises(DatabaseError, match="tenant taken cannot be created") as refused:
            manage.add(fresh.plan, "taken")
        assert "role taken_app exists and belongs to no tenant" in refused.value.seen
    finally:
        fresh.server.psql("DROP ROLE taken_app")


def test_declared_tenant_is_converged_by_the_playbook(fresh: Place) -> None:
    own = {
        role: {"password": f"the password of {role}, long enough", "salt": "c2FsdA=="}
        for role in (*tenants.role_names("acme"), "acme_app_2")
    }
    roles = tenants.roles("acme", fresh.plan.access.tenant_limits, own, 3)
    access = replace(fresh.plan.access, tenants=(Tenant("acme", 3, 0, roles),))
    plan = replace(fresh.plan, access=access)
    assert "tenant acme" in fresh.converge(plan, own)
    assert fresh.converge(plan, own) == []
    fresh.passwords |= {role: each["password"] for role, each in own.items()}
    fresh.migrate("acme")
    fresh.remember("acme", "declared")
    assert fresh.ask("acme_app_2", "SELECT content, current_user::text FROM memories") == [("declared", "acme_app")]
    rotated = replace(
        access, tenants=(Tenant("acme", 3, 0, tenants.roles("acme", access.tenant_limits, list(own)[:3], 3)),)
    )
    assert fresh.converge(replace(fresh.plan, access=rotated), own) == [
        "role acme_app_2: dropped, with its privileges",
    ]  # fmt: skip
    assert fresh.converge() == []  # no longer declared: kept as it is
    with pytest.raises(UsageError, match="declared in the inventory"):
        manage.add(replace(plan, access=replace(access, tenants=(Tenant("new", 3, 0, ()),))), "new")


def test_one_tenant_that_fails_does_not_stop_the_others(fresh: Place, command: Command) -> None:
    for name in ("alpha", "beta", "gamma"):
        fresh.add(name, migrate=name == "gamma")
    fresh.ask("beta", "CREATE TABLE agents ()")
    assert [row["pending"] for row in command("migrate", "status", "--all-tenants", code=3)["tenants"]] == [
        [1, 2], [1, 2], [],
    ]  # fmt: skip
    done = command("migrate", "up", "--all-tenants", code=1)
    assert {row["name"]: (row["outcome"], row["applied"]) for row in done["tenants"]} == {
        "alpha": ("migrated", [1, 2]),
        "beta": ("failed", []),
        "gamma": ("current", []),
    }
    assert 'relation "agents" already exists' in done["tenants"][1]["why"]
    reported = command.result("migrate", "up", "--all-tenants")
    assert isinstance(reported.exception, ProvisionError)
    assert reported.exception.what == "1 of 3 tenants were not migrated"
    assert reported.exception.seen == "beta"
    status = command("migrate", "status", "--all-tenants", code=3)
    assert [(row["tenant"], row["version"], row["dirty"]) for row in status["tenants"]] == [
        ("alpha", 2, False), ("beta", 1, True), ("gamma", 2, False),
    ]  # fmt: skip
    fresh.ask("beta", "DROP TABLE agents")
    command("migrate", "force", "-1", "--tenant", "beta")
    assert [row["outcome"] for row in command("migrate", "up", "--all-tenants")["tenants"]] == [
        "current", "migrated", "current",
    ]  # fmt: skip
    command("migrate", "status", "--all-tenants")
    assert command("migrate", "version", "--tenant", "beta")["version"] == 2


def test_application_works_while_half_of_the_tenants_have_the_new_version(fresh: Place) -> None:
    folder = fresh.server.root / "migrations"
    shutil.copytree(MIGRATIONS, folder)
    for name in ("one", "two"):
        fresh.add(name)
    (folder / "003_add_note.up.sql").write_text("ALTER TABLE agents ADD COLUMN note text;\n")
    (folder / "003_add_note.down.sql").write_text("ALTER TABLE agents DROP COLUMN note;\n")
    with fresh.session("two") as blocker, blocker.transaction():
        blocker.execute("LOCK TABLE two.agents IN ACCESS SHARE MODE")
        found = migrations.up(fresh.plan, Settings("", folder, lock_timeout_s=0.2, retries=0), jobs=2)
        assert [(each.name, each.outcome) for each in found] == [("one", "migrated"), ("two", "failed")]
        for name in ("one", "two"):
            fresh.remember(name, "during the migration")
    assert [each.outcome for each in migrations.up(fresh.plan, Settings("", folder))] == ["current", "migrated"]


TRAP = """
CREATE FUNCTION stay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(600); RETURN NEW; END $$;
CREATE TRIGGER stay BEFORE INSERT ON schema_migrations FOR EACH ROW EXECUTE FUNCTION stay();
"""
SLOW_INDEX = """
DROP FUNCTION stay() CASCADE;
CREATE FUNCTION stay(t text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_sleep(600 * (session_user::text LIKE '%_job_%')::int); RETURN t; END $$;
INSERT INTO agents (name) VALUES ('one');
CREATE INDEX ON agents (stay(name));
INSERT INTO agents (name) SELECT i::text FROM generate_series(1, 200) i;
"""


def test_trigger_that_never_returns_stops_neither_migrations_nor_maintenance(
    fresh: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("evil", "good", "last"):
        fresh.add(name)
        fresh.ask(name, "DROP INDEX activities_created_at_idx, metrics_timestamp_idx, sessions_closed_idx,"
                  " feedback_created_at_idx; UPDATE schema_migrations SET version = 1;"
                  " DELETE FROM schema_migrations_history WHERE version = 2")  # fmt: skip
    fresh.ask("evil", TRAP)
    found = migrations.up(fresh.plan, Settings("", MIGRATIONS), jobs=1, limit_s=3)
    assert [(each.name, each.outcome) for each in found] == [
        ("evil", "failed"), ("good", "migrated"), ("last", "migrated"),
    ]  # fmt: skip
    assert found[0].why.startswith("took longer than 3 s; lost the connection to the server")
    fresh.ask("evil", SLOW_INDEX)
    monkeypatch.setattr(login, "LIMIT_S", 3)
    done = maintain.run_all(fresh.plan, {"job": "retention", "outcome": "done"})
    assert done["outcome"] == "failed"
    assert done["tenants"]["evil"].startswith("failed")
    assert done["tenants"]["last"].startswith("done")
    assert fresh.server.psql("SELECT count(*) FROM pg_roles WHERE rolname ~ '_job_'") == "0"


def test_signal_starts_no_further_tenant(fresh: Place) -> None:
    for name in ("one", "two", "three"):
        fresh.add(name, migrate=False)
    signals = iter(["", ""])
    found = migrations.up(fresh.plan, Settings("", MIGRATIONS), jobs=1, interrupted=lambda: next(signals, "SIGTERM"))
    assert "not started" in {each.outcome for each in found}
    assert [each.outcome for each in migrations.up(fresh.plan, Settings("", MIGRATIONS))] == ["migrated"] * 3


def test_golang_migrate_s_url_of_a_tenant_means_the_tenant_s_schema(fresh: Place) -> None:
    """The role's own search_path, and one in the URL, lead to schema_migrations of the tenant's schema."""
    fresh.add("acme", migrate=False)
    fresh.ask("minion", "CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL)")
    fresh.ask("minion", "CREATE TABLE schema_migrations_history ()")
    for query in ("", "?search_path=acme,public"):
        url = f"postgresql://acme:{fresh.passwords['acme']}@127.0.0.1:{fresh.server.port}/minion{query}"
        for words in (("up",), ("down", "--all", "--yes-destroy", "minion", "--without-backup")):
            done = CliRunner().invoke(root, ["migrate", *words, "--database", url, "--path", str(MIGRATIONS), "--json"])
            assert done.exit_code == 0, (done.output, done.exception)
    assert fresh.server.psql("SELECT count(*) FROM public.schema_migrations", "minion") == "0"
    fresh.ask("minion", "DROP TABLE schema_migrations, schema_migrations_history")


def test_export_and_import_move_a_tenant(fresh: Place, command: Command) -> None:
    fresh.add("acme")
    fresh.remember("acme", "moves")
    kept = command("tenant", "export", "acme")
    assert (kept["version"], kept["rows"]["acme.memories"], kept["rows"]["acme.agents"]) == ("2", 1, 1)
    refused = command.result("tenant", "import", "acme", kept["folder"])
    assert isinstance(refused.exception, DatabaseError)
    assert "the schema of tenant acme is not empty" in refused.exception.what
    command("tenant", "drop", "acme", "--yes-destroy", "acme", "--without-export")
    made = command("tenant", "add", "acme", "--no-migrate")
    fresh.passwords |= {each["role"]: each["password"] for each in made["logins"]}
    done = command("tenant", "import", "acme", kept["folder"])
    assert done["rows"] == kept["rows"]
    assert fresh.ask("acme_app", "SELECT content FROM memories", pooled=True) == [("moves",)]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        fresh.ask("acme_app", "DELETE FROM schema_migrations")
    command("migrate", "status", "--tenant", "acme")
    assert fresh.converge() == []


def test_one_tenant_goes_back_to_an_export_and_keeps_its_passwords(fresh: Place, command: Command) -> None:
    for name in ("acme", "beta"):
        fresh.add(name)
        fresh.remember(name, "before")
    kept = command("tenant", "export", "acme", "--port", str(fresh.server.port))
    for name in ("acme", "beta"):
        fresh.remember(name, "after")
    refused = command.result("tenant", "import", "acme", kept["folder"], "--replace")
    assert isinstance(refused.exception, ConfirmationError)
    done = command("tenant", "import", "acme", kept["folder"], "--replace", "--yes-destroy", "acme")
    assert fresh.ask("acme_app", "SELECT content FROM memories", pooled=True) == [("before",)]
    assert fresh.ask("beta_app", "SELECT count(*) FROM memories", pooled=True) == [(2,)]
    assert dump.check(Path(done["replaced"]))["rows"]["acme.memories"] == 2
    assert fresh.converge() == []


def test_exports_of_the_same_second_have_folders_of_their_own(
    fresh: Place, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "compact", lambda: "20261128T120000Z")
    fresh.add("acme")
    folders = [Path(command("tenant", "export", "acme")["folder"]).name for _ in range(3)]
    assert folders == ["acme-20261128T120000Z", "acme-20261128T120000Z-2", "acme-20261128T120000Z-3"]


def test_import_refuses_a_damaged_export_and_that_of_another_tenant(fresh: Place, command: Command) -> None:
    fresh.add("acme")
    folder = command("tenant", "export", "acme")["folder"]
    fresh.add("other", migrate=False)
    wrong = command.result("tenant", "import", "other", folder)
    assert isinstance(wrong.exception, UsageError)
    assert wrong.exception.what == "this export is of another tenant"
    with (Path(folder) / "data/toc.dat").open("ab") as stream:
        stream.write(b"x")
    damaged = command.result("tenant", "import", "acme", folder)
    assert isinstance(damaged.exception, BackupError)
    assert "damaged" in damaged.exception.what


def test_hostile_export_can_do_no_more_than_its_tenant(fresh: Place, command: Command) -> None:
    """The export is of a schema whose function attacks when its CHECK constraint is evaluated by the load."""
    fresh.add("evil", migrate=False)
    fresh.add("victim")
    fresh.remember("victim", "of the victim")
    fresh.ask("evil", """
        CREATE FUNCTION evil.look(t text) RETURNS boolean LANGUAGE plpgsql AS $f$
        BEGIN
            RESET ROLE; EXECUTE 'RESET SESSION AUTHORIZATION';
            BEGIN EXECUTE 'DELETE FROM victim.memories'; EXCEPTION WHEN insufficient_privilege THEN NULL; END;
            BEGIN EXECUTE 'CREATE ROLE mine SUPERUSER'; EXCEPTION WHEN insufficient_privilege THEN NULL; END;
            RETURN true;
        END $f$;
        CREATE TABLE evil.t (id text CHECK (evil.look(id))); INSERT INTO evil.t VALUES ('a')""")  # fmt: skip
    folder = command("tenant", "export", "evil")["folder"]
    command("tenant", "drop", "evil", "--yes-destroy", "evil", "--without-export")
    command("tenant", "add", "evil", "--no-migrate")
    assert command("tenant", "import", "evil", folder)["rows"] == {"evil.t": 1}
    assert fresh.ask("victim_app", "SELECT content FROM memories") == [("of the victim",)]
    assert fresh.server.psql("SELECT count(*) FROM pg_roles WHERE rolname IN ('mine')") == "0"


def test_drop_needs_the_name_exports_first_and_lists_what_still_holds_the_tenant(
    fresh: Place, command: Command
) -> None:
    fresh.add("acme")
    fresh.remember("acme", "dropped")
    with fresh.session("acme_app") as connected:
        for words in ((), ("--yes-destroy", "other")):
            refused = command.result("tenant", "drop", "acme", *words)
            assert isinstance(refused.exception, ConfirmationError)
            assert refused.exception.allowed == "typing the tenant's name, acme"
        done = command("tenant", "drop", "acme", "--yes-destroy", "acme")
        with pytest.raises(psycopg.Error):
            connected.execute("SELECT 1")
    assert dump.check(Path(done["export"]["folder"]))["rows"]["acme.memories"] == 1
    assert (
        done["until"][-1] == "the export of the tenant is kept until you delete it; names of tenant acme stay in logs"
    )
    assert known(fresh) == []
    assert fresh.server.psql("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'acme%'") == "0"
    assert fresh.server.psql("SELECT count(*) FROM pg_namespace WHERE nspname = 'acme'", "minion") == "0"


def test_list_and_show_name_size_rows_vectors_and_statements(fresh: Place, command: Command) -> None:
    fresh.add("acme")
    fresh.remember("acme", "one", pooled=False)
    fresh.ask("acme_app", "INSERT INTO activities (agent_id, activity_type) SELECT id, 'x' FROM agents")
    fresh.server.psql("ANALYZE acme.memories; ANALYZE acme.agents; ANALYZE acme.activities", "minion")
    (row,) = command("tenant", "list")["tenants"]
    assert (row["name"], row["version"], row["state"], row["tables"]) == ("acme", "2", "sound", 11)
    assert row["vectors"] == 1
    assert row["size"] > 100_000
    shown = command("tenant", "show", "acme")
    assert shown["roles"] == ["acme", "acme_app", "acme_readonly"]
    assert shown["newest_version"] == 2
    assert shown["last_activity"].startswith("20")
    assert {each["role"] for each in shown["slowest"]} <= {"acme", "acme_app", "acme_readonly"}
    assert len(shown["slowest"]) == statistics.SLOWEST
    text = command.result("tenant", "list").stdout
    assert text.splitlines()[0].split() == [
        "tenant",
        "version",
        "size",
        "rows",
        "vectors",
        "sessions",
        "last",
        "use",
        "state",
    ]
    assert " calls, acme" in command.result("tenant", "show", "acme").stdout


def test_unknown_tenant_is_refused_with_those_that_exist(fresh: Place, command: Command) -> None:
    fresh.add("acme", migrate=False)
    refused = command.result("tenant", "show", "acmee")
    assert isinstance(refused.exception, UsageError)
    assert (refused.exception.what, refused.exception.allowed) == ("no tenant acmee", "acme")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--tenant", "acme", "--all-tenants"), "--tenant and --all-tenants exclude each other"),
        (("--all-tenants", "--database", "postgresql:///minion"), "--database and tenants exclude each other"),
        (("1", "--all-tenants"), "N and --all-tenants exclude each other"),
    ],
)
def test_refuses_options_that_exclude_each_other(command: Command, words: tuple[str, ...], why: str) -> None:
    refused = command.result("migrate", "up", *words)
    assert isinstance(refused.exception, UsageError)
    assert refused.exception.what == why


def test_logins_of_killed_commands_are_dropped(fresh: Place) -> None:
    fresh.add("acme")
    with login.superuser(fresh.plan) as session:
        session.execute("CREATE ROLE acme_job_0123456789ab LOGIN VALID UNTIL '2020-01-01' IN ROLE acme")
        session.execute("COMMENT ON ROLE acme_job_0123456789ab IS 'provision: temporary login of a tenant'")
        session.execute("SET ROLE acme_job_0123456789ab")
        session.execute("CREATE TABLE acme.left_behind ()")
        session.execute("RESET ROLE")
        assert login.clean_up(session) == ["acme_job_0123456789ab"]
    owner = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'left_behind'"
    assert fresh.server.psql(owner, "minion") == "acme"


def test_objects_of_a_restored_schema_are_given_to_the_tenant_on_request(fresh: Place) -> None:
    """A restore of a dump gives everything to the database's owner."""
    fresh.add("acme")
    fresh.remember("acme", "restored")
    fresh.server.psql("REASSIGN OWNED BY acme TO minion", "minion")
    with pytest.raises(DatabaseError, match="schema acme does not belong to tenant acme"):
        manage.add(fresh.plan, "acme")
    manage.add(fresh.plan, "acme", adopt=True)
    assert fresh.ask("acme_app", "SELECT content FROM memories") == [("restored",)]
    assert fresh.migrate("acme") == []
    with login.superuser(fresh.plan) as session:
        assert [each.state for each in statistics.read(session)] == ["sound"]


def test_maintenance_runs_in_each_tenant_and_names_the_one_that_fails(fresh: Place, command: Command) -> None:
    for name in ("acme", "beta"):
        fresh.add(name)
        fresh.remember(name, "old")
        fresh.ask(f"{name}_app", "INSERT INTO activities (agent_id, activity_type, created_at) SELECT id, 'x',"
                  " now() - interval '91 days' FROM agents")  # fmt: skip
    fresh.add("empty", migrate=False)
    fresh.ask("beta", "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS"
              " $$ BEGIN RAISE EXCEPTION 'kept by beta'; END $$; CREATE TRIGGER stop BEFORE DELETE ON activities"
              " FOR EACH ROW EXECUTE FUNCTION stop()")  # fmt: skip
    planned = command("maintain", "retention", "--dry-run")
    assert planned[0]["tenants"]["acme"].startswith("would, 1 rows")
    refused = command.result("maintain", "retention")
    assert isinstance(refused.exception, ProvisionError)
    assert "tenant beta: failed" in refused.exception.seen
    assert "kept by beta" in refused.exception.seen
    left = "SELECT count(*) FROM activities"
    assert (fresh.ask("acme_app", left), fresh.ask("beta_app", left)) == ([(0,)], [(1,)])
    fresh.ask("beta", "DROP FUNCTION stop() CASCADE")
    (done,) = command("maintain", "retention")
    assert done["outcome"] == "done"
    assert done["tenants"]["beta"].startswith("done, 1 rows")
    assert done["tenants"]["empty"].startswith("done, 0 rows")
    assert fresh.ask("beta_app", left) == [(0,)]


def test_restored_dump_gives_each_tenant_its_schema_again(fresh: Place) -> None:
    for name in ("acme", "beta"):
        fresh.add(name)
        fresh.remember(name, f"only of {name}")
    taken = dump.take(fresh.plan)
    fresh.remember("acme", "after the dump")
    done = restore(fresh.plan, taken["label"], "", "minion")
    assert [line for line in done["next"] if "belonged to" in line] == []
    for name in ("acme", "beta"):
        assert fresh.ask(f"{name}_app", "SELECT content FROM memories") == [(f"only of {name}",)]
        assert fresh.ask(name, "SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE relname = 'memories'"
                         " AND relnamespace = %s::regnamespace", name) == [(name,)]  # fmt: skip
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            fresh.ask(f"{name}_app", "DELETE FROM schema_migrations")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        fresh.ask("acme", "SELECT content FROM beta.memories")
    assert fresh.converge() == []
    assert findings(fresh) == {}
    with login.superuser(fresh.plan) as session:
        with pytest.raises(UsageError, match="tenant acme has objects in another database") as refused:
            manage.drop(fresh.plan, session, "acme")
        assert done["kept"] in refused.value.run
    fresh.server.psql(f"DROP DATABASE {done['kept']}")


def findings(here: Place, plan: schema.Plan | None = None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with login.superuser(here.plan) as session:
        for look in (checks.schemas, checks.versions, checks.sizes, checks.locks, drift.access):
            rows = list(look(plan or here.plan, session))
            found |= {look.__name__: [each if isinstance(each, str) else each[0] for each in rows]} if rows else {}
    return found


def test_doctor_names_tenants_that_need_action(fresh: Place) -> None:
    for name in ("acme", "beta", "gone", "dirty"):
        fresh.add(name, migrate=name != "beta")
    assert findings(fresh) == {"versions": ["1 tenants have pending migrations: beta"]}
    fresh.ask("gone", "DROP SCHEMA gone CASCADE")
    fresh.ask("dirty", "UPDATE schema_migrations SET dirty = true")
    fresh.ask("acme", "GRANT SELECT ON memories TO PUBLIC")
    limits = replace(fresh.plan.access.tenant_limits, size_mb=1)
    small = replace(fresh.plan, access=replace(fresh.plan.access, tenant_limits=limits))
    with fresh.session("acme_app") as session:
        session.execute("INSERT INTO agents (name) VALUES ('one')")
        session.execute("INSERT INTO memories (agent_id, content, embedding) SELECT agents.id, 'x', %s FROM agents,"
                        " generate_series(1, 200)", ("[" + ",".join(["0.1"] * 1536) + "]",))  # fmt: skip
    found = findings(fresh, small)
    assert found["schemas"] == ["the schema of tenant gone does not exist"]
    assert found["versions"] == [
        "1 tenants have pending migrations: beta", "the version of tenant dirty is dirty",
    ]  # fmt: skip
    assert found["access"] == ["to apply: table acme.memories: REVOKE SELECT FROM PUBLIC"]
    (size,) = found["sizes"]
    assert size.startswith("tenant acme has ")
    assert size.endswith("its limit is 1 MB")
