"""What I(h) costs: against one plain forward+backward over the same batches, and how that grows.

python benchmarks/importance.py [--json FILE]

MiniLM (6 x 12 heads) in eval mode on the same real sentences, both on one thread by CPU time. The plain pass is what
training does: zero_grad, the mean of the same losses, backward. I(h) computes no gradient of a weight, and none below
the first layer's contexts: of the three thirds of a plain pass (forward, gradients of activations, gradients of
weights) two stay. How it grows is told for random weights of other depths and lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sentences import batched, drawn, encoded, minilm
from side_by_side import Row, at_most, by_turns, finish, seconds, spread, told

import headdynamics as hd
from headdynamics.losses import cross_entropy

SENTENCES = 64


def plain(model: Any, batches: list[Any]) -> Callable[[], None]:
    """One forward and backward over the batches."""

    def run() -> None:
        for batch in batches:
            model.zero_grad()
            cross_entropy(model, batch).mean().backward()

    return run


def forward(model: Any, batches: list[Any]) -> Callable[[], None]:
    """One forward over the batches, as a point of a curve takes it."""

    def run() -> None:
        with torch.no_grad():
            for batch in batches:
                model(**batch)

    return run


def measured(model: Any, batches: list[Any], estimator: str = "example") -> Callable[[], Any]:
    """I(h) over the batches."""
    heads = hd.find_heads(model)
    return lambda: hd.importance(model, batches, estimator=estimator, heads=heads)


def bert(layers: int, length: int, examples: int) -> tuple[Any, list[Any]]:
    """MiniLM's shape with random weights, and random tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_attention_heads=12, intermediate_size=1536, num_hidden_layers=layers)
    ids = torch.randint(1000, 20000, (16, length))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(0, 2, (16,))}
    return BertForSequenceClassification(config).eval(), [batch] * (examples // 16)


def milliseconds(layers: int, length: int, examples: int) -> float:
    """Of I(h) an example: the least of three."""
    model, batches = bert(layers, length, examples)
    run = measured(model, batches)
    return 1000 * min(seconds(run) for _ in range(3)) / examples


def growth(what: str, values: str, points: list[tuple[int, int, int]]) -> Row:
    """One row of (layers, length, examples)."""
    return told(f"I(h), time an example: {what}", values, ", ".join(f"{milliseconds(*p):.1f} ms" for p in points))


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    model, tokenizer = minilm()
    batches = batched(tokenizer, encoded(tokenizer, drawn(SENTENCES), by_length=True), 32)
    base = plain(model, batches)
    against = "one plain forward+backward over the same batches"
    rows = [
        at_most("I(h), `example`", against, 0.75, by_turns(measured(model, batches), base)),
        told("I(h), `token`", against, spread(by_turns(measured(model, batches, "token"), base, 3))),
        told("a forward pass alone", against, spread(by_turns(forward(model, batches), base, 3))),
        growth("6 layers, 32 tokens", "16, 32, 64 examples", [(6, 32, n) for n in (16, 32, 64)]),
        growth("32 tokens", "3, 6, 12 layers", [(n, 32, 16) for n in (3, 6, 12)]),
        growth("6 layers", "32, 64, 128 tokens", [(6, n, 16) for n in (32, 64, 128)]),
    ]
    finish(rows)


if __name__ == "__main__":
    main()
