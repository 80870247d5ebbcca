"""The rules by which attention, its output projection W_O and its head count are read from any module.

There is no table of models. A module is attention if it owns query, key and value projections; W_O and
the head count follow from names and shapes. Tables of classes exist only for what no name or shape tells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

W_O_NAMES = (
    "o_proj out_proj c_proj out_lin Wo o dense wo to_out out proj post_proj output output_proj linear_out "
    "attention_out projection projection_layer".split()
)  # direct child, in this order of trust
W_O_SIBLINGS = "output.dense output.out_proj attn_out output".split()
QUERY_KEY_VALUE = re.compile(
    r"(q|k|v|query|key|value|queries|keys|values|(q|k|v)_(proj|lin|a_proj|b_proj|head)|(q|k|v)_proj_\w+"
    r"|(query|key|value|kv)_proj|(linear|project|to)_(q|k|v|kv|qkv)|c_attn|Wqkv|qkv|qkv_proj|qkv_layer"
    r"|query_key_value|query_key|q_bias|in_proj_weight"
    r"|kv_b_proj|kv_a_proj_with_mqa|Wq|wq|wqkv)"
)
HEAD_COUNTS = "num_heads num_attention_heads n_heads n_head nheads num_q_heads".split()
CONFIG_HEAD_COUNTS = (*HEAD_COUNTS, "decoder_attention_heads", "encoder_attention_heads")
HEAD_SIZES = "v_head_dim head_dim head_size attention_head_size".split()

#: attention classes that use W_O's weight without calling W_O, so that a hook on it would never (or half) fire,
#: and whether their output is [B, T, E] where they have no `batch_first` to say so
FUNCTIONAL = {
    "torch.nn.modules.activation.MultiheadAttention": False,
    "fairseq.modules.multihead_attention.MultiheadAttention": False,
    "transformers.models.wavlm.modeling_wavlm.WavLMAttention": True,
}
#: attention classes that call W_O on [T, B, E]; no other sign tells them from the many that call it on [B, T, E]
SEQUENCE_FIRST = (
    "transformers.models.fsmt.modeling_fsmt.Attention",
    "transformers.models.mlcd.modeling_mlcd.MLCDAttention",
)
#: parts of a module whose heads no gate before W_O takes out, or that has none, and why
NOT_HEADS = {
    r"A_log|dt_bias|time_decay|slope_rate|conv1d|[qkv]_conv1d": "it mixes positions by a recurrence or a convolution, "
    "without attention probabilities",
    r"attn_sub_norm|inner_attn_ln": "a norm over all heads stands between them and W_O, so that each head's part "
    "depends on the others",
    r"lambda_q1": "its heads are differences of two attentions (the DIFF transformer)",
}


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
    sequence_first: bool = False  # W_O is called on [T, B, E]
    batch_first: bool = False  # a functional block's own output is [B, T, E]
    parent: nn.Module | None = None  # the layer around it
    width: int = 0  # of W_O's input, when it was found

    @property
    def batch_axis(self) -> int:
        """The axis of W_O's input along which examples lie."""
        return int(self.functional or self.sequence_first)

    def check_rows(self, shape: torch.Size, examples: int) -> None:
        """Raise a ValueError where W_O's input, or a gate of its shape, does not hold `examples` along `batch_axis`.

        Vision towers that pack images of any size into one sequence cannot be read by example.
        """
        packed = len(shape) == 2 and shape[0] != examples
        if examples > 1 and (packed or shape[self.batch_axis] % examples):
            raise ValueError(
                f"W_O of {self.name} sees {tuple(shape)}, which does not hold {examples} rows along axis "
                f"{self.batch_axis}: give batches of one example, or one mask for all, [H]"
            )


def candidates(model: nn.Module) -> tuple[list[Attention], list[tuple[str, str]]]:
    """Every attention block of `model`, not yet numbered, and (path, reason) of what is not understood."""
    found, unread, seen = [], [], set()
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not _is_attention(module):
            continue
        projection = _projection(modules, name, module)
        if projection is None and any(_is_attention(m) for m in module.modules() if m is not module):
            continue  # a layer that keeps fused copies of its attention's weights (fairseq 0.12.2)
        if id(projection) in seen or (projection is not None and in_features(projection) == 0):
            continue  # shared, or surgery has taken every head out
        why = _not_heads(module)
        if projection is None:
            why = why or f"{type(module).__name__} has no output projection with a 2-D weight that we can name"
        else:
            seen.add(id(projection))
        count, why = (0, why) if why or projection is None else _head_count(model, module, in_features(projection))
        if why or projection is None:
            unread.append((name, why))
            continue
        parent = modules.get(name.rpartition(".")[0])
        kind, width = _kind(model, parent, name, module), in_features(projection)
        found.append(_adapted(Attention(name, module, projection, count, kind, 0, False, parent=parent, width=width)))
    return found, unread


def _adapted(block: Attention) -> Attention:
    """The block, marked where its class is in one of the tables of exceptions."""
    classes = {f"{c.__module__}.{c.__qualname__}" for c in type(block.module).__mro__}
    functional = next((c for c in FUNCTIONAL if c in classes), None)
    return replace(
        block,
        functional=functional is not None,
        sequence_first=not classes.isdisjoint(SEQUENCE_FIRST),
        batch_first=bool(getattr(block.module, "batch_first", FUNCTIONAL.get(functional or "", False))),
    )


def _own_names(module: nn.Module) -> list[str]:
    """Names of a module's children, parameters and buffers; those set to None do not count."""
    parts = (module._modules, module._parameters, module._buffers)
    return [name for part in parts for name, value in part.items() if value is not None]


def _not_heads(module: nn.Module) -> str:
    own = _own_names(module)
    return next((why for part, why in NOT_HEADS.items() if any(re.fullmatch(part, n) for n in own)), "")


def _is_attention(module: nn.Module) -> bool:
    return any(QUERY_KEY_VALUE.fullmatch(name) for name in _own_names(module))


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
        candidate = _unpacked(module._modules.get(child))
        if candidate is not None and _is_linear(candidate) and not QUERY_KEY_VALUE.fullmatch(child):
            return candidate
    parent = name.rpartition(".")[0]
    for sibling in W_O_SIBLINGS:
        candidate = modules.get(f"{parent}.{sibling}" if parent else sibling)
        if _is_linear(candidate):
            return candidate
    return None


def _unpacked(module: nn.Module | None) -> nn.Module | None:
    """The first part of a Sequential, the only child of a wrapper or what it calls its `linear`, else the module."""
    if module is None or _is_linear(module):
        return module
    children = dict(module.named_children())
    alone = children and (isinstance(module, nn.Sequential) or len(children) == 1)
    return next(iter(children.values())) if alone else children.get("linear", module)


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


def _kind(model: nn.Module, parent: nn.Module | None, name: str, module: nn.Module) -> str:
    words = f"{name}.{type(module).__name__}".lower()
    crossing = any(getattr(m, "is_cross_attention", False) is True for m in (module, parent))
    if crossing or re.search(r"cross|encoder_attn|encdec|multihead_attn", words):
        return "cross"
    causal = any(getattr(module, flag, False) is True for flag in ("is_decoder", "is_causal"))
    causal = causal or getattr(getattr(model, "config", None), "is_decoder", False) is True
    in_decoder = re.search(r"(^|[._])decoder([._]|$)", name.lower())
    return "decoder" if causal or in_decoder else "encoder"
