"""Secrets of an inventory: made once, kept, judged, exchanged; read wherever Ansible reads them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.vault import VaultLib, VaultSecret
from click.testing import CliRunner

from provision.cli import root
from provision.cli.secrets import _unlimited
from provision.controller import varfiles
from provision.controller.vault import FILE, Vault, check, held, initialise, judge, plain_vaults, rotate, settle
from provision.errors import DriftError, UsageError
from tests import plans


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    (tmp_path / "prod").mkdir()
    (tmp_path / "prod/hosts.yml").write_text("all: {}\n")
    return tmp_path / "prod"


def test_makes_what_is_missing_and_never_again(inventory: Path) -> None:
    vault = Vault(inventory, "open sesame")
    assert "database_credentials.minion_app" in initialise(vault)
    before = vault.read()
    assert initialise(vault) == []
    assert vault.read() == before
    assert (inventory / FILE).stat().st_mode & 0o777 == 0o600
    text = (inventory / FILE).read_text()
    assert text.startswith("$ANSIBLE_VAULT;1.1;AES256")
    assert before["database_credentials"]["minion"]["password"] not in text
    check(vault)


def test_completes_an_older_vault_without_touching_the_rest(inventory: Path) -> None:
    vault = Vault(inventory, "x")
    vault.write({"mine": "kept", "database_credentials": {"minion": {"password": "p" * 30, "salt": "c2FsdA=="}}})
    made = initialise(vault)
    assert "database_credentials.minion" not in made
    assert vault.read()["mine"] == "kept"
    assert vault.read()["database_credentials"]["minion"]["password"] == "p" * 30


@pytest.mark.parametrize(
    ("secrets", "finding"),
    [
        ({}, "database_credentials.minion is missing"),
        (
            {"database_credentials": {"minion": {"password": "minion_secret"}}},
            "minion is the published development password",
        ),
        (
            {"database_credentials": {"minion": {"password": "short"}}},
            "minion has 5 characters, the minimum is 20",
        ),
        (
            {"tls_ca_passphrase": "s" * 24, "backup_repository_passphrase": "s" * 24},
            "tls_ca_passphrase is used twice",
        ),
    ],
)
def test_names_what_is_not_fit_for_production(secrets: dict[str, object], finding: str) -> None:
    assert any(finding in each for each in judge(secrets))


def test_check_names_everything_at_once(inventory: Path) -> None:
    vault = Vault(inventory, "x")
    vault.write({})
    with pytest.raises(DriftError) as error:
        check(vault)
    assert "database_credentials.minion_readonly is missing" in error.value.seen
    assert "tls_ca_passphrase is missing" in error.value.seen


def test_refuses_a_wrong_password_a_plain_file_and_a_missing_one(inventory: Path) -> None:
    with pytest.raises(UsageError, match="no vault"):
        Vault(inventory, "x").read()
    initialise(Vault(inventory, "x"))
    with pytest.raises(UsageError, match="cannot decrypt the vault") as refused:
        Vault(inventory, "y").read()
    assert refused.value.seen == "a wrong vault password, or a changed file"
    (inventory / FILE).write_text("database_credentials: {minion: {password: hunter2}}\n")
    with pytest.raises(UsageError, match="not encrypted as a whole"):
        initialise(Vault(inventory, "x"))
    assert plain_vaults([str(inventory), "/nowhere"]) == [str(inventory / FILE)]
    assert plain_vaults([str(inventory / "hosts.yml")]) == [str(inventory / FILE)]


PASSWORD = "correct horse"  # noqa: S105 - of the test
SALT = "c2FsdCBvZiBhIHRlc3QuLg=="


def inline(text: str, *, label: str | None = None, password: str = PASSWORD, indent: int = 12) -> str:
    sealed = VaultLib([("default", VaultSecret(password.encode()))]).encrypt(text, vault_id=label).decode()
    return "!vault |\n" + "".join(f"{' ' * indent}{line}\n" for line in sealed.splitlines())


def secrets_file(*, label: str | None = None, password: str = PASSWORD, plain: str = "") -> str:
    """Return a file with every secret as an inline value; the role `plain` has its password in clear text."""
    rows = []
    for role in ("minion", "minion_app", "minion_readonly"):
        text = f"{role} " + "p" * 24
        value = f"{text}\n" if role == plain else inline(text, label=label, password=password)
        rows.append(f"  {role}:\n    salt: {SALT}\n    password: {value}")
    ours = "".join(
        f"{name}: {inline(name + 'p' * 24, label=label, password=password)}"
        for name in ("backup_repository_passphrase", "tls_ca_passphrase", "cluster_passphrase")
    )
    return "database_credentials:\n" + "".join(rows) + ours


def put(inventory: Path, name: str, text: str) -> Path:
    path = inventory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


OTHER = ["group_vars/all/secrets.yml", "group_vars/all.yml", "group_vars/database.yml", "group_vars/all/more/s.yaml",
         "host_vars/db1.yml", "group_vars/all/vault.yml"]  # fmt: skip


@pytest.mark.parametrize("label", [None, "prod"])
@pytest.mark.parametrize("name", OTHER)
def test_inline_values_are_read_wherever_they_are(inventory: Path, name: str, label: str | None) -> None:
    path = put(inventory, name, secrets_file(label=label))
    before = path.read_bytes()
    vault = Vault(inventory, PASSWORD)
    check(vault)
    assert vault.everything()["database_credentials"]["minion"]["password"] == "minion " + "p" * 24
    assert initialise(vault) == []
    assert plain_vaults([str(inventory)]) == []
    assert path.read_bytes() == before
    assert name == str(FILE) or not (inventory / FILE).exists()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_files_with_any_line_ends_are_read(inventory: Path, newline: str) -> None:
    put(inventory, "group_vars/all/secrets.yml", secrets_file().replace("\n", newline))
    check(Vault(inventory, PASSWORD))


def test_inline_values_in_a_file_encrypted_as_a_whole_are_read(inventory: Path) -> None:
    whole = VaultLib([("default", VaultSecret(PASSWORD.encode()))]).encrypt(secrets_file(), vault_id="prod").decode()
    put(inventory, str(FILE), whole)
    vault = Vault(inventory, PASSWORD)
    check(vault)
    rotate(vault, "minion_app")
    settle(vault, "minion_app")
    assert (inventory / FILE).read_text().startswith("$ANSIBLE_VAULT;1.2;AES256;prod")
    check(vault)


def test_values_may_refer_to_other_variables(inventory: Path) -> None:
    roles = ("minion", "minion_app", "minion_readonly")
    put(inventory, "group_vars/all/main.yml", "database_credentials:\n" + "".join(
        f"  {role}: {{salt: {SALT}, password: '{{{{ vault_{role} }}}}'}}\n" for role in roles)
        + "tls_ca_passphrase: '{{ vault_tls }}'\nbackup_repository_passphrase: '{{ vault_tls }}x'\n")  # fmt: skip
    put(
        inventory,
        "group_vars/all/vault.yml",
        "".join(f"vault_{name}: {inline(name * 8)}" for name in (*roles, "tls-and-more")).replace(
            "tls-and-more:", "tls:"
        ),
    )
    check(Vault(inventory, PASSWORD))
    assert plain_vaults([str(inventory)]) == []


@pytest.mark.parametrize("name", ["group_vars/all/secrets.yml", "group_vars/database.yml"])
def test_missing_secret_of_another_file_is_named_and_no_second_set_is_made(inventory: Path, name: str) -> None:
    text = secrets_file().replace("  minion_app:", "  other:")
    path = put(inventory, name, text)
    vault = Vault(inventory, PASSWORD)
    with pytest.raises(UsageError, match=r"database_credentials\.minion_app is missing") as refused:
        initialise(vault)
    assert refused.value.where == str(path)
    assert not (inventory / FILE).exists()
    with pytest.raises(DriftError) as drift:
        check(vault)
    assert "database_credentials.minion_app is missing" in drift.value.seen
    assert str(path) in drift.value.run
    assert "secrets init" not in str(drift.value)
    with pytest.raises(UsageError, match="another file") as kept:
        rotate(vault, "minion")
    assert kept.value.where == str(path)
    assert kept.value.run.startswith(f"edit {path}; make inline values with ansible-vault encrypt_string --prompt")


def test_plan_names_the_file_of_the_credentials(inventory: Path) -> None:
    assert list(varfiles.credentials([str(inventory)])) == []
    path = put(inventory, "group_vars/database.yml", secrets_file())
    assert list(varfiles.credentials([str(inventory), "db1,"])) == [path]
    given = {"database_credentials": {}, "backup_allow_local_only": True}
    first, *_ = plans.built(given=given, credentials=str(path)).problems
    assert first == f"database_credentials has no entry for minion: set its password and its salt in {path} " + (
        "(ansible-vault edit, or encrypt_string for inline values)"
    )


def test_next_step_opens_the_file_as_it_is_encrypted(inventory: Path) -> None:
    library = VaultLib([("default", VaultSecret(PASSWORD.encode()))])
    text = secrets_file().replace("  minion_app:", "  other:")
    whole = put(inventory, "group_vars/all/whole.yml", library.encrypt(text).decode())
    with pytest.raises(DriftError) as drift:
        check(Vault(inventory, PASSWORD))
    assert drift.value.run == f"ansible-vault edit {whole}"
    whole.unlink()
    parts = put(inventory, "group_vars/all/parts.yml", text)
    with pytest.raises(UsageError) as refused:
        initialise(Vault(inventory, PASSWORD))
    assert refused.value.run.startswith(f"edit {parts}; make inline values with ansible-vault encrypt_string")
    with pytest.raises(UsageError) as refused:
        check(Vault(inventory, "another"))
    assert refused.value.run.startswith(f"provision secrets check {inventory} --vault-password-file FILE")


def test_passphrases_are_made_beside_credentials_of_another_file(inventory: Path) -> None:
    put(inventory, "group_vars/all/secrets.yml", secrets_file().partition("backup_repository_passphrase")[0])
    vault = Vault(inventory, PASSWORD)
    assert initialise(vault) == ["backup_repository_passphrase", "tls_ca_passphrase", "cluster_passphrase"]
    assert set(vault.read()) == {"backup_repository_passphrase", "tls_ca_passphrase", "cluster_passphrase"}
    check(vault)


def test_half_encrypted_file_is_named(inventory: Path) -> None:
    path = put(inventory, "group_vars/all/secrets.yml", secrets_file(plain="minion_app"))
    assert plain_vaults([str(inventory)]) == [str(path)]
    with pytest.raises(DriftError) as drift:
        check(Vault(inventory, PASSWORD))
    assert drift.value.seen == f"{path} has secrets in clear text"


@pytest.mark.parametrize("name", ["hosts.yml", "group_vars/all/main.yml", "host_vars/db1.yml"])
def test_password_in_clear_text_is_found_in_any_file(inventory: Path, name: str) -> None:
    path = put(inventory, name, "all:\n  vars:\n    tls_ca_passphrase: hunter2\n")
    assert plain_vaults([str(inventory)]) == [str(path)]


@pytest.mark.parametrize("name", ["group_vars/all/vault.yml", "group_vars/all/secrets.yml", "host_vars/db2.yml"])
def test_wrong_password_of_an_inline_value_is_named(inventory: Path, name: str) -> None:
    path = put(inventory, name, secrets_file(password="another"))  # noqa: S106 - of the test
    for action in (check, initialise):
        with pytest.raises(UsageError) as refused:
            action(Vault(inventory, PASSWORD))
        assert refused.value.where == str(path)
        assert refused.value.seen == "a wrong vault password, or a changed file"


def test_several_vault_files_count_together(inventory: Path) -> None:
    library = VaultLib([("default", VaultSecret(PASSWORD.encode()))])
    first, _, second = secrets_file().partition("tls_ca_passphrase")
    put(inventory, "group_vars/all/a.yml", library.encrypt(first).decode())
    put(inventory, "group_vars/database/vault.yml", library.encrypt("tls_ca_passphrase" + second).decode())
    check(Vault(inventory, PASSWORD))


def test_directory_that_ansible_does_not_read_is_named(inventory: Path) -> None:
    initialise(Vault(inventory, PASSWORD))
    lost = put(inventory, "group_vars/all/vault.d/more.yml", (inventory / FILE).read_text())
    with pytest.raises(DriftError) as drift:
        check(Vault(inventory, PASSWORD))
    assert drift.value.seen == f"{lost} is ignored by Ansible"


@pytest.mark.parametrize(
    ("text", "seen"),
    [("$ANSIBLE_VAULT;1.1;AES256\nnothex\n", "damaged: "), ("$ANSIBLE_VAULT;9\nx\n", "damaged"), ("a: [b\n", "YAML")],
)
def test_damaged_file_is_named(inventory: Path, text: str, seen: str) -> None:
    put(inventory, str(FILE), text)
    with pytest.raises(UsageError, match="cannot decrypt the vault") as refused:
        check(Vault(inventory, PASSWORD))
    assert seen in refused.value.seen


def credentials(vault: Vault) -> dict[str, dict[str, Any]]:
    return dict(vault.read()["database_credentials"])


def test_exchanges_one_password_and_leaves_the_others(inventory: Path) -> None:
    vault = Vault(inventory, "x")
    initialise(vault)
    before = credentials(vault)
    assert rotate(vault, "minion_app")
    both = credentials(vault)
    assert both["minion_app"]["previous"] == before["minion_app"]
    assert both["minion_app"]["password"] != before["minion_app"]["password"]
    with pytest.raises(DriftError, match="not suitable") as unfinished:
        check(vault)
    assert unfinished.value.seen == "the rotation of minion_app is unfinished"
    settle(vault, "minion_app")
    after = credentials(vault)
    assert set(after["minion_app"]) == {"password", "salt"}
    assert after["minion_app"]["password"] == both["minion_app"]["password"]
    assert after["minion"] == before["minion"]
    check(vault)
    with pytest.raises(UsageError, match="no such login role"):
        rotate(vault, "nobody")


def test_unfinished_rotation_is_continued_with_its_own_password(inventory: Path) -> None:
    vault = Vault(inventory, "x")
    initialise(vault)
    rotate(vault, "minion_app")
    begun = credentials(vault)
    assert not rotate(vault, "minion_app")
    assert credentials(vault) == begun


def test_unfinished_rotation_is_undone_and_keeps_both_passwords_meanwhile(inventory: Path) -> None:
    vault = Vault(inventory, "x")
    initialise(vault)
    before = credentials(vault)
    with pytest.raises(UsageError, match="no unfinished rotation"):
        rotate(vault, "minion_app", undo=True)
    rotate(vault, "minion_app")
    new = credentials(vault)["minion_app"]["password"]
    assert rotate(vault, "minion_app", undo=True)
    assert credentials(vault)["minion_app"]["password"] == before["minion_app"]["password"]
    assert credentials(vault)["minion_app"]["previous"]["password"] == new
    settle(vault, "minion_app")
    assert credentials(vault) == before


def test_second_login_is_created_for_known_roles_only(inventory: Path) -> None:
    vault = Vault(inventory, "x")
    initialise(vault)
    before = credentials(vault)
    rotate(vault, "minion_app_2")
    assert set(credentials(vault)["minion_app_2"]) == {"password", "salt"}
    assert credentials(vault)["minion_app"] == before["minion_app"]
    for role in ("other_2", "minion_app_3", "_2"):
        with pytest.raises(UsageError, match="no such login role"):
            rotate(vault, role)


def test_one_rotation_runs_at_a_time(inventory: Path) -> None:
    vault = Vault(inventory, "x")
    with held(vault), pytest.raises(UsageError, match="another command is changing the vault"), held(vault):
        pass
    with held(vault):
        pass


def test_init_waits_for_no_rotation_and_changes_nothing_during_one(inventory: Path) -> None:
    """Read before the rotation and written after it, the vault would lose the password that the server has accepted."""
    vault = Vault(inventory, "x")
    initialise(vault)
    with held(vault):
        rotate(vault, "minion_app")
        whole = (inventory / FILE).read_bytes()
        with pytest.raises(UsageError, match="another command is changing the vault"):
            initialise(Vault(inventory, "x"))
        assert (inventory / FILE).read_bytes() == whole


def test_parallel_inits_make_one_vault(inventory: Path, tmp_path: Path) -> None:
    """The secrets of the first may be on hosts before the second writes its own."""
    password = tmp_path / "password"
    password.write_text("x")
    words = [sys.executable, "-c", "from provision.cli import main; main()", "secrets", "init", str(inventory)]
    words += ["--vault-password-file", str(password)]
    runs = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [run.communicate() for run in runs]
    made = [out for out, _ in outputs if "created" in out]
    assert len(made) == 1, outputs
    assert all("no change" in out or "another command is changing" in err for out, err in outputs if out not in made)
    check(Vault(inventory, "x"))


def test_plan_accepts_and_reports_an_unfinished_rotation() -> None:
    secrets = {**plans.SECRETS["database_credentials"]}
    secrets["minion_app"] = {**secrets["minion_app"], "previous": secrets["minion"]}
    built = plans.built(given={**plans.SAMPLE, "database_credentials": secrets})
    assert built.problems == ()
    assert any("the rotation of minion_app is unfinished" in each for each in built.notices)
    secrets["minion_app"] = {**secrets["minion_app"], "previous": {"password": 5, "previous": {}}}
    built = plans.built(given={**plans.SAMPLE, "database_credentials": secrets})
    assert any("database_credentials.minion_app.previous.previous: unknown key" in each for each in built.problems)
    assert any("minion_app.previous.password is a secret of type int" in each for each in built.problems)


def test_plan_gives_a_second_login_a_pool_and_the_settings_of_the_first() -> None:
    secrets = {**plans.SECRETS["database_credentials"]}
    secrets["minion_app_2"] = {"password": "another secret of the test", "salt": plans.SALT}
    plan = plans.built(given={**plans.SAMPLE, "database_credentials": secrets}).plan
    assert plan is not None
    first, second = (next(each for each in plan.access.roles if each.name == name) for name in
                     ("minion_app", "minion_app_2"))  # fmt: skip
    assert second.kind == "second"
    assert second.settings == {**first.settings, "role": "minion_app"}
    assert second.has_password
    assert plan.pooler.pools["minion_app_2"] == plan.pooler.pools["minion_app"]


@pytest.mark.parametrize("limit", [("--limit", "db1"), ("--limit=db1",), ("-l", "db1"), ("-ldb1",), ("--lim", "db1")])
def test_limit_is_left_out_where_every_host_is_counted(limit: tuple[str, ...]) -> None:
    assert _unlimited(("-i", "more", *limit, "-v")) == ["-i", "more", "-v"]


REFUSED = ["--check", "--che", "-C", "-vC", "-DC", "--list-tasks", "--syntax-check", "--skip-tags=database", "-ttls",
           "--tags", "--start-at-task=x", "--step", "-edatabase_credentials={}"]  # fmt: skip


@pytest.mark.parametrize("option", REFUSED)
def test_refuses_to_exchange_a_password_by_a_run_that_changes_nothing(inventory: Path, option: str) -> None:
    initialise(Vault(inventory, "x"))
    before = (inventory / FILE).read_bytes()
    (inventory / "key").write_text("x")
    words = ["secrets", "rotate", str(inventory), "minion_app", "--vault-password-file", str(inventory / "key")]
    done = CliRunner().invoke(root, [*words, "--", "--diff", option])
    assert isinstance(done.exception, UsageError)
    assert done.exception.seen == option
    assert (inventory / FILE).read_bytes() == before


@pytest.mark.parametrize("options", [(), ("--limit", "db9"), ("--limit", "localhost")])
def test_refuses_to_exchange_a_password_that_no_host_would_get(inventory: Path, options: tuple[str, ...]) -> None:
    initialise(Vault(inventory, "x"))
    before = (inventory / FILE).read_bytes()
    (inventory / "key").write_text("x")
    words = ["secrets", "rotate", str(inventory), "minion_app", "--vault-password-file", str(inventory / "key")]
    done = CliRunner().invoke(root, [*words, "--", *options])
    assert isinstance(done.exception, UsageError)
    assert done.exception.what == "no database host matches"
    assert "--list-hosts" in done.exception.run
    assert (inventory / FILE).read_bytes() == before


def extra_roles(inventory: Path, text: str) -> None:
    (inventory / "group_vars/all").mkdir(parents=True, exist_ok=True)
    (inventory / "group_vars/all/roles.yml").write_text(text)


EXTRA = """
database_extra_roles:
  - {name: reporting, kind: read}
  - {name: "{{ prefix }}_jobs", kind: write}
  - {name: watcher, kind: monitor}
  - {name: former, kind: read, state: absent}
prefix: nightly
"""


def test_extra_roles_with_a_login_get_passwords_and_are_missed_without_one(inventory: Path) -> None:
    vault = Vault(inventory, "x")
    initialise(vault)
    extra_roles(inventory, EXTRA)
    with pytest.raises(DriftError) as error:
        check(vault)
    assert "database_credentials.reporting is missing" in error.value.seen
    assert "database_credentials.nightly_jobs is missing" in error.value.seen
    assert "watcher" not in error.value.seen
    assert "former" not in error.value.seen
    assert initialise(vault) == ["database_credentials.reporting", "database_credentials.nightly_jobs"]
    check(vault)
    assert initialise(vault) == []


def test_each_tenant_gets_the_passwords_of_its_three_roles(inventory: Path) -> None:
    vault = Vault(inventory, "x")
    initialise(vault)
    extra_roles(inventory, "database_tenants: [{name: acme}]\n")
    with pytest.raises(DriftError, match="secret") as error:
        check(vault)
    assert "database_credentials.acme_app is missing" in error.value.seen
    needed = ["database_credentials.acme", "database_credentials.acme_app", "database_credentials.acme_readonly"]
    assert initialise(vault) == needed
    check(vault)
    assert rotate(vault, "acme_app")


def test_rotate_creates_the_password_of_an_extra_role(inventory: Path) -> None:
    vault = Vault(inventory, "x")
    initialise(vault)
    extra_roles(inventory, EXTRA)
    assert rotate(vault, "reporting")
    assert set(vault.read()["database_credentials"]["reporting"]) == {"password", "salt"}
    with pytest.raises(UsageError, match="no such login role") as error:
        rotate(vault, "reportign")
    assert "reporting" in error.value.allowed


def test_roles_follow_the_owner_of_the_inventory(inventory: Path) -> None:
    extra_roles(inventory, "database_owner: shop\n")
    vault = Vault(inventory, "x")
    initialise(vault)
    assert list(vault.read()["database_credentials"]) == ["shop", "shop_app", "shop_readonly"]
    check(vault)


def test_init_asks_for_a_new_password_twice_and_for_a_known_one_once(
    inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANSIBLE_VAULT_PASSWORD_FILE", raising=False)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")

    def run(answers: str) -> str:
        return CliRunner().invoke(root, ["secrets", "init", str(inventory)], input=answers).output

    assert "do not match" in run("one\nother\nright\nright\n")
    assert "no change" in run("right\n")


def test_a_wrong_vault_password_is_called_one(inventory: Path) -> None:
    initialise(Vault(inventory, "right"))
    for attempt in (Vault(inventory, "wrong").read, Vault(inventory, "wrong").everything):
        with pytest.raises(UsageError) as error:
            attempt()
        assert "a wrong vault password" in error.value.seen
