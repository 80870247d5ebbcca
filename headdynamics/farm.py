"""Farm: checkpoints measured by the workers of a Ray cluster, piece by piece; what a worker dies of is done again.

    with Farm(opened, "auto") as farm:
        farm.measure(observer, checkpoints)

Workers hold models and send numbers; this process joins these and writes each row as soon as it is whole.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .curve import Curve
from .observer import Observer
from .pieces import Answer, Bench, Failed, Flow, curves_apart, taken_apart
from .progress import bar
from .snapshot import Snapshot, status_of
from .turns import Job, Task, Waiting

if TYPE_CHECKING:
    from .backfilling import Open
    from .checkpoints import Checkpoint

logger = logging.getLogger("headdynamics")
BLOCK = 32  # masks in a piece: on top of them comes one pass, of the whole model, with which they share
TRIES = 3


@dataclass(eq=False)
class _Worker:
    actor: Any
    task: Task | None = None  # None: it opens the training
    holds: int | None = None  # the update of the checkpoint that is loaded


@dataclass(frozen=True)
class _Died:
    why: str


class Farm:
    """Workers on a Ray cluster, each with a model of its own; open it by `with`.

    Args:
        opened: opens the training on a worker. Ray sends it there: a function that can be imported, or one of plain
            values. Relative paths begin in this process's folder, on every node.
        address: of the cluster: "auto", HOST:PORT or ray://HOST:PORT; or "local": one is started here.
        workers: how many at most. Default: as many as the cluster has GPUs; without any, as many as its CPUs allow at
            this process's number of torch threads.
        block: masks in a piece, at most.
        gpus: use GPUs, one a worker, where the cluster has any.

    Raises:
        ImportError: Ray is missing.
        ValueError: an option makes no sense; on entering, no cluster answers, or none that has room for a worker.

    """

    def __init__(
        self, opened: Open, address: str = "auto", workers: int | None = None, block: int = BLOCK, gpus: bool = True
    ) -> None:
        if block < 1 or (workers is not None and workers < 1):
            raise ValueError(f"{workers} workers, {block} masks in a piece: give 1 or more")
        self._ray, self._opened, self._address = _ray(), opened, address
        self._most, self.block, self._gpus = workers, block, gpus
        self._busy: dict[Any, _Worker] = {}  # by what Ray promised
        self._free: list[_Worker] = []
        self._stillborn = 0  # workers that died before they were ready, in a row

    def __enter__(self) -> Farm:
        self._connected = not self._ray.is_initialized()
        if self._connected:
            _connect(self._ray, self._address)
        try:
            self._count, needs = self._room()
        except ValueError:
            self.__exit__()
            raise
        self._actor = self._ray.remote(**needs)(Bench)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in [*self._busy.values(), *self._free]:
            self._ray.kill(worker.actor)
        self._busy, self._free = {}, []
        if self._connected:
            self._ray.shutdown()

    def measure(
        self, observer: Observer, checkpoints: Sequence[Checkpoint], stop: threading.Event | None = None
    ) -> None:
        """Measure these checkpoints into the observer's records, each as soon as it is whole, until `stop` is set.

        Raises:
            ValueError: one cannot be measured, and the observer is `strict`; or workers cannot measure the same.

        """
        at = {one.update: one for one in checkpoints}
        for job in self._done(observer, {update: taken_apart(observer, self.block) for update in at}, stop):
            one = at[job.update]
            if isinstance(job.result, Failed):
                if observer.strict:
                    raise ValueError(job.result.why)
                logger.error("update %d could not be measured: %s", job.update, job.result.why)
                taken = Snapshot(job.update, one.epoch, job.seconds, job.result.why, checkpoint=one.path)
            else:
                found, curves, ablations, knees = job.result
                taken = Snapshot(
                    job.update, one.epoch, job.seconds, status_of(found), found, curves, one.path, ablations, knees
                )
                logger.info("update %d: %d pieces, %.1f s of work", job.update, job.pieces, job.seconds)
            observer.record(taken)

    def curves(self, observer: Observer, at: Checkpoint, orders: Mapping[str, np.ndarray]) -> dict[str, Curve]:
        """The curve of each order at one checkpoint; ValueError where it cannot be measured."""
        if not orders:
            return {}
        flow = curves_apart(observer, orders, self.block)
        [job] = self._done(observer, {at.update: flow})
        if isinstance(job.result, Failed):
            raise ValueError(f"no transfer: the last checkpoint, {at.path}: {job.result.why}")
        curves: dict[str, Curve] = job.result
        return curves

    def _done(
        self, observer: Observer, flows: Mapping[int, Flow], stop: threading.Event | None = None
    ) -> Iterator[Job]:
        """Each checkpoint's job, when its result is there; after `stop` no more."""
        jobs = [Job(update, flow) for update, flow in flows.items()]
        waiting = Waiting([task for job in jobs for task in job.begin()])
        self._hire(self._count - len(self._busy) - len(self._free))
        with bar(desc="pieces", unit="piece") as drawn:
            left = len(jobs)
            while left and not (stop and stop.is_set()):
                self._assign(waiting)
                task, answer = self._next_answer(observer.run.signature)
                if task is None or task.job.result is not None:
                    continue
                if isinstance(answer, _Died):
                    task.deaths += 1
                    if task.deaths < TRIES:
                        waiting.again(task)
                        continue
                    answer = Failed(f"its worker died, {TRIES} times: {answer.why}")
                waiting.add(task.job.take(task, answer))
                if drawn is not None:
                    drawn.total = sum(job.pieces for job in jobs)
                    drawn.update(1)
                if task.job.result is not None:
                    waiting.drop(task.job)
                    left -= 1
                    yield task.job

    def _room(self) -> tuple[int, dict[str, Any]]:
        """(the number of workers, what each needs)."""
        there = self._ray.cluster_resources()
        gpus, threads = int(there.get("GPU", 0)) if self._gpus else 0, torch.get_num_threads()
        most = gpus or int(there.get("CPU", 0)) // threads
        if not most:
            raise ValueError(f"the cluster has {there.get('CPU', 0):g} CPUs, and a worker needs {threads}")
        return min(most, self._most or most), {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": threads}

    def _hire(self, count: int) -> None:
        for _ in range(count):
            worker = _Worker(self._actor.remote(self._opened, os.getcwd(), torch.get_num_threads()))
            self._busy[worker.actor.ready.remote()] = worker

    def _assign(self, waiting: Waiting) -> None:
        every = [*self._busy.values(), *self._free]
        for worker in list(self._free):
            task = waiting.next_for(worker.holds, [one.holds for one in every if one is not worker])
            if task is not None:
                self._free.remove(worker)
                worker.task, worker.holds = task, task.job.update
                self._busy[worker.actor.do.remote(task.job.update, task.piece)] = worker

    def _next_answer(self, signature: Mapping[str, Any]) -> tuple[Task | None, Any]:
        """The next task that a worker is done with, one way or the other; None: the worker has become ready."""
        [promise], _ = self._ray.wait(list(self._busy), num_returns=1)
        worker = self._busy.pop(promise)
        try:
            answer: Answer | Failed | _Died = self._ray.get(promise)
        except self._ray.exceptions.RayTaskError as error:
            raise ValueError(f"a worker cannot be set up: {type(error.cause).__name__}: {error.cause}") from None
        except self._ray.exceptions.RayError as error:
            answer = self._replaced(worker, _line(error))
        else:
            self._free.append(worker)
            if worker.task is None:
                self._welcome(answer, signature)
        return worker.task, answer

    def _replaced(self, worker: _Worker, why: str) -> _Died:
        self._stillborn += worker.task is None
        if self._stillborn >= TRIES:
            raise ValueError(f"{TRIES} workers died before they were ready: {why}")
        logger.warning("a worker died and is replaced: %s", why)
        self._hire(1)
        return _Died(why)

    def _welcome(self, told: Any, signature: Mapping[str, Any]) -> None:
        where, theirs = told
        if theirs["hash"] != signature["hash"]:
            raise ValueError(f"{where} has another model, other examples or settings than this process")
        if theirs["versions"] != signature["versions"]:
            logger.warning("%s has other versions: %s", where, theirs["versions"])
        logger.info("worker: %s", where)
        self._stillborn = 0


def _line(error: Exception) -> str:
    """The line that says why, of the many that Ray gives: the first, or where a traceback follows it the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1 if "error raised" in lines[0] else 0]


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ImportError("Ray is missing: pip install headdynamics[ray]") from None
    return ray


def _connect(ray: Any, address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():  # ray itself tries for minutes
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ValueError(f"no Ray cluster at {address}: {error}") from error
    here = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **here)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"no Ray cluster at {address}: {error}") from error
