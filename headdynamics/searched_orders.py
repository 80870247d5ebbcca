"""Orders that look at the model again: each takes a Situation and gives its wanted heads, first to go first.

Costs are in passes over the examples of I(h), for k heads. All of them judge a set of heads by the mean
loss over these examples, so a curve scored on others is a held-out test of the order.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from .devices import on_host
from .ranks import SharedOut, each, ranks_of
from .situation import Situation, importance_values


def oracle(situation: Situation) -> np.ndarray:
    """By the loss without each head alone, least harm first (section 4.2's oracle); k forward passes that share."""
    _, *harm = situation.mean_losses([[], *([head] for head in situation.wanted)])
    return situation.wanted[np.argsort(harm, kind="stable")]


def reestimated(situation: Situation, step: int | None = None, normalize: bool = True) -> np.ndarray:
    """By I(h), estimated anew after every `step` heads; default: a tenth of the heads, as the curve prunes them.

    Michel et al.'s released code calls this exact pruning. A layer's last head has a normalised I(h) of 1, so
    with `normalize` every layer keeps one head until most others are gone. k / step - 1 backward passes.
    """
    step = step or -(-len(situation.wanted) // 10)
    found, gone, left = situation.importance, np.array([], int), situation.wanted
    while True:
        values = importance_values(found, normalize)
        left = left[np.argsort(values[left], kind="stable")]
        gone, left = np.concatenate([gone, left[:step]]), np.sort(left[step:])
        if not len(left):
            return gone
        found = situation.reestimated(gone)


def fisher(situation: Situation) -> np.ndarray:
    """Greedily the head that adds least to E[(sum of s over all pruned heads)^2]; one backward pass.

    The second-order estimate of what pruning a set costs, with the empirical Fisher matrix E[s s'] as the
    Hessian and no first-order term, as at a minimum (Kwon et al. 2022, with all pairs of heads).
    """
    s = situation.sensitivity().signed[:, situation.wanted]
    matrix = s.T @ s / len(s)
    cost, order = matrix.diagonal().copy(), []
    for _ in cost:
        best = int(np.argmin(cost))
        order.append(best)
        cost += 2 * matrix[best]
        cost[best] = np.inf
    return situation.wanted[order]


def integrated(situation: Situation, levels: int = 8) -> np.ndarray:
    """By s integrated over all gates going from 0 to 1 together, the most harmful first; `levels` backward passes.

    The Aumann-Shapley value of each head, by the midpoint rule: the values add up to the loss with all wanted
    heads less the loss with none (integrated gradients, Sundararajan et al. 2017; for heads, Hao et al. 2021).
    """
    return situation.wanted[np.argsort(-integrated_values(situation, levels), kind="stable")]


def integrated_values(situation: Situation, levels: int) -> np.ndarray:
    """What each wanted head adds to the loss, [k]; negative: it helps."""
    at = (np.arange(levels) + 0.5) / levels
    return sum(situation.sensitivity(a).signed[:, situation.wanted].mean(0) / a for a in at) / levels


def shapley(situation: Situation, pairs: int = 1, seed: int = 0) -> np.ndarray:
    """By sampled Shapley values, the most harmful first; at most 2 x `pairs` x k forward passes.

    Shapley values as importance of heads: Held and Yang 2023.
    """
    return situation.wanted[np.argsort(-shapley_values(situation, pairs, seed), kind="stable")]


def shapley_values(situation: Situation, pairs: int, seed: int = 0, truncate: bool = True) -> np.ndarray:
    """What each wanted head adds to the loss on average over coalitions, [k], by permutation sampling.

    Every example walks `pairs` random permutations of its own, each also backwards (antithetic), taking heads
    away one by one. `truncate` ends a batch's walk where its mean loss reaches that of no wanted head at
    all, and counts the rest as 0 (Ghorbani and Zou 2019).
    """
    draw = np.random.default_rng(seed)

    def walks(rows: int) -> list[np.ndarray]:
        several = [np.tile(np.arange(len(situation.wanted)), (rows, 1))]
        for _ in range(pairs):
            several.append(draw.permuted(several[-1], axis=1))
        return several[1:]

    def added(drawn: tuple[Any, np.ndarray, list[np.ndarray]]) -> np.ndarray:
        batch, full, several = drawn
        none = _losses(situation, batch, situation.keep(situation.wanted)).mean()
        limit = none if truncate and none > full.mean() else np.inf
        both = (walk for forth in several for walk in (forth, forth[:, ::-1]))
        return np.sum([_walked(situation, batch, walk, full, limit) for walk in both], axis=0)

    with torch.no_grad():
        full = each(situation.batches, lambda batch: _losses(situation, batch, situation.keep([])))
        drawn = zip(situation.batches, full, [walks(len(rows)) for rows in full], strict=True)
        walked = each(SharedOut(drawn, ranks_of(situation.batches)), added)
    return np.asarray(sum(walked)) / (2 * pairs * sum(map(len, full)))


def _losses(situation: Situation, batch: Any, keep: torch.Tensor) -> np.ndarray:
    return on_host(situation.losses(batch, keep))


def _walked(situation: Situation, batch: Any, walk: np.ndarray, before: np.ndarray, limit: float) -> np.ndarray:
    """What each head added to the loss where its row's walk [B, k] took it away, summed over rows, [k].

    `before`: each row's loss [B] before the walk.
    """
    added = np.zeros(walk.shape[1])
    keep, rows = torch.ones(len(walk), len(situation.heads)), torch.arange(len(walk))
    for heads in walk.T:
        keep[rows, torch.as_tensor(situation.wanted[heads])] = 0
        after = _losses(situation, batch, keep)
        added += np.bincount(heads, weights=before - after, minlength=len(added))
        before = after
        if before.mean() >= limit:
            break
    return added


def greedy(situation: Situation, looks: int = 4) -> np.ndarray:
    """Always the head whose removal now raises the loss least; at most k x (1 + `looks`) forward passes.

    Lazy (Minoux 1978): what a head cost when last measured stands for what it costs now, as a head mostly
    costs more the more others are gone; at each step at most `looks` of the cheapest are measured again.
    """
    now, *alone = situation.mean_losses([[], *([head] for head in situation.wanted)])
    cost = {int(head): loss - now for head, loss in zip(situation.wanted, alone, strict=True)}
    order: list[int] = []
    while cost:
        fresh: dict[int, float] = {}
        for head in sorted(cost, key=lambda head: cost[head])[: looks if order else 0]:
            if fresh and min(fresh.values()) <= cost[head]:
                break
            fresh[head] = situation.mean_loss([*order, head]) - now
        cost |= fresh
        best = min(fresh or cost, key=lambda head: cost[head])
        now += cost.pop(best)
        order.append(best)
    return np.array(order)


def gates(situation: Situation, steps: int = 200, seed: int = 0) -> np.ndarray:
    """By learnt values, so that the mean loss is low when any number of heads, the lowest, is pruned.

    Differentiable subset pruning (Li, Cotterell and Sachan 2021) for all sizes at once, with the model frozen:
    each example draws a size and Gumbel noise and keeps the highest heads; their gradient is that of a sigmoid
    at the threshold whose sum is held fixed. `steps` batches forward and backward, as the batches come round.
    """
    count = len(situation.wanted)
    ranks = np.argsort(np.argsort(importance_values(situation.importance)[situation.wanted], kind="stable"))
    values = torch.tensor(ranks / max(count - 1, 1) * 2 - 1, dtype=torch.float32, requires_grad=True)
    if count > 1:
        _learn(situation, values, steps, torch.Generator().manual_seed(seed))
    return situation.wanted[np.argsort(values.detach().numpy(), kind="stable")]


def _learn(situation: Situation, values: torch.Tensor, steps: int, draw: torch.Generator) -> None:
    """Adam on `values` [k], its rate falling to 0."""
    wanted = torch.as_tensor(situation.wanted)
    optimizer = torch.optim.Adam([values], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    batches = itertools.cycle([(batch, _rows(situation, batch)) for batch in situation.batches])
    for batch, rows in itertools.islice(batches, steps):
        noisy = values.detach() - torch.empty(rows, len(values)).exponential_(generator=draw).log()
        size = torch.randint(1, len(values), (rows, 1), generator=draw)  # heads pruned
        ordered = noisy.sort(1).values
        threshold = (ordered.gather(1, size - 1) + ordered.gather(1, size)) / 2
        keep = torch.ones(rows, len(situation.heads))
        keep[:, wanted] = (noisy > threshold).float()
        with torch.enable_grad():
            keep.requires_grad_()
            felt = torch.autograd.grad(situation.losses(batch, keep).sum(), keep)[0][:, wanted]
        soft = torch.sigmoid(noisy - threshold)
        slope = soft * (1 - soft)
        middle = (slope * felt).sum(1, keepdim=True) / slope.sum(1, keepdim=True)
        values.grad = (slope * (felt - middle)).sum(0)
        optimizer.step()
        schedule.step()


def _rows(situation: Situation, batch: object) -> int:
    with torch.no_grad():
        return len(situation.losses(batch, situation.keep([])))
