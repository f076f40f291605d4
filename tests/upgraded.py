"""A host that is upgraded to another major and goes back: what is done to it, and what must survive.

Does IO on a sandbox host. tests/pairs.py names the majors; test_upgrade.py and tests/majors ask the questions.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from provision.compatibility import version_key
from tests.pairs import Pair
from tests.sandboxes import Host, Hosts
from tests.system import handmade
from tests.system.playbooks import ROOT, Run, play
from tests.until import until
from tests.waits import Load, Pooler

SHARED = {
    "backup_physical": True,
    "backup_allow_local_only": True,
    "backup_repository_passphrase": "a passphrase of this test",
    "postgresql_settings": {"wal_level": "logical", "deadlock_timeout": "1700ms"},
}
MEGABYTES, VECTORS = 500, 5000
BY_HAND = """
SET password_encryption = 'md5';
CREATE ROLE legacy LOGIN CONNECTION LIMIT 3 VALID UNTIL '2099-01-01' PASSWORD 'a password of this test';
ALTER ROLE legacy IN DATABASE minion SET work_mem = '5MB';
GRANT SELECT, INSERT ON tools TO legacy;
GRANT SELECT, INSERT, UPDATE, DELETE ON notes, written TO minion_app;
GRANT SELECT ON notes, written TO minion_readonly;
"""
"""A role that no inventory knows, with a password that the next majors no longer want; and the rights on tables of the
load that the next run of site.yml grants."""
ROLES = """
SELECT concat_ws(' ', 'role', rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication,
  rolconnlimit, rolbypassrls, md5(rolpassword), rolvaliduntil) FROM pg_authid WHERE rolname !~ '^pg_'
UNION ALL SELECT concat_ws(' ', 'member', m.member::regrole, 'of', m.roleid::regrole, m.admin_option)
  FROM pg_auth_members m WHERE m.roleid >= 16384
UNION ALL SELECT concat_ws(' ', 'stored', d.datname, s.setrole::regrole, line)
  FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase, unnest(setconfig) line
  WHERE line !~ '^hnsw'
ORDER BY 1
"""
"""Without settings of searches, which depend on the version of pgvector."""
GRANTS = """
WITH roles AS (SELECT oid, rolname FROM pg_roles WHERE rolname !~ '^pg_'),
own AS (SELECT oid, relkind FROM pg_class c WHERE relnamespace = 'public'::regnamespace
  AND NOT EXISTS (SELECT FROM pg_depend d
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
SELECT concat_ws(' ', rolname, privilege, own.oid::regclass) FROM roles, own,
  unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) privilege
  WHERE relkind IN ('r', 'v') AND has_table_privilege(roles.oid, own.oid, privilege)
UNION ALL SELECT concat_ws(' ', rolname, privilege, own.oid::regclass) FROM roles, own,
  unnest('{USAGE,SELECT,UPDATE}'::text[]) privilege
  WHERE relkind = 'S' AND has_sequence_privilege(roles.oid, own.oid, privilege)
UNION ALL SELECT concat_ws(' ', rolname, privilege, 'public') FROM roles, unnest('{USAGE,CREATE}'::text[]) privilege
  WHERE has_schema_privilege(roles.oid, 'public', privilege)
UNION ALL SELECT concat_ws(' ', rolname, privilege, datname) FROM roles, pg_database,
  unnest('{CONNECT,CREATE,TEMPORARY}'::text[]) privilege WHERE has_database_privilege(roles.oid, datname, privilege)
UNION ALL SELECT concat_ws(' ', rolname, 'EXECUTE', p.oid::regprocedure) FROM roles, pg_proc p
  WHERE pronamespace = 'public'::regnamespace AND has_function_privilege(roles.oid, p.oid, 'EXECUTE')
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
ORDER BY 1
"""
SETTINGS = "SELECT name || '=' || setting FROM pg_settings WHERE source = 'configuration file' ORDER BY 1"
STATISTICS = (
    "SELECT cardinality(histogram_bounds::text::text[]) FROM pg_stats WHERE (tablename, attname) = ('notes', 'n')"
)
PROBES = 20
NEAREST = f"""
WITH probes AS (SELECT id, embedding FROM memories WHERE embedding IS NOT NULL ORDER BY id LIMIT {PROBES})
SELECT probes.id || ' ' || near.id FROM probes, LATERAL (
  SELECT id FROM memories ORDER BY embedding <=> probes.embedding LIMIT 10) near
"""
INDEX = "memories_embedding_idx"


@dataclass
class Upgraded:
    """A host, its variables before and after, and what was in the database."""

    host: Host
    pair: Pair
    old: Path
    new: Path
    rows: list[str] = field(default_factory=list)
    """Number and checksum of each table's rows."""
    kept: list[str] = field(default_factory=list)
    """Roles and rights."""
    settings: dict[str, str] = field(default_factory=dict)
    exact: set[str] = field(default_factory=set)
    """The nearest neighbours of some vectors, found without an index."""
    recall: float = 0
    statistics: str = ""
    """Number of the values that the statistics of a column hold."""

    def play(self, playbook: str, variables: Path, *arguments: str) -> Run:
        """Run a playbook with the variables of one major."""
        return play(playbook, self.host.inventory, "-e", f"@{variables}", *arguments, timeout=1800)

    def upgrade(self, method: str, *arguments: str) -> Run:
        """Run upgrade.yml: only checks, without `confirm`."""
        words = ("-e", f"upgrade_to={self.pair.new}", "-e", f"upgrade_method={method}")
        return self.play("upgrade.yml", self.new, *words, *arguments)

    def back(self, *arguments: str) -> Run:
        """Go back to the old server."""
        return self.play("upgrade.yml", self.new, "-e", "upgrade_rollback=yes", *self.confirm, *arguments)

    def words(self, command: str) -> list[str]:
        """Return the words that run a shell command as root on the host."""
        return self.host.sandbox.words(self.host.container, "sh", "-c", command)

    @property
    def pooler(self) -> Pooler:
        """Return the host's pooler, for a load through it."""
        vault = yaml.safe_load((ROOT / "inventories/dev/group_vars/all/vault.yml").read_text())
        password = vault["database_credentials"]["minion_app"]["password"]
        return Pooler(lambda script: self.words(f"runuser -u postgres -- bash -euc {shlex.quote(script)}"), password)

    @property
    def confirm(self) -> tuple[str, str]:
        """The words that confirm an upgrade of this host."""
        return "-e", f"upgrade_confirm={self.host.name}"

    def sql(self, query: str) -> str:
        """Run statements as postgres and return what they say."""
        return handmade.sql(self.host, query)

    @property
    def major(self) -> int:
        """The major that serves."""
        return int(self.sql("SHOW server_version_num")) // 10000

    def vector(self, major: int) -> str:
        """Return the version of pgvector that a major of the host has."""
        control = self.host.run(f"cat /usr/share/postgresql/{major}/extension/vector.control").stdout
        return control.partition("default_version = '")[2].partition("'")[0]

    def known(self) -> list[str]:
        """Name roles, their attributes, memberships and settings, and what each may do."""
        return (self.sql(ROLES) + "\n" + self.sql(GRANTS)).splitlines()

    def configured(self) -> dict[str, str]:
        """Return the settings of the configuration files, with MAJOR in the place of the major."""
        rows = self.sql(SETTINGS).replace(f"/{self.major}/", "/MAJOR/")
        rows = re.sub(rf"\b{self.major}([-/])main", r"MAJOR\1main", rows)
        return dict(line.partition("=")[::2] for line in rows.splitlines())

    def nearest(self, without: str) -> set[str]:
        """Find the nearest neighbours without one way to scan: seqscan, or indexscan for the exact ones."""
        return set(self.sql(f"SET enable_{without} = off; {NEAREST}").splitlines())

    def remember(self) -> None:
        """Keep what must survive."""
        self.rows, self.kept, self.settings = handmade.checksums(self.host), self.known(), self.configured()
        self.exact = self.nearest("indexscan")
        self.recall, self.statistics = self.find_by_index(), self.sql(STATISTICS)

    def find_by_index(self) -> float:
        """Return the share of the nearest neighbours that a search by index finds."""
        return len(self.nearest("seqscan") & self.exact) / len(self.exact)

    def killed(self, method: str, state: str) -> None:
        """Start the host's command, and kill it, and pg_upgrade, once the journal has reached a state.

        Or, for the state pg_upgrade, once this program runs the old server itself.
        """
        reached = f'grep -qs \'"state": "{state}"\' /var/lib/provision/upgrade.json'
        if state == "pg_upgrade":
            reached = f"grep -qs upgrade-{self.pair.new} /var/lib/postgresql/{self.pair.old}/main/postmaster.pid"
        command = f"provision upgrade run --method {method} --confirm {self.host.name}"
        script = (
            "until pid=$(pgrep -f '^[^ ]*python3? [^ ]*provision upgrade run'); do sleep 0.1; done; "
            f"until {reached}; do sleep 0.01; done; "
            "kill -9 $pid; kill -9 $(pgrep -x pg_upgrade) 2>/dev/null; true"
        )
        with subprocess.Popen(self.words(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            done = self.host.run(f"timeout 600 sh -c {shlex.quote(script)}")
            assert done.returncode != 124, f"the upgrade did not reach the state {state}"
            assert run.wait(60) != 0

    def reboot(self) -> None:
        """Stop the host as for a reboot, and wait until its units have started."""
        self.host.podman("stop", "--time=60")
        self.host.podman("start")
        state = "systemctl is-system-running --wait"
        assert until(lambda: self.host.run(state).stdout.strip() in ("running", "degraded"), 120), self.host.run(state)

    def serves(self, major: int) -> None:
        """Assert that a major serves every row."""
        assert self.major == major, self.major
        rows = handmade.checksums(self.host)
        assert rows == self.rows, f"{rows} instead of {self.rows}"


@contextmanager
def converged(
    pair: Pair, folder: Path, project: Path, *, megabytes: int = MEGABYTES, vectors: int = VECTORS, **more: object
) -> Iterator[Upgraded]:
    """Make a host with the old major, fill all nine tables, and remove the host at the end.

    `more` are variables of both majors.
    """
    with Hosts.made(project) as hosts:
        host = hosts.up("up1", os="debian13", memory="2g")
        made = Upgraded(host, pair, folder / "old.yml", folder / "new.yml")
        for path, variables in zip((made.old, made.new), pair.variables(host, folder), strict=True):
            path.write_text(yaml.safe_dump({**SHARED, **variables, **more}))
        run = made.play("site.yml", made.old)
        assert run.code == 0, run.output
        made.pooler.fill(megabytes, vectors)
        made.sql(handmade.ROWS + BY_HAND)
        made.sql("VACUUM ANALYZE")
        made.remember()
        yield made


def checked(upgraded: Upgraded) -> None:
    """Assert that the check shows the stages and leaves the old server, and that site.yml is refused meanwhile."""
    old, new = upgraded.pair.old, upgraded.pair.new
    run = upgraded.upgrade("copy")
    assert run.code == 0, run.output
    assert f"PostgreSQL {old} can be upgraded to {new} by copy" in run.text()
    warned = "; PostgreSQL 18 warns of them" if new >= 18 else ""
    assert f"note: MD5 passwords: legacy{warned}; set them again with SCRAM" in run.text()
    upgraded.serves(old)
    refused = upgraded.play("site.yml", upgraded.new)
    wanted = f"set postgresql_version: {old} to keep it, or upgrade with ansible-playbook upgrade.yml"
    assert wanted in refused.text(), refused.output


def migrations_work(upgraded: Upgraded) -> None:
    """Assert that the migrations make the same schema on both majors of the host."""
    pair = upgraded.pair
    before = upgraded.sql("SELECT string_agg(datname, ',' ORDER BY oid) FROM pg_database")
    path = "--path /usr/local/share/provision/migrations"
    done = upgraded.host.run(f"provision migrate verify --from {pair.old} --to {pair.new} {path}")
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, schemas = done.stdout.splitlines()
    for major, line in zip((pair.old, pair.new), lines, strict=True):
        extensions = f"(vector {upgraded.vector(major)}, uuid-ossp 1.1)"
        assert f"{extensions}: 6 steps up, down and up again: 0 differences" in line
    assert schemas == f"schemas of {pair.old} and {pair.new}: equal"
    assert upgraded.sql("SELECT string_agg(datname, ',' ORDER BY oid) FROM pg_database") == before


def upgrade_under_load(upgraded: Upgraded, method: str) -> None:
    """Upgrade while pgbench writes through the pooler: no transaction fails, and nothing is lost."""
    found: list[Load] = []
    with upgraded.pooler.loaded(found):
        run = upgraded.upgrade(method, *upgraded.confirm)
    status = upgraded.host.run("provision upgrade status").stdout
    print(f"{upgraded.pair} {method}: {found}\n{status}")
    assert run.code == 0, run.output
    (seen,) = found
    assert seen.transactions > 100
    assert (seen.failed, seen.lost) == (0, 0), seen
    same(upgraded)


def same(upgraded: Upgraded) -> None:
    """Assert that the new server has every row, role, right and setting, its own pgvector, and finds neighbours."""
    pair, now, vector = upgraded.pair, upgraded.known(), upgraded.vector(upgraded.pair.new)
    upgraded.serves(pair.new)
    recall, found = upgraded.find_by_index(), upgraded.configured()
    print(f"{pair}: recall {upgraded.recall:.3f} before, {recall:.3f} after, pgvector {pair.vector} -> {vector}")
    changed = {name: (old, found.get(name)) for name, old in upgraded.settings.items() if found.get(name) != old}
    print(f"{pair}: {len(upgraded.settings)} settings, of which differ: {changed}")
    lost, more = sorted(set(upgraded.kept) - set(now)), sorted(set(now) - set(upgraded.kept))
    print(f"{pair}: {len(upgraded.kept)} roles and rights; lost {lost}; more {more}")
    assert not lost + more, (lost, more)
    assert set(changed) <= pair.settings, changed
    assert upgraded.sql("SELECT extversion FROM pg_extension WHERE extname = 'vector'") == vector
    assert version_key(vector) > version_key(pair.vector)
    # Without enable_seqscan = off: the planner takes the index by itself.
    plan = upgraded.sql(
        "EXPLAIN SELECT id FROM memories ORDER BY embedding <=> (SELECT embedding FROM memories LIMIT 1) LIMIT 10"
    )
    assert f"Index Scan using {INDEX}" in plan, plan
    histogram = upgraded.sql(STATISTICS)
    assert histogram == upgraded.statistics, histogram
    assert upgraded.nearest("indexscan") == upgraded.exact
    assert recall >= upgraded.recall - 0.05, recall


def goes_back(upgraded: Upgraded, *arguments: str) -> None:
    """Go back and converge with the old major."""
    back = upgraded.back(*arguments)
    log = upgraded.host.run(
        f"tail -n 25 /var/log/postgresql/postgresql-{upgraded.pair.old}-main.log; provision upgrade status"
    )
    assert back.code == 0, back.output + log.stdout
    site = upgraded.play("site.yml", upgraded.old)
    assert site.code == 0, site.output


def converges_without_a_change(upgraded: Upgraded) -> None:
    """Assert that site.yml with the new major changes nothing."""
    again = upgraded.play("site.yml", upgraded.new)
    assert again.code == 0, again.output
    assert again.recap[upgraded.host.name].changed == 0, again.output


def logical_goes_back(upgraded: Upgraded) -> None:
    """Upgrade by logical replication, write to the new server, and go back with every row."""
    upgrade_under_load(upgraded, "logical")
    upgraded.sql("INSERT INTO notes SELECT 1000000 + n, 'of the new server' FROM generate_series(1, 1000) n")
    upgraded.sql("UPDATE memories SET content = 'changed', embedding = embedding WHERE content = 'memory 7'")
    rows = handmade.checksums(upgraded.host)
    assert rows != upgraded.rows
    converges_without_a_change(upgraded)
    upgraded.rows = rows
    goes_back(upgraded)
    upgraded.serves(upgraded.pair.old)
    assert upgraded.sql("SELECT count(*) FROM notes WHERE t = 'of the new server'") == "1000"
    upgraded.sql("DELETE FROM notes WHERE n > 1000000")


def copy_goes_back(upgraded: Upgraded) -> None:
    """Upgrade by copy, and go back with the loss of later writes."""
    upgrade_under_load(upgraded, "copy")
    goes_back(upgraded, "-e", "upgrade_confirm_loss=discard")
    upgraded.serves(upgraded.pair.old)


def link_is_final(upgraded: Upgraded) -> None:
    """Upgrade by link, which has no way back."""
    old = upgraded.pair.old
    upgrade_under_load(upgraded, "link")
    refused = upgraded.back("-e", "upgrade_confirm_loss=discard")
    assert refused.code != 0
    assert "a link upgrade has no way back once its new server has started" in refused.text()
    programs, data = f"/usr/lib/postgresql/{old}/bin", f"/var/lib/postgresql/{old}/main"
    for start in (
        f"pg_ctlcluster {old} main start",
        f"systemctl start postgresql@{old}-main && systemctl is-active postgresql@{old}-main",
        f"runuser -u postgres -- {programs}/pg_ctl start -w -D {data} -o '-p 5999'",
    ):
        assert upgraded.host.run(start).returncode != 0, start
    converges_without_a_change(upgraded)


def is_backed_up_and_released(upgraded: Upgraded) -> None:
    """Take a backup of the new major, and delete the old cluster."""
    old = upgraded.pair.old
    done = upgraded.host.run("provision backup take --type incr && provision backup status --json")
    assert done.returncode == 0, done.stdout + done.stderr
    run = upgraded.play("upgrade.yml", upgraded.new, "-e", "upgrade_release=yes", *upgraded.confirm)
    assert run.code == 0, run.output
    assert upgraded.host.run(f"ls /var/lib/postgresql/{old}/main /etc/postgresql/{old}/main").returncode != 0
    upgraded.serves(upgraded.pair.new)
