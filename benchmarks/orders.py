"""Which pruning order is best: every order on two trained models, as areas under the pruning curve with intervals.

    python benchmarks/orders.py translation runs/translation/checkpoint20.pt
    python benchmarks/orders.py sentiment runs/sentiment/checkpoint-642 --orders importance,fisher,random-1

The checkpoints are those of examples/translation.py and examples/sentiment.py with --keep-checkpoints. Orders are
made from validation sentences and scored on test sentences. The difference and its 95% interval are paired,
by a bootstrap over the test sentences; that orders would come out otherwise on other validation sentences is not in it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import data  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import headdynamics as hd  # noqa: E402
from headdynamics.curve import Curve, pruning_curves  # noqa: E402
from headdynamics.losses import cross_entropy  # noqa: E402
from headdynamics.orders import make_order, reference_of  # noqa: E402
from headdynamics.scores import BatchScore, ratio  # noqa: E402
from headdynamics.situation import Situation  # noqa: E402

ALL = (
    "importance importance-raw importance-floor-1 signed harmful-first random-1 random-2 random-3 "
    "reestimated reestimated-raw fisher integrated oracle gates shapley greedy"
)
SEED = 0


@dataclass(frozen=True)
class Work:
    """A trained model, what orders are made from, and the scores that judge them."""

    model: torch.nn.Module
    batches: list[Any]
    loss: Any
    positions: Any
    scores: list[Any]


def translation(checkpoint: Path, folder: Path, examples: int, scored: int) -> Work:
    """A fairseq model with its own criterion; scored by the loss a target token, in bits."""
    from fairseq import checkpoint_utils
    from headdynamics.plugins.fairseq_losses import CriterionLoss, token_positions
    from headdynamics.plugins.fairseq_measures import make_score
    from headdynamics.plugins.fairseq_trainer import allow_fairseq_checkpoints

    allow_fairseq_checkpoints()
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    overrides = {"data": str(folder / "bin.de-en")}
    models, config, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], arg_overrides=overrides)
    criterion, pad = task.build_criterion(config.criterion), task.target_dictionary.pad()

    def draw(split: str, count: int) -> list[Any]:
        task.load_dataset(split)
        dataset = task.dataset(split)
        chosen = np.random.default_rng(SEED).choice(len(dataset), min(count, len(dataset)), replace=False)
        batches = dataset.batch_by_size(dataset.ordered_indices()[np.sort(chosen)], max_tokens=4000)
        return [dataset.collater([dataset[i] for i in batch]) for batch in batches]

    trainer = types.SimpleNamespace(get_criterion=lambda: criterion)
    score = make_score("nll_loss", trainer, draw("test", scored), pad)
    return Work(models[0], draw("valid", examples), CriterionLoss(criterion, pad), token_positions(task), [score])


def sentiment(checkpoint: Path, folder: Path, examples: int, scored: int) -> Work:
    """A fine-tuned MiniLM; scored by accuracy and by loss."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from headdynamics.estimators import token_positions

    tokenizer = AutoTokenizer.from_pretrained(folder / "minilm")

    def draw(split: str, count: int) -> list[Any]:
        labels, texts = data.read_tsv(folder / "sentiment" / f"{split}.tsv")
        chosen = np.random.default_rng(SEED).choice(len(labels), min(count, len(labels)), replace=False)
        chosen = sorted(chosen, key=lambda i: len(texts[i]))  # little padding
        parts = [chosen[i : i + 50] for i in range(0, len(chosen), 50)]
        options = {"truncation": True, "max_length": 64, "padding": True, "return_tensors": "pt"}
        tokens = [dict(tokenizer([texts[i] for i in part], **options)) for part in parts]
        return [
            {**batch, "labels": torch.tensor([labels[i] for i in part])}
            for batch, part in zip(tokens, parts, strict=True)
        ]

    held_out = draw("test", scored)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    return Work(model, draw("valid", examples), cross_entropy, token_positions, accuracy_and_loss(held_out))


def accuracy_and_loss(batches: list[Any]) -> list[BatchScore]:
    """Two scores from one pass: the second gives, in turn, what the first one's calls saw."""
    seen: list[np.ndarray] = []

    def measure(model: torch.nn.Module, batch: Any) -> np.ndarray:
        logits = model(**batch)["logits"].double()
        right = (logits.argmax(-1) == batch["labels"]).double()
        losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        seen.append(losses.numpy())
        return torch.stack([right, torch.ones_like(right)], 1).numpy()

    def again(model: torch.nn.Module, batch: Any) -> np.ndarray:
        losses = seen.pop(0)
        return np.stack([losses, np.ones_like(losses)], 1)

    return [BatchScore("accuracy", True, batches, measure, ratio), BatchScore("loss", False, batches, again, ratio)]


def measured(work: Work, names: list[str]) -> tuple[dict[str, dict[str, Curve]], dict[str, float], int]:
    """Curves by score and order; seconds that each order took to make; heads."""
    heads = hd.find_heads(work.model)
    began = time.perf_counter()
    found = hd.importance(work.model, work.batches, work.loss, heads=heads, positions=work.positions)
    print(f"I(h): {time.perf_counter() - began:.1f} s, loss {found.loss:.3f} on {found.n} examples", flush=True)
    everything = np.arange(len(heads))
    situation = Situation(work.model, heads, work.batches, found, everything, work.loss, work.positions)
    orders, seconds = {}, {}
    for name in names:
        began = time.perf_counter()
        orders[name] = make_order(name, situation)
        seconds[name] = time.perf_counter() - began
        print(f"{name}: made in {seconds[name]:.1f} s", flush=True)
    curves = {score.name: pruning_curves(work.model, orders, score, heads=heads) for score in work.scores}
    return curves, seconds, len(heads)


def half(curve: Curve) -> Curve:
    """The same curve up to half of the heads."""
    there = curve.fraction <= 0.5
    return Curve(curve.fraction[there], curve.score[there], curve.stderr[there], curve.n, curve.resampled[:, there])


def show(title: str, curves: dict[str, Curve], seconds: dict[str, float], greater_is_better: bool) -> None:
    """A table of all orders, best first."""
    table = Table(title=title, title_justify="left")
    table.add_column("order")
    for name in ("made in s", "area", "less importance's", "area to 0.5", "less importance's", "at 0.2", "at 0.5"):
        table.add_column(name, justify="right")
    for name in sorted(curves, key=lambda name: curves[name].area, reverse=greater_is_better):
        curve, reference = curves[name], curves.get(reference_of(name, curves) or "")
        cells = [f"{seconds[name]:.1f}"]
        for one, other in ((curve, reference), (half(curve), reference and half(reference))):
            cells += [f"{one.area:.4f}", "" if other is None or name == "importance" else interval(one, other)]
        cells += [f"{curve.score[np.argmin(abs(curve.fraction - p))]:.4f}" for p in (0.2, 0.5)]
        table.add_row(name, *cells)
    Console(width=140).print(table)


def interval(curve: Curve, reference: Curve) -> str:
    """The difference of two areas with its 95% interval."""
    difference, error = curve.area_difference(reference)
    return f"{difference:+.4f} \u00b1 {1.96 * error:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["translation", "sentiment"])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=data.data_folder(), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--orders", default=",".join(ALL.split()), help="default: all")
    parser.add_argument("--examples", type=int, default=200, help="validation sentences that orders are made from")
    parser.add_argument("--score-examples", type=int, default=400, help="test sentences that orders are judged by")
    options = parser.parse_args()
    load = {"translation": translation, "sentiment": sentiment}[options.task]
    work = load(options.checkpoint, options.data, options.examples, options.score_examples)
    work.model.eval()
    curves, seconds, heads = measured(work, options.orders.split(","))
    for score in work.scores:
        found = curves[score.name]
        first = next(iter(found.values()))
        better = "higher" if score.greater_is_better else "lower"
        title = f"{options.task}, {heads} heads: {score.name} ({better} is better) on {first.n} test sentences, "
        show(title + f"unpruned {first.score[0]:.4f}", found, seconds, score.greater_is_better)


if __name__ == "__main__":
    main()
