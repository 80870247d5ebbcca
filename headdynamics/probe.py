"""A causality probe: which stacks are decoders, asked of the model itself where its code does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .rules import Attention


def causal(model: nn.Module, blocks: Sequence[Attention], batch: Mapping[str, Any]) -> set[str]:
    """Names of the blocks called encoder in which the last token cannot change the first position's context."""
    ids = batch.get("input_ids")
    asked = [b for b in blocks if b.kind == "encoder"]  # CLIP's causal text stack is called an encoder, too
    if not asked or not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.shape[1] < 2:
        return set()
    ids = ids[:1, : min(8, ids.shape[1])]
    other = ids.clone()
    other[0, -1] = ids[0, 0] if ids[0, -1] != ids[0, 0] else (ids[0, 0] + 1) % int(ids.max() + 1)
    first, second = (_first_contexts(model, asked, x) for x in (ids, other))
    return {name for name in first if name in second and torch.equal(first[name], second[name])}


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
