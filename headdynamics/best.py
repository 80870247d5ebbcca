"""The best head of each layer: chosen on the data that it is reported on, and on other data.

The best of sixteen noisy numbers is partly luck, so the first overstates it. numpy only: both the ablation and
its reader ask here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Best(NamedTuple):
    """One row a layer (attention block), in the order of `block`; L layers."""

    layer: np.ndarray  # [L] the block's number
    head: np.ndarray  # [L] index of the best head; from held-out halves [2, L], what each half chose
    delta: np.ndarray  # [L] its score minus the base


def best_heads(delta: np.ndarray, block: np.ndarray, greater_is_better: bool) -> Best:
    """The head with the best `delta` [H] of each block [H]; ties by index (tables 2 and 3 of Michel et al. 2019)."""
    gain = np.where(np.isnan(delta), -np.inf, delta if greater_is_better else -delta)
    layers = np.unique(block)
    heads = np.array([np.flatnonzero(block == layer)[gain[block == layer].argmax()] for layer in layers], int)
    return Best(layers, heads, delta[heads])


def held_out(halves: np.ndarray, block: np.ndarray, greater_is_better: bool) -> Best:
    """Chosen on one half of the examples, measured on the other, mean of both directions; `halves` [2, H] deltas.

    (Choosing on held-out data: table 5 of the appendix.)
    """
    first, second = (best_heads(half, block, greater_is_better) for half in halves)
    delta = (halves[1][first.head] + halves[0][second.head]) / 2
    return Best(first.layer, np.stack([first.head, second.head]), delta)
