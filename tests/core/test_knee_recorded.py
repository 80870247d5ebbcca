"""`fractions="knee"`: from an observer to the run file, TensorBoard and the command line."""

import h5py
import numpy as np
import pytest
from models import CASES

import headdynamics as hd
from headdynamics.__main__ import main
from headdynamics.record.tensorboard import TensorBoardRecorder

CASE = CASES["bert"]
OPTIONS = {"batches": [CASE.batch], "orders": ["importance", "random-1"], "strict": True}


def observed(folder, name="run.h5", **options):
    model = CASE.build()
    observer = hd.Observer(model, str(folder / name), **{**OPTIONS, "fractions": "knee", **options})
    return model, observer, [observer.snapshot(epoch=epoch) for epoch in (1, 2)]


def test_in_the_run_file(tmp_path):
    model, observer, (first, second) = observed(tmp_path, knee_tolerance=0.3, knee_confidence=0.8)
    order = hd.prune_order(first.importance)
    alone = hd.find_knee(model, order, observer.score, 0.3, 0.8)
    assert first.knees["importance"] == second.knees["importance"] == alone
    assert first.score == alone.unpruned and list(first.curves["importance"].fraction) == [0]
    with h5py.File(observer.path, "r") as file:
        for name in ("fraction", "score", "bound", "evaluations", "passes"):
            for i, order in enumerate(OPTIONS["orders"]):
                assert file[f"knee/{name}"][1, i] == getattr(first.knees[order], name)
        assert file["curve/score"].shape == (2, 2, 1)
    run = hd.load_run(observer.path)
    assert run.knee["fraction"].dims == ("snapshot", "order")
    assert run.knee["fraction"].sel(order="importance").values.tolist() == [alone.fraction] * 2
    assert run.signature["settings"]["knee"] == {"tolerance": 0.3, "confidence": 0.8}


def test_no_other_run_has_the_group(tmp_path):
    _, observer, snapshots = observed(tmp_path, fractions=(0, 1))
    assert snapshots[0].knees == {} and hd.load_run(observer.path).knee is None
    assert "knee" not in observer.run.signature["settings"]


def test_another_tolerance_is_another_run(tmp_path):
    _, one, _ = observed(tmp_path)
    _, other, _ = observed(tmp_path, knee_tolerance=0.02)
    assert one.run.signature["hash"] != other.run.signature["hash"] and other.path.endswith("run-2.h5")


def test_on_the_command_line(tmp_path, capsys):
    _, observer, (first, _) = observed(tmp_path)
    assert main(["show", observer.path]) == 0
    told = capsys.readouterr().out
    assert "knee, confidence 0.95, tolerance 0.01: fraction of heads that may go" in " ".join(told.split())
    line = next(line for line in told.splitlines() if line.startswith("│ 1") or line.startswith("│     1"))
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    fractions = [first.knees[order].fraction for order in OPTIONS["orders"]]
    assert [float(cell) for cell in cells[3:]] == pytest.approx(fractions, abs=5e-4)
    assert main(["settle", observer.path]) == 0
    for command in (["orders"], ["curves", "-o", str(tmp_path / "curve.png")]):
        assert main([*command, observer.path]) == 2
        assert "has no pruning curve, only unpruned scores" in capsys.readouterr().err


def test_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, _, (first, _) = observed(tmp_path, recorders=[TensorBoardRecorder(tmp_path / "events")])
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    for order in OPTIONS["orders"]:
        told = [event.value for event in events.Scalars(f"knee/{order}")]
        assert told == [np.float32(first.knees[order].fraction)] * 2


def test_nonsense_comes_before_any_work(tmp_path):
    for wrong, message in (
        ({"fractions": "knees"}, "or 'knee', not 'knees'"),
        ({"knee_tolerance": -1}, "tolerance is a share"),
        ({"knee_confidence": 95}, "confidence lies between"),
    ):
        with pytest.raises(ValueError, match=message):
            observed(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())
