"""When head importance settled in a run. The definition, its reasons and its error rates: docs/settling.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from headdynamics.analysis import ranking
from headdynamics.analysis.clean import clean
from headdynamics.analysis.curves import retained
from headdynamics.analysis.run import Run
from headdynamics.analysis.verdict import Rule, judge
from headdynamics.analysis.words import ALL_HEADS, WITHIN_LAYERS, explain, moment

Scale = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class View:
    """The verdict for one way of ranking the heads. S snapshots, P fractions.

    Attributes:
        name: "all heads", "within layers", or "encoder heads" and the like.
        heads: how many heads are ranked.
        verdict: "settled", "not settled", "too few snapshots", "too few heads" or "too noisy".
        epoch: where it settled, else None.
        update: where it settled, else None.
        sentence: the verdict in plain words, with the threshold and the tail that decided it.
        r: ``[S]`` agreement with the last snapshot, corrected for noise: this alone decides.
        ceiling: ``[S]`` C_e, agreement between halves of the examples at one snapshot.
        raw: ``[S]`` A_e, agreement with the last snapshot before the correction.
        tau: ``[S]`` Kendall's tau-b with the last snapshot.
        overlap: ``[S, P]`` share of the heads kept at the last snapshot that would be kept at this one, too.
    """

    name: str
    heads: int
    verdict: str
    epoch: float | None
    update: int | None
    sentence: str
    r: np.ndarray
    ceiling: np.ndarray
    raw: np.ndarray
    tau: np.ndarray
    overlap: np.ndarray


@dataclass(frozen=True, eq=False)
class Settling:
    """When head importance settled in one run. S usable snapshots, P fractions.

    Attributes:
        rule: what decided.
        tail: how many snapshots had to follow.
        update: ``[S]``.
        epoch: ``[S]``.
        score: ``[S]`` unpruned.
        fraction: ``[P]`` of heads pruned.
        retained: ``[S, P]`` what pruning by importance left of the score.
        retained_random: ``[S, P]`` what pruning at random left of it, mean over draws.
        retained_is: what the two hold: a ratio or a difference.
        views: all heads, within layers, and each kind alone where there are several.
        failed: how many snapshots were left out because their status is not "ok".
        notes: what else was left out and why, in plain words.
    """

    rule: Rule
    tail: int
    update: np.ndarray
    epoch: np.ndarray
    score: np.ndarray
    fraction: np.ndarray
    retained: np.ndarray
    retained_random: np.ndarray
    retained_is: str
    views: tuple[View, ...]
    failed: int
    notes: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The verdict over all heads, in plain words."""
        return self.views[0].sentence

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers for JSON; NaN becomes None."""
        return {"headline": self.headline, **_plain(self)}


def settle(run: Run, threshold: float = 0.9, tail: int | None = None, splits: int = 20, seed: int = 0) -> Settling:
    """Tell when head importance settled.

    Args:
        run: from ``load_run``; snapshots that failed are left out and counted.
        threshold: r_e has to stay at or above it to the end.
        tail: how many snapshots have to follow; None: max(3, ceil(S / 3)).
        splits: random splits of the blocks of examples into halves.
        seed: of the splits.

    Raises:
        ValueError: a threshold outside (0, 1], a tail or a number of splits below 1.
    """
    rule = Rule(threshold, tail, splits, seed)
    run, blocks, heads, left_out = clean(run)
    curve = retained(run)
    kind, layer = run.heads["kind"].values, _layers(run)
    views = (_view(run, blocks, rule, curve.fraction, *view) for view in _rankings(kind, layer, heads))
    return Settling(
        rule=rule,
        tail=rule.needed_after(len(blocks)),
        update=curve.update,
        epoch=curve.epoch,
        score=run.snapshots["score"].values,
        fraction=curve.fraction,
        retained=curve.importance,
        retained_random=curve.random,
        retained_is=curve.label,
        views=tuple(views),
        failed=left_out.failed,
        notes=left_out.sentences,
    )


def _layers(run: Run) -> np.ndarray:
    """``[H]`` each head's layer, told apart where two stacks of a kind (CLIP's) have layers of the same number."""
    places = zip(run.heads["module"].values.tolist(), run.heads["layer"].values.tolist(), strict=True)
    return np.unique([f"{module} {layer}" for module, layer in places], return_inverse=True)[1]


def layer_scale(kind: np.ndarray, layer: np.ndarray) -> Scale:
    """A function that divides ``[S, H]`` by the L2 norm of each layer of each kind; an all-zero layer stays zero."""
    members = [(kind == k) & (layer == n) for k, n in sorted(set(zip(kind.tolist(), layer.tolist(), strict=True)))]

    def scale(values: np.ndarray) -> np.ndarray:
        scaled = np.zeros_like(values)
        for member in members:
            part = values[:, member]
            norm = np.linalg.norm(part, axis=-1, keepdims=True)
            scaled[:, member] = np.divide(part, norm, out=np.zeros_like(part), where=norm > 0)
        return scaled

    return scale


def _rankings(kind: np.ndarray, layer: np.ndarray, heads: np.ndarray) -> Iterator[tuple[str, np.ndarray, Scale]]:
    """(name, which heads ``[H]``, how to scale them) of each view; ``heads`` says which have numbers."""
    yield ALL_HEADS, heads, np.asarray
    company = np.array([np.sum(heads & (kind == k) & (layer == n)) for k, n in zip(kind, layer, strict=True)])
    # A lone head is 1 after normalisation whatever happens: it would feign agreement.
    together = heads & (company > 1)
    yield WITHIN_LAYERS, together, layer_scale(kind[together], layer[together])
    kinds = list(dict.fromkeys(kind[heads].tolist()))
    if len(kinds) > 1:
        yield from ((f"{one} heads", heads & (kind == one), np.asarray) for one in kinds)


def _view(
    run: Run, blocks: np.ndarray, rule: Rule, fraction: np.ndarray, name: str, chosen: np.ndarray, scale: Scale
) -> View:
    epoch, update = run.snapshots["epoch"].values, run.snapshots["update"].values
    count = int(chosen.sum())
    found = ranking.agreement(blocks[:, :, chosen], scale, rule.splits, rule.seed)
    verdict, at = judge(found, count, rule)
    mean = scale(run.importance["mean"].values[:, chosen].astype(float))
    when = [moment(*pair) for pair in zip(epoch, update, strict=True)]
    return View(
        name=name,
        heads=count,
        verdict=verdict,
        epoch=None if at is None else float(epoch[at]),
        update=None if at is None else int(update[at]),
        sentence=explain(verdict, at, name, count, found, rule, when),
        r=found.corrected,
        ceiling=found.ceiling,
        raw=found.raw,
        tau=ranking.tau(mean),
        overlap=ranking.overlap(mean, fraction),
    )


def _plain(value: Any) -> Any:
    """Dataclasses, arrays and tuples as dicts and lists; what is not finite as None."""
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
