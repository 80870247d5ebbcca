"""Take heads out for real: rows of q, k, v and columns of W_O are gone (Michel et al. 2019, section 4.3).

prune: which heads stay -> remove: plan, cut, undo on failure (layouts: whose rows are whose; cut: slice; special:
the odd few; proof: compare with the masked model) -> config: a Hugging Face config says what was done -> reload.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..heads import Heads, heads_in, unwrap
from ..keep import checked_order, pruned_count
from .config import write_config
from .cut import Edits
from .layouts import SurgeryError, read_layout
from .reload import load_pruned
from .remove import take_out

__all__ = ["SurgeryError", "load_pruned", "prune", "remove_heads"]


def prune(
    model: nn.Module,
    order: np.ndarray,
    fraction: float,
    *,
    heads: Heads | None = None,
    batch: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Take the first ceil(N x fraction) of the N heads in `order` out of `model`, in place; `keep` [H], bool.

    Heads that share a key/value head (grouped queries) go together: groups are ranked by the mean place of their
    heads in `order`, and as many go as are needed to reach the fraction. `order` may list some of the heads only;
    the others stay. Make the optimizer afterwards: the weights are new parameters. See `remove_heads` for `batch`.

    Raises:
        ValueError: `order` is no 1-D array of whole numbers, or names a head twice, or one that does not exist, or a
            part of a key/value group; or `fraction` does not lie between 0 and 1.
        SurgeryError: see `remove_heads`; the model is then untouched.

    """
    heads = heads_in(model, heads)
    keep = grouped_keep(heads, order, fraction)
    remove_heads(model, keep, heads=heads, batch=batch)
    return keep


def remove_heads(
    model: nn.Module, keep: Any, *, heads: Heads | None = None, batch: Mapping[str, Any] | None = None
) -> None:
    """Take out of `model`, in place, the heads whose `keep` [H] is 0; the rest computes what the masked model does.

    With grouped queries the heads that stay must fill whole key/value groups, or be equally many in every group
    that stays. `batch`: inputs of one forward pass, on which the result is compared with the masked model; models
    whose layout of weights is not certain need it.

    Raises:
        ValueError: `keep` is not [H].
        SurgeryError: a block's weights are not understood, or the probe on `batch` differs; nothing is changed.

    """
    model = unwrap(model)
    heads = heads_in(model, heads)
    stays = torch.as_tensor(keep).bool()
    if stays.shape != (len(heads),):
        raise ValueError(f"keep has shape {tuple(stays.shape)}; this model has {len(heads)} heads: [{len(heads)}]")
    with Edits() as edits:
        write_config(model, take_out(model, heads, stays, edits, batch), edits)


def grouped_keep(heads: Heads, order: np.ndarray, fraction: float) -> torch.Tensor:
    """Bool mask [H] of the heads that stay, whole key/value groups at a time; see `prune`."""
    order = checked_order(order, len(heads))
    keep, missing = torch.ones(len(heads), dtype=torch.bool), pruned_count(len(order), fraction)
    place = np.full(len(heads), -1)
    place[order] = np.arange(len(order))
    starts = np.cumsum([0, *heads.sizes])
    units = []
    for block, start in zip(heads.blocks, starts, strict=False):
        mine = place[start : start + block.heads]
        if (mine < 0).all():
            continue
        size = read_layout(block).per_group
        for first in range(0, block.heads, size):
            places = mine[first : first + size]
            if (places < 0).any() and (places >= 0).any():
                raise ValueError(
                    f"the order holds only a part of a key/value group of {block.name}; list all its heads"
                )
            if (places >= 0).all():
                units.append((float(places.mean()), range(start + first, start + first + size)))
    for _, members in sorted(units, key=lambda unit: unit[0]):
        if missing > 0:
            keep[list(members)] = False
            missing -= len(members)
    return keep
