"""xi: gates that multiply each head's output before W_O, as context managers that restore in `finally`.

Two uses of one mechanism: `masked` multiplies by a given mask; `taped` multiplies by ones whose
gradient is ctx . dL/dctx for each head at each position (Michel et al. 2019, section 4.1).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .heads import Attention, Heads

Gate = Callable[[torch.Tensor], torch.Tensor]  # the input of W_O -> the same, gated


@contextlib.contextmanager
def masked(heads: Heads, keep: Any) -> Iterator[None]:
    """Multiply every head's output by `keep`: 1 leaves it bit for bit, 0 is a head whose output is zero.

    `keep`: bool or float, [H], or [B, H] for a mask per row of the batch; it may require grad. Rows that a
    model multiplies (beams, windows) take the mask of the row they came from; where generation drops
    finished rows, as fairseq's beam search does, use one mask for all, [H].

    Raises:
        ValueError: the last axis of `keep` is not H.

    """
    keep = torch.as_tensor(keep)
    if keep.dim() not in (1, 2) or keep.shape[-1] != len(heads):
        raise ValueError(f"keep has shape {tuple(keep.shape)}; this model needs [{len(heads)}] or [B, {len(heads)}]")
    keep = keep if keep.is_floating_point() else keep.float()
    pieces = keep.split(heads.sizes, dim=-1)
    with _gated(heads, [_multiplier(block, piece) for block, piece in zip(heads.blocks, pieces, strict=True)]):
        yield


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
            return _scaled(context, ones)

        return apply

    with _gated(heads, [gate(i, block) for i, block in enumerate(heads.blocks)]):
        yield tape


def _multiplier(block: Attention, keep: torch.Tensor) -> Gate:
    def apply(context: torch.Tensor) -> torch.Tensor:
        gate = keep.to(context.device)
        if gate.dim() == 2:
            block.check_rows(context.shape, len(gate))
            rows = context.shape[block.batch_axis]
            gate = gate.repeat_interleave(rows // len(gate), 0)
            middle = (1,) * (context.dim() - 2)
            gate = gate.view(*middle, rows, -1) if block.batch_axis else gate.view(rows, *middle, -1)
        return _scaled(context, gate)

    return apply


def _scaled(context: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """`context` [..., heads x size] times `gate` [..., heads], computed at the wider dtype."""
    by_head = context.unflatten(-1, (gate.shape[-1], -1))
    return (by_head * gate.unsqueeze(-1)).to(context.dtype).flatten(-2)


@contextlib.contextmanager
def _gated(heads: Heads, gates: list[Gate]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(slow_paths())
        layers: dict[int, Any] = {id(block.parent): block.parent for block in heads.blocks}
        for layer in layers.values():
            # fairseq 0.12.2 has a fused layer of its own in eval mode
            if layer is not None and hasattr(layer, "can_use_fastpath"):
                stack.callback(setattr, layer, "can_use_fastpath", layer.can_use_fastpath)
                layer.can_use_fastpath = False
        for block, gate in zip(heads.blocks, gates, strict=True):
            if block.functional:  # an interrupt in the middle of a forward runs no hook that would undo the swap
                stack.callback(block.module._modules.__setitem__, "out_proj", block.projection)
            for handle in _exposed(block, gate) if block.functional else _hooked(block, gate):
                stack.callback(handle.remove)
        yield


def _hooked(block: Attention, gate: Gate) -> list[Any]:
    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (gate(args[0]), *args[1:])

    return [block.projection.register_forward_pre_hook(before)]


def _exposed(block: Attention, gate: Gate) -> list[Any]:
    """W_O is used as a function: let an identity stand in for it, then call the real one on the gated context.

    The identity draws no random numbers; the context keeps the memory layout [T, B, E], without which
    dropout further on would draw another mask. Of nested contexts the innermost gates first and the
    outermost, which made the swap, projects.
    """
    real = block.projection
    weight: Any = real.weight
    identity = torch.nn.utils.skip_init(
        nn.Linear, weight.shape[1], weight.shape[1], device=weight.device, dtype=weight.dtype
    )
    nn.init.eye_(identity.weight)
    nn.init.zeros_(identity.bias)
    identity.requires_grad_(False)
    swapped = False

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal swapped
        swapped = module._modules["out_proj"] is real
        if swapped:
            module._modules["out_proj"] = identity

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if swapped:
            module._modules["out_proj"] = real
        if output is None:  # forward raised: there is nothing to project, only the swap to undo
            return None
        context, *rest = output
        flip = block.batch_first and context.dim() == 3
        out = gate(context.transpose(0, 1) if flip else context)
        out = real(out) if swapped else out
        return (out.transpose(0, 1) if flip else out, *rest)

    return [
        block.module.register_forward_pre_hook(before, with_kwargs=True),
        block.module.register_forward_hook(after, prepend=True, with_kwargs=True, always_call=True),
    ]


@contextlib.contextmanager
def slow_paths() -> Iterator[None]:
    """Switch off torch's fused encoder path, which passes by every module's hooks in eval mode."""
    mha = getattr(torch.backends, "mha", None)  # since torch 2.3
    if mha is None:
        yield
        return
    enabled = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(enabled)
