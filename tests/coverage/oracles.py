"""Three independent measures of what `find_heads`, `masked` and `importance` claim, on any model.

None of them hooks W_O, which is our own way: a head is taken out by zeroing its columns of W_O's weight,
and by zeroing its attention probabilities in the softmax that its own attention calls; I(h) is compared
with finite differences over W_O's weight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from headdynamics.heads import Attention, Heads

Outputs = list[torch.Tensor]


def outputs(model: nn.Module, batch: dict[str, Any]) -> Outputs:
    """Every floating-point tensor that a forward pass returns, in its own order."""
    found: Outputs = []

    def collect(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if value.is_floating_point() and value.numel():
                found.append(value)
        elif isinstance(value, dict):
            for name, inner in value.items():
                if "attentions" not in name:  # probabilities, which one of the oracles changes
                    collect(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                collect(inner)

    collect(model(**batch))
    return found


def columns(block: Attention) -> torch.Tensor:
    """W_O's weight as [heads, size, out] of the block, a view."""
    weight: Any = block.projection.weight
    inputs = weight.data if hasattr(block.projection, "nf") else weight.data.t()  # transformers' Conv1D keeps [in, out]
    return inputs.unflatten(0, (block.heads, -1))


@contextlib.contextmanager
def scaled_columns(heads: Heads, factors: list[torch.Tensor]) -> Iterator[None]:
    """Multiply each head's columns of W_O's weight by `factors[block][head]`; restores the weights."""
    before = [block.projection.weight.data.clone() for block in heads.blocks]
    try:
        for block, factor in zip(heads.blocks, factors, strict=True):
            columns(block).mul_(factor.to(columns(block).dtype)[:, None, None])
        yield
    finally:
        for block, weight in zip(heads.blocks, before, strict=True):
            block.projection.weight.data.copy_(weight)


@contextlib.contextmanager
def zeroed_values(heads: Heads, keep: list[torch.Tensor]) -> Iterator[bool]:
    """Multiply each head's values by `keep`, in the value projection's weights; False where one has no such projection.

    For attention whose probabilities never stand in one softmax: a head of zero values has a zero output.
    """
    names = ("v", "value", "v_proj", "value_proj", "v_lin", "linear_v", "project_v")
    owned = [next((b.module._modules[n] for n in names if n in b.module._modules), None) for b in heads.blocks]
    known = all(
        v is not None and v.weight.shape[0] == b.projection.weight.shape[1]
        for v, b in zip(owned, heads.blocks, strict=True)
    )
    parts = [p for v in owned if known for p in (v.weight, getattr(v, "bias", None)) if p is not None]
    before = [p.data.clone() for p in parts]
    try:
        for value, one in zip(owned, keep, strict=True) if known else ():
            for part in (value.weight, value.bias) if value.bias is not None else (value.weight,):
                by_head = part.data.unflatten(0, (len(one), -1))
                by_head.mul_(one.to(part.dtype).view(-1, *[1] * (by_head.dim() - 1)))
        yield known
    finally:
        for part, old in zip(parts, before, strict=True):
            part.data.copy_(old)


class Probabilities:
    """A context in which the attention probabilities of chosen heads are zero, wherever softmax computes them."""

    def __init__(self, heads: Heads, keep: list[torch.Tensor]) -> None:
        self.heads, self.keep = heads, keep
        self.calls = [0] * len(heads.blocks)
        self.unclear: set[str] = set()  # shapes in which no axis can be told to be the heads'
        self.elsewhere: set[str] = set()  # attention classes outside any block
        self.stack: list[nn.Module] = []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Probabilities]:
        places = [(torch, "softmax"), (nn.functional, "softmax"), (nn.functional, "scaled_dot_product_attention")]
        before = [getattr(owner, name) for owner, name in places]
        push = torch_module.register_module_forward_pre_hook(lambda m, _: self.stack.append(m))
        pop = torch_module.register_module_forward_hook(lambda *_: self.stack.pop() and None, always_call=True)
        method = torch._C.TensorBase.softmax
        try:
            for (owner, name), real in zip(places, before, strict=True):
                setattr(owner, name, self._replaced(real))
            torch.Tensor.softmax = self._replaced(method)
            yield self
        finally:
            push.remove()
            pop.remove()
            del torch.Tensor.softmax
            for (owner, name), real in zip(places, before, strict=True):
                setattr(owner, name, real)

    def _replaced(self, real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: Any, **kwargs: Any) -> torch.Tensor:
            return self._zeroed(real(*args, **kwargs))

        return call

    def _zeroed(self, probabilities: torch.Tensor) -> torch.Tensor:
        owners = {id(block.module): i for i, block in enumerate(self.heads.blocks)}
        index = next((owners[id(m)] for m in reversed(self.stack) if id(m) in owners), None)
        if index is None:
            name = type(self.stack[-1]).__name__ if self.stack else ""
            if "att" in name.lower() and probabilities.dim() > 2:
                self.elsewhere.add(name)
            return probabilities
        self.calls[index] += 1
        return self._along_heads(probabilities, self.keep[index])

    def _along_heads(self, p: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """`p` times `keep` along the axis of the heads: 1 of [B, H, T, S], the inner part of [B x H, T, S]."""
        count, keep = len(keep), keep.to(p.dtype)
        shape = [1] * p.dim()
        if p.dim() == 3 and p.shape[0] % count == 0:
            return p * keep.repeat(p.shape[0] // count).view(-1, 1, 1)
        if p.dim() >= 4 and p.shape[1] == count:
            axis = 1
        elif p.dim() == 5 and p.shape[1] * p.shape[2] == count:
            return p * keep.view(1, p.shape[1], p.shape[2], 1, 1)
        elif list(p.shape).count(count) == 1:
            axis = list(p.shape).index(count)
        else:
            self.unclear.add(str(tuple(p.shape)))
            return p
        shape[axis] = count
        return p * keep.view(shape)


def row_loss(rows: int, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """A loss [rows] of any model: every output times fixed random numbers, its mean over each row."""
    seed = torch.Generator().manual_seed(11)
    total = torch.zeros(rows, dtype=torch.float64)
    torch.manual_seed(0)  # models that draw numbers in evaluation, too
    for tensor in outputs(model, batch):
        tensor = tensor[0] if rows > 1 == tensor.shape[:1].numel() and tensor.dim() > 1 else tensor  # all rows in one
        contrastive = tensor.shape == (rows, rows)  # CLIP's: every row's logits depend on all rows
        if tensor.dim() and tensor.shape[0] % rows == 0 and not contrastive and torch.isfinite(tensor).all():
            weights = torch.randn(tensor.shape[1:] if tensor.shape[0] == rows else tensor.shape, generator=seed)
            total = total + (tensor.double() * weights).reshape(rows, -1).mean(1)
    return total


def slope(loss: Callable[[], torch.Tensor], heads: Heads, direction: list[torch.Tensor], step: float) -> torch.Tensor:
    """d loss / d xi along `direction`, [B], by five-point central differences over W_O's columns."""

    def at(distance: float) -> torch.Tensor:
        with scaled_columns(heads, [1 + distance * d for d in direction]), torch.no_grad():
            return loss()

    return (at(-2 * step) - 8 * at(-step) + 8 * at(step) - at(2 * step)) / (12 * step)
