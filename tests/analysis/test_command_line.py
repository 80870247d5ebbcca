import json
import subprocess
import sys

import numpy as np
import pytest
from blocked import BANNED, run_without
from fake_run import blocks_of, layout, write_run
from headdynamics.analysis.__main__ import main

MAIN = "import sys; from headdynamics.analysis.__main__ import main; sys.exit(main(sys.argv[1:]))"
BEFORE, AFTER = np.exp(np.random.default_rng(0).normal(size=(2, 24)))
@pytest.fixture
def run_file(path):
    blocks = blocks_of([BEFORE] * 6 + [AFTER] * 14, 0.3)
    return write_run(path, blocks, layout(3, 4, ("encoder", "decoder")))


def without_torch(*arguments):
    return run_without(BANNED, MAIN, *arguments)


def test_every_command_runs_without_torch(run_file, tmp_path):
    done = without_torch("settle", run_file)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("Head importance settled at epoch 7 (update 2100)")
    done = without_torch("curves", run_file, "-o", tmp_path / "f.svg")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(tmp_path / "f.svg"), "")
    assert "<svg" in (tmp_path / "f.svg").read_text()
    done = without_torch("show", run_file)
    assert done.returncode == 0 and "TransformerModel" in done.stdout and "12 in 3 layers" in done.stdout


def test_as_a_module(run_file):
    done = subprocess.run([sys.executable, "-m", "headdynamics.analysis", "show", run_file], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_json(run_file, capsys):
    assert main(["settle", "--json", str(run_file), str(run_file)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [run["views"][0]["update"] for run in answer["runs"]] == [2100, 2100]
    assert answer["runs"][0]["run"] == str(run_file)


def test_threshold_and_tail_are_named(run_file, capsys):
    assert main(["settle", str(run_file), "--tail", "15", "--threshold", "0.8"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "has not settled" in out and ">= 0.8" in out and "15 required" in out


def test_a_bad_file_among_good_ones_does_not_hide_them(run_file, tmp_path, capsys):
    assert main(["settle", str(tmp_path / "no.h5"), str(run_file)]) == 2
    out, err = capsys.readouterr()
    assert "settled at epoch 7" in out and err.count("\n") == 1 and "does not exist" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["setle", "x"], "did you mean 'settle'?"),
        (["zzz"], "there are settle, curves, orders, ablations"),
        (["show"], "required: RUN.h5"),
        (["show", "no.h5"], "no.h5 does not exist"),
        (["settle", "RUN", "--threshold", "2"], "threshold is 2"),
        (["settle", "RUN", "--tail", "x"], "--tail"),
        (["curves", "RUN", "-o", "f.xyz"], "should end in .png, .pdf or .svg"),
        (["curves", "RUN", "-o", "no/such/folder/f.png"], "no/such/folder"),
    ],
)
def test_errors_are_one_line_and_exit_2(run_file, capsys, arguments, words):
    assert main([str(run_file) if one == "RUN" else one for one in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err and "Traceback" not in err


def test_text_of_the_file_is_not_markup(run_file, path, capsys):
    blocks = blocks_of([BEFORE] * 6, 0.3)
    status = ["ok"] * 5 + ["[red]boom[/blue] \x1b[31m"]
    attrs = {"model": "[bold]M[/nope]", "metric": "[/x]"}
    write_run(path, blocks, layout(3, 4, ("encoder", "decoder")), attrs=attrs, snapshots__status=status)
    for command in ("settle", "show"):
        assert main([command, str(path)]) == 0
    out = capsys.readouterr().out
    assert "[bold]M[/nope]" in out and "[red]boom[/blue] ?[31m" in out and "\x1b" not in out
    assert "1 snapshot failed" in out


def test_a_run_with_no_snapshot_yet(path, capsys):
    write_run(path, np.empty((0, 10, 24)), layout(3, 4, ("encoder", "decoder")))
    assert main(["settle", str(path)]) == 0 and main(["show", str(path)]) == 0
    out = capsys.readouterr().out
    assert "too few snapshots" in out and "none yet" in out
    assert main(["curves", str(path)]) == 2


def test_a_long_run_is_thinned(path, capsys):
    write_run(path, blocks_of([BEFORE] * 100, 0.3), layout(3, 4, ("encoder", "decoder")))
    assert main(["settle", str(path)]) == 0
    assert "40 of 100 snapshots shown" in capsys.readouterr().out


def test_a_missing_library_is_one_line(run_file):
    done = run_without(("xarray",), MAIN, "show", run_file)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install 'headdynamics[analysis]'" in done.stderr


def test_what_is_logged_cannot_command_the_terminal() -> None:
    log = "import logging; from headdynamics.analysis.program import log_to_terminal as t; t()"
    tell = f"{log}; logging.getLogger('headdynamics').info('%s: skipped', 'runs/\\x1b[31mred\\nnext')"
    done = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == "runs/?[31mred\nnext: skipped\n"
