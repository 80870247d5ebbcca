"""What the Hugging Face plugin scores with: the Trainer's own evaluation, or ours example by example."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, recursively_apply, send_to_device
from torch import nn
from transformers import Trainer
from transformers.trainer_pt_utils import EvalLoopContainer
from transformers.trainer_utils import EvalPrediction, RemoveColumnsCollator
from transformers.utils.generic import find_labels as label_names

from headdynamics.heads import unwrap
from headdynamics.losses import NoLabelsError, find_labels
from headdynamics.names import unknown
from headdynamics.ranks import Ranks, each, ranks_of
from headdynamics.scores import BatchScore, accuracy, mean_loss, perplexity

from .hf_examples import Examples, as_it_was

Metrics = Callable[[EvalPrediction], dict[str, float]]
LOWER_IS_BETTER = ("loss", "perplexity", "error", "wer", "cer", "ter", "mse", "rmse", "mae")


def kept_columns(model: nn.Module, collate: Callable[..., Any], labels: Sequence[str] | None) -> Callable[..., Any]:
    """`collate` without the columns that the model's forward does not take, as the Trainer removes them."""
    taken = [*inspect.signature(model.forward).parameters, "label", "label_ids"]
    return RemoveColumnsCollator(collate, [*taken, *(labels or label_names(type(model)))])


class MetricScore:
    """One number of a user's `compute_metrics`, over predictions on the same examples each time.

    With a trainer the predictions come from its own `evaluation_loop`, so its `prediction_step`,
    `preprocess_logits_for_metrics` and generation settings hold, and `eval_loss` is its own to the last digit.
    Where ranks share the examples each makes its predictions, and every loop then sees those of all.
    """

    def __init__(
        self, compute_metrics: Metrics | None, examples: Examples, args: Any, trainer: Trainer | None = None
    ) -> None:
        self.compute_metrics, self.examples, self.args, self.trainer = compute_metrics, examples, args, trainer
        self.name, self.greater_is_better = "", True

    def named(self, model: nn.Module, name: str | None) -> MetricScore:
        """Learn by one evaluation which numbers there are, and settle on `name`.

        Default: `args.metric_for_best_model` if it is there, else `accuracy`, else the first number, else the loss.

        Raises:
            ValueError: there is no such number; the message lists those there are.

        """
        found = self.measure(model)
        best = str(getattr(self.args, "metric_for_best_model", None) or "").removeprefix("eval_")
        others = [key for key in found if key != "loss"]
        self.name = name.removeprefix("eval_") if name else next(
            (key for key in (best, "accuracy", *others, "loss") if key in found), "nothing"
        )
        if self.name not in found:
            raise ValueError(f"{unknown('score', self.name, found)} (by compute_metrics)")
        told = self.args.greater_is_better if self.name == best else None
        self.greater_is_better = not self.name.lower().endswith(LOWER_IS_BETTER) if told is None else bool(told)
        return self

    def __call__(self, model: nn.Module) -> float:
        """The named number."""
        found = self.measure(model)
        if self.name not in found:
            raise ValueError(f"compute_metrics gave no {self.name!r} this time; it gave {', '.join(found)}")
        return found[self.name]

    def probe(self, model: nn.Module) -> float:
        """The loss of the first batch alone, 0 where there is none; on each rank, for all want to see it happen.

        So few predictions are no metric's.
        """
        few = copy.copy(self)
        few.examples = self.examples.first()
        few.compute_metrics = _no_metrics
        few.examples.ranks = Ranks()
        return few.measure(model).get("loss", 0.0)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Every number that the evaluation gives, without the prefix `eval_`."""
        ranks = ranks_of(self.examples)
        with ranks.together():
            found = self._own_loop(model) if self.trainer is None else self._trainers_loop(self.trainer, model)
        found = ranks.first(found)  # a metric may draw
        plain = {key.removeprefix("eval_"): value for key, value in found.items() if np.ndim(value) == 0}
        plain.pop("model_preparation_time", None)
        return {key: float(v) for key, v in plain.items() if isinstance(v, (int, float, np.number, torch.Tensor))}

    def _trainers_loop(self, trainer: Trainer, model: nn.Module) -> Mapping[str, float]:
        with as_it_was(trainer, trainer.callback_handler, trainer.control, trainer.state):
            trainer.callback_handler.callbacks = []  # no progress bar, no stopping: this is not their evaluation
            trainer.optimizer = None  # the loop would put a schedule-free optimizer into eval mode
            trainer.compute_metrics = self.compute_metrics
            if trainer.model is None or model is not unwrap(trainer.model):  # training holds shards of it
                trainer.model = trainer.model_wrapped = model
            if hasattr(trainer, "_gen_kwargs") or getattr(trainer.args, "predict_with_generate", False):
                vars(trainer).update(_gen_kwargs=generation(trainer.args))
                trainer.gather_function = trainer.accelerator.gather
            only_loss = True if self.compute_metrics is None else None
            if ranks_of(self.examples).size > 1:
                self._predict_together(trainer, model, only_loss)
            with _one_process():
                told = trainer.evaluation_loop(self.examples, "headdynamics", prediction_loss_only=only_loss)
        return told.metrics or {}

    def _predict_together(self, trainer: Trainer, model: nn.Module, only_loss: bool | None) -> None:
        """Put predictions that all ranks made in the place of the trainer's own `prediction_step`."""
        only_loss = trainer.args.prediction_loss_only if only_loss is None else only_loss
        reduce: Callable[..., Any] | None = trainer.preprocess_logits_for_metrics

        def predict(batch: dict[str, Any]) -> Any:
            loss, logits, labels = trainer.prediction_step(model, batch, only_loss)
            logits = reduce(logits, labels) if reduce is not None and logits is not None else logits
            return _carried((loss, logits, labels))

        with _one_process():
            predicted = iter(each(self.examples, predict))
        trainer.preprocess_logits_for_metrics = None
        vars(trainer).update(prediction_step=lambda *_, **__: send_to_device(next(predicted), self.examples.device))

    def _own_loop(self, model: nn.Module) -> Mapping[str, float]:
        predictions, labels, losses = (EvalLoopContainer(do_nested_concat=True, padding_index=-100) for _ in range(3))
        names = self.args.label_names or label_names(type(model))
        skipped = {"loss", *getattr(getattr(model, "config", None), "keys_to_ignore_at_inference", ["past_key_values"])}

        def predict(batch: dict[str, Any]) -> Any:
            with torch.no_grad():
                output = model(**batch)
            loss = output.get("loss")
            if loss is not None:
                loss = loss.repeat(len(next(iter(batch.values()))))  # weighs a short batch less
            logits = alone(tuple(v for k, v in output.items() if k not in skipped))
            truth = alone(tuple(batch[name] for name in names if name in batch))
            return _carried((logits, truth, loss))

        for found in each(self.examples, predict):
            for container, value in zip((predictions, labels, losses), found, strict=True):
                if value is not None:
                    container.add(value)
        every = losses.get_arrays()
        loss = {} if every is None else {"eval_loss": every.mean().item()}
        assert self.compute_metrics is not None
        return {**self.compute_metrics(EvalPrediction(predictions.get_arrays(), labels.get_arrays())), **loss}


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    """The Trainer gathers nothing from other ranks for a while: each of them has everything, or does its own share."""
    alone = {"distributed_type": DistributedType.NO, "num_processes": 1}
    states = [state._shared_state for state in (PartialState, AcceleratorState)]
    before = [(state, {name: state[name] for name in alone}) for state in states if alone.keys() <= state.keys()]
    try:
        for state, _ in before:
            state.update(alone)
        yield
    finally:
        for state, values in before:
            state.update(values)


def _no_metrics(predictions: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
    return {}


def _carried(found: Any) -> Any:
    """The same with every tensor on the CPU, and without what it is a view of."""
    return recursively_apply(lambda tensor: tensor.detach().cpu().clone(), found)


def alone(found: tuple[Any, ...]) -> Any:
    """The only one, or all, as the Trainer hands predictions to `compute_metrics`."""
    return found[0] if len(found) == 1 else found


def generation(args: Any) -> dict[str, Any]:
    """The settings with which Seq2SeqTrainer.evaluate generates."""
    wanted = {"max_length": args.generation_max_length, "num_beams": args.generation_num_beams}
    wanted["synced_gpus"] = False if args.world_size > 1 else None  # ranks have other numbers of batches
    return {key: value for key, value in wanted.items() if value is not None}


def own_score(name: str | None, model: nn.Module, examples: Examples, loss: Any) -> BatchScore:
    """Accuracy, loss or perplexity per example; by default accuracy where labels are classes of whole examples.

    Raises:
        ValueError: no such score.
        NoLabelsError: the examples have no labels.

    """
    if name in (None, "accuracy"):
        name = name or ("accuracy" if classifies(model, examples) else "loss")
    made: dict[str, Callable[[Examples], BatchScore]] = {
        "accuracy": accuracy, "loss": lambda e: mean_loss(e, loss), "perplexity": perplexity
    }  # fmt: skip
    if name.removeprefix("eval_") not in made:
        raise ValueError(f"{unknown('score', name, made)} (without compute_metrics)")
    return made[name.removeprefix("eval_")](examples)


def classifies(model: nn.Module, examples: Examples) -> bool:
    """Whether the examples' labels are classes."""
    batch = next(iter(examples), {})
    try:
        labels = find_labels(batch)
    except NoLabelsError:
        return False
    return not labels.is_floating_point() and (labels.dim() == 1 or "TokenClassification" in type(model).__name__)
