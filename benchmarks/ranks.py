"""How a snapshot's work falls to the ranks of a training: CPU time of the busiest rank over that of one process alone.

python benchmarks/ranks.py [--json FILE]

BERT with random weights, 128 wide, 6 layers of 4 heads, 256 examples of 32 tokens in batches of 16; ranks are processes
on this machine that exchange over gloo. CPU time of each process counts its own work, whatever cores there are for it;
what a rank waits for is not in it. The floor is 1 / ranks and what every rank does itself: the proof that heads may be
taken out.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from growth import bert
from side_by_side import Row, finish, seconds, told
from torch import multiprocessing

import headdynamics as hd

EXAMPLES, ROUNDS = 256, 3


def measured(rank: int, size: int, folder: str) -> None:
    """CPU seconds of some snapshots on this rank, [parts, ROUNDS]."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    model, batches = bert(EXAMPLES, 6, 4)
    found = []
    for options in ({"fractions": (0.0,), "orders": ("random-1",)}, {"orders": ("importance",)}):
        ranks = hd.Ranks.of_training()
        observer = hd.Observer(
            model, None, batches=batches, score=hd.accuracy(batches), ranks=ranks, strict=True, **options
        )
        observer.snapshot(update=0)
        found.append([seconds(lambda observer=observer: observer.snapshot(update=1)) for _ in range(ROUNDS)])
    np.save(Path(folder) / f"{rank}.npy", np.array(found))


def busiest(size: int) -> np.ndarray:
    """CPU seconds of the rank with most work, [parts]: the median of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(measured, (size, folder), nprocs=size)
        every = [np.load(Path(folder) / f"{rank}.npy") for rank in range(size)]
    return np.median(np.max(every, axis=0), axis=1)


def rows() -> list[Row]:
    """A row for each number of ranks and each part of a snapshot."""
    alone = busiest(1)
    parts = ("I(h) and one score", "I(h) and a curve of 11 points")
    found: list[Any] = []
    for size in (2, 4):
        shares = busiest(size) / alone
        found += [
            told(f"{part} on {size} ranks: work of the busiest", f"one process; 1 / {size} at best", f"{share:.2f}x")
            for part, share in zip(parts, shares, strict=True)
        ]
    return found


if __name__ == "__main__":
    finish(rows())
