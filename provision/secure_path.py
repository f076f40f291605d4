"""Open, write, move and remove paths that another user can change, without following that user's links.

Does IO; standard library only, so that the modules that run on hosts carry this file too. A path is walked from /
one directory at a time, each opened relative to the one before (openat(2), O_NOFOLLOW), so that no directory can be
exchanged between a check and its use. A link is followed only where root alone, or the user of this process, could
have put it: administrators move data to another disk that way. Any other link is refused with OSError (ELOOP), and so
is a file with a second name (hard link) in a directory of another user.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PLANTED = "is a link that another user than root can exchange: remove it"
NOT_PLAIN = "is a link, a directory or a device, not a plain file: move it away"
LINKED = "is a file with a second name (hard link) in a directory of another user: remove it"
MOST_LINKS = 40
"""As many as Linux follows in one path."""
MOST_BYTES = 64 * 2**20
"""Largest file that is read into memory: another user's sparse file may claim terabytes."""
TOO_LARGE = f"is larger than {MOST_BYTES // 2**20} MiB, the limit for files that are read here: move it away"
SHARED = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def parent(path: Path, *, make: bool = False) -> Iterator[int]:
    """Open the directory that holds a path and yield its descriptor, for the functions of `os` that take `dir_fd`.

    `make` creates missing directories as this process's user, mode 0755. Raises OSError.
    """
    handle, _ = _walk(path.parent, make=make)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def directory(path: Path) -> Iterator[int]:
    """Open a directory and yield its descriptor, which can be listed, changed and flushed. Raises OSError."""
    handle, _ = _walk(path)
    try:
        opened = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle)
    finally:
        os.close(handle)
    try:
        yield opened
    finally:
        os.close(opened)


def about(path: Path) -> os.stat_result | None:
    """Return what a path is, without following it as a link; None where there is nothing. Raises OSError for a link
    of another user in the path."""
    try:
        with parent(path) as folder:
            return os.stat(path.name, dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def read(path: Path) -> tuple[bytes, os.stat_result]:
    """Return the content of a plain file of at most MOST_BYTES and what the file is. Raises OSError."""
    with os.fdopen(open_file(path), "rb") as stream:
        content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise OSError(errno.EFBIG, TOO_LARGE, str(path))
        return content, os.fstat(stream.fileno())


def open_file(path: Path) -> int:
    """Open a plain file for reading and return its descriptor. Never waits for a writer. Raises OSError."""
    folder, sound = _walk(path.parent)
    try:
        handle = _open(path, folder, os.O_RDONLY)
    finally:
        os.close(folder)
    if os.fstat(handle).st_nlink > 1 and not sound:
        os.close(handle)
        raise OSError(errno.EMLINK, LINKED, str(path))
    return handle


def text(path: Path) -> str:
    """Return the text of a plain file; bytes that are not UTF-8 are replaced. Raises OSError."""
    return read(path)[0].decode(errors="replace")


def replace(
    path: Path, content: bytes, mode: int, owner: tuple[int, int], *, make: bool = False, flush: bool = True
) -> None:
    """Replace a file atomically, and durably with `flush`; `owner` is user id and group id. Raises OSError."""
    with parent(path, make=make) as folder:
        temporary = f".{path.name}.{secrets.token_hex(6)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                if owner != (os.geteuid(), os.getegid()):
                    os.fchown(handle, *owner)
                os.fchmod(handle, mode)  # after the owner: a change of owner clears set-id bits
                if flush:
                    os.fsync(handle)
            os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise
        if flush:
            sync(folder)  # the rename itself must survive a power failure


def make_directory(path: Path, mode: int, owner: tuple[int, int]) -> None:
    """Make a directory, or correct its owner and mode; missing parents are made with mode 0755. Raises OSError."""
    with parent(path, make=True) as folder, suppress(FileExistsError):
        os.mkdir(path.name, 0o700, dir_fd=folder)  # closed until the owner is set
    with directory(path) as handle:
        os.fchown(handle, *owner)
        os.fchmod(handle, mode)


def chown(path: Path, owner: tuple[int, int], mode: int | None = None, *, seen: tuple[int, int] | None = None) -> None:
    """Change owner and mode of a file or directory. With `seen`, only of one that still has these owners.

    Raises OSError for a link, and for a file with a second name in a directory of another user.
    """
    folder, sound = _walk(path.parent)
    try:
        handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        found = os.fstat(handle)
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1 and not sound:
            raise OSError(errno.EMLINK, LINKED, str(path))
        if seen is not None and (found.st_uid, found.st_gid) != seen:
            raise OSError(errno.ESTALE, "has changed its owner meanwhile", str(path))
        os.fchown(handle, *owner)
        if mode is not None:
            os.fchmod(handle, mode)
    finally:
        os.close(handle)


def chown_tree(path: Path, owner: tuple[int, int], mode: int | None = None) -> None:
    """Give a directory and all below it to an owner; links themselves change owner, never their targets.

    Raises OSError for a file with a second name: it may be one of another directory.
    """
    with directory(path) as top:
        for _, folders, files, folder in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            for name in (*folders, *files):
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if not stat.S_ISDIR(found.st_mode) and found.st_nlink > 1:
                    raise OSError(errno.EMLINK, LINKED, f"{path}: {name}")
                if (found.st_uid, found.st_gid) != owner:
                    os.chown(name, *owner, dir_fd=folder, follow_symlinks=False)
        os.fchown(top, *owner)
        if mode is not None:
            os.fchmod(top, mode)


def rename(path: Path, name: str) -> Path:
    """Rename a path within its directory, which must not have `name` yet; return the new path. Raises OSError."""
    with parent(path) as folder:
        with suppress(FileNotFoundError):
            os.stat(name, dir_fd=folder, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, "exists already", str(path.with_name(name)))
        os.rename(path.name, name, src_dir_fd=folder, dst_dir_fd=folder)
    return path.with_name(name)


def remove(path: Path) -> None:
    """Remove a file or a link, if there is one. Raises OSError."""
    with suppress(FileNotFoundError), parent(path) as folder:
        os.unlink(path.name, dir_fd=folder)


def remove_tree(path: Path) -> None:
    """Remove a directory and all below it, without following links. Raises OSError."""
    with parent(path) as folder:
        shutil.rmtree(path.name, dir_fd=folder)


def open_lock(path: Path) -> int:
    """Open a lock file, which is made where it is missing, and return its descriptor. Raises OSError."""
    with parent(path, make=True) as folder:
        return _open(path, folder, os.O_RDONLY | os.O_CREAT)


def sync(folder: int) -> None:
    """Flush the entries of an open directory to disk."""
    opened = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _open(path: Path, folder: int, flags: int) -> int:
    """Open a plain file; O_NONBLOCK, since a reader of a pipe would wait for its writer."""
    try:
        handle = os.open(path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise OSError(errno.EEXIST, NOT_PLAIN, str(path)) from None
        raise OSError(error.errno, error.strerror, str(path)) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EEXIST, NOT_PLAIN, str(path))
    return handle


def _walk(path: Path, *, make: bool = False) -> tuple[int, bool]:
    """Open a directory from / on; return its descriptor, and whether only root and this user can change its entries.

    The descriptor is of O_PATH: it needs no right to list the directory. Raises OSError.
    """
    if not path.is_absolute() or ".." in path.parts:
        raise OSError(errno.EINVAL, "is not an absolute path without ..", str(path))
    todo, done, followed = list(path.parts[:0:-1]), Path("/"), 0
    handle, sound = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), True
    try:
        while todo:
            name = todo.pop()
            try:
                entry = os.stat(name, dir_fd=handle, follow_symlinks=False)
            except FileNotFoundError:
                if not make:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(done / name)) from None
                with suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=handle)
                entry = os.stat(name, dir_fd=handle, follow_symlinks=False)
            sound = sound and _settled(os.fstat(handle), entry)
            if stat.S_ISLNK(entry.st_mode):
                followed += 1
                if not sound or entry.st_uid not in (0, os.geteuid()) or followed > MOST_LINKS:
                    raise OSError(errno.ELOOP, PLANTED, str(done / name))
                target = os.path.normpath(done / os.readlink(name, dir_fd=handle))
                todo += Path(target).parts[:0:-1]
                name, done = "/", Path("/")
            else:
                done /= name
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                following = os.open(name, flags, dir_fd=handle)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(done)) from None
            os.close(handle)
            handle = following
        return handle, sound and _settled(os.fstat(handle))
    except BaseException:
        os.close(handle)
        raise


def _settled(folder: os.stat_result, entry: os.stat_result | None = None) -> bool:
    """Return whether only root and this process's user can exchange an entry of a directory, or any with None."""
    owners = (0, os.geteuid())
    if folder.st_uid not in owners:
        return False
    shared = folder.st_mode & (SHARED if folder.st_gid not in (0, os.getegid()) else stat.S_IWOTH)
    return not shared or bool(entry and folder.st_mode & stat.S_ISVTX and entry.st_uid in owners)
