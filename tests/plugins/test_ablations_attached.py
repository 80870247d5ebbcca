"""Ablations at each snapshot of real trainings: fairseq-train with chrF, and a Hugging Face Trainer."""

import fairseq_tiny as fairseq
import hf_tiny as hf
import numpy as np
import pytest
from headdynamics.analysis.__main__ import main
from headdynamics.analysis.ablations import effects
from headdynamics.analysis.load import load_run

import headdynamics as hd


def test_fairseq_with_chrf(data, tmp_path, capsys):
    """2 x 3 layers of 4 heads, both ablations; the tests are of the translations."""
    ours = ["--hd-ablate", "one,all-but-one", "--hd-score", "chrf", "--hd-score-examples", "12", "--hd-every", "never"]
    words = [*ours, "--hd-fractions", "0", "--hd-orders", "importance", "--disable-validation", *fairseq.BLEU]
    assert "done training" in fairseq.run(fairseq.command(data, tmp_path, "--max-update", "30", *words))
    run = load_run(tmp_path / "headdynamics.h5")
    assert run.signature["settings"]["ablations"] == ["all-but-one", "one"]
    assert run.attrs["metric"] == "chrf" and run.attrs["greater_is_better"] and run.curve["stderr"].values[0, 0, 0] > 0
    for what in ("one", "all-but-one"):
        found = effects(run, what)
        assert (found.test, found.n, found.metric, len(found.delta)) == ("permutation", 12, "chrf", 24)
        assert found.base == pytest.approx(run.snapshots["score"].values[-1]) and 0 < found.base < 100
        assert np.allclose(found.score - found.base, found.delta, atol=1e-9) and len(set(found.delta)) > 4
        assert ((found.pvalue > 0) & (found.pvalue <= 1)).all() and np.isfinite(found.halves).all()
        assert main(["ablations", str(tmp_path / "headdynamics.h5"), "--what", what]) == 0
    out = capsys.readouterr().out
    assert "paired permutation test" in out and "24 heads tested" in out and "cross" in out


def test_hugging_face_and_training_does_not_notice(tmp_path):
    bare = hf.trainer(tmp_path / "bare")
    bare.train()
    options = {**hf.QUIET, "ablations": ["one", "all-but-one"], "score": "accuracy"}
    watched = hf.trainer(tmp_path / "out", ("attach", tmp_path / "run.h5", options), metrics=None)
    watched.train()
    want, have = hf.left(bare), hf.left(watched)
    assert all(hf.same(want[name], have[name]) for name in ("weights", "optimizer", "random", "data"))
    run = load_run(tmp_path / "run.h5")
    for what in ("one", "all-but-one"):
        found = effects(run, what)
        again = hd.ablate(watched.model.eval(), watched.watch.observer.score, what)
        assert (found.test, found.n, found.update) == ("mcnemar", 10, 10)
        assert found.delta.tolist() == again.delta.tolist() and found.pvalue.tolist() == again.pvalue.tolist()
        assert found.base == run.snapshots["score"].values[-1]


def test_hugging_face_options_are_checked():
    with pytest.raises(ValueError, match="unknown ablation 'both'"):
        hd.HeadDynamicsCallback("run.h5", ablations=["both"])
