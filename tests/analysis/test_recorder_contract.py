"""What the recorder writes is what the reader reads: the one place where the two rooms meet."""

import numpy as np
import pytest
from headdynamics.analysis.load import load_run
from headdynamics.analysis.settling import settle


def test_the_recorders_first_file_is_readable_and_empty(path):
    pytest.importorskip("torch")
    from types import SimpleNamespace

    from headdynamics.record.hdf5 import HDF5Recorder
    from headdynamics.snapshot import Run

    class Heads(SimpleNamespace):
        def __len__(self):
            return 4

    heads = Heads(
        kind=np.array(["decoder"] * 4), layer=np.repeat([0, 1], 2), number=np.arange(4) % 2, module=np.array(["m"] * 4)
    )
    recorder = HDF5Recorder(path)
    recorder.start(
        Run(heads, "torch", "M", "loss", False, "example", (0.0, 0.5), ("importance", "random-1"), {"hash": "h"}), 0
    )
    recorder.close()
    run = load_run(path)
    assert run.signature == {"hash": "h"} and run.attrs["greater_is_better"] is False
    assert run.curve.sizes == {"snapshot": 0, "order": 2, "fraction": 2}
    assert run.heads["layer"].values.tolist() == [0, 0, 1, 1]
    assert settle(run).views[0].verdict == "too few snapshots"
