"""xi: gates that multiply each head's output before W_O, as context managers that restore in `finally`.

`masked` multiplies by a given mask (Michel et al. 2019, section 2.3); `gated` puts any function there, such as the
taps of I(h) (`taps`, `online_sources`) or what remembers a context (`sharing`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import BaseTorchFunctionMode

from .devices import widest
from .heads import Attention, Heads, HeadsError
from .stillness import eager

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
    with slow_paths(heads), gated(heads, multipliers(heads, keep)):
        yield


def multipliers(heads: Heads, keep: Any) -> list[Gate]:
    """The gates of `masked`, one a block."""
    keep = torch.as_tensor(keep)
    if keep.dim() not in (1, 2) or keep.shape[-1] != len(heads):
        raise ValueError(f"keep has shape {tuple(keep.shape)}; this model needs [{len(heads)}] or [B, {len(heads)}]")
    keep = keep if keep.is_floating_point() else keep.float()
    return list(map(_multiplier, heads.blocks, keep.split(heads.sizes, dim=-1)))


def _multiplier(block: Attention, keep: torch.Tensor) -> Gate:
    def apply(context: torch.Tensor) -> torch.Tensor:
        narrow = keep.to(widest(context.device)) if keep.dtype == torch.float64 else keep
        gate = narrow.to(context.device)
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
def gated(heads: Heads, gates: Sequence[Gate]) -> Iterator[None]:
    """Apply one gate a block to the input of its W_O, wherever its modules' hooks run: see `slow_paths`.

    A functional block's gate sees [T, B, E]; the others what W_O is called on.
    """
    with contextlib.ExitStack() as stack:
        for block, gate in zip(heads.blocks, gates, strict=True):
            stack.enter_context(_intercepted(block, gate) if block.functional else _hooked(block, gate))
        yield


@contextlib.contextmanager
def _hooked(block: Attention, gate: Gate) -> Iterator[None]:
    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (gate(args[0]), *args[1:])

    handle = block.projection.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _intercepted(block: Attention, gate: Gate) -> Iterator[None]:
    """W_O's weight is used as a function: while its module runs, torch's `linear` gates what meets that weight.

    Called as a module (beam search, cross-attention) W_O comes to the same `linear`. Of nested contexts the innermost
    gates first: the last to take `linear`'s place is the first to be called.
    """
    functional: Any = nn.functional
    outer: list[Any] = []  # the `linear` that this one stands in for, while the module runs
    met = False

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        query = next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
        rows = query.shape[0 if block.batch_first else 1] if query.dim() == 3 else 1
        linear = functional.linear

        def gating(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            nonlocal met
            if weight is block.projection.weight:
                met = True
                x = gate(x.view(-1, rows, x.shape[-1])).view(x.shape) if x.dim() == 2 else gate(x)
            return linear(x, weight, bias)

        outer.append(linear)
        functional.linear = gating

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        functional.linear = outer.pop()
        if output is not None and not met:  # it is None where forward raised
            raise HeadsError(f"{block.name} did not use the weight of its W_O as it is (a parametrization?)")

    handles = [
        block.module.register_forward_pre_hook(before, with_kwargs=True),
        block.module.register_forward_hook(after, prepend=True, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if outer:  # an interrupt in the middle of a forward runs no hook
            functional.linear = outer.pop()


@contextlib.contextmanager
def slow_paths(heads: Heads | None = None) -> Iterator[None]:
    """Switch off what passes by modules' hooks: compiled graphs; in eval mode, fused encoders of torch and fairseq."""
    mha = getattr(torch.backends, "mha", None)  # since torch 2.3
    with eager(), contextlib.ExitStack() as stack:
        if mha is not None:
            stack.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
            mha.set_fastpath_enabled(False)
        else:  # under a mode of functions, any, torch takes no fused path
            stack.enter_context(BaseTorchFunctionMode())
        if heads:
            stack.enter_context(own_fast_paths_off(heads))
        yield


@contextlib.contextmanager
def own_fast_paths_off(heads: Heads) -> Iterator[None]:
    """Switch off fairseq 0.12.2's fused encoder layers, which fail on padding from torch 2 on.

    They run in models that loaded a checkpoint and never trained since, and hold copies of the weights.
    """
    layers: dict[int, Any] = {id(block.parent): block.parent for block in heads.blocks}
    with contextlib.ExitStack() as stack:
        for layer in layers.values():
            if layer is not None and hasattr(layer, "can_use_fastpath"):
                stack.callback(setattr, layer, "can_use_fastpath", layer.can_use_fastpath)
                layer.can_use_fastpath = False
        yield
