#!/usr/bin/python
"""Place a set of files on a host as one step: all of them, checked by the program that reads them, or none.

Runs on the host with the standard library alone. For each set it keeps a manifest (path, owner, mode, SHA-256) in
/etc/provision/files.d, from which `provision doctor` tells later which file was changed by hand, and a journal while
it works, from which the next run undoes a run that was killed half-way.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import apt_source, command, file_set, lock, units
from ..module_utils.file_set import State
from ..module_utils.quoting import visible

DOCUMENTATION = r"""
module: host_files
short_description: Place a set of files, check them as a whole, and run the units that read them
description:
  - Creates O(directories), writes each of O(files) atomically, then runs O(check) and reads O(apt_source). If either
    fails, all files are restored.
  - Then starts, restarts or stops O(units) as their state in systemd requires, so that a run completes a killed one.
  - Check mode writes nothing and accepts missing users, groups, directories and units.
options:
  name:
    description: Name of the set. Its manifest is C(/etc/provision/files.d/NAME.json).
    required: true
    type: str
  directories:
    description: >-
      Directories to create or correct before the files. Missing parents belong to root, with mode 0755. Directories of
      this project that earlier runs created under a stricter umask are corrected to the same.
    default: []
    type: list
    elements: dict
    suboptions:
      path: {description: Absolute path., required: true, type: path}
      owner: {description: User name., default: root, type: str}
      group: {description: Group name., default: root, type: str}
      mode: {description: Octal mode in quotes., default: "0755", type: str}
  files:
    description:
      - The files of the set. Files of the previous run that are no longer listed are removed.
      - Without this option the files of the set stay as they are.
    type: list
    elements: dict
    suboptions:
      path: {description: Absolute path., required: true, type: path}
      content: {description: "The whole text, unless O(files[].template) gives it.", default: "", type: str}
      template: {description: Name of a template of the role that the action plugin renders., default: "", type: str}
      variables: {description: Variables of this template alone., default: {}, type: dict}
      owner: {description: User name., default: root, type: str}
      group: {description: Group name., default: root, type: str}
      mode: {description: Octal mode in quotes., default: "0644", type: str}
      secret: {description: Leave the text out of the diff., default: false, type: bool}
      tracked: {description: List the file in the manifest (not if the host updates it)., default: true, type: bool}
  replaces:
    description: Older sets that this one replaces. Their manifests are removed.
    default: []
    type: list
    elements: str
  check:
    description: Commands (lists of arguments) that must succeed with the new files in place. Run if a file changed.
    default: []
    type: list
    elements: list
  apt_source:
    description: An apt source that must be readable with the new files in place. It is read if a file changed.
    type: dict
    suboptions:
      file: {description: Its file in C(/etc/apt/sources.list.d)., default: "", type: str}
      component: {description: The component that its suite must have., required: true, type: str}
      config_file: {description: An apt configuration that names the source instead., default: "", type: str}
      lists: {description: The directory of package lists of that configuration., default: "", type: str}
  units:
    description: systemd units. Units to stop are stopped before the files change; the others are started afterwards.
    default: []
    type: list
    elements: dict
    suboptions:
      name: {description: Name of the unit with its suffix., required: true, type: str}
      state:
        description: V(ignored) never starts or stops the unit, but restarts it for O(units[].reload_files) if it runs.
        choices: [started, stopped, ignored]
        default: started
        type: str
      enabled:
        description: Whether the unit starts at boot. The default follows O(units[].state), V(ignored) leaves it alone.
        type: bool
      reload_files:
        description: Files that the unit reads when it starts. It is restarted if one of them is newer.
        default: []
        type: list
        elements: path
      restart:
        description: Allow that restart. If false, the unit is returned in RV(pending_units).
        default: true
        type: bool
      listens: {description: TCP port on which the unit itself must listen within 5 s., type: int}
      only_if: {description: Leave the unit alone unless this file exists., default: "", type: str}
      creates: {description: Start a oneshot unit only if this file is missing or empty., default: "", type: str}
  apply:
    description:
      - A command that applies the files to the service, as for M(minion.provision.host_command). It always runs, last,
        and must itself determine what the service needs.
      - Its JSON object is returned as RV(applied).
    type: dict
    suboptions:
      argv: {description: The command and its arguments., required: true, type: list, elements: str}
      check_argv: {description: The command for check mode., default: [], type: list, elements: str}
      check_says: {description: Change to report in check mode without a command., default: "", type: str}
      stdin: {description: "Standard input, for secrets.", type: raw, no_log: true}
      pending_rc: {description: Exit codes of check mode for "would change"., default: [], type: list, elements: int}
  run:
    description: Identity of the run, which must still have the host lock (set by the action plugin).
    type: dict
    default: {}
author: The provision developers
"""

EXAMPLES = r"""
- name: Place the server's settings
  minion.provision.host_files:
    name: postgresql
    files:
      - path: /etc/postgresql/17/main/conf.d/50-provision.conf
        template: 50-provision.conf.j2
        owner: postgres
        group: postgres
        mode: "0640"
    check: [[runuser, -u, postgres, --, /usr/lib/postgresql/17/bin/postgres, -C, port, -D, /etc/postgresql/17/main]]

- name: Place and run the node exporter
  minion.provision.host_files:
    name: monitoring
    files:
      - path: /etc/systemd/system/prometheus-node-exporter.service.d/50-provision.conf
        template: prometheus-node-exporter.conf.j2
    units:
      - name: prometheus-node-exporter.service
        reload_files: [/etc/systemd/system/prometheus-node-exporter.service.d/50-provision.conf]
        listens: 9100
"""

RETURN = r"""
applied: {description: Output of the command in O(apply)., returned: if it ran, type: dict}
changed_paths: {description: Files and directories that were written or removed., returned: always, type: list}
changed_units: {description: Units that were started, restarted or stopped., returned: always, type: list}
pending_units: {description: Running units that have not read their current files., returned: always, type: list}
said: {description: Output of the program that rejected the files., returned: when a check fails, type: str}
"""

MANIFESTS = Path("/etc/provision/files.d")


class Module(AnsibleModule):
    """A module that does not write its files' contents into the host's log."""

    def _log_invocation(self) -> None:
        """Log the paths alone: Ansible logs every argument before it knows which of them is a secret."""
        self.log(f"places {self.params['name']}: {', '.join(row['path'] for row in self.params['files'] or [])}")

    def fail_json(self, msg: str, **more: Any) -> NoReturn:
        """End with a printable message: it may hold the last lines of a service, whose clients chose words in them."""
        super().fail_json(msg=visible(msg, lines=True), **more)
        raise AssertionError  # not reached


class Set:
    """The set of one call: what is requested, what is on disk, and the paths that differ."""

    def __init__(self, module: AnsibleModule) -> None:
        """Read the disk. Raises OSError for a path that is not ours to replace."""
        given = module.params
        self.module = module
        self.manifest, self.journal = MANIFESTS / f"{given['name']}.json", MANIFESTS / f".{given['name']}.journal"
        if not module.check_mode and (failed := file_set.roll_back(self.journal)):
            module.fail_json(msg=f"cannot restore files of a run that was killed: {'; '.join(failed)}")
        rows = given["files"]
        self.requested = {
            Path(row["path"]): State(row["content"].encode(), row["owner"], row["group"], int(row["mode"], 8))
            for row in rows or []
        }
        self.secret = {Path(row["path"]) for row in rows or [] if row["secret"]}
        self.replaced = [path for name in given["replaces"] if (path := MANIFESTS / f"{name}.json").exists()]
        manifests = [self.manifest, *self.replaced] if rows is not None else []
        rename = not module.check_mode
        listed = [row for path in manifests for row in file_set.read_json(path, rename=rename).get("files", [])]
        self.target = {**{Path(row["path"]): State(None) for row in listed}, **self.requested}
        self.before = {path: State.read(path) for path in self.target}
        self.changed = [path for path, state in self.target.items() if not state.same(self.before[path])]
        self.directories = {
            Path(row["path"]): State(b"", row["owner"], row["group"], int(row["mode"], 8))
            for row in given["directories"]
        }
        self.directories = {**file_set.closed_parents(self.requested), **self.directories}
        self.found = {path: file_set.read_directory(path) for path in self.directories}
        self.wrong = [path for path, state in self.directories.items() if not state.same(self.found[path])]

    def result(self) -> dict[str, Any]:
        """Return what differs, as Ansible shows it."""
        changed = [*self.wrong, *self.changed]
        before, after = {**self.found, **self.before}, {**self.directories, **self.target}
        return {
            "changed": bool(changed),
            "changed_paths": [str(path) for path in changed],
            "changed_units": [],
            "pending_units": [],
            "diff": [file_set.difference(path, before[path], after[path], path in self.secret) for path in changed],
        }

    def place(self) -> None:
        """Make the directories, write the files and check them; restore every file where one of the steps fails."""
        path = None
        try:
            for path in self.wrong:
                file_set.make_directory(path, self.directories[path])
        except (OSError, KeyError) as error:
            self.module.fail_json(msg=f"cannot create {path}: {error}; no file of this set was changed")
        if self.changed:
            file_set.begin(self.journal, {path: self.before[path] for path in self.changed})
            try:
                for path in self.changed:
                    self.target[path].write(path)
            except (OSError, KeyError) as error:
                self._refuse(f"cannot place {path}: {error}; every file of this set was restored")
            self._check()
        self._keep()

    def _check(self) -> None:
        for words in self.module.params["check"]:
            done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode != 0:
                said = (done.stderr or done.stdout).strip()
                self._refuse(f"refused by {words[0]}: {said}", said=said, command=" ".join(words))
        source = self.module.params["apt_source"]
        if source and (said := apt_source.fault(**source)):
            self._refuse(f"cannot read the package source: {said}", said=said)

    def _refuse(self, text: str, **more: str) -> None:
        restored = [str(path) for path in self.changed]
        if failed := file_set.roll_back(self.journal):
            text += f"; cannot restore {'; '.join(failed)}"
        self.module.fail_json(msg=text, restored=restored, **more)

    def _keep(self) -> None:
        # The journal first: with the manifests of replaced sets gone, a rollback would restore files that no set lists.
        self.journal.unlink(missing_ok=True)
        rows = self.module.params["files"]
        if rows is not None:
            tracked = {path: self.requested[path] for path in (Path(row["path"]) for row in rows if row["tracked"])}
            kept = State(file_set.manifest(tracked))
            if not kept.same(State.read(self.manifest)):
                kept.write(self.manifest)
        for path in self.replaced:
            path.unlink()


def run_units(module: AnsibleModule, files: Set, result: dict[str, Any]) -> None:
    """Stop units, place the files, start the other units. Raises UnitError."""
    requested = [units.Unit(**{**row, "reload_files": tuple(row["reload_files"])}) for row in module.params["units"]]
    names = [unit.name for unit in requested]
    described = [*files.target, *(Path(file) for unit in requested for file in unit.reload_files)]
    names += [name for name in units.patterns(described) if name not in names]
    systemd = Path("/run/systemd/system").is_dir()
    if not requested or (module.check_mode and not systemd):
        return None if module.check_mode else files.place()
    if not systemd:
        raise units.UnitError("this host was not started by systemd, so it cannot run units; no file was changed")
    seen = units.show(names)
    stopping = units.plan([unit for unit in requested if unit.state == "stopped"], seen)
    starting = [unit for unit in requested if unit.state != "stopped"]
    if module.check_mode:
        _tell(result, [*stopping, *units.plan(starting, seen, [str(path) for path in files.changed])])
        return None
    # Before the files: without our drop-in a unit of a package could be restarted with the package's own settings.
    stopped = units.apply(stopping)
    files.place()
    changed = any(path.is_relative_to(units.SYSTEM) for path in files.changed)
    if changed or any(each.reload for each in seen.values()):
        units.systemctl("daemon-reload")
    if changed or files.changed or stopped or any(each.reload for each in seen.values()):
        seen = units.show(names)
    planned = units.plan(starting, seen)
    _tell(result, [*stopping, *planned])
    acted = units.apply(planned)
    now = units.show(names) if acted else seen
    units.require_elapsing(starting, now)
    units.require_listening(starting, now)
    return None


def _tell(result: dict[str, Any], planned: list[tuple[units.Unit, tuple[str, ...]]]) -> None:
    result["changed_units"] = [text for unit, actions in planned for text in units.sentences(unit, actions)]
    result["pending_units"] = [unit.name for unit, actions in planned if "pending" in actions]
    result["changed"] = result["changed"] or bool(result["changed_units"])


def arguments() -> dict[str, Any]:
    """Return the argument specification; a test compares it with DOCUMENTATION."""
    path, text = {"type": "path", "required": True}, {"type": "str", "default": ""}
    owners = {"owner": {"type": "str", "default": "root"}, "group": {"type": "str", "default": "root"}}
    return {
        "name": {"type": "str", "required": True},
        "directories": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {"path": path, **owners, "mode": {"type": "str", "default": "0755"}},
        },
        "files": {
            "type": "list",
            "elements": "dict",
            "options": {
                "path": path,
                "content": {**text, "no_log": False},
                "template": text,
                "variables": {"type": "dict", "default": {}},
                **owners,
                "mode": {"type": "str", "default": "0644"},
                "secret": {"type": "bool", "default": False, "no_log": False},
                "tracked": {"type": "bool", "default": True},
            },
        },
        "replaces": {"type": "list", "elements": "str", "default": []},
        "check": {"type": "list", "elements": "list", "default": []},
        "apt_source": {
            "type": "dict",
            "options": {
                "file": text,
                "component": {"type": "str", "required": True},
                "config_file": text,
                "lists": text,
            },
        },
        "apply": {"type": "dict", "options": command.OPTIONS},
        "run": {"type": "dict", "default": {}},
        "units": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "name": {"type": "str", "required": True},
                "state": {"type": "str", "default": "started", "choices": ["started", "stopped", "ignored"]},
                "enabled": {"type": "bool"},
                "reload_files": {"type": "list", "elements": "path", "default": []},
                "restart": {"type": "bool", "default": True},
                "listens": {"type": "int"},
                "only_if": text,
                "creates": text,
            },
        },
    }


def main() -> None:
    """Run the module."""
    os.umask(0o022)  # of a hardened host it is 027: users of our files could not enter the directories that we make
    module = Module(argument_spec=arguments(), supports_check_mode=True)
    # Masked in everything that Ansible shows of this call, its arguments included.
    module.no_log_values.update(
        row["content"] for row in module.params["files"] or [] if row["secret"] and row["content"]
    )
    if not module.check_mode and (refusal := lock.keep(module.params["run"])):
        module.fail_json(msg=f"{refusal}; nothing of this set was changed")
    try:
        files = Set(module)
    except OSError as error:
        module.fail_json(msg=f"{error.filename} {error.strerror}; nothing of this set was changed")
    result = files.result()
    try:
        run_units(module, files, result)
    except units.UnitError as error:
        module.fail_json(msg=str(error), **{key: result[key] for key in ("changed", "changed_paths", "changed_units")})
    if module.params["apply"]:
        result["applied"] = command.run(module, module.params["apply"])
        result["changed"] = result["changed"] or result["applied"]["changed"]
        result["diff"] += [result["applied"].pop("diff")] if "diff" in result["applied"] else []
    module.exit_json(**result)


if __name__ == "__main__":
    main()
