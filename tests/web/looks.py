"""A run that looks like a training: three kinds of heads that find their places."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from runs import ORDERS
from torch import nn

from headdynamics.curve import TENTHS, Curve
from headdynamics.estimators import Importance
from headdynamics.heads import Attention, Heads
from headdynamics.snapshot import Run, Snapshot

LAYERS, NUMBERS, KINDS = 3, 4, ("encoder", "decoder", "cross")
HEADS = LAYERS * NUMBERS * len(KINDS)


def run(**more) -> Run:
    linear = nn.Linear(1, 1)
    blocks = [
        Attention(f"{kind}.{layer}", linear, linear, NUMBERS, kind, layer, kind == "decoder")
        for kind in KINDS
        for layer in range(LAYERS)
    ]
    given = dict(
        heads=Heads(tuple(blocks)), framework="torch", model="Transformer", metric="bleu", greater_is_better=True,
        estimator="example", fractions=TENTHS, orders=ORDERS, signature={"hash": "b" * 64},
    )  # fmt: skip
    return Run(**{**given, **more})


def mean(update: int, seed: int = 0) -> np.ndarray:
    """[H] I(h): at first one ranking, at the end another, between them a mixture."""
    first, last = np.random.default_rng(seed).uniform(0.01, 1, (2, HEADS))
    share = min(update / 500, 1)
    return (1 - share) * first + share * last


def snapshot(update: int, seed: int = 0, **more) -> Snapshot:
    row = mean(update, seed)
    blocks = row + np.random.default_rng([seed, update]).normal(0, 0.05, (10, HEADS))
    found = Importance(row, row / 10, -row, blocks, 100, 3.0, "example", np.arange(HEADS) // NUMBERS)
    tenths, score = np.array(TENTHS), 20 + update / 100
    fall = {name: np.clip(1 - tenths**2 - 0.1 * place * tenths, 0, 1) for place, name in enumerate(ORDERS)}
    curves = {name: Curve(tenths, score * left, np.full(11, 0.25), 60) for name, left in fall.items()}
    given = dict(update=update, epoch=update / 100, seconds=1.5, importance=found, curves=curves)
    return Snapshot(**{**given, **more})


def ablation() -> SimpleNamespace:
    """Head 0 does harm and head 1 much good, beyond chance; the others do nothing."""
    delta, pvalue = np.zeros(HEADS), np.full(HEADS, 0.5)
    delta[:2], pvalue[:2] = (1, -5), 1e-5
    return SimpleNamespace(
        score=30 + delta, delta=delta, stderr=np.full(HEADS, 0.1), pvalue=pvalue, halves=np.stack([delta, delta]),
        test="mcnemar",
    )  # fmt: skip
