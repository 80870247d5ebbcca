"""Taps: how strongly a loss feels each head at each position, read where its output passes by on the way to W_O.

A tap changes nothing on the way forward. It keeps W_O's input, as a W_O in training does for its own gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from .gates import Gate, gated, slow_paths
from .heads import Attention, Heads


class _Tap(torch.autograd.Function):
    """Passes a context through; on the way back reduces context x gradient to one number a head and position."""

    @staticmethod
    def forward(ctx: Any, context: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(context)
        ctx.heads, ctx.dtype = gate.shape[-1], gate.dtype
        return context.view_as(context)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (context,), (gradient,) = ctx.saved_tensors, gradients
        product = context.to(ctx.dtype) * gradient
        by_head = product.unflatten(-1, (ctx.heads, -1)).sum(-1)
        return gradient if ctx.needs_input_grad[0] else None, by_head


@contextlib.contextmanager
def tapped(heads: Heads) -> Iterator[list[tuple[int, torch.Tensor]]]:
    """Stand-ins for gates of one at every position, listed as (block index, gate) in the order in which they fire.

    A gate's shape is that of W_O's input with its last axis replaced by the block's heads. Its value is never read,
    and its gradient is ctx . dL/dctx, reduced in float32 or wider (Michel et al. 2019, equation 2, before the sum
    over positions). A block that fires twice (shared layers) has two gates.
    """
    tape: list[tuple[int, torch.Tensor]] = []

    def tap(index: int, block: Attention) -> Gate:
        def apply(context: torch.Tensor) -> torch.Tensor:
            wide = torch.promote_types(context.dtype, torch.float32)
            shape = (*context.shape[:-1], block.heads)
            gate = torch.ones((), dtype=wide, device=context.device).expand(shape).requires_grad_()
            tape.append((index, gate))
            return _Tap.apply(context, gate)

        return apply

    with slow_paths(heads), gated(heads, [tap(i, block) for i, block in enumerate(heads.blocks)]):
        yield tape
