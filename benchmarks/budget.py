"""A budget of 5%: what all snapshots of a real training take, against the training without them, by the wall clock.

python benchmarks/budget.py [--json FILE]      # a minute and a half

MiniLM is fine-tuned on Rotten Tomatoes by the Hugging Face Trainer on one thread, with a snapshot every 48 updates:
I(h) of up to 128 examples, and the score of as many with none and with half of the heads gone. Attaching (drawing and
collating examples, proofs) is counted among what looking takes. The training without looking is this same training less
that: one run, no turns. Told: how many examples each snapshot bought, and the error of I(h) that it has for them, as a
share of I(h).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: everything is in the data folder

import h5py
import numpy as np
import torch
from sentences import drawn, encoded, minilm
from side_by_side import at_most, finish, told

import headdynamics as hd
from headdynamics.observer import Observer

UPDATES, EVERY, SHARE = 240, 48, 0.05


def trainer(folder: Path) -> Any:
    """A plain Trainer."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

    set_seed(1)
    model, tokenizer = minilm()
    settings = TrainingArguments(
        output_dir=str(folder), max_steps=UPDATES, per_device_train_batch_size=8, per_device_eval_batch_size=4,
        learning_rate=5e-5, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    return Trainer(
        model=model,
        args=settings,
        train_dataset=encoded(tokenizer, drawn(8 * UPDATES, "train")),
        eval_dataset=encoded(tokenizer, drawn(800)),
        data_collator=DataCollatorWithPadding(tokenizer),
    )


def timed(call: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    """`call`, with the wall-clock of each run noted."""

    def run(*args: Any, **more: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*args, **more)
        finally:
            times.append(time.perf_counter() - began)

    return run


def watched(folder: Path) -> tuple[float, list[float], list[float]]:
    """(wall-clock of the training, of attaching, of each snapshot)."""
    attaching: list[float] = []
    visits: list[float] = []
    snapshot = Observer.snapshot

    made = trainer(folder)
    orders, fractions = ["importance"], [0, 0.5]
    ours = hd.attach(
        made, str(folder / "run.h5"), budget=SHARE, every=EVERY, examples=128, score_examples=128, orders=orders,
        fractions=fractions, tensorboard=False, strict=True,
    )  # fmt: skip
    ours._attach = timed(ours._attach, attaching)  # type: ignore[method-assign]
    Observer.snapshot = timed(snapshot, visits)  # type: ignore[method-assign]
    try:
        began = time.perf_counter()
        made.train()
        return time.perf_counter() - began, attaching, visits
    finally:
        Observer.snapshot = snapshot  # type: ignore[method-assign]


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        whole, attaching, visits = watched(Path(folder))
        with h5py.File(Path(folder) / "run.h5") as run:
            seen, mean, error = run["snapshots/n_importance"][:], run["importance/mean"][:], run["importance/stderr"][:]
    looking = sum(attaching) + sum(visits)
    training = whole - looking
    relative = np.median(error / mean, 1)
    what = f"attaching and {len(visits)} snapshots with budget={SHARE:g}"
    finish(
        [
            at_most(
                what, f"the rest of these {UPDATES} updates, one run", SHARE, np.array([looking / training]), "", 4
            ),
            told(what, "seconds", f"{sum(attaching):.2f} + {sum(visits):.2f}; training {training:.1f}"),
            told(what, "examples", ", ".join(map(str, seen))),
            told(what, "standard error of I(h), median head", ", ".join(f"{e:.0%}" for e in relative)),
        ]
    )


if __name__ == "__main__":
    main()
