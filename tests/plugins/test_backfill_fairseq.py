"""Backfill of a real fairseq training by the command line: the same run file as live, to the last bit."""

import argparse
import contextlib
import fcntl
import io
import os
import pty
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import fairseq_tiny as tiny
import h5py
import numpy as np
import pytest
import torch
from headdynamics.plugins.fairseq_checkpoints import find, read
from headdynamics.plugins.fairseq_config import ConfigError, safe_config
from run_content import content

from headdynamics.__main__ import main

pytestmark = tiny.needs_safe_reading

BACKFILL = [sys.executable, "-m", "headdynamics", "backfill"]
BLEU = [*tiny.BLEU, "--hd-score", "bleu", "--hd-orders", "importance,random-2"]


@pytest.fixture(scope="module")
def training(data, tmp_path_factory):
    """Four watched epochs with their checkpoints, scored by BLEU; and checkpoints within epochs."""
    save = tmp_path_factory.mktemp("training")
    words = ["--max-epoch", "4", "--save-interval-updates", "16", "--hd-every", "16", "--hd-seed", "4", *BLEU]
    tiny.run(tiny.command(data, save, *words))
    return save


def backfill(*words):
    """In a process of its own; what it printed."""
    return tiny.run([*BACKFILL, *map(str, words)])


def here(*words):
    """In this process, for speed; the program's status."""
    return main(["backfill", *map(str, words)])


def last_line(capfd):
    return capfd.readouterr().err.strip().splitlines()[-1]


def copied(training, to, *names):
    to.mkdir(parents=True)
    for name in names:
        shutil.copy(training / name, to / name)
    return to


def updates(path):
    with h5py.File(path) as file:
        return file["snapshots/update"][:].tolist()


def test_the_same_file_as_live(training, data, tmp_path):
    """Another process, the arguments in any order, copies among them: every dataset, and the signature."""
    live = training / "headdynamics.h5"
    rows = updates(live)
    places = sorted(training.glob("checkpoint*.pt"), key=lambda path: path.name[::-1])
    said = backfill(*places, "--data", data, "-o", tmp_path / "back.h5", "--only", ",".join(map(str, rows)))
    assert "left out" in said and said.splitlines()[0] == str(tmp_path / "back.h5")
    with h5py.File(live) as file:
        assert any(epoch % 1 for epoch in file["snapshots/epoch"][:]) and file["snapshots/score"][-1] > 0
    assert content(live, "checkpoint") == content(tmp_path / "back.h5", "checkpoint")


def test_settings_may_be_others_than_live(training, data, tmp_path):
    own = ["--score", "loss", "--examples", "12", "--fractions", "0,1", "--orders", "importance", "--every-th", "2"]
    own += ["--ablate", "one"]
    assert here(training, "--data", data, "-o", tmp_path / "loss.h5", *own, "--transfer") == 0
    with h5py.File(tmp_path / "loss.h5") as file:
        assert file.attrs["metric"] == "loss" and set(file["snapshots/n_importance"][:]) == {12}
        assert file["transfer/score"].shape == (len(file["snapshot"]), 2)
        assert np.array_equal(file["transfer/score"][-1], file["curve/score"][-1, 0])
        assert file["transfer/score"].attrs["update"] == file["snapshot"][-1]
        assert np.isfinite(file["transfer/score"][:]).all() and np.isfinite(file["ablation/one/delta"][:]).all()
    wide = ["--eval-bleu-args", '{"beam": 1, "max_len_b": 3}', "--fractions", "0", "--every-th", "99"]
    assert here(training, "--data", data, "-o", tmp_path / "wide.h5", *wide) == 0
    with h5py.File(tmp_path / "wide.h5") as file, h5py.File(training / "headdynamics.h5") as live:
        assert len(file["snapshot"]) == 1
        assert file["snapshots/score"][-1] != live["snapshots/score"][-1]


def test_kill_9_and_go_on(training, data, tmp_path, caplog):
    """Killed when the first row is there: the next call measures the others only."""
    words = [*BACKFILL, str(training), "--data", str(data), "-o", str(tmp_path / "back.h5")]
    process = subprocess.Popen(words, env=tiny.ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):  # not there yet, or just being replaced
            if updates(tmp_path / "back.h5"):
                break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = updates(tmp_path / "back.h5")
    with caplog.at_level("INFO", "headdynamics"):
        assert here(*words[4:]) == 0
    assert first and f"{len(first)} of " in caplog.text
    assert here(training, "--data", data, "-o", tmp_path / "once.h5") == 0
    assert len(updates(tmp_path / "once.h5")) > len(first)
    assert content(tmp_path / "once.h5") == content(tmp_path / "back.h5")


def test_ctrl_c_ends_it_after_the_checkpoint_at_hand_and_the_same_command_goes_on(
    training, data, tmp_path, caplog, capfd
):
    """In a terminal, where a bar is drawn; the second time through a pipe, where none is."""
    file = tmp_path / "back.h5"
    words = [*BACKFILL, str(training), "--data", str(data), "-o", str(file), "--ablate", "one"]
    words += ["--orders", "importance"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    with subprocess.Popen(words, env=tiny.ENVIRONMENT, stdout=-1, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while not re.search(rb"checkpoints: +[2-9]\d%", said):  # amid the second of six
            said += os.read(ours, 1000)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # Linux's end of a terminal
            while more := os.read(ours, 1000):
                said += more
        printed = process.stdout.read().decode()
    os.close(ours)
    told, count = said.decode(), len(updates(file))
    assert process.returncode == 130 and printed == f"{file}\n", told
    assert "ends after the checkpoint at hand; once more: at once" in told and "Traceback" not in told
    every = int(re.search(r"(\d+) checkpoints; run file", told)[1])
    assert f"{count} of {every} checkpoints have their row in {file}: the same command goes on" in told
    assert 0 < count < every and "left]" in told
    with caplog.at_level("INFO", "headdynamics"):
        assert here(*words[4:]) == 0
    assert f"{count} of {every} checkpoints have their row" in caplog.text and "%|" not in capfd.readouterr().err
    assert len(updates(file)) == every


class Bomb:
    """A pickle of it makes the file `mark` when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def spoiled(path, change):
    """Rewrite a checkpoint."""
    tiny.allow_fairseq_checkpoints()
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def _set(section, name, value):
    def change(state):
        part = state["cfg"][section]
        (part.__dict__ if isinstance(part, argparse.Namespace) else part)[name] = value

    return change


@pytest.mark.parametrize("where", ["cfg", "extra_state", "beside"])
def test_a_hostile_pickle_is_not_run(training, data, tmp_path, where, caplog):
    """In each place of a checkpoint; the good one beside it is measured all the same."""
    folder = copied(training, tmp_path / "out", "checkpoint1.pt", "checkpoint2.pt")
    mark = tmp_path / "ran"
    place = {"cfg": _set("task", "eval_bleu_args", Bomb(mark))}
    place["extra_state"] = lambda state: state["extra_state"].update(more=Bomb(mark))
    place["beside"] = lambda state: state.update(more=Bomb(mark))
    spoiled(folder / "checkpoint1.pt", place[where])
    assert here(folder, "--data", data, "--score", "loss", "--fractions", "0") == 0
    assert "checkpoint1.pt is not loaded" in caplog.text and "nothing in a checkpoint is ever run" in caplog.text
    assert len(updates(folder / "backfill.h5")) == 1 and not mark.exists()
    torch.load(folder / "checkpoint1.pt", weights_only=False)
    assert mark.exists()  # so the bomb was real


@pytest.mark.parametrize(
    ("section", "name", "value", "sentence"),
    [
        ("model", "conv_feature_layers", "[__import__('pathlib').Path('MARK').touch()]", "could be run as code"),
        ("criterion", "wer_args", " (lambda: 1)()", "could be run as code"),
        ("task", "feature_encoder_spec", "[x for x in ().__class__.__mro__]", "could be run as code"),
        ("task", "source_lang", "${oc.env:HOME}", "could be run as code"),
        ("task", "_name", "os", "knows no task 'os'"),
        ("criterion", "_name", "cross_entrpy", "knows no criterion 'cross_entrpy'"),
        ("model", "_name", "mine_tiny", "architecture 'mine_tiny': give the training's own code by --user-dir"),
    ],
)
def test_a_hostile_or_foreign_configuration_is_refused(training, data, tmp_path, section, name, value, sentence, capfd):
    folder = copied(training, tmp_path / "out", "checkpoint2.pt")
    spoiled(folder / "checkpoint2.pt", _set(section, name, value.replace("MARK", str(tmp_path / "ran"))))
    assert here(folder, "--data", data) == 2
    said = last_line(capfd)
    assert said.startswith("headdynamics: ") and sentence in said
    assert not (tmp_path / "ran").exists() and not (folder / "backfill.h5").exists()


def test_what_a_checkpoint_names_is_neither_imported_nor_written(training, data, tmp_path):
    folder = copied(training, tmp_path / "out", "checkpoint2.pt")
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")

    def change(state):
        written = {"hd_file": str(tmp_path / "ran"), "hd_tensorboard": str(tmp_path / "ran"), "hd_save_weights": True}
        written |= {"tensorboard_logdir": str(tmp_path / "ran"), "log_file": str(tmp_path / "ran")}
        for common in (state["cfg"]["common"], vars(state["cfg"]["model"])):
            common.update(written, user_dir=str(evil), hd_user_dir=str(evil), use_plasma_view=True, plasma_path="evil")
        state["cfg"]["optimizer"]["adam_betas"] = f"open({str(tmp_path / 'ran')!r}, 'w')"

    spoiled(folder / "checkpoint2.pt", change)
    assert here(folder, "--data", data, "--fractions", "0") == 0
    assert not (tmp_path / "ran").exists()
    assert sorted(p.name for p in folder.iterdir()) == ["backfill.h5", "backfill.h5.lock", "checkpoint2.pt"]


PLAIN = ["(0.9, 0.98)", "[(512, 10, 5)] + [(512, 3, 2)] * 4", "checkpoint_last.pt", "f(", "a b"]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_settings_pass(training, data, text):
    found = tiny.checkpoint(training, "checkpoint1.pt")["cfg"]
    vars(found["model"])["something"] = text
    config = safe_config(found, str(data), {}, True)
    assert config.model.something == text and config.task.data == str(data) and config.common.user_dir is None
    with pytest.raises(ConfigError, match="no plain value but a bytes"):
        safe_config({**found, "criterion": {"_name": b"cross_entropy"}}, str(data), {}, True)


def sections(text):
    """A cfg whose model has this setting, and which is unknown to fairseq for the rest."""
    return {name: {"_name": "x"} for name in "task criterion dataset optimization common".split()} | {
        "model": {"something": text}
    }


@pytest.mark.parametrize(
    "text", [*PLAIN, "de-en", "data-bin/wmt19.en-de", '{"beam": 4, "a": true, "b": -1.5}', "", "9" * 4000]
)
def test_text_that_is_no_more_than_text_or_a_few_numbers_passes(text):
    with pytest.raises(ConfigError, match="knows no task"):
        safe_config(sections(text), "", {}, True)


@pytest.mark.parametrize(
    "text",
    ["9**9**9**9", "'%0999999999d' % 1", "[0]*10**9", "[0] * 1000000000", "9999 * (9999 * 'a')", "cfg.a * cfg.b",
     "cfg.a * 9000", "(10000 * 10000) * [0]", "[0] * 0x3b9aca00", "1 << 999999999999", "(a := [0])", "{**a}", "x[1]",
     "().__class__", "f'{1:0999999999d}'", "[*a]"],
)  # fmt: skip
def test_text_that_python_could_be_kept_busy_by_is_refused(text):
    """fairseq's `eval` of the first would take for ever, and of the next all memory."""
    with pytest.raises(ConfigError, match="could be run as code"):
        safe_config(sections(text), "", {}, True)


def tiny_state(update=7):
    extra = {"train_iterator": {"epoch": 2, "iterations_in_epoch": 0}}
    history = [{"num_updates": update, "optimizer_name": "FairseqAdam"}]
    return {"model": {"a": torch.ones(3)}, "optimizer_history": history, "extra_state": extra}


def damaged(kind, seed):
    """A checkpoint of 3 weights, in one of torch's forms, with a few bytes changed or cut; or bytes by chance."""
    rng = random.Random(seed)
    if kind == "noise":
        return rng.randbytes(rng.randrange(400))
    buffer = io.BytesIO()
    torch.save(tiny_state(), buffer, _use_new_zipfile_serialization=kind == "zip")
    raw = bytearray(buffer.getvalue())
    for _ in range(rng.randrange(1, 6)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.3 else raw)


@pytest.mark.parametrize("kind", ["zip", "legacy", "noise"])
def test_whatever_is_damaged_the_good_ones_beside_it_are_found(tmp_path, kind):
    bad, good = tmp_path / "checkpoint1.pt", tmp_path / "checkpoint2.pt"
    torch.save(tiny_state(9), good)
    alone = 0
    for seed in range(60):
        bad.write_bytes(damaged(kind, seed))
        found = find([tmp_path])
        assert (found[-1].path, found[-1].update) == (good, 9)
        alone += len(found) == 1
    assert alone > 20


@pytest.mark.parametrize("update", [float("inf"), float("nan"), 10**30, -1, torch.ones(2), "many", None])
def test_a_checkpoint_that_does_not_say_where_training_stood_is_left_out(tmp_path, update, caplog, capfd):
    """It gets no row, for a row needs its update; `--strict` stops there, naming it."""
    torch.save(tiny_state(update), tmp_path / "checkpoint1.pt")
    torch.save(tiny_state(9), tmp_path / "checkpoint2.pt")
    assert [stand.update for stand in find([tmp_path])] == [9]
    assert "left out" in caplog.text and "checkpoint1.pt does not say where training stood" in caplog.text
    assert here(tmp_path, "--data", tmp_path) == 2
    assert "checkpoint2.pt has no cfg" in last_line(capfd)
    assert here(tmp_path, "--data", tmp_path, "--strict") == 2
    assert "checkpoint1.pt does not say where training stood" in last_line(capfd)


@pytest.mark.parametrize(
    ("option", "text", "sentence"),
    [("--only", "abc", "'abc' is no list of updates"), ("--fractions", "0,a", "'0,a' is no list of numbers")],
)
def test_a_list_that_is_none_is_named_by_its_own_option(tmp_path, option, text, sentence, capfd):
    torch.save(tiny_state(), tmp_path / "checkpoint1.pt")
    assert here(tmp_path, "--data", tmp_path, option, text) == 2
    assert last_line(capfd).startswith(f"headdynamics: argument {option}: {sentence}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["OUT", "--data", "nowhere"], "--data nowhere does not exist"),
        (["OUT/checkpoint9.pt", "--data", "DATA"], "checkpoint9.pt does not exist"),
        (["OUT", "--data", "DATA", "--score", "blue"], "unknown score 'blue' (did you mean 'bleu'?)"),
        (["OUT", "--data", "DATA", "--orders", "imprtance"], "unknown order 'imprtance'"),
        (["OUT", "--data", "DATA", "--fractions", "0;1"], "no list of numbers"),
        (["OUT", "--data", "DATA", "--subset", "tset"], "no subset 'tset'"),
        (["OUT", "--data", "DATA", "--only", "5"], "no checkpoint is of update 5; there are"),
        (["OUT", "--data", "DATA", "--every-th", "0"], "give 1 or more"),
        (["OUT", "--data", "OUT"], "Could not infer language pair"),
        (["OUT/headdynamics.h5", "--data", "DATA"], "is no checkpoint"),
        (["OUT"], "required: --data"),
    ],
)
def test_one_clear_line(training, data, tmp_path, words, sentence, capfd):
    places = {"OUT": str(training), "DATA": str(data)}
    words = [word.replace("OUT", places["OUT"]).replace("DATA", places["DATA"]) for word in words]
    assert here(*words, "-o", tmp_path / "run.h5", *(["--every-th", "9"] if "blue" in words else [])) == 2
    last = last_line(capfd)
    assert last.startswith("headdynamics: ") and sentence in last


def test_help_and_readers_need_no_torch():
    program = (
        "import sys; from headdynamics.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('torch' in sys.modules)"
    )
    for words in (["--help"], ["backfill", "--help"], ["watch", "--help"], ["show", "nothing.h5"]):
        said = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=os.environ)
        assert said.stdout.strip().endswith("False"), said
    everything = tiny.run([sys.executable, "-m", "headdynamics", "--help"])
    assert all(name in everything for name in ("settle", "curves", "show", "backfill", "watch"))


def test_a_torch_that_cannot_read_them_safely_is_told(training, monkeypatch):
    monkeypatch.delattr(torch.serialization, "add_safe_globals")
    with pytest.raises(ValueError, match="torch 2.4 and later can"):
        read(next(training.glob("checkpoint*.pt")))
