"""Gates of one at every position, by plain multiplication: the oracle of the taps (headdynamics/taps.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from headdynamics.gates import Gate, gated, slow_paths
from headdynamics.heads import Attention, Heads


@contextlib.contextmanager
def taped(heads: Heads) -> Iterator[list[tuple[int, torch.Tensor]]]:
    """Gates of one at every position, listed as (block index, gate) in the order in which they fire.

    A gate's shape is that of W_O's input with its last axis replaced by the block's heads; its gradient is
    ctx . dL/dctx, reduced in float32 or wider. A block that fires twice (shared layers) has two gates.
    """
    tape: list[tuple[int, torch.Tensor]] = []

    def gate(index: int, block: Attention) -> Gate:
        def apply(context: torch.Tensor) -> torch.Tensor:
            wide = torch.promote_types(context.dtype, torch.float32)
            ones = torch.ones(*context.shape[:-1], block.heads, dtype=wide, device=context.device, requires_grad=True)
            tape.append((index, ones))
            by_head = context.unflatten(-1, (block.heads, -1))
            return (by_head * ones.unsqueeze(-1)).to(context.dtype).flatten(-2)

        return apply

    with slow_paths(heads), gated(heads, [gate(i, block) for i, block in enumerate(heads.blocks)]):
        yield tape
