"""What cannot be measured never ends a training, nor changes it, unless `strict`."""

import builtins
import logging

import hf_tiny as tiny
import pytest
import torch
from hf_tiny import FEW, HeadDynamicsCallback
from transformers import TrainerCallback

from headdynamics.heads import HeadsError
from headdynamics.losses import NoLabelsError
from headdynamics.schema import RunFileError

LOUD = FEW | {"tensorboard": False}


class NoAttention(torch.nn.Module):
    """A bag of words."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.answer = torch.nn.Embedding(20, 4), torch.nn.Linear(4, 2)

    def forward(self, input_ids, labels=None):
        """Loss and logits."""
        logits = self.answer(self.embed(input_ids).mean(1))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def raising(prediction):
    raise ZeroDivisionError("no such thing as a metric")


def nan(prediction):
    return {"accuracy": float("nan")}


def no_attention(tmp_path):
    return {"model": NoAttention()}, {}, HeadsError, "no attention heads found"


def no_labels(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "labels"} for row in tiny.sentences(9, 2)]
    return {}, {"eval_dataset": rows}, NoLabelsError, "the batch has no labels"


def metrics_raise(tmp_path):
    return {"evaluation": False}, {"compute_metrics": raising}, ZeroDivisionError, "no such thing"


def metric_missing(tmp_path):
    options = {"compute_metrics": tiny.accuracy, "score": "bleu"}
    return {}, options, ValueError, "unknown score 'bleu'; there are loss, right, accuracy"


def metric_unknown(tmp_path):
    return {"metrics": None}, {"score": "bleu"}, ValueError, "there are accuracy, loss, perplexity"


def no_place(tmp_path):
    (tmp_path / "file").touch()
    return {}, {"path": tmp_path / "file/run.h5"}, RunFileError, "choose another place"


def no_such_evaluation(tmp_path):
    return {"several": True}, {"eval_dataset": "third"}, ValueError, "unknown evaluation data 'third'; "


CASES = [no_attention, no_labels, metrics_raise, metric_missing, metric_unknown, no_place, no_such_evaluation]


def train(folder, options, strict, path, several=False, **changes):
    """Attach and train; the trainer."""
    options = LOUD | {"strict": strict} | options
    made = tiny.trainer(folder, ("attach", options.pop("path", path), options), **changes)
    if several:
        made.eval_dataset = {"first": made.eval_dataset}
    made.train()
    return made


def alone(folder, several=False, **changes):
    """The same without the instrument."""
    made = tiny.trainer(folder, None, **changes)
    if several:
        made.eval_dataset = {"first": made.eval_dataset}
    made.train()
    return made


@pytest.mark.parametrize("case", CASES)
def test_training_goes_on_the_same_and_one_sentence_says_why(tmp_path, case, caplog):
    changes, options, _, words = case(tmp_path)
    watched = tiny.left(train(tmp_path / "out", options, False, tmp_path / "run.h5", **changes))
    errors = [r.getMessage() for r in caplog.records if r.name == "headdynamics" and r.levelno >= logging.ERROR]
    assert len(errors) == 1 and words in errors[0] and errors[0].endswith("Training goes on without it.")
    changes = {"model": NoAttention()} if case is no_attention else changes
    assert tiny.same(watched, tiny.left(alone(tmp_path / "alone", **changes)))


@pytest.mark.parametrize("case", CASES)
def test_strict_raises(tmp_path, case):
    changes, options, error, words = case(tmp_path)
    with pytest.raises(error, match=words):
        train(tmp_path / "out", options, True, tmp_path / "run.h5", **changes)


def test_a_metric_that_fails_later_is_a_row_with_its_reason(tmp_path):
    calls = []

    def sometimes(prediction):
        calls.append(1)
        if len(calls) == 3:  # once before training, then the first snapshot's curve
            raise ZeroDivisionError("third time")
        return tiny.accuracy(prediction)

    path = tmp_path / "run.h5"
    made = train(tmp_path / "out", {"compute_metrics": sometimes}, False, path)
    rows = tiny.rows(path)
    assert rows["update"] == [5, 10]
    assert rows["status"] == ["ZeroDivisionError: third time", "ok"]
    assert tiny.same(tiny.left(made), tiny.left(alone(tmp_path / "alone")))


def test_a_nan_score_is_recorded_as_such(tmp_path):
    train(tmp_path / "out", {"compute_metrics": nan}, False, tmp_path / "run.h5")
    rows = tiny.rows(tmp_path / "run.h5")
    assert rows["update"] == [5, 10] and all(score != score for score in rows["score"])


def test_without_tensorboard_the_run_file_is_written(tmp_path, caplog, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name.startswith(("torch.utils.tensorboard", "tensorboard")):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    train(tmp_path / "out", {"tensorboard": True}, False, tmp_path / "run.h5")
    assert tiny.rows(tmp_path / "run.h5")["update"] == [5, 10]
    assert "goes on without TensorBoardRecorder" in caplog.text and "pip install" in caplog.text


def test_a_folder_that_is_missing_is_made(tmp_path):
    train(tmp_path / "out", {}, True, tmp_path / "not/there/run.h5")
    assert tiny.rows(tmp_path / "not/there/run.h5")["update"] == [5, 10]


def test_a_reporter_that_fails_does_not_end_training(tmp_path, caplog):
    class Broken(TrainerCallback):
        def on_log(self, args, state, control, logs, **_):
            if "headdynamics/score" in logs:
                raise OSError("the reporter is away")

    made = tiny.trainer(tmp_path / "out", ("attach", tmp_path / "run.h5", LOUD), callbacks=[Broken()])
    made.train()
    assert tiny.rows(tmp_path / "run.h5")["update"] == [5, 10]
    assert "the reporter is away" in caplog.text


NONSENSE = [{"every": "often"}, {"estimator": "guess"}, {"fractions": (1, 0)}, {"orders": ("best",)}, {"examples": 0}]


@pytest.mark.parametrize("options", NONSENSE)
def test_options_that_make_no_sense_are_refused_at_once(options):
    with pytest.raises(ValueError):
        HeadDynamicsCallback(**options)
