"""The client of etcd against a real etcd with TLS, client certificates and passwords."""

from __future__ import annotations

import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from provision.errors import HostError
from provision.host.cluster import orders
from provision.host.cluster.dcs import Dcs, DcsError, RejectedError
from provision.host.dcs import admin
from provision.plan import schema
from tests.authority import Authority
from tests.clusters import free_port
from tests.plans import sample
from tests.until import until

PASSWORDS = {"root": "root of the test", "pooler": "pooler of the test"}


@dataclass
class Etcd:
    """One member, whose files are in a folder."""

    folder: Path
    client: int
    peer: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client}"

    def start(self) -> None:
        client, peer = f"https://{self.endpoint}", f"http://127.0.0.1:{self.peer}"
        options = {
            "data-dir": self.folder / "data", "listen-client-urls": client, "advertise-client-urls": client,
            "listen-peer-urls": peer, "initial-advertise-peer-urls": peer, "initial-cluster": f"default={peer}",
            "cert-file": self.folder / "own.crt", "key-file": self.folder / "own.key",
            "trusted-ca-file": self.folder / "ca.crt", "log-level": "error",
        }  # fmt: skip
        words = [f"--{name}={value}" for name, value in options.items()]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(["etcd", "--client-cert-auth", *words], stdout=log, stderr=log)
        assert until(lambda: self.ctl("endpoint", "health", check=False) == 0, 20), (self.folder / "log").read_text()

    def stop(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait(10)

    def ctl(self, *words: str, check: bool = True) -> int:
        files = [f"--cacert={self.folder}/ca.crt", f"--cert={self.folder}/own.crt", f"--key={self.folder}/own.key"]
        command = ["etcdctl", f"--endpoints=https://{self.endpoint}", *files, *words]
        done = subprocess.run(command, capture_output=True, check=check, env={**os.environ, "ETCDCTL_API": "3"})
        return done.returncode

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.folder / "ca.crt")
        context.load_cert_chain(self.folder / "own.crt", self.folder / "own.key")
        return context

    @property
    def plan(self) -> schema.Plan:
        """A plan whose only certificate is that of the test."""
        pair = schema.Certificate(
            "etcd-client", f"{self.folder}/own.crt", f"{self.folder}/own.key", "peer", "", (), False
        )
        return sample(tls={"enabled": True, "ca": f"{self.folder}/ca.crt", "certificates": (pair,)})

    def root(self) -> Dcs:
        return admin.client(self.plan, [self.endpoint], "root", PASSWORDS["root"])

    def dcs(self, *first: str, password: str = PASSWORDS["pooler"]) -> Dcs:
        return Dcs([*first, self.endpoint], self.context, "pooler", password, timeout_s=10)  # on a busy machine


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    found = Etcd(tmp_path_factory.mktemp("etcd"), free_port(), free_port())
    authority = Authority()
    (found.folder / "ca.crt").write_text(authority.text)
    authority.issue("127.0.0.1", common_name="", use="peer").write(found.folder, "own")
    try:
        found.start()
        bare = admin.client(found.plan, [found.endpoint])
        assert admin.healthy(found.plan, found.endpoint)
        assert not admin.protected(found.plan, [found.endpoint])
        bare.call("auth/user/add", {"name": "pooler", "password": "of a killed run"})
        bare.call("auth/role/add", {"name": "root"})
        admin.protect(bare, PASSWORDS, {"pooler": [("READWRITE", "/provision/")]})
        yield found
    finally:
        found.stop()


def test_reads_keys_and_prefixes_at_once(etcd: Etcd) -> None:
    dcs = etcd.dcs()
    dcs.put("/provision/a", "1")
    dcs.put("/provision/b/x", "ä")
    dcs.put("/provision/b/y", "")
    dcs.put("/provision/bc", "no child of b")
    found = dcs.read("/provision/a", "/provision/b/", "/provision/none")
    assert {key: value.text for key, value in found.items()} == {
        "/provision/a": "1", "/provision/b/x": "ä", "/provision/b/y": "",
    }  # fmt: skip
    dcs.delete("/provision/a")
    assert dcs.read("/provision/a") == {}


def test_replaces_only_the_version_that_was_read(etcd: Etcd) -> None:
    dcs = etcd.dcs()
    assert dcs.replace("/provision/once", "first", 0)
    assert not dcs.replace("/provision/once", "second", 0)
    revision = dcs.read("/provision/once")["/provision/once"].revision
    assert dcs.replace("/provision/once", "third", revision)
    assert dcs.read("/provision/once")["/provision/once"].text == "third"


def test_lease_deletes_its_keys(etcd: Etcd) -> None:
    dcs = etcd.dcs()
    lease = dcs.lease(2)
    dcs.put("/provision/leased", "x", lease)
    for _ in range(3):
        time.sleep(1)
        assert dcs.keep_alive(lease)
    assert dcs.read("/provision/leased")["/provision/leased"].lease == lease
    dcs.revoke(lease)
    assert dcs.read("/provision/leased") == {}
    assert not dcs.keep_alive(lease)
    dcs.put("/provision/leased", "x", dcs.lease(2))
    assert until(lambda: not dcs.read("/provision/leased"), 10)


def test_authenticates_again_after_a_restart_of_etcd(etcd: Etcd) -> None:
    dcs = etcd.dcs()
    dcs.put("/provision/kept", "x")
    etcd.stop()
    with pytest.raises(DcsError, match="etcd does not answer"):
        dcs.read("/provision/kept")
    etcd.start()
    assert dcs.read("/provision/kept")["/provision/kept"].text == "x"


def test_tries_the_next_member(etcd: Etcd) -> None:
    dcs = etcd.dcs(f"127.0.0.1:{free_port()}")
    dcs.put("/provision/next", "x")
    assert dcs.read("/provision/next")


def test_wrong_password_and_missing_rights_are_refused_in_words(etcd: Etcd) -> None:
    with pytest.raises(DcsError) as refused:
        etcd.dcs(password="wrong").read("/provision/a")  # noqa: S106
    assert "authentication failed" in refused.value.seen
    assert "wrong" not in str(refused.value)
    with pytest.raises(DcsError) as denied:
        etcd.dcs().put("/service/minion/leader", "db1")
    assert "permission denied" in denied.value.seen


def test_no_certificate_no_answer(etcd: Etcd) -> None:
    bare = Dcs(
        [etcd.endpoint],
        lambda: ssl.create_default_context(cafile=etcd.folder / "ca.crt"),
        "pooler",
        PASSWORDS["pooler"],
    )
    with pytest.raises(DcsError, match="etcd does not answer"):
        bare.read("/provision/a")


def test_one_order_at_a_time_and_its_end_resumes(etcd: Etcd) -> None:
    dcs, other = etcd.dcs(), etcd.dcs()
    with orders.Held(dcs, "minion", "db1", "db2", 30) as held:
        assert orders.order_of(other.read(orders.order_key("minion")), "minion") == held.order
        with pytest.raises(HostError, match="another switchover or restart"), orders.Held(other, "minion", "b", "c", 3):
            pass
        held.say(orders.PAUSE)
        other.put(orders.report_key("minion", "db3"), orders.Report("db3", "db1", held.order.id, "resumed").text)
        assert held.reports()["db3"].state == "resumed"
    assert orders.order_of(other.read(orders.order_key("minion")), "minion") is None


def test_authentication_hides_users_and_counts_as_healthy(etcd: Etcd) -> None:
    assert admin.protected(etcd.plan, [etcd.endpoint])
    assert admin.healthy(etcd.plan, etcd.endpoint)
    nowhere = f"127.0.0.1:{free_port()}"
    assert not admin.healthy(etcd.plan, nowhere)
    with pytest.raises(DcsError, match="etcd does not answer"):
        admin.protected(etcd.plan, [nowhere])
    with pytest.raises(RejectedError):
        etcd.dcs().call("auth/user/list", {})
    assert etcd.root().call("auth/user/list", {})["users"] == ["pooler", "root"]


def test_changes_a_password(etcd: Etcd) -> None:
    changed = "another one"
    etcd.root().call("auth/user/changepw", {"name": "pooler", "password": changed})
    with pytest.raises(RejectedError, match="rejected"):
        etcd.dcs().read("/provision/a")
    etcd.dcs(password=changed).read("/provision/a")
    etcd.root().call("auth/user/changepw", {"name": "pooler", "password": PASSWORDS["pooler"]})
    etcd.dcs().read("/provision/a")


def test_snapshot_is_one_that_etcdctl_restores(etcd: Etcd, tmp_path: Path) -> None:
    etcd.dcs().put("/provision/large", "x" * 300_000)  # several parts
    path = tmp_path / "snapshot.db"
    with path.open("wb") as stream:
        etcd.root().snapshot(stream.write)
    assert path.stat().st_size > 300_000
    restore = ["etcdctl", "snapshot", "restore", str(path), "--data-dir", str(tmp_path / "restored")]
    done = subprocess.run(
        restore, capture_output=True, text=True, check=False, env={**os.environ, "ETCDCTL_API": "3"}
    )  # refuses a file with another checksum
    assert done.returncode == 0, done.stderr
    with pytest.raises(RejectedError):
        etcd.dcs().snapshot(lambda _part: None)


def test_members_and_status_have_the_fields_that_a_restart_reads(etcd: Etcd) -> None:
    root = etcd.root()
    (member,) = admin.members(root)
    assert (member["name"], member["peerURLs"]) == ("default", [f"http://127.0.0.1:{etcd.peer}"])
    status = root.call("maintenance/status", {})
    assert status["leader"] == status["header"]["member_id"] == member["ID"]
    assert int(status["dbSize"]) > 0
    assert root.call("maintenance/alarm", {"action": "GET"}).get("alarms", []) == []
    root.call("maintenance/defragment", {})


def test_lock_has_one_holder_and_ends_with_its_block(etcd: Etcd) -> None:
    key = "/provision/etcd-restart"
    with admin.lock(etcd.root(), key, "db1"):
        assert etcd.root().read(key)[key].text == "db1"
        assert not etcd.root().replace(key, "db2", 0)
    with admin.lock(etcd.root(), key, "db2"):
        assert etcd.root().read(key)[key].text == "db2"
    assert etcd.root().read(key) == {}


def test_user_that_is_admitted_later_has_its_rights_and_no_others(etcd: Etcd) -> None:
    rights = [("READ", "/service/one/leader"), ("READWRITE", "/provision/one/poolers/")]
    for password in ("the first", "the second"):  # again with another password, as after a killed run
        admin.admit(etcd.root(), "follower", password, rights)
    etcd.root().put("/service/one/leader", "db1")
    dcs = Dcs([etcd.endpoint], etcd.context, "follower", "the second", timeout_s=10)
    dcs.put("/provision/one/poolers/app1", "its report")
    found = dcs.read("/service/one/leader", "/provision/one/poolers/")
    assert [each.text for each in found.values()] == ["db1", "its report"]
    for key in ("/service/one/", "/service/one/config", "/provision/one/", "/provision/two/poolers/"):
        with pytest.raises(RejectedError):
            dcs.read(key)
    for key in ("/service/one/leader", "/provision/one/order"):
        with pytest.raises(RejectedError):
            dcs.put(key, "forged")
    with pytest.raises(DcsError):
        Dcs([etcd.endpoint], etcd.context, "follower", "the first", timeout_s=10).read("/service/one/leader")


def test_user_that_three_members_admit_at_once_is_made_once(etcd: Etcd) -> None:
    rights = [("READ", "/service/two/leader"), ("READWRITE", "/provision/two/poolers/")]
    clients = [etcd.root() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda root: admin.admit(root, "together", "of all three", rights), clients))
    dcs = Dcs([etcd.endpoint], etcd.context, "together", "of all three", timeout_s=10)
    assert dcs.read("/service/two/leader", "/provision/two/poolers/") == {}
