"""Memory: the peak of a snapshot's parts against the peak of a training step, both beyond the training at rest.

python benchmarks/memory.py [--json FILE]         # Linux; about 2 minutes

MiniLM (6 x 12 heads, 384 wide), 16 texts of 128 tokens, float32, one thread. Each part runs in a process of its own:
training steps (forward, backward, AdamW; gradients freed, as a Trainer leaves them when a callback is called), then by
turns one more step and the part. A peak is resident memory as Linux counts it, from a reset (`clear_refs`) to the end
of the call, minus what was resident before it: weights and the optimizer's state. Weights are cloned first: those of a
file that is only mapped would count for whoever reads them.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentences import drawn, minilm
from side_by_side import at_most, finish, spread

import headdynamics as hd
from headdynamics.stillness import still

BATCH, LENGTH, BATCHES = 16, 128, 2


def texts(tokenizer: Any) -> list[dict[str, torch.Tensor]]:
    """Batches without padding: sentences joined until they fill a row."""
    rows = [text for _, text in drawn(BATCH * BATCHES * 12)]
    joined = [" ".join(rows[i : i + 12]) for i in range(0, len(rows), 12)]
    tokens = tokenizer(joined, truncation=True, max_length=LENGTH, return_tensors="pt", return_token_type_ids=False)
    assert tokens["attention_mask"].all() and tokens["input_ids"].shape[1] == LENGTH
    columns = {**tokens, "labels": torch.arange(len(joined)) % 2}
    return [{name: c[i : i + BATCH] for name, c in columns.items()} for i in range(0, len(joined), BATCH)]


def peak(call: Callable[[], object]) -> int:
    """Bytes beyond what is resident before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed must not serve the call
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def importance(model: Any, batches: list[Any]) -> object:
    """I(h) of the batches."""
    return hd.importance(model, batches)


def curve(model: Any, batches: list[Any]) -> object:
    """The 11 points of one order over the batches."""
    return hd.pruning_curve(model, np.arange(len(hd.find_heads(model))), hd.accuracy(batches))


def ablation(model: Any, batches: list[Any]) -> object:
    """Every head of the model switched off in turn, over one batch."""
    return hd.ablate(model, hd.accuracy(batches[:1]))


PARTS = {importance: 5, curve: 3, ablation: 1}  # -> rounds


def measured(part: Callable[[Any, list[Any]], object], rounds: int) -> np.ndarray:
    """Peaks in bytes, [rounds, 2]: of the part, of a training step."""
    torch.set_num_threads(1)
    model, tokenizer = minilm()
    model.train()
    for weight in model.parameters():
        weight.data = weight.data.clone()
    batches, optimizer = texts(tokenizer), torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(**batches[0]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def visit() -> None:
        with still(model):
            part(model, batches)

    for _ in range(2):
        step()
    return np.array([(peak(visit), peak(step)) for _ in range(rounds)])


def main() -> None:
    """Measure and print."""
    rows = []
    for part, rounds in PARTS.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            mine, training = pool.apply(measured, (part, rounds)).T
        against = f"a training step: {spread(training / 1e6, ' MB', 0)}"
        rows.append(at_most(f"peak memory of a snapshot's {part.__name__}", against, 1, mine / training))
    finish(rows)


if __name__ == "__main__":
    main()
