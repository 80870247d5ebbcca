"""Snapshot: one visit's measurements, frozen.

    trainer step ... step -> event --schedule says now--+
                                                        v
      still(model):   heads -> gates -> importance -> order -> curve [-> ablations] -> Snapshot
                                                        |
                                         recorders: run file, TensorBoard, memory
                                                        v
    trainer saves its checkpoint, goes on: same bits as without us
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .ablation import Ablation
from .curve import Curve
from .estimators import Importance
from .heads import Heads
from .knee import Knee

OK = "ok"


def status_of(found: Importance) -> str:
    """`ok`, or why these numbers are not to be used: an example's loss is NaN or infinite, so no mean is a number."""
    return OK if math.isfinite(found.loss) else f"not finite: the mean loss is {found.loss:g}"


@dataclass(frozen=True)
class Snapshot:
    """What one visit measured. A failed visit has a `status` that says why, and no measurements.

    Where the model's own loss is not finite the `status` says so, and what was measured is kept.
    """

    update: int  # the key: optimizer steps done
    epoch: float  # epochs done
    seconds: float = float("nan")  # what the visit took
    status: str = OK
    importance: Importance | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)  # order -> curve
    checkpoint: str = ""  # the file that holds these weights; "" where none does
    ablations: Mapping[str, Ablation] = field(default_factory=dict)  # one, all-but-one
    knees: Mapping[str, Knee] = field(default_factory=dict)  # order -> knee

    @property
    def score(self) -> float:
        """The unpruned score: every order's curve begins there."""
        curve = next(iter(self.curves.values()), None)
        return float(curve.score[0]) if curve is not None and curve.fraction[0] == 0 else float("nan")


@dataclass(frozen=True)
class Run:
    """What stays the same from snapshot to snapshot; what a recorder needs to begin."""

    heads: Heads
    framework: str  # fairseq | transformers | torch
    model: str  # class name
    metric: str
    greater_is_better: bool
    estimator: str
    fractions: tuple[float, ...]
    orders: tuple[str, ...]
    signature: Mapping[str, Any]
