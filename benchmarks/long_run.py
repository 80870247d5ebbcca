"""A long run's file: its size, resuming it, and the memory of the process that writes it, at up to 10,000 snapshots.

python benchmarks/long_run.py [--json FILE]

Each length in a process of its own, which resumes the run and writes 40 rows (144 heads, 4 orders x 11 fractions), as
far apart as a short step of training. What a write takes there is in `run_file.py`, which made these files, too.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from run_file import a_run, a_snapshot, grown
from side_by_side import DATA, Row, at_most, finish, seconds, spread, told

from headdynamics.record.hdf5 import HDF5Recorder

LENGTHS = (1_000, 4_000, 7_000, 10_000)  # snapshots
ROWS, SETTLED = 40, 10  # written; of which the first are not counted
PAUSE, ROUNDS = 0.05, 5


def resident():
    """Memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def resume(path, at):
    recorder = HDF5Recorder(path)
    recorder.start(a_run(), at)
    return recorder


def measure(path, snapshots):
    """(seconds of each resume, memory after each row, file size after each row)."""
    resumes = [seconds(lambda: resume(path, snapshots).close(), time.perf_counter) for _ in range(ROUNDS)]
    recorder, memory, sizes = resume(path, snapshots), [], []
    for update in range(snapshots + 1, snapshots + ROWS + 1):
        recorder.write(a_snapshot(update))
        time.sleep(PAUSE)
        memory.append(resident())
        sizes.append(path.stat().st_size)
    recorder.close()
    return resumes, memory, sizes


def main():
    rows: list[Row] = []
    sizes = []
    with tempfile.TemporaryDirectory(dir=DATA if DATA.is_dir() else ".") as folder:
        for snapshots in LENGTHS:
            path = Path(folder) / f"{snapshots}.h5"
            grown(path, snapshots).close()
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                resumes, memory, size = pool.apply(measure, (path, snapshots))
            sizes.append(size[0])
            grows = np.diff(memory[SETTLED:])
            what = f"a run of {snapshots:,} snapshots"
            rows.append(at_most(f"{what}: resumed", "nothing read", 1000, 1000 * np.array(resumes), " ms", 0))
            rows.append(told(f"{what}: memory of the process", "", spread(np.array(memory[SETTLED:]), " MB", 0)))
            rows.append(at_most(f"{what}: memory that one more row adds", "flat", 0.01, grows, " MB", 3))
    each = np.diff(sizes) / np.diff(LENGTHS) / 1000
    rows.append(told("file: kB a snapshot, from each length to the next", "linear", spread(each, " kB", 2)))
    finish(rows)


if __name__ == "__main__":
    main()
