"""Checksums behind the HDF5: every changed byte is noticed, by readers and by the next write; files without go on."""

import os
import random
import zlib

import h5py
import numpy as np
import pytest
from runs import a_run, a_snapshot

import headdynamics as hd
from headdynamics import seal
from headdynamics.record.hdf5 import HDF5Recorder
from headdynamics.schema import RunFileError


@pytest.fixture
def path(tmp_path):
    recorder = HDF5Recorder(tmp_path / "run.h5")
    recorder.start(a_run(), 0)
    for update in (1, 2, 3):
        recorder.write(a_snapshot(update))
    recorder.close()
    return recorder.path


def resumed(path, at):
    recorder = HDF5Recorder(path)
    recorder.start(a_run(), at)
    return recorder


def is_sealed(path):
    with open(path, "rb") as file:
        return seal.find(file.fileno())[1] is not None


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def test_the_table_is_what_zlib_says_of_each_page(path):
    whole = path.read_bytes()
    size = int.from_bytes(whole[40:48], "little")  # the superblock's end of file
    pages = [whole[:size][at : at + 16384].ljust(16384, b"\0") for at in range(0, size, 16384)]
    table = np.frombuffer(whole, "<u4", len(pages), size)
    assert table.tolist() == [zlib.crc32(page) for page in pages]
    assert len(whole) == size + 4 * len(pages) + 20 and whole.endswith(b"hd-seal1")


def test_each_changed_byte_is_noticed(path):
    rng, length = random.Random(0), path.stat().st_size
    ends = [0, 8, 40, length - 1, length - 12, length - 20, length - 25]
    for at in [*ends, *(rng.randrange(length) for _ in range(60))]:
        flip(path, at)
        with pytest.raises(RunFileError, match="damaged|not an HDF5 file"):
            hd.load_run(path)
        flip(path, at)
    assert hd.load_run(path).importance["mean"].values[:, 3].tolist() == pytest.approx([1.003, 2.003, 3.003])


@pytest.mark.parametrize("short", [1, 15, 30, 60, 5000])
def test_a_file_cut_short_is_noticed(path, short):
    os.truncate(path, path.stat().st_size - short)
    with pytest.raises(RunFileError, match="damaged or cut short: it has .* bytes"):
        hd.load_run(path)


def test_what_another_program_wrote_to_has_no_seal_and_is_read_and_sealed_again(path):
    with h5py.File(path, "r+") as file:
        file["snapshots/score"][1] = 77.0
    assert not is_sealed(path) and hd.load_run(path).snapshots["score"].values[1] == 77.0
    recorder = resumed(path, 3)
    assert recorder.path == path and is_sealed(path)  # a file of before there were seals is the same case
    recorder.write(a_snapshot(4))
    recorder.close()
    run = hd.load_run(path)
    assert run.snapshots["update"].values.tolist() == [1, 2, 3, 4] and run.snapshots["score"].values[1] == 77.0


def test_a_write_does_not_seal_what_was_damaged_since(path):
    recorder = resumed(path, 3)
    with h5py.File(path) as file:  # it cuts nothing: opened for reading
        at = file["importance/mean"].id.get_chunk_info(0).byte_offset
    flip(path, at)
    with pytest.raises(RunFileError, match="not those that were written; .*put a whole copy in its place"):
        recorder.write(a_snapshot(4))
    flip(path, at)
    recorder.write(a_snapshot(5))
    assert hd.load_run(path).snapshots["update"].values.tolist() == [1, 2, 3, 4, 5]
    recorder.close()


def test_a_damaged_file_is_not_gone_on_with(path, caplog):
    flip(path, path.stat().st_size // 2)
    before = path.read_bytes()
    recorder = resumed(path, 3)
    recorder.close()
    assert recorder.path.name == "run-2.h5" and path.read_bytes() == before
    assert "it cannot be read (its bytes from" in caplog.text
