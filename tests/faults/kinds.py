"""The kinds of fault: for each what tries it, how many times `make faults` does, and what it is, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from failing import fail
from fuzz import fuzz
from killing import kill


class Fault(NamedTuple):
    """`tried(kind, place, times, found)` goes on from the counts `found` until `times` were tried, and gives the counts
    from time to time; `promised`: nothing may be lost."""

    tried: Callable[[str, Path, int, dict], Iterator[dict]]
    times: int
    what: str
    promised: bool = True


FAULTS = {
    "kills-fairseq": Fault(kill, 100, "`fairseq-train` killed (SIGKILL) and restarted"),
    "kills-hf": Fault(kill, 100, "a Hugging Face Trainer killed (SIGKILL) and restarted"),
    "failing": Fault(fail, 1, "one system call of a write fails: disk full, I/O error"),
    "fuzz": Fault(fuzz, 1000, "a run file damaged at a place by chance, then read by five readers"),
    "fuzz-unsealed": Fault(fuzz, 1000, "the same, of a file without checksums (of before there were any)", False),
}
