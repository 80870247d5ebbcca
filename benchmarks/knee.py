"""The knee by bisection against the 11-point curve and against every count of heads: evaluations, time, and the answer.

python benchmarks/knee.py

MiniLM, trained for a moment on Rotten Tomatoes sentences; the score is the loss on others, sorted by length. All ways
really remove heads. The mean loss of every count tells where the tolerance is first exceeded: the knee, which wants to
be sure, comes before that.
"""

from __future__ import annotations

import numpy as np
import torch
from sentences import batched, drawn, encoded, minilm
from side_by_side import by_turns, finish, seconds, spread, told

import headdynamics as hd
from headdynamics.keep import without_first
from headdynamics.points import scores_without

STEPS, SCORED, BATCH, TOLERANCE = 30, 64, 8, 0.1


def trained_model():
    """MiniLM after a few dozen steps of AdamW on sentiment."""
    model, tokenizer = minilm()
    examples = encoded(tokenizer, drawn(STEPS * 16, "train"))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    for batch in batched(tokenizer, examples, 16):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model, tokenizer


def main():
    torch.set_num_threads(1)
    model, tokenizer = trained_model()
    heads = hd.find_heads(model)
    batches = batched(tokenizer, encoded(tokenizer, drawn(SCORED), by_length=True), BATCH)
    order = hd.prune_order(hd.importance(model.eval(), batches[::3], heads=heads))
    loss = hd.mean_loss(batches)
    knees = []

    def knee():
        knees.append(hd.find_knee(model, order, loss, TOLERANCE, heads=heads))

    def curve():
        hd.pruning_curve(model, order, loss, heads=heads)

    ratios = by_turns(knee, curve, 2)
    every, found = [], knees[0]
    keeps = [without_first(order, count) for count in range(len(order) + 1)]
    before = seconds(knee)
    every_time = seconds(lambda: every.extend(scores_without(model, heads, loss, keeps)))
    knee_time = (before + seconds(knee)) / 2  # one before and one after
    values = np.array([one.value for one in every])
    beyond = np.flatnonzero(values > values[0] * (1 + TOLERANCE))
    limit = int(beyond[0]) - 1 if len(beyond) else len(order)
    what = f"knee, MiniLM, {SCORED} sentences, loss, tolerance {TOLERANCE:.0%}, confidence 95%"
    answer = f"{found.pruned} of {found.heads} heads: {found.evaluations} evaluations, {found.passes:.1f} passes"
    finish(
        [
            told(what, "found", answer),
            told("time", "11-point curve (11 evaluations)", spread(ratios)),
            told("time", f"all {len(values)} counts", f"{every_time / knee_time:.1f}x less"),
            told("largest count before the mean loss exceeds the tolerance", "each tried", f"{limit} of {len(order)}"),
            told("accuracy", "whole model", f"{hd.accuracy(batches)(model).value:.2f}"),
        ]
    )


if __name__ == "__main__":
    main()
