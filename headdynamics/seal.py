"""Seal: a checksum of every page of a run file, behind its HDF5, so that damaged bytes are never taken for numbers.

    HDF5's own bytes | crc32 of each page (uint32) | size of HDF5's own bytes, crc32 of the table, MAGIC

HDF5 leaves unread what stands behind its own bytes, and cuts it off when it writes: a file that another program has
changed, or that is older than the seal, has none, and is read as it is. No torch and no h5py here: readers need it too.
"""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np

PAGE = 1 << 14  # bytes; the last one is filled up with zeros. A snapshot changes some hundred kilobytes here and there
MAGIC = b"hd-seal1"
FOOT = struct.Struct("<QI8s")
HDF5 = b"\x89HDF\r\n\x1a\n"
ENDS = {0: 40, 1: 44, 2: 28, 3: 28}  # version of HDF5's superblock -> where it says how long the file is


class Damaged(OSError):
    """A run file's bytes are not those that were written."""


def find(descriptor: int) -> tuple[int, np.ndarray | None]:
    """How many bytes of a file are HDF5's own, and the checksum of each page; None where it has no seal.

    Raises:
        Damaged: the seal is, or the file is shorter or longer than HDF5 says.

    """
    length = os.fstat(descriptor).st_size
    foot = os.pread(descriptor, FOOT.size, max(0, length - FOOT.size))
    if len(foot) < FOOT.size or not foot.endswith(MAGIC):
        _check_length(os.pread(descriptor, 64, 0), length)
        return length, None
    size, check, _ = FOOT.unpack(foot)
    table = os.pread(descriptor, 4 * pages(size), size) if size < length else b""
    if size + len(table) + FOOT.size != length or check != _check(table, size):
        raise Damaged("its checksums are damaged")
    return size, np.frombuffer(table, "<u4")


def made(sums: np.ndarray, size: int) -> bytes:
    """The seal of a file whose own bytes are `size`, given the checksum of each of its pages."""
    table = sums.astype("<u4").tobytes()
    return table + FOOT.pack(size, _check(table, size), MAGIC)


def whole(descriptor: int) -> bytes:
    """HDF5's own bytes of a file, all of them read once and checked.

    Raises:
        Damaged: they are not those that were written.

    """
    size, sums = find(descriptor)
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        found = file.read(size)
    if len(found) != size:
        raise Damaged(f"it has {len(found)} bytes of {size}")
    view = memoryview(found)
    for number in range(pages(size) if sums is not None else 0):
        check(view[number * PAGE : (number + 1) * PAGE], number, sums)
    return found


def check(page: bytes | bytearray | memoryview, number: int, sums: np.ndarray | None) -> None:
    """Damaged where this page of the file has not the checksum that it should have."""
    if sums is not None and number < len(sums) and checksum(page) != sums[number]:
        raise Damaged(f"its bytes from {number * PAGE} on are not those that were written")


def checksum(page: bytes | bytearray | memoryview) -> int:
    """That of one page, which may be cut."""
    return zlib.crc32(bytes(PAGE - len(page)), zlib.crc32(page))


def pages(size: int) -> int:
    """How many pages so many bytes take."""
    return -(-size // PAGE)


def _check(table: bytes, size: int) -> int:
    return zlib.crc32(struct.pack("<Q", size), zlib.crc32(table))


def _check_length(start: bytes, length: int) -> None:
    """A file without a seal ends where HDF5 says; else what is missing may be the seal."""
    if start.startswith(HDF5) and len(start) == 64 and (at := ENDS.get(start[8])) is not None:
        (says,) = struct.unpack_from("<Q", start, at)
        if says != length:
            raise Damaged(f"it has {length} bytes, and its HDF5 says {says}")
