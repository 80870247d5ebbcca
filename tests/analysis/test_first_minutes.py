"""What a newcomer meets: a bare call, help, near misses. All of it without torch."""

import logging
import re
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
from headdynamics.analysis.__main__ import main
from headdynamics.analysis.program import Printable

import headdynamics
from headdynamics.__main__ import COMMANDS
from headdynamics.__main__ import main as whole
from headdynamics.names import made, meant, unknown
from headdynamics.schedule import parse


@dataclass
class Options:
    help: str = ""
    more: int = 0


def test_a_bare_call_lists_the_commands(capsys):
    assert whole([]) == main([]) == 0
    out, err = capsys.readouterr()
    assert err == "" and all(f"    {name}" in out and command.help[:30] in out for name, command in COMMANDS.items())


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        whole(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"headdynamics {headdynamics.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_the_answer_looks_like_and_its_example_is_one(name, capsys, monkeypatch):
    """Each option has its line of help; the example is what the command's own parser takes."""
    with pytest.raises(SystemExit) as left:
        whole([name, "--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0 and "The answer is " in " ".join(out.split())
    for option in re.findall(r"^  ((?:-\w.*, )?--[\w-]+.*)", out, re.M):
        assert len(option.split("  ")) > 1 or f"{option}\n      " in out, option
    example = re.search(r"Example: headdynamics (.+)\Z", " ".join(out.split()))[1]
    taken = []
    command = COMMANDS[name]._replace(function=lambda args: taken.append(args) or 0)
    monkeypatch.setitem(COMMANDS, name, command)
    assert whole(example.split()) == 0 and taken and example.split()[0] == name


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("settle --treshold 0.8 run.h5", "unknown option --treshold (did you mean '--threshold'?); see headdyn"),
        ("settle run.h5 --treshold=0.8", "unknown option --treshold (did you mean '--threshold'?)"),
        ("export run.h5 --cvs", "unknown option --cvs (did you mean '--csv'?)"),  # rather than that --csv is missing
        ("show --wombat", "unknown option --wombat; see headdynamics show --help"),
        ("settle run.h5 -z", "unknown option -z; see"),
        ("--verison", "unknown option --verison (did you mean '--version'?)"),
        ("show a.h5 b.h5", "one argument too many: 'b.h5'"),
        ("compare a b --what improtance", "--what: unknown choice 'improtance' (did you mean 'importance'?); the"),
        ("export run.h5 --csv --what curv", "unknown choice 'curv' (did you mean 'curve'?)"),
        ("setle run.h5", "unknown command 'setle' (did you mean 'settle'?); there are"),
        ("bakfill run", "unknown command 'bakfill' (did you mean 'backfill'?)"),
        ("backfill run --data x --scor bleu --exampels 5", "unknown option --exampels (did you mean '--examples'?)"),
        ("settle run.h5 --fraction 2", "--fraction is 2; give a share of the heads between 0 and 1"),
        ("orders --snapshot -1 -- -run.h5", "-run.h5 does not exist"),
        ("settle run.h5 --thres 0.8", "run.h5 does not exist"),  # short for --threshold
    ],
)
def test_a_near_miss_is_told_what_was_meant(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert whole(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("headdynamics: ") and sentence in err and err.count("\n") == 1


def test_names():
    told = unknown("score", "blue", ["loss", "bleu"])
    assert told == "unknown score 'blue' (did you mean 'bleu'?); there are loss, bleu"
    assert unknown("score", "x", []) == "unknown score 'x'; there are none"
    assert meant("zzz", ["loss"]) == meant("", ["loss"]) == ""
    with pytest.raises(ValueError, match=r"'epcoh' is no schedule.*\(did you mean 'epoch'\?\)"):
        parse("epcoh")
    with pytest.raises(TypeError, match=r"unknown option 'hepl' \(did you mean 'help'\?\); there are help, .*, other$"):
        made(Options, {"hepl": 1}, ["other"])
    assert made(Options, {"help": "x"}).help == "x"


def test_ctrl_c_is_one_line_and_130():
    """Of a command that only reads, while it works."""
    program = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from headdynamics.analysis.program import Command, run\n"
        "def work(args):\n    print('here', flush=True)\n    time.sleep(60)\n"
        "sys.exit(run(['work'], {'work': Command('work', work, lambda parser: None)}))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "headdynamics: interrupted\n")


def test_of_a_traceback_a_terminal_shows_the_error_alone():
    try:
        raise RuntimeError("size mismatch:\n\tcopying \x1b[31m" + "x" * 400)
    except RuntimeError:
        record = logging.LogRecord("headdynamics", logging.ERROR, "", 0, "update 72", (), sys.exc_info())
    first, second = Printable().format(record).splitlines()
    assert first == "update 72" and second.startswith("  RuntimeError: size mismatch: copying ?[31mxxx")
    assert len(second) < 330 and second.endswith("...")
