"""Online importance of a fairseq training's steps: what `task.train_step` does, a forward and a backward pass.

    task.train_step          listen
      criterion              its sample: the weight of each example; its loss: the gradient that reaches it (loss scale)
    ... next sample of the update, optimizer step
    validate_and_save        a window, where it is full or a checkpoint comes
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from headdynamics.gates import own_fast_paths_off
from headdynamics.online import RELATIVE, Online
from headdynamics.ranks import Ranks

from .fairseq_losses import counted, padding, per_example, unreduced
from .fairseq_options import HeadDynamicsOptions

logger = logging.getLogger("headdynamics")


def listener(options: HeadDynamicsOptions, trainer: Any, ranks: Ranks) -> FairseqOnline | None:
    """What listens to the steps, if asked for, on all ranks; unless strict, a failure costs nothing but this."""
    if not options.hd_online:
        return None
    model, estimator, window = trainer.get_model(), options.hd_online_estimator, options.hd_online_window
    try:
        with ranks.together():
            online = Online(model, estimator, window, strict=options.hd_strict, ranks=ranks)
            return FairseqOnline(online, trainer, options.hd_reduction)
    except Exception as error:
        if options.hd_strict:
            raise
        logger.error("headdynamics goes on without online importance: %s", error)
        return None


class FairseqOnline:
    """Listens to the steps of a fairseq trainer; an example's own loss is `reduction` over its target tokens."""

    def __init__(self, online: Online, trainer: Any, reduction: str) -> None:
        self.online, self.task, self.criterion = online, trainer.task, trainer.get_criterion()
        self.pad, self.by_token = padding(self.task), reduction == "mean"
        self._sample: Mapping[str, Any] | None = None  # of the criterion's last pass
        self._outer: torch.Tensor | None = None  # the gradient that reached its loss

    def start(self, model: nn.Module, sample: Mapping[str, Any]) -> None:
        """Learn from a sample how the criterion adds up its losses, then listen; call it inside `still`."""
        with self.online.forgiven(), torch.no_grad(), own_fast_paths_off(self.online.heads):
            targets = self._counts(sample)
            losses, counts = per_example(unreduced(self.criterion, model, sample)[0], sample, self.pad)
            self.by_token = self.by_token and torch.equal(counts, targets)
            total, reduced = float(losses.sum()), float(self.criterion(model, sample)[0])
            if not abs(total - reduced) <= 0.01 * abs(total):
                self.online.scale = RELATIVE
                logger.warning(
                    "headdynamics: %s does not return the sum of its examples' losses; online importance is relative",
                    type(self.criterion).__name__,
                )
        self.task.train_step = self._listening(self.task.train_step)

    def _listening(self, train_step: Any) -> Any:
        @functools.wraps(train_step)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.online.failed or kwargs.get("ignore_grad"):  # a dummy batch
                return train_step(*args, **kwargs)
            self._sample = self._outer = None
            with self.online.tapped(), self._reading():
                done = train_step(*args, **kwargs)
            self._add()
            return done

        return wrapped

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with contextlib.ExitStack() as hooks:
            hooks.callback(self.criterion.register_forward_pre_hook(lambda *_: self._add()).remove)
            hooks.callback(self.criterion.register_forward_hook(self._after).remove)
            yield

    def _after(self, criterion: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        with self.online.forgiven():
            if torch.is_grad_enabled() and output[0].requires_grad:
                self._sample = args[1]
                output[0].register_hook(self._reached)

    def _reached(self, gradient: torch.Tensor) -> None:
        self._outer = gradient

    def _add(self) -> None:
        """The backward pass of the criterion's last loss is done; a task may have several in a step."""
        sample, outer = self._sample, self._outer
        self._sample = self._outer = None
        with self.online.forgiven():
            if sample is None or self.online.failed:
                return
            if outer is None:
                raise ValueError(f"{type(self.task).__name__} calls its criterion again before the backward pass")
            counts = self._counts(sample)
            self.online.add(outer.float() * (counts if self.by_token else torch.ones_like(counts)))

    def _counts(self, sample: Mapping[str, Any]) -> torch.Tensor:
        """Target tokens of each example, [B]."""
        target = sample.get("target")
        if target is None:
            raise ValueError(f"the samples of {type(self.task).__name__} have no target")
        return counted(target, self.pad).reshape(len(target), -1).sum(1)
