"""Windows of online importance in the run file, in memory, and on their way there."""

import errno

import h5py
import numpy as np
import pytest
from runs import a_run, a_snapshot

from headdynamics import load_run
from headdynamics.online import Window
from headdynamics.record import hdf5
from headdynamics.record.hdf5 import HDF5Recorder
from headdynamics.record.memory import MemoryRecorder
from headdynamics.schema import RunFileError


def a_window(update):
    values = np.arange(8.0) + update
    return Window(update, values, values / 10, -values, 16, 1, "example", "own loss", values)


def test_windows_of_online_importance(tmp_path):
    """A group of its own, whose rows a resume drops like a snapshot's; the snapshots' are another axis."""
    recorder = HDF5Recorder(tmp_path / "run.h5")
    recorder.start(a_run(), 0)
    assert recorder.average() is None
    for update in (5, 10, 15, 12):
        recorder.write_window(a_window(update))
    recorder.write(a_snapshot(10))
    recorder.close()
    with h5py.File(recorder.path) as file:
        assert file["window"][:].tolist() == file["online/update"][:].tolist() == [5, 10, 12]
        assert file["online/mean"][:, 3].tolist() == [8, 13, 15] and file["online/n"][:].tolist() == [16] * 3
        assert [file["online/mean"].dims[i][0].name for i in range(2)] == ["/window", "/head"]
        assert file["snapshot"][:].tolist() == [10]
    again = HDF5Recorder(tmp_path / "run.h5")
    again.start(a_run(), 11)
    assert again.average().tolist() == list(range(10, 18))
    again.write_window(a_window(20))
    again.close()
    run = load_run(tmp_path / "run.h5")
    assert run.online["window"].values.tolist() == [5, 10, 20] and run.online["skipped"].values.sum() == 3
    assert run.online["mean"].attrs == {"estimator": "example", "scale": "own loss"}
    assert run.online["stderr"].values[0, :2].tolist() == pytest.approx([0.5, 0.6])


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_window_that_could_not_be_written_waits_for_what_is_written_next(tmp_path, monkeypatch):
    recorder = HDF5Recorder(tmp_path / "run.h5")
    recorder.start(a_run(), 0)
    with monkeypatch.context() as patch:
        patch.setattr(hdf5.os, "fsync", full_disk)
        with pytest.raises(RunFileError, match="No space left"):
            recorder.write_window(a_window(1))
    recorder.write(a_snapshot(1))
    recorder.close()
    with h5py.File(recorder.path) as file:
        assert file["window"][:].tolist() == [1] and file["snapshot"][:].tolist() == [1]


def test_in_memory():
    memory = MemoryRecorder()
    memory.start(a_run(), 0)
    for update in (5, 10):
        memory.write_window(a_window(update))
    memory.start(a_run(), 5)
    assert [window.update for window in memory.windows] == [5]
