"""The vault of an inventory: made once, kept, judged, exchanged, and opened by nobody else."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from provision.cli import root
from provision.controller.vault import FILE, Vault, check, initialise, judge, plain_vaults, rotate
from provision.errors import DriftError, UsageError


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
    with pytest.raises(UsageError, match="cannot decrypt the vault"):
        Vault(inventory, "y").read()
    (inventory / FILE).write_text("database_credentials: {}\n")
    with pytest.raises(UsageError, match="not encrypted"):
        Vault(inventory, "x").read()
    assert plain_vaults([str(inventory), "/nowhere"]) == [str(inventory / FILE)]


def test_exchanges_one_password_and_leaves_the_others(inventory: Path) -> None:
    vault = Vault(inventory, "x")
    initialise(vault)
    before = rotate(vault, "minion_app")
    after = vault.read()["database_credentials"]
    assert after["minion_app"] != before["database_credentials"]["minion_app"]
    assert after["minion"] == before["database_credentials"]["minion"]
    with pytest.raises(UsageError, match="no such login role"):
        rotate(vault, "nobody")


@pytest.mark.parametrize("option", ["--check", "--che", "-C", "-vC", "-DC", "--list-tasks", "--syntax-check"])
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
