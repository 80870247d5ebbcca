"""How the cost of a snapshot grows: with examples, layers, heads, points and snapshots; each slope beside its formula.

python benchmarks/growth.py [--json FILE]

BERT with random weights, 128 wide, 6 layers of 4 heads unless a row says otherwise, 16 examples of 32 tokens a batch.
A slope is that of log(CPU time) over log(quantity), least squares: 1 is proportional, 0 is free. Work is counted, not
timed: multiply-adds as torch counts them, in units of one forward pass over the same examples. How it falls with the
number of ranks: ranks.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run_file import a_snapshot, grown
from side_by_side import DATA, Row, finish, seconds, told
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import headdynamics as hd

USUAL = {"examples": 32, "layers": 6, "heads": 4, "points": 11}
VALUES = {"examples": (16, 32, 64), "layers": (2, 4, 8), "heads": (2, 4, 8), "points": (3, 6, 11, 21)}


def bert(examples: int, layers: int, heads: int, **_: int) -> tuple[Any, list[Any]]:
    """A model and its batches; `heads` in each layer."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": layers, "num_attention_heads": heads}
    model = BertForSequenceClassification(BertConfig(**shape, vocab_size=100, attn_implementation="eager")).eval()
    ids = torch.randint(100, (16, 32))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(16) % 2}
    return model, [batch] * (examples // 16)


def importance(points: int, **shape: int) -> Callable[[], object]:
    """I(h)."""
    model, batches = bert(**shape)
    found = hd.find_heads(model)
    return lambda: hd.importance(model, batches, heads=found)


def curve(points: int, **shape: int) -> Callable[[], object]:
    """The curve of one order."""
    model, batches = bert(**shape)
    found, score = hd.find_heads(model), hd.accuracy(batches)
    fractions = np.linspace(0, 1, points)
    order = np.random.default_rng(0).permutation(len(found))
    return lambda: hd.pruning_curve(model, order, score, fractions, heads=found)


def ablation(points: int, **shape: int) -> Callable[[], object]:
    """Every head off in turn."""
    model, batches = bert(**shape)
    found, score = hd.find_heads(model), hd.accuracy(batches)
    return lambda: hd.ablate(model, score, heads=found)


def grows(what: str, make: Callable[..., Callable[[], object]], over: str, formula: str) -> Row:
    """A row of one sweep; the least of two times, for a slope is no ratio of neighbours."""
    times = []
    for value in VALUES[over]:
        call = make(**USUAL | {over: value})
        call()
        times.append(min(seconds(call) for _ in range(2)))
    return _row(what, VALUES[over], over if over != "heads" else "heads a layer", formula, times)


def _row(what: str, values: Sequence[int], over: str, formula: str, times: Sequence[float]) -> Row:
    slope = np.polyfit(np.log(values), np.log(times), 1)[0]
    shown = ", ".join(f"{1000 * t:,.0f}" for t in times)
    return told(
        f"{what}: time over {over}", formula, f"slope {slope:.2f} ({values[0]:,} to {values[-1]:,}: {shown} ms)"
    )


def works(what: str, make: Callable[..., Callable[[], object]], formula: str) -> Row:
    """A row of counted work."""
    model, batches = bert(**USUAL)
    with torch.no_grad():
        one = _multiply_adds(lambda: [model(**batch) for batch in batches])
    return told(f"{what}: work", formula, f"{_multiply_adds(make(**USUAL)) / one:.2f} forward passes")


class MultiplyAdds(TorchDispatchMode):
    """Counts those of every operation; torch's own counter hooks modules, and a hooked model shares nothing."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def _multiply_adds(call: Callable[[], object]) -> int:
    with MultiplyAdds() as counter:
        call()
    return counter.total


def written() -> Row:
    """One more snapshot in a file that has many."""
    values = (1_000, 2_500, 5_000, 10_000)
    with tempfile.TemporaryDirectory(dir=DATA if DATA.is_dir() else ".") as folder:
        times = [_one_more(Path(folder), snapshots) for snapshots in values]
    return _row("one more snapshot of 144 heads written", values, "snapshots in the file", "a + b x snapshots", times)


def _one_more(folder: Path, snapshots: int) -> float:
    recorder = grown(folder / f"{snapshots}.h5", snapshots)
    ready = iter([a_snapshot(snapshots + i) for i in range(1, 10)])
    best = min(seconds(lambda: recorder.write(next(ready))) for _ in range(9))
    recorder.close()
    return best


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    layers, heads, points = USUAL["layers"], USUAL["heads"], USUAL["points"]
    finish(
        [
            works("I(h)", importance, "forward, and backward to the contexts: 2"),
            works(f"curve of {points} points", curve, f"at most one pass a point, and one to prove it: {points + 1}"),
            works(
                f"ablation of {layers * heads} heads",
                ablation,
                f"half a pass a head, from its layer on: {1 + heads * layers // 2}; a whole one: {1 + heads * layers}",
            ),
            grows("I(h)", importance, "examples", "1: examples x 2 passes"),
            grows("I(h)", importance, "layers", "1: a pass is layers long"),
            grows("I(h)", importance, "heads", "0: every head in one pass"),
            grows("curve", curve, "examples", "1 and a constant: points x examples; to cut and to prove"),
            grows("curve", curve, "layers", "1"),
            grows("curve", curve, "heads", "0: points are fractions"),
            grows("curve", curve, "points", "1 and a constant: the same"),
            grows("ablation", ablation, "examples", "1"),
            grows("ablation", ablation, "layers", "2: heads x layers x half the layers"),
            grows("ablation", ablation, "heads", "1: one pass from its layer on"),
            written(),
        ]
    )


if __name__ == "__main__":
    main()
