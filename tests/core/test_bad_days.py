"""Models that diverge, evaluation sets of 0, 1 and odd sizes, models whose shape changes: said, recorded, gone on."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import models
import numpy as np
import pytest
import ranked
import torch
from torch import nn

import headdynamics as hd
from headdynamics.__main__ import main
from headdynamics.losses import cross_entropy
from headdynamics.record.tensorboard import TensorBoardRecorder

matplotlib.use("agg")
DIVERGES = 6  # the update at which the model is no longer what it was


def nan_weights(model: nn.Module, loss: OneExample) -> None:
    """A diverged training's."""
    model.bert.encoder.layer[0].attention.self.query.weight.detach().fill_(float("nan"))


def large_weights(model: nn.Module, loss: OneExample) -> None:
    """Finite ones whose products are not."""
    for parameter in model.bert.encoder.layer[1].parameters():
        parameter.detach().mul_(1e30)


def one_example(model: nn.Module, loss: OneExample) -> None:
    """The rest of the examples is as it was."""
    loss.bad = True


class OneExample:
    """cross_entropy; from when `bad` is set, infinite for a single one of the examples."""

    bad = False

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """[B]."""
        losses = cross_entropy(model, batch)
        third = batch["input_ids"][:, 0] == ranked.batches()[1]["input_ids"][0, 0]
        return losses * torch.where(third & self.bad, torch.inf, 1.0)


@pytest.mark.parametrize(("diverge", "said"), [(nan_weights, "nan"), (large_weights, "nan"), (one_example, "inf")])
def test_a_loss_that_is_no_number(diverge, said, tmp_path, capsys, caplog):
    """Rows with what is missing, a status that says so; every reader goes on with the rest, and says what it left."""
    model, loss = models.CASES["bert"].build(), OneExample()
    path = str(tmp_path / "run.h5")
    observer = hd.Observer(
        model, path, batches=ranked.batches(), score=hd.mean_loss(ranked.batches(), loss), loss=loss,
        ablations=("one",), fractions=(0.0, 0.5, 1.0), strict=True,
    )  # fmt: skip
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "headdynamics"):
        warnings.simplefilter("error")
        tensorboard = started(TensorBoardRecorder(tmp_path / "tb"), observer.run)
        for update in range(1, DIVERGES + 2):
            if update == DIVERGES:
                diverge(model, loss)
            taken = observer.snapshot(update=update)
            if update in (1, DIVERGES) and diverge is not large_weights:
                with np.errstate(invalid="ignore"):  # as within Observer.snapshot
                    tensorboard.write(taken)
    observer.close()
    assert taken.status == f"not finite: the mean loss is {said}" and np.isnan(taken.importance.mean).any()
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2 and f"has loss {said}" in caplog.text

    run = hd.load_run(path)
    assert list(run.snapshots["status"].values) == ["ok"] * (DIVERGES - 1) + [taken.status] * 2
    assert np.isnan(run.importance["mean"].values[DIVERGES - 1 :]).any(1).all()
    assert np.isfinite(run.importance["mean"].values[: DIVERGES - 1]).all()
    told = {name: command(capsys, *words) for name, words in commands(path, tmp_path, diverge is nan_weights).items()}
    assert f"failed at update {DIVERGES}: {taken.status}" in told["show"]
    assert "2 snapshots failed and left out" in told["settle"] and json.loads(told["json"])["runs"][0]["failed"] == 2
    assert "2 snapshots failed and are left out" in told["curves"]
    assert f"update {DIVERGES - 1}" in told["orders"] and f"update {DIVERGES - 1}" in told["ablations"]
    assert not [name for name, text in told.items() if "nan" in text.lower().replace(f"is {said}", "")]


def started(recorder: TensorBoardRecorder, run: Any) -> TensorBoardRecorder:
    """One that draws at a few of the snapshots only."""
    recorder.start(run, None)
    return recorder


def commands(path: str, folder: Path, drawn: bool = True) -> dict[str, list[str]]:
    """Every command that reads a run file, with its figure where it may be `drawn`."""
    tells = {name: [name, path] for name in ("show", "settle", "orders", "ablations")} | {
        "json": ["settle", "--json", path],
        "compare": ["compare", path, path, "--other", "1"],
    }
    for name in ("orders", "ablations", "compare") if drawn else ():
        tells[name] += ["--figure", str(folder / f"{name}.png")]
    return tells | {"curves": ["curves", path, "-o", str(folder / "curves.png")]}


def command(capsys: Any, *words: str) -> str:
    """What a command prints, and it works."""
    assert main(words) == 0, words
    out, err = capsys.readouterr()
    return out + err


@pytest.mark.parametrize("which", ["batches", "score", "both"])
def test_no_examples_at_all_is_said_at_once(which):
    """Before any file is made."""
    some, none = ranked.batches(), []
    given = none if which != "score" else some
    score = hd.accuracy(none if which != "batches" else some)
    with pytest.raises(ValueError, match="no examples to measure on: the batches are empty; give a list or a loader"):
        hd.Observer(models.CASES["bert"].build(), None, batches=given, score=score)


def test_one_example(tmp_path, capsys):
    """Numbers without errors; every reader says that there are too few, or leaves the errors out."""
    one = [{name: value[:1] for name, value in ranked.batches()[0].items()}]
    path = str(tmp_path / "run.h5")
    observer = hd.Observer(
        models.CASES["bert"].build(), path, batches=one, score=hd.accuracy(one), ablations=("one", "all-but-one"),
        fractions=(0.0, 0.5, 1.0), strict=True,
    )  # fmt: skip
    for update in range(1, 7):
        taken = observer.snapshot(update=update)
    observer.close()
    started(TensorBoardRecorder(tmp_path / "tb"), observer.run).write(taken)
    assert taken.status == "ok" and np.isfinite(taken.importance.mean).all() and taken.importance.n == 1
    assert np.isnan(taken.importance.stderr).all() and np.isnan(taken.curves["importance"].stderr).all()
    told = {name: command(capsys, *words) for name, words in commands(path, tmp_path).items()}
    assert "too few examples to tell how much of a ranking is noise" in told["settle"]
    assert not [name for name, text in told.items() if "nan" in text.lower().replace("importance", "")]


@pytest.mark.parametrize("size", [3, 5, 7, 8])
def test_sizes_that_are_no_multiple_of_the_batch(size):
    """7 examples however they are batched, each counted once."""
    whole = {name: torch.cat([batch[name] for batch in ranked.batches()]) for name in ranked.batches()[0]}
    found = []
    for rows in (size, 1):
        batches = [{name: value[i : i + rows] for name, value in whole.items()} for i in range(0, 7, rows)]
        model, score = models.CASES["bert"].build(), hd.accuracy(batches)
        found.append(hd.Observer(model, None, batches=batches, score=score, strict=True).snapshot(update=1))
    pairs = zip(ranked.numbers(found[0]), ranked.numbers(found[1]), strict=True)
    assert found[0].importance.n == 7 and found[0].curves["importance"].n == 7
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_heads_removed_in_the_middle_of_a_run(tmp_path):
    """The snapshot fails by name, training goes on, and a new observer begins a file of its own."""
    model, path = models.CASES["bert"].build(), str(tmp_path / "run.h5")
    observer = hd.Observer(model, path, batches=ranked.batches())
    assert observer.snapshot(update=1).status == "ok"
    hd.prune(model, np.arange(8), 0.25)
    failed = observer.snapshot(update=2)
    assert failed.status == (
        "HeadsError: bert.encoder.layer.0.attention.self has lost heads since these were found: call "
        "find_heads(model) again"
    )
    observer.close()
    model.zero_grad()
    cross_entropy(model, ranked.batches()[0]).mean().backward()  # no gate and no mask is left behind
    again = hd.Observer(model, path, batches=ranked.batches(), update=2)
    assert again.snapshot(update=3).status == "ok" and again.path == str(tmp_path / "run-2.h5")
    again.close()
    assert [len(hd.load_run(str(tmp_path / name)).heads["head"]) for name in ("run.h5", "run-2.h5")] == [8, 6]
    assert list(hd.load_run(path).snapshots["status"].values) == ["ok", failed.status]
