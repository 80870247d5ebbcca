"""What a model computes on one batch: the proof that a cut model is the masked one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from ..gates import masked
from ..heads import Heads
from ..rounding import rounding


def outputs(
    model: nn.Module, batch: Mapping[str, Any], heads: Heads | None = None, keep: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """The model's floating-point outputs on `batch` (or its `net_input`), in eval mode; masked if `heads` is given."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), masked(heads, keep) if heads is not None else nullcontext():
            return list(_tensors(model(**batch.get("net_input", batch))))
    finally:
        for module, mode in modes:
            module.training = mode


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    """Logits where there are any; attention maps and caches have another shape without a head."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        named = [output[name] for name in ("logits", "last_hidden_state") if name in output]
        for value in named or output.values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)) and output:
        yield from _tensors(output[0])


def same(first: list[torch.Tensor], second: list[torch.Tensor] | None) -> bool:
    """Equal to the rounding of a sum taken in another order."""
    if not first or second is None or len(first) != len(second):
        return False
    for a, b in zip(first, second, strict=True):
        rough = rounding(a.dtype) * float(b.abs().max().clamp(min=1))
        if a.shape != b.shape or not torch.allclose(a, b, rtol=0, atol=rough):
            return False
    return True
