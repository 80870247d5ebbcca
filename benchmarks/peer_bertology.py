"""I(h) against Hugging Face's old script, run_bertology.py: its loop at batch 1, with the transformers that it needs.

python benchmarks/peer_bertology.py [--json FILE]

The script was dropped, and with transformers 5 so was the `head_mask` that it differentiates by. Its loop is written
anew here, after its published behaviour: eager attention, one example at a time, the mean loss's `backward()` with all
weight gradients, `head_mask.grad` added up in absolute value. Kinder to it than it was: sentences are not padded to 128
columns, and attention entropies are left out. It runs in an environment of its own (PEER below): .venv-peer beside this
repository, made at the first run, or that of the interpreter HEADDYNAMICS_PEER_PYTHON. Ours runs in this one, over the
same sentences in batches of 32 by length. Two processes take turns; CPU time on one thread, loading not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import DATA, ROOT, at_least, finish, spread, told

PEER = ["torch==2.13.0", "transformers==4.57.6"]
SENTENCES, ROUNDS = 64, 5


def peer_python() -> str:
    """The interpreter that has the peer's libraries."""
    given = os.environ.get("HEADDYNAMICS_PEER_PYTHON")
    home = ROOT / ".venv-peer"
    python = home / "bin/python"
    if not given and not (home / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        for package in PEER:  # torch first: the CPU's
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)
        (home / ".ready").touch()
    return given or str(python)


def load() -> Any:
    """MiniLM as a classifier, eager, in eval mode."""
    from transformers import BertForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(DATA / "minilm", num_labels=2, attn_implementation="eager")
    return model.eval()


def run_bertology(model: Any, batches: list[dict[str, Any]]) -> torch.Tensor:
    """Head importance [layers, heads] as the old script's loop computes it, one example a batch."""
    config = model.config
    head_mask = torch.ones(config.num_hidden_layers, config.num_attention_heads, requires_grad=True)
    importance, tokens = torch.zeros_like(head_mask), 0.0
    for batch in batches:
        model(**batch, head_mask=head_mask).loss.backward()
        importance = importance + head_mask.grad.abs().detach()
        tokens += float(batch["attention_mask"].sum())
    return importance / tokens


def plain_pass(model: Any, batches: list[dict[str, Any]]) -> None:
    """What training does with the same batches."""
    for batch in batches:
        model.zero_grad()
        model(**batch).loss.backward()


def ours(model: Any, batches: list[dict[str, Any]]) -> Any:
    """I(h)."""
    import headdynamics as hd

    return hd.importance(model, batches)


WAYS = {"run_bertology": (run_bertology, 1), "plain_pass": (plain_pass, 32), "ours": (ours, 32)}


def padded(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """One batch."""
    width = max(len(example["input_ids"]) for example in examples)
    rows = {
        name: torch.tensor([example[name] + [0] * (width - len(example[name])) for example in examples])
        for name in ("input_ids", "attention_mask")
    }
    return rows | {"labels": torch.tensor([example["labels"] for example in examples])}


def work(file: str) -> None:
    """Answer each line of input, the name of a way, by the CPU time that it took: a process of its own."""
    torch.set_num_threads(1)
    model, examples = load(), json.loads(Path(file).read_text())
    for line in sys.stdin:
        way, size = WAYS[line.strip()]
        batches = [padded(examples[i : i + size]) for i in range(0, len(examples), size)]
        began = time.process_time()
        way(model, batches)
        print(time.process_time() - began, flush=True)


class Worker:
    """A process that takes turns with others."""

    def __init__(self, python: str, file: str) -> None:
        self.process = subprocess.Popen(
            [python, __file__, "--work", file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, way: str) -> float:
        """One turn."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(way, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{way}: the process ended: {self.process.wait()}")
        return float(answer)


def main() -> None:
    """Measure and print."""
    from sentences import drawn, encoded
    from transformers import AutoTokenizer

    examples = encoded(AutoTokenizer.from_pretrained(DATA / "minilm"), drawn(SENTENCES), by_length=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "examples.json"
        file.write_text(json.dumps(examples))
        peer, own = Worker(peer_python(), str(file)), Worker(sys.executable, str(file))
        turns = [("run_bertology", peer), ("ours", own), ("plain_pass", own)]
        for way, worker in turns:
            worker.seconds(way)
        times: dict[str, list[float]] = {way: [] for way, _ in turns}
        for i in range(ROUNDS):
            for way, worker in turns if i % 2 else turns[::-1]:
                times[way].append(worker.seconds(way))
        for worker in (peer, own):
            worker.process.communicate()
    script, mine, plain = (np.array(times[way]) for way, _ in turns)
    finish(
        [
            at_least(
                "run_bertology.py (transformers 4.57, batch 1)",
                "I(h) over the same sentences, two processes by turns",
                2.5,
                script / mine,
            ),
            told("run_bertology.py", "a plain forward+backward, batches of 32", spread(script / plain)),
            told("I(h), eager attention", "a plain forward+backward, batches of 32", spread(mine / plain)),
        ]
    )


if __name__ == "__main__":
    work(sys.argv[2]) if sys.argv[1:2] == ["--work"] else main()
