"""A cluster of three members on the loopback: real etcd, Patroni, PostgreSQL, PgBouncer and followers, with TLS.

Does IO. Each member has an address of its own in 127.0.0.0/8 and its own files; a member's programs can be killed,
stopped and started like those of a host. Everything runs as the user postgres where we are root.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

from provision.controller import inputs
from provision.errors import HostError
from provision.host.cluster import primary, view
from provision.host.cluster.access import Access, of
from provision.host.cluster.dcs import Dcs
from provision.host.cluster.patroni import Patroni
from provision.host.dcs import apply as dcs_apply
from provision.plan import load, schema, topology
from provision.plan.cluster import PRIMARY, Cluster, DcsMember, Member, PoolerHost
from provision.quoting import conninfo
from tests.authority import Authority
from tests.clusters import as_server_user
from tests.plans import sample
from tests.until import until

ROOT = Path(__file__).parents[1]
NAMES = ("db1", "db2", "db3")
BESIDE = "app1"
"""A host with a pooler and no server."""
SECRETS = {
    "etcd": {
        "root": "root of etcd",
        "patroni": "patroni of etcd",
        "pooler": "pooler of etcd",
        "follower": "follower of etcd",
    },
    "rest": {"username": "patroni", "password": "patroni of rest"},
}
QUORUM = int(importlib.metadata.version("patroni").partition(".")[0]) >= topology.QUORUM_SINCE
"""Whether the Patroni that the tests use has quorum commit: another one by PYTHONPATH, such as 3.0.2 of Debian 12."""
FAST = {"ttl": 20, "loop_wait": 2, "retry_timeout": 5, "failsafe_mode": True,
        "primary_start_timeout" if QUORUM else "master_start_timeout": 0}  # fmt: skip
OURS: dict[str, Any] = {**FAST, "synchronous_mode": "quorum" if QUORUM else True, "synchronous_mode_strict": True}
"""The dynamic configuration of profile prod."""
STOCK: dict[str, Any] = {"ttl": 30, "loop_wait": 10, "retry_timeout": 10, "maximum_lag_on_failover": 1048576}
"""What Patroni's own documentation shows, and most installations use."""
DATABASE, USER = "minion", "minion_app"
SETTINGS = {
    "shared_buffers": "64MB", "max_connections": "200", "huge_pages": "off", "wal_keep_size": "64MB",
    "log_min_messages": "warning", "tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3", "tcp_user_timeout": "10s", "client_connection_check_interval": "5s",
    "checkpoint_timeout": "15min", "wal_retrieve_retry_interval": "500ms",
    "wal_receiver_timeout": "10s", "wal_sender_timeout": "10s", "fsync": "off",
}  # fmt: skip
STANZA = "minion"
CGROUPS = next((path for path in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"))
                if (path / "cgroup.controllers").exists()), Path("/sys/fs/cgroup"))  # fmt: skip
DISK_MB = 1024
CUT = "0x5ec"
"""Mark of the connections that a partition drops."""
FOLLOW = """
import sys
from pathlib import Path
from provision import system
from provision.host.backup import scratch_cluster, tool
drill = Path(sys.argv[1]) / "drill"
scratch_cluster.SCRATCH, scratch_cluster.SOCKET = drill, drill / "socket"
tool.SPOOL = Path(sys.argv[1]) / "backup/spool/archive"
from provision.cli import main
from provision.host.cluster import access, pooler
from provision.plan import load
home = Path(sys.argv.pop(1))
load.PATH, access.SECRETS = home / "plan.json", home / "cluster.json"
system.EVIDENCE = home / "evidence"
pooler.TEMPLATE, pooler.FILE = home / "pooler/databases.ini", home / "pooler/follow/databases.ini"
main()
"""
"""Runs the command of a host whose files are below a directory."""


@dataclass
class Host:
    """One member: its directory, and its programs by name: etcd, patroni, pgbouncer, follow."""

    member: Member
    home: Path
    plan: schema.Plan
    commands: dict[str, list[str]] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def disk(self) -> Path:
        """The mount point of the data directory's disk, where mounting is allowed."""
        return self.home / "disk"

    @property
    def data(self) -> Path:
        return self.disk / "data"

    @property
    def group(self) -> Path:
        """The control group of the member's processes, by which a partition recognises their packets."""
        return CGROUPS / f"{self.home.parent.name}-{self.name}"

    def start(self, program: str) -> None:
        """Start a program, with its output in a file of its name."""
        command = as_server_user(*self.commands[program])
        if self.group.exists():
            enter = f'echo $$ > {self.group}/cgroup.procs; exec "$@"'
            command = ["sh", "-c", enter, "sh", *command]
        with (self.home / f"{program}.log").open("a") as log:
            self.running[program] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, env=self.environment
            )

    def kill(self, program: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal that ends a program and wait for its end."""
        process = self.running.pop(program)
        process.send_signal(how)
        process.wait(30)

    def postmaster(self) -> int:
        """Return the process id of the server; 0 if there is none."""
        with suppress(OSError, ValueError, IndexError):
            return int((self.data / "postmaster.pid").read_text().splitlines()[0])
        return 0

    def server_processes(self) -> list[int]:
        """Return the processes that work in the data directory, and those that they left, such as pgBackRest's."""
        found, home = [], f"HOME={self.home}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "cwd").readlink() == self.data or home in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return found

    def kill_server(self) -> None:
        """SIGKILL the postmaster; its children notice and end."""
        os.kill(self.postmaster(), signal.SIGKILL)

    def signal_all(self, how: signal.Signals) -> None:
        """Send a signal to every process of the member: SIGSTOP and SIGCONT pause and resume the host."""
        for _ in range(3 if how == signal.SIGSTOP else 1):  # a process may have forked meanwhile
            for pid in [*(each.pid for each in self.running.values()), *self.server_processes()]:
                with suppress(ProcessLookupError):
                    os.kill(pid, how)

    def kill_all(self) -> None:
        """Kill the whole member, as a host that loses power; its sockets are closed by the kernel."""
        self.signal_all(signal.SIGSTOP)  # otherwise Patroni restarts what was killed before it
        self.signal_all(signal.SIGKILL)
        for process in self.running.values():
            process.wait(30)
        self.running.clear()

    def start_all(self, *programs: str) -> None:
        """Start all programs of the member, or some."""
        for program in programs or self.commands:
            self.start(program)

    def url(self, port: int = 0, user: str = USER, database: str = DATABASE, **more: object) -> str:
        """Return the libpq string of the member's server, or of another port of it."""
        place = {"host": self.member.address, "port": port or self.member.port, "dbname": database, "user": user}
        return conninfo({**place, "connect_timeout": 2, **more})

    def provision(self, *words: str, timeout_s: float = 200) -> subprocess.CompletedProcess[str]:
        """Run `provision` as it runs on this host."""
        command = as_server_user(_python(), "-S", "-c", FOLLOW, str(self.home), *words)
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=self.environment, cwd=self.home, timeout=timeout_s
        )


class Members:
    """The cluster. `hosts` are by name."""

    def __init__(
        self, root: Path, dynamic: dict[str, Any] | None = None, *, poolers: bool = True, archive: bool = False
    ) -> None:
        """Write all files; `start` runs the programs. With `archive`, pgBackRest archives to one repository."""
        self.root, self.dynamic, self.poolers, self.archive = root, dynamic or OURS, poolers, archive
        self.authority = Authority("authority of the members")
        self.packages = root / "packages"
        _copy_packages(self.packages)
        network, ports = _network(), _ports(10)
        server, rest, client, peer, pooler, balancer, self.read_port, *statistics = ports
        self.balancer_port, self.statistics = balancer, iter(statistics)
        members = tuple(Member(name, f"{network}.{at}", f"{network}.{at}", server, pooler)
                        for at, name in enumerate(NAMES, 11))  # fmt: skip
        cluster = Cluster(
            scope="minion", member="", dcs_member="", members=members,
            dcs=tuple(DcsMember(each.name, each.address, each.address) for each in members),
            dcs_token="tests",  # noqa: S106 - a name
            rest_port=rest, client_port=client, peer_port=peer,
            synchronous={True: "on"}.get(mode := self.dynamic.get("synchronous_mode", "off"), mode),
            replication_role="minion_replica",
            rewind_role="minion_rewind", common_name="minion_member", dynamic=self.dynamic, watchdog=False,
        )  # fmt: skip
        (root / "ca.crt").write_text(self.authority.text)
        self.hosts = {each.name: self._host(each, cluster) for each in members}

    def _host(self, member: Member, cluster: Cluster) -> Host:
        home = self.root / member.name
        (home / "pooler").mkdir(parents=True)
        (home / "disk").mkdir()
        # etcd compares a client's address with its certificate; on the loopback, connections come from 127.0.0.1. Its
        # JSON gateway refuses certificates with a common name.
        peer = self.authority.issue(member.address, "127.0.0.1", common_name="", use="peer").write(home, "member")
        self.authority.issue(common_name=cluster.common_name, use="client").write(home, "replica")
        login = self.authority.issue(common_name="minion_pooler", use="client").write(home, "pooler-client")
        rows = [
            schema.Certificate("server", str(peer[0]), str(peer[1]), "server", "", (), False),
            schema.Certificate("pooler-client", str(login[0]), str(login[1]), "client", "minion_pooler", (), False),
            schema.Certificate("member", str(peer[0]), str(peer[1]), "peer", "", (), False),
            schema.Certificate("etcd-client", str(peer[0]), str(peer[1]), "client", "", (), False),
        ]
        base = sample(
            tls={"enabled": True, "ca": str(self.root / "ca.crt"), "certificates": tuple(rows)},
            pooler={"enabled": True, "port": member.pooler_port, "socket_directory": str(home / "pooler")},
            server={"port": member.port, "socket_directory": str(home), "patroni": True,
                    "data_directory": str(home / "disk/data"), "major": int(_server_bin().parts[4])},
            backup={"physical": self.archive, "logical": False, "stanza": STANZA,
                    "dump_directory": str(home / "dumps")},
            access={"database": DATABASE, "owner": "minion"},
            balancer={"enabled": True, "listen_addresses": (member.address,), "write_port": self.balancer_port,
                      "read_port": self.read_port, "statistics_port": next(self.statistics)},
        )  # fmt: skip
        plan = replace(base, name=member.name, cluster=replace(cluster, member=member.name, dcs_member=member.name))
        (home / "plan.json").write_text(load.text(plan))
        (home / "cluster.json").write_text(json.dumps(SECRETS))
        host = Host(member, home, plan)
        host.environment = self._environment(home)
        if self.archive:
            host.environment["PGBACKREST_CONFIG"] = str(self._pgbackrest(host))
        host.commands = {"etcd": self._etcd(host, plan), "patroni": self._patroni(host, plan)}
        if self.poolers:
            host.commands |= {"pgbouncer": self._pgbouncer(host), "follow": self._follow(host)}
            host.commands["haproxy"] = self._haproxy(host)
        return host

    @contextlib.contextmanager
    def beside(self) -> Iterator[Host]:
        """Add a host with a pooler and no server to every plan, and run its programs; remove it afterwards."""
        first = next(iter(self.hosts.values()))
        address = f"{first.member.address.rpartition('.')[0]}.{10 + len(self.hosts) + 1}"
        member = replace(first.member, name=BESIDE, address=address, tls_name=address)
        before = {host.name: host.plan for host in self.hosts.values()}
        poolers = (PoolerHost(BESIDE, address, member.pooler_port),)
        cluster = replace(_cluster(first.plan), member="", dcs_member="", pooler=BESIDE, poolers=poolers)
        for host in self.hosts.values():
            self._plan(host, replace(host.plan, cluster=replace(_cluster(host.plan), poolers=poolers)))
        found = self._without_server(member, replace(first.plan, name=BESIDE, cluster=cluster))
        try:
            found.start_all()
            self.until(lambda: self.reaches(found), 30, "the pooler beside the members has no primary")
            yield found
        finally:
            found.kill_all()
            for host in self.hosts.values():
                self._plan(host, before[host.name])

    def _plan(self, host: Host, plan: schema.Plan) -> None:
        host.plan = plan
        (host.home / "plan.json").write_text(load.text(plan))

    def _without_server(self, member: Member, plan: schema.Plan) -> Host:
        home = self.root / member.name
        (home / "pooler").mkdir(parents=True)
        client = self.authority.issue(member.address, "127.0.0.1", common_name="", use="client").write(home, "client")
        login = self.authority.issue(common_name="minion_pooler", use="client").write(home, "pooler-client")
        rows = (
            schema.Certificate("pooler-client", str(login[0]), str(login[1]), "client", "minion_pooler", (), False),
            schema.Certificate("etcd-client", str(client[0]), str(client[1]), "client", "", (), False),
        )
        tls, pooler = replace(plan.tls, certificates=rows), replace(plan.pooler, socket_directory=str(home / "pooler"))
        host = Host(member, home, plan)
        self._plan(host, replace(plan, tls=tls, pooler=pooler, server=replace(plan.server, patroni=False)))
        (home / "cluster.json").write_text(json.dumps({"etcd": {"follower": SECRETS["etcd"]["follower"]}}))
        host.environment = self._environment(home)
        host.commands = {"pgbouncer": self._pgbouncer(host), "follow": self._follow(host)}
        self.own()
        return host

    def _environment(self, home: Path) -> dict[str, str]:
        return {"PATH": f"{_server_bin()}:/usr/sbin:/usr/bin:/bin", "PYTHONPATH": str(self.packages),
                "HOME": str(home), "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip

    def _etcd(self, host: Host, plan: schema.Plan) -> list[str]:
        cluster, address = _cluster(plan), host.member.address
        pair = plan.tls.certificate("member")
        client, peer = (f"https://{address}:{port}" for port in (cluster.client_port, cluster.peer_port))
        everyone = ",".join(f"{each.name}=https://{each.address}:{cluster.peer_port}" for each in cluster.dcs)
        options = {
            "name": host.name, "data-dir": host.home / "etcd", "listen-client-urls": client, "log-level": "warn",
            "advertise-client-urls": client, "listen-peer-urls": peer, "initial-advertise-peer-urls": peer,
            "initial-cluster": everyone, "initial-cluster-token": cluster.dcs_token,
            "cert-file": pair.certificate, "key-file": pair.key, "trusted-ca-file": plan.tls.ca,
            "peer-cert-file": pair.certificate, "peer-key-file": pair.key, "peer-trusted-ca-file": plan.tls.ca,
        }  # fmt: skip
        flags = ["--client-cert-auth", "--peer-client-cert-auth"]
        return ["etcd", *(f"--{name}={value}" for name, value in options.items()), *flags]

    def _patroni(self, host: Host, plan: schema.Plan) -> list[str]:
        cluster, member = _cluster(plan), host.member
        pair, ca = plan.tls.certificate("member"), plan.tls.ca
        ssl = {"ssl": "on", "ssl_cert_file": pair.certificate, "ssl_key_file": pair.key, "ssl_ca_file": ca}
        login = {"sslmode": "verify-full", "sslrootcert": ca, "sslcert": str(host.home / "replica.crt"),
                 "sslkey": str(host.home / "replica.key")}  # fmt: skip
        place = f"{member.address}:{cluster.rest_port}"
        document = {
            "scope": cluster.scope, "name": host.name,
            "restapi": {"listen": place, "connect_address": place, "certfile": pair.certificate, "keyfile": pair.key,
                        "cafile": ca, "verify_client": "required", "authentication": SECRETS["rest"]},
            # With which Patroni asks the other members.
            "ctl": {"certfile": pair.certificate, "keyfile": pair.key, "cacert": ca},
            "etcd3": {"hosts": list(cluster.endpoints), "protocol": "https", "cacert": ca, "cert": pair.certificate,
                      "key": pair.key, "username": "patroni", "password": SECRETS["etcd"]["patroni"]},
            "bootstrap": {"dcs": {**self.dynamic, "synchronous_mode": False,
                                  "postgresql": {"use_pg_rewind": True, "parameters": SETTINGS}},
                          "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "data-checksums"]},
            "postgresql": {
                "listen": f"{member.address}:{member.port}", "connect_address": f"{member.address}:{member.port}",
                "data_dir": str(host.data), "bin_dir": str(_server_bin()), "pgpass": str(host.home / "pgpass"),
                "parameters": {"unix_socket_directories": str(host.home), **ssl},
                "authentication": {"superuser": {"username": "postgres"},
                                   "replication": {"username": cluster.replication_role, **login},
                                   "rewind": {"username": cluster.rewind_role, **login}},
                "basebackup": [{"checkpoint": "fast"}, "no-slot"],
                "use_unix_socket": True, "use_unix_socket_repl": False,
                "pg_ident": [f"members {cluster.common_name} {cluster.replication_role}",
                             f"members {cluster.common_name} {cluster.rewind_role}"],
                "pg_hba": ["local all postgres trust",
                           f"hostssl replication {cluster.replication_role} 127.0.0.0/8 cert map=members",
                           f"hostssl all {cluster.rewind_role} 127.0.0.0/8 cert map=members",
                           "hostssl all minion_pooler 127.0.0.0/8 cert", "host all minion_app 127.0.0.0/8 trust"],
            },
        }  # fmt: skip
        if self.archive:
            server: dict[str, Any] = document["postgresql"]  # type: ignore[assignment]
            push = f"pgbackrest --stanza={STANZA} archive-push %p"
            server["parameters"] |= {"archive_mode": "on", "archive_command": push}
            server["recovery_conf"] = {"restore_command": f'pgbackrest --stanza={STANZA} archive-get %f "%p"'}
            requeue = [_python(), "-S", "-c", FOLLOW, str(host.home), "backup", "requeue"]
            server["callbacks"] = {"on_role_change": shlex.join(requeue)}
        path = host.home / "patroni.yml"
        path.write_text(yaml.safe_dump(document))
        return [_python(), "-S", "-m", "patroni", str(path)]

    def _pgbackrest(self, host: Host) -> Path:
        """Write the configuration of a member, whose stanza all members share."""
        folder = host.home / "backup"
        folder.mkdir()
        (self.root / "repository").mkdir(exist_ok=True)
        (folder / "pgbackrest.conf").write_text(
            f"[global]\nrepo1-path={self.root}/repository\nrepo1-retention-full=2\nstart-fast=y\narchive-async=y\n"
            f"spool-path={folder}/spool\nlock-path={folder}/lock\nlog-level-file=off\ncompress-type=lz4\n"
            f"[{STANZA}]\npg1-path={host.data}\npg1-port={host.member.port}\npg1-socket-path={host.home}\n"
        )
        return folder / "pgbackrest.conf"

    def _pgbouncer(self, host: Host) -> list[str]:
        folder, member, plan = host.home / "pooler", host.member, host.plan
        (folder / "databases.ini").write_text(f"{DATABASE} = host={PRIMARY} port={member.port}\n")
        (folder / "follow").mkdir()
        (folder / "follow/databases.ini").write_text("")
        (folder / "users.txt").write_text(f'"{USER}" ""\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n%include {folder}/follow/databases.ini\n[pgbouncer]\nlisten_addr = {member.address}\n"
            f"listen_port = {member.pooler_port}\nunix_socket_dir = {folder}\nunix_socket_mode = 0700\n"
            f"auth_type = trust\nauth_file = {folder}/users.txt\npool_mode = transaction\ndefault_pool_size = 20\n"
            f"max_client_conn = 500\nquery_wait_timeout = 40\nserver_login_retry = 1\nserver_connect_timeout = 5\n"
            f"server_tls_sslmode = verify-full\nserver_tls_ca_file = {plan.tls.ca}\ntcp_keepalive = 1\n"
            f"tcp_keepidle = 5\ntcp_keepintvl = 2\ntcp_keepcnt = 3\ntcp_user_timeout = 10000\n"
        )
        return ["pgbouncer", "-q", str(folder / "pgbouncer.ini")]

    def _follow(self, host: Host) -> list[str]:
        return [_python(), "-S", "-c", FOLLOW, str(host.home), "cluster", "follow"]

    def _haproxy(self, host: Host) -> list[str]:
        """Render the real template."""
        template = ROOT / "templates/balancer/haproxy.cfg.j2"
        init_plugin_loader()
        shown = {
            "plan": inputs.published(host.plan, None), "__balancer_log": "127.0.0.1:514", "ansible_managed": "test",
            "__balancer_user": "", "__balancer_moving": [], "__balancer_socket": str(host.home / "haproxy.sock"),
            "the_path": str(template),
        }  # fmt: skip
        engine = Templar(loader=DataLoader(), variables=shown)
        text: str = engine.template(trust_as_template("{{ lookup('ansible.builtin.template', the_path) }}"))
        (host.home / "haproxy.cfg").write_text(text)
        return ["haproxy", "-db", "-f", str(host.home / "haproxy.cfg")]

    def isolate(self) -> None:
        """Give each member a disk of its own and a control group. Without the rights, two faults cannot be made."""
        for host in self.hosts.values():
            with suppress(OSError):
                host.group.mkdir()
            options = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(host.disk)]
            subprocess.run(options, check=False, capture_output=True)

    @contextlib.contextmanager
    def cut(self, host: Host) -> Iterator[None]:
        """Drop every packet between a member and the others; clients still reach all. Needs root and cgroups 2."""
        chain = f"CUT{os.getpid()}"

        def iptables(*words: str, check: bool = True) -> None:
            subprocess.run(["iptables", "-w", *words], check=check, capture_output=True)

        iptables("-N", chain)
        try:
            for other in self.hosts.values():
                for sender, receiver in ((host, other), (other, host)) if other is not host else ():
                    group = str(sender.group.relative_to(CGROUPS))
                    match = ["-m", "cgroup", "--path", group, "-d", receiver.member.address]
                    iptables("-A", chain, *match, "-j", "CONNMARK", "--set-mark", CUT)
            iptables("-A", chain, "-m", "connmark", "--mark", CUT, "-j", "DROP")
            iptables("-I", "OUTPUT", "-j", chain)
            yield
        finally:
            iptables("-D", "OUTPUT", "-j", chain, check=False)
            iptables("-F", chain, check=False)
            iptables("-X", chain, check=False)

    def own(self) -> None:
        """Give all files to the server's user, where we are root."""
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", "postgres:postgres", str(self.root)], check=True)

    def start(self) -> None:
        """Start everything and wait until all members stream; create the database and its roles."""
        self.isolate()
        self.own()
        for host in self.hosts.values():
            host.start("etcd")
        self._authenticate()
        first, *others = self.hosts.values()
        first.start("patroni")
        self.until(lambda: first.postmaster() > 0 and self.writable(first), 180, "the first member has no primary")
        self._create(first)
        for host in others:
            host.start("patroni")
        self.until(self.healthy, 180, "the replicas do not stream")
        # Not before: in strict mode, the statements of the bootstrap would wait for a replica.
        self.patroni().configure(first.member, self.dynamic)
        if self.dynamic.get("synchronous_mode"):
            self.until(self.synchronous, 30, "no replica is synchronous")
        for host in self.hosts.values():
            host.start_all(*[name for name in ("pgbouncer", "follow", "haproxy") if name in host.commands])
        if self.poolers:
            self.until(lambda: all(self.reaches(host) for host in self.hosts.values()), 30, "a pooler has no primary")

    def _authenticate(self) -> None:
        host = self.hosts["db1"]
        plan, cluster = host.plan, _cluster(host.plan)
        pair = plan.tls.certificate("member")
        files = [f"--cacert={plan.tls.ca}", f"--cert={pair.certificate}", f"--key={pair.key}"]

        def etcdctl(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
            command = ["etcdctl", f"--endpoints=https://{cluster.endpoints[0]}", *files, *words]
            return subprocess.run(
                command, capture_output=True, text=True, check=check, env={**os.environ, "ETCDCTL_API": "3"}
            )

        self.until(lambda: etcdctl("endpoint", "health", check=False).returncode == 0, 30, "etcd does not answer")
        for user, password in SECRETS["etcd"].items():
            etcdctl("user", "add", f"{user}:{password}")
        for role, rights in dcs_apply.grants(cluster).items():
            etcdctl("role", "add", role)
            for kind, key in rights:
                prefix = "true" if key.endswith("/") else "false"
                etcdctl("role", "grant-permission", role, f"--prefix={prefix}", kind.lower(), key)
            etcdctl("user", "grant-role", role, role)
        etcdctl("user", "grant-role", "root", "root")
        etcdctl("auth", "enable")

    def _create(self, host: Host) -> None:
        cluster = _cluster(host.plan)
        with self.superuser(host) as session:
            session.execute(f"CREATE ROLE {cluster.replication_role} LOGIN REPLICATION".encode())
            session.execute(f"CREATE ROLE {cluster.rewind_role} LOGIN SUPERUSER".encode())
            session.execute(b"CREATE ROLE minion_pooler LOGIN")
            session.execute(f"CREATE ROLE {USER} LOGIN".encode())
            session.execute(f"CREATE DATABASE {DATABASE} OWNER {USER}".encode())

    def superuser(self, host: Host, database: str = "postgres") -> psycopg.Connection[tuple[Any, ...]]:
        """Open a superuser's session over a member's socket."""
        place = conninfo({"host": host.home, "port": host.member.port, "user": "postgres", "dbname": database})
        return psycopg.connect(place, autocommit=True)

    def access(self, host: Host) -> Access:
        return of(host.plan, host.home / "cluster.json")

    def patroni(self) -> Patroni:
        return Patroni(self.access(next(iter(self.hosts.values()))))

    def dcs(self) -> Dcs:
        return Dcs.of(self.access(next(iter(self.hosts.values()))))

    def view(self) -> view.View:
        return self.patroni().view()

    def healthy(self) -> bool:
        """Whether all members stream from one primary, on one timeline."""
        with suppress(Exception):
            seen = self.view()
            leader = seen.leader
            gaps = [leader is None or each.gap(leader) for each in seen.replicas]
            return len(seen.members) == len(self.hosts) and not any(gaps)
        return False

    def synchronous(self) -> bool:
        """Whether a replica confirms commits."""
        return any(each.role in view.SYNCHRONOUS for each in self.view().members)

    def complete(self) -> bool:
        """Whether the cluster is healthy and, with quorum commit, every replica may confirm a commit.

        Patroni admits replicas to the quorum one by one, also after its own restart. The loss of the only one stops
        commits until Patroni has replaced it.
        """
        with suppress(Exception):
            every = self.dynamic.get("synchronous_mode") == "quorum"
            confirm = all(each.role in view.SYNCHRONOUS for each in self.view().replicas)
            return self.healthy() and (confirm or not every)
        return False

    def leader(self) -> Host:
        """Return the member that Patroni calls the leader."""
        seen = self.view().leader
        assert seen is not None
        return self.hosts[seen.name]

    def replaced(self, old: Host) -> bool:
        """Return whether another member is the leader; during an election there is none."""
        seen = self.view().leader
        return seen is not None and seen.name != old.name

    def replicas(self) -> list[Host]:
        leader = self.leader()
        return [host for host in self.hosts.values() if host is not leader]

    def candidate(self) -> Host:
        """Wait for a replica that a switchover may promote: with synchronous mode on, the synchronous one. Return it.

        Patroni reports each replica's position once a loop, so that a replica lags for a moment after a WAL switch.
        """
        plan = next(iter(self.hosts.values())).plan
        found: list[Host] = []

        def there() -> bool:
            with suppress(HostError):
                found.append(self.hosts[view.candidate(self.view(), _cluster(plan)).name])
            return bool(found)

        self.until(there, 30, "no replica may become primary")
        return found[0]

    def writable(self, host: Host) -> bool:
        with suppress(psycopg.Error, OSError), self.superuser(host) as session:
            return session.execute("SELECT NOT pg_is_in_recovery()").fetchone() == (True,)
        return False

    def reaches(self, host: Host) -> bool:
        """Whether a member's pooler leads to a server that accepts writes."""
        return primary.writable(host.url(host.member.pooler_port))

    def until(self, true: Callable[[], bool], seconds: float, otherwise: str) -> float:
        """Wait until something is true; return the seconds. Fails with the ends of all logs."""
        begun = time.monotonic()
        assert until(true, seconds), f"{otherwise} after {seconds} s\n{self.logs()}"
        return time.monotonic() - begun

    def logs(self) -> str:
        """Return the ends of all logs."""
        found = sorted(self.root.glob("*/*.log"))
        return "\n".join(f"--- {path.parent.name}/{path.name}\n{path.read_text()[-1500:]}" for path in found)

    def stop(self) -> None:
        """Kill everything, and remove disks and control groups."""
        for host in self.hosts.values():
            host.kill_all()
            if os.path.ismount(host.disk):
                subprocess.run(["umount", "--lazy", str(host.disk)], check=False, capture_output=True)
            with suppress(OSError):
                host.group.rmdir()


@contextlib.contextmanager
def running(dynamic: dict[str, Any] | None = None, *, poolers: bool = True, archive: bool = False) -> Iterator[Members]:
    """Make a cluster, yield it, remove it."""
    root = Path(tempfile.mkdtemp(prefix="provision-members-", dir="/tmp"))  # a socket's path must be short
    root.chmod(0o755)
    members = None
    try:
        members = Members(root, dynamic, poolers=poolers, archive=archive)
        members.start()
        yield members
    finally:
        if members:
            members.stop()
        shutil.rmtree(root, ignore_errors=True)


def _cluster(plan: schema.Plan) -> Cluster:
    assert plan.cluster is not None
    return plan.cluster


@functools.cache
def _python() -> str:
    """Return an interpreter that the user postgres can start again: one below /root it cannot."""
    again = "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
    found = Path(sys.executable).resolve()
    done = subprocess.run(as_server_user(found, "-c", again), capture_output=True, check=False, cwd="/")
    return str(found) if done.returncode == 0 else "/usr/bin/python3"


@functools.cache
def _server_bin() -> Path:
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    assert installed, "no PostgreSQL server: apt-get install $(cat tests/apt.txt)"
    return installed[-1].parent


def _network() -> str:
    """Return a network of the loopback that no other test uses."""
    while True:
        found = f"127.{random.randint(1, 250)}.{random.randint(1, 250)}"
        with socket.socket() as probe, suppress(OSError):
            probe.bind((f"{found}.11", 0))
            return found


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _copy_packages(target: Path) -> None:
    """Copy what Patroni and `provision` import: the user postgres may not reach the repository."""
    target.mkdir()
    wanted, done = ["patroni", "python-etcd", "psycopg", "psycopg-binary", "cryptography"], set()
    while wanted:
        name = wanted.pop()
        if name in done:
            continue
        done.add(name)
        with suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.distribution(name)
            plain = [each for each in found.requires or () if "extra ==" not in each]
            wanted += [re.split(r"[^\w.-]", each)[0].lower() for each in plain]
            for path in found.files or ():
                if path.suffix != ".pyc" and not str(path).startswith(".."):
                    (target / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(str(path.locate()), target / path)
    shutil.copytree(ROOT / "provision", target / "provision", ignore=shutil.ignore_patterns("__pycache__"))
