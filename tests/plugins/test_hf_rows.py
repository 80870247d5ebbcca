"""The right rows at the right moments, before the save, and none lost or doubled by a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hf_tiny as tiny
import numpy as np
import pytest
import transformers
from hf_tiny import QUIET, HeadDynamicsCallback
from transformers import EarlyStoppingCallback, TrainerCallback

HOW = ["callback", "attach"]


def watched(how, folder, path, options=None, **settings):
    """A trainer with the instrument."""
    options = QUIET | (options or {})
    watch = HeadDynamicsCallback(path, **options) if how == "callback" else ("attach", path, options)
    return tiny.trainer(folder, watch, **settings)


@pytest.mark.parametrize("how", HOW)
def test_one_row_an_epoch_before_its_checkpoint(tmp_path, how, monkeypatch):
    path, seen = tmp_path / "run.h5", []
    trainer = watched(how, tmp_path / "out", path)
    save = trainer._save_checkpoint
    monkeypatch.setattr(trainer, "_save_checkpoint", lambda *a: (seen.append(tiny.rows(path)["update"][-1]), save(*a)))
    trainer.train()
    rows = tiny.rows(path)
    assert seen == rows["update"] == [5, 10]
    assert rows["epoch"] == [1, 2]
    assert rows["status"] == ["ok", "ok"]
    assert rows["n_importance"] == [12, 12]
    assert rows["checkpoint"] == [str(tmp_path / f"out/checkpoint-{u}") for u in (5, 10)]
    assert all(Path(place).is_dir() for place in rows["checkpoint"])
    assert rows["metric"] == "accuracy" and np.isfinite(rows["score"]).all()


@pytest.mark.parametrize(
    ("options", "settings", "updates"),
    [
        ({"every": 3}, {}, [3, 6, 9, 10]),
        ({"every": 5}, {}, [5, 10]),
        ({"every": None}, {}, [10]),
        ({"early": True}, {"per_device_train_batch_size": 1}, [2, 4, 9, 18, 36]),
        ({"every": "log"}, {}, [1, 2, 4, 8, 10]),
        ({"every": lambda moment: moment.update == 7}, {}, [7, 10]),
        ({}, {"eval_strategy": "no"}, [5, 10]),
        ({}, {"max_steps": 7}, [5, 7]),
        ({}, {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}, [5, 10]),
        ({}, {"eval_strategy": "steps", "eval_steps": 5}, [5, 10]),
    ],
)
def test_rows_when_asked(tmp_path, options, settings, updates):
    watched("attach", tmp_path / "out", tmp_path / "run.h5", options, **settings).train()
    rows = tiny.rows(tmp_path / "run.h5")
    assert rows["update"] == updates
    saved = {place for place in rows["checkpoint"] if place}
    assert saved == {f"{tmp_path}/out/checkpoint-{u}" for u in updates if (tmp_path / f"out/checkpoint-{u}").exists()}


def test_a_stop_that_is_known_only_after_the_evaluation_has_its_row(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    stop = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "learning_rate": 1e-9}
    early = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = watched("attach", tmp_path / "out", tmp_path / "run.h5", callbacks=[early], **settings | stop)
    trainer.train()
    assert trainer.state.global_step == 6
    rows = tiny.rows(tmp_path / "run.h5")
    assert rows["update"] == [5, 6]
    assert rows["checkpoint"][1] == str(tmp_path / "out/checkpoint-6")


def test_the_last_row_is_of_the_last_weights_not_of_the_best(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    loaded = watched("attach", tmp_path / "best", tmp_path / "best.h5", {"every": None}, **best)
    loaded.train()
    assert loaded.state.best_global_step == 5
    watched("attach", tmp_path / "last", tmp_path / "last.h5", {"every": None}).train()
    assert tiny.rows(tmp_path / "best.h5")["update"] == [10]
    assert np.array_equal(tiny.rows(tmp_path / "best.h5")["seen"], tiny.rows(tmp_path / "last.h5")["seen"])


def test_a_callback_alone_waits_for_the_first_evaluation_and_says_so(tmp_path, caplog):
    watched("callback", tmp_path / "out", tmp_path / "run.h5", {"every": 3}).train()
    assert tiny.rows(tmp_path / "run.h5")["update"] == [6, 9, 10]
    assert "headdynamics skips update 3" in caplog.text and "attach(trainer)" in caplog.text


@pytest.mark.parametrize("how", HOW)
def test_no_evaluation_data_means_training_data_said_aloud(tmp_path, how, caplog):
    watched(how, tmp_path / "out", tmp_path / "run.h5", evaluation=False).train()
    assert tiny.rows(tmp_path / "run.h5")["update"] == [5, 10]
    assert "measures on training examples" in caplog.text


@tiny.needs_resume
@pytest.mark.parametrize("how", HOW)
def test_resume_drops_the_rows_beyond_and_goes_on(tmp_path, how):
    path = tmp_path / "run.h5"
    watched(how, tmp_path / "out", path, {"every": 1}, num_train_epochs=3, save_steps=4, save_strategy="steps").train()
    first = tiny.rows(path)
    again = watched(how, tmp_path / "out", path, {"every": 1}, num_train_epochs=3, save_steps=4, save_strategy="steps")
    again.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-8"))
    rows = tiny.rows(path)
    assert [p.name for p in tmp_path.glob("*.h5")] == ["run.h5"]
    wanted = list(range(1, 16)) if how == "attach" else [5, 6, 7, 8, *range(10, 16)]
    assert rows["update"] == wanted
    both = [u in first["update"] for u in rows["update"]]
    assert all(both) and np.array_equal(first["seen"][[first["update"].index(u) for u in rows["update"]]], rows["seen"])


@tiny.needs_resume
def test_resume_with_nothing_left_keeps_the_row(tmp_path):
    path = tmp_path / "run.h5"
    watched("attach", tmp_path / "out", path).train()
    before = path.read_bytes()
    watched("attach", tmp_path / "out", path).train(resume_from_checkpoint=True)
    assert tiny.rows(path)["update"] == [5, 10]
    assert len(before) > 0 and tiny.rows(path)["checkpoint"][1].endswith("checkpoint-10")


def process(*words, **environment):
    command = [sys.executable, tiny.__file__, *map(str, words)]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@tiny.needs_resume
@pytest.mark.parametrize("where", ["measure", "write"])
def test_kill_9_and_resume_leaves_no_gap_and_no_double(tmp_path, where):
    path, out, mark = tmp_path / "run.h5", tmp_path / "out", tmp_path / "mark"
    first = process(out, path, HD_TEST_HANG=f"{where}:3:{mark}")
    deadline = time.monotonic() + 150
    while not mark.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert mark.exists(), first.stderr.read().decode()[-2000:]
    assert tiny.rows(path)["update"] == [5, 10]
    again = process(out, path, out / "checkpoint-10")
    assert again.wait() == 0, again.stderr.read().decode()[-2000:]
    rows = tiny.rows(path)
    assert rows["update"] == [5, 10, 15, 20] and rows["status"] == ["ok"] * 4
    assert [p.name for p in tmp_path.glob("*.h5")] == ["run.h5"] and not list(tmp_path.glob(".*.tmp"))


def test_own_weights_are_named_and_load(tmp_path):
    from safetensors.torch import load_file

    trainer = watched("attach", tmp_path / "out", tmp_path / "run.h5", {"save_weights": True})
    trainer.train()
    places = tiny.rows(tmp_path / "run.h5")["checkpoint"]
    assert [Path(p).name for p in places] == ["update-000005.safetensors", "update-000010.safetensors"]
    assert Path(places[0]).parent == tmp_path / "run-weights"
    assert tiny.same(load_file(places[1]), dict(trainer.model.state_dict()))
    before = load_file(places[0])
    other = watched("attach", tmp_path / "out2", tmp_path / "run.h5", {"save_weights": True, "examples": 11})
    other.train()  # another run writes run-2.h5, and its weights beside that
    assert {Path(p).parent.name for p in tiny.rows(tmp_path / "run-2.h5")["checkpoint"]} == {"run-2-weights"}
    assert tiny.same(load_file(places[0]), before)


class Noting(TrainerCallback):
    """A reporter that keeps what it is shown."""

    def __init__(self):
        self.shown = []

    def on_log(self, args, state, control, logs, **_):
        self.shown.append((state.global_step, dict(logs)))


def test_attach_shows_its_numbers_to_reporters_and_not_to_the_state(tmp_path):
    reporter = Noting()
    trainer = watched("attach", tmp_path / "out", tmp_path / "run.h5", {"fractions": (0, 0.2, 1)}, callbacks=[reporter])
    trainer.train()
    ours = [(step, logs) for step, logs in reporter.shown if "headdynamics/score" in logs]
    rows = tiny.rows(tmp_path / "run.h5")
    assert [step for step, _ in ours] == [5, 10]
    assert [logs["headdynamics/score"] for _, logs in ours] == rows["score"]
    for (_, logs), curve in zip(ours, rows["curve"], strict=True):
        assert logs["headdynamics/retained_importance_20"] == curve[0, 1] / curve[0, 0]
    assert not any(key.startswith("headdynamics") for entry in trainer.state.log_history for key in entry)


def test_tensorboard_under_the_trainers_own_folder(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))  # transformers 5 asks for it so
    settings = {"logging_dir": str(tmp_path / "board")} if transformers.__version__.startswith("4.") else {}
    settings["report_to"] = "tensorboard"
    watched("attach", tmp_path / "out", tmp_path / "run.h5", {"tensorboard": True}, **settings).train()
    assert len(list((tmp_path / "board/headdynamics").glob("events*"))) == 1
