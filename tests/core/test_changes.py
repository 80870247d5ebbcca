"""What HDF5 writes to, against a real file."""

import os
import random

import pytest

from headdynamics import seal
from headdynamics.record import changes


@pytest.mark.parametrize("size", [3000, 9000])
@pytest.mark.parametrize("page", [1, 7, 4096])
def test_changes_are_those_of_a_file(tmp_path, monkeypatch, page, size):
    """Random reads, writes and cuts, against a real file; the file below is not touched until it is asked for."""
    monkeypatch.setattr(seal, "PAGE", page)
    rng = random.Random(page)
    below, real = tmp_path / "below", tmp_path / "real"
    below.write_bytes(rng.randbytes(5000))
    real.write_bytes(below.read_bytes())
    with open(below, "rb") as base, open(real, "r+b", buffering=0) as expected:
        found = changes.Changes(base.fileno())
        for _ in range(300):
            at, length = rng.randrange(6000), rng.randrange(1, 900)
            found.seek(at), expected.seek(at)
            if rng.random() < 0.4:
                data = rng.randbytes(length)
                assert found.write(data) == expected.write(data)
            else:
                length = min(length, max(0, os.fstat(expected.fileno()).st_size - at))
                assert found.read(length) == expected.read(length)
            assert (found.tell(), found.size) == (expected.tell(), os.fstat(expected.fileno()).st_size)
        found.truncate(size), expected.truncate(size)
        untouched = below.read_bytes()
        with open(below, "r+b") as copy:
            found.apply(copy.fileno())
            assert seal.whole(copy.fileno()) == real.read_bytes() != untouched
            assert seal.find(copy.fileno())[1] is not None
