"""Heads lent out: gone while inside, back afterwards, so that a pruned model's score costs what a pruned model costs.

Cut are whole heads (whole key/value groups, where queries are grouped) of the blocks that may be cut; whatever else is
to go is masked. Which blocks may be cut is proved on the model's own data, so no number rests on a guess.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..gates import masked, own_fast_paths_off, slow_paths
from ..halving import out_of_memory
from ..heads import Attention, Heads, unwrap
from ..rounding import rounding
from .cut import Edits
from .layouts import SurgeryError, read_layout
from .remove import cut_planned, planned


@contextlib.contextmanager
def removed(model: nn.Module, heads: Heads, keep: Any, may_cut: Sequence[bool] | None = None) -> Iterator[None]:
    """Like `masked` with the same `keep` [H] of zeros and ones, but what may be cut is really gone while inside.

    Everything is back afterwards, whatever happened: the very same parameters, classes, attributes and hooks. No
    config is written. `may_cut`: for each block, from `removable`; default: the blocks whose weights leave no doubt.

    Raises:
        ValueError: `keep` is not [H].

    """
    stays = torch.as_tensor(keep).bool()
    if stays.shape != (len(heads),):
        raise ValueError(f"keep has shape {tuple(stays.shape)}; this model has {len(heads)} heads: [{len(heads)}]")
    if stays.all():
        with own_fast_paths_off(heads):
            yield
        return
    model, edits = unwrap(model), Edits()
    try:
        left, rest = _take_out(model, heads, stays, may_cut or _without_doubt(model, heads), edits)
        with contextlib.ExitStack() as stack:
            if left is not None:
                stack.enter_context(slow_paths(heads))
                stack.enter_context(masked(left, rest))
            yield
    finally:
        edits.undo()


def removable(model: nn.Module, heads: Heads, run: Callable[[], Any]) -> tuple[bool, ...]:
    """For each block whether `removed` may cut it: `run()` is the same, by every block's output, as when masked.

    `run` runs the model on a little data, always the same. It is called four times, eight where doubts do not hold.
    Blocks whose weights are not understood are left out; where one of the others differs, all with a doubt are, and
    then all.
    """
    model = unwrap(model)
    read = _understood(model, heads)
    for may_cut in dict.fromkeys((read, _without_doubt(model, heads))):
        if any(may_cut) and all(_is_masked(model, heads, keep, may_cut, run) for keep in _samples(heads, may_cut)):
            return may_cut
    return (False,) * len(heads.blocks)


def _take_out(
    model: nn.Module, heads: Heads, stays: torch.Tensor, may_cut: Sequence[bool], edits: Edits
) -> tuple[Heads | None, torch.Tensor]:
    """Cut what may be cut; the heads and the mask of the blocks that still hold heads which are to go."""
    pieces = stays.split(heads.sizes)
    there = [
        _whole_groups(block, mine) if may else torch.ones_like(mine)
        for block, mine, may in zip(heads.blocks, pieces, may_cut, strict=True)
    ]
    cut_planned(model, heads, planned(model, heads, torch.cat(there)), edits)
    left = [
        (replace(block, heads=int(still.sum())), mine[still])
        for block, mine, still in zip(heads.blocks, pieces, there, strict=True)
        if not mine[still].all()
    ]
    if not left:
        return None, stays
    blocks, masks = zip(*left, strict=True)
    return Heads(blocks), torch.cat(masks)


def _whole_groups(block: Attention, stays: torch.Tensor) -> torch.Tensor:
    """What is left [heads] when only groups of which no head stays are cut."""
    if stays.all():
        return stays
    groups = stays.view(-1, read_layout(block).per_group)
    return groups.any(1, keepdim=True).expand_as(groups).reshape(-1)


def _understood(model: nn.Module, heads: Heads, certain: bool = False) -> tuple[bool, ...]:
    return tuple(_layout_is_known(model, heads, block, certain) for block in heads.blocks)


def _without_doubt(model: nn.Module, heads: Heads) -> tuple[bool, ...]:
    return _understood(model, heads, certain=True)


def _layout_is_known(model: nn.Module, heads: Heads, block: Attention, certain: bool) -> bool:
    stays = torch.cat([torch.full((other.heads,), other is not block) for other in heads.blocks])
    try:
        plan = planned(model, heads, stays)[block.name]
    except SurgeryError:
        return False
    return not (certain and plan.layout.doubts)


def _samples(heads: Heads, may_cut: Sequence[bool]) -> Iterator[torch.Tensor]:
    """Two masks [H] that between them leave each block with every second group, and with no head."""
    for empty in range(2):
        pieces = []
        for block, may in zip(heads.blocks, may_cut, strict=True):
            group = torch.arange(block.heads) // (read_layout(block).per_group if may else 1)
            pieces.append(torch.zeros(block.heads) if block.layer % 2 == empty else (group % 2 == (group.max() > 0)))
        yield torch.cat([piece.float() for piece in pieces])


def _is_masked(
    model: nn.Module, heads: Heads, keep: torch.Tensor, may_cut: Sequence[bool], run: Callable[[], Any]
) -> bool:
    with masked(heads, keep), _watched(heads) as expected:
        score = run()
    try:
        with slow_paths(heads), removed(model, heads, keep, may_cut), _watched(heads) as found:
            again = run()
    except Exception as error:  # whatever the model's own code raises at shapes that it did not expect
        if out_of_memory(error):  # says nothing of the cut
            raise
        return False
    return bool(expected) and _alike(found, expected) and _same_score(again, score, max(rough for _, rough in expected))


@contextlib.contextmanager
def _watched(heads: Heads) -> Iterator[list[tuple[torch.Tensor, float]]]:
    """(mean and mean size over positions of what a block gives, [2, E]; its rounding), at each call of each block."""
    seen: list[tuple[torch.Tensor, float]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        out = (output[0] if isinstance(output, tuple) else output).detach()
        wide = out.to(torch.promote_types(out.dtype, torch.float32)).flatten(0, -2)
        rough = max(rounding(out.dtype), rounding(torch.float32))  # many models compute norms in float32
        seen.append((torch.stack([wide.nanmean(0), wide.abs().nanmean(0)]), rough))

    places = [block.module if block.functional else block.projection for block in heads.blocks]
    handles = [place.register_forward_hook(note) for place in places]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _alike(found: list[tuple[torch.Tensor, float]], expected: list[tuple[torch.Tensor, float]]) -> bool:
    """Equal to the rounding of sums taken in another order."""
    return len(found) == len(expected) and all(
        a.shape == b.shape
        and torch.allclose(a, b, rtol=0, atol=rough * float(b[1].nan_to_num().max()), equal_nan=True)
        for (a, _), (b, rough) in zip(found, expected, strict=True)
    )


def _same_score(found: Any, expected: Any, rough: float) -> bool:
    """Some models use attention beside its output (a pointer to copy from): the score shows it."""
    a, b = (np.asarray(getattr(score, "stats", score), float) for score in (found, expected))
    size = np.abs(b[np.isfinite(b)]).max(initial=0)
    return a.shape == b.shape and np.allclose(a, b, rtol=0, atol=rough * size, equal_nan=True)
