"""Plan the cut of every block, make it, prove it where a batch is given; a failure leaves the model untouched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..heads import Heads
from .cut import Edits, cut_block
from .layouts import Layout, SurgeryError, read_layout
from .proof import outputs, same
from .special import settle


@dataclass(frozen=True)
class Plan:
    """What stays of one block: the numbers of its heads and of the key/value groups that they read."""

    layout: Layout
    heads: list[int]
    groups: list[int]


def take_out(
    model: nn.Module, heads: Heads, stays: torch.Tensor, edits: Edits, batch: Mapping[str, Any] | None = None
) -> dict[str, Plan]:
    """Cut the heads where `stays` [H] is False out of `model`; what was done, by block name, is undone by `edits`."""
    plans = planned(model, heads, stays)
    doubts = [f"{name}: {doubt}" for name, plan in plans.items() for doubt in plan.layout.doubts]
    if doubts and batch is None:
        raise SurgeryError(
            "these weights are not certain to be understood; give `batch`, inputs of one forward pass, to prove the "
            "result on: " + "; ".join(doubts)
        )
    expected = outputs(model, batch, heads, stays) if batch is not None else None
    cut_planned(model, heads, plans, edits)
    if batch is not None:
        _prove(model, batch, expected)
    return plans


def planned(model: nn.Module, heads: Heads, stays: torch.Tensor) -> dict[str, Plan]:
    """What stays of each block that loses heads, by block name."""
    plans = {
        block.name: _plan(read_layout(block), mine.nonzero().flatten().tolist())
        for block, mine in zip(heads.blocks, stays.split(heads.sizes), strict=True)
        if not mine.all()
    }
    _refuse_shared_weights(model, [plan.layout for plan in plans.values()])
    return plans


def cut_planned(model: nn.Module, heads: Heads, plans: Mapping[str, Plan], edits: Edits) -> None:
    """Cut to the planned shapes, whatever the doubts; `edits` keeps the log."""
    for plan in plans.values():
        cut_block(plan.layout, plan.heads, plan.groups, edits)
    settle(model, heads.blocks, {name: plan.heads for name, plan in plans.items()}, edits)


def _prove(model: nn.Module, batch: Mapping[str, Any], expected: list[torch.Tensor] | None) -> None:
    try:
        found = outputs(model, batch)
    except Exception as error:  # whatever the model's own code raises at shapes that it did not expect
        raise SurgeryError(f"without these heads the model does not run: {error}") from error
    if not same(found, expected):
        raise SurgeryError("without these heads the model does not compute what the masked model does")


def _plan(layout: Layout, kept: list[int]) -> Plan:
    groups = Counter(head // layout.per_group for head in kept)
    if len(set(groups.values())) > 1:
        raise SurgeryError(
            f"in {layout.block.name} {layout.per_group} heads share each key/value head, of which {[*groups.values()]} "
            "would stay: keep whole groups, or equally many heads of each group that stays (hd.prune does)"
        )
    return Plan(layout, kept, sorted(groups))


def _refuse_shared_weights(model: nn.Module, layouts: list[Layout]) -> None:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for layout in layouts:
        for part in (*layout.inputs, layout.output):
            names = owners.get(id(getattr(part.owner, part.weight)), [])
            if len(names) > 1:
                raise SurgeryError(f"{' and '.join(names)} are one weight: heads cannot be taken out of one alone")
