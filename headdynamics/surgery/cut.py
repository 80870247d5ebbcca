"""Cutting one block, so that every change can be undone: sliced weights, new head counts, blocks without heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .layouts import GROUP_SIZES, Layout, Part

#: attributes by which a module knows its number of heads, key/value heads and the width of all heads together
HEADS = "num_heads num_attention_heads n_heads n_head nheads num_q_heads".split()
GROUPS = "num_key_value_heads num_kv_heads n_kv_heads".split()
WIDTHS = "all_head_size inner_dim split_size embed_dim dim".split()


class Edits:
    """A log of changes to modules: `undo` leaves every one as it was, and so does an error inside `with Edits()`."""

    def __init__(self) -> None:
        self._old: list[tuple[Any, str, Any]] = []
        self._hooks: list[Any] = []
        self._traces: list[tuple[Any, str]] = []

    def __enter__(self) -> Edits:
        """The log itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Undo where the block raised."""
        if kind is not None:
            self.undo()

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute."""
        old = getattr(owner, name, Edits)
        setattr(owner, name, value)
        self._old.append((owner, name, old))  # only now: what refused to be set cannot be set back

    def hook(self, handle: Any) -> None:
        """Remember a hook."""
        self._hooks.append(handle)

    def trace(self, owner: Any, name: str) -> None:
        """Remember an attribute that a forward pass sets and takes back, unless it fails."""
        self._traces.append((owner, name))

    def undo(self) -> None:
        """Take everything back, last change first."""
        for handle in self._hooks:
            handle.remove()
        for owner, name, value in reversed(self._old):
            if value is Edits:  # it was not there
                delattr(owner, name)
            else:
                setattr(owner, name, value)
        for owner, name in self._traces:
            vars(owner).pop(name, None)


class Constant(nn.Module):
    """A projection of no head: it gives its bias, or zeros, whatever comes in.

    A block with no head left runs on as before on one head of zeros, so that its tuple outputs, its caches and
    their lengths stay what its layer expects; nothing of that head reaches W_O.
    """

    constant_width: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., constant_width]."""
        bias: Any = self.bias
        out = x.new_zeros(*x.shape[:-1], self.constant_width)
        return out if bias is None or not bias.numel() else out + bias.to(x.dtype)


def cut_block(layout: Layout, kept: Sequence[int], groups: Sequence[int], edits: Edits) -> None:
    """Keep the heads `kept`, which read the key/value groups `groups`, and nothing else of one block."""
    native = isinstance(layout.block.module, nn.MultiheadAttention)  # its forward is ours: no head of zeros is needed
    for part in layout.inputs:
        widths = sum(r.size for r in part.runs)
        _cut(part, part.rows(kept, groups), None if kept or native else widths, edits)
    for part in layout.copies:
        _cut(part, part.rows(kept, groups), None, edits)
    weight: Any = layout.output.owner.weight
    whole = weight.shape[1 - layout.output.axis]
    _cut(layout.output, layout.output.rows(kept, groups), None if kept else whole, edits)
    _recount(layout, len(kept), len(groups), edits)


def _cut(part: Part, rows: torch.Tensor, constant: int | None, edits: Edits) -> None:
    owner: Any = part.owner
    edits.set(owner, part.weight, _sliced(getattr(owner, part.weight), part.axis, rows))
    if part.bias is not None and getattr(owner, part.bias, None) is not None:
        edits.set(owner, part.bias, _sliced(getattr(owner, part.bias), 0, rows))
    if part.weight == "weight":
        side = ("in_features", "nx") if part.bias is None else ("out_features", "nf")
        for name in side:
            if hasattr(owner, name):
                edits.set(owner, name, len(rows))
    if constant is not None:
        edits.set(owner, "constant_width", constant)
        edits.set(owner, "__class__", Constant)


def _sliced(parameter: Any, axis: int, rows: torch.Tensor) -> nn.Parameter:
    data = parameter.detach().index_select(axis, rows.to(parameter.device))
    return nn.Parameter(data, requires_grad=parameter.requires_grad)


def _recount(layout: Layout, heads: int, groups: int, edits: Edits) -> None:
    block = layout.block
    heads, groups = (heads, groups) if heads else (1, 1)  # the head of zeros
    news = (
        (HEADS, block.heads, heads),
        (GROUPS, layout.groups, groups),
        (GROUP_SIZES, layout.per_group, heads // groups),
        (WIDTHS, block.heads * layout.size, heads * layout.size),
    )
    for names, old, new in news:
        for name in names:
            if getattr(block.module, name, None) == old and not isinstance(getattr(block.module, name), bool):
                edits.set(block.module, name, new)
