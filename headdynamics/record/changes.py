"""Changes: a file that HDF5 reads and writes, whose changes stay in memory until they are wanted.

HDF5 cannot close a file on a full disk, and would keep the deleted one open for ever; so it never meets the disk.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import seal


class Changes(io.RawIOBase):
    """A file object over the run file `descriptor` (None: over nothing), which is only read.

    Holds the pages that were touched, whatever the size of the file. Where the file has a seal every page is checked
    when it is first touched: see `seal`.

    Raises:
        Damaged: here or by any method, the file's bytes are not those that were written.

    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = descriptor
        self._pages: dict[int, bytearray] = {}
        self._changed: set[int] = set()
        self._at = 0
        self.size, self._sums = (0, None) if descriptor is None else seal.find(descriptor)
        self._below = self.size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file object."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        """As of any file object."""
        return self._at

    def truncate(self, size: int | None = None) -> int:
        """As of any file object."""
        self.size = self._at if size is None else size
        return self.size

    def readinto(self, buffer: Any) -> int:
        """As of any file object; what no one has written is zero."""
        into = memoryview(buffer).cast("B")
        for page, at, piece in self._pieces(len(into)):
            into[piece] = self._page(page)[at]
        return len(into)

    def write(self, data: Any) -> int:
        """As of any file object."""
        given = memoryview(data).cast("B")
        for page, at, piece in self._pieces(len(given)):
            self._page(page)[at] = given[piece]
            self._changed.add(page)
        self.size = max(self.size, self._at)
        return len(given)

    def apply(self, descriptor: int) -> None:
        """Make a copy of the file what it should be now, and seal it."""
        os.ftruncate(descriptor, self._below)  # without the old seal, so that what no one writes is zero
        if tail := self.size % seal.PAGE:
            last = self.size // seal.PAGE
            self._page(last)[tail:] = bytes(seal.PAGE - tail)
            self._changed.add(last)
        sums = self._new_sums()
        for number in sorted(self._changed):
            _put(descriptor, self._pages[number], number * seal.PAGE)
            if number < len(sums):
                sums[number] = seal.checksum(self._pages[number])
        os.ftruncate(descriptor, self.size)
        _put(descriptor, seal.made(sums, self.size), self.size)

    def _new_sums(self) -> np.ndarray:
        """Checksums as they were, for as many pages as there are now."""
        sums = np.full(seal.pages(self.size), seal.checksum(b""), np.uint32)
        known = min(len(sums), seal.pages(self._below))
        if self._sums is None:  # a file of before there were seals: read it whole, once
            sums[:known] = [seal.checksum(self._read(number)) for number in range(known)]
        else:
            sums[:known] = self._sums[:known]
        return sums

    def _pieces(self, length: int) -> Iterator[tuple[int, slice, slice]]:
        """(page, where in it, where in the whole) of the next `length` bytes, which are then behind us."""
        begin, end = self._at, self._at + length
        while self._at < end:
            page, start = divmod(self._at, seal.PAGE)
            size = min(end - self._at, seal.PAGE - start)
            done = self._at - begin
            yield page, slice(start, start + size), slice(done, done + size)
            self._at += size

    def _page(self, number: int) -> bytearray:
        if number not in self._pages:
            there = self._read(number)
            seal.check(there, number, self._sums)
            self._pages[number] = bytearray(there.ljust(seal.PAGE, b"\0"))
        return self._pages[number]

    def _read(self, number: int) -> bytes:
        at = number * seal.PAGE
        size = min(seal.PAGE, self._below - at)
        return os.pread(self._descriptor, size, at) if self._descriptor is not None and size > 0 else b""


def _put(descriptor: int, data: bytes | bytearray, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, at)
        left, at = left[written:], at + written
