"""Runs that are resumed and killed: the same bits, no gap and no double. In a file of its own: one worker runs it."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from functools import partial

import fairseq_forked as forked
import fairseq_tiny as tiny
import h5py
import numpy as np
import pytest
import torch
from fairseq_tiny import BLEU, checkpoint


def train_steps(log):
    """What fairseq logged of each training step: loss, gradient norm, batch size, tokens."""
    steps = [json.loads(line.split("| train_inner | ")[1]) for line in log.splitlines() if "| train_inner | " in line]
    return [(s["num_updates"], s["loss"], s["gnorm"], s["bsz"], s["wpb"]) for s in steps]


def assert_same(a, b, where=""):
    if where.endswith("._float_tensor"):  # fairseq 0.12.2 saves memory that it never wrote
        assert a.shape == b.shape, where
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{i}")
    else:
        assert a == b, where


@pytest.fixture(scope="session")
def resumed_runs(data, tmp_path_factory):
    """The same training without and with the instrument, each stopped after two epochs and resumed for a third."""
    folder = tmp_path_factory.mktemp("resumed")
    logs = {}
    for name, watched in (("plain", False), ("watched", True)):
        ours = ["--hd-every", "4", "--hd-early", "--hd-score", "bleu", "--hd-save-weights"] if watched else []
        run = tiny.run if watched else partial(forked.run, log=folder / "log")
        logs[name] = "".join(
            run(tiny.command(data, folder / name, "--max-epoch", epochs, *BLEU, *ours, watched=watched))
            for epochs in ("2", "3")
        )
    return folder, logs


def test_training_is_bit_identical(resumed_runs):
    folder, logs = resumed_runs
    plain, watched = checkpoint(folder / "plain"), checkpoint(folder / "watched")
    assert_same(plain["model"], watched["model"], "model")
    assert_same(plain["last_optimizer_state"], watched["last_optimizer_state"], "optimizer")
    assert_same(plain["extra_state"]["train_iterator"], watched["extra_state"]["train_iterator"], "data order")
    assert len(train_steps(logs["plain"])) > 20
    assert train_steps(logs["plain"]) == train_steps(logs["watched"])


def test_rows_and_checkpoints(resumed_runs):
    folder, logs = resumed_runs
    steps = len(train_steps(logs["watched"]))
    with h5py.File(folder / "watched/headdynamics.h5") as run:
        updates = run["snapshots/update"][:].tolist()
        per_epoch = steps // 3
        early = {max(1, round(per_epoch * part)) for part in (1 / 8, 1 / 4, 1 / 2)}
        ends = {2 * per_epoch, 3 * per_epoch}  # where each of the two processes stopped
        assert updates == sorted(early | set(range(4, steps + 1, 4)) | ends)
        assert set(run["snapshots/status"].asstr()[:]) == {"ok"}
        assert np.isfinite(run["importance/mean"][:]).all() and (run["importance/mean"][:] > 0).all()
        assert np.isfinite(run["curve/score"][:]).all()
        assert run.attrs["metric"] == "bleu" and bool(run.attrs["greater_is_better"])
        names = run["snapshots/checkpoint"].asstr()[:]
        assert sorted(set(run["heads/kind"].asstr()[:])) == ["cross", "decoder", "encoder"]
    from safetensors.torch import load_file

    saved = load_file(names[-1])
    model = checkpoint(folder / "watched")["model"]
    assert all(torch.equal(value, model[name]) for name, value in saved.items())


def test_kill_and_resume_leave_no_gap_and_no_double(data, tmp_path):
    """kill -9 at several instants of a run that measures after every update, then run to the end."""
    save, words = tmp_path / "run", ["--max-epoch", "3", "--hd-every", "1", "--save-interval-updates", "3"]
    for attempt in range(3):
        process = subprocess.Popen(
            tiny.command(data, save, *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=tiny.ENVIRONMENT,
        )
        rows = 0
        for line in process.stdout:
            rows += "| headdynamics | epoch" in line
            if rows == 4 + attempt:
                time.sleep(0.05 * attempt)  # in a write, in a snapshot, in a step
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        with h5py.File(save / "headdynamics.h5") as run:
            assert len(run["snapshot"]) >= rows
    log = tiny.run(tiny.command(data, save, *words))
    last = int(re.findall(r'"train_num_updates": "(\d+)"', log)[-1])
    with h5py.File(save / "headdynamics.h5") as run:
        assert run["snapshots/update"][:].tolist() == list(range(1, last + 1))
        assert set(run["snapshots/status"].asstr()[:]) == {"ok"}
    assert not [name for name in os.listdir(save) if name.endswith(".tmp") and name.startswith(".headdynamics")]
    shutil.rmtree(save)


def test_tensorboard_tags(resumed_runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = resumed_runs
    events = EventAccumulator(str(folder / "watched/tensorboard/headdynamics")).Reload()
    tags = events.Tags()
    assert {"importance_by_kind/cross", "importance_by_layer/decoder-1", "score/unpruned"} <= set(tags["scalars"])
    assert {"stability/with_previous", "heads/importance", "curve/figure_5"} <= set(
        tags["scalars"] + tags["images"]
    )
    assert len(tags["scalars"]) + len(tags["images"]) < 30
    with h5py.File(folder / "watched/headdynamics.h5") as run:
        scores = dict(zip(run["snapshots/update"][:].tolist(), run["snapshots/score"][:], strict=True))
    assert {e.step: e.value for e in events.Scalars("score/unpruned")} == pytest.approx(scores, abs=1e-4)
