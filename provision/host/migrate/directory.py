"""Read a directory of migrations. Does IO in chunks: only the file that runs is held in memory."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import replace
from pathlib import Path

from provision.errors import MigrationError
from provision.host.migrate.files import Catalogue, Content, File, Inspector, Pair, Problem, Severity, arrange

PIECE = 1 << 16
"""Chunk size in bytes: fast, and negligible in memory."""


class Directory:
    """A flat directory of migration files. Each checksum is computed once."""

    def __init__(self, path: Path) -> None:
        """Store the path; read nothing yet."""
        self.path = path
        self._inspected: dict[str, Content] = {}

    def catalogue(self) -> Catalogue:
        """List the versions. As in golang-migrate, a dangling symbolic link counts as a missing file."""
        try:
            entries = [entry.name for entry in os.scandir(self.path) if not entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            raise MigrationError(
                "cannot read the migrations directory",
                where=str(self.path),
                seen=error.strerror or str(error),
                allowed="a directory of VERSION_title.up.sql and VERSION_title.down.sql files",
                run="provision migrate status --path DIRECTORY",
            ) from None
        listed = arrange(entries)
        problems = list(listed.problems)
        pairs = []
        for pair in listed.pairs:
            up, up_problem = self._check(pair.up)
            down, down_problem = self._check(pair.down)
            problems += [problem for problem in (up_problem, down_problem) if problem]
            pairs.append(Pair(pair.version, up, down))
        return replace(
            listed, pairs=tuple(pairs), problems=tuple(problems), by_version={pair.version: pair for pair in pairs}
        )

    def _check(self, file: File | None) -> tuple[File | None, Problem | None]:
        if file is None:
            return None, None
        try:
            mode = (self.path / file.name).stat().st_mode
        except FileNotFoundError:
            problem = Problem("dangling", file.name, "is a dangling symbolic link", "fix the link or remove it")
            return None, problem
        except OSError as error:
            seen = error.strerror or str(error)
            return file, Problem("unreadable", file.name, seen, "make the file readable", Severity.ERROR)
        if not stat.S_ISREG(mode):
            seen = "is not a regular file"
            return file, Problem("unreadable", file.name, seen, "replace it with a regular file", Severity.ERROR)
        return file, None

    def inspect(self, file: File) -> Content:
        """Compute checksum and problems of a file; each file is read once, in chunks."""
        if file.name not in self._inspected:
            inspector = Inspector(file.name)
            try:
                with (self.path / file.name).open("rb") as stream:
                    while piece := stream.read(PIECE):
                        inspector.feed(piece)
            except OSError as error:
                raise self._unreadable(file, error) from None
            self._inspected[file.name] = inspector.content()
        return self._inspected[file.name]

    def body(self, file: File) -> bytes:
        """Return the content of a file about to run. Raises MigrationError if it changed since it was inspected."""
        try:
            body = (self.path / file.name).read_bytes()
        except OSError as error:
            raise self._unreadable(file, error) from None
        if file.name not in self._inspected:
            inspector = Inspector(file.name)
            inspector.feed(body)
            self._inspected[file.name] = inspector.content()
        elif hashlib.sha256(body).hexdigest() != self.inspect(file).checksum:
            raise MigrationError(
                f"{file.name} changed while migrations were running",
                where=str(self.path),
                allowed="files that do not change during a run",
                run="provision migrate up",
            )
        return body

    def same_but_line_ends(self, file: File, checksum: str) -> bool:
        """Return whether the file matches the checksum apart from its line endings (LF or CRLF)."""
        unix = (self.path / file.name).read_bytes().replace(b"\r\n", b"\n")
        return checksum in (hashlib.sha256(text).hexdigest() for text in (unix, unix.replace(b"\n", b"\r\n")))

    def _unreadable(self, file: File, error: OSError) -> MigrationError:
        return MigrationError(
            f"cannot read {file.name}",
            where=str(self.path),
            seen=error.strerror or str(error),
            allowed="a readable file",
        )
