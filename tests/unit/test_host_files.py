"""The module host_files with real files: sets, checks, roll-back, manifests and directories."""

from __future__ import annotations

import grp
import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

from plugins.module_utils import file_set
from plugins.modules import host_files

USER = pwd.getpwuid(os.geteuid()).pw_name
GROUP = grp.getgrgid(os.getegid()).gr_name


class Host:
    """A folder that stands for a host; `run` calls the module as Ansible does and gives what it prints."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys

    def file(self, name: str, content: str, **more: Any) -> dict[str, Any]:
        return {"path": str(self.root / name), "content": content, "owner": USER, "group": GROUP, **more}

    def directory(self, name: str, mode: str) -> dict[str, Any]:
        return {"path": str(self.root / name), "owner": USER, "group": GROUP, "mode": mode}

    def run(self, check_mode: bool = False, **options: Any) -> dict[str, Any]:
        given = {"name": "set", "_ansible_check_mode": check_mode, "_ansible_remote_tmp": str(self.root), **options}
        with patch_module_args(given), pytest.raises(SystemExit):
            host_files.main()
        result: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return result


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Host]:
    monkeypatch.setattr(host_files, "MANIFESTS", tmp_path / "etc/provision/files.d")
    # The manifest belongs to whoever runs the module, which on a host is root.
    monkeypatch.setattr(file_set.State.__init__, "__defaults__", (USER, GROUP, 0o644))
    umask = os.umask(0o027)
    yield Host(tmp_path, capsys)
    os.umask(umask)


def mode(path: Path) -> str:
    return f"{path.stat().st_mode & 0o7777:04o}"


def test_places_files_with_their_modes_and_a_second_run_changes_nothing(host: Host) -> None:
    files = [host.file("a/one", "1", mode="0640"), host.file("a/two", "2")]
    first = host.run(files=files)
    assert first["changed"]
    assert first["changed_paths"] == [str(host.root / "a/one"), str(host.root / "a/two")]
    assert (host.root / "a/one").read_text() == "1"
    assert [mode(host.root / name) for name in ("a/one", "a/two")] == ["0640", "0644"]
    manifest = host.root / "etc/provision/files.d/set.json"
    written = manifest.stat().st_mtime_ns
    second = host.run(files=files)
    assert not second["changed"]
    assert second["changed_paths"] == []
    assert manifest.stat().st_mtime_ns == written


def test_directories_of_a_hardened_host_stay_open_to_their_users(host: Host) -> None:
    made = host.run(directories=[host.directory("lib/data/own", "0770")], files=[host.file("etc/our/x", "1")])
    assert made["changed_paths"] == [str(host.root / "lib/data/own"), str(host.root / "etc/our/x")]
    assert mode(host.root / "lib/data/own") == "0770"
    parents = ("lib", "lib/data", "etc", "etc/our", "etc/provision", "etc/provision/files.d")
    assert [mode(host.root / name) for name in parents] == ["0755"] * 6


def test_opens_our_directories_that_an_earlier_run_closed(host: Host) -> None:
    files = [
        host.file("etc/provision/tls/x", "1"),
        host.file("etc/other/x", "1"),
        host.file("usr/provision/own/x", "1"),
    ]
    own = [host.directory("usr/provision/own", "0750")]
    host.run(files=files, directories=own)
    for name in ("etc/provision", "etc/provision/tls", "etc/other", "usr/provision"):
        (host.root / name).chmod(0o750)
    assert host.run(check_mode=True, files=files, directories=own)["changed"]
    fixed = host.run(files=files, directories=own)
    assert fixed["changed_paths"] == [str(host.root / f"{name}") for name in
                                      ("etc/provision", "etc/provision/tls", "usr/provision")]  # fmt: skip
    names = ("etc/provision", "etc/provision/tls", "usr/provision", "usr/provision/own", "etc/other")
    assert [mode(host.root / name) for name in names] == ["0755", "0755", "0755", "0750", "0750"]
    assert not host.run(files=files, directories=own)["changed"]


def test_corrects_the_mode_of_a_directory(host: Host) -> None:
    (host.root / "own").mkdir(mode=0o700)
    wanted = host.directory("own", "0775")
    assert host.run(check_mode=True, directories=[wanted])["changed"]
    assert mode(host.root / "own") == "0700"
    assert host.run(directories=[wanted])["diff"][0]["after"] == f"# {USER}:{GROUP} 0775\n"
    assert mode(host.root / "own") == "0775"
    assert not host.run(directories=[wanted])["changed"]


def test_refuses_a_file_in_the_place_of_a_directory(host: Host) -> None:
    (host.root / "own").write_text("a file")
    failed = host.run(directories=[host.directory("own", "0755")], files=[host.file("x", "1")])
    assert failed["msg"] == (
        f"{host.root / 'own'} is a file, not a directory: move it away; nothing of this set was changed"
    )
    assert not (host.root / "x").exists()


def test_refuses_a_link_in_the_place_of_a_file(host: Host) -> None:
    (host.root / "x").symlink_to("/etc/passwd")
    failed = host.run(files=[host.file("x", "1")])
    assert "is a link, a directory or a device, not a plain file: move it away" in failed["msg"]


def test_restores_every_file_when_a_check_refuses_them(host: Host) -> None:
    host.run(files=[host.file("one", "old")])
    files = [host.file("one", "new"), host.file("two", "new")]
    failed = host.run(files=files, check=[["sh", "-c", "echo no good >&2; exit 1"]])
    assert failed["msg"] == "refused by sh: no good"
    assert failed["said"] == "no good"
    assert failed["restored"] == [str(host.root / "one"), str(host.root / "two")]
    assert (host.root / "one").read_text() == "old"
    assert not (host.root / "two").exists()


def test_check_sees_the_new_files(host: Host) -> None:
    done = host.run(files=[host.file("x", "new")], check=[["grep", "new", str(host.root / "x")]])
    assert done["changed"]


def test_undoes_a_run_that_was_killed(host: Host) -> None:
    host.run(files=[host.file("x", "old")])
    journal = host.root / "etc/provision/files.d/.set.journal"
    file_set.begin(journal, {host.root / "x": file_set.State.read(host.root / "x")})
    (host.root / "x").write_text("half")
    done = host.run(files=[host.file("x", "old")])
    assert not done["changed"]
    assert (host.root / "x").read_text() == "old"
    assert not journal.exists()


def test_removes_files_that_the_set_no_longer_lists(host: Host) -> None:
    host.run(files=[host.file("x", "1"), host.file("y", "1")])
    assert host.run(files=[host.file("y", "1")])["changed_paths"] == [str(host.root / "x")]
    assert not (host.root / "x").exists()


def test_without_files_the_set_stays_as_it_is(host: Host) -> None:
    host.run(files=[host.file("x", "1")])
    assert not host.run(directories=[])["changed"]
    assert (host.root / "x").exists()
    assert host.run(files=[])["changed_paths"] == [str(host.root / "x")]


def test_check_mode_writes_nothing_and_needs_no_users(host: Host) -> None:
    files = [host.file("x", "1", owner="not-made-yet")]
    directories = [{"path": str(host.root / "own"), "owner": "not-made-yet"}]
    seen = host.run(check_mode=True, files=files, directories=directories)
    assert seen["changed_paths"] == [str(host.root / "own"), str(host.root / "x")]
    assert list(host.root.iterdir()) == []


def test_check_mode_leaves_a_damaged_manifest_in_place(host: Host) -> None:
    manifest = host.root / "etc/provision/files.d/set.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{")
    assert host.run(check_mode=True, files=[host.file("x", "1")])["changed_paths"] == [str(host.root / "x")]
    assert manifest.read_text() == "{"
    host.run(files=[host.file("x", "1")])
    assert manifest.with_suffix(".damaged").read_text() == "{"


def test_kill_after_a_replaced_manifest_was_removed_leaves_no_file_behind(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.run(name="older", files=[host.file("x", "1")])

    def killed(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok=missing_ok)
        if self.name == "older.json":
            raise KeyboardInterrupt

    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        host.run(files=[host.file("y", "1")], replaces=["older"])
    monkeypatch.setattr(Path, "unlink", unlink)
    assert not host.run(files=[host.file("y", "1")], replaces=["older"])["changed"]
    assert not (host.root / "x").exists()


def test_unknown_owner_of_a_directory_changes_no_file(host: Host) -> None:
    directories = [{"path": str(host.root / "own"), "owner": "not-made-yet"}]
    failed = host.run(files=[host.file("x", "1")], directories=directories)
    assert failed["msg"].startswith(f"cannot create {host.root / 'own'}: ")
    assert not (host.root / "x").exists()
    assert not (host.root / "own").exists()


def test_text_of_a_secret_file_is_not_in_the_result(host: Host) -> None:
    shown = json.dumps(host.run(files=[host.file("x", "hunter22", secret=True)]))
    assert "hunter22" not in shown
    assert "(secret)" in shown


def test_package_source_is_read_and_restored_when_it_fails(host: Host) -> None:
    sources = host.file("x.sources", f"Types: deb\nURIs: file:{host.root}/none\nSuites: no\nComponents: main\n")
    config = host.file(
        "apt.conf",
        f'Dir::Etc::SourceList "{host.root}/x.sources";\nDir::Etc::SourceParts "/dev/null";\n'
        f'Dir::State::Lists "{host.root}/lists";\n',
    )
    source = {"component": "main", "config_file": config["path"], "lists": str(host.root / "lists")}
    failed = host.run(files=[sources, config], apt_source=source)
    assert failed["msg"] == f"cannot read the package source: {failed['said']}"
    assert "does not have a Release file" in failed["said"]
    assert not (host.root / "x.sources").exists()


def test_documentation_states_the_arguments() -> None:
    def options(documented: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {
                **{key: row[key] for key in ("type", "required", "default", "choices", "elements") if key in row},
                **({"options": options(row["suboptions"])} if "suboptions" in row else {}),
            }
            for name, row in documented.items()
        }

    def without_no_log(specified: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {key: without_no_log(value) if key == "options" else value for key, value in row.items()
                   if key != "no_log"}
            for name, row in specified.items()
        }  # fmt: skip

    documented = options(yaml.safe_load(host_files.DOCUMENTATION)["options"])
    assert documented == without_no_log(host_files.arguments())
