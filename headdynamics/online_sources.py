"""Where online importance reads s from while a model trains.

| estimator | I(h) of a window                            | read from                                    |
|-----------|---------------------------------------------|----------------------------------------------|
| example   | mean over its examples of abs(s[b,h])       | W_O's input and the gradient that reaches it |
| batch     | mean over its updates of abs(sum_b s[b,h])  | W_O and its gradient: <W_O[:,h], dW_O[:,h]>  |

Shapes: B examples, H heads; a row may stand for more than one example.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.parametrize import is_parametrized

from .gates import Gate, gated
from .heads import Heads, HeadsError
from .rules import Attention

Forgiven = Callable[[], AbstractContextManager[None]]  # a context that no failure of a hook leaves
Rows = tuple[torch.Tensor, int]  # s [rows, H], and how many examples each row is of


class Source(Protocol):
    """One estimator's way to s; HeadsError where it cannot read a block."""

    deaf: set[int]  # blocks whose s cannot be known: not 0 but missing

    def __init__(self, heads: Heads) -> None: ...

    def tapped(self, forgiven: Forgiven) -> AbstractContextManager[None]:
        """Listen to forward and backward passes."""

    def collect(self, weight: torch.Tensor | None) -> Rows | None:
        """After a backward pass: what can be known now."""

    def finish(self) -> Rows | None:
        """After an optimizer step: the rest."""

    def forget(self) -> None:
        """Drop what was heard since the last `collect`."""


class Tap(torch.autograd.Function):
    """W_O's input as it is; its backward hands the input and the gradient that reaches it to `keep(index, ...)`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, index: int, keep: Any) -> torch.Tensor:
        """Save x, as W_O does anyway for its weight's gradient."""
        ctx.save_for_backward(x)
        ctx.index, ctx.keep = index, keep
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The gradient as it is."""
        (x,) = ctx.saved_tensors
        ctx.keep(ctx.index, x, grad)
        return grad, None, None


class Contexts:
    """`example`: W_O's input times its gradient, in float32 or wider, summed over the positions of each example."""

    def __init__(self, heads: Heads) -> None:
        for block in heads.blocks:
            if block.functional and is_parametrized(block.projection, "weight"):
                raise HeadsError(f"W_O of {block.name} has a parametrized weight, behind which no gate can be put")
        self.heads, self.deaf = heads, set[int]()
        self.forget()

    def forget(self) -> None:
        """See `Source`."""
        self._fired, self._tapped = set[int](), set[int]()  # blocks
        self._heard: list[list[tuple[torch.Size, torch.Tensor]]] = [[] for _ in self.heads.blocks]

    @contextlib.contextmanager
    def tapped(self, forgiven: Forgiven) -> Iterator[None]:
        """See `Source`. A failure leaves the taps: layers that are checkpointed must find them when they run again."""

        def keep(index: int, x: torch.Tensor, grad: torch.Tensor) -> None:
            with forgiven():
                axis = self.heads.blocks[index].batch_axis
                positions = [i for i in range(x.dim() - 1) if i != axis]
                product = x.to(torch.promote_types(x.dtype, torch.float32)) * grad
                self._heard[index].append((x.shape, product.sum(positions) if positions else product))

        def gate(index: int) -> Gate:
            def tap(x: torch.Tensor) -> torch.Tensor:
                self._fired.add(index)
                with forgiven():
                    if torch.is_grad_enabled() and x.requires_grad:
                        self._tapped.add(index)
                        return Tap.apply(x, index, keep)
                return x

            return tap

        with gated(self.heads, [gate(i) for i in range(len(self.heads.blocks))]):
            yield

    def collect(self, weight: torch.Tensor | None) -> Rows | None:
        """See `Source`; the heads of a block that did not fire have no path to the loss, and s = 0.

        No gradient reaches one that fires on frozen layers alone, though its heads have an s.
        """
        heard, deaf = self._heard, self._fired - self._tapped
        self.forget()
        parts = [part for fired in heard for _, part in fired]
        if not parts:
            return None
        self.deaf |= deaf
        examples = min(map(len, parts)) if weight is None else len(weight)
        columns = []
        for block, fired in zip(self.heads.blocks, heard, strict=True):
            column = parts[0].new_zeros(examples, block.heads)
            for shape, part in fired:  # more than one: layers that share a block, or two forward passes
                block.check_rows(shape, examples)
                s = part.to(column.device).view(len(part), block.heads, -1).sum(-1)
                column = column + s.view(examples, -1, block.heads).sum(1)
            columns.append(column)
        raw = torch.cat(columns, 1)
        if weight is None:
            return raw * examples, 1
        weight = weight.to(raw).unsqueeze(1)
        return raw / weight.where(weight != 0, weight.new_ones(())), 1  # 0: it has no target that counts, and s = 0

    def finish(self) -> Rows | None:
        """See `Source`."""
        return None


class WeightGradients:
    """`batch`: sum over b of s, from W_O's own gradient as the last backward pass before an update leaves it.

    What is divided out is the mean of the examples' weights: exact where they are one, else a weighted sum of s.
    """

    def __init__(self, heads: Heads) -> None:
        self.heads, self.deaf = heads, set[int]()
        self._weights = [own_weight(block) for block in heads.blocks]
        self._added: list[torch.Tensor] = []  # weights of examples
        self.forget()

    def forget(self) -> None:
        """See `Source`."""
        self._heard: dict[int, torch.Tensor] = {}  # block -> [width]

    @contextlib.contextmanager
    def tapped(self, forgiven: Forgiven) -> Iterator[None]:
        """See `Source`. A gradient is read as soon as it is there, because training may clip it next."""
        with contextlib.ExitStack() as hooks:
            for i, (weight, outputs) in enumerate(self._weights):
                read = functools.partial(self._read, forgiven, i, outputs)
                hooks.callback(weight.register_post_accumulate_grad_hook(read).remove)
            yield

    def _read(self, forgiven: Forgiven, index: int, outputs: int, weight: torch.Tensor) -> None:
        with forgiven(), torch.no_grad():
            assert weight.grad is not None  # it is the hook's occasion
            wide = torch.promote_types(weight.dtype, torch.float32)
            self._heard[index] = (weight.to(wide) * weight.grad).sum(outputs)

    def collect(self, weight: torch.Tensor | None) -> Rows | None:
        """See `Source`; of accumulated gradients the last one holds them all."""
        if weight is None:
            raise ValueError("the batch form cannot see how large a batch is: give the weight of each example, [B]")
        self._added.append(weight.detach())
        return None

    def finish(self) -> Rows | None:
        """See `Source`."""
        heard, added = self._heard, self._added
        self.forget()
        self._added = []
        if not heard or not added:
            return None
        first = next(iter(heard.values()))
        columns = [
            heard[i].to(first).view(block.heads, -1).sum(-1) if i in heard else first.new_zeros(block.heads)
            for i, block in enumerate(self.heads.blocks)
        ]
        weight = torch.cat([part.to(first) for part in added])
        return (torch.cat(columns) / weight.mean()).unsqueeze(0), len(weight)


SOURCES: dict[str, type[Source]] = {"example": Contexts, "batch": WeightGradients}


def own_weight(block: Attention) -> tuple[nn.Parameter, int]:
    """W_O's weight and the axis of its outputs; transformers' Conv1D keeps it as [in, out]."""
    weight = block.projection._parameters.get("weight")
    if weight is None or not weight.requires_grad:
        raise HeadsError(f"W_O of {block.name} is frozen, or made from other weights: online='example' can read it")
    return weight, 0 if hasattr(block.projection, "in_features") else 1


def check_model(model: nn.Module, heads: Heads, estimator: str) -> None:
    """HeadsError where the model would pass by the estimator's hooks, or a gradient is not of one W_O alone."""
    compiled = any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules())
    if estimator == "example" and compiled:
        raise HeadsError("a compiled model does not run our hooks: choose online='batch', which needs none of them")
    users = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for block in heads.blocks if estimator == "batch" else ():
        if users[id(own_weight(block)[0])] > 1:
            raise HeadsError(f"other modules share the weight of {block.name}'s W_O: choose online='example'")
