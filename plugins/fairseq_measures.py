"""What is measured on a fairseq task: its examples, its scores."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.data import data_utils
from fairseq.logging import metrics
from torch import nn

from headdynamics.devices import on_host
from headdynamics.names import unknown
from headdynamics.nested import nested_sizes
from headdynamics.ranks import Ranks, each
from headdynamics.scores import BatchScore, ratio
from headdynamics.signature import fingerprint

from .fairseq_losses import per_example, unreduced
from .sacrebleu_scores import corpus_metric

BITS = float(np.log(2))  # fairseq reports losses in bits


class Examples:
    """A seeded draw of a subset's examples, batched as the trainer batches them; the same ones each time.

    `n` of 0 takes all that the trainer validates on. Batches are collated once, and moved to the trainer's
    device when iterated. fairseq sorts by length before it batches. `nested`: in parts of which the first few may be
    taken, for a budget (see `headdynamics.nested`); each is sorted and batched by itself.

    Raises:
        ValueError: the subset does not exist or holds nothing that fits the model.

    """

    ranks: Ranks | None = None  # that share these batches

    def __init__(self, trainer: Any, subset: str, n: int, seed: int, nested: bool = False) -> None:
        self._trainer = trainer
        dataset = _dataset(trainer.task, subset)
        getattr(dataset, "set_epoch", lambda epoch: None)(1)  # masks are of an epoch; the trainer validates with these
        config = trainer.cfg
        with data_utils.numpy_seed(config.common.seed + 1):
            indices = dataset.ordered_indices()
            limits = _positions(trainer)
            if limits is not None:
                indices = trainer.task.filter_indices_by_size(indices, dataset, limits, True)
        if not len(indices):
            raise ValueError(f"subset {subset!r} has no example that fits the model; choose another with --hd-subset")
        n = n if 0 < n < len(indices) else len(indices)
        drawing = nested or n < len(indices)
        drawn = np.random.default_rng(seed).choice(len(indices), n, replace=False) if drawing else np.arange(n)
        self.sizes = nested_sizes(n) if nested else (n,)
        self.taken, self._ends = len(self.sizes), list[int]()
        # fairseq drops a last batch that is no multiple; of a draw every example counts
        multiple = 1 if drawing else config.dataset.required_batch_size_multiple
        def batched(places: np.ndarray, multiple: int) -> list[Any]:
            return dataset.batch_by_size(
                indices[np.sort(places)],
                max_tokens=config.dataset.max_tokens_valid,
                max_sentences=config.dataset.batch_size_valid,
                required_batch_size_multiple=multiple,
            )

        def collated(batches: list[Any]) -> list[Any]:
            with data_utils.numpy_seed(config.common.seed + 1):
                return [dataset.collater([dataset[i] for i in batch]) for batch in batches]

        batches: list[Any] = []
        for start, end in itertools.pairwise((0, *self.sizes)):
            batches += batched(drawn[start:end], multiple)
            self._ends.append(len(batches))
        self._batches = collated(batches)
        whole = 1 if n < len(indices) else config.dataset.required_batch_size_multiple
        plain = collated(batched(drawn, whole)) if nested else self._batches
        self.fingerprint = fingerprint(trainer._prepare_sample(batch)[0] for batch in plain)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches[: self._ends[self.taken - 1]]:
            yield self._trainer._prepare_sample(batch)[0]


def _dataset(task: Any, subset: str) -> Any:
    try:
        if subset not in task.datasets:  # --disable-validation loads none
            task.load_dataset(subset, combine=False, epoch=1)
        return task.dataset(subset)
    except (KeyError, FileNotFoundError) as error:
        have = ", ".join(task.datasets) or "none"
        raise ValueError(f"no subset {subset!r} to measure on (loaded: {have}); name one with --hd-subset") from error
    except ValueError as error:
        raise ValueError(f"subset {subset!r} cannot be read ({error}); choose another with --hd-subset") from error


def _positions(trainer: Any) -> Any:
    return utils.resolve_max_positions(trainer.task.max_positions(), trainer.get_model().max_positions())


def make_score(name: str, trainer: Any, batches: Examples, pad: int | None) -> BatchScore | ReportedScore:
    """The score called `name`: per example for losses, BLEU and chrF, else any that the task reports."""
    if name in CRITERION_SCORES:
        return _criterion_score(name, trainer, batches, pad)
    if name in TRANSLATION_SCORES:
        return _translated(name, trainer.task, batches)
    return ReportedScore(name, _is_better_up(name, trainer.cfg.checkpoint), trainer, batches)


def _is_better_up(name: str, config: Any) -> bool:
    if name == config.best_checkpoint_metric:
        return bool(config.maximize_best_checkpoint_metric)
    return not any(word in name for word in ("loss", "ppl", "error", "wer"))


TRANSLATION_SCORES = ("bleu", "chrf")
# sums: loss, nll, tokens, sample size -> what fairseq reports
CRITERION_SCORES = {
    "loss": lambda sums: ratio(sums[..., [0, 3]]) / BITS,
    "nll_loss": lambda sums: ratio(sums[..., [1, 2]]) / BITS,
    "ppl": lambda sums: 2 ** (ratio(sums[..., [1, 2]]) / BITS),
}


def _criterion_score(name: str, trainer: Any, batches: Examples, pad: int | None) -> BatchScore:
    criterion = trainer.get_criterion()
    by_sentence = bool(getattr(criterion, "sentence_avg", False))

    def measure(model: nn.Module, sample: Mapping[str, Any]) -> np.ndarray:
        found, whole, log = unreduced(criterion, model, sample)
        losses, counts = per_example(found, sample, pad)
        nll = log.get("nll_loss", found)
        nll = per_example(torch.as_tensor(nll), sample, pad)[0] if torch.is_tensor(nll) else losses
        columns = np.stack([on_host(column) for column in (losses, nll, counts)], 1)
        size = np.ones(len(columns)) if by_sentence else columns[:, 2]
        size = size * (float(whole) / max(size.sum(), 1))  # of a sum that is shared out, too
        return np.column_stack([columns, size])

    return BatchScore(name, False, batches, measure, CRITERION_SCORES[name])


def _translates(task: Any) -> bool:
    return hasattr(task, "tgt_dict") and hasattr(task.cfg, "eval_bleu_args")


def _translated(name: str, task: Any, batches: Examples) -> BatchScore:
    """BLEU or chrF through the task's own generator; stats per sentence are sacrebleu's counts."""
    if not _translates(task):
        raise ValueError(f"{type(task).__name__} has no {name}: choose another --hd-score, such as loss")
    metric = corpus_metric(name, tokenized=bool(task.cfg.eval_tokenized_bleu))

    def measure(model: nn.Module, sample: Mapping[str, Any]) -> np.ndarray:
        return metric.stats(translate(task, model, sample))

    return BatchScore(name, True, batches, measure, metric.aggregate)


def translate(task: Any, model: nn.Module, sample: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(hypothesis, reference) of each example, decoded as the translation task's own `--eval-bleu` does."""
    generator = getattr(task, "sequence_generator", None)
    if generator is None:
        generator = task.build_generator([model], Namespace(**json.loads(task.cfg.eval_bleu_args or "{}")))

    def decode(tokens: torch.Tensor, unknown: str) -> str:
        text = task.tgt_dict.string(tokens.int().cpu(), task.cfg.eval_bleu_remove_bpe, unk_string=unknown)
        tokenizer = getattr(task, "tokenizer", None)
        return str(tokenizer.decode(text) if tokenizer else text)

    generated = task.inference_step(generator, [model], sample, prefix_tokens=None)
    references = (utils.strip_pad(target, task.tgt_dict.pad()) for target in sample["target"])
    return [
        (decode(best[0]["tokens"], "UNKNOWNTOKENINHYP"), decode(reference, "UNKNOWNTOKENINREF"))
        for best, reference in zip(generated, references, strict=True)
    ]


@dataclass(frozen=True)
class ReportedScore:
    """Any value that the task's reduce_metrics reports, by its own valid_step; a float without uncertainty."""

    name: str
    greater_is_better: bool
    trainer: Any
    batches: Iterable[Any]

    def __call__(self, model: nn.Module) -> float:
        """Run the task's validation over the batches and read the value called `name`."""
        task, criterion = self.trainer.task, self.trainer.get_criterion()

        def measure(sample: Mapping[str, Any]) -> Any:
            log = task.valid_step(sample, model, criterion)[2]
            return utils.apply_to_sample(torch.Tensor.cpu, log)  # for ranks to exchange, each from its own GPU

        with torch.no_grad(), metrics.aggregate(new_root=True) as reported:
            task.reduce_metrics(each(self.batches, measure), criterion)
        values = reported.get_smoothed_values()
        if self.name not in values:
            reported = {*CRITERION_SCORES, *values, *(TRANSLATION_SCORES if _translates(task) else ())}
            raise ValueError(f"{unknown('score', self.name, sorted(reported))} (of this task)")
        return float(values[self.name])

    def probe(self, model: nn.Module) -> float:
        """The value of the last batch alone: the longest, as fairseq sorts them."""
        return dataclasses.replace(self, batches=list(deque(self.batches, maxlen=1)))(model)


@contextlib.contextmanager
def still_trainer(trainer: Any) -> Iterator[None]:
    """What of fairseq's trainer a measurement might touch: meters, the dummy batch, the clock of training time."""
    stores = (metrics._active_aggregators, metrics._active_aggregators_cnt, metrics._aggregators)
    active = [list(store.items()) for store in stores]
    dummy, began = trainer._dummy_batch, time.time()
    try:
        yield
    finally:
        trainer._dummy_batch = dummy
        trainer._start_time += time.time() - began
        for store, before in zip(stores, active, strict=True):
            store.clear()
            store.update(before)
