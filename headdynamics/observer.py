"""Observer: the main path. A trainer's event -> a snapshot -> the recorders.

    observer = Observer(model, "run.h5", batches=valid, score=hd.accuracy(valid))
    ...
    observer.snapshot(update=step, epoch=3)
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from .ablation import Ablation, ablate
from .budget import Budget
from .curve import Curve, pruning_curves
from .estimators import Importance, Positions, importance, token_positions
from .halving import Halving
from .heads import Heads, find_heads, unwrap
from .knee import Knee, find_knees
from .losses import Loss, cross_entropy
from .names import made
from .nested import Parts
from .online import Online, Window
from .orders import check_orders, make_order
from .plan import Plan
from .prepared import beside, drawn, first, ready
from .ranks import Ranks
from .record import Recorder
from .record.recording import Recording
from .scores import BatchScore, Score, check_score, mean_loss
from .signature import scored_examples, signature
from .situation import Situation
from .snapshot import Run, Snapshot, status_of
from .stillness import still

logger = logging.getLogger("headdynamics")


class Observer:
    """Watches one model through training: measures it at each `snapshot` and hands that to the recorders.

    Args:
        model: any torch model whose heads `find_heads` reads.
        path: the run file; None for none. The attribute `path` says where it really is.
        batches: examples for I(h); iterated anew at each snapshot, so a list or a re-iterable.
        score: a `Score`, or a plain function of the model that returns a float; default: the mean loss.
        loss: `loss(model, batch) -> [B]`; default: cross-entropy from logits and labels.
        recorders: further destinations.
        positions: which positions of a batch are tokens, for the `token` estimator; see `importance`.
        heads: those of this model, where they were found before.
        still_too: modules beside the model that a snapshot might change (a criterion).
        ranks: the processes that measure together, each a share of the batches; all call the same methods at the same
            points of training. Rank 0 alone records. Default: this one alone.
        online: what measures training's own steps; its windows come here by `window`. See `plugins.torch_loop`.
        settings: what else makes these numbers what they are; part of the signature.
        framework: what the run file says that trained: fairseq, transformers or torch.
        update: where training stands; a resumed run drops the rows beyond. None: rows come in any order, and none is
            dropped (backfill).
        strict: raise when a snapshot or a recorder fails, instead of logging it and going on.
        **measured: estimator, fractions, orders, ablations, budget...: see `Plan`.

    Raises:
        HeadsError: the model has no heads that can be read.
        ValueError: an option makes no sense.
        RunFileError: the run file cannot be written, or another process writes it.
        RankError: another rank cannot, or has other examples.

    """

    def __init__(
        self,
        model: nn.Module,
        path: str | None = None,
        *,
        batches: Iterable[Any],
        score: Score | BatchScore | Callable[[nn.Module], float] | None = None,
        loss: Loss = cross_entropy,
        recorders: Sequence[Recorder] = (),
        positions: Positions = token_positions,
        heads: Heads | None = None,
        still_too: Sequence[nn.Module] = (),
        ranks: Ranks | None = None,
        online: Online | None = None,
        settings: Mapping[str, Any] | None = None,
        framework: str = "torch",
        update: int | None = 0,
        strict: bool = False,
        **measured: Any,
    ) -> None:
        began = time.perf_counter()
        self.plan, self.ranks = plan, ranks = made(Plan, measured, OPTIONS), ranks or Ranks()
        if online is not None and online.ranks is not ranks and (ranks.size > 1 or online.ranks.size > 1):
            raise ValueError("give hd.Online the same ranks as the observer")
        if score is not None:
            check_score(score)
        with still():
            batches = ready(batches, plan, ranks)
            if isinstance(score, BatchScore):
                score = replace(score, batches=ready(score.batches, plan, ranks))
        self.model, self.batches, self.loss, self.positions = unwrap(model), batches, loss, positions
        self.score: Any = score or mean_loss(batches, loss)
        self.strict, self.still_too, self.online = strict, tuple(still_too), online
        with ranks.together(), still(self.model, *self.still_too):
            probe = first(batches)
            self.heads = heads or find_heads(self.model, probe if isinstance(probe, Mapping) else None)
            check_orders(plan.orders, self.heads)
            settings, scored = {**plan.settings(), **(settings or {})}, scored_examples(self.score)
            first(batches if scored is None else scored)
            signed = signature(self.model, self.heads, batches, settings, scored, beside(plan, online))
            ranks.agree(drawn(signed, batches, scored), "examples or settings: give each the same evaluation data")
        self.run = Run(
            self.heads,
            framework,
            type(self.model).__name__,
            getattr(self.score, "name", getattr(self.score, "__name__", "score")),
            bool(getattr(self.score, "greater_is_better", True)),
            plan.estimator,
            plan.curve,
            tuple(plan.orders),
            signed,
        )
        self.recording = Recording(self.run, path, recorders, update, strict, ranks)
        self.path = self.recording.path
        parts = [examples for examples in (batches, scored) if isinstance(examples, Parts)]
        self.budget = None if plan.budget is None else Budget(plan.budget, parts, ranks=ranks)
        self.halving = Halving(plan.by_batch, ranks)
        self.batches, self.score = self.halving.of(batches), self.halving.of_score(self.score)
        if self.budget:
            self.budget.charge(time.perf_counter() - began)

    def snapshot(
        self,
        update: int | None = None,
        epoch: float | None = None,
        checkpoint: str = "",
        load: Callable[[nn.Module], None] | None = None,
    ) -> Snapshot:
        """Measure the model as it stands and record it; training does not notice.

        `update` (optimizer steps done) is the row's key and `epoch` counts epochs done; one of them is enough.
        A failure is logged and recorded as the snapshot's status, unless `strict`. `checkpoint`: the file that holds
        these weights. `load` puts the weights to measure into the model first (backfill), and they stay there.

        Raises:
            ValueError: neither `update` nor `epoch` is given, or `update` is no count. With `strict` whatever failed is
                raised, too.

        """
        if update is None and epoch is None:
            raise ValueError("say where training stands: snapshot(update=...) or snapshot(epoch=...)")
        update = int(epoch or 0) if update is None else int(update)
        if update < 0:
            raise ValueError(f"an update counts optimizer steps done, from 0 on, not {update}")
        epoch = float("nan") if epoch is None else float(epoch)
        visit = self.budget.visit() if self.budget else contextlib.nullcontext()
        with visit as paid, np.errstate(invalid="ignore", over="ignore"):  # the row's status tells of NaN
            taken = self._visit(update, epoch, checkpoint, load)
            self.record(taken)
            if paid is not None:
                paid.measured = taken.importance is not None
        return taken

    def record(self, taken: Snapshot) -> None:
        """Hand a snapshot, taken here or elsewhere, to the recorders."""
        self._warn_of_nan(taken)
        self.recording.write(taken)

    def _visit(self, update: int, epoch: float, checkpoint: str, load: Callable[[nn.Module], None] | None) -> Snapshot:
        began = time.perf_counter()
        try:
            with self.ranks.together():
                if load is not None:
                    load(self.model)
            found, curves, ablations, knees = self.halving.tried(self._measure)
            seconds = time.perf_counter() - began
            taken = Snapshot(update, epoch, seconds, status_of(found), found, curves, checkpoint, ablations, knees)
        except Exception as error:
            if self.strict:
                raise
            if self.ranks.writes or error.__cause__:  # once, and where it failed
                logger.exception("headdynamics could not measure update %d and goes on without it", update)
            why = f"{type(error).__name__}: {error}"
            taken = Snapshot(update, epoch, time.perf_counter() - began, why, checkpoint=checkpoint)
        return taken

    def window(self, found: Window | None) -> None:
        """Record a window of online importance, if there is one, with the moving average."""
        if found is not None:
            self.recording.write_window(found)

    def _measure(self) -> tuple[Importance, dict[str, Curve], dict[str, Ablation], dict[str, Knee]]:
        with self.ranks.together(), still(self.model, *self.still_too):
            plan = self.plan
            found, orders = self.ranked()
            curves = pruning_curves(self.model, orders, self.score, self.run.fractions, heads=self.heads)
            knees = find_knees(self.model, orders, self.score, *plan.knee, heads=self.heads) if plan.knee else {}
            ablations = {what: ablate(self.model, self.score, what, heads=self.heads) for what in plan.ablations}
            return found, curves, ablations, knees

    def ranked(self) -> tuple[Importance, dict[str, np.ndarray]]:
        """I(h) of the model as it stands, inside `still`, and the pruning orders that are made from it."""
        everything = np.arange(len(self.heads))
        found = importance(
            self.model, self.batches, self.loss, self.plan.estimator, heads=self.heads, positions=self.positions
        )
        self.halving.check(found.n)
        situation = Situation(self.model, self.heads, self.batches, found, everything, self.loss, self.positions)
        orders = {name: make_order(name, situation) for name in self.run.orders}
        return found, self.ranks.first(orders)  # ranks on different hardware may round differently

    def _warn_of_nan(self, taken: Snapshot) -> None:
        loss = taken.importance.loss if taken.importance else 0.0
        lacks = taken.importance is not None and (math.isnan(taken.score) or not math.isfinite(loss))
        if lacks and self.ranks.writes:
            logger.warning(
                "headdynamics: update %d has loss %g and %s %g; NaN is recorded as missing. Mostly it means that "
                "training diverged, or that a metric is undefined on these few examples",
                *(taken.update, loss, self.run.metric, taken.score),
            )

    def close(self) -> None:
        """Let every recorder go."""
        self.recording.close()


OPTIONS = ("batches", *(Observer.__init__.__kwdefaults__ or ()))
