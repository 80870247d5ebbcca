"""Online importance on real fairseq-train processes: the same bits, I(h) of every batch, no gap and no double."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import fairseq_forked as forked
import fairseq_tiny as tiny
import h5py
import numpy as np
import pytest
import torch
from fairseq_tiny import checkpoint
from headdynamics.plugins.fairseq_losses import CriterionLoss
from headdynamics.plugins.fairseq_online import FairseqOnline
from test_fairseq_resumed import assert_same, train_steps

import headdynamics as hd
from headdynamics.online import Online

sys.path.append(str(Path(__file__).parents[1] / "core"))
from models import CASES, dictionary  # noqa: E402

ONLINE = ["--hd-online", "--hd-online-window", "3", "--hd-every", "never", "--hd-strict"]
NO_DROPOUT = ["--dropout", "0", "--attention-dropout", "0"]


def windows(path):
    with h5py.File(path) as file:
        assert file["window"][:].tolist() == file["online/update"][:].tolist()
        return {name: file[f"online/{name}"][:] for name in file["online"]} | dict(file["online/mean"].attrs)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Two epochs of updates of two batches each: alone, and listened to in both forms; folder and logs."""
    folder, logs = tmp_path_factory.mktemp("online"), {}
    for name in ("alone", "example", "batch"):
        ours = [*ONLINE, "--hd-online-estimator", name] if name != "alone" else []
        words = ["--max-epoch", "2", "--update-freq", "2", *ours]
        words = tiny.command(data, folder / name, *words, watched=name != "alone")
        logs[name] = forked.run(words, folder / f"{name}.log")
    return folder, logs


@pytest.mark.parametrize("form", ["example", "batch"])
def test_the_same_bits_with_and_without(whole, form):
    folder, logs = whole
    alone, listened = checkpoint(folder / "alone"), checkpoint(folder / form)
    for part in ("model", "last_optimizer_state"):
        assert_same(alone[part], listened[part], part)
    assert_same(alone["extra_state"]["train_iterator"], listened["extra_state"]["train_iterator"], "data order")
    steps = train_steps(logs["alone"])
    assert len(steps) == 10 and steps == train_steps(logs[form])
    found = windows(folder / form / "headdynamics.h5")
    assert found["update"].tolist() == [3, 5, 8, 10]
    seen = sum(float(sentences) for _, _, _, sentences, _ in steps)
    assert found["n"].sum() == (seen if form == "example" else 10) and not found["skipped"].any()
    assert np.isfinite(found["mean"]).all() and (found["mean"] > 0).all() and found["scale"] == "own loss"
    assert not len(hd.load_run(folder / form / "headdynamics.h5").snapshots["update"])


def test_a_resumed_run_goes_on_without_a_gap_or_a_double(whole, data, tmp_path):
    """Stopped amid an epoch, at an update that no window ends at: the checkpoint's end is one, and so is the average's.

    (What fairseq trains after a resume is not what it would have trained.)
    """
    for updates in ("4", "10"):
        words = ["--max-epoch", "2", "--max-update", updates, "--update-freq", "2", *ONLINE]
        forked.run(tiny.command(data, tmp_path, *words), tmp_path / "log")
    want, found = windows(whole[0] / "example/headdynamics.h5"), windows(tmp_path / "headdynamics.h5")
    assert found["update"].tolist() == [3, 4, 5, 8, 10] and found["n"].sum() == want["n"].sum()
    np.testing.assert_array_equal(found["mean"][0], want["mean"][0])
    share = 1 - 0.5**0.25
    average = found["mean"][0].astype(float)
    for mean, row in zip(found["mean"], found["average"], strict=True):
        average = average + (mean - average) * share
        np.testing.assert_allclose(row, average, rtol=1e-6)


@pytest.mark.parametrize(("reduction", "update_freq"), [("mean", "1"), ("sum", "2")])
def test_i_of_an_update(data, tmp_path, reduction, update_freq):
    """With all training sentences in one update, its window is the snapshot's I(h) of them, at the same weights.

    A learning rate of nothing keeps the weights; two updates, so that the second has those that the first left.
    """
    examples = ["--hd-subset", "train", "--hd-examples", "300", "--hd-online-window", "1", "--hd-reduction", reduction]
    one = ["--max-tokens", "9999" if update_freq == "1" else "1600", "--update-freq", update_freq, "--max-update", "2"]
    one += ["--required-batch-size-multiple", "1"]
    words = [*ONLINE, "--hd-every", "2", *examples, *one, *NO_DROPOUT, "--lr", "1e-30"]
    forked.run(tiny.command(data, tmp_path, *words), tmp_path / "log")
    run, found = hd.load_run(tmp_path / "headdynamics.h5"), windows(tmp_path / "headdynamics.h5")
    assert found["n"].tolist() == [300, 300] and run.snapshots["n_importance"].values.tolist() == [300]
    for name in ("mean", "signed", "stderr"):
        want = run.importance[name].values[-1]
        np.testing.assert_allclose(found[name][1], want, rtol=0, atol=3e-6 * run.importance["mean"].values.max())


@pytest.mark.skipif(not hasattr(torch.backends, "mha"), reason="torch has no LayerNorm in float16 on a CPU before 2.3")
def test_the_loss_scale_of_fp16_is_divided_out(data, tmp_path):
    """`--memory-efficient-fp16`, which runs on a CPU too: I(h) of steps and snapshots is that of float32, roughly."""
    found = {}
    for name, more in (("float32", []), ("float16", ["--memory-efficient-fp16", "--fp16-init-scale", "256"])):
        words = tiny.command(data, tmp_path / name, *ONLINE, "--hd-every", "1", "--max-update", "1", *NO_DROPOUT, *more)
        log = forked.run(words, tmp_path / name / "log")
        loss = float(re.findall(r'"valid_loss": "([0-9.]+)"', log)[-1])
        run = hd.load_run(tmp_path / name / "headdynamics.h5")
        found[name] = windows(tmp_path / name / "headdynamics.h5")["mean"][0], run.importance["mean"].values[0], loss
    for whole, half in zip(*found.values(), strict=True):
        np.testing.assert_allclose(half, whole, rtol=0, atol=0.01 * np.max(whole))


def test_tensorboard(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = whole[0]
    events = EventAccumulator(str(folder / "example/tensorboard/headdynamics")).Reload()
    found = windows(folder / "example/headdynamics.h5")
    with h5py.File(folder / "example/headdynamics.h5") as file:
        kind = file["heads/kind"].asstr()[:]
    for name in ("encoder", "decoder", "cross"):
        shown = {event.step: event.value for event in events.Scalars(f"online/{name}")}
        wanted = dict(zip([3, 5, 8, 10], found["mean"][:, kind == name].mean(1), strict=True))
        assert shown == pytest.approx(wanted, rel=1e-5)


def test_what_cannot_be_measured_is_said_and_snapshots_go_on(data, tmp_path):
    words = [word for word in ONLINE if word != "--hd-strict"]
    words += ["--max-update", "3", "--hd-online-estimator", "token"]
    log = forked.run(tiny.command(data, tmp_path, *words), tmp_path / "log")
    assert "goes on without online importance: online importance: unknown estimator 'token'" in log
    assert "done training" in log
    with h5py.File(tmp_path / "headdynamics.h5") as file:
        assert file["snapshot"][:].tolist() == [3] and "online" not in file


@pytest.fixture
def listened():
    """A task of two criterion passes a step, each with its backward, scaled as in fp16, and what listens to it."""
    from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion

    case = CASES["fairseq"]
    model, scale = case.build().train(), 1024
    for module in model.modules():
        for name in ("p", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)

    class Task:
        target_dictionary = dictionary()

        def train_step(self, sample, model, criterion, ignore_grad=False, at_once=False):
            losses = []
            for _ in range(2):
                losses.append(criterion(model, sample)[0])
                if not at_once:
                    (losses[-1] * (0 if ignore_grad else scale)).backward()
            if at_once:
                sum(losses).backward()

    task, sample = Task(), {**case.batch, "ntokens": 12}
    criterion = LabelSmoothedCrossEntropyCriterion(task, False, 0.1)
    listens = FairseqOnline(Online(model), SimpleNamespace(task=task, get_criterion=lambda: criterion), "mean")
    listens.start(model, sample)

    def step(**how):
        task.train_step(sample=sample, model=model, criterion=criterion, **how)
        return listens.online

    step.model = model
    return step, hd.importance(model, [sample], CriterionLoss(criterion, 1))


def test_each_pass_of_a_step_counts_and_dummy_batches_do_not(listened):
    step, want = listened
    step(ignore_grad=True)
    found = step().step(1, close=True)
    assert found.n == 6 and found.scale == "own loss"
    np.testing.assert_allclose(found.mean, want.mean, rtol=0, atol=2e-6 * want.mean.max())


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_interrupt_within_a_step_leaves_nothing(listened, monkeypatch, where):
    step, want = listened
    model, linear = step.model, torch.nn.functional.linear

    def struck(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if where == "forward":  # in the middle of an attention
            patch.setattr(torch.nn.functional, "multi_head_attention_forward", struck)
        else:
            patch.setattr("headdynamics.online_sources.Tap.backward", staticmethod(struck))
        step()
    assert torch.nn.functional.linear is linear
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    found = step().step(1, close=True)
    np.testing.assert_allclose(found.mean, want.mean, rtol=0, atol=2e-6 * want.mean.max())


def test_two_losses_in_one_backward_pass_are_not_understood(listened, caplog):
    step, _ = listened
    online = step(at_once=True)
    assert online.failed and "calls its criterion again before the backward pass" in caplog.text


def test_a_criterion_that_returns_a_mean_is_relative(caplog):
    class Mean(torch.nn.Module):
        def forward(self, model, sample, reduce=True):
            losses = CASES["fairseq"].loss(model, sample)
            return losses.mean() if reduce else losses, 1, {}

    model, criterion = CASES["fairseq"].build(), Mean()
    task = SimpleNamespace(target_dictionary=dictionary(), train_step=None)
    online = Online(model)
    trainer = SimpleNamespace(task=task, get_criterion=lambda: criterion)
    FairseqOnline(online, trainer, "mean").start(model, CASES["fairseq"].batch)
    assert online.scale == "relative" and "Mean does not return the sum" in caplog.text
