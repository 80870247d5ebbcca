"""A long run file is copied ahead: the same file as without, whatever happens between two writes."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import pytest
from runs import a_run, a_snapshot, write_forever

from headdynamics.record import ahead
from headdynamics.record.hdf5 import HDF5Recorder


@pytest.fixture(autouse=True)
def every_file_is_long(monkeypatch):
    monkeypatch.setattr(ahead, "LONG", 1)


@pytest.fixture
def copies(monkeypatch):
    """Which thread made each copy: True where a write had to wait for it."""
    waited, copyfile = [], shutil.copyfile

    def noting(*args):
        waited.append(threading.current_thread() is threading.main_thread())
        return copyfile(*args)

    monkeypatch.setattr(shutil, "copyfile", noting)
    return waited


def recorder(path, at=0):
    made = HDF5Recorder(path)
    made.start(a_run(), at)
    return made


def updates(path):
    with h5py.File(path) as file:
        assert file["importance/mean"][:, 3].tolist() == pytest.approx([u + 0.003 for u in file["snapshot"][:]])
        return file["snapshots/update"][:].tolist()


def test_no_write_waits_for_a_copy_and_the_file_is_the_same(tmp_path, monkeypatch, copies):
    long = recorder(tmp_path / "long.h5")
    for update in range(1, 9):
        long.write(a_snapshot(update))
        assert updates(long.path) == list(range(1, update + 1))
    long.close()
    assert copies == [False] * 9  # the last one for a write that did not come
    monkeypatch.setattr(ahead, "LONG", 1 << 40)
    short = recorder(tmp_path / "short.h5")
    for update in range(1, 9):
        short.write(a_snapshot(update))
    short.close()
    assert copies[9:] == [True] * 8
    with h5py.File(long.path) as one, h5py.File(short.path) as other:
        for name in ("importance/blocks", "curve/score", "snapshots/seconds"):
            assert one[name][:].tobytes() == other[name][:].tobytes()
    assert long.path.stat().st_size == short.path.stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.h5", "long.h5.lock", "short.h5", "short.h5.lock"]


def test_a_file_that_was_changed_meanwhile_is_copied_again(tmp_path, copies):
    one = recorder(tmp_path / "run.h5")
    one.write(a_snapshot(1))
    one._ahead._thread.join()
    other = tmp_path / "other.h5"
    shutil.copyfile(one.path, other)
    with h5py.File(other, "r+") as file:
        file["snapshots/score"][0] = 123.0
    os.replace(other, one.path)
    del copies[:]
    one.write(a_snapshot(2))
    assert copies[0] is True and updates(one.path) == [1, 2]
    with h5py.File(one.path) as file:
        assert file["snapshots/score"][0] == 123.0
    one.close()


def test_a_disk_that_is_full_for_the_copy_is_not_kept_full(tmp_path, monkeypatch):
    copyfile = shutil.copyfile

    def no_room(source, to):
        copyfile(source, to)
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", no_room)
    one = recorder(tmp_path / "run.h5")
    for update in (1, 2, 3):
        one.write(a_snapshot(update))
        one._ahead._thread.join()
        assert not list(tmp_path.glob(".*.tmp"))
    assert updates(one.path) == [1, 2, 3]


def test_a_write_that_fails_leaves_no_copy_and_the_next_is_right(tmp_path, monkeypatch):
    one = recorder(tmp_path / "run.h5")
    one.write(a_snapshot(1))
    with pytest.raises((TypeError, ValueError)):
        one.write(a_snapshot(2, heads=12))
    assert not list(tmp_path.glob(".*.tmp"))
    one.write(a_snapshot(3))
    assert updates(one.path) == [1, 3]


def test_a_program_that_ends_without_closing_leaves_no_copy(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_ahead import ahead, recorder, a_snapshot\n"
        "ahead.LONG = 1; one = recorder(sys.argv[1]); one.write(a_snapshot(1))\n"
        "one._ahead._thread.join(); print(one._ahead.temporary.exists())"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "run.h5"), str(Path(__file__).parent)]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "True\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.h5", "run.h5.lock"]


def test_a_forked_worker_takes_nothing_away(tmp_path, copies):
    one = recorder(tmp_path / "run.h5")
    one.write(a_snapshot(1))
    one._ahead._thread.join()
    pid = os.fork()
    if not pid:
        one._ahead = None  # its last reference in the worker
        os._exit(0)
    os.waitpid(pid, 0)
    del copies[:]
    one.write(a_snapshot(2))
    one.close()
    assert copies == [False] and updates(one.path) == [1, 2]


def test_killed_at_any_instant(tmp_path):
    """Twelve kills; what a killed process copied is cleared by the next."""
    path, rng, run = tmp_path / "run.h5", random.Random(1), a_run()
    found = []
    for _ in range(12):
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                write_forever(path, run, len(found), writing)
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as reports:
            reports.readline()
            time.sleep(rng.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            last = [int(line) for line in reports.read().split()]
        found = updates(path)
        assert found == list(range(1, len(found) + 1))
        assert not last or len(found) - last[-1] in (0, 1)
    recorder(path, len(found)).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.h5", "run.h5.lock"]
