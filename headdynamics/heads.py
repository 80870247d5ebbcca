"""find_heads(model): every attention head, with its kind, layer, number and the W_O that it feeds.

There is no table of models. A module is attention if it owns query, key and value
projections; its output projection W_O and its head count follow from names and shapes.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

W_O_NAMES = (
    "o_proj out_proj c_proj out_lin Wo o dense wo to_out out proj post_proj output".split()
)  # direct child, in this order of trust
W_O_SIBLINGS = "output.dense output.out_proj attn_out output".split()
QUERY_KEY_VALUE = re.compile(
    r"(q|k|v|query|key|value|queries|keys|values|(q|k|v)_(proj|lin|a_proj|b_proj|head)|(q|k|v)_proj_\w+"
    r"|(query|key|value)_proj|c_attn|Wqkv|qkv|qkv_proj|qkv_layer|query_key_value|query_key|in_proj|in_proj_weight"
    r"|kv_b_proj|kv_a_proj_with_mqa|Wq|wq|wqkv)"
)
HEAD_COUNTS = "num_heads num_attention_heads n_heads n_head nheads num_q_heads".split()
CONFIG_HEAD_COUNTS = (*HEAD_COUNTS, "decoder_attention_heads", "encoder_attention_heads")
HEAD_SIZES = "v_head_dim head_dim head_size attention_head_size".split()

#: attention classes that use W_O's weight without calling W_O, so that a hook on it would never (or half) fire
FUNCTIONAL = (
    "torch.nn.modules.activation.MultiheadAttention",
    "fairseq.modules.multihead_attention.MultiheadAttention",
)


class HeadsError(ValueError):
    """No attention heads can be read from a model; the message names the cause and the cure."""


@dataclass(frozen=True)
class Attention:
    """One attention block: the module, its output projection W_O and what its heads are."""

    name: str  # path of the module in the model
    module: nn.Module
    projection: nn.Module  # W_O, whose input is the heads' outputs side by side
    heads: int
    kind: str  # encoder | decoder | cross
    layer: int  # ordinal within its stack and kind
    functional: bool  # W_O's weight is used without a call; its input is then [T, B, E]
    parent: nn.Module | None = None  # the layer around it

    @property
    def batch_axis(self) -> int:
        """The axis of W_O's input along which examples lie."""
        return 1 if self.functional else 0


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
    found, unread = _candidates(model)
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
    return _settle_kinds(model, heads, batch) if batch is not None else heads


def _candidates(model: nn.Module) -> tuple[list[Attention], list[tuple[str, str]]]:
    found, unread, seen = [], [], set()
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not _is_attention(module):
            continue
        functional = any(f"{c.__module__}.{c.__qualname__}" in FUNCTIONAL for c in type(module).__mro__)
        projection = _projection(modules, name, module)
        parent = modules.get(name.rpartition(".")[0])
        if projection is None and any(_is_attention(m) for m in module.modules() if m is not module):
            continue  # a layer that keeps fused copies of its attention's weights (fairseq 0.12.2)
        if projection is None:
            why = f"{type(module).__name__} has no output projection with a 2-D weight that we can name"
            unread.append((name, why))
            continue
        if id(projection) in seen or in_features(projection) == 0:  # surgery has taken every head out
            continue
        seen.add(id(projection))
        count, why = _head_count(model, module, in_features(projection))
        if why:
            unread.append((name, why))
        else:
            kind = _kind(model, parent, name, module)
            found.append(Attention(name, module, projection, count, kind, 0, functional, parent))
    return found, unread


def _is_attention(module: nn.Module) -> bool:
    own = [name for name, _ in module.named_children()] + [name for name, _ in module.named_parameters(recurse=False)]
    return any(QUERY_KEY_VALUE.fullmatch(name) for name in own)


def _is_linear(module: nn.Module | None) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding)


def in_features(projection: nn.Module) -> int:
    """Width of a projection's input (transformers' Conv1D keeps its weight as [in, out])."""
    weight: Any = projection.weight
    width = getattr(projection, "in_features", None)
    return int(weight.shape[0] if width is None else width)


def _projection(modules: Mapping[str, nn.Module], name: str, module: nn.Module) -> nn.Module | None:
    for child in W_O_NAMES:
        candidate = module._modules.get(child)
        if isinstance(candidate, nn.Sequential) and len(candidate):
            candidate = candidate[0]
        if candidate is not None and _is_linear(candidate) and not QUERY_KEY_VALUE.fullmatch(child):
            return candidate
    parent = name.rpartition(".")[0]
    for sibling in W_O_SIBLINGS:
        candidate = modules.get(f"{parent}.{sibling}" if parent else sibling)
        if _is_linear(candidate):
            return candidate
    return None


def _first_int(owner: Any, names: tuple[str, ...] | list[str]) -> int | None:
    values = (getattr(owner, name, None) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), None)


def _head_count(model: nn.Module, module: nn.Module, width: int) -> tuple[int, str]:
    count, size = _first_int(module, HEAD_COUNTS), _first_int(module, HEAD_SIZES)
    if count is None and size is not None and width % size == 0:
        count = width // size
    if count is None:
        count = _first_int(getattr(module, "config", getattr(model, "config", None)), CONFIG_HEAD_COUNTS)
    if count is None:
        return 0, (
            f"the head count of {type(module).__name__} cannot be known: it has none of "
            f"{', '.join(HEAD_COUNTS)}; set one of these on the module"
        )
    own_size = _first_int(module, ("v_head_dim", "attention_head_size", "head_dim"))
    if width % count or (own_size is not None and own_size * count != width):
        return 0, f"{count} heads do not fill W_O's input of width {width}: something else enters W_O beside the heads"
    return count, ""


def _numbered(blocks: Iterable[Attention]) -> Iterator[Attention]:
    """The same blocks, each with its ordinal within (stack, kind) as its layer."""
    ordinals = Counter[tuple[str, str]]()
    for block in blocks:
        stack = (re.sub(r"\d+.*", "", block.name), block.kind)
        yield replace(block, layer=ordinals[stack])
        ordinals[stack] += 1


def _kind(model: nn.Module, parent: nn.Module | None, name: str, module: nn.Module) -> str:
    words = f"{name}.{type(module).__name__}".lower()
    crossing = any(getattr(m, "is_cross_attention", False) is True for m in (module, parent))
    if crossing or re.search(r"cross|encoder_attn|encdec|multihead_attn", words):
        return "cross"
    causal = any(getattr(module, flag, False) is True for flag in ("is_decoder", "is_causal"))
    causal = causal or getattr(getattr(model, "config", None), "is_decoder", False) is True
    in_decoder = re.search(r"(^|[._])decoder([._]|$)", name.lower())
    return "decoder" if causal or in_decoder else "encoder"


def _settle_kinds(model: nn.Module, heads: Heads, batch: Mapping[str, Any]) -> Heads:
    """Blocks called encoder are decoders if the last token cannot change the first position's context."""
    ids = batch.get("input_ids")
    asked = [b for b in heads.blocks if b.kind == "encoder"]  # CLIP's causal text stack is called an encoder, too
    if not asked or not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.shape[1] < 2:
        return heads
    ids = ids[:1, : min(8, ids.shape[1])]
    other = ids.clone()
    other[0, -1] = ids[0, 0] if ids[0, -1] != ids[0, 0] else (ids[0, 0] + 1) % int(ids.max() + 1)
    first, second = (_first_contexts(model, asked, x) for x in (ids, other))
    causal = {name for name in first if name in second and torch.equal(first[name], second[name])}
    kinds = [replace(b, kind="decoder") if b.name in causal else b for b in heads.blocks]
    return Heads(tuple(_numbered(kinds)), heads.unread)


def _first_contexts(model: nn.Module, blocks: list[Attention], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    contexts: dict[str, torch.Tensor] = {}
    handles = [
        b.projection.register_forward_pre_hook(
            lambda _, args, name=b.name: contexts.update({name: args[0].reshape(-1, args[0].shape[-1])[0].clone()})
        )
        for b in blocks
    ]
    modes = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(input_ids=ids)
    except Exception:  # the probe only informs: a model that takes other inputs keeps its kinds
        return {}
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return contexts
