"""The pruning curve against 11 masked passes over padded batches: the same numbers at a part of the cost.

python benchmarks/curve.py                                              # MiniLM on Rotten Tomatoes sentences, 150 s
python benchmarks/curve.py --checkpoint RUN/checkpoint_best.pt          # and BLEU of a fairseq translation model

The masked passes go over sentences as they come, each batch padded to its longest, as a collator does. The curve takes
heads really out (proved on the first batch; the proof is in its time), over the same sentences sorted by length. Both
end in the mean loss, whose largest difference is told.
"""

from __future__ import annotations

import argparse
from pathlib import Path

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

    sorted_pass()  # warms up
    times = np.array([[seconds(way) for way in (peers, ours, sorted_pass)] for _ in range(ROUNDS)])
    masked_time, removed_time, sorted_time = times[:, 0], times[:, 1], times[:, 2] * points
    full = [tokenizer.pad(encoded(tokenizer, drawn(16)), padding="max_length", max_length=128, return_tensors="pt")]
    fixed = seconds(lambda: hd.mean_loss(full)(model)) * SENTENCES / 16 * points
    gap = np.abs(found["removed"] - found["masked"]).max()
    against = "11 masked passes, padded batches"
    return [
        at_least(f"11-point curve, MiniLM, {SENTENCES} sentences", against, 1.9, masked_time / removed_time),
        told("of this, heads removed", "masked, sorted batches", spread(sorted_time / removed_time)),
        told("of this, sorted by length", against, spread(masked_time / sorted_time)),
        told("the same curve", "11 passes at a fixed length of 128 tokens", f"{fixed / np.median(removed_time):.1f}x"),
        told("largest difference of the mean loss", "masked", f"{gap:.1e} of {found['masked'][0]:.3f}"),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a fairseq translation model on DATA/bin.de-en")
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    parser.parse_args()
    torch.set_num_threads(1)
    rows = sentence_curve()
    finish(rows)


if __name__ == "__main__":
    main()
