"""The few modules that slicing alone does not settle: torch's and fairseq's functional attention, T5's shared bias."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..heads import Attention
from .cut import Edits

Kept = Mapping[str, Sequence[int]]  # block name -> the numbers of the heads that stay


def settle(model: nn.Module, blocks: Sequence[Attention], kept: Kept, edits: Edits) -> None:
    """What has to change around the blocks in `kept`, after they have been cut."""
    for block in blocks:
        if block.name in kept:
            _leave_functional_paths(model, block, edits)
        if hasattr(block.parent, "can_use_fastpath"):  # fairseq 0.12.2's fused layers, which read whole weights
            edits.set(block.parent, "can_use_fastpath", False)
    biased = {_stack(b) for b in blocks if b.name in kept and hasattr(b.module, "has_relative_attention_bias")}
    for block in blocks:
        if _stack(block) in biased:
            _slice_position_bias(block, kept.get(block.name), edits)


def _stack(block: Attention) -> tuple[str, str]:
    return re.sub(r"\d+.*", "", block.name), block.kind


def _leave_functional_paths(model: nn.Module, block: Attention, edits: Edits) -> None:
    module: Any = block.module
    if isinstance(module, nn.MultiheadAttention):
        edits.set(module, "__class__", NarrowAttention)
        edits.set(module, "_qkv_same_embed_dim", False)  # what torch's fused layers ask before they pass us by
        for stack in model.modules():
            if isinstance(stack, nn.TransformerEncoder) and any(m is module for m in stack.modules()):
                edits.set(stack, "use_nested_tensor", False)
    if hasattr(module, "skip_embed_dim_check"):  # fairseq's own switch for attention narrower than its model
        edits.set(module, "skip_embed_dim_check", True)


class NarrowAttention(nn.MultiheadAttention):
    """torch.nn.MultiheadAttention whose heads together are narrower than the model; same inputs and outputs."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See torch.nn.MultiheadAttention."""
        single, first = query.dim() == 2, self.batch_first or query.dim() == 2
        q, k, v = (x.unsqueeze(0) if single else x if first else x.transpose(0, 1) for x in (query, key, value))
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None, None, None)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (len(w) // self.head_dim, self.head_dim)).transpose(1, 2)
            for x, w, b in zip((q, k, v), weights, biases, strict=True)
        )  # [B, heads, T, d]
        scores = (q * self.head_dim**-0.5) @ k.transpose(-1, -2)
        scores = scores + self._additive(attn_mask, scores) + self._padding(key_padding_mask, scores)
        attention = F.dropout(scores.softmax(-1), self.dropout, self.training)
        out = self.out_proj((attention @ v).permute(2, 0, 1, 3).flatten(2))  # [T, B, E], as torch's own attention
        out = out[:, 0] if single else out.transpose(0, 1) if first else out
        if not need_weights:
            return out, None
        attention = attention.sum(1) / max(attention.shape[1], 1) if average_attn_weights else attention
        return out, attention[0] if single else attention

    @staticmethod
    def _additive(mask: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        if mask is None:
            return scores.new_zeros(())
        mask = scores.new_zeros(mask.shape).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask
        if mask.dim() == 2:
            return mask
        heads, rows = scores.shape[1], scores.shape[0]
        if mask.shape[0] == rows * heads:
            return mask.view(rows, heads, *mask.shape[1:])
        raise ValueError(f"a mask of shape {tuple(mask.shape)} has a row for each head; {heads} are left")

    @staticmethod
    def _padding(mask: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        if mask is None:
            return scores.new_zeros(())
        mask = scores.new_zeros(mask.shape).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask
        return mask.view(scores.shape[0], 1, 1, -1)


def _slice_position_bias(block: Attention, kept: Sequence[int] | None, edits: Edits) -> None:
    """T5 hands one bias [1, heads, T, T] of the first layer to all: each takes its own heads and passes all on."""
    module: Any = block.module
    shared = "position_bias" in inspect.signature(module.forward).parameters
    if block.kind == "cross":  # the bias is zero: each layer makes its own, of its own heads
        if shared and not any(hook is _forget_bias for hook in module._forward_pre_hooks.values()):
            edits.hook(module.register_forward_pre_hook(_forget_bias, with_kwargs=True))
        return
    if kept is None:
        return
    before = getattr(module, "kept_bias", None)
    index = list(kept) or [0]  # a block of no head runs on one of zeros
    edits.set(module, "kept_bias", [before[i] for i in index] if before else index)
    if hasattr(module, "pruned_heads"):  # transformers 4 slices by itself
        edits.set(module, "bias_heads", getattr(module, "bias_heads", block.heads))
        edits.set(module, "pruned_heads", set(range(module.bias_heads)) - set(module.kept_bias))
        return
    table = getattr(module, "relative_attention_bias", None)
    edits.trace(module, "whole_bias")
    if table is not None:
        edits.set(table, "kept_bias", module.kept_bias)
        edits.trace(table, "whole_bias")
    if before:
        return  # the hooks are there
    if table is not None and shared:
        edits.hook(table.register_forward_hook(_keep_whole))
    if table is not None:
        edits.hook(table.register_forward_hook(_own_columns))
    if shared:
        edits.hook(module.register_forward_pre_hook(_take_own_bias, with_kwargs=True))
        edits.hook(module.register_forward_hook(_pass_on_whole_bias))


# Hooks are functions of this file that keep what they need on the module, so that a model can be copied and saved.


def _forget_bias(module: Any, args: Any, kwargs: Any) -> Any:
    return args, {**kwargs, "position_bias": None}


def _keep_whole(table: Any, args: Any, whole: torch.Tensor) -> None:
    table.whole_bias = whole.permute(2, 0, 1).unsqueeze(0)


def _own_columns(table: Any, args: Any, whole: torch.Tensor) -> torch.Tensor:
    return whole[..., table.kept_bias]


def _take_own_bias(module: Any, args: Any, kwargs: Any) -> Any:
    whole = kwargs.get("position_bias")
    if whole is None:
        return args, kwargs
    module.whole_bias = whole
    return args, {**kwargs, "position_bias": whole[:, module.kept_bias]}


def _pass_on_whole_bias(module: Any, args: Any, output: Any) -> Any:
    context, _, *rest = output
    holder = module if "whole_bias" in vars(module) else module.relative_attention_bias
    return context, vars(holder).pop("whole_bias"), *rest
