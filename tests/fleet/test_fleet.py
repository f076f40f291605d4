"""A fleet of a coordinator and two workers with two members each: converged, used, moved, killed, restored."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
import pytest

from tests.fleet.hosts import DECLARED, EVERY, FIRST, GROUPS, Fleet
from tests.ledger import CREATE, Account, Ledger
from tests.system.test_cluster import FAILOVER_S, STOP, TTL_S
from tests.until import until

LEDGER = CREATE.removesuffix(")") + ", row uuid DEFAULT gen_random_uuid() PRIMARY KEY)"
"""A tenant moves only with primary keys."""
TENANTS = tuple(f"t{number:02}" for number in range(20))
passwords: dict[str, str] = {}
"""Of each tenant's application; filled by the first test that needs tenants."""


@pytest.fixture
def tenants(fleet: Fleet) -> dict[str, str]:
    """Twenty tenants, made once; each has a table for the ledger."""
    for name in TENANTS:
        if name not in passwords:
            passwords[name] = fleet.tenant(name)
            fleet.sql(
                f"SET search_path = {name}, public; SET ROLE {name}; {LEDGER};"
                f" GRANT INSERT, SELECT ON ledger TO {name}_app"
            )
    return passwords


def writing(fleet: Fleet, tenants: dict[str, str], names: Sequence[str], *through: str) -> Ledger:
    """Return a ledger, empty in each tenant, whose writers are the applications of some tenants."""
    for name in names:
        fleet.sql(f"TRUNCATE {name}.ledger")
    return Ledger({name: fleet.url(name, tenants[name], *through) for name in names})


def account(fleet: Fleet, ledger: Ledger, tenants: dict[str, str]) -> list[Account]:
    """Count what is left of the rows of each writer in its tenant, and print it."""
    found = []
    for writer in ledger.writers:
        own = Ledger({writer.name: writer.url}, [writer], ledger.ended)
        found += own.accounts(fleet.url(writer.name, tenants[writer.name], port=5432))
    print(*found, sep="\n")
    return found


@contextmanager
def down(fleet: Fleet, *names: str) -> Iterator[float]:
    """Kill hosts for a `with` block; give the moment (monotonic)."""
    for name in names:
        fleet.hosts[name].podman("kill")
    try:
        yield time.monotonic()
    finally:
        for name in names:
            fleet.hosts[name].podman("start")


def unchanged(fleet: Fleet) -> None:
    run = fleet.site()
    assert run.code == 0, run.output
    assert {name: row.changed for name, row in run.recap.items()} == dict.fromkeys(EVERY, 0), run.output


def test_second_run_changes_nothing(fleet: Fleet) -> None:
    unchanged(fleet)
    check = fleet.site("--check", "--diff")
    assert check.code == 0, check.output
    assert {name: row.changed for name, row in check.recap.items()} == dict.fromkeys(EVERY, 0), check.output


def test_tenants_of_the_single_host_are_distributed_with_their_rows(fleet: Fleet) -> None:
    assert {fleet.places()[name] for name in (FIRST, DECLARED)} <= {1, 2}
    assert fleet.sql(f"SELECT count(*) FROM {FIRST}.agents") == "1000"


def test_doctor_finds_nothing_critical(fleet: Fleet) -> None:
    for name in GROUPS:
        done = fleet.hosts[name].run("provision doctor --json")
        critical = [row for row in json.loads(done.stdout)["findings"] if row["severity"] == "critical"]
        assert critical == [], name


@pytest.mark.usefixtures("tenants")
def test_tenants_are_spread_and_stay_so(fleet: Fleet) -> None:
    places = fleet.places()
    assert set(places) == {*TENANTS, DECLARED, FIRST}
    assert {1, 2} == set(places.values())
    listed = json.loads(fleet.run("provision tenant list --json"))["tenants"]
    assert {each["name"]: each["group"] for each in listed} == places
    assert all(each["size"] > 0 for each in listed)
    unchanged(fleet)
    assert fleet.places() == places


def test_nodes_log_in_with_certificates_and_nobody_is_trusted(fleet: Fleet, tenants: dict[str, str]) -> None:
    with psycopg.connect(fleet.url("t00", tenants["t00"])) as session:
        session.execute("SELECT count(*) FROM agents")
        group = fleet.places()["t00"]
        inside = (
            "FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.application_name LIKE 'citus_internal%'"
        )
        seen = fleet.sql(
            f"SELECT count(*) > 0, bool_and(s.ssl), bool_and(s.client_dn LIKE '%minion_member%') {inside}", group
        )
    assert seen == "t|t|t"
    for group in (0, 1, 2):
        assert fleet.sql("SELECT count(*) FROM pg_hba_file_rules WHERE auth_method = 'trust'", group) == "0"


def test_tenant_reads_nothing_of_another_on_any_node(fleet: Fleet, tenants: dict[str, str]) -> None:
    fleet.sql("INSERT INTO t01.agents (name) VALUES ('secret of t01')")
    assert fleet.sql("SELECT count(*) FROM t01.agents WHERE name = 'secret of t01'") == "1"
    for name in (fleet.primary(0), fleet.primary(1), fleet.primary(2)):
        for port in (5432, 6432):
            with psycopg.connect(fleet.url("t00", tenants["t00"], name, port=port), autocommit=True) as session:
                for query in (
                    "SELECT * FROM t01.agents",
                    "SELECT run_command_on_workers('SELECT name FROM t01.agents LIMIT 1')",
                    "SELECT * FROM public.agents",
                    "SELECT * FROM pg_dist_authinfo",
                    "SELECT * FROM pg_stat_statements",
                    "SELECT citus_remove_node('192.0.2.1', 5432)",
                    "SELECT citus_schema_undistribute('t01')",
                ):
                    try:
                        rows = session.execute(query.encode()).fetchall()
                    except psycopg.Error:
                        continue
                    assert all("secret of t01" not in str(row) for row in rows), (name, query, rows)


CLOSED = (
    "SELECT citus_internal.delete_tenant_schema('t01'::regnamespace)",
    "SELECT citus_internal.add_tenant_schema('evil'::regnamespace, 1)",
    "SELECT citus_internal_delete_placement_metadata(1)",
    "SELECT citus_internal.update_relation_colocation('evil.agents'::regclass, 1)",
    "SELECT citus_schema_undistribute('evil')",
    "SELECT citus_schema_move('evil', 1)",
    "SELECT citus_rebalance_stop()",
    "SELECT * FROM run_command_on_workers('SELECT 1')",
    "SELECT * FROM master_run_on_worker(ARRAY['192.0.2.1'], ARRAY[5432], ARRAY['SELECT 1'], false)",
    "SELECT citus_check_connection_to_node('192.0.2.1')",
    "SELECT * FROM pg_dist_authinfo",
    "SELECT * FROM pg_stat_statements",
)
"""Statements that no role of a tenant may run."""
EVIL = """
CREATE FUNCTION evil.f(integer) RETURNS boolean LANGUAGE plpgsql AS
$$ BEGIN
    EXECUTE 'ALTER ROLE evil SUPERUSER';
    RETURN true;
EXCEPTION WHEN insufficient_privilege THEN
    RETURN true;
END $$;
CREATE FUNCTION evil.still(integer) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT evil.f($1)';
"""
BAITS = (
    "CREATE TABLE evil.bait (i integer PRIMARY KEY CHECK (evil.f(i)))",
    "CREATE TABLE evil.bait (i int PRIMARY KEY CHECK (query_to_xml('SELECT evil.f(1)', true, true, '') IS NOT NULL))",
    "CREATE TABLE evil.bait (i integer PRIMARY KEY); CREATE STATISTICS evil.s ON (evil.still(i)), i FROM evil.bait",
)
REGISTERED = "SELECT md5(string_agg(schemaid::regnamespace::text || colocationid, ',' ORDER BY 1)) FROM pg_dist_schema"


@pytest.mark.usefixtures("tenants")
def test_owner_of_a_tenant_gains_nothing_from_citus(fleet: Fleet) -> None:
    made = json.loads(fleet.run("provision tenant add evil --json"))
    password = next(each["password"] for each in made["logins"] if each["role"] == "evil")
    before = {group: fleet.sql(REGISTERED, group) for group in (0, 1, 2)}
    for group in (0, 1, 2):
        url = fleet.url("evil", password, fleet.primary(group), port=5432).replace("evil_app:", "evil:")
        for name in ("", "citus_internal gpid=10000000001"):  # Citus believes this name
            with psycopg.connect(url, autocommit=True, application_name=name) as session:
                for query in CLOSED:
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        session.execute(query.encode())
    assert {group: fleet.sql(REGISTERED, group) for group in (0, 1, 2)} == before
    source = fleet.places()["evil"]
    target = 1 if source == 2 else 2

    def refused() -> None:
        done = fleet.hosts[fleet.primary(0)].run(f"provision tenant move evil --to {target}")
        assert "has code of its own that would run as the superuser" in done.stderr, done.stdout + done.stderr
        for group in (0, 1, 2):
            seen = fleet.sql("SELECT rolsuper, rolvaliduntil FROM pg_authid WHERE rolname = 'evil'", group)
            assert seen == "f|infinity", group

    def as_owner(statement: str, group: int = 0) -> None:  # a move ends the owner's sessions
        address = fleet.url("evil", password, fleet.primary(group), port=5432).replace("evil_app:", "evil:")
        with psycopg.connect(address, autocommit=True) as session:
            if group:
                session.execute("SET citus.override_table_visibility = off; SET citus.enable_ddl_propagation = off")
            session.execute(statement.encode())

    as_owner(EVIL)
    for bait in BAITS:
        as_owner(f"{bait}; INSERT INTO evil.bait VALUES (1)")
        refused()
        as_owner("DROP TABLE evil.bait")
    shard = "SELECT shard_name FROM citus_shards WHERE table_name = 'evil.agents'::regclass LIMIT 1"
    as_owner(f"CREATE INDEX trap ON {fleet.sql(shard)} ((evil.still(1)))", source)
    refused()
    as_owner("DROP INDEX evil.trap", source)
    as_owner("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'left open'", source)
    blocked = fleet.hosts[fleet.primary(0)].run(f"provision tenant move evil --to {target}")
    assert "ROLLBACK PREPARED 'left open'" in blocked.stderr, blocked.stderr
    as_owner("ROLLBACK PREPARED 'left open'", source)
    as_owner("CREATE TABLE evil.keyless (i integer)")
    keyless = fleet.hosts[fleet.primary(0)].run(f"provision tenant move evil --to {target}")
    assert "has tables without a primary key" in keyless.stderr, keyless.stderr
    as_owner("DROP TABLE evil.keyless")
    fleet.run(f"provision tenant move evil --to {target}")
    fleet.run("provision tenant drop evil --yes-destroy evil --without-export")


KILLED = """
provision tenant move {name} --to {group} & move=$!
shut="SELECT rolvaliduntil FROM pg_authid WHERE rolname = '{name}'"
for i in $(seq 100); do
    runuser -u postgres -- psql -XAtc "$shut" minion | grep -q 1970 && break
    sleep 0.05
done
kill -9 $move
"""


def test_move_that_is_killed_is_repeated(fleet: Fleet, tenants: dict[str, str]) -> None:
    name = TENANTS[3]
    group = 1 if fleet.places()[name] == 2 else 2
    ledger = writing(fleet, tenants, (name,))
    with ledger.writing():
        coordinator = fleet.hosts[fleet.primary(0)]
        coordinator.run(KILLED.format(name=name, group=group))
        shut = fleet.sql(f"SELECT rolvaliduntil = 'epoch' FROM pg_authid WHERE rolname = '{name}'")
        again = f"provision tenant move {name} --to {group}"
        assert until(lambda: coordinator.run(again).returncode == 0, 60)
    assert shut == "t"
    for each in account(fleet, ledger, tenants):
        assert (each.lost, each.duplicates, each.errors) == ((), 0, ()), str(each)
    assert fleet.places()[name] == group
    for number in (0, 1, 2):
        assert fleet.sql(f"SELECT rolvaliduntil FROM pg_authid WHERE rolname = '{name}'", number) == "infinity"


def test_tenant_moves_while_it_is_written_to(fleet: Fleet, tenants: dict[str, str]) -> None:
    places = fleet.places()
    chosen = [name for name in TENANTS if places[name] == 1][:4]
    ledger = writing(fleet, tenants, chosen)
    with ledger.writing():
        for name in chosen[:2]:
            print(fleet.run(f"provision tenant move {name} --to 2").strip())
    for each in account(fleet, ledger, tenants):
        assert (each.lost, each.duplicates, each.errors) == ((), 0, ()), str(each)
    assert {fleet.places()[name] for name in chosen[:2]} == {2}


def test_rebalance_evens_out_under_load_and_is_continued(fleet: Fleet, tenants: dict[str, str]) -> None:
    planned = json.loads(fleet.run("provision fleet rebalance --by size --json"))
    assert planned["done"] == []
    ledger = writing(fleet, tenants, TENANTS[:3])
    with ledger.writing():
        done = json.loads(fleet.run("provision fleet rebalance --by size --yes --json"))
    assert len(done["done"]) == len(done["moves"])
    print(f"{len(done['done'])} moves")
    for each in account(fleet, ledger, tenants):
        assert (each.lost, each.duplicates, each.errors) == ((), 0, ()), str(each)
    assert json.loads(fleet.run("provision fleet rebalance --by size --json"))["moves"] == []


def test_migrations_of_all_tenants_run_on_the_coordinator(fleet: Fleet, tenants: dict[str, str]) -> None:
    name = "003_fleet_test"
    where = "/usr/local/share/provision/migrations"
    coordinator = fleet.hosts[fleet.primary(0)]
    try:
        for direction, text in (
            ("up", "ALTER TABLE agents ADD COLUMN region text;"),
            ("down", "ALTER TABLE agents DROP COLUMN region;"),
        ):
            assert coordinator.run(f"echo '{text}' > {where}/{name}.{direction}.sql").returncode == 0
        done = json.loads(fleet.run("provision migrate up --all-tenants --json"))
        assert {each["outcome"] for each in done["tenants"]} == {"migrated"}
        with psycopg.connect(fleet.url("t05", tenants["t05"], fleet.primary(2))) as session:
            session.execute("SELECT region FROM agents")
        for each in (*TENANTS, DECLARED, FIRST):
            fleet.run(f"provision migrate down 1 --tenant {each}")
    finally:
        coordinator.run(f"rm -f {where}/{name}.*")


@pytest.mark.usefixtures("tenants")
def test_maintenance_runs_in_every_tenant_on_the_coordinator_alone(fleet: Fleet) -> None:
    fleet.sql("INSERT INTO t02.agents (name) VALUES ('old')")
    fleet.sql(
        "INSERT INTO t02.activities (agent_id, activity_type, created_at)"
        " SELECT id, 'x', now() - interval '10 years' FROM t02.agents, generate_series(1, 300)"
    )
    done = json.loads(fleet.run("provision maintain --json"))
    for job in done:
        assert job["outcome"] == "done", done
        assert all(text.startswith("done") for text in job["tenants"].values()), done
    assert fleet.sql("SELECT count(*) FROM t02.activities") == "0"
    worker = json.loads(fleet.run("provision maintain --json", group=1))
    assert {job["outcome"] for job in worker} == {"skipped"}


def test_tenant_is_exported_dropped_and_imported(fleet: Fleet, tenants: dict[str, str]) -> None:
    name = TENANTS[-1]
    with psycopg.connect(fleet.url(name, tenants[name]), autocommit=True) as session:
        session.execute("DELETE FROM agents")
        session.execute("INSERT INTO agents (name) SELECT 'agent ' || i FROM generate_series(1, 200) i")
    made = json.loads(fleet.run(f"provision tenant export {name} --json"))
    assert made["rows"][f"{name}.agents"] == 200
    dropped = json.loads(fleet.run(f"provision tenant drop {name} --yes-destroy {name} --json"))
    assert dropped["export"]["rows"] == made["rows"]
    assert name not in fleet.places()
    for group in (0, 1, 2):
        assert fleet.sql(f"SELECT count(*) FROM pg_roles WHERE rolname ~ '^{name}'", group) == "0"
        assert fleet.sql(f"SELECT count(*) FROM pg_namespace WHERE nspname = '{name}'", group) == "0"
    added = json.loads(fleet.run(f"provision tenant add {name} --no-migrate --json"))
    tenants[name] = next(each["password"] for each in added["logins"] if each["role"] == f"{name}_app")
    fleet.run(f"provision tenant import {name} {made['folder']}")
    assert fleet.places()[name] in (1, 2)
    with psycopg.connect(fleet.url(name, tenants[name])) as session:
        assert session.execute("SELECT count(*) FROM agents").fetchone() == (200,)


def test_failover_of_a_group_loses_nothing_and_the_others_notice_nothing(fleet: Fleet, tenants: dict[str, str]) -> None:
    places = fleet.places()
    hit = next(name for name in TENANTS if places[name] == 1)
    other = next(name for name in TENANTS if places[name] == 2)
    old = fleet.primary(1)
    ledger = writing(fleet, tenants, (hit, other))
    with ledger.writing(), down(fleet, old) as killed:
        assert until(lambda: ledger.resumed(killed + 1), FAILOVER_S), fleet.members.view()
        assert fleet.primary(1) not in ("", old)
    assert until(fleet.complete, 180), fleet.members.view()
    first, second = account(fleet, ledger, tenants)
    assert (first.lost, first.duplicates) == ((), 0), str(first)
    assert (second.lost, second.duplicates, second.errors) == ((), 0, ()), str(second)


def test_whole_group_down_hits_its_own_tenants_alone(fleet: Fleet, tenants: dict[str, str]) -> None:
    places = fleet.places()
    other = next(name for name in TENANTS if places[name] == 1)
    ledger = writing(fleet, tenants, (other,))
    with ledger.writing(), down(fleet, "db4", "db5"):
        time.sleep(10)
        done = fleet.hosts[fleet.primary(0)].run("provision doctor --json")
    assert until(fleet.complete, 180), fleet.members.view()
    (found,) = account(fleet, ledger, tenants)
    assert (found.lost, found.duplicates, found.errors) == ((), 0, ()), str(found)
    seen = [each["seen"] for each in json.loads(done.stdout)["findings"] if each["id"] == "fleet-groups"]
    assert any("does not answer" in each for each in seen), done.stdout


def test_planned_switchover_of_the_coordinator(fleet: Fleet, tenants: dict[str, str]) -> None:
    """The only member of group 0 restarts: tenants are reached through the workers' poolers meanwhile."""
    places = fleet.places()
    name = next(each for each in TENANTS if places[each] == 1)
    ledger = writing(fleet, tenants, (name,), fleet.primary(1))
    with ledger.writing():
        fleet.run("systemctl restart patroni")
        assert until(fleet.complete, 120), fleet.members.view()
    (found,) = account(fleet, ledger, tenants)
    assert (found.lost, found.duplicates, found.errors) == ((), 0, ()), str(found)


@pytest.mark.usefixtures("tenants")
def test_fleet_is_restored_to_one_point(fleet: Fleet) -> None:
    rows = "(writer, id) SELECT 'x', i FROM generate_series(1, 500) i"
    for name in ("t00", "t01", "t02", "t03"):
        fleet.sql(f"TRUNCATE {name}.ledger; INSERT INTO {name}.ledger {rows}")
    fleet.sql("INSERT INTO public.agents (name) VALUES ('before')")
    run = fleet.site("-e", "backup_type=full", playbook="backup.yml")
    assert run.code == 0, run.output
    assert ".agents_" in fleet.run("provision backup drill --type physical --json", group=1)  # it compared shards
    before = {name: fleet.sql(f"SELECT count(*) FROM {name}.ledger") for name in TENANTS}
    point = json.loads(fleet.run("provision fleet point kept --json"))["name"]
    for name in ("t00", "t01", "t02", "t03"):
        fleet.sql(f"DELETE FROM {name}.ledger")
    fleet.sql("DELETE FROM public.agents")
    options = ("-e", f"restore_target=name:{point}", "-e", "restore_confirm=minion")
    alone = fleet.site(*options, "--limit", "db2,db3,keeper", playbook="restore.yml")
    assert "run the command without --limit" in alone.text()
    latest = fleet.site("-e", "restore_confirm=minion", playbook="restore.yml")
    assert "a fleet is restored to a restore point that every group has" in latest.text()
    run = fleet.site(*options, playbook="restore.yml")
    assert run.code == 0, run.output
    assert until(fleet.complete, 180), fleet.members.view()
    assert {name: fleet.sql(f"SELECT count(*) FROM {name}.ledger") for name in TENANTS} == before
    assert fleet.sql("SELECT count(*) FROM public.agents WHERE name = 'before'") == "1"
    run = fleet.site()
    assert run.code == 0, run.output
    unchanged(fleet)


def test_group_is_drained_removed_and_added_again(fleet: Fleet, tenants: dict[str, str]) -> None:
    places = fleet.places()
    name, held = [each for each in TENANTS if places[each] == 2][:2]
    fleet.sql(f"SET ROLE {held}; CREATE FUNCTION {held}.own() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'")
    ledger = writing(fleet, tenants, (name,))
    with ledger.writing():
        drained = fleet.hosts[fleet.primary(0)].run("provision fleet drain 2 --json")
        assert drained.returncode == 1, drained.stderr
        assert list(json.loads(drained.stdout)["failed"]) == [held]  # it does not keep the others
        fleet.sql(f"DROP FUNCTION {held}.own()")
        print(fleet.run("provision fleet drain 2").strip())
    for each in account(fleet, ledger, tenants):
        assert (each.lost, each.duplicates, each.errors) == ((), 0, ()), str(each)
    assert set(fleet.places().values()) == {1}
    gone = ("db4", "db5")
    running = fleet.hosts[fleet.primary(0)].run("provision fleet remove 2")
    assert "group 2 is in the inventory" in running.stderr, running.stderr
    run = fleet.site(without=gone)
    assert run.code == 0, run.output
    assert "group 2 is registered but not in the inventory" in run.text()
    running = fleet.hosts[fleet.primary(0)].run("provision fleet remove 2")
    assert "group 2 still runs" in running.stderr, running.stderr
    for host in gone:
        assert fleet.hosts[host].run(STOP).returncode == 0
    assert until(lambda: fleet.primary(2) == "", TTL_S)
    fleet.run("provision fleet remove 2")
    status = json.loads(fleet.run("provision fleet status --json"))
    assert [each["number"] for each in status["groups"]] == [0, 1]
    run = fleet.site(without=gone)
    assert run.code == 0, run.output

    for host in gone:  # a new number: the repository keeps the backups of group 2
        assert fleet.hosts[host].run("pg_dropcluster 17 main").returncode == 0
        (fleet.members.environment / f"host_vars/{host}.yml").write_text("citus_group: 3\n")
    run = fleet.site()
    assert run.code == 0, run.output
    assert until(fleet.complete, 120), fleet.members.view()
    done = json.loads(fleet.run("provision fleet rebalance --yes --json"))
    assert done["done"]
    assert set(fleet.places().values()) == {1, 3}
    unchanged(fleet)
