"""When to look: schedules are plain functions, Moment -> bool."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .names import meant


class Moment(NamedTuple):
    """A point in training, asked after every update."""

    update: int  # optimizer steps done
    epoch: float  # epochs done: 1.0 at the end of the first
    end_of_epoch: bool


Schedule = Callable[[Moment], bool]


def every_epoch(moment: Moment) -> bool:
    """At the end of each epoch."""
    return moment.end_of_epoch


def every_updates(n: int) -> Schedule:
    """Every `n` updates."""
    if n < 1:
        raise ValueError(f"snapshots every {n} updates: give 1 or more")
    return lambda moment: moment.update > 0 and moment.update % n == 0


def log_spaced(moment: Moment) -> bool:
    """At updates 1, 2, 4, 8, ..."""
    return moment.update > 0 and moment.update & (moment.update - 1) == 0


def never(moment: Moment) -> bool:
    """Not at all."""
    return False


def within_first_epoch(updates: int) -> Schedule:
    """At 1/8, 1/4 and 1/2 of the first epoch, which has `updates` updates."""
    early = {max(1, round(updates * part)) for part in (1 / 8, 1 / 4, 1 / 2)}
    return lambda moment: moment.update in early


def either(*schedules: Schedule) -> Schedule:
    """Whenever one of them says so."""
    return lambda moment: any(schedule(moment) for schedule in schedules)


NAMED: dict[str, Schedule] = {"epoch": every_epoch, "log": log_spaced, "never": never}


def parse(text: str | int | Schedule | None) -> Schedule:
    """A schedule from what a user writes: `epoch`, `log`, `never`, a number of updates, or a function.

    Raises:
        ValueError: nothing of these.

    """
    if text is None:
        return never
    if callable(text):
        return text
    if isinstance(text, int) or str(text).isdigit():
        return every_updates(int(text))
    if text in NAMED:
        return NAMED[text]
    raise ValueError(
        f"{text!r} is no schedule: write {', '.join(NAMED)}, or a number of updates such as 500{meant(text, NAMED)}"
    )
