"""From the options of the Hugging Face plugin and a Trainer's state to an Observer."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from transformers import Trainer

from headdynamics.heads import find_heads, unwrap
from headdynamics.losses import Loss, cross_entropy, find_labels
from headdynamics.names import unknown
from headdynamics.observer import Observer
from headdynamics.online import WINDOW, Online
from headdynamics.online import check_options as check_online
from headdynamics.plan import Plan
from headdynamics.ranks import Ranks
from headdynamics.record import Recorder
from headdynamics.record.tensorboard import TensorBoardRecorder
from headdynamics.schedule import Schedule, either, parse, within_first_epoch
from headdynamics.scores import Score

from .hf_engines import check_engine
from .hf_examples import Examples
from .hf_measures import Metrics, MetricScore, kept_columns, own_score
from .hf_padding import padding_is_nothing

logger = logging.getLogger("headdynamics")
BY_BATCH = ("batch", "bertology")  # estimators that depend on how examples are batched


@dataclass(frozen=True)
class Options(Plan):
    """What a user may choose: all that a `Plan` has, and when, on what and to where.

    every: "epoch", "log", a number of updates, a schedule function, or None: only at the end of training, and with
        `online` not at all.
    early: also at 1/8, 1/4 and 1/2 of the first epoch.
    examples: how many examples I(h) is estimated from; drawn once by `seed`, all where there are fewer. They are sorted
        by length and trimmed, but not for the estimators `batch` and `bertology`, which depend on the batches, nor for
        what the Trainer itself evaluates.
    score_examples: the same for the score.
    score: a `Score` or function of the model; or a name: a number of `compute_metrics`, or without it `accuracy`,
        `loss` or `perplexity` per example, with error bars; `eval_loss` is the Trainer's own, to the last digit.
        Default: with `compute_metrics` see `MetricScore.named`, without it `own_score`.
    compute_metrics: as the Trainer's; `attach` takes the Trainer's own.
    loss: `loss(model, batch) -> [B]`, for I(h); default: cross-entropy from logits and labels.
    batch_size: default: the Trainer's evaluation batch size.
    eval_dataset: where the examples come from, or the name of one where the Trainer has several. Default: the
        Trainer's evaluation data, which a callback sees only from the first evaluation on, and `attach` at once;
        where there is none the training data, and the log says so.
    data_collator: default: the one of the Trainer's dataloaders.
    tensorboard: True for a folder `headdynamics` in the Trainer's own logging directory, or a directory.
    online: also I(h) of every training step, from the backward pass that training does anyway: True for each example
        alone, or "batch" for the sums over batches that W_O's gradient gives for free. See `headdynamics.online`.
    online_window: updates that make one row of these.
    save_weights: keep each snapshot's weights beside the run file, and name these instead of the checkpoint.
    seed: of the draw.
    strict: raise what otherwise is logged while training goes on.

    Raises:
        ValueError: an option makes no sense.

    """

    every: str | int | Schedule | None = "epoch"
    early: bool = False
    examples: int = 1000
    score_examples: int = 1000
    score: str | Score | Callable[[nn.Module], float] | None = None
    compute_metrics: Metrics | None = None
    loss: Loss | None = None
    batch_size: int | None = None
    eval_dataset: Any = None
    data_collator: Callable[[list[Any]], Any] | None = None
    tensorboard: bool | str | os.PathLike[str] = True
    online: bool | str = False
    online_window: int = WINDOW
    save_weights: bool = False
    seed: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        parse(self.every)
        check_online(self.online_estimator or "example", self.online_window)
        if self.examples < 1 or self.score_examples < 1:
            raise ValueError(f"examples={self.examples}, score_examples={self.score_examples}: give 1 or more")

    @property
    def online_estimator(self) -> str | None:
        """Which, if any."""
        return "example" if self.online is True else self.online or None

    def schedule(self, args: Any, state: Any, train_dataloader: Any) -> Schedule:
        """When to look at this training."""
        if not self.early:
            return parse(self.every)
        try:
            updates = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        except TypeError:  # a stream has no length: the whole training is its first epoch
            updates = state.max_steps
        return either(parse(self.every), within_first_epoch(updates))


def check(model: nn.Module, args: Any) -> None:
    """Complain before training about what no evaluation will cure.

    Raises:
        HeadsError: no heads can be read, or not by this process.

    """
    check_engine(model, args)
    find_heads(unwrap(model))


def observe(
    options: Options,
    path: str | None,
    args: Any,
    update: int | None,
    trainer: Trainer | None,
    seen: Mapping[str, Any],
    online: Online | None = None,
    ranks: Ranks | None = None,
) -> Observer:
    """An observer of the model in `seen`, what the Trainer shows its callbacks; inside `still`, on all ranks."""
    began = time.perf_counter()
    model = unwrap(seen["model"])
    dataset, collate, source = _data(options, args, model, trainer, seen)
    device, size = next(model.parameters()).device, options.batch_size or args.eval_batch_size
    loss = options.loss or cross_entropy
    drawn = partial(Examples, dataset, collate, batch_size=size, device=device, nested=options.budget is not None)
    proof = partial(padding_is_nothing, model, loss)
    batches = drawn(options.examples, seed=options.seed, proof=None if options.estimator in BY_BATCH else proof)
    theirs = _metrics(options, trainer) is not None or options.score == "eval_loss"  # sees what it always does
    scored = drawn(options.score_examples, seed=options.seed + 1, proof=None if theirs else proof)
    scored.ranks = ranks
    if options.loss is None and not any("start_positions" in batch for batch in batches.batches[:1]):
        find_labels(next(iter(batches), {}))
    score = _score(options, args, model, scored, trainer)
    settings = {
        "source": source,
        "examples": len(batches.dataset),
        "score_examples": len(scored.dataset),
        "seed": options.seed,
        "batch_size": size,
        "score": getattr(score, "name", getattr(score, "__name__", "score")),
        "loss": getattr(loss, "__name__", type(loss).__name__),
        "training_seed": args.seed,
        "learning_rate": args.learning_rate,
    }
    drawing = time.perf_counter() - began
    observer = Observer(
        model,
        path,
        batches=batches,
        score=score,
        loss=loss,
        recorders=_tensorboard(options, args, trainer),
        ranks=ranks,
        online=online,
        settings=settings,
        framework="transformers",
        update=update,
        strict=options.strict,
        **options.chosen() | ({"budget": None} if update is None else {}),  # backfill has no training to share
    )
    if observer.budget:
        observer.budget.charge(drawing)
    return observer


def _data(
    options: Options, args: Any, model: nn.Module, trainer: Trainer | None, seen: Mapping[str, Any]
) -> tuple[Any, Callable[..., Any], str]:
    """Dataset, collator and which data they are: ours, the Trainer's evaluation data, or its training data."""
    dataset, loader, source = options.eval_dataset, seen.get("eval_dataloader"), "evaluation"
    if trainer is not None and (dataset is None or isinstance(dataset, str)):
        dataset = _chosen(trainer.eval_dataset, dataset)
    if dataset is None:
        if loader is None:
            loader, source = seen["train_dataloader"], "training"
            logger.warning("headdynamics finds no evaluation data and measures on training examples")
        dataset = loader.dataset
    dataset = dataset.dataset if type(dataset).__name__ == "IterableDatasetShard" else dataset
    if trainer is not None:
        collate = options.data_collator or trainer.data_collator
        return dataset, trainer._get_collator_with_removed_columns(collate, "headdynamics"), source
    collate = options.data_collator or (loader or seen["train_dataloader"]).collate_fn
    return dataset, kept_columns(model, collate, args.label_names) if args.remove_unused_columns else collate, source


def _chosen(datasets: Any, name: str | None) -> Any:
    if not isinstance(datasets, dict):
        return datasets
    name = name or next(iter(datasets))
    if name not in datasets:
        raise ValueError(unknown("evaluation data", name, datasets))
    logger.info("headdynamics measures on the evaluation data %r", name)
    return datasets[name]


def _metrics(options: Options, trainer: Trainer | None) -> Metrics | None:
    return options.compute_metrics or getattr(trainer, "compute_metrics", None)


def _score(options: Options, args: Any, model: nn.Module, examples: Examples, trainer: Trainer | None) -> Any:
    metrics = _metrics(options, trainer)
    if callable(options.score):
        return options.score
    if metrics is not None or (trainer is not None and options.score == "eval_loss"):
        return MetricScore(metrics, examples, args, trainer).named(model, options.score)
    return own_score(options.score, model, examples, options.loss or cross_entropy)


def _tensorboard(options: Options, args: Any, trainer: Trainer | None) -> list[Recorder]:
    if not options.tensorboard:
        return []
    if options.tensorboard is not True:
        return [TensorBoardRecorder(options.tensorboard)]
    callbacks = trainer.callback_handler.callbacks if trainer is not None else []
    writers: list[Any] = [getattr(callback, "tb_writer", None) for callback in callbacks]
    theirs = [writer.log_dir for writer in writers if hasattr(writer, "log_dir")]
    told = os.getenv("TENSORBOARD_LOGGING_DIR") or getattr(args, "logging_dir", None)
    place = theirs[0] if theirs else told or os.path.join(args.output_dir, "runs")
    return [TensorBoardRecorder(os.path.join(place, "headdynamics"))]
