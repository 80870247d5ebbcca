"""Online importance: I(h) of every training step, from the backward pass that training does anyway.

    with online.tapped():                # forward and backward of one batch
        loss(model(batch)).backward()
    online.add(weight)                   # dloss/dL_b [B]: divided out, so that L_b is an example's own loss
    optimizer.step()
    window = online.step(update)         # every `window` updates: what they said

online_sources.py has the estimators, `example` and `batch`. s[b,h] is that of estimators.py (Michel et al. 2019,
equation 2), but of the model in training mode, dropout and all, each example at the weights of its own step.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .heads import Heads, heads_in
from .names import unknown
from .online_sources import SOURCES, Source, check_model
from .ranks import RankError, Ranks
from .schedule import Schedule, never
from .tally import TALLIES, Sums

logger = logging.getLogger("headdynamics")
WINDOW = 100  # updates
HALF_LIFE = 4  # windows, of the moving average
OWN_LOSS, RELATIVE = "own loss", "relative"


@dataclass(frozen=True)
class Window:
    """What the training steps of some successive updates said of each head; arrays [H], float64.

    The error is that of a mean over `n` values as if all were of one model; a window's model moves meanwhile.
    """

    update: int  # the key: optimizer steps done at its end
    mean: np.ndarray  # I(h)
    stderr: np.ndarray
    signed: np.ndarray  # mean of s over the examples
    n: int  # examples (batch: updates) in the mean
    skipped: int  # those that were not finite, as where a step overflows in fp16
    estimator: str
    scale: str  # s is of an example's own loss; or relative, where the training's loss is not understood
    average: np.ndarray | None = None  # of the means so far: see `averaged`


def averaged(before: np.ndarray | None, window: Window) -> np.ndarray:
    """The moving average [H] after a window: the first mean starts it, and four windows halve what was before.

    float32, as the run file keeps it, so that a resumed run goes on with the same bits.
    """
    if before is not None and not window.n:
        return before
    start = window.mean if before is None else np.where(np.isfinite(before), before, window.mean)
    return (start + (window.mean - start) * (1 - 0.5 ** (1 / HALF_LIFE))).astype(np.float32)


class Online:
    """Gathers I(h) of training steps, window by window. Nothing is copied to the host before a window ends.

    Args:
        model: the one in training; as it is trained, that is with whatever wraps it.
        estimator: `example` or `batch`.
        window: updates in a window.
        heads: default: those that `find_heads` reads.
        strict: raise what otherwise is logged once, and ends the measuring but not the training.
        ranks: the processes that train together, each on its own examples. They hear of each other where a window
            ends, which all call for at the same update, and not before; all know it then.

    Raises:
        ValueError: no such estimator, or an empty window.
        HeadsError: the model has no heads that can be read, or not by this estimator.

    """

    def __init__(
        self,
        model: nn.Module,
        estimator: str = "example",
        window: int = WINDOW,
        heads: Heads | None = None,
        strict: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        check_options(estimator, window)
        self.ranks = ranks or Ranks()
        self.heads, self.estimator, self.window, self.strict = heads_in(model, heads), estimator, window, strict
        check_model(model, self.heads, estimator)
        self.failed, self.scale, self._told = False, OWN_LOSS, False
        self._listened = False  # since the last window
        self._source: Source = SOURCES[estimator](self.heads)
        self._began = self._update = -1  # updates; -1: none was seen
        self._tally = TALLIES[estimator]()
        self._over = False

    @contextlib.contextmanager
    def tapped(self) -> Iterator[None]:
        """Listen to forward and backward passes, which compute the same bits; what raises in them is forgotten."""
        self._listened = True
        with contextlib.ExitStack() as taps:
            with self.forgiven():
                taps.enter_context(self._source.tapped(self.forgiven))
            try:
                yield
            except BaseException:
                self._source.forget()
                raise

    def add(self, weight: torch.Tensor | None = None) -> None:
        """A backward pass is done: take what it left.

        `weight` [B]: the derivative by each example's own loss of what `backward` was called on: loss scale,
        accumulation and averaging in one. Default (`example` only): 1 / B, the mean over the batch.
        """
        self._listened = True
        with self.forgiven():
            found = self._source.collect(weight)
            if found is not None and not self.failed:
                self._tally.add(self._update, *found)

    def step(self, update: int, close: bool = False) -> Window | None:
        """`update` optimizer steps are done; the window, where it is full or `close` asks for it."""
        moved = update != self._update  # else it is a step that was left out: too large a batch, an overflow
        if moved:
            self._began = update - 1 if self._update < 0 else self._began
            self._update = update
        full = update - self._began >= self.window
        with self.forgiven():
            found = self._source.finish()
            if moved and found is not None and not self.failed:
                self._tally.add(update, *found)
        expected = full and not close and self._listened
        return self._close(expected) if full or close else None

    def _close(self, expected: bool) -> Window | None:
        """The window so far; None where nothing was seen since the last, or where a rank failed.

        Nothing is an error where something is `expected`.
        """
        self._began, self._listened = self._update, False
        tally, self._tally = self._tally, TALLIES[self.estimator]()
        if self._over or (self.failed and self.ranks.size == 1):
            return None
        with self.forgiven():
            with self.ranks.together():
                if self.failed:
                    raise ValueError("its online importance failed")
                heard = tally.heard()
                if expected and heard is None:
                    raise ValueError(f"no gradient reached any W_O in {self.window} updates (is the model compiled?)")
            found = [one for one in self.ranks.every(heard) if one is not None]
            return self._window(tally.merged(found)) if found else None
        self._over = True  # on every rank
        return None

    def _window(self, sums: Sums) -> Window:
        total, signed, square = sums.values
        n, skipped, examples = (int(count) for count in sums.counts)
        missing = np.full(len(self.heads), np.nan)
        variance = np.maximum(square - total**2 / max(n, 1), 0) / max(n - 1, 1)
        known = np.where(self._deaf(), np.nan, 1)
        return Window(
            self._update,
            known * total / n if n else missing,
            known * np.sqrt(variance / n) if n > 1 else missing,
            known * signed / examples if n else missing,
            n,
            skipped,
            self.estimator,
            self.scale,
        )

    def _deaf(self) -> np.ndarray:
        """Heads whose s cannot be known, [H]; said once."""
        deaf = np.isin(self.heads.block, list(self._source.deaf))
        if deaf.any() and not self._told:
            logger.warning(
                "headdynamics: online importance misses %d of %d heads: they stand on frozen layers alone, and no "
                "gradient reaches them",
                *(deaf.sum(), len(deaf)),
            )
            self._told = True
        return deaf

    @contextlib.contextmanager
    def forgiven(self) -> Iterator[None]:
        """Unless strict, let no failure of ours reach training: say it once and measure no more."""
        try:
            yield
        except Exception as error:
            if self.strict:
                raise
            if not self.failed:
                why = str(error).rstrip(".")
                logger.error("headdynamics: online importance is off: %s. Training goes on without it.", why)
                logger.debug("why online importance is off", exc_info=True)
            self.failed = True


def alone(online: Online | None, schedule: Schedule) -> bool:
    """Whether windows are all that was asked for: `never` a snapshot, and not one at the end of training either.

    Asked by all ranks at the same points.
    """
    if schedule is not never or online is None:
        return False
    try:
        return not any(online.ranks.every(online.failed))
    except RankError:  # one is gone
        return False


def check_options(estimator: str, window: int) -> None:
    """ValueError where an option makes no sense, before any work."""
    if estimator not in SOURCES:
        raise ValueError(f"online importance: {unknown('estimator', estimator, SOURCES)}")
    if window < 1:
        raise ValueError(f"online windows of {window} updates: give 1 or more")
