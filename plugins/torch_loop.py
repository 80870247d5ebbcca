"""A plain PyTorch loop: say `watch.step()` after each optimizer step.

    observer = hd.Observer(model, "run.h5", batches=valid, score=hd.accuracy(valid))
    with Watch(observer, updates_per_epoch=len(loader), every="epoch") as watch:
        for epoch in range(epochs):
            for batch in loader:
                loss = model(**batch).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                watch.step()        # measures when it is time; before you save a checkpoint

With `hd.Observer(..., online=hd.Online(model))` the loop's own backward passes are measured, too:

                with watch.online():        # the loss is the mean over the batch; else see `online`
                    loss = model(**batch).loss
                    loss.backward()
                optimizer.step()

Under torchrun every rank does all of this, with `ranks = hd.Ranks.of_training()` for both Observer and Online: each
measures its share of the batches, which all of them hold, and rank 0 writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from headdynamics.observer import Observer
from headdynamics.online import alone
from headdynamics.schedule import Moment, Schedule, either, parse, within_first_epoch
from headdynamics.snapshot import Snapshot


class Watch:
    """Counts updates and takes a snapshot when the schedule says so, and at the end if the last has none.

    Args:
        observer: what measures; made with `update` where training resumes.
        updates_per_epoch: optimizer steps in an epoch.
        every: "epoch", "log", a number of updates, a schedule function, or None: only at the end, and
            not at all where the observer measures online.
        early: also at 1/8, 1/4 and 1/2 of the first epoch.
        update: updates done before, where training resumes.

    """

    def __init__(
        self,
        observer: Observer,
        updates_per_epoch: int,
        every: str | int | Schedule | None = "epoch",
        early: bool = False,
        update: int = 0,
    ) -> None:
        self.observer, self.updates_per_epoch, self.update = observer, updates_per_epoch, update
        self.schedule = either(parse(every), within_first_epoch(updates_per_epoch)) if early else parse(every)
        self.measured = update  # a resumed run has the row of the update at which it resumes

    def step(self, checkpoint: str = "", saving: bool = False) -> Snapshot | None:
        """One optimizer step is done; the snapshot, if one was due.

        `checkpoint` names the file of these weights, for the row. `saving`: a checkpoint comes next, so that a window
        of online importance ends here; all ranks say it or none. Of a process alone the name says it, too.
        """
        self.update += 1
        saving = saving or (bool(checkpoint) and self.observer.ranks.size == 1)
        end_of_epoch = self.update % self.updates_per_epoch == 0
        due = self.schedule(Moment(self.update, self.update / self.updates_per_epoch, end_of_epoch))
        self._window(close=due or saving)
        return self._snapshot(checkpoint) if due else None

    @contextlib.contextmanager
    def online(self, weight: torch.Tensor | None = None) -> Iterator[None]:
        """Around the forward and the backward pass of a batch, for online importance.

        `weight` [B]: the derivative of the loss that goes backward by the loss of each example; default: 1 / B. Give
        it where the loss is no mean over examples, is divided for accumulation, or is scaled; and for the batch form.
        """
        online = self.observer.online
        if online is None:
            raise ValueError("nothing measures online: give the observer online=hd.Online(model)")
        with online.tapped():
            yield
        online.add(weight)

    def _window(self, close: bool) -> None:
        if self.observer.online is not None:
            self.observer.window(self.observer.online.step(self.update, close))

    def _snapshot(self, checkpoint: str = "") -> Snapshot:
        self.measured = self.update
        return self.observer.snapshot(self.update, self.update / self.updates_per_epoch, checkpoint)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, failure: Any, *rest: Any) -> None:
        if failure is None:
            self._window(close=True)
            if self.measured != self.update and not alone(self.observer.online, self.schedule):
                self._snapshot()
        self.observer.close()
