"""Fetch a package by name with the ordinary clients, apt-get and pip, and verify its SHA-256."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def say(message: str) -> None:
    """Print one line of progress, at once."""
    print(f"[data] {message}", flush=True)


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verify(path: Path, expected: Iterable[str]) -> Path:
    """Return `path` if its SHA-256 is among `expected`; raise `ValueError` otherwise."""
    expected, found = set(expected), sha256(path)
    if found not in expected:
        wanted = " or ".join(sorted(expected)) or "one that the index does not give"
        raise ValueError(f"{path.name}: SHA-256 is {found}, expected {wanted}")
    return path


def prepared(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, calling `build(temporary folder)` first if it is not there.

    The temporary folder stands beside it and is renamed only when `build` has returned, so an interrupted
    run never leaves half a folder behind.
    """
    if folder.is_dir():
        say(f"{folder} is there already")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(work)
        work.chmod(0o755)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"{folder} is ready")
    return folder


def quietly(argv: list[str], cwd: Path | None = None) -> str:
    """Run a command and return what it prints; raise `RuntimeError` with its last words when it fails."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise RuntimeError("\n".join([f"{argv[0]} failed (status {done.returncode}): {' '.join(argv)}", *words]))
    return done.stdout


def pip_wheel(requirement: str, digest: str, folder: Path) -> Path:
    """Download one pinned wheel, without its dependencies, and verify it."""
    _pip_download(requirement, ["--only-binary", ":all:"], folder)
    return verify(next(folder.glob("*.whl")), [digest])


def pip_source(requirement: str, digest: str, folder: Path) -> Path:
    """Download one pinned source archive, and verify it."""
    _pip_download(requirement, ["--no-binary", ":all:", "--no-build-isolation"], folder)
    return verify(next(folder.glob("*.tar.gz")), [digest])


def _pip_download(requirement: str, form: list[str], folder: Path) -> None:
    say(f"pip download {requirement}")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    quietly([*pip, "--no-deps", *form, "--dest", str(folder), requirement])


def has_apt() -> bool:
    """Whether this machine has Debian's clients."""
    return bool(shutil.which("apt-get") and shutil.which("dpkg-deb"))


def apt_packages(names: list[str], folder: Path) -> Path:
    """Download Debian packages and unpack them under `folder`/root, installing nothing; return that root.

    The package lists go to a private folder, so neither root nor an earlier `apt-get update` is needed. A point
    release changes a package's checksum, so each is verified against apt's own signed index.
    """
    options = _updated(folder)
    root = folder / "root"
    for name in names:
        say(f"apt-get download {name}")
        quietly(["apt-get", *options, "-qq", "download", name], cwd=folder)
        record = quietly(["apt-cache", *options, "--no-all-versions", "show", name])
        digests = [line.split()[1] for line in record.splitlines() if line.startswith("SHA256:")]
        package = verify(next(folder.glob(f"{name}_*.deb")), digests)
        quietly(["dpkg-deb", "-x", str(package), str(root)])
    return root


def apt_lists(languages: Iterable[str], folder: Path) -> dict[str, str]:
    """Debian's package descriptions in some languages: the text of apt's signed Translation lists, by language."""
    options = _updated(folder, languages)
    wanted = ["--format", "$(FILENAME)", "Created-By: Translations"]
    paths = quietly(["apt-get", *options, "indextargets", *wanted]).split()
    helper = "/usr/lib/apt/apt-helper"  # apt keeps its lists compressed in a way of its own choice
    return {
        code: "\n\n".join(quietly([helper, "cat-file", path]) for path in paths if f"Translation-{code}" in path)
        for code in languages
    }


def _updated(folder: Path, languages: Iterable[str] = ("none",)) -> list[str]:
    if not has_apt():
        raise RuntimeError("this needs Debian's apt-get and dpkg-deb (or Ubuntu's), and they are not on this machine")
    options = _private_apt(folder.resolve(), ",".join(languages))
    say("apt-get update (private package lists)")
    quietly(["apt-get", *options, "-qq", "update"])
    return options


def _private_apt(folder: Path, languages: str) -> list[str]:
    """Options that keep everything apt writes under `folder`."""
    lists, cache = folder / "lists", folder / "cache"
    for path in (lists, cache):
        (path / "partial").mkdir(parents=True)
    settings = {
        "Dir::State::lists": lists,
        "Dir::Cache": cache,
        "Dir::Cache::archives": cache,
        "Acquire::Languages": languages,
        "APT::Update::Error-Mode": "any",  # else a mirror out of reach would only show as an empty index later
        "APT::Sandbox::User": "root",  # else apt, when root, warns that its helper user cannot enter this folder
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
