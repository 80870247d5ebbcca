"""TensorBoard: a few well-named tags in groups, never one a head.

| tag                       | what                                                             |
|---------------------------|------------------------------------------------------------------|
| importance_by_kind/KIND   | mean I(h) of a kind of attention                                 |
| importance_by_layer/KIND-L| mean I(h) of a layer; KIND-STACK-L where a kind has two stacks   |
| heads/importance          | image: layers by heads, one panel a kind and stack               |
| score/unpruned            | the score with all heads                                         |
| retained/importance_20    | score with 20 (40, 60, 80) % of heads gone / unpruned score      |
| retained/random_20        | the same, mean of the random orders                              |
| curve/figure_5            | image: the curve of each snapshot; retained score over training  |
| knee/ORDER                | fraction of heads that may go, where the knee was asked for      |
| stability/with_previous   | Spearman's rank correlation of I(h) with the snapshot before     |
| online/KIND               | mean I(h) of a kind over a window of training's own steps        |
| headdynamics/...          | every number of the row, for the dashboard: see `events`         |
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..curve import Curve
from ..online import Window
from ..snapshot import Run, Snapshot
from ..stacks import stacks
from .events import row_summary, run_summary

logger = logging.getLogger("headdynamics")
SHOWN = (0.2, 0.4, 0.6, 0.8)


class TensorBoardRecorder:
    """Writes snapshots as TensorBoard events under `folder`; the step is the update."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._writer: Any = None
        self._run: Run | None = None
        self._taken: list[Snapshot] = []

    def start(self, run: Run, update: int | None) -> None:
        """See `Recorder`; events beyond `update` are purged.

        Raises:
            ImportError: tensorboard is missing; the message says what to install.

        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError("TensorBoard events need tensorboard: pip install headdynamics[tensorboard]") from None
        self._run = run
        self._writer = SummaryWriter(str(self.folder), purge_step=None if update is None else update + 1)
        self._writer.file_writer.add_summary(run_summary(run), 0)

    def write(self, snapshot: Snapshot) -> None:
        """See `Recorder`; a snapshot that failed has nothing to show but that it did."""
        run = self._run
        assert run is not None, "start comes first"
        self._writer.file_writer.add_summary(row_summary(run, snapshot), snapshot.update)
        if snapshot.importance is None:
            self._writer.flush()
            return
        before = self._taken[-1].importance if self._taken else None
        self._taken.append(light(snapshot))
        for tag, value in scalars(run, snapshot):
            self._writer.add_scalar(tag, value, snapshot.update)
        if before is not None:
            from scipy.stats import spearmanr

            agreement = spearmanr(before.mean, snapshot.importance.mean).statistic
            self._writer.add_scalar("stability/with_previous", agreement, snapshot.update)
        self._images(run, snapshot)
        self._writer.flush()

    def write_window(self, window: Window) -> None:
        """See `Recorder`."""
        assert self._run is not None, "start comes first"
        self._writer.file_writer.add_summary(row_summary(self._run, window), window.update)
        kinds = self._run.heads.kind
        for kind in np.unique(kinds):
            known = window.mean[(kinds == kind) & np.isfinite(window.mean)]
            if len(known):
                self._writer.add_scalar(f"online/{kind}", float(known.mean()), window.update)
        self._writer.flush()

    def _images(self, run: Run, snapshot: Snapshot) -> None:
        try:
            from ..analysis import figures  # pure drawing on arrays; needs matplotlib
        except ImportError as error:
            if len(self._taken) == 1:
                logger.warning("headdynamics: TensorBoard gets numbers but no images: %s", error)
            return
        for tag, figure in images(figures, run, self._taken):
            self._writer.add_figure(tag, figure, snapshot.update)

    def close(self) -> None:
        """See `Recorder`."""
        if self._writer is not None:
            self._writer.close()


def light(snapshot: Snapshot) -> Snapshot:
    """What images need of a snapshot: without resampled curves and ablations, of which a long run has many."""
    bare = {name: replace(curve, resampled=np.empty((0, 0), np.float32)) for name, curve in snapshot.curves.items()}
    return replace(snapshot, curves=bare, ablations={})


def scalars(run: Run, snapshot: Snapshot) -> Iterator[tuple[str, float]]:
    """(tag, value) of everything in a snapshot that is one number."""
    heads, found = run.heads, snapshot.importance
    assert found is not None
    for kind in np.unique(heads.kind):
        yield f"importance_by_kind/{kind}", float(found.mean[heads.kind == kind].mean())
    for stack in stacks(heads.kind, heads.module):
        for layer in np.unique(heads.layer[stack.at]):
            here = stack.at[heads.layer[stack.at] == layer]
            yield f"importance_by_layer/{stack.title.replace(', ', '-')}-{layer}", float(found.mean[here].mean())
    yield "score/unpruned", snapshot.score
    yield from retained(run, snapshot)
    for name, knee in snapshot.knees.items():
        yield f"knee/{name}", knee.fraction


def relative(curves: Mapping[str, Curve], share: bool) -> dict[str, np.ndarray]:
    """Curves [D, P] of each family of D orders against the unpruned score: its `share`, or the difference.

    The draws at random are one family; every other order is its own.
    """
    families: dict[str, list[np.ndarray]] = {}
    for name, curve in curves.items():
        whole = curve.score[0]
        family = re.sub(r"^random-\d+", "random", name)
        families.setdefault(family, []).append(curve.score / whole if share else curve.score - whole)
    return {family: np.stack(found) for family, found in families.items()}


def retained(run: Run, snapshot: Snapshot) -> Iterator[tuple[str, float]]:
    """What is left of the score at a few pruned fractions, as numbers to compare across snapshots and runs.

    A share where higher is better (nothing where the unpruned score is no positive number), else the difference.
    """
    if run.greater_is_better and not snapshot.score > 0:
        return
    for family, found in relative(snapshot.curves, run.greater_is_better).items():
        for fraction in SHOWN:
            at = np.flatnonzero(np.isclose(run.fractions, fraction))
            if len(at):
                yield f"retained/{family}_{round(fraction * 100)}", float(found[:, at[0]].mean())


def images(figures: Any, run: Run, taken: Sequence[Snapshot]) -> Iterator[tuple[str, Any]]:
    """(tag, figure): the heads at the last of the snapshots, and figure 5 over all of them."""
    heads, last = run.heads, taken[-1]
    assert last.importance is not None
    yield "heads/importance", figures.heads_figure(
        last.importance.mean,
        heads.kind,
        heads.layer,
        heads.number,
        title=f"I(h) at update {last.update}",
        module=heads.module,
    )
    share = run.greater_is_better and all(snapshot.score > 0 for snapshot in taken)  # one axis, one meaning
    curves = [relative(snapshot.curves, share) for snapshot in taken]
    if "importance" not in run.orders or len(run.fractions) < 2:
        return
    draws = np.stack([c["random"] for c in curves]) if "random" in curves[0] else None  # [S, D, P]
    spread = draws is not None and draws.shape[1] > 1
    yield "curve/figure_5", figures.curves_figure(
        np.array(run.fractions),
        np.stack([c["importance"][0] for c in curves]),
        np.array([snapshot.epoch for snapshot in taken]),
        None if draws is None else draws.mean(1),
        draws.std(1, ddof=1) if draws is not None and spread else None,
        label=f"{run.metric} after pruning {'/' if share else 'minus'} unpruned {run.metric}",
        title=run.model,
        draws=0 if draws is None else draws.shape[1],
    )
