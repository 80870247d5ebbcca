"""Ablating every head against one masked pass per head over the same batches: the same bits at half the cost.

python benchmarks/ablation.py [--json FILE]                                  # about 180 s on one core

A model of 12 layers x 12 heads, 384 wide, with random weights. A turn times the pass that is remembered, and one head
in each of a few layers (evenly spread, so that their mean depth is that of all layers); it counts the former once and
the latter for all 144 heads, against 145 masked passes: passes alone, without finding heads, proofs and tests. Two
kinds of batches: 16 rows of 128 tokens for both; and real sentences, for the masked passes as they come, padded to the
longest of their batch as peers do, for ours sorted by length. MiniLM's ablation of its 72 heads is run whole,
`hd.ablate` with all that belongs to it against a loop of 73 masked passes by turns, and compared to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sentences import batched, drawn, encoded, minilm
from side_by_side import Row, at_least, finish, seconds, told

import headdynamics as hd
from headdynamics.scores import Scores
from headdynamics.sharing import remembered

BATCH, LENGTH, SENTENCES = 16, 128, 256


def bert() -> tuple[Any, Any]:
    """12 layers of MiniLM's width with random weights, and one batch of random tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_attention_heads=12, intermediate_size=1536, num_hidden_layers=12)
    ids = torch.randint(1000, 20000, (BATCH, LENGTH))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(BATCH) % 2}
    return BertForSequenceClassification(config).eval(), batch


def without(heads: hd.Heads, head: int) -> torch.Tensor:
    """The mask of all heads but one."""
    keep = torch.ones(len(heads))
    keep[head] = 0
    return keep


def passes(model: Any, heads: hd.Heads, score: Any, several: Sequence[int]) -> list[Scores]:
    """One masked pass per head."""
    found = []
    for head in several:
        with hd.masked(heads, without(heads, head)):
            found.append(score(model))
    return found


def turn(model: Any, twin: Any, ours: Any, theirs: Any, several: Sequence[int]) -> tuple[float, float, float]:
    """Seconds of the remembered pass, of the passes without these heads, and of masked passes of the twin."""
    heads, its_heads = hd.find_heads(model), hd.find_heads(twin)
    first = rest = whole = 0.0
    with torch.no_grad(), remembered(model, heads) as memory:
        for mine, its in zip(ours.batches, theirs.batches, strict=True):
            memory.forget()
            memory.mask(torch.ones(len(heads)))
            first += seconds(partial(ours.measure, model, mine))
            for head in several:
                with hd.masked(its_heads, without(heads, head)):
                    whole += seconds(partial(theirs.measure, twin, its))
                memory.mask(without(heads, head))
                rest += seconds(partial(ours.measure, model, mine))
    return first, rest, whole


def speedups(model: Any, ours: Any, theirs: Any, layers: Sequence[int], rounds: int) -> np.ndarray:
    """Time of a masked pass per head over that of sharing, for all heads, [rounds]."""
    twin, heads = copy.deepcopy(model), len(hd.find_heads(model))
    several, ratios = [12 * layer + layer for layer in layers], []
    for _ in range(rounds + 1):
        first, rest, whole = turn(model, twin, ours, theirs, several)
        ratios.append(whole / len(several) * (heads + 1) / (first + rest / len(several) * heads))
    return np.array(ratios[1:])  # the first warms up


def minilm_whole() -> list[Row]:
    """All 72 heads, with as many masked passes, by turns."""
    model, tokenizer = minilm()
    heads = hd.find_heads(model)
    score = hd.mean_loss(batched(tokenizer, encoded(tokenizer, drawn(16), by_length=True), 8))
    found: dict[str, Any] = {}

    def theirs() -> None:
        score(model)
        found["theirs"] = passes(model, heads, score, range(len(heads)))

    def ours() -> None:
        found["ours"] = hd.ablate(model, score)

    turns = [seconds(call) for call in (theirs, ours, ours, theirs)]
    same = found["ours"].score.tobytes() == np.array([one.value for one in found["theirs"]]).tobytes()
    figure = f"{(turns[0] + turns[3]) / (turns[1] + turns[2]):.2f}x, {'the same bits' if same else 'NOT THE SAME BITS'}"
    return [told("hd.ablate whole, MiniLM (6 x 12 heads), 16 sentences", "73 masked passes, two turns", figure)]


def main() -> None:
    torch.set_num_threads(1)
    model, batch = bert()
    _, tokenizer = minilm()
    even = hd.mean_loss([batch])
    as_they_come, by_length = (
        hd.mean_loss(batched(tokenizer, encoded(tokenizer, drawn(SENTENCES), by_length=way), BATCH))
        for way in (False, True)
    )
    tokens = [sum(batch["input_ids"].numel() for batch in score.batches) for score in (as_they_come, by_length)]
    rows = [
        at_least(
            "passes of a single-head ablation of every head, 12 layers x 12 heads, 16 x 128 tokens",
            "one masked pass per head over the same batches", 1.85, speedups(model, even, even, (1, 4, 7, 10), 4),
        ),
        at_least(
            f"the same, {SENTENCES} sentences sorted by length", "masked passes over unsorted padded batches",
            2.8, speedups(model, by_length, as_they_come, (3, 8), 2),
        ),
        told("tokens with padding, sentences as they come", "sorted by length", f"{tokens[0] / tokens[1]:.2f}x"),
    ]  # fmt: skip
    rows += minilm_whole()
    finish(rows)


if __name__ == "__main__":
    main()
