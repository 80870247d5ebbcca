"""Online importance of a Hugging Face Trainer's steps: when to listen, and what weight each example's loss has.

    trainer.training_step    listen
      forward                labels and num_items_in_batch: the weight of each example in the model's loss
      backward               the gradient that reaches that loss: loss scale and accumulation
    and add

`attach` knows the trainer and stands around its `training_step`: whatever ends that leaves the model as it was. A bare
callback sees only events: it listens from on_step_begin on, adds at on_substep_end and on_pre_optimizer_step, and
listens no more. What is raised in between leaves its hooks on the model, until the next training or until the trainer
is deleted; such a model cannot be pickled (its state dict can).
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from headdynamics.heads import HeadsError, unwrap
from headdynamics.losses import IGNORED, NoLabelsError, find_labels, per_example, predicts_next
from headdynamics.observer import Observer
from headdynamics.online import RELATIVE, Online, Window
from headdynamics.ranks import Ranks

from .hf_engines import compiled, sharded
from .hf_setup import Options

logger = logging.getLogger("headdynamics")


class TrainerOnline:
    """Listens to the steps of a Trainer, and keeps windows until there is an observer to record them.

    Without a `trainer`, `begin`, `add` and `end` are for its events.

    Raises:
        HeadsError: steps of this training cannot be listened to.

    """

    def __init__(
        self,
        model: nn.Module,
        args: Any,
        options: Options,
        estimator: str,
        trainer: Any = None,
        ranks: Ranks | None = None,
    ) -> None:
        if (engine := sharded()) and args.world_size > 1:
            raise HeadsError(f"{engine} shards the layers that it would listen to")
        if args.n_gpu > 1:
            raise HeadsError(f"DataParallel copies the model to {args.n_gpu} GPUs at each step: start with torchrun")
        if estimator == "batch" and getattr(args, "deepspeed", None):
            raise HeadsError("DeepSpeed takes gradients away before they can be read: choose online=True")
        if estimator == "example" and compiled():
            raise HeadsError("a compiled model does not run our hooks: choose online='batch', which needs none of them")
        self.online = Online(model, estimator, options.online_window, strict=options.strict, ranks=ranks)
        self.observer: Observer | None = None
        self._waiting: list[Window] = []
        several = args.gradient_accumulation_steps > 1 or args.world_size > 1
        self._loss = ModelLoss(unwrap(model), self.online, several)
        self._listening, self._around = contextlib.ExitStack(), contextlib.ExitStack()
        if trainer is not None:
            self._stand_around(trainer)

    def _stand_around(self, trainer: Any) -> None:
        train_step, own = trainer.training_step, "training_step" in vars(trainer)

        @functools.wraps(train_step)
        def listened(*args: Any, **kwargs: Any) -> Any:
            if self.online.failed:
                return train_step(*args, **kwargs)
            with self.online.tapped(), self._loss.read():
                done = train_step(*args, **kwargs)
            self.add()
            return done

        trainer.training_step = listened
        restore = (setattr, trainer, "training_step", train_step) if own else (delattr, trainer, "training_step")
        self._around.callback(*restore)

    def leave(self) -> None:
        """Listen no more, to no step; the trainer and the model are as they were."""
        self.end()
        self._around.close()

    def begin(self) -> None:
        """Before the forward passes of an update."""
        self.end()
        if not self.online.failed:
            self._listening.enter_context(self.online.tapped())
            self._listening.enter_context(self._loss.read())

    def add(self) -> None:
        """After a backward pass."""
        with self.online.forgiven():
            self.online.add(self._loss.weight())

    def end(self) -> None:
        """After the backward passes of an update."""
        self._listening.close()

    def step(self, update: int, close: bool) -> None:
        """After an optimizer step; `close` before a checkpoint, so that a resumed run has no gap and no double."""
        found = self.online.step(update, close)
        self._waiting += [found] if found is not None else []
        if self.observer is not None:
            for window in self._waiting:
                self.observer.window(window)
            self._waiting = []


def listener(
    options: Options, args: Any, model: nn.Module, trainer: Any = None, ranks: Ranks | None = None
) -> TrainerOnline | None:
    """What listens to the steps, if asked for, on every rank or on none; unless strict, a failure costs only this."""
    if (estimator := options.online_estimator) is None:
        return None
    made: TrainerOnline | None = None
    try:
        with (ranks or Ranks()).together():
            made = TrainerOnline(model, args, options, estimator, trainer, ranks)
        return made
    except Exception as error:
        if made is not None:  # and another rank has none
            made.leave()
        if options.strict:
            raise
        logger.error("headdynamics goes on without online importance: %s", error)
        return None


class ModelLoss:
    """The weight of each example's own loss in what `backward` is called on, from what the model sees and returns.

    `several`: an update has more batches than this process sees at once. Which rule of `weights` the model's loss
    follows is found out by its value, at the first batches.
    """

    def __init__(self, model: nn.Module, online: Online, several: bool) -> None:
        self.model, self.online, self.several = model, online, several
        self._rule: str | None = None  # "" where the model's loss follows none
        self._rows = 0
        self._inner: torch.Tensor | None = None  # [B], within the model's loss
        self._outer: torch.Tensor | None = None  # the gradient that reached the model's loss

    @contextlib.contextmanager
    def read(self) -> Any:
        """Read along while the model runs."""
        handle = self.model.register_forward_hook(self._after, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def weight(self) -> torch.Tensor | None:
        """Of the examples of the last pass, [B]; None where the model was not called with tensors by name."""
        rows, inner, outer = self._rows, self._inner, self._outer
        self._rows, self._inner, self._outer = 0, None, None
        if not rows:
            return None
        if inner is None or outer is None:
            self._relative()
            inner = torch.full((rows,), 1 / rows, device=None if outer is None else outer.device)
        return inner if outer is None else inner.to(outer.device) * outer.float()

    def _relative(self) -> None:
        if self.online.scale != RELATIVE:
            self.online.scale = RELATIVE
            logger.warning(
                "headdynamics: the training's loss is not one that the model returned as a mean of cross-entropies; "
                "online importance is relative, as if it were the mean over each batch"
            )

    def _after(self, model: nn.Module, args: Any, inputs: Mapping[str, Any], output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        with self.online.forgiven(), torch.no_grad():
            self._rows = next((len(x) for x in inputs.values() if isinstance(x, torch.Tensor) and x.dim()), 0)
            loss = output.get("loss") if isinstance(output, Mapping) else None
            if loss is None or loss.dim() or not loss.requires_grad:
                return
            loss.register_hook(self._reached)
            rules = weights(inputs, predicts_next(model))
            if self._rule is not None:
                self._inner = rules.get(self._rule)
                return
            found = followed(rules, model, inputs, output, loss)
            self._inner = rules[found[0]] if found else None
            alone = self.several and found[:1] == ["items"] and len(found) > 1
            if not alone:  # in its update, as an epoch's last batch may be: it does not tell items from tokens
                self._rule = found[0] if found else ""

    def _reached(self, gradient: torch.Tensor) -> None:
        self._outer = gradient


def weights(inputs: Mapping[str, Any], shifted: bool) -> dict[str, torch.Tensor]:
    """Ways in which models of transformers average over a batch: name -> weight of each example's own loss, [B].

    items: over the targets of all of an update's batches; tokens: over those of this one; examples.
    """
    try:
        labels = inputs["start_positions"] if "start_positions" in inputs else find_labels(inputs)
    except NoLabelsError:
        return {}
    examples = {"examples": torch.full((len(labels),), 1 / len(labels), device=labels.device)}
    if labels.is_floating_point() or "start_positions" in inputs:
        return examples
    counted = (labels[:, 1:] if shifted and labels.dim() > 1 else labels) != IGNORED
    counts = counted.reshape(len(labels), -1).sum(1).float()
    found = {"tokens": counts / counts.sum().clamp(min=1)}
    items = inputs.get("num_items_in_batch")
    return ({} if items is None else {"items": counts / items}) | found | examples


def followed(
    rules: Mapping[str, torch.Tensor], model: nn.Module, inputs: Mapping[str, Any], output: Any, loss: torch.Tensor
) -> list[str]:
    """The rules by which the examples' own losses make up the model's loss, to 1 in 100; those that are as good."""
    regression = getattr(getattr(model, "config", None), "problem_type", None) == "regression"
    try:
        losses = per_example(output, inputs, predicts_next(model), regression)
    except (KeyError, IndexError, ValueError, RuntimeError):  # logits or labels that are laid out in another way
        return []
    value = float(loss)

    def error(rule: str) -> float:
        return round(abs(float((rules[rule] * losses).sum()) - value) / max(abs(value), 1e-12), 4)

    errors = {rule: error(rule) for rule in rules}
    least = min(errors.values(), default=1.0)
    return [rule for rule, found in errors.items() if found == least < 0.01]
