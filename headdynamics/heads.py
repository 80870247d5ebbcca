"""find_heads(model): every attention head, with its kind, layer, number and the W_O that it feeds."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from .probe import causal
from .rules import CONFIG_HEAD_COUNTS, Attention, candidates, in_features
from .stacks import stack_of

__all__ = ["CONFIG_HEAD_COUNTS", "Attention", "Heads", "HeadsError", "find_heads", "in_features", "unwrap"]


class HeadsError(ValueError):
    """No attention heads can be read from a model; the message names the cause and the cure."""


@dataclass(frozen=True)
class Heads:
    """All H heads of a model, in the model's order; `len(heads)` is H.

    `kind`, `layer`, `number` and `module` are arrays [H]; `block` [H] says which of `blocks` a head is in.
    `unread` lists (module path, reason) of attention that was found but not understood.
    """

    blocks: tuple[Attention, ...]
    unread: tuple[tuple[str, str], ...] = ()
    kind: np.ndarray = field(init=False, repr=False, compare=False)
    layer: np.ndarray = field(init=False, repr=False, compare=False)
    number: np.ndarray = field(init=False, repr=False, compare=False)
    module: np.ndarray = field(init=False, repr=False, compare=False)
    block: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = [(a.kind, a.layer, n, a.name, i) for i, a in enumerate(self.blocks) for n in range(a.heads)]
        for name, column in zip(("kind", "layer", "number", "module", "block"), zip(*rows, strict=True), strict=True):
            object.__setattr__(self, name, np.array(column))

    def __len__(self) -> int:
        return sum(block.heads for block in self.blocks)

    @property
    def sizes(self) -> list[int]:
        """Heads per block; they sum to H."""
        return [block.heads for block in self.blocks]

    def table(self) -> list[dict[str, Any]]:
        """One dict a head: kind, layer, number, module."""
        return [
            {"kind": str(k), "layer": int(la), "number": int(n), "module": str(m)}
            for k, la, n, m in zip(self.kind, self.layer, self.number, self.module, strict=True)
        ]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel and torch.compile wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
            inner = model.module
        if inner is None:
            return model
        model = inner


def find_heads(model: nn.Module, batch: Mapping[str, Any] | None = None) -> Heads:
    """Find every attention head of `model`.

    `batch` (keyword inputs of one small forward pass, with `input_ids`) settles by a causality probe the
    kind of models whose code does not say whether they are decoders.

    Raises:
        HeadsError: no attention found, or none whose output projection and head count can be known.

    """
    model = unwrap(model)
    found, unread = candidates(model)
    if not found:
        reasons = "".join(f"\n  {name}: {why}" for name, why in unread)
        raise HeadsError(
            f"no attention heads found in {type(model).__name__}: "
            + (
                f"attention was seen but not understood:{reasons}"
                if unread
                else "every head has been taken out of it."
                if any(not parameter.numel() for parameter in model.parameters())
                else "no module owns query, key and value projections. Models without softmax attention "
                "(FNet, plain convolutions, recurrent nets) have no heads to measure."
            )
        )
    for name, why in unread:
        warnings.warn(f"headdynamics leaves out {name}: {why}", stacklevel=2)
    heads = Heads(tuple(_numbered(found)), tuple(unread))
    found_causal = causal(model, heads.blocks, batch) if batch is not None else set()
    if not found_causal:
        return heads
    kinds = [replace(b, kind="decoder") if b.name in found_causal else b for b in heads.blocks]
    return Heads(tuple(_numbered(kinds)), heads.unread)


def heads_in(model: nn.Module, heads: Heads | None) -> Heads:
    """`heads`, after making sure that they are of this very model as it now is; where None, those that it has.

    Raises:
        HeadsError: they were found on another model, where a mask would have no effect, or before heads were removed.

    """
    if heads is None:
        return find_heads(model)
    present = {id(module) for module in unwrap(model).modules()}
    for block in heads.blocks:
        if id(block.module) not in present:
            raise HeadsError(f"these heads were found on another model (a copy?): {block.name} is not in this one")
        if in_features(block.projection) != block.width:
            raise HeadsError(f"{block.name} has lost heads since these were found: call find_heads(model) again")
    return heads


def _numbered(blocks: Iterable[Attention]) -> Iterator[Attention]:
    """The same blocks, each with its ordinal within (stack, kind) as its layer."""
    ordinals = Counter[tuple[str, str]]()
    for block in blocks:
        stack = (stack_of(block.name), block.kind)
        yield replace(block, layer=ordinals[stack])
        ordinals[stack] += 1
