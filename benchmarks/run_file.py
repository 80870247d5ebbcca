"""The run file: one more snapshot (144 heads, 4 orders x 11 fractions), against a plain copy of the file; opening it.

python benchmarks/run_file.py [--json FILE]

Wall clock, for a disk is waited for: the write and the copy (`shutil.copyfile`, then fsync) take turns over files of 1,
1,000 and 10,000 snapshots. Half a second of nothing stands before each turn for the training between two snapshots: a
long file is copied ahead meanwhile (`headdynamics/record/ahead.py`), without a stop of the training.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from side_by_side import DATA, at_most, finish, seconds, spread, told
from torch import nn

import headdynamics as hd
from headdynamics.curve import TENTHS, Curve
from headdynamics.heads import Attention, Heads
from headdynamics.record import layout
from headdynamics.record.hdf5 import HDF5Recorder
from headdynamics.schema import BLOCKS, FIELDS
from headdynamics.snapshot import Run, Snapshot

LAYERS, HEADS = 12, 12
ORDERS = ("importance", "random-1", "random-2", "random-3")
LIMITS = {1: 20, 1_000: 20, 10_000: 50}  # snapshots -> ms
OPENED = {1_000: 200}  # the same, for reading
ROUNDS = 15
PAUSE = 0.5  # seconds


def a_run():
    linear = nn.Linear(1, 1)
    blocks = [Attention(f"layer.{i}", linear, linear, HEADS, "encoder", i, False) for i in range(LAYERS)]
    return Run(Heads(tuple(blocks)), "torch", "Model", "accuracy", True, "example", TENTHS, ORDERS, {"hash": "0" * 64})


def a_snapshot(update):
    rng = np.random.default_rng(update)
    rows = rng.random((3, LAYERS * HEADS))
    blocks, layer = rng.random((BLOCKS, LAYERS * HEADS)), np.arange(LAYERS * HEADS) // HEADS
    found = hd.Importance(*rows, blocks, 1000, 0.5, "example", layer)
    curves = {name: Curve(np.array(TENTHS), rng.random(11), rng.random(11), 1000) for name in ORDERS}
    return Snapshot(update, update / 100, 1.5, importance=found, curves=curves, checkpoint=f"runs/checkpoint-{update}")


def grown(path, snapshots):
    """A run file of so many snapshots; all but the last few are written at once, straight into the file."""
    recorder = HDF5Recorder(path)
    recorder.start(a_run(), 0)
    recorder.close()
    with h5py.File(path, "r+") as file:
        rng, updates = np.random.default_rng(0), np.arange(1, snapshots)
        for name, dataset in layout.resize(file, "snapshot", snapshots - 1).items():
            if name in ("snapshot", "snapshots/update"):
                dataset[:] = updates
            elif FIELDS[name].dtype.startswith("float"):
                dataset[:] = rng.random(dataset.shape)
            elif FIELDS[name].dtype == "str":
                dataset[:] = "ok" if name.endswith("status") else [f"runs/checkpoint-{u}" for u in updates]
    recorder.start(a_run(), snapshots)
    recorder.write(a_snapshot(snapshots))
    return recorder


def copy(path):
    to = path.with_suffix(".copy")
    shutil.copyfile(path, to)
    with open(to, "r+b") as file:
        os.fsync(file.fileno())


def measure(folder, snapshots):
    """The rows of one length."""
    path = folder / f"{snapshots}.h5"
    recorder, ready = grown(path, snapshots), iter([a_snapshot(snapshots + i) for i in range(1, ROUNDS + 2)])
    size = path.stat().st_size
    turns = {"write": lambda: recorder.write(next(ready)), "copy": lambda: copy(path)}
    times = {name: [] for name in turns}
    for i in range(ROUNDS + 1):
        for name in list(turns)[:: 1 if i % 2 else -1]:
            time.sleep(PAUSE)
            times[name].append(seconds(turns[name], time.perf_counter))
    recorder.close()
    write, copied = (1000 * np.array(times[name][1:]) for name in turns)  # the first of each is not counted
    opened = 1000 * np.array([seconds(lambda: hd.load_run(path), time.perf_counter) for _ in range(ROUNDS)])[1:]
    what = f"run file of {snapshots:,} snapshots, {size / 1e6:.2f} MB"
    yield at_most(f"{what}: one more", "nothing written", LIMITS[snapshots], write, " ms", 1)
    yield told(f"{what}: one more", f"a plain copy, {spread(copied, ' ms', 1)}", spread(write / copied))
    if snapshots in OPENED:
        yield at_most(f"{what}: opened", "nothing read", OPENED[snapshots], opened, " ms", 0)
    else:
        yield told(f"{what}: opened", "nothing read", spread(opened, " ms", 0))


def main():
    with tempfile.TemporaryDirectory(dir=DATA if DATA.is_dir() else ".") as folder:
        finish([row for snapshots in LIMITS for row in measure(Path(folder), snapshots)])


if __name__ == "__main__":
    main()
