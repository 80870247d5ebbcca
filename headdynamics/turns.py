"""Turns: which worker takes up which piece next.

A free worker takes up pieces of the checkpoint that it holds, else a checkpoint that nobody holds, else it helps where
others are at work: loading weights may well take longer than a piece.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from .pieces import Answer, Failed, Flow, Piece


@dataclass(eq=False)
class Job:
    """A checkpoint that is measured. `result`: what came of it, or `Failed`; None: not yet."""

    update: int
    flow: Flow
    result: Any = None
    seconds: float = 0.0
    pieces: int = 0  # so far
    _answers: dict[int, Any] = field(default_factory=dict)
    _wanted: int = 0

    def begin(self) -> list[Task]:
        """What may be done first."""
        return self._go_on(None)

    def take(self, task: Task, answer: Answer | Failed) -> list[Task]:
        """Take the answer to a task; what may be done next, once all that was side by side is there."""
        if isinstance(answer, Failed):
            self.result = answer
            return []
        self._answers[task.place] = answer.found
        self.seconds += answer.seconds
        if len(self._answers) < self._wanted:
            return []
        return self._go_on([self._answers[place] for place in range(self._wanted)])

    def _go_on(self, answers: list[Any] | None) -> list[Task]:
        try:
            pieces = self.flow.send(answers)  # type: ignore[arg-type]  # None begins it
        except StopIteration as end:
            self.result = end.value
            return []
        except Exception as error:
            self.result = Failed(f"{type(error).__name__}: {error}")
            return []
        self._answers, self._wanted, self.pieces = {}, len(pieces), self.pieces + len(pieces)
        return [Task(self, place, piece) for place, piece in enumerate(pieces)]


@dataclass(eq=False)
class Task:
    """A piece of a job, at its place among those that may be done side by side; `deaths`: of workers at it."""

    job: Job
    place: int
    piece: Piece
    deaths: int = 0


class Waiting:
    """The tasks that nobody has taken up, the first to come first."""

    def __init__(self, tasks: Collection[Task]) -> None:
        self._tasks = list(tasks)

    def add(self, tasks: Collection[Task]) -> None:
        """Put these last."""
        self._tasks += tasks

    def again(self, task: Task) -> None:
        """Put this one first."""
        self._tasks.insert(0, task)

    def drop(self, job: Job) -> None:
        """Leave out what waits of a job."""
        self._tasks = [task for task in self._tasks if task.job is not job]

    def next_for(self, holds: int | None, held: Collection[int | None]) -> Task | None:
        """Take the task for a worker that holds the checkpoint of one update, while others hold those of `held`."""

        def turn(task: Task) -> int:
            update = task.job.update
            return 0 if update == holds else 1 if update not in held else 2

        found = min(self._tasks, key=turn, default=None)  # the first of the least
        if found:
            self._tasks.remove(found)
        return found
