"""Changes: a file that HDF5 reads and writes, whose changes stay in memory until they are wanted.

HDF5 cannot close a file on a full disk, and would keep the deleted one open for ever; so it never meets the disk.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

PAGE = 1 << 14  # bytes; a snapshot changes some hundred kilobytes here and there


class Changes(io.RawIOBase):
    """A file object over the file `descriptor` (None: over nothing), which is only read.

    Holds the pages that were touched, whatever the size of the file.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = descriptor
        self._pages: dict[int, bytearray] = {}
        self._changed: set[int] = set()
        self._at = 0
        self.size = 0 if descriptor is None else os.fstat(descriptor).st_size

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
        """Make a copy of the file what it should be now."""
        for page in sorted(self._changed):
            data, start = memoryview(self._pages[page]), page * PAGE
            while data:
                written = os.pwrite(descriptor, data, start)
                data, start = data[written:], start + written
        os.ftruncate(descriptor, self.size)

    def _pieces(self, length: int) -> Iterator[tuple[int, slice, slice]]:
        """(page, where in it, where in the whole) of the next `length` bytes, which are then behind us."""
        begin, end = self._at, self._at + length
        while self._at < end:
            page, start = divmod(self._at, PAGE)
            size = min(end - self._at, PAGE - start)
            done = self._at - begin
            yield page, slice(start, start + size), slice(done, done + size)
            self._at += size

    def _page(self, number: int) -> bytearray:
        if number not in self._pages:
            there = b"" if self._descriptor is None else os.pread(self._descriptor, PAGE, number * PAGE)
            self._pages[number] = bytearray(there.ljust(PAGE, b"\0"))
        return self._pages[number]
