"""Unit costs for docs/at_scale.md: what a token, a weight and a row cost here, to be carried over to larger machines.

python benchmarks/at_scale.py [--json FILE]

Two layers of Pythia-6.9B's shape (4096 wide, 32 heads, 16384 in between) with random weights, float32, on one thread by
CPU time, beside a plain matrix product of the same sizes: what share of it a pass reaches. A file of weights is read
from the disk's cache into a model that stands. Rows have 1,024 heads, 4 orders of 11 points and both ablations.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import ROOT, Row, by_turns, finish, seconds, spread, told

import headdynamics as hd
from headdynamics.ablation import Ablation
from headdynamics.record.hdf5 import HDF5Recorder

sys.path.append(str(ROOT / "tests/core"))
from runs import ORDERS, a_run, a_snapshot

LAYERS, WIDTH, TOKENS = 2, 4096, 64


def pythia() -> tuple[Any, dict[str, torch.Tensor]]:
    """Two of its layers with a small vocabulary, and a batch of one text."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=512, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=32, intermediate_size=16384
    )
    ids = torch.randint(0, 512, (1, TOKENS))
    return GPTNeoXForCausalLM(config).eval(), {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def compute(model: Any, batch: dict[str, torch.Tensor]) -> list[Row]:
    """Speed of a forward pass beside that of a matrix product, and what else costs in forward passes."""
    weights = sum(p.numel() for p in model.gpt_neox.layers.parameters())
    heads, score = hd.find_heads(model), hd.mean_loss([batch])

    def forward() -> None:
        score(model)

    def plain() -> None:
        model.zero_grad()
        model(**batch).loss.backward()

    left, right = torch.randn(TOKENS, WIDTH), torch.randn(WIDTH, 4 * WIDTH)
    product = min(seconds(lambda: left @ right) for _ in range(5))
    peak = 2 * TOKENS * WIDTH * 4 * WIDTH / product / 1e9
    one = min(seconds(forward) for _ in range(3))
    speed = 2 * weights * TOKENS / one / 1e9
    shape = f"{LAYERS} layers of Pythia-6.9B, {weights / 1e6:.0f}M weights, {TOKENS} tokens"
    token = f"{speed:.1f} GFLOP/s, {1000 * one / TOKENS:.1f} ms a token"
    ranked = by_turns(lambda: hd.importance(model, [batch], heads=heads), forward, 3)
    return [
        told("a matrix product", f"[{TOKENS}, {WIDTH}] x [{WIDTH}, {4 * WIDTH}]", f"{peak:.1f} GFLOP/s"),
        told("a forward pass, 2 FLOP a weight and token", shape, token),
        told("a forward and backward pass", "a forward pass", spread(by_turns(plain, forward, 3))),
        told("I(h)", "a forward pass", spread(ranked)),
    ]


def loading(model: Any) -> Row:
    """Reading a file of weights into the model."""
    from safetensors.torch import load_model, save_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(model, path)
        size = path.stat().st_size / 1e9
        took = [seconds(lambda: load_model(model, path), time.perf_counter) for _ in range(3)]
    return told("weights into a model", f"a file of {size:.2f} GB, cached", spread(size / np.array(took), " GB/s"))


def row_size() -> Row:
    """What a snapshot adds to the run file."""
    heads = 1024
    some, whole = np.zeros(heads), np.zeros(heads, int)
    ablation = Ablation("one", 0.0, *[some] * 7, np.zeros((2, heads)), whole, "t", True, 1000, whole)
    with tempfile.TemporaryDirectory() as folder:
        recorder = HDF5Recorder(f"{folder}/run.h5")
        what = ("one", "all-but-one")
        recorder.start(a_run(heads, orders=ORDERS, signature={"hash": "0", "settings": {"ablations": what}}), 0)
        sizes = []
        for update in range(1, 31):
            recorder.write(a_snapshot(update, heads, ablations={name: ablation for name in what}))
            sizes.append(Path(f"{folder}/run.h5").stat().st_size)
        recorder.close()
    what = "1,024 heads, 4 x 11 points, both ablations"
    return told("a row of the run file", what, f"{(sizes[-1] - sizes[9]) / 20e3:.0f} kB")


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    model, batch = pythia()
    finish([*compute(model, batch), loading(model), row_size()])


if __name__ == "__main__":
    main()
