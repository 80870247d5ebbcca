"""A cell's environment under .matrix/: interpreter, packages, and the source of one commit."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .cells import Cell

REPO = Path(__file__).resolve().parents[2]
MATRIX = REPO / ".matrix"
WITHOUT = Path(__file__).with_name("without.txt")
OURS = "source[dev,fairseq]"
TOOLS = ("pytest-xdist",)
TESTED = (".", ":!docs", ":!tests/matrix")  # a commit of these pages alone changes no result
INSTALL_LIMIT = 3600  # seconds


class Blocked(Exception):
    """A cell that cannot be had here; the message says why, and what would cure it."""


def commit() -> str:
    """The last commit that changed what is tested."""
    return _said(["git", "log", "-1", "--format=%h", "--", *TESTED], REPO)


def uncommitted() -> bool:
    """Whether the working tree holds changes, which no cell sees."""
    return bool(_said(["git", "status", "--porcelain", "--", *TESTED], REPO))


def prepared(cell: Cell, commit: str) -> Path:
    """The cell's folder, with `source/` at that commit and `venv/` that has it installed; built where it is not.

    Raises:
        Blocked: there is no such interpreter, or the packages cannot be installed together.

    """
    folder = MATRIX / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    _export(commit, folder / "source")
    asked = [*cell.requirements, *TOOLS]
    # setup.py too: its extras are part of what is installed.
    key = "\n".join([*asked, WITHOUT.read_text(), (REPO / "setup.py").read_text()])
    ready = folder / "ready"
    if not (folder / "venv").exists() or not ready.exists() or ready.read_text() != key:
        ready.unlink(missing_ok=True)
        python = interpreter(cell.python)
        if not shutil.which(python):
            raise Blocked(f"no interpreter python{cell.python}: install it, with `pyenv install {cell.python}` for one")
        _uv(["venv", "--quiet", "--clear", "--seed", "--python", python, "venv"], folder)
        _uv(["pip", "install", "--quiet", "--overrides", str(WITHOUT), *asked, "-e", OURS], folder)
        ready.write_text(key)
    return folder


def interpreter(version: str) -> str:
    """Where python3.X stands: on the PATH, else the newest that pyenv has."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted(root.glob(f"versions/{version}.*/bin/python"), key=lambda path: int(path.parts[-3].split(".")[2]))
    return str(found[-1]) if found else f"python{version}"


def _export(commit: str, source: Path) -> None:
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    archive = source.with_suffix(".tar")
    _said(["git", "archive", "--output", str(archive), commit], REPO)
    _said(["tar", "--extract", "--file", str(archive), "--directory", str(source)], REPO)
    archive.unlink()


def _uv(words: Sequence[str], folder: Path) -> None:
    from uv import find_uv_bin  # type: ignore[import-not-found, unused-ignore]

    # The cache lies beside the environments, so that they share its files instead of holding gigabytes each.
    environment = {"UV_CACHE_DIR": str(MATRIX / "cache"), **os.environ, "VIRTUAL_ENV": str(folder / "venv")}
    command = [find_uv_bin(), *words, "--no-python-downloads"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=INSTALL_LIMIT)
    if done.returncode:
        raise Blocked(f"`uv {' '.join(words[:2])}` failed: {' '.join(done.stderr.split())[-600:]}")


def _said(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()
