"""Runs and snapshots of made-up numbers, for the run file's tests, and processes that hold or write one."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import numpy as np
from torch import nn

from headdynamics.curve import TENTHS, Curve
from headdynamics.estimators import Importance
from headdynamics.heads import Attention, Heads
from headdynamics.record.hdf5 import HDF5Recorder
from headdynamics.snapshot import Run, Snapshot

ORDERS = ("importance", "random-1", "random-2", "random-3")


def a_run(heads: int = 8, digest: str = "a" * 64, model: str = "Tiny", **more) -> Run:
    """A run of blocks of four heads."""
    linear = nn.Linear(1, 1)
    blocks = [Attention(f"läyer.{i}", linear, linear, 4, "encoder", i, False) for i in range(heads // 4)]
    given = dict(
        heads=Heads(tuple(blocks)), framework="torch", model=model, metric="accuracy", greater_is_better=True,
        estimator="example", fractions=TENTHS, orders=ORDERS, signature={"hash": digest},
    )  # fmt: skip
    return Run(**{**given, **more})


def a_snapshot(update: int, heads: int = 8, **more) -> Snapshot:
    """Numbers that tell where they belong: mean of head h is update + h / 1000."""
    row = update + np.arange(heads) / 1000
    found = Importance(
        row, row / 10, -row, np.tile(row, (10, 1)) + np.arange(10)[:, None], 100, 0.5 + update, "example",
        np.arange(heads) // 4,
    )  # fmt: skip
    curves = {
        name: Curve(np.array(TENTHS), 100 * i + update - np.array(TENTHS), np.full(11, 0.25), 60)
        for i, name in enumerate(ORDERS)
    }
    return Snapshot(**{**dict(update=update, epoch=update / 10, seconds=1.5, importance=found, curves=curves), **more})


def an_ablation(heads: int = 8) -> SimpleNamespace:
    """What recorders ask of an ablation: a tenth more with each head."""
    row = np.arange(heads) / 10
    return SimpleNamespace(score=row, delta=row, stderr=row, pvalue=row, halves=np.stack([row, row]), test="mcnemar")


def write_forever(path: str, run: Run, last: int, report: int) -> None:
    """Resume at `last` and append, saying each finished row to the file descriptor `report`, until killed."""
    recorder = HDF5Recorder(path)
    recorder.start(run, last)
    while True:
        last += 1
        recorder.write(a_snapshot(last))
        os.write(report, f"{last}\n".encode())


def hold(path: str) -> None:
    """Start a run and wait."""
    recorder = HDF5Recorder(path)
    recorder.start(a_run(), 0)
    print("holding", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    hold(sys.argv[1])
