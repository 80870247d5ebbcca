"""Three ways to have headdynamics: a wheel, a bare checkout by path, an editable install (what the suite runs in)."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import fairseq_tiny as tiny
import pytest

REPO = Path(__file__).resolve().parents[1]
SITE = sysconfig.get_paths()["purelib"]
PROGRAM = "import builtins; builtins.help = 'help'; from fairseq_cli.train import cli_main; cli_main()"
PARTS = ["headdynamics", "plugins", "analysis", "setup.py", "pyproject.toml", "README.md"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The project's files and nothing else."""
    folder = tmp_path_factory.mktemp("checkout") / "repo"
    folder.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (REPO / part).is_dir() else shutil.copy
        copy(REPO / part, folder / part)
    return folder


def train(user_dir, save, tmp_path, *places):
    """fairseq-train in a process that no editable install reaches: -S reads no .pth file (and has no `help`)."""
    data = tmp_path / "data"
    data.mkdir()
    words = tiny.command(tiny.make_data(data), save, "--max-update", "2")
    words[words.index("--user-dir") + 1] = user_dir
    environment = {**tiny.ENVIRONMENT, "PYTHONPATH": os.pathsep.join([*map(str, places), SITE])}
    done = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM, *words[1:]],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_bare_checkout_by_path(checkout, tmp_path):
    train(str(checkout / "headdynamics"), tmp_path / "run", tmp_path)
    assert (tmp_path / "run/headdynamics.h5").exists()


def test_wheel_from_any_folder(checkout, tmp_path):
    wheels = tmp_path / "wheels"
    pip = [sys.executable, "-m", "pip"]
    tiny.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(checkout)])
    (wheel,) = wheels.glob("headdynamics-*.whl")
    site = tmp_path / "site"
    tiny.run([*pip, "install", "-q", "--no-deps", "--target", str(site), str(wheel)])
    tops = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} - {"bin"}
    assert tops == {"headdynamics"}  # no plugins, analysis or tests beside it
    pages = {path.name for path in (site / "headdynamics").rglob("*") if path.suffix in (".js", ".css", ".html")}
    assert pages == {"tab.js", "panels.js", "panels.css", "report.js", "report.html"}
    for package in ("fairseq", "fairseq_cli"):  # fairseq looks for a user-dir beside itself
        shutil.copytree(Path(SITE) / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    train("headdynamics", tmp_path / "run", tmp_path, site)
    assert (tmp_path / "run/headdynamics.h5").exists()
