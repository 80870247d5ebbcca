"""Two real ranks of fairseq-train, each of which measures its share: a single process's numbers, in one file."""

import fairseq_forked as forked
import fairseq_tiny as tiny
import h5py
import numpy as np
import pytest
from fairseq_tiny import checkpoint
from run_content import content
from test_fairseq_resumed import assert_same, train_steps

import headdynamics as hd
from headdynamics.__main__ import main

SHARES = ["--max-tokens-valid", "60"]  # several batches, so that each rank has some
STILL = "--lr 1e-30 --dropout 0 --attention-dropout 0 --required-batch-size-multiple 1".split()  # one set of weights


def trained(data, save, *more, watched=True):
    """Two ranks that end well; their logs."""
    codes, logs = forked.ranks(tiny.command(data, save, *SHARES, *more, watched=watched), save)
    assert codes == [0, 0], logs[0][-3000:] + logs[1][-3000:]
    assert "done training" in logs[0]
    return logs


def own_code(folder, text):
    """A user's own --user-dir, imported as well."""
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(f"import os\nimport torch.distributed as dist\n{text}")
    return ["--hd-user-dir", str(folder)]


def second_measurement(what):
    """Code by which rank 1 does `what` in the midst of the second snapshot."""
    return f"""
from headdynamics import observer
measured, calls = observer.importance, []

def importance(*args, **kwargs):
    calls.append(1)
    if len(calls) == 2 and dist.get_rank() == 1:
        {what}
    return measured(*args, **kwargs)

observer.importance = importance
"""


def backfilled(data, save, to):
    """The checkpoints of a training, measured by this one process."""
    assert main(["backfill", str(save), "--data", str(data), "-o", str(to), "--cpu"]) == 0
    return to


def statuses(save):
    with h5py.File(save / "headdynamics.h5") as file:
        return file["snapshots/status"].asstr()[:].tolist()


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """Two epochs on two ranks, updates of two batches each: plain, and watched with all that there is."""
    folder = tmp_path_factory.mktemp("two")
    words = ["--max-epoch", "2", "--update-freq", "2", "--report-accuracy"]
    ours = ["--hd-score", "accuracy", "--hd-online", "--hd-online-window", "2", "--hd-strict"]
    ours += ["--hd-save-weights"]
    logs = {"plain": trained(data, folder / "plain", *words, watched=False)}
    return folder, logs | {"watched": trained(data, folder / "watched", *words, *ours)}


def test_training_is_bit_identical(two):
    folder, logs = two
    plain, watched = checkpoint(folder / "plain"), checkpoint(folder / "watched")
    for part in ("model", "last_optimizer_state"):
        assert_same(plain[part], watched[part], part)
    assert_same(plain["extra_state"]["train_iterator"], watched["extra_state"]["train_iterator"], "data order")
    steps = train_steps(logs["plain"][0])
    assert len(steps) == 6 and steps == train_steps(logs["watched"][0])


@tiny.needs_safe_reading
def test_the_numbers_are_a_single_process_s_to_the_bit(two, data, tmp_path):
    """A value that the task reports, and I(h): as backfill measures the same checkpoints by itself."""
    live = two[0] / "watched/headdynamics.h5"
    alone = backfilled(data, two[0] / "watched", tmp_path / "back.h5")
    with h5py.File(live) as file:
        assert file["snapshots/n_importance"][:].tolist() == [30, 30]
        assert file.attrs["metric"] == "accuracy" and (file["snapshots/score"][:] > 0).all()
    found, want = (content(path, "checkpoint") for path in (live, alone))
    online = {name for name in found if name.startswith("online/")} | {"window", "@signature"}
    assert {"importance/mean", "importance/blocks", "curve/score", "snapshots/loss"} <= want.keys() - online
    for name in want.keys() - online:
        assert found[name] == want[name], name


def test_online_windows_hold_the_examples_of_both_ranks(two):
    seen = sum(float(sentences) for _, _, _, sentences, _ in train_steps(two[1]["plain"][0]))
    with h5py.File(two[0] / "watched/headdynamics.h5") as file:
        assert file["online/update"][:].tolist() == [2, 3, 5, 6]
        assert file["online/n"][:].sum() == seen > 500 and not file["online/skipped"][:].any()


def test_rank_0_alone_writes(two):
    folder, logs = two
    assert "headdynamics |" in logs["watched"][0] and "headdynamics |" not in logs["watched"][1]
    saved = {"headdynamics.h5", "headdynamics.h5.lock", "headdynamics-weights", "tensorboard"}
    names = {path.name for path in (folder / "watched").iterdir()}
    assert names - {path.name for path in (folder / "plain").iterdir()} == saved
    assert len(list((folder / "watched/tensorboard/headdynamics").iterdir())) == 1
    with h5py.File(folder / "watched/headdynamics.h5") as file:
        weights = file["snapshots/checkpoint"].asstr()[:]
    assert len(weights) == 2 and all(map(tiny.Path.exists, map(tiny.Path, weights)))


@pytest.mark.parametrize("form", ["example", "batch"])
def test_a_window_is_i_of_all_that_both_ranks_saw(data, tmp_path, form):
    """All training sentences in one update, of which each rank has a part, at the weights of the snapshot."""
    ours = ["--hd-subset", "train", "--hd-examples", "300", "--hd-fractions", "0", "--hd-orders", "importance"]
    ours += ["--hd-online", "--hd-online-estimator", form, "--hd-reduction", "sum", "--hd-strict"]
    trained(data, tmp_path, "--max-tokens", "1600", "--max-update", "1", *STILL, *ours)
    run = hd.load_run(tmp_path / "headdynamics.h5")
    with h5py.File(tmp_path / "headdynamics.h5") as file:
        found = {name: file[f"online/{name}"][0] for name in file["online"]}
    assert found["n"] == (300 if form == "example" else 1)
    want = {name: run.importance[name].values[0] for name in ("mean", "signed", "stderr")}
    if form == "batch":
        want = {"mean": abs(300 * want["signed"]), "signed": want["signed"]}
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=3e-6 * abs(value).max(), err_msg=name)


@tiny.needs_safe_reading
def test_what_fails_on_one_rank_is_a_failed_row_and_all_go_on(data, tmp_path):
    """The other rows are a single process's."""
    own = own_code(tmp_path / "own", second_measurement("raise ValueError('broken here')"))
    logs = trained(data, tmp_path / "run", "--max-epoch", "3", *own)
    assert statuses(tmp_path / "run") == ["ok", "RankError: rank 1: ValueError: broken here", "ok"]
    assert "could not measure update 10 and goes on without it" in logs[0]
    alone = content(backfilled(data, tmp_path / "run", tmp_path / "back.h5"))
    live = content(tmp_path / "run/headdynamics.h5")
    (shape, want), (_, found) = alone["importance/mean"], live["importance/mean"]
    size = len(want) // shape[0]
    assert (found[:size], found[2 * size :]) == (want[:size], want[2 * size :])


def test_a_rank_killed_in_a_snapshot_ends_the_others_and_loses_nothing(data, tmp_path):
    """kill -9; what was measured stands, and the restarted training goes on in the same file."""
    own = own_code(tmp_path / "own", second_measurement("os.kill(os.getpid(), 9)"))
    words = tiny.command(data, tmp_path / "run", *SHARES, "--max-epoch", "3")
    codes, _ = forked.ranks([*words, *own], tmp_path / "run")
    assert codes[1] == -9 and codes[0] not in (0, -9)
    first, *rest = statuses(tmp_path / "run")
    assert first == "ok" and all("a rank does not answer" in status for status in rest)
    trained(data, tmp_path / "run", "--max-epoch", "3")
    assert statuses(tmp_path / "run") == ["ok"] * 3
    with h5py.File(tmp_path / "run/headdynamics.h5") as file:
        assert file["snapshots/epoch"][:].tolist() == [1, 2, 3]


SCORE_FAILS = """
from headdynamics.plugins import fairseq_setup

made = fairseq_setup.make_score

def make_score(*args):
    if dist.get_rank() == 1:
        raise ValueError("no such score here")
    return made(*args)

fairseq_setup.make_score = make_score
"""


@pytest.mark.parametrize(
    ("code", "options", "sentence"),
    [
        (SCORE_FAILS, ["--hd-online"], "not attached: rank 1: ValueError: no such score here. Training goes on"),
        ("", ["--use-bmuf"], "not attached: with --use-bmuf the weights of the ranks differ"),
    ],
)
def test_ranks_are_attached_all_or_none(data, tmp_path, code, options, sentence):
    """Said once; training goes on."""
    logs = trained(data, tmp_path / "run", "--max-update", "3", *options, *own_code(tmp_path / "own", code))
    assert sentence in logs[0] and "headdynamics |" not in logs[1]
    assert checkpoint(tmp_path / "run")["optimizer_history"][-1]["num_updates"] == 3
    assert not (tmp_path / "run/headdynamics.h5").exists() or not statuses(tmp_path / "run")
