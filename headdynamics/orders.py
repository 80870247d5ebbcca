"""Importance -> pruning order: head indices, [H], first to go first."""

from __future__ import annotations

import numpy as np

from .estimators import Importance


def prune_order(importance: Importance, normalize: bool = True) -> np.ndarray:
    """Least important first; ties by index (section 4.1). `normalize` divides by each layer's L2 norm."""
    return np.argsort(importance.normalized() if normalize else importance.mean, kind="stable")


def random_order(heads: int, seed: int) -> np.ndarray:
    """A seeded random order of `heads` heads: the baseline that any importance must beat."""
    return np.random.default_rng(seed).permutation(heads)
