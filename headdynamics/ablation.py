"""Ablation: the score without each head in turn, or with each head alone in its layer, and paired tests.

| what        | masked for head h                         | Michel, Levy and Neubig (2019)    |
|-------------|-------------------------------------------|-----------------------------------|
| one         | h                                         | section 3.2, table 1, figure 1    |
| all-but-one | every other head of h's attention block   | section 3.3, tables 2 and 3       |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from .best import Best, best_heads, held_out
from .heads import Heads, heads_in
from .names import unknown
from .ranks import SharedOut, ranks_of
from .scores import BatchScore, Score, Scores, check_score, value_of
from .sharing import scores_under, shared_scores
from .significance import NO_TEST, RESAMPLES, paired_tests, scipy_stats
from .stopping import Stopped, stopped

WHAT = ("one", "all-but-one")


@dataclass(frozen=True)
class Ablation:
    """What each of H heads does to a score. Arrays are float64 [H]; NaN is missing.

    `base`: the whole model's score; `score`: with the heads masked; `delta`: score - base. `stderr`, `low` and
    `high` (95%), `pvalue` (uncorrected) and `effect` are of `delta`: see `significance.PairedTest`; all NaN, with
    test "none" and n 0, where the score is a plain number that tells nothing of its examples. `halves`: [2, H],
    delta on the even and on the odd examples. `block`: [H], the attention block (layer) that a head is in.
    `examples`: int [H], how many of the n a head was evaluated on: fewer only where `ablate` was told to stop; its
    `delta`, and the test, are then of these, and its `score` is base + delta. A `delta` that stopped early because it
    was significant was chosen for being large: on average it overstates the effect, and its interval, which knows
    nothing of the looks, is too narrow. For sizes rather than for significance evaluate all examples.
    """

    what: str
    base: float
    score: np.ndarray
    delta: np.ndarray
    stderr: np.ndarray
    pvalue: np.ndarray
    low: np.ndarray
    high: np.ndarray
    effect: np.ndarray
    halves: np.ndarray
    block: np.ndarray
    test: str
    greater_is_better: bool
    n: int
    examples: np.ndarray

    def best(self) -> Best:
        """The best head of each layer, chosen on the same examples as its `delta`: it flatters that head.

        Raises:
            ValueError: heads were evaluated on different examples.

        """
        self._comparable()
        return best_heads(self.delta, self.block, self.greater_is_better)

    def held_out(self) -> Best:
        """The best head of each layer, chosen on one half of the examples and measured on the other, and back.

        Raises:
            ValueError: heads were evaluated on different examples.

        """
        self._comparable()
        return held_out(self.halves, self.block, self.greater_is_better)

    def _comparable(self) -> None:
        if len(np.unique(self.examples)) > 1:
            raise ValueError(
                f"heads were evaluated on {self.examples.min()} to {self.examples.max()} examples, and the best of "
                "such deltas is no best head: ablate without stop"
            )


def ablate(
    model: nn.Module,
    score: Score,
    what: str = "one",
    *,
    heads: Heads | None = None,
    test: str = "auto",
    resamples: int = RESAMPLES,
    seed: int = 0,
    stop: float | None = None,
) -> Ablation:
    """Score `model` H + 1 times, in the mode it is in: whole, then with the heads of `what` masked for each head.

    The H + 1 scores share what they have in common, batch by batch, where `score` is made of batches (see `sharing`).
    `test`, `resamples` and `seed`: see `significance.paired_test`. `stop`: a level of significance at which each head's
    evaluation ends once its test has decided (see `stopping`); default: every head is evaluated on all examples.

    Raises:
        ValueError: `what` is neither "one" nor "all-but-one"; `stop` is no level, or the score is not made of batches;
            or see `paired_test`.
        HeadsError: see `find_heads`.
        ImportError: the tests need scipy, and it is missing.

    """
    check_ablations([what])
    check_score(score)
    heads = heads_in(model, heads)
    up = bool(getattr(score, "greater_is_better", True))
    if stop is not None:
        found = _until_decided(model, heads, score, _masks(heads, what), stop, test, resamples, seed)
        return _told(what, found, heads, up)
    scores = scores_under(model, heads, score, ablation_masks(heads, what))
    return ablation_of(what, scores, heads, up, test, resamples, seed)


def ablation_masks(heads: Heads, what: str) -> list[torch.Tensor]:
    """H + 1 masks [H]: of the whole model, then of each head's run."""
    return [torch.ones(len(heads)), *_masks(heads, what)]


def ablation_of(
    what: str,
    scores: Sequence[Scores | float],
    heads: Heads,
    greater_is_better: bool,
    test: str = "auto",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ablation:
    """What the scores under `ablation_masks` tell; `test`, `resamples` and `seed`: see `ablate`."""
    base, *results = scores
    found = [one for one in results if isinstance(one, Scores)]
    if not isinstance(base, Scores) or len(found) < len(results):
        values = np.array([value_of(one) for one in results])
        return _untested(what, value_of(base), values, heads.block, greater_is_better)
    tests = paired_tests(base, found, test, resamples, seed)
    stopped_at_end = [Stopped(base, one, its) for one, its in zip(found, tests, strict=True)]
    return _told(what, stopped_at_end, heads, greater_is_better)


def _until_decided(
    model: nn.Module,
    heads: Heads,
    score: Score,
    masks: torch.Tensor,
    level: float,
    test: str,
    resamples: int,
    seed: int,
) -> list[Stopped]:
    if not 0 < level < 1:
        raise ValueError(f"stop is a level of significance between 0 and 1, such as 0.01, not {level}")
    if not isinstance(score, BatchScore):
        raise ValueError("an evaluation that stops needs a score made of batches, such as hd.accuracy(batches)")
    ranks = ranks_of(score.batches)

    def measure(batches: Sequence[Any], which: Sequence[int]) -> list[Scores]:
        part = replace(score, batches=SharedOut(batches, ranks))
        return shared_scores(model, heads, part, [torch.ones(len(heads)), *masks[which]])

    return stopped(list(score.batches), measure, len(masks), level, test=test, resamples=resamples, seed=seed)


def _told(what: str, found: Sequence[Stopped], heads: Heads, greater_is_better: bool) -> Ablation:
    base = max((one.base for one in found), key=lambda base: base.n)
    columns = {
        name: np.array([getattr(one.test, name) for one in found])
        for name in ("delta", "stderr", "pvalue", "low", "high", "effect")
    }
    values = [one.score.value if one.score.n == base.n else base.value + one.test.delta for one in found]
    halves = np.array([[_part(one.score, i) - _part(one.base, i) for one in found] for i in range(2)])
    return Ablation(
        what, base.value, np.array(values), **columns, halves=halves, block=heads.block, test=found[0].test.test,
        greater_is_better=greater_is_better, n=base.n, examples=np.array([one.score.n for one in found]),
    )  # fmt: skip


def check_ablations(ablations: Sequence[str]) -> None:
    """ValueError where one is neither "one" nor "all-but-one", or comes twice; ImportError without scipy."""
    if isinstance(ablations, str):
        raise ValueError(f"ablations are a list: write [{ablations!r}]")
    for what in ablations:
        if what not in WHAT:
            raise ValueError(unknown("ablation", what, WHAT))
    if len(set(ablations)) != len(ablations):
        raise ValueError(f"the same ablation twice: {', '.join(ablations)}")
    if ablations:
        scipy_stats()


def _masks(heads: Heads, what: str) -> torch.Tensor:
    """[H, H]: the mask of each head's run."""
    itself = torch.eye(len(heads))
    if what == "one":
        return 1 - itself
    block = torch.as_tensor(heads.block)
    return (block != block[:, None]).float() + itself


def _part(scores: Scores, half: int) -> float:
    if scores.n < 2:  # nothing is left for the other half
        return float("nan")
    return Scores(scores.stats[half::2], scores.aggregate).value


def _untested(what: str, base: float, values: np.ndarray, block: np.ndarray, greater_is_better: bool) -> Ablation:
    missing = np.full(len(values), np.nan)
    return Ablation(
        what, base, values, values - base, missing, missing, missing, missing, missing,
        np.stack([missing, missing]), block, NO_TEST, greater_is_better, 0, np.zeros(len(values), int),
    )  # fmt: skip
