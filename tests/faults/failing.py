"""Failing: each system call of a write fails once, with a full disk and with an I/O error; no row is lost.

A write is repeated from the same start, and its first, second, ... call fails, until it has no further call.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from run_content import content
from runs import a_run, a_snapshot

import headdynamics as hd
from headdynamics.record import ahead
from headdynamics.record.hdf5 import HDF5Recorder
from headdynamics.schema import RunFileError

#: what a write asks of the system, and where Python has it
CALLS = {
    (builtins, "open"),
    (os, "mkdir"),
    (os, "stat"),
    (os, "fstat"),
    (os, "pread"),
    (os, "pwrite"),
    (os, "ftruncate"),
    (os, "fsync"),
    (os, "replace"),
    (os, "unlink"),
    (shutil, "copyfile"),
}
ERRORS = (errno.ENOSPC, errno.EIO)
ROWS = 4


@contextlib.contextmanager
def failing(nth: int, error: int) -> Iterator[list[str]]:
    """Let the `nth` call (from 1) fail; the calls so far, by name."""
    made: list[str] = []

    def shim(name, original):
        def call(*args, **kwargs):
            made.append(name)
            if len(made) == nth:
                if name == "copyfile":  # what a full disk leaves of it
                    Path(args[1]).write_bytes(Path(args[0]).read_bytes()[:5000])
                raise OSError(error, os.strerror(error))
            return original(*args, **kwargs)

        return call

    originals = {(owner, name): getattr(owner, name) for owner, name in CALLS}
    try:
        for (owner, name), original in originals.items():
            setattr(owner, name, shim(name, original))
        yield made
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


def first(folder: Path) -> HDF5Recorder:
    """A run that begins."""
    return HDF5Recorder(folder / "run.h5")


def started(folder: Path) -> HDF5Recorder:
    """A run of some rows."""
    recorder = first(folder)
    recorder.start(a_run(), 0)
    for update in range(1, ROWS + 1):
        recorder.write(a_snapshot(update))
    return recorder


def stopped(folder: Path) -> HDF5Recorder:
    """One that was ended."""
    started(folder).close()
    return first(folder)


#: when -> (how it stands before, what is done, the rows after)
WRITES = {
    "the first file": (first, lambda recorder: recorder.start(a_run(), 0), 0),
    "one more row": (started, lambda recorder: recorder.write(a_snapshot(ROWS + 1)), ROWS + 1),
    "a resume": (stopped, lambda recorder: recorder.start(a_run(), ROWS - 1), ROWS - 1),
    "an end": (started, lambda recorder: recorder.close(), ROWS),
}


def tried(folder: Path, when: str, nth: int, error: int) -> str | None:
    """One failure; the name of the call that failed, None where there was none so late.

    Raises:
        AssertionError: a row is lost, or the file is not what it was or should be.

    """
    prepare, write, rows = WRITES[when]
    recorder = prepare(folder)
    if recorder._ahead and recorder._ahead._thread:
        recorder._ahead._thread.join()  # so that calls come in one order
    path, before = folder / "run.h5", (folder / "run.h5").exists() and content(folder / "run.h5")
    with failing(nth, error) as made:
        try:
            write(recorder)
            refused = False
        except (RunFileError, OSError):
            refused = True
        if recorder._ahead and recorder._ahead._thread:
            recorder._ahead._thread.join()
    if len(made) < nth:
        return None
    if path.exists():
        held = updates(path)
        assert content(path) == before or held == list(range(1, rows + 1)), (when, made, held)
        assert refused or held == list(range(1, rows + 1)), (when, made, held)
    _ends_right(folder, recorder, when, rows)
    return made[nth - 1]


def _ends_right(folder: Path, recorder: HDF5Recorder, when: str, rows: int) -> None:
    """After the failure the disk is well again, and the run goes on: its next row brings the one that was kept."""
    if when != "one more row":
        recorder.close()
        recorder = HDF5Recorder(folder / "run.h5")
        recorder.start(a_run(), rows)
    recorder.write(a_snapshot(rows + 1))
    recorder.close()
    assert [p.name for p in folder.glob("*.h5")] == ["run.h5"], (when, list(folder.iterdir()))
    held = updates(folder / "run.h5")
    assert held == list(range(1, rows + 2)), (when, held)
    assert not list(folder.glob(".*.tmp")), when


def updates(path: Path) -> list[int]:
    """The rows of a run file, by the reader that checks it."""
    run = hd.load_run(path)
    found = run.snapshots["update"].values.tolist()
    assert run.importance["mean"].values[:, 1].tolist() == [float(np.float32(update + 0.001)) for update in found]
    return found


def fail(kind: str, place: Path, times: int, found: dict) -> Iterator[dict]:
    """See `kinds.Fault`: every call of every write, each error, of a short file and of one that is copied ahead."""
    counts, long = Counter({"tried": 0, "lost": 0}), ahead.LONG
    try:
        for ahead.LONG in (long, 1):
            for when, error in itertools.product(WRITES, ERRORS):
                counts.update(_each_call(kind, place, when, error))
                yield dict(counts)
    finally:
        ahead.LONG = long


def _each_call(kind: str, place: Path, when: str, error: int) -> Iterator[str]:
    """What to count."""
    for nth in itertools.count(1):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            try:
                call = tried(Path(folder), when, nth, error)
            except Exception as why:
                call = "lost"
                print(f"{kind}: {when}, call {nth}, {os.strerror(error)}: {why!r}", flush=True)
        if call is None:
            return
        yield from ("tried", call)
