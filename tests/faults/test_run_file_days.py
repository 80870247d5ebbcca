"""Bad days of the run file that need no count: clocks, update numbers and models that change, two runs on one file."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from runs import a_run, a_snapshot

import headdynamics as hd
from headdynamics.record import ahead
from headdynamics.record.hdf5 import HDF5Recorder
from headdynamics.schema import RunFileError

RUNS = str(Path(__file__).parents[1] / "core" / "runs.py")


def started(path, at=0, run=None):
    recorder = HDF5Recorder(path)
    recorder.start(run or a_run(), at)
    return recorder


def updates(path):
    run = hd.load_run(path)
    found = run.snapshots["update"].values.tolist()
    assert run.importance["mean"].values[:, 1].tolist() == pytest.approx([update + 0.001 for update in found])
    return found


@pytest.mark.parametrize("long", [1, 1 << 40], ids=["copied ahead", "copied then"])
def test_a_clock_that_goes_back_changes_nothing(tmp_path, monkeypatch, long):
    """What was copied ahead is told from what was written since by more than the time: files written within one tick,
    or before the time of the one that they replace."""
    monkeypatch.setattr(ahead, "LONG", long)
    path = tmp_path / "run.h5"
    recorder = started(path)
    for update in range(1, 7):
        recorder.write(a_snapshot(update))
        os.utime(path, ns=(10**18 - update * 10**12,) * 2)  # each older than the one before
        if update == 3:
            recorder.close()
            recorder = started(path, 3)
    recorder.close()
    assert updates(path) == [1, 2, 3, 4, 5, 6] and [p.name for p in tmp_path.glob("*.h5")] == ["run.h5"]


def test_update_numbers_that_go_back_leave_no_double(tmp_path):
    """A trainer that rolls back by itself, without a restart, measures again what it trains again."""
    recorder = started(tmp_path / "run.h5")
    for update in (1, 2, 3, 4, 2, 3, 5):
        recorder.write(a_snapshot(update))
    recorder.close()
    assert updates(recorder.path) == [1, 2, 3, 5]


def test_a_model_of_another_shape_gets_a_file_of_its_own(tmp_path, caplog):
    first = started(tmp_path / "run.h5")
    first.write(a_snapshot(1))
    first.close()
    before = first.path.read_bytes()
    other = started(tmp_path / "run.h5", 1, a_run(heads=12, digest="b" * 64, model="Wider"))
    other.write(a_snapshot(2, heads=12))
    other.close()
    assert first.path.read_bytes() == before and other.path == tmp_path / "run-2.h5"
    assert hd.load_run(other.path).importance["mean"].shape == (1, 12)
    assert "it belongs to another model, Tiny" in caplog.text
    again = started(tmp_path / "run.h5", 1)  # and the first model back in its own
    again.write(a_snapshot(2))
    again.close()
    assert again.path == first.path and updates(again.path) == [1, 2]


def test_the_second_of_two_runs_is_refused_and_told_whose_file_it_is(tmp_path):
    """Named by its process; killed, it gives the file free, whatever stands in the lock."""
    path = tmp_path / "run.h5"
    holder = subprocess.Popen([sys.executable, RUNS, path], stdin=-1, stdout=-1, text=True)
    try:
        assert holder.stdout.readline() == "holding\n"
        with pytest.raises(RunFileError, match=f"process {holder.pid}: end that process or choose another file"):
            started(path)
    finally:
        holder.kill()
        holder.communicate(timeout=20)
    recorder = started(path)
    recorder.write(a_snapshot(1))
    recorder.close()
    assert updates(path) == [1]


def test_a_disk_that_does_not_answer_at_a_resume_does_not_split_the_run(tmp_path):
    """An I/O error while the old file is read says nothing of whose it is: no NAME-2.h5, of which the next start knows
    nothing."""
    import errno

    import failing

    recorder = failing.stopped(tmp_path)
    nth = 6 if sys.version_info >= (3, 11) else 2  # pathlib of 3.10 keeps a mkdir and a stat of its own
    refused = pytest.raises(RunFileError, match="start again when the disk answers")
    with failing.failing(nth, errno.EIO) as made, refused:
        recorder.start(a_run(), failing.ROWS)
    assert made[-1] in ("fstat", "pread")
    assert [p.name for p in tmp_path.glob("*.h5")] == ["run.h5"]
    again = started(tmp_path / "run.h5", failing.ROWS)
    again.write(a_snapshot(failing.ROWS + 1))
    again.close()
    assert updates(again.path) == [1, 2, 3, 4, 5]
    with h5py.File(again.path) as file:
        assert len(file["curve/score"]) == 5
