"""The loss of each example, out of fairseq's criterions, which add up; and which of its tokens count."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fairseq.modules
import torch
from torch import nn

# What these criterions add up by, whether or not they are asked to `reduce`: (where it is looked up, its name).
SUMS_BY = {
    "MaskedLmLoss": [(fairseq.modules, "cross_entropy")],
    "SentencePredictionCriterion": [(nn.functional, "nll_loss"), (nn.functional, "mse_loss")],
}


@dataclass(frozen=True)
class CriterionLoss:
    """The criterion's loss of each example, [B], in nats; `reduction` over its own target tokens: mean or sum."""

    criterion: nn.Module
    pad: int | None
    reduction: str = "mean"

    def __call__(self, model: nn.Module, sample: Mapping[str, Any]) -> torch.Tensor:
        """Run the criterion, and sum by example."""
        losses, counts = per_example(unreduced(self.criterion, model, sample)[0], sample, self.pad)
        return losses / counts.clamp(min=1) if self.reduction == "mean" else losses


def unreduced(criterion: nn.Module, model: nn.Module, sample: Mapping[str, Any]) -> tuple[torch.Tensor, Any, Any]:
    """criterion(model, sample, reduce=False); a loss a target, too, of those criterions that would not hear of it."""
    kinds = [kind.__name__ for kind in type(criterion).__mro__]
    with contextlib.ExitStack() as replaced:
        for where, name in (place for kind in kinds for place in SUMS_BY.get(kind, ())):
            replaced.enter_context(_not_summing(where, name))
        found: tuple[torch.Tensor, Any, Any] = criterion(model, sample, reduce=False)
    return found


@contextlib.contextmanager
def _not_summing(where: Any, name: str) -> Iterator[None]:
    loss = getattr(where, name)

    def apart(*args: Any, reduction: str = "mean", **kwargs: Any) -> Any:
        return loss(*args, reduction="none" if reduction == "sum" else reduction, **kwargs)

    try:
        setattr(where, name, apart)
        yield
    finally:
        setattr(where, name, loss)


def per_example(losses: torch.Tensor, sample: Mapping[str, Any], pad: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of an example's losses [B], its target tokens [B]) from what a criterion returns unreduced.

    Criterions return a loss a target position, or one a counted position, or, whatever one asks, the sum over
    the batch; its gradient by an example's gate is then that example's own, and its value is shared out evenly.
    """
    target = sample["target"]
    rows = len(target)
    real = counted(target, pad).reshape(rows, -1)
    counts = real.sum(1)
    losses = losses.reshape(-1)
    losses = losses.to(torch.promote_types(losses.dtype, torch.float32))
    if losses.numel() == real.numel():
        return losses.view(rows, -1).sum(1), counts
    if losses.numel() == int(counts.sum()):  # masked_lm: the masked positions alone
        return losses.new_zeros(real.shape).masked_scatter(real, losses).sum(1), counts
    return losses.sum().expand(rows) / rows, torch.ones_like(counts)


def counted(target: torch.Tensor, pad: int | None) -> torch.Tensor:
    """Which targets count, as bool: all that are no padding."""
    return target.ne(pad) if pad is not None and target.dim() > 1 else torch.ones_like(target, dtype=torch.bool)


def padding(task: Any) -> int | None:
    """The target that does not count; None where targets are labels, of which each does."""
    dictionary = getattr(task, "target_dictionary", None) or getattr(task, "source_dictionary", None)
    if dictionary is None or hasattr(task, "label_dictionary"):
        return None
    return int(dictionary.pad())


def token_positions(task: Any) -> Any:
    """Real tokens, for the `token` estimator: of the source for encoder heads, of the target for the others."""
    source, pad = getattr(task, "source_dictionary", None), padding(task)

    def positions(sample: Mapping[str, Any], kind: str) -> torch.Tensor | None:
        tokens = sample["net_input"].get("src_tokens") if kind == "encoder" else sample.get("target")
        empty = source.pad() if kind == "encoder" and source is not None else pad
        return tokens.ne(empty) if tokens is not None and tokens.dim() == 2 and empty is not None else None

    return positions
