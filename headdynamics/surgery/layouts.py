"""How an attention block stores its heads: which rows of which weights each head owns.

Letters: H query heads, K key/value heads (K = H without grouping), d the size of a head. A block is read by
structure alone; what is seen but not understood is a doubt, and a doubtful block is cut only under a probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..heads import Attention, in_features

#: three projections beside each other: (query, key, value)
SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("queries", "keys", "values"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
)
#: one projection for all three: as thirds (all queries, all keys, all values) or head by head (q, k, v of head 0, ...)
FUSED = {"c_attn": "thirds", "Wqkv": "thirds", "qkv": "thirds", "qkv_proj": "thirds", "query_key_value": "by head"}
CERTAIN = ("c_attn",)  # names that mean one layout wherever they occur; the others differ between models


class SurgeryError(ValueError):
    """Heads cannot be taken out of a model; the message names the module, the cause and the cure."""


@dataclass(frozen=True)
class Run:
    """Consecutive rows of one weight: `size` rows for each head ("query") or each key/value group ("group")."""

    unit: str
    start: int
    size: int


@dataclass(frozen=True)
class Part:
    """One weight (and its bias, where the cut runs along it) and how its rows belong to heads."""

    owner: nn.Module
    axis: int
    runs: tuple[Run, ...]
    weight: str = "weight"
    bias: str | None = "bias"

    def rows(self, heads: Sequence[int], groups: Sequence[int]) -> torch.Tensor:
        """Indices along `axis` of the rows that the heads and key/value groups listed own."""
        units = {"query": heads, "group": groups}
        return torch.tensor(
            [r.start + u * r.size + i for r in self.runs for u in units[r.unit] for i in range(r.size)],
            dtype=torch.long,
        )


@dataclass(frozen=True)
class Layout:
    """Where the heads of one block lie. `doubts`: what a probe must settle before the block may be cut.

    `copies`: the same weights again, in a layer with a fused path of its own (fairseq 0.12.2); a state dict holds both.
    """

    block: Attention
    groups: int  # K
    size: int  # d, of a value head
    inputs: tuple[Part, ...]
    output: Part
    doubts: tuple[str, ...] = ()
    copies: tuple[Part, ...] = ()

    @property
    def per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.block.heads // self.groups


def read_layout(block: Attention) -> Layout:
    """Read one block.

    Raises:
        SurgeryError: its projections are not laid out in a way that is known.

    """
    module, size = block.module, in_features(block.projection) // block.heads
    output = Part(block.projection, _axis(block, block.projection, 0), (Run("query", 0, size),), bias=None)
    for reader in (_torch_fused, _separate, _fused):
        found = reader(block, size)
        if found is not None:
            inputs, groups, doubts = found
            doubts += _bystanders(block, inputs, size)
            return Layout(block, groups, size, inputs, output, tuple(doubts), _copies(block, size))
    children = ", ".join(name for name, _ in module.named_children())
    raise _refusal(block, f"its query, key and value projections are not of a known layout (children: {children})")


Found = tuple[tuple[Part, ...], int, list[str]]


def _separate(block: Attention, size: int) -> Found | None:
    names = next((n for n in SEPARATE if all(hasattr(block.module, x) for x in n)), None)
    if names is None:
        return None
    projections = [getattr(block.module, name) for name in names]
    axes = [_axis(block, p, 1) for p in projections]
    q, k, v = (p.weight.shape[axis] for p, axis in zip(projections, axes, strict=True))
    groups = v // size
    if v % size or not groups or block.heads % groups or q % block.heads or k % groups:
        raise _refusal(block, f"projections of {q}, {k} and {v} rows do not hold {block.heads} heads of size {size}")
    if q // block.heads != k // groups:
        raise _refusal(block, "the query and key heads differ in size")
    doubts = []
    if groups != block.heads and _value(block.module, GROUP_SIZES) != block.heads // groups:
        doubts.append(f"{groups} key/value heads serve {block.heads} query heads, but no attribute says in which way")
    sizes = (("query", q // block.heads), ("group", k // groups), ("group", size))
    parts = tuple(Part(p, a, (Run(unit, 0, n),)) for p, a, (unit, n) in zip(projections, axes, sizes, strict=True))
    return parts, groups, doubts


def _fused(block: Attention, size: int) -> Found | None:
    name = next((n for n in FUSED if hasattr(block.module, n)), None)
    if name is None:
        return None
    module: Any = block.module
    projection, width = getattr(module, name), block.heads * size
    doubts: list[str] = []
    axis = _axis(block, projection, 1)
    rows = projection.weight.shape[axis]
    thirds = tuple(Run("query", i * width, size) for i in range(rows // width))
    if name == "c_attn" and rows == 2 * width and hasattr(module, "q_attn"):  # GPT-2's cross-attention
        own = Part(module.q_attn, _axis(block, module.q_attn, 1), (Run("query", 0, size),))
        return (own, Part(projection, axis, thirds)), block.heads, doubts
    if rows != 3 * width:
        raise _refusal(
            block, f"{name} has {rows} rows, where query, key and value of {block.heads} heads need {3 * width}"
        )
    if name not in CERTAIN:
        doubts.append(f"models differ in how {name} lays out its rows")
    runs = thirds if FUSED[name] == "thirds" else (Run("query", 0, 3 * size),)
    return (Part(projection, axis, runs),), block.heads, doubts


def _torch_fused(block: Attention, size: int) -> Found | None:
    module: Any = block.module
    if not isinstance(module, nn.MultiheadAttention):
        return None
    if module.bias_k is not None or module.add_zero_attn:
        raise _refusal(block, "bias_k and add_zero_attn add a key to every head; such attention is not cut")
    width = block.heads * size
    if module.in_proj_weight is None:
        raise _refusal(block, "keys or values of another width than the queries (kdim, vdim) are not cut")
    runs = tuple(Run("query", i * width, size) for i in range(3))
    return (Part(module, 0, runs, "in_proj_weight", "in_proj_bias"),), block.heads, []


def _copies(block: Attention, size: int) -> tuple[Part, ...]:
    layer = block.parent
    if layer is None or not (hasattr(layer, "can_use_fastpath") and hasattr(layer, "out_proj_weight")):
        return ()
    runs = tuple(Run("query", i * block.heads * size, size) for i in range(3))
    return (
        Part(layer, 0, runs, "in_proj_weight", "in_proj_bias"),
        Part(layer, 1, (Run("query", 0, size),), "out_proj_weight", None),
    )


def _axis(block: Attention, projection: nn.Module, side: int) -> int:
    """The axis of a projection's weight that is its input (`side` 0) or its output (1)."""
    plain = set(dict(projection.named_parameters())) <= {"weight", "bias"} and not list(projection.children())
    if plain and isinstance(projection, nn.Linear):
        return 1 - side
    if plain and hasattr(projection, "nf"):  # transformers' Conv1D: [in, out]
        return side
    raise _refusal(
        block, f"a projection is a {type(projection).__name__}, which holds more (or other) than a plain weight"
    )


def _bystanders(block: Attention, inputs: Sequence[Part], size: int) -> list[str]:
    """Weights beside the projections that may belong to heads too, such as a norm over all heads together."""
    known = {id(p.owner) for p in inputs if p.weight == "weight"} | {id(block.projection)}
    doubts = []
    for name, weight in (*block.module.named_parameters(), *block.module.named_buffers()):
        owner = block.module.get_submodule(name.rpartition(".")[0])
        ours = id(owner) in known or name in {x for p in inputs for x in (p.weight, p.bias)}
        of_one_head = weight.dim() == 1 and weight.numel() == size
        if not (ours or of_one_head or not weight.is_floating_point() or weight.dim() == 0 or name in HANDLED):
            doubts.append(f"{name} {list(weight.shape)} may belong to heads too")
    return doubts


HANDLED = ("relative_attention_bias.weight",)  # see special.py
GROUP_SIZES = ("num_key_value_groups", "n_rep")


def _value(module: nn.Module, names: Sequence[str]) -> Any:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def _refusal(block: Attention, why: str) -> SurgeryError:
    return SurgeryError(f"heads cannot be taken out of {block.name} ({type(block.module).__name__}): {why}")
