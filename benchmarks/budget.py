"""A budget of 5%: what all snapshots of a real training take, against the training without them, by the wall clock.

python benchmarks/budget.py [--json FILE]      # a minute and a half

MiniLM is fine-tuned on Rotten Tomatoes by the Hugging Face Trainer on one thread, with a snapshot every 48 updates:
I(h) of up to 128 examples, and the score of as many with none and with half of the heads gone. Told: how many examples
each snapshot bought, and the error of I(h) that it has for them, as a share of I(h).
"""

from __future__ import annotations

import os
import tempfile
import time
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


def watched(folder: Path) -> tuple[float, list[float]]:
    """(wall-clock of the training, of each snapshot)."""
    visits: list[float] = []
    snapshot = Observer.snapshot

    def timed(*args: Any, **more: Any) -> Any:
        began = time.perf_counter()
        try:
            return snapshot(*args, **more)
        finally:
            visits.append(time.perf_counter() - began)

    made = trainer(folder)
    orders, fractions = ["importance"], [0, 0.5]
    hd.attach(
        made, str(folder / "run.h5"), budget=SHARE, every=EVERY, examples=128, score_examples=128, orders=orders,
        fractions=fractions, tensorboard=False, strict=True,
    )  # fmt: skip
    Observer.snapshot = timed  # type: ignore[method-assign]
    try:
        began = time.perf_counter()
        made.train()
        return time.perf_counter() - began, visits
    finally:
        Observer.snapshot = snapshot  # type: ignore[method-assign]


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        whole, visits = watched(Path(folder))
        with h5py.File(Path(folder) / "run.h5") as run:
            seen, mean, error = run["snapshots/n_importance"][:], run["importance/mean"][:], run["importance/stderr"][:]
    training = whole - sum(visits)
    relative = np.median(error / mean, 1)
    what = f"{len(visits)} snapshots with budget={SHARE:g}"
    finish(
        [
            at_most(what, f"{UPDATES} updates without them", SHARE, np.array([sum(visits) / training]), "", 4),
            told(what, "seconds", f"{sum(visits):.1f} of {training:.1f}"),
            told(what, "examples", ", ".join(map(str, seen))),
            told(what, "standard error of I(h), median head", ", ".join(f"{e:.0%}" for e in relative)),
        ]
    )


if __name__ == "__main__":
    main()
