"""Ctrl-C, politely: what is at hand is finished, and only the second one ends it there and then."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Stop(threading.Event):
    """Set by the first Ctrl-C or SIGTERM. `status`: what a program that it ended leaves with; 0: none came."""

    status = 0


@contextlib.contextmanager
def until_interrupted() -> Iterator[Stop]:
    """What the first Ctrl-C or SIGTERM sets, so that what is at hand is finished; the next one ends it at once."""
    stop, before = Stop(), dict[int, Any]()

    def ask(number: int, _: object) -> None:
        signal.signal(number, before[number])
        stop.status = 128 + number
        stop.set()
        with contextlib.suppress(OSError):  # not through logging or print: they may be in the middle of a line
            os.write(2, b"\nheaddynamics: ends after the checkpoint at hand; once more: at once\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for signalled, handler in before.items():
            signal.signal(signalled, handler)
