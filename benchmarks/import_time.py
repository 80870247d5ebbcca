"""What `import headdynamics` takes on top of `import torch`: fresh processes, each of which imports both.

python benchmarks/import_time.py [--json FILE]

Wall clock and CPU time. The public names load on first use, so what a program mostly uses is told as well.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
from side_by_side import at_most, finish, spread, told

PROCESSES = 9
PROGRAM = """
import json, time
def clocks():
    return time.perf_counter(), time.process_time()
times = [clocks()]
import torch
times.append(clocks())
import headdynamics
times.append(clocks())
from headdynamics import Observer, ablate, find_heads, importance, masked, prune_order, pruning_curve
times.append(clocks())
print(json.dumps(times))
"""


def main():
    times = []
    for i in range(PROCESSES + 1):
        done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
        if i:  # the first fills the disk's cache
            times.append(json.loads(done.stdout))
    steps = 1000 * np.diff(np.array(times), axis=1)  # [process, step, clock]
    torch, ours, names = np.moveaxis(steps, 0, -1)
    beside = [f"import torch, {spread(clock, ' ms', 0)}" for clock in torch]
    finish(
        [
            at_most("import headdynamics, wall clock", beside[0], 50, ours[0], " ms", 1),
            at_most("import headdynamics, CPU time", beside[1], 50, ours[1], " ms", 1),
            told("from headdynamics import Observer and six more, wall clock", beside[0], spread(names[0], " ms", 0)),
            told("from headdynamics import Observer and six more, CPU time", beside[1], spread(names[1], " ms", 0)),
        ]
    )


if __name__ == "__main__":
    main()
