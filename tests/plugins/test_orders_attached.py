"""Pruning orders by name in real trainings: all their rows, the same bits of the training as without."""

import fairseq_tiny as fairseq
import h5py
import hf_tiny as hf
import numpy as np
from headdynamics.analysis.load import load_run
from headdynamics.analysis.orders import compare_orders

NAMES = "importance,reestimated-1,fisher,integrated-2,gates-5,shapley,greedy-2,oracle,random-1:encoder"


def test_a_trainer_does_not_notice_orders_that_search(tmp_path):
    options = hf.QUIET | {"orders": tuple(NAMES.split(","))}
    left = []
    for watch in (("attach", tmp_path / "run.h5", options), None):
        trainer = hf.trainer(tmp_path / str(watch is None), watch)
        trainer.train()
        left.append(hf.left(trainer))
    assert hf.same(*left)
    run = load_run(tmp_path / "run.h5")
    assert run.curve["order"].values.tolist() == NAMES.split(",")
    assert np.isfinite(run.curve["score"].values).all() and np.isfinite(run.orders["area"].values).all()
    assert not run.failures


def test_fairseq_prunes_by_kind(tmp_path, data):
    names = "importance,importance:encoder,importance:decoder,importance:cross,greedy-1:cross"
    log = fairseq.run(fairseq.command(data, tmp_path, "--max-update", "3", "--hd-strict", "--hd-orders", names))
    assert "done training" in log
    with h5py.File(tmp_path / "headdynamics.h5") as file:
        scores = file["curve/score"][-1]
    assert len({tuple(row) for row in scores}) == 5 and len(set(scores[:, 0])) == 1
    groups = compare_orders(load_run(tmp_path / "headdynamics.h5")).groups
    assert [(group.kind, group.heads) for group in groups] == [("", 24), ("encoder", 8), ("decoder", 8), ("cross", 8)]
    assert {one.name for one in groups[3].standings} == {"importance", "greedy-1"}
