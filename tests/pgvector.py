"""Builds pgvector for the distribution's PostgreSQL where the distribution has no package of it (Debian 12).

Does IO: the upstream tarball of Debian's newest pgvector source package that this machine's mirror really holds,
fetched by apt, which checks signature and checksum. Built once for each major into `.provision/cache`; nothing is
installed into the system. The server's headers are unpacked, not installed: their package would pull in LLVM.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from provision.controller.mirror import PGVECTOR_SUITES
from tests.caches import locked

CACHE = Path(__file__).parent.parent / ".provision/cache/pgvector"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def built(major: str) -> Path:
    """Return a tree (`usr/lib/...`, `usr/share/...`) that holds pgvector for this major, building it if needed."""
    with locked(CACHE):
        for tree in sorted(CACHE.glob(f"*-pg{major}")):
            return tree
        return build(major)


def build(major: str) -> Path:
    """Build pgvector into the cache and return its tree."""
    with tempfile.TemporaryDirectory(prefix="building-", dir=CACHE) as folder:
        work = Path(folder)
        tarball = fetch_source(work)
        version = tarball.name.removeprefix("pgvector_").split(".orig.")[0]
        run(work, "tar", "--extract", "--one-top-level=source", "--strip-components=1", "--file", tarball)
        # OPTFLAGS without -march=native: the cache may move to another machine. No bitcode: JIT is not tested.
        config = f"PG_CONFIG={unpack_headers(work, major)}"
        run(work / "source", "make", f"-j{os.cpu_count()}", config, "OPTFLAGS=", "with_llvm=no")
        tree = collect(work, major).rename(CACHE / f"{version}-pg{major}")
    print(f"pgvector {version} built for PostgreSQL {major}")
    return tree


def fetch_source(folder: Path) -> Path:
    """Download the upstream tarball with an apt that knows only the machine's Debian mirror and one suite."""
    targets = run(
        folder, "apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN)/$(LABEL)", "Created-By: Packages"
    )
    mirrors = [line.split()[0] for line in targets.splitlines() if line.endswith(" Debian/Debian")]
    assert mirrors, f"apt knows no Debian mirror (run apt-get update?):\n{targets}"
    (folder / "lists/partial").mkdir(parents=True)
    settings = (
        f"Etc::SourceList={folder}/sources.list",
        "Etc::SourceParts=/dev/null",
        f"State::Lists={folder}/lists",
    )
    options = [word for setting in (*settings, f"Cache={folder}") for word in ("-o", f"Dir::{setting}")]
    options += ["-q", "-o", "APT::Sandbox::User="]  # apt's own user may not enter our folder
    failures = []
    for suite in PGVECTOR_SUITES:
        (folder / "sources.list").write_text(f"deb-src [signed-by={KEYRING}] {mirrors[0]} {suite} main\n")
        try:
            run(folder, "apt-get", *options, "update", "--error-on=any")
            run(folder, "apt-get", *options, "source", "--download-only", "--tar-only", "--only-source", "pgvector")
        except AssertionError as error:
            failures.append(str(error))
            continue
        return next(folder.glob("pgvector_*.orig.tar.*"))
    raise AssertionError("\n".join(failures))


def unpack_headers(folder: Path, major: str) -> Path:
    """Put the server's headers beside a copy of pg_config, which finds them from where it is; return it."""
    run(folder, "apt-get", "-q", "download", f"postgresql-server-dev-{major}")
    run(folder, "dpkg-deb", "--extract", next(folder.glob("postgresql-server-dev-*.deb")), folder / "headers")
    system = Path("/usr/lib/postgresql") / major
    copy = folder / "headers" / system.relative_to("/")
    shutil.copytree(system / "lib/pgxs", copy / "lib/pgxs")
    (copy / "bin").mkdir()
    return Path(shutil.copy(system / "bin/pg_config", copy / "bin"))


def collect(folder: Path, major: str) -> Path:
    """Return a tree of the files that `make install` would install."""
    source, tree = folder / "source", folder / "tree"
    library, extension = tree / f"usr/lib/postgresql/{major}/lib", tree / f"usr/share/postgresql/{major}/extension"
    library.mkdir(parents=True)
    extension.mkdir(parents=True)
    shutil.copy(source / "vector.so", library)
    for path in (source / "vector.control", *source.glob("sql/vector--*.sql")):
        shutil.copy(path, extension)
    return tree


def run(folder: Path, *command: str | Path) -> str:
    """Run a program in a folder and return its output; a failure shows what the program said."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout
