"""The runner: what is not run again, what is read from pytest's report, what cannot be had. Real pytest, real git."""

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import pytest
from matrix import __main__ as runner
from matrix import environment, results, suite
from matrix.cells import CELLS
from matrix.results import Result

CELL = CELLS[0]
SUITE = """
import pytest
def test_good(): pass
def test_bad(): assert 0
@pytest.mark.skip(reason="no such machine")
def test_skipped(): pass
@pytest.fixture
def broken(): raise OSError
def test_error(broken): pass
"""


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Results and page go to a folder of the test; the commit is abc."""
    monkeypatch.setattr(environment, "commit", lambda: "abc")
    monkeypatch.setattr(environment, "uncommitted", lambda: False)
    monkeypatch.setattr(results, "MEASURED", tmp_path / "measured")
    monkeypatch.setattr(results, "DOCS", tmp_path / "versions.md")
    return tmp_path


def result(**changed):
    """Of all tests of one cell."""
    versions = {"python": "3.12.1", "ve-fairseq": "0.12.3", "transformers": "5.23.0", "torch": "2.15.0+cu132"}
    counts = {"passed": 7, "failed": 1, "skipped": 2}
    whole = Result(
        CELL.name, "abc", list(CELL.requirements), [], versions, counts, {"no such machine": 2}, ["a::b"], 90
    )
    return replace(whole, **changed)


def test_every_cell_asks_for_what_its_python_can_have():
    assert len({cell.name for cell in CELLS}) == len(CELLS) == 12
    assert {cell.fairseq for cell in CELLS if cell.python == "3.10"} == {"fairseq==0.12.2"}
    assert {cell.transformers.split(".")[0] for cell in CELLS if cell.python == "3.11"} == {"4", "5"}


def test_what_pytest_reports_is_counted(tmp_path):
    (tmp_path / "test_it.py").write_text(SUITE)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=report.xml", "test_it.py"]
    assert subprocess.run(words, cwd=tmp_path, capture_output=True, timeout=60).returncode == 1
    assert suite.read_report(tmp_path / "report.xml") == (
        {"passed": 1, "failed": 2, "skipped": 1}, {"no such machine": 1}, ["test_it::test_bad", "test_it::test_error"]
    )  # fmt: skip


def test_what_did_not_come_to_its_end_is_no_result(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/test_it.py").write_text("def test_it(): raise KeyboardInterrupt")
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "venv/bin/python").chmod(0o755)
    with pytest.raises(RuntimeError, match="exit status"):
        suite.tested(CELL, tmp_path, "abc", [])
    assert "keyboard-interrupt" in (tmp_path / "log.txt").read_text()


def test_versions_are_those_that_pip_tells():
    told = suite.installed(sys.executable)
    assert told["python"] == ".".join(map(str, sys.version_info[:3])) and told["numpy"] == version("numpy")


def test_a_recorded_cell_is_not_run_again(recorded, monkeypatch, capsys):
    monkeypatch.setattr(environment, "prepared", lambda *_: pytest.fail("built again"))
    results.write(CELL, result(failures=[]))
    assert runner.main(["--cells", CELL.name]) == 0
    assert "7 passed, 1 failed, 2 skipped in 90 s (all) (recorded)" in capsys.readouterr().out
    for changed in ({"commit": "abd"}, {"requirements": ["torch"]}, {"tests": ["tests/core"]}, {"blocked": "no disk"}):
        assert not result(**changed).answers("abc", CELL.requirements, [])


def test_a_cell_that_cannot_be_had_is_told_with_its_cure(recorded, monkeypatch, capsys):
    monkeypatch.setattr(environment, "MATRIX", recorded / "cells")
    monkeypatch.setattr(environment, "interpreter", lambda version: "python-that-is-not")
    monkeypatch.setattr(environment, "_export", lambda *_: None)
    assert runner.main(["--cells", CELL.name]) == 1
    why = "no interpreter python3.12: install it, with `pyenv install 3.12` for one"
    assert f"{CELL.name}: blocked: {why}" in capsys.readouterr().out
    assert f"- {CELL.name}: {why}" in (recorded / "versions.md").read_text()


def test_a_part_takes_no_whole_result_away(recorded):
    results.write(CELL, result(tests=["tests/core"]))
    results.write(CELL, result())
    results.write(CELL, result(tests=["tests/core"], commit="abd"))
    results.write(CELL, result(blocked="no disk", counts={}))
    assert results.read(CELL) == result()
    page = (recorded / "versions.md").read_text()
    assert "| 3.12.1 | ve-fairseq 0.12.3 | 5.23.0 | 2.15.0+cu132 | 7 | 1 | 2 | 1.5 | abc | all |" in page
    assert f"- {CELL.name}: 2 x no such machine" in page and f"- {CELL.name}: `a::b`" in page
    assert page.count("| not run yet |") == 11


def test_the_source_is_that_of_the_commit(tmp_path, monkeypatch):
    repo = tmp_path / "repo"
    (repo / "docs").mkdir(parents=True)
    monkeypatch.setattr(environment, "REPO", repo)
    (repo / "setup.py").write_text("1\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]

    def git(*words):
        return subprocess.run(["git", *author, *words], cwd=repo, check=True, capture_output=True, timeout=60)

    def committed():
        git("add", "-A")
        git("commit", "--no-verify", "-m", "one")
        return environment.commit()

    git("init")
    first = committed()
    (repo / "docs/versions.md").write_text("drawn anew\n")
    assert not environment.uncommitted() and committed() == first  # the page is not what is tested
    (repo / "setup.py").write_text("2\n")
    assert environment.uncommitted()
    environment._export(first, tmp_path / "source")
    assert (tmp_path / "source/setup.py").read_text() == "1\n" and not (tmp_path / "source/.git").exists()
    assert committed() != first and not environment.uncommitted()


def test_the_newest_of_pyenv_is_taken(tmp_path, monkeypatch):
    for number in ("3.12.9", "3.12.10", "3.11.99"):
        (tmp_path / "versions" / number / "bin").mkdir(parents=True)
        (tmp_path / "versions" / number / "bin/python").touch()
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert environment.interpreter("3.12") == str(tmp_path / "versions/3.12.10/bin/python")
    assert environment.interpreter("3.9") == "python3.9"


def test_the_page_is_drawn_from_the_measured_cells():
    assert results.DOCS.read_text() == results.page()
