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
"""

from __future__ import annotations

from typing import Any

from headdynamics.observer import Observer
from headdynamics.schedule import Moment, Schedule, either, parse, within_first_epoch
from headdynamics.snapshot import Snapshot


class Watch:
    """Counts updates and takes a snapshot when the schedule says so, and at the end if the last has none.

    Args:
        observer: what measures; made with `update` where training resumes.
        updates_per_epoch: optimizer steps in an epoch.
        every: "epoch", "log", a number of updates, a schedule function, or None: only at the end.
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

    def step(self, checkpoint: str = "") -> Snapshot | None:
        """One optimizer step is done; the snapshot, if one was due. `checkpoint` names the file of these weights."""
        self.update += 1
        end_of_epoch = self.update % self.updates_per_epoch == 0
        if not self.schedule(Moment(self.update, self.update / self.updates_per_epoch, end_of_epoch)):
            return None
        return self._snapshot(checkpoint)

    def _snapshot(self, checkpoint: str = "") -> Snapshot:
        self.measured = self.update
        return self.observer.snapshot(self.update, self.update / self.updates_per_epoch, checkpoint)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, failure: Any, *rest: Any) -> None:
        if failure is None and self.measured != self.update:
            self._snapshot()
        self.observer.close()
