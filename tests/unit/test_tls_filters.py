"""What the role tls asks of the controller: where the authority is, whom hosts trust, and whether a key is kept."""

from __future__ import annotations

from pathlib import Path

from plugins.filter.provision import (
    provision_issued,
    provision_provided_problems,
    provision_role_options,
    provision_tls_directory,
    provision_trust,
)


def test_the_authority_is_beside_the_hosts_of_the_first_inventory_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "prod").mkdir()
    hosts = tmp_path / "other" / "hosts.yml"
    hosts.parent.mkdir()
    hosts.touch()
    assert provision_tls_directory([str(tmp_path / "prod"), str(hosts)], "/p", "prod") == f"{tmp_path}/prod/tls"
    assert provision_tls_directory([str(hosts), str(tmp_path / "prod")], "/p", "prod") == f"{tmp_path}/other/tls"
    assert provision_tls_directory(["db1,"], "/p", "dev") == "/p/inventories/dev/tls"


def test_trust_is_joined_line_by_line_and_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("A")
    (tmp_path / "b").write_text("B\n\n")
    assert provision_trust([str(tmp_path / "a"), "", str(tmp_path / "none"), str(tmp_path / "b")]) == "A\nB\n"


def test_files_of_ones_own_are_named_when_they_are_missing_or_a_key_is_not_kept(tmp_path: Path) -> None:
    key, certificate = tmp_path / "a.key", tmp_path / "a.crt"
    key.touch(0o640)
    certificate.touch(0o644)
    key.chmod(0o640)
    assert provision_provided_problems({"certificate": str(certificate), "key": str(key), "ca": "/none/ca.crt"}) == [
        f"tls_provided_key {key}: mode 0640 lets others at the key: allowed is 0600",
        "tls_provided_ca /none/ca.crt: No such file or directory",
    ]
    key.chmod(0o600)
    assert provision_provided_problems({"certificate": str(certificate), "key": str(key)}) == []


def test_a_plan_has_no_key_and_no_certificate() -> None:
    assert provision_issued(["server"], [], []) == {
        "server": {"key": "a key\n", "certificate": "made by the run\n"},
    }
    made = provision_issued(["server"], [{"privatekey": "K"}], [{"certificate": "C"}])
    assert made == {"server": {"key": "K", "certificate": "C"}}


def test_no_type_is_checked_of_an_expression_that_a_play_does_not_evaluate(tmp_path: Path) -> None:
    spec = tmp_path / "some/meta/argument_specs.yml"
    spec.parent.mkdir(parents=True)
    spec.write_text(
        "argument_specs: {main: {options: {some_count: {type: int, default: '{{ 1 + 1 }}'},"
        " some_name: {type: str, default: x}}}}"
    )
    assert provision_role_options(str(tmp_path)) == {
        "some": {"some_count": {"type": "int"}, "some_name": {"type": "str", "default": "x"}}
    }
