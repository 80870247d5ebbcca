"""Kill points: where a process kills itself, by functions of libraries: the product has no hook for it."""

from __future__ import annotations

import functools
import os
import random
import signal
from typing import NamedTuple

#: what happens there -> (module, function, up to which call: a resumed training makes so many)
ALWAYS = {
    "a snapshot measures": ("torch.autograd", "grad", 20),
    "a file is copied": ("shutil", "copyfile", 8),
    "bytes are written": ("os", "pwrite", 30),
    "a file is cut to size": ("os", "ftruncate", 12),
    "a file is synced": ("os", "fsync", 6),
    "a file is renamed": ("os", "replace", 6),
    "the trainer saves": ("torch", "save", 3),
}
RESUMING = {  # of a training that finds a checkpoint
    "the trainer resumes": ("torch", "load", 1),
    "the run file is read": ("os", "pread", 8),
}
FUNCTIONS = ALWAYS | RESUMING
ANY = "any instant"


class Point(NamedTuple):
    """The `nth` call of a function, before or after it; or so many seconds after the start."""

    what: str
    nth: int = 0
    after: bool = False
    seconds: float = 0.0


def drawn(rng: random.Random, length: float, resumes: bool) -> Point:
    """A point by chance, of a process that would take `length` seconds: half of them at any instant.

    Of one that `resumes` half of the others are where it does.
    """
    if rng.random() < 0.5:
        return Point(ANY, seconds=rng.uniform(0, length))
    what = rng.choice(list(RESUMING if resumes and rng.random() < 0.5 else ALWAYS))
    return Point(what, rng.randint(1, FUNCTIONS[what][2]), rng.random() < 0.5)


def place(point: Point) -> None:
    """Kill this process there."""
    import importlib

    if point.what == ANY:
        return  # whoever started it does
    module, name, _ = FUNCTIONS[point.what]
    owner = importlib.import_module(module)
    original, left = getattr(owner, name), [point.nth]

    @functools.wraps(original)
    def killing(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0 and not point.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, killing)
