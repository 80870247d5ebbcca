"""A budget under real trainers: what all snapshots take stays within their share of the training's wall-clock."""

import time

import fairseq_tiny
import h5py
import hf_tiny as tiny
import numpy as np
import pytest
from headdynamics.plugins import fairseq_trainer, hf_trainer
from transformers import TrainerCallback, default_data_collator

from headdynamics.budget import Budget
from headdynamics.observer import Observer

SLACK = 1.3  # clocks of a tiny training jump: a snapshot of 10 ms may take 20
UPDATES = 150


class Slow(TrainerCallback):
    """Makes a step of a tiny model last as long as one of a small one."""

    def on_step_begin(self, *_, **__):
        time.sleep(0.02)


@pytest.fixture
def booked(monkeypatch):
    """[(seconds since the one before, seconds of the snapshot)] of each visit, by a clock of the test's own."""
    found, original = [], Observer.snapshot
    last = [None]

    def snapshot(self, *args, **kwargs):
        began = time.monotonic()
        try:
            return original(self, *args, **kwargs)
        finally:
            ended = time.monotonic()
            found.append((began - (last[0] or began), ended - began))
            last[0] = ended

    def start(self, *args, **kwargs):
        last[0] = time.monotonic()
        created(self, *args, **kwargs)

    created = Budget.__init__
    monkeypatch.setattr(Budget, "__init__", start)
    monkeypatch.setattr(Observer, "snapshot", snapshot)
    return found


def check_share(booked, share, seen, largest):
    training, ours = (sum(column) for column in zip(*booked, strict=True))
    assert ours <= share * training * SLACK
    assert seen[0] == min(seen) < max(seen) <= largest, seen


def test_hugging_face(tmp_path, booked):
    path = tmp_path / "run.h5"
    options = tiny.QUIET | {"examples": 320, "score_examples": 160, "batch_size": 5, "budget": 0.5, "every": 15}
    trainer = tiny.trainer(
        tmp_path / "out", ("attach", path, options), callbacks=[Slow()], evaluation=True, max_steps=UPDATES,
        gradient_accumulation_steps=1, eval_strategy="no", save_strategy="no", metrics=None, learning_rate=1e-9,
    )  # fmt: skip
    trainer.eval_dataset = tiny.sentences(320, 2)
    trainer.train()
    with h5py.File(path) as run:
        assert run["snapshots/status"].asstr()[:].tolist() == ["ok"] * 10
        seen, scored = run["snapshots/n_importance"][:], run["snapshots/n_score"][:]
        error = run["importance/stderr"][:].mean(1)
    check_share(booked, 0.5, seen, 320)
    assert set(seen) <= {10, 20, 40, 60, 80, 120, 160, 240, 320} and seen[0] == 10
    assert np.array_equal(scored, [-(-n // 10) * 5 for n in seen])  # the same share of both
    assert error[np.argmax(seen)] < error[0]


def test_fairseq(data, tmp_path, booked, monkeypatch):
    """In this process: the clock is read round its snapshots."""
    from fairseq.trainer import Trainer
    from fairseq_cli import train

    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda *args, **more: (time.sleep(0.04), step(*args, **more))[1])
    words = fairseq_tiny.command(data, tmp_path / "run", "--max-epoch", "7", "--hd-budget", "0.3", "--no-save")
    words += ["--hd-orders", "importance", "--hd-tensorboard", "none", "--hd-strict", "--disable-validation"]
    monkeypatch.setattr("sys.argv", words)
    fairseq_trainer.install()
    train.cli_main()
    with h5py.File(tmp_path / "run/headdynamics.h5") as run:
        seen, scored = run["snapshots/n_importance"][:], run["snapshots/n_score"][:]
    assert len(seen) == 7
    check_share(booked, 0.3, seen, 30)
    assert seen[0] == 1 and scored[0] == 1 and set(scored) <= {1, 2, 3, 4, 5, 8, 10, 15, 20}


@pytest.mark.parametrize("metrics", [tiny.accuracy, None])
def test_the_trainers_own_evaluation_of_some_parts(tmp_path, metrics):
    """Every batch full but the last of all, so that the Trainer's loop weighs examples alike."""
    path = tmp_path / "run.h5"
    options = tiny.QUIET | {"score_examples": 24, "budget": 1.0, "score": "eval_loss", "batch_size": 7}
    trainer = tiny.trainer(tmp_path / "out", ("attach", path, options), metrics=metrics)
    trainer.train()
    watched = trainer.watch.observer
    examples = watched.score.examples
    assert examples.sizes == (7, 7, 7, 7, 7, 14, 14, 21, 24) and watched.batches.sizes == (7, 7, 7, 7, 7, 7, 7, 12, 12)
    model = trainer.model.eval()
    for taken in (1, 6, 9):
        examples.taken = taken
        rows = examples.dataset
        assert len(rows) == examples.sizes[examples.taken - 1]
        batch = {k: v for k, v in default_data_collator(rows).items() if k != "unused"}
        expected = model(**{k: v.to(model.device) for k, v in batch.items()}).loss.item()
        assert watched.score(model) == pytest.approx(expected, rel=1e-5)
    assert tiny.rows(path)["status"] == ["ok", "ok"]


def test_a_budget_is_checked_before_training():
    with pytest.raises(ValueError, match="a budget is a share of training time"):
        hf_trainer.HeadDynamicsCallback("run.h5", budget=5)
