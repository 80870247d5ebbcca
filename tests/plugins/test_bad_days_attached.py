"""Evaluation sets of none and of one, weights that are no numbers any more: real trainings of both libraries go on."""

from __future__ import annotations

import logging
import types
from typing import Any

import fairseq_tiny
import hf_tiny
import numpy as np
import pytest
import torch
from fairseq.data import indexed_dataset
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from headdynamics.plugins.fairseq_measures import Examples
from headdynamics.plugins.hf_trainer import HeadDynamicsCallback
from transformers import TrainerCallback

import headdynamics as hd


class Diverges(TrainerCallback):
    """After 6 of 10 updates the weights are NaN, as those of a training that diverges."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        """See transformers."""
        if state.global_step == 6:
            model.bert.encoder.layer[0].output.dense.weight.data.fill_(torch.nan)


def test_transformers_diverges_on_one_example(tmp_path):
    """The row before is good, with errors missing; those after say what they lack; 10 updates are done."""
    one = hf_tiny.sentences(1, 2)
    path = str(tmp_path / "run.h5")
    options = hf_tiny.FEW | {"tensorboard": False, "strict": True, "online": "example"}
    watched = HeadDynamicsCallback(path, eval_dataset=one, **options)
    made = hf_tiny.trainer(tmp_path / "out", watched, callbacks=[Diverges()])
    made.train()
    run = hd.load_run(path)
    assert made.state.global_step == 10 and run.snapshots["update"].values.tolist() == [5, 10]
    assert run.snapshots["status"].values.tolist() == ["ok", "not finite: the mean loss is nan"]
    assert run.snapshots["n_importance"].values.tolist() == [1, 1]
    mean, error = run.importance["mean"].values, run.importance["stderr"].values
    assert np.isfinite(mean[0]).all() and np.isnan(mean[1]).all() and np.isnan(error).all()
    assert run.online["skipped"].values.sum() == 28  # 3 updates of 8 examples, and the last of 4


def test_transformers_without_an_example(tmp_path, caplog):
    """Said at attach, with the cure."""
    watched = HeadDynamicsCallback(str(tmp_path / "run.h5"), eval_dataset=[], **hf_tiny.FEW)
    made = hf_tiny.trainer(tmp_path / "out", watched)
    made.train()
    said = [r.getMessage() for r in caplog.records if r.name == "headdynamics" and r.levelno >= logging.ERROR]
    assert len(said) == 1 and "no examples: give eval_dataset=... with some. Training goes on without it." in said[0]
    assert made.state.global_step == 10 and not (tmp_path / "run.h5").exists()


def test_fairseq_with_one_example(data, tmp_path):
    """Numbers without errors."""
    few = ["--max-update", "6", "--hd-every", "3", "--hd-examples", "1", "--hd-score-examples", "1"]
    log = fairseq_tiny.run(fairseq_tiny.command(data, tmp_path / "one", *few))
    run = hd.load_run(str(tmp_path / "one" / "headdynamics.h5"))
    assert "done training" in log and run.snapshots["update"].values.tolist() == [3, 6]
    assert run.snapshots["status"].values.tolist() == ["ok", "ok"] and np.isfinite(run.importance["mean"]).all()
    assert run.snapshots["n_importance"].values.tolist() == run.snapshots["n_score"].values.tolist() == [1, 1]
    assert np.isnan(run.importance["stderr"].values).all() and np.isnan(run.curve["stderr"].values).all()


def test_an_empty_subset_of_fairseq_is_named(data):
    """fairseq itself says nothing but that a file cannot be mapped."""
    for language in ("xx", "yy"):
        empty = str(data / f"none.xx-yy.{language}")
        indexed_dataset.make_builder(f"{empty}.bin", impl="mmap", vocab_size=20).finalize(f"{empty}.idx")
    config = TranslationConfig(data=str(data), source_lang="xx", target_lang="yy", dataset_impl=None)
    trainer = types.SimpleNamespace(task=TranslationTask.setup_task(config))
    with pytest.raises(ValueError, match=r"subset 'none' cannot be read \(cannot mmap an empty file\); choose another"):
        Examples(trainer, "none", 0, 0)
