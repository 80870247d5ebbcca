"""Situation: what a pruning order may be made from.

Shapes: H heads, k of them wanted, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .estimators import Importance, Positions, Sensitivity, importance, sensitivity, token_positions
from .gates import masked
from .heads import Heads
from .losses import Loss, cross_entropy
from .scores import mean_loss
from .sharing import shared_scores


@dataclass(frozen=True)
class Situation:
    """A model, the examples of I(h) with their loss, and I(h) itself: cheap orders need no more than the last.

    An order that searches measures the mean over `batches` of `loss`; never the score that the curve is drawn with.
    `wanted` [k]: the heads to be ordered; the others stay.
    """

    model: nn.Module
    heads: Heads
    batches: Iterable[Any]
    importance: Importance
    wanted: np.ndarray
    loss: Loss = cross_entropy
    positions: Positions = token_positions

    def keep(self, pruned: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Mask [H]: 0 for `pruned`, 1 for the rest."""
        keep = torch.ones(len(self.heads))
        keep[torch.as_tensor(np.array(pruned, dtype=np.int64))] = 0
        return keep

    def losses(self, batch: Any, keep: torch.Tensor) -> torch.Tensor:
        """Losses [B] of one batch under a mask [H] or [B, H]."""
        with masked(self.heads, keep):
            return self.loss(self.model, batch)

    def mean_loss(self, pruned: Sequence[int] | np.ndarray) -> float:
        """Mean loss over all examples without the heads `pruned`; one forward pass."""
        return self.mean_losses([pruned])[0]

    def mean_losses(self, several: Sequence[Sequence[int] | np.ndarray]) -> list[float]:
        """`mean_loss` for each; the passes share what each has in common with the first (see `sharing`)."""
        keeps = [self.keep(pruned) for pruned in several]
        found = shared_scores(self.model, self.heads, mean_loss(self.batches, self.loss), keeps)
        return [one.value for one in found]

    def reestimated(self, pruned: Sequence[int] | np.ndarray) -> Importance:
        """I(h) of the model without the heads `pruned`, which come out as 0; one backward pass."""
        with masked(self.heads, self.keep(pruned)):
            return importance(
                self.model, self.batches, self.loss, self.importance.estimator,
                heads=self.heads, positions=self.positions,
            )  # fmt: skip

    def sensitivity(self, level: float = 1.0) -> Sensitivity:
        """Each example's gradient by every gate, with all wanted gates at `level`; one backward pass."""
        keep = torch.ones(len(self.heads))
        keep[torch.as_tensor(self.wanted)] = level
        with masked(self.heads, keep):
            return sensitivity(self.model, self.heads, self.batches, self.loss, self.positions)


def importance_values(importance: Importance, normalize: bool = True) -> np.ndarray:
    """I(h) [H] as pruning sorts by it, least first; `normalize` divides by each layer's L2 norm."""
    values = importance.normalized() if normalize else importance.mean
    return -values if importance.estimator == "signed" else values  # there the most useful head is the most negative
