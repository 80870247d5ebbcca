"""Ablations on their way: observer -> run file -> reader, resumed, failed, and not asked for."""

import h5py
import numpy as np
import pytest
from headdynamics.analysis.ablations import effects
from headdynamics.analysis.load import load_run
from models import CASES

import headdynamics as hd
from headdynamics.record.memory import MemoryRecorder

BOTH = ("one", "all-but-one")
CASE = CASES["bert"]
BATCHES = [CASE.batch] * 3  # nine examples, so that the halves differ


def observer(path, score=None, update=0, **more):
    score = score or hd.accuracy(BATCHES)
    few = {"fractions": (0, 1), "orders": ("importance",), "strict": True}
    path = path and str(path)
    return hd.Observer(CASE.build(), path, batches=BATCHES, score=score, update=update, **{**few, **more})


def test_every_number_comes_back(tmp_path):
    memory = MemoryRecorder()
    watch = observer(tmp_path / "run.h5", ablations=BOTH, recorders=[memory])
    for update in (5, 10):
        watch.snapshot(update)
    watch.close()
    run = load_run(watch.path)
    for what, group in zip(BOTH, (run.ablation_one, run.ablation_all_but_one), strict=True):
        direct = hd.ablate(watch.model, watch.score, what)
        for row, taken in enumerate(memory.snapshots):
            kept = taken.ablations[what]
            found = effects(run, what, row)
            for name in ("score", "delta", "stderr", "pvalue", "halves"):
                assert getattr(found, name).tolist() == getattr(kept, name).tolist() == getattr(direct, name).tolist()
            assert (found.test, found.n) == ("mcnemar", 9) == (kept.test, kept.n)
            assert found.base == pytest.approx(direct.base, rel=1e-15) and kept.base == direct.base
            assert found.block.tolist() == direct.block.tolist()
            assert found.halves[0].tolist() != found.halves[1].tolist()
            for mine, theirs in ((found.best(), direct.best()), (found.held_out(), direct.held_out())):
                assert [column.tolist() for column in mine] == [column.tolist() for column in theirs]
        assert group["score"].dims == ("snapshot", "head") and group["pvalue"].attrs == {"test": "mcnemar"}
    assert len(set(run.ablation_one["delta"].values[0])) > 1


def test_without_ablations_nothing_changes(tmp_path):
    """The same hash as before there were any, no group in the file; and another run where they are asked for."""
    plain, again = observer(tmp_path / "a.h5"), observer(tmp_path / "b.h5", ablations=())
    assert plain.run.signature["hash"] == again.run.signature["hash"]
    assert "ablations" not in plain.run.signature["settings"]
    plain.snapshot(1)
    plain.close()
    with h5py.File(plain.path) as file:
        assert "ablation" not in file
    asked = observer(tmp_path / "a.h5", ablations=["one"])
    assert asked.path == str(tmp_path / "a-2.h5") and asked.run.signature["settings"]["ablations"] == ["one"]
    turned = [observer(None, ablations=order).run.signature["hash"] for order in (BOTH, BOTH[::-1])]
    assert turned[0] == turned[1] != asked.run.signature["hash"]


def test_resume_drops_and_goes_on(tmp_path):
    watch = observer(tmp_path / "run.h5", ablations=["one"])
    for update in (1, 2, 3):
        watch.snapshot(update)
    watch.close()
    watch = observer(tmp_path / "run.h5", update=1, ablations=["one"])
    watch.snapshot(4)
    watch.close()
    with h5py.File(tmp_path / "run.h5") as file:
        assert file["snapshot"][:].tolist() == [1, 4]
        for name in ("score", "delta", "stderr", "pvalue", "delta_first", "delta_second"):
            assert file[f"ablation/one/{name}"].shape == (2, 8) and np.isfinite(file[f"ablation/one/{name}"][:]).all()
            assert [file[f"ablation/one/{name}"].dims[i][0].name for i in (0, 1)] == ["/snapshot", "/head"]


def test_a_failed_snapshot_is_missing(tmp_path):
    calls = []

    def score(model):
        calls.append(1)
        if len(calls) in (1, 17):  # in the first curve, and in the midst of the second snapshot's ablation
            raise RuntimeError("boom")
        return float(len(calls))

    watch = observer(tmp_path / "run.h5", score, ablations=["one"], strict=False)
    for update in (1, 2, 3):
        watch.snapshot(update)
    watch.close()
    run = load_run(watch.path)
    assert run.snapshots["status"].values.tolist() == ["RuntimeError: boom", "ok", "RuntimeError: boom"]
    assert np.isnan(run.ablation_one["score"].values[[0, 2]]).all()
    found = effects(run)
    assert found.update == 2 and found.test == "none" and found.score.tolist() == [5.0 + i for i in range(8)]
    assert found.base == 4 and len(calls) == 17


@pytest.mark.parametrize("wrong, words", [
    (["two"], "unknown ablation 'two'"), (["one", "one"], "the same ablation twice"), ("one", r"write \['one'\]"),
])  # fmt: skip
def test_bad_options_are_refused_before_any_work(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words):
        observer(tmp_path / "run.h5", ablations=wrong)
    assert not (tmp_path / "run.h5").exists()


def test_without_scipy_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        observer(tmp_path / "run.h5", ablations=["one"])
    observer(tmp_path / "run.h5").close()
