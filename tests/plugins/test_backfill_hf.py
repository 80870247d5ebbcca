"""Backfill of a real Trainer's checkpoints: the same run file as live, to the last bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import hf_tiny as tiny
import numpy as np
import pytest
import torch
from headdynamics.plugins.hf_checkpoints import find
from hf_tiny import QUIET, HeadDynamicsCallback
from run_content import content

import headdynamics as hd
from headdynamics.__main__ import main
from headdynamics.checkpoints import Checkpoint, in_order, measure_checkpoints, saved_weights
from headdynamics.observer import Observer


def trained(folder, how="attach", options=None, **settings):
    """A finished training of 2 epochs that was watched; its run file."""
    path = folder / "live.h5"
    options = QUIET | (options or {})
    watch = HeadDynamicsCallback(path, **options) if how == "callback" else ("attach", path, options)
    tiny.trainer(folder / "out", watch, **settings).train()
    return path


@pytest.mark.parametrize(
    ("how", "settings"),
    [
        ("attach", {}),
        ("callback", {}),
        ("attach", {"lm": True}),
        ("attach", {"bf16": True, "metrics": None}),
        ("attach", {"evaluation": False}),
        ("attach", {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}),
    ],
    ids=["attach", "callback", "language model", "bf16", "training data", "within epochs"],
)
def test_the_same_file_as_live(tmp_path, how, settings):
    """Another Trainer, of other random weights, finds what the training recorded."""
    options = {"every": 2} if "save_steps" in settings else {}
    live = trained(tmp_path, how, options, **settings)
    known = {"metrics": None} if how == "callback" else {}  # a callback alone does not know the Trainer's
    again = tiny.trainer(tmp_path / "other", **settings, **known)
    torch.nn.init.normal_(next(again.model.parameters()))
    written = hd.backfill(again, tmp_path / "back.h5", tmp_path / "out", **QUIET | options)
    assert written == str(tmp_path / "back.h5")
    assert len(tiny.rows(live)["update"]) == len(list((tmp_path / "out").glob("checkpoint-*"))) > 1
    assert content(live) == content(written)


def test_a_live_file_is_completed_in_its_gaps_and_the_rest_is_left_alone(tmp_path):
    """Same settings, same signature: rows that are missing go where they belong."""
    every = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    whole = trained(tmp_path, options={"every": 1}, **every)
    sparse = tmp_path / "sparse.h5"
    tiny.trainer(tmp_path / "again", ("attach", sparse, QUIET | {"every": 4}), **every).train()
    assert tiny.rows(sparse)["update"] == [4, 8, 10]
    seconds = h5py.File(sparse)["snapshots/seconds"][:].tolist()
    assert hd.backfill(tiny.trainer(tmp_path / "x", **every), sparse, tmp_path / "out", **QUIET) == str(sparse)
    assert content(whole, "checkpoint") == content(sparse, "checkpoint")
    with h5py.File(sparse) as file:
        assert file["snapshots/seconds"][[3, 7, 9]].tolist() == seconds


@pytest.mark.parametrize("more", [{"online": True, "online_window": 3}, {"budget": 1.0}], ids=["online", "budget"])
def test_a_file_written_with_online_or_a_budget_is_completed_with_or_without(tmp_path, more):
    every = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    live = trained(tmp_path, options=more | {"every": 4}, **every)
    assert tiny.rows(live)["update"] == [4, 8, 10]
    for options, only in ((more, [2]), ({}, [3])):
        trainer = tiny.trainer(tmp_path / "x", **every)
        assert hd.backfill(trainer, live, tmp_path / "out", only=only, **QUIET | options) == str(live)
    rows = tiny.rows(live)
    assert rows["update"] == [2, 3, 4, 8, 10] and rows["n_importance"][:2] == [12, 12]


@tiny.needs_resume
def test_online_may_be_switched_on_at_a_resume(tmp_path):
    live = trained(tmp_path)
    again = tiny.trainer(tmp_path / "out", ("attach", live, QUIET | {"online": True, "online_window": 3}))
    again.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-5"))
    with h5py.File(live) as file:
        assert file["snapshot"][:].tolist() == [5, 10] and file["window"][:].tolist() == [8, 10]
        assert np.array_equal(file["online/average"][0], file["online/mean"][0].astype(np.float32))
    assert not list(tmp_path.glob("live-2.h5"))


def test_the_trainer_is_as_before_and_some_checkpoints_may_be_chosen(tmp_path):
    every = {"save_strategy": "steps", "save_steps": 1}
    tiny.trainer(tmp_path / "out", **every).train()
    trainer = tiny.trainer(tmp_path / "x")
    trainer.model.train()
    before, random = {k: v.clone() for k, v in trainer.model.state_dict().items()}, torch.get_rng_state()
    attributes = dict(vars(trainer))
    out = tmp_path / "out"
    hd.backfill(trainer, tmp_path / "fourth.h5", out, every_th=4, **QUIET)
    assert tiny.rows(tmp_path / "fourth.h5")["update"] == [2, 6, 10]
    hd.backfill(trainer, tmp_path / "only.h5", [out / f"checkpoint-{u}" for u in (9, 2, 4, 9)], only=[9, 2], **QUIET)
    assert tiny.rows(tmp_path / "only.h5")["update"] == [2, 9]
    assert tiny.same(before, dict(trainer.model.state_dict())) and torch.equal(random, torch.get_rng_state())
    assert trainer.model.training and dict(vars(trainer)) == attributes
    with pytest.raises(ValueError, match="no checkpoint is of update 11; there are 1, 2"):
        hd.backfill(trainer, tmp_path / "no.h5", out, only=[2, 11], **QUIET)
    with pytest.raises(ValueError, match="is no checkpoint of a Trainer"):
        hd.backfill(trainer, tmp_path / "no.h5", tmp_path, **QUIET)
    assert not (tmp_path / "no.h5").exists()


@pytest.mark.parametrize("wrong", ["missing", "cut", "other", "tied"])
def test_a_bad_checkpoint_is_a_row_that_says_why_and_is_tried_again(tmp_path, wrong):
    from safetensors.torch import load_file, save_file

    live = trained(tmp_path)
    file = tmp_path / "out/checkpoint-5/model.safetensors"
    good = file.read_bytes()
    if wrong == "missing":
        file.unlink()
    elif wrong == "cut":
        file.write_bytes(good[:-100])
    else:
        state = load_file(file)
        state.pop("classifier.bias") if wrong == "other" else state.update(more=torch.zeros(1))
        save_file(state, file, {"format": "pt"})
    trainer = tiny.trainer(tmp_path / "x")
    quiet = QUIET | {"strict": False}
    written = hd.backfill(trainer, tmp_path / "back.h5", tmp_path / "out", **quiet)
    rows = tiny.rows(written)
    said = {"missing": "safetensors", "cut": "Error", "other": "missing classifier.bias", "tied": "unexpected more"}
    assert rows["update"] == [5, 10] and rows["status"][1] == "ok" and said[wrong] in rows["status"][0]
    assert np.isnan(rows["seen"][0]).all() and np.isnan(rows["score"][0])
    with pytest.raises(Exception, match=said[wrong] if wrong != "cut" else ""):
        hd.backfill(trainer, tmp_path / "strict.h5", tmp_path / "out", **QUIET)
    file.write_bytes(good)
    assert hd.backfill(trainer, written, tmp_path / "out", **quiet) == written
    assert content(live) == content(written)


def states(folder, **steps):
    for name, step in steps.items():
        (folder / name.replace("_", "-")).mkdir(exist_ok=True)
        (folder / name.replace("_", "-") / "trainer_state.json").write_text(
            json.dumps({"global_step": step, "epoch": 1.0})
        )


def test_a_folder_with_a_state_of_its_own_still_is_a_folder_of_checkpoints(tmp_path):
    """`trainer.save_state()` writes one; a checkpoint itself, or folders of other names, are found as before."""
    states(tmp_path, checkpoint_5=5, checkpoint_10=10)
    shutil.copy(tmp_path / "checkpoint-10/trainer_state.json", tmp_path)
    assert sorted(c.update for c in find([tmp_path])) == [5, 10]
    assert [c.path for c in find([tmp_path / "checkpoint-5"])] == [str(tmp_path / "checkpoint-5")]
    (tmp_path / "other").mkdir()
    states(tmp_path / "other", first=1, second=2)
    assert sorted(c.update for c in find([tmp_path / "other"])) == [1, 2]


@pytest.mark.parametrize(
    "text", ['{"epo', "[]", '{"epoch": 1.0}', '{"global_step": 1e999, "epoch": 1}', "[" * 100000]
    + [f'{{"global_step": {step}, "epoch": 1}}' for step in (-1, 10**30, "[]")]
)  # fmt: skip
def test_a_state_that_cannot_be_read_is_left_out(tmp_path, text, caplog):
    states(tmp_path, checkpoint_5=5, checkpoint_10=10)
    (tmp_path / "checkpoint-10/trainer_state.json").write_text(text)
    assert [c.update for c in find([tmp_path])] == [5]
    where = f"{tmp_path / 'checkpoint-10/trainer_state.json'} does not say where training stood"
    assert f"left out: {where}" in caplog.text
    for places, strict in (([tmp_path], True), ([tmp_path / "checkpoint-10"], False)):
        with pytest.raises(ValueError, match="does not say where training stood"):
            find(places, strict=strict)


@tiny.needs_resume  # nor a pytorch_model.bin
def test_nothing_but_weights_is_opened(tmp_path):
    """Whatever else lies in a checkpoint, hostile pickles too, is left closed; a hostile .bin is refused."""
    live = trained(tmp_path)
    mark = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (mark,))

    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save(Bomb(), tmp_path / "out/checkpoint-5" / name)
    folder = tmp_path / "out/checkpoint-10"
    (folder / "model.safetensors").rename(tmp_path / "kept")
    torch.save({"weights": Bomb()}, folder / "pytorch_model.bin")
    quiet = QUIET | {"strict": False}
    trainer = tiny.trainer(tmp_path / "x")
    written = hd.backfill(trainer, tmp_path / "back.h5", tmp_path / "out", **quiet)
    assert not mark.exists()
    rows = tiny.rows(written)
    assert rows["status"][0] == "ok" and "eights" in rows["status"][1]
    from safetensors.torch import load_file

    torch.save(load_file(tmp_path / "kept"), folder / "pytorch_model.bin")
    hd.backfill(trainer, written, tmp_path / "out", **quiet)
    assert content(live) == content(written)
    torch.load(tmp_path / "out/checkpoint-5/optimizer.pt", weights_only=False)
    assert mark.exists()  # so the bomb was real


def test_kill_9_and_go_on(tmp_path):
    """Killed while the second of four is measured: a valid file with the first, completed by the next call."""
    settings = {"num_train_epochs": 4}
    live = trained(tmp_path, **settings)
    program = (
        "import sys, time, pathlib, hf_tiny as tiny, headdynamics as hd; from headdynamics.observer import Observer\n"
        "folder, mark = map(pathlib.Path, sys.argv[1:]); real = Observer._measure; calls = []\n"
        "def measure(self):\n"
        "    calls.append(1); mark.touch() if len(calls) == 2 else None; time.sleep(600 * (len(calls) == 2))\n"
        "    return real(self)\n"
        "Observer._measure = measure\n"
        "hd.backfill(tiny.trainer(folder / 'x'), folder / 'back.h5', folder / 'out', **tiny.QUIET)\n"
    )
    mark, here = tmp_path / "mark", str(Path(tiny.__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), str(mark)], env=os.environ | {"PYTHONPATH": here}
    )
    deadline = time.monotonic() + 60
    while not mark.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert mark.exists() and tiny.rows(tmp_path / "back.h5")["update"] == [5]
    hd.backfill(tiny.trainer(tmp_path / "x"), tmp_path / "back.h5", tmp_path / "out", **QUIET)
    assert content(live) == content(tmp_path / "back.h5")
    assert not list(tmp_path.glob("*-2.h5"))


def test_an_interrupt_leaves_the_file_and_the_weights(tmp_path, monkeypatch):
    live = trained(tmp_path)
    trainer = tiny.trainer(tmp_path / "x")
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    real = Observer._measure

    def interrupted(self):
        if (tmp_path / "back.h5").exists() and tiny.rows(tmp_path / "back.h5")["update"]:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Observer, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hd.backfill(trainer, tmp_path / "back.h5", tmp_path / "out", **QUIET)
    assert tiny.same(before, dict(trainer.model.state_dict()))
    monkeypatch.setattr(Observer, "_measure", real)
    hd.backfill(trainer, tmp_path / "back.h5", tmp_path / "out", **QUIET)
    assert content(live) == content(tmp_path / "back.h5")


def test_saved_weights_are_measured_as_their_checkpoints(tmp_path):
    live = trained(tmp_path, options={"save_weights": True})
    trainer = tiny.trainer(tmp_path / "x")
    written = hd.backfill(trainer, tmp_path / "back.h5", tmp_path / "live-weights", **QUIET)
    assert content(live, "epoch") == content(written, "epoch")
    assert np.isnan(tiny.rows(written)["epoch"]).all()
    with pytest.raises(ValueError, match="holds no update"):
        saved_weights(tmp_path)


def test_transfer_is_the_last_model_pruned_by_each_order(tmp_path, capsys):
    """Against masking by hand; its last row is the last curve; `show` prints it."""
    trained(tmp_path)
    trainer = tiny.trainer(tmp_path / "x", metrics=None)
    options = QUIET | {"fractions": (0, 0.25, 0.5), "score": "loss", "score_examples": 24}
    path = hd.backfill(trainer, tmp_path / "back.h5", tmp_path / "out", transfer=True, **options)
    run = hd.load_run(path)
    transfer = run.transfer["score"].values
    assert np.array_equal(transfer[-1], run.curve["score"].sel(order="importance").values[-1])
    assert main(["show", path]) == 0
    printed = capsys.readouterr().out.partition("loss of the last model")[2]
    assert all(f"{score:.3f}" in printed for score in transfer.ravel())
    from safetensors.torch import load_file

    model = tiny.bert()
    model.load_state_dict(load_file(tmp_path / "out/checkpoint-10/model.safetensors"))
    model.eval()
    batch = tiny.default_data_collator([{k: r[k] for k in r if k != "unused"} for r in tiny.sentences(24, 2)])
    means = run.importance["mean"].values[0].astype(float).reshape(2, 4)
    order = np.argsort((means / np.linalg.norm(means, axis=1, keepdims=True)).ravel(), kind="stable")
    for share, expected in zip((0, 2, 4), transfer[0], strict=True):
        keep = np.ones(8, bool)
        keep[order[:share]] = False
        with torch.no_grad(), hd.masked(hd.find_heads(model), torch.tensor(keep)):
            assert float(model(**batch).loss) == pytest.approx(expected, rel=1e-6)
    # one more checkpoint before them: what was measured keeps its row, and the new one has no transfer yet
    shutil.copytree(tmp_path / "out/checkpoint-5", tmp_path / "out/checkpoint-3")
    state = tmp_path / "out/checkpoint-3/trainer_state.json"
    state.write_text(state.read_text().replace('"global_step": 5', '"global_step": 3'))
    hd.backfill(trainer, path, tmp_path / "out", **options)
    after = hd.load_run(path).transfer["score"].values
    assert np.isnan(after[0]).all() and np.array_equal(after[1:], transfer)


def test_the_transfer_is_to_the_last_model_of_all_whatever_is_chosen(tmp_path, capsys):
    trained(tmp_path)
    trainer = tiny.trainer(tmp_path / "x")
    options = QUIET | {"transfer": True, "score": "loss", "fractions": (0, 0.25, 0.5)}
    whole = hd.load_run(hd.backfill(trainer, tmp_path / "all.h5", tmp_path / "out", **options))
    path = hd.backfill(trainer, tmp_path / "first.h5", tmp_path / "out", only=[5], **options)
    first = hd.load_run(path)
    assert first.snapshots["update"].values.tolist() == [5]
    assert np.array_equal(first.transfer["score"].values[0], whole.transfer["score"].values[0])
    assert first.transfer["score"].values[0, 0] != first.snapshots["score"].values[0]  # another model than its own
    with h5py.File(path) as file:
        assert file["transfer/score"].attrs["update"] == 10
    assert main(["show", path]) == 0
    assert "of the last model (update 10)" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "out/checkpoint-10/model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="no transfer: the last checkpoint, .*checkpoint-10, cannot be loaded"):
        hd.backfill(trainer, tmp_path / "bad.h5", tmp_path / "out", only=[5], **options)
    assert tiny.rows(tmp_path / "bad.h5")["status"] == ["ok"]


def test_any_loop_with_loaders_of_its_own(tmp_path, caplog):
    """The core alone: arguments in any order, copies measured once and said so."""
    torch.manual_seed(0)
    model = tiny.bert()
    batches = [tiny.default_data_collator([{k: r[k] for k in r if k != "unused"} for r in tiny.sentences(8, 1)])]
    weights = {u: torch.randn_like(model.classifier.weight) for u in (30, 10, 20)}

    def loader(update):
        return lambda model: model.classifier.weight.data.copy_(weights[update])

    points = [Checkpoint(u, u / 10, f"at {u}", loader(u)) for u in (30, 10, 20, 10)]
    observer = Observer(model, str(tmp_path / "run.h5"), batches=batches, update=None, fractions=(0, 1))
    with caplog.at_level("INFO"):
        assert measure_checkpoints(observer, points) == [10, 20, 30]
    assert "at 10 is of update 10, as at 10 is: left out" in caplog.text
    assert measure_checkpoints(observer, points) == []
    observer.close()
    assert [c.update for c in in_order(points)] == tiny.rows(tmp_path / "run.h5")["update"] == [10, 20, 30]
    memory = Observer(model, None, batches=batches, update=None)
    with pytest.raises(ValueError, match="give the observer its path"):
        measure_checkpoints(memory, points)
