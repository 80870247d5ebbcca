"""TensorBoard's own data provider gives back the run that the run file holds."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from headdynamics.analysis.load import load_run
from headdynamics.analysis.panels import panels
from headdynamics.plugins.tensorboard.loader import Loader
from headdynamics.plugins.tensorboard.reading import read, versions
from runs import a_run, a_snapshot, an_ablation
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext

from headdynamics.record.events import summary
from headdynamics.record.hdf5 import HDF5Recorder
from headdynamics.record.tensorboard import TensorBoardRecorder
from headdynamics.schema import RunFileError
from headdynamics.tags import RUN, tag_of

FAILED = {"importance": None, "curves": {}, "status": "RuntimeError: no memory"}


def record(folder, rows, resumed_at=None, events=True):
    """Write rows to a run file and, which takes longer, to events."""
    for recorder in (HDF5Recorder(folder / "run.h5"), TensorBoardRecorder(folder / "board"))[: 1 + events]:
        recorder.start(a_run(), resumed_at if resumed_at is not None else 0)
        for row in rows:
            recorder.write(row)
        recorder.close()


def provider(folder):
    """What TensorBoard makes of `folder`, with the samples that our loader asks for."""
    flags = argparse.Namespace(samples_per_plugin={})
    Loader().fix_flags(flags)
    multiplexer = EventMultiplexer(tensor_size_guidance=flags.samples_per_plugin)
    multiplexer.AddRunsFromDirectory(str(folder)).Reload()
    return MultiplexerDataProvider(multiplexer, str(folder))


def same(run, other):
    for name in ("heads", "snapshots", "importance", "curve", "orders", "ablation_one", "knee", "online"):
        mine, yours = getattr(run, name), getattr(other, name)
        if yours is None:
            assert mine is None, name
        else:
            xr.testing.assert_identical(mine, yours)
    assert {**run.attrs, "created": ""} == {**other.attrs, "created": ""}


def test_the_same_run_as_the_file(tmp_path):
    rows = [a_snapshot(update) for update in range(1, 13)]  # more than the ten that TensorBoard keeps by itself
    rows[3] = a_snapshot(4, **FAILED)
    rows[-1] = a_snapshot(12, ablations={"one": an_ablation()})
    record(tmp_path, rows)
    found = provider(tmp_path)
    assert list(versions(found, RequestContext(), "x")) == ["board"]
    run = read(found, RequestContext(), "x", "board")
    same(run, load_run(tmp_path / "run.h5"))
    assert run.failures == [(4, "RuntimeError: no memory")]


def test_a_resume_drops_what_a_dead_run_left(tmp_path):
    record(tmp_path, [a_snapshot(update) for update in (1, 2, 3, 4)])
    before = versions(provider(tmp_path), RequestContext(), "x")
    record(tmp_path, [a_snapshot(3), a_snapshot(5)], resumed_at=2)
    found = provider(tmp_path)
    assert versions(found, RequestContext(), "x") != before
    run = read(found, RequestContext(), "x", "board")
    assert run.snapshots["update"].values.tolist() == [1, 2, 3, 5]
    same(run, load_run(tmp_path / "run.h5"))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({RUN: np.array(b"no json")}, "not those of a headdynamics run"),
        ({RUN: np.array(json.dumps({"attrs": {"schema": 9}}).encode())}, "not those of a headdynamics run"),
        ({tag_of("importance/mean"): np.zeros((2, 2), np.float32)}, "is not of the shape"),
        ({tag_of("snapshots/epoch"): np.array(b"\x1b[31m")}, "not those of a headdynamics run"),
    ],
)
def test_a_strangers_events_are_an_error(tmp_path, tensors, words):
    recorder = TensorBoardRecorder(tmp_path / "board")
    recorder.start(a_run(), None)
    recorder.write(a_snapshot(1))
    recorder._writer.file_writer.add_summary(summary(tensors), 1)
    recorder.close()
    with pytest.raises(RunFileError, match=words):
        read(provider(tmp_path), RequestContext(), "x", "board")
    with pytest.raises(RunFileError, match="holds nothing of headdynamics"):
        read(provider(tmp_path), RequestContext(), "x", "nobody")


def test_panels_are_plain_and_say_when_each_head_settled(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for update in range(1, 13):
        row = a_snapshot(update)
        mean = np.arange(8.0)[::-1].copy() if update > 4 else rng.permutation(np.arange(8.0))
        mean[7] = update % 2 * 9.0  # a head that never settles
        found = row.importance
        rows.append(a_snapshot(update, importance=type(found)(**{**vars(found), "mean": mean})))
    record(tmp_path, rows)
    shown = panels(load_run(tmp_path / "run.h5"))
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert shown["importance"]["settled"][7] is None
    assert all(at is not None and at <= 0.5 for at in shown["importance"]["settled"][:7])  # epoch = update / 10
    assert shown["importance"]["place"][-1][:7] == [1, 2, 3, 4, 5, 6, 7]
    assert [stack["title"] for stack in shown["stacks"]] == ["encoder"]
    assert shown["stacks"][0]["at"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(shown["curves"]["importance"]) == 12 and shown["settling"]["views"][0]["sentence"]


def test_a_long_runs_panels_keep_where_it_settled_and_every_digit_of_an_update(tmp_path):
    late = a_snapshot(1).importance
    early = replace(late, mean=late.mean[::-1], blocks=late.blocks[:, ::-1])
    rows = [a_snapshot(1_234_560 + k, epoch=np.nan, importance=early if k < 10 else late) for k in range(40)]
    record(tmp_path, rows, resumed_at=1, events=False)
    found = panels(load_run(tmp_path / "run.h5"), most=1)
    assert found["settling"]["views"][0]["settled"] == 1_234_570
    assert 1_234_570 in found["time"]["when"]  # or the diamond would be missing
    assert found["time"]["unit"] == "update" and found["time"]["when"][-1] == 1_234_599
    assert len(found["time"]["when"]) < 6


def test_an_empty_run_has_empty_panels(tmp_path):
    record(tmp_path, [])
    shown = panels(load_run(tmp_path / "run.h5"))
    assert shown["snapshots"]["count"] == 0 and shown["curves"] is None and shown["importance"]["mean"] == []
    same(read(provider(tmp_path), RequestContext(), "x", "board"), load_run(tmp_path / "run.h5"))
