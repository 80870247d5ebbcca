"""Padding: how long examples are, and whether what is cut off a batch changes anything for its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from headdynamics.estimators import sensitivity, token_positions
from headdynamics.heads import find_heads
from headdynamics.losses import IGNORED, LABELS, Loss
from headdynamics.rounding import rounding

#: tensors [B, T] whose last columns say nothing where the mask is 0 and the label is none
BY_POSITION = (
    "input_ids", "attention_mask", "token_type_ids", "position_ids", "special_tokens_mask", "global_attention_mask",
    *LABELS,
)  # fmt: skip

#: model types that turn into another model for good where a batch is short
CHANGED_BY_LENGTH = frozenset({"big_bird", "bigbird_pegasus"})
ROUNDING = rounding(torch.float32)


def length(example: Any) -> int:
    """What examples are sorted by: real tokens, where a mask tells them, else the longest text, list or vector."""
    columns = example if isinstance(example, Mapping) else dict(enumerate(example)) if _has_length(example) else {}
    mask: Any = columns.get("attention_mask")
    if _has_length(mask) and not any(map(_has_length, mask[:1])):
        return int(np.asarray(mask).sum())
    ids: Any = columns.get("input_ids")
    return len(ids) if _has_length(ids) else max((len(v) for v in columns.values() if _has_length(v)), default=0)


def _has_length(value: Any) -> bool:
    return hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0


def trimmed(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch [B, T] without its last columns that no example needs: masked in every row, and without a label.

    As it is where anything unknown has an axis of T (a mask of pairs, a decoder's input).
    """
    mask = batch.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return batch
    rows, columns = mask.shape
    needed = 0
    for name, value in batch.items():
        if not isinstance(value, torch.Tensor):
            return batch
        axes = value.shape[1:] if value.shape[:1] == (rows,) else value.shape
        if columns not in axes:
            continue
        if name not in BY_POSITION or value.shape != mask.shape or value.is_floating_point():
            return batch
        if name in LABELS or name.endswith("attention_mask"):
            used = (value != (IGNORED if name in LABELS else 0)).any(0).nonzero()
            needed = max(needed, int(used.max()) + 1 if len(used) else 1)
    names = [name for name in BY_POSITION if name in batch and batch[name].shape == mask.shape]
    return batch | {name: batch[name][:, :needed].contiguous() for name in names if needed < columns}


def padding_is_nothing(model: nn.Module, loss: Loss, padded: list[dict[str, Any]], bare: list[dict[str, Any]]) -> bool:
    """Whether every head is felt alike with and without the examples' padding, and so is their loss, up to rounding.

    It is not where convolutions, pooling or landmarks reach into the padding, or where the model sees no mask. A loss
    that feels some block nowhere (no counted target, weights of zero) proves nothing, nor does half precision whose
    rounding shows.
    """
    if getattr(getattr(model, "config", None), "model_type", "") in CHANGED_BY_LENGTH:
        return False
    try:
        heads = find_heads(model, padded[0])
        device = next(model.parameters()).device
        both = [[{k: v.to(device) for k, v in one.items()} for one in each] for each in (bare, padded)]
        found, expected = (sensitivity(model, heads, each, loss, token_positions) for each in both)
    except Exception:  # whoever measures will meet it again, and say so
        return False
    sizes = np.array([expected.absolute[:, heads.block == block].max() for block in np.unique(heads.block)])
    scale = ROUNDING * np.repeat(sizes, heads.sizes)
    same = all(
        (np.abs(getattr(found, name) - getattr(expected, name)) <= scale).all() for name in ("signed", "absolute")
    )
    close = np.allclose(found.loss, expected.loss, rtol=0, atol=ROUNDING * max(1.0, np.abs(expected.loss).max()))
    return bool((sizes > 0).all() and same and close)
