"""Scores under many masks at the price of what differs between them, bit for bit: see `recall`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..gates import gated, masked, slow_paths
from ..heads import Heads, unwrap
from ..ranks import each
from ..scores import BatchScore, Score, Scores
from .nests import mapped
from .recall import Memory, Remembering, hooks, is_ours


def scores_under(model: nn.Module, heads: Heads, score: Score, keeps: Sequence[torch.Tensor]) -> list[Scores | float]:
    """`score` of `model` under each mask [H] (or [B, H]), to the bit as a pass with `masked` for each would give it.

    A `BatchScore` shares between the masks what they do not change; others take whole passes.
    """
    if isinstance(score, BatchScore) and type(score).__call__ is BatchScore.__call__:
        return list(shared_scores(model, heads, score, keeps))
    return [_whole(model, heads, score, keep) for keep in keeps]


def shared_scores(model: nn.Module, heads: Heads, score: BatchScore, keeps: Sequence[torch.Tensor]) -> list[Scores]:
    """The same of a `BatchScore`: batch by batch, where every mask shares with the first what both have in common."""
    model = unwrap(model)

    def measure(batch: Any) -> list[np.ndarray]:
        memory.forget()
        found = []
        for keep in keeps:
            memory.mask(keep)
            found.append(score.measure(model, mapped(batch, lambda leaf: leaf)))  # it may take labels out
        return found

    with torch.no_grad(), remembered(model, heads) as memory:
        by_batch = each(score.batches, measure)
    return [score.gathered([found[i] for found in by_batch]) for i in range(len(keeps))]


def _whole(model: nn.Module, heads: Heads, score: Score, keep: torch.Tensor) -> Scores | float:
    with masked(heads, keep):
        return score(unwrap(model))


@contextlib.contextmanager
def remembered(model: nn.Module, heads: Heads) -> Iterator[Memory]:
    """Let attention modules, and those around them, remember: see `Memory`, which masks heads as `masked` does."""
    memory, around = Memory(heads), _around(model, heads)
    with (
        slow_paths(heads),
        gated(heads, memory.gates),
        standing_in(model, memory, around),
        standing_in(model, memory, _beside(model, heads, around), early=True),
    ):
        yield memory


@contextlib.contextmanager
def standing_in(model: nn.Module, memory: Memory, modules: Sequence[nn.Module], early: bool = False) -> Iterator[None]:
    """Let these modules of `model` answer from `memory`; `early`: see `Remembering`."""
    constant = frozenset(id(hook) for hook in hooks(model.modules()) if is_ours(hook))
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.callback(_put_back, module, vars(module).get("forward"))
            remembering: Any = Remembering(memory, module, constant, early)
            module.forward = remembering
        yield


def _put_back(module: nn.Module, forward: Any) -> None:
    vars(module).pop("forward", None)
    if forward is not None:  # one of accelerate's, say
        module.forward = forward


def _around(model: nn.Module, heads: Heads) -> list[nn.Module]:
    """The attention modules and the modules around them, without the model itself."""
    modules = dict(model.named_modules())
    names = {id(module): name for name, module in modules.items()}
    found = {}
    for block in heads.blocks:
        name = names[id(block.module)]
        while name:
            found[name] = modules[name]
            name = name.rpartition(".")[0]
    return list(found.values())


def _beside(model: nn.Module, heads: Heads, around: list[nn.Module]) -> list[nn.Module]:
    """What stands beside these, such as embeddings and convolutions before the first layer."""
    attention = [block.module for block in heads.blocks]
    outer = [model, *(module for module in around if module not in attention)]
    return list({id(part): part for module in outer for part in module.children() if part not in around}.values())
