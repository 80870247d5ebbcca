"""Scores of a model without some heads: the points of a curve. Heads are really gone; an encoder left whole runs once.

Points are scored one by one, all batches each. Only those that leave the encoder whole (an order of the decoder's
heads, say) go batch by batch, so that what the encoder makes of a batch serves all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .heads import Heads, unwrap
from .ranks import each, ranks_of
from .scores import BatchScore, Score, Scores
from .sharing import standing_in
from .sharing.nests import mapped
from .sharing.recall import Memory
from .signature import scored_examples
from .surgery.lent import removable, removed


def scores_without(model: nn.Module, heads: Heads, score: Score, keeps: Sequence[torch.Tensor]) -> list[Scores | float]:
    """`score` of `model` without the heads whose place in a mask [H] is 0, for each of `keeps`."""
    model = unwrap(model)
    may_cut = cuttable(model, heads, score) if any(not keep.all() for keep in keeps) else ()
    found: dict[int, Scores | float] = {}
    whole = torch.as_tensor(heads.kind == "encoder")
    together = [i for i, keep in enumerate(keeps) if keep[whole].all()]
    encoder = _largest_of(model, heads, "encoder")
    if encoder and len(together) > 1 and isinstance(score, BatchScore):
        few = [keeps[i] for i in together]
        found.update(zip(together, _batch_by_batch(model, heads, score, few, may_cut, encoder), strict=True))
    for i, keep in enumerate(keeps):
        if i not in found:
            with removed(model, heads, keep, may_cut):
                found[i] = score(model)
    return [found[i] for i in range(len(keeps))]


def cuttable(model: nn.Module, heads: Heads, score: Score) -> tuple[bool, ...]:
    """For each block whether its heads may be taken out under this score; none without its `probe` to prove it."""
    probe = getattr(score, "probe", None)
    if probe is None:
        return (False,) * len(heads.blocks)
    return ranks_of(scored_examples(score)).first(removable(model, heads, lambda: probe(model)))


def _largest_of(model: nn.Module, heads: Heads, kind: str) -> list[nn.Module]:
    """The largest modules, below the model itself, whose heads are all of this kind."""
    modules = dict(model.named_modules())
    others = [f"{block.name}." for block in heads.blocks if block.kind != kind]
    found: dict[str, nn.Module] = {}
    for block in heads.blocks:
        if block.kind == kind:
            name = block.name
            while (outer := name.rpartition(".")[0]) and not any(other.startswith(f"{outer}.") for other in others):
                name = outer
            found[name] = modules[name]
    return list(found.values()) if others else []


def _batch_by_batch(
    model: nn.Module,
    heads: Heads,
    score: BatchScore,
    keeps: Sequence[torch.Tensor],
    may_cut: Sequence[bool],
    whole: Sequence[nn.Module],
) -> list[Scores]:
    """The scores without the heads of each mask; `whole`: modules in which none of them takes any."""
    memory = Memory(heads)

    def measure(batch: Any) -> list[np.ndarray]:
        memory.forget()
        memory.mask(torch.ones(len(heads)))
        found = []
        for keep in keeps:
            with removed(model, heads, keep, may_cut):
                found.append(score.measure(model, mapped(batch, lambda leaf: leaf)))  # it may take labels out
        return found

    with torch.no_grad(), standing_in(model, memory, whole):
        by_batch = each(score.batches, measure)
    return [score.gathered([found[i] for found in by_batch]) for i in range(len(keeps))]
