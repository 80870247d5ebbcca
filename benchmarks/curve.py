"""The pruning curve against 11 masked passes over padded batches: the same numbers at a part of the cost.

python benchmarks/curve.py [--json FILE]                                # MiniLM on Rotten Tomatoes sentences, 150 s

The masked passes go over sentences as they come, each batch padded to its longest, as a collator does. The curve takes
heads really out (proved on the last batch; the proof is in its time), over the same sentences sorted by length. Both
end in the mean loss, whose largest difference is told. All ways take turns, and who goes first changes.
"""

from __future__ import annotations

import numpy as np
import torch
from sentences import batched, drawn, encoded, minilm
from side_by_side import at_least, finish, seconds, spread, told

import headdynamics as hd
from headdynamics.keep import keep_mask
from headdynamics.orders import random_order

SENTENCES, BATCH, ROUNDS = 256, 32, 3


def masked_passes(model, heads, order, score):
    """The scores [11] of the curve."""
    found = []
    for fraction in hd.TENTHS:
        with hd.masked(heads, keep_mask(order, fraction, len(heads))):
            found.append(score(model).value)
    return found


def sentence_curve():
    model, tokenizer = minilm()
    heads = hd.find_heads(model)
    order = random_order(len(heads), 1)
    padded, by_length = (
        hd.mean_loss(batched(tokenizer, encoded(tokenizer, drawn(SENTENCES), by_length=way), BATCH))
        for way in (False, True)
    )
    half, points, found = keep_mask(order, 0.5), len(hd.TENTHS), {}

    def peers():
        found["masked"] = masked_passes(model, heads, order, padded)

    def ours():
        found["removed"] = hd.pruning_curve(model, order, by_length, heads=heads).score

    def sorted_pass():
        with hd.masked(heads, half):
            by_length(model)

    full = [tokenizer.pad(encoded(tokenizer, drawn(16)), padding="max_length", max_length=128, return_tensors="pt")]
    ways = [peers, ours, sorted_pass, lambda: hd.mean_loss(full)(model)]
    sorted_pass()  # warms up
    times = np.empty((ROUNDS, len(ways)))
    for i in range(ROUNDS):
        for way in (range(len(ways)), reversed(range(len(ways))))[i % 2]:
            times[i, way] = seconds(ways[way])
    masked_time, removed_time, sorted_time = times[:, 0], times[:, 1], times[:, 2] * points
    fixed_time = times[:, 3] * SENTENCES / 16 * points
    gap = np.abs(found["removed"] - found["masked"]).max()
    against = "11 masked passes, padded batches"
    return [
        at_least(f"11-point curve, MiniLM, {SENTENCES} sentences", against, 1.9, masked_time / removed_time),
        told("of this, heads removed", "masked, sorted batches", spread(sorted_time / removed_time)),
        told("of this, sorted by length", against, spread(masked_time / sorted_time)),
        told(
            "the same curve", "11 passes at a fixed length of 128 tokens, by 16 sentences",
            spread(fixed_time / removed_time, digits=1),
        ),
        told("largest difference of the mean loss", "masked", f"{gap:.1e} of {found['masked'][0]:.3f}"),
    ]  # fmt: skip


def main():
    torch.set_num_threads(1)
    finish(sentence_curve())


if __name__ == "__main__":
    main()
