"""Hugging Face Trainer: one callback, or `attach(trainer)`.

    on_step_begin -> forward, backward -> on_pre_optimizer_step
                      |  online importance listens, if asked for: see hf_online.py
    optimizer step -> on_step_end  -> [evaluate -> on_evaluate] -> [save]
    last of epoch  -> on_epoch_end -> [evaluate -> on_evaluate] -> [save]
                      |                            |
                      +- if it is time: here, or --+ here where an evaluation comes before the save
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from headdynamics.heads import unwrap
from headdynamics.names import made
from headdynamics.observer import Observer
from headdynamics.online import alone
from headdynamics.ranks import Ranks
from headdynamics.record.tensorboard import retained
from headdynamics.schedule import Moment, parse
from headdynamics.snapshot import Snapshot
from headdynamics.stillness import still
from headdynamics.weights import save_weights

from .hf_examples import as_it_was
from .hf_online import TrainerOnline, listener
from .hf_setup import Options, check, observe
from .hf_whole import Kept

logger = logging.getLogger("headdynamics")


def attach(trainer: Trainer, path: str | os.PathLike[str] = "run.h5", **options: Any) -> HeadDynamicsCallback:
    """Add a `HeadDynamicsCallback` that knows its trainer.

    It takes evaluation data, collator, metrics and evaluation loop from the trainer, and shows the score and
    what pruning leaves of it to the trainer's reporters (W&B, MLflow, ...) under `headdynamics/`. These numbers
    are not added to `state.log_history`, which checkpoints hold.
    """
    callback = HeadDynamicsCallback(path, **options)
    callback.trainer = trainer
    assert trainer.model is not None  # there is no Trainer without
    callback.kept.keep(trainer.model)
    trainer.add_callback(callback)
    return callback


class HeadDynamicsCallback(TrainerCallback):
    """Measures head importance and the pruning curve while a Trainer trains; training does not notice.

    `HeadDynamicsCallback("run.h5", every="epoch", examples=1000, score="accuracy", ...)`; see `Options` for all.

    All processes of a training measure together, each its share of the examples, and world process zero records. Under
    FSDP and DeepSpeed ZeRO 3 each holds the whole model while it measures. With `save_strategy="best"` no checkpoint is
    named: whether one follows is not known yet.

    Raises:
        ValueError: an option makes no sense.
        TypeError: there is no such option.

    """

    def __init__(self, path: str | os.PathLike[str] = "run.h5", **options: Any) -> None:
        self.path, self.options = os.fspath(path), made(Options, options)
        self.trainer: Trainer | None = None
        self.observer: Observer | None = None
        self.online: TrainerOnline | None = None
        self.ranks = Ranks()
        self.kept = Kept()
        self._reset(0)

    def _reset(self, update: int) -> None:
        if self.observer is not None:
            self.observer.close()
        if self.online is not None:
            self.online.leave()  # a training that was interrupted
        self.ranks.close()
        self.observer, self.schedule, self.online = None, parse(self.options.every), None
        self.off = False  # attaching failed, on any rank
        self.due = False  # a measurement waits for the evaluation
        self.began_at, self.last, self.saved = update, -1, -1  # updates

    def on_init_end(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        """The model is as it is before training."""
        self.kept.keep(seen["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        """Attach; or wait for the first evaluation, where only that will show the evaluation data."""
        self._reset(state.global_step)
        waits = self.trainer is None and self.options.eval_dataset is None and args.eval_strategy != "no"
        if args.world_size > 1:
            with self._forgiven(seen["model"]):
                self.ranks = Ranks.of_training()
        with self._forgiven(seen["model"]):
            if self.off:
                return
            self.schedule = self.options.schedule(args, state, seen.get("train_dataloader"))
            check(self.kept.unsharded(seen["model"]), args)
            self.online = listener(self.options, args, seen["model"], self.trainer, self.ranks)
            if not waits:
                self._attach(args, seen)

    def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        """Listen to an update's passes, where only events tell of them."""
        if self.online is not None and self.trainer is None and not self.off:
            self.online.begin()

    def on_substep_end(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        """A backward pass is done, and others follow before the update."""
        if self.online is not None and self.trainer is None:
            self.online.add()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        """An update's last backward pass is done."""
        if self.online is not None and self.trainer is None:
            self.online.add()
            self.online.end()

    def on_step_end(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        """Measure if it is time. An epoch's last step leaves it to the epoch's end, unless a save comes before."""
        last = float(state.epoch).is_integer() or control.should_epoch_stop or control.should_training_stop
        may_save = control.should_save or (control.should_evaluate and args.save_strategy == "best")
        self._listened(state, close=may_save or control.should_training_stop)
        if may_save or not last:
            self._look(args, state, control, seen, last)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        """Measure if it is time."""
        self._listened(state, close=True)
        self._look(args, state, control, seen, True)

    def on_evaluate(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        """Measure what waited for the evaluation."""
        if self.due:
            self._snapshot(args, state, control, seen)
        elif self.online is not None and self.observer is None and not self.off:
            with self._forgiven(seen["model"]):
                self._attach(args, seen)

    def on_save(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        """Remember it, for a stop that becomes known only after the save."""
        self.saved = state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        """One row at the end, whatever the schedule says, but for online importance alone."""
        if self._alone():
            if self.observer is None and not self.off:
                with self._forgiven(seen["model"]):
                    self._attach(args, seen)
        elif self.last != state.global_step:
            self._snapshot(args, state, control, seen, at_end=True)
        self._listened(state, close=True)
        if self.online is not None:
            self.online.leave()
        if self.observer is not None:
            self.observer.close()
        self.ranks.close()

    def _alone(self) -> bool:
        return alone(self.online.online if self.online is not None else None, self.schedule)

    def _listened(self, state: Any, close: bool) -> None:
        """A window of online importance may be full."""
        if self.online is not None and not self.off:
            self.online.observer = self.observer
            self.online.step(state.global_step, close)

    def _look(self, args: Any, state: Any, control: Any, seen: Mapping[str, Any], end_of_epoch: bool) -> None:
        moment = Moment(state.global_step, state.epoch, end_of_epoch)
        if self.last == moment.update or not (
            (control.should_training_stop and not self._alone()) or self.schedule(moment)
        ):
            return
        self.due = control.should_evaluate
        if not self.due:
            self._snapshot(args, state, control, seen)

    def _snapshot(self, args: Any, state: Any, control: Any, seen: Mapping[str, Any], at_end: bool = False) -> None:
        self.due, self.last = False, state.global_step
        if self.off:
            return
        with self._forgiven(seen["model"]):
            if self.observer is None and seen.get("eval_dataloader") is None and not at_end:
                logger.warning(
                    "headdynamics skips update %d: a callback sees the evaluation data only from the first evaluation "
                    "on; use headdynamics.attach(trainer), or give eval_dataset",
                    state.global_step,
                )
                return
            observer = self.observer or self._attach(args, seen)
            if at_end and observer.recording.has_row(state.global_step):
                return  # resumed, with nothing left to train
            with self.kept.whole(seen["model"]):
                where = self._checkpoint(args, state, control, observer)
                taken = observer.snapshot(state.global_step, state.epoch, where)
            self._report(args, state, control, observer, taken)

    def _attach(self, args: Any, seen: Mapping[str, Any]) -> Observer:
        online = self.online.online if self.online is not None else None
        with self.kept.whole(seen["model"]) as model:
            whole = {**seen, "model": model}
            self.observer = observe(
                self.options, self.path, args, self.began_at, self.trainer, whole, online, self.ranks
            )
        logger.info("headdynamics watches %d heads; run file %s", len(self.observer.heads), self.observer.path)
        return self.observer

    def _checkpoint(self, args: Any, state: Any, control: Any, observer: Observer) -> str:
        """The place that will hold these weights: ours, or the one that the Trainer is about to write."""
        if self.options.save_weights:
            kept = observer.model, observer.path, state.global_step, self.options.strict
            return save_weights(*kept) if self.ranks.writes else ""
        if control.should_save or self.saved == state.global_step:
            return os.path.join(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        return ""

    def _report(self, args: Any, state: Any, control: Any, observer: Observer, taken: Snapshot) -> None:
        """Show a handful of numbers to the Trainer's reporters, by their own event.

        Not by `trainer.log`: that writes into the state that checkpoints hold, and may be overridden by one that
        averages and clears what training has gathered.
        """
        if self.trainer is None or taken.importance is None:
            return
        try:
            logs = {"headdynamics/score": taken.score, "headdynamics/seconds": taken.seconds, "epoch": state.epoch}
            for tag, value in retained(observer.run, taken):
                logs[f"headdynamics/{tag.replace('/', '_')}"] = value
            with as_it_was(control, state):  # the event takes a pending log of the training loss for done
                self.trainer.callback_handler.on_log(args, state, control, logs)
        except Exception as error:
            if self.options.strict:
                raise
            logger.error("headdynamics: a reporter failed at update %d: %s", state.global_step, error)

    @contextlib.contextmanager
    def _forgiven(self, model: torch.nn.Module) -> Iterator[None]:
        """Stand still; unless strict, let no failure of ours reach training."""
        with still(unwrap(model)):
            try:
                with self.ranks.together():
                    yield
            except Exception as error:
                if self.options.strict:
                    raise
                self.off = True
                if self.online is not None:
                    self.online.leave()
                if self.ranks.writes:
                    logger.error("headdynamics is off: %s. Training goes on without it.", str(error).rstrip("."))
                logger.debug("why headdynamics is off", exc_info=True)
