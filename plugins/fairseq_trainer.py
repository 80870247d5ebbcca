"""fairseq: `fairseq-train DATA --user-dir headdynamics ...` is enough.

fairseq has no callbacks. `install` puts two wrappers round functions of its training loop:

    main -> train(epoch)              attach at the first call, before any work
              -> validate_and_save    after each update: snapshot if it is time, then validate and save

Every data-parallel rank does so, at the same updates, and measures its share (see `headdynamics.ranks`).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import math
import os
import sys
from collections import defaultdict
from types import ModuleType
from typing import Any

import numpy as np
import torch

from headdynamics.online import alone
from headdynamics.ranks import Ranks
from headdynamics.record import Recorder
from headdynamics.schedule import Moment, either, parse, within_first_epoch
from headdynamics.snapshot import Snapshot
from headdynamics.stillness import still
from headdynamics.weights import save_weights

from .fairseq_measures import still_trainer
from .fairseq_online import listener
from .fairseq_options import HeadDynamicsOptions, add_to_fairseq, own_user_dir, read
from .fairseq_setup import check_engine, observe

logger = logging.getLogger("headdynamics")


def install() -> None:
    """Add the options, wrap the training loop, import the user's own user-dir. Called by `headdynamics.tasks`."""
    from fairseq import utils
    from fairseq_cli import train

    allow_fairseq_checkpoints()
    allow_fairseq_broadcasts()
    add_to_fairseq()
    for module in _training_modules(train):
        if not hasattr(module.train, "headdynamics"):
            module.train = _attaching(module.train)
            module.validate_and_save = _watching(module.validate_and_save)
    if own := own_user_dir():
        utils.import_user_module(argparse.Namespace(user_dir=own))


def _training_modules(train: ModuleType) -> list[Any]:
    """`python -m fairseq_cli.train` runs a second copy of the module, called __main__."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return [train, main] if spec is not None and spec.name == "fairseq_cli.train" else [train]


def allow_fairseq_checkpoints() -> bool:
    """Let torch's safe loader read fairseq's checkpoints: the plain classes that they hold, and nothing else.

    False where this torch (before 2.4) cannot be told so.
    """
    if not hasattr(torch.serialization, "add_safe_globals"):
        return False
    core = getattr(np, "_core", None) or np.core
    dtypes = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
    torch.serialization.add_safe_globals(
        [argparse.Namespace, np.dtype, np.ndarray, core.multiarray._reconstruct, core.multiarray.scalar, *dtypes]
    )
    return True


def allow_fairseq_broadcasts() -> None:
    """The same for a resume on many ranks: the first sends the others what it read, with its own plain classes."""
    if not hasattr(torch.serialization, "add_safe_globals"):
        return
    from fairseq.distributed.utils import _TensorPlaceholder
    from omegaconf import AnyNode, DictConfig, ListConfig
    from omegaconf.base import ContainerMetadata, Metadata

    nodes = [AnyNode, DictConfig, ListConfig, ContainerMetadata, Metadata]
    torch.serialization.add_safe_globals([*nodes, Any, _TensorPlaceholder, defaultdict, dict, list, int])


def _attaching(train: Any) -> Any:
    @functools.wraps(train)
    def wrapped(cfg: Any, trainer: Any, task: Any, epoch_itr: Any) -> Any:
        if not hasattr(trainer, "headdynamics"):
            trainer.headdynamics = attach(cfg, trainer, epoch_itr)
        return train(cfg, trainer, task, epoch_itr)

    marked: Any = wrapped
    marked.headdynamics = True
    return marked


def _watching(validate_and_save: Any) -> Any:
    @functools.wraps(validate_and_save)
    def wrapped(cfg: Any, trainer: Any, task: Any, epoch_itr: Any, valid_subsets: Any, end_of_epoch: bool) -> Any:
        watch = getattr(trainer, "headdynamics", None)
        if watch is None:
            return validate_and_save(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
        watch.before_saving(epoch_itr, end_of_epoch)
        losses, stop = validate_and_save(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
        watch.after_saving(epoch_itr, stop, end_of_epoch)
        return losses, stop

    return wrapped


def attach(cfg: Any, trainer: Any, epoch_itr: Any) -> FairseqWatch | None:
    """A watch over this training, on all ranks; None, on all, where it is off or where it cannot be."""
    options = read(cfg.common)
    if options.hd_off:
        return None
    ranks = Ranks()
    try:
        check_engine(cfg, trainer.data_parallel_world_size)
        ranks = Ranks.of_training()
        with ranks.together():
            return FairseqWatch(options, cfg, trainer, epoch_itr, ranks)
    except Exception as error:
        ranks.close()
        if options.hd_strict:
            raise
        if trainer.is_data_parallel_master:  # of many ranks one says it; its error names the rank that failed
            logger.error("headdynamics is not attached: %s. Training goes on without it.", str(error).rstrip("."))
        logger.debug("why headdynamics is not attached", exc_info=True)
        return None


class FairseqWatch:
    """Decides when to look at a fairseq training, and looks."""

    def __init__(self, options: HeadDynamicsOptions, cfg: Any, trainer: Any, epoch_itr: Any, ranks: Ranks) -> None:
        self.cfg, self.trainer, self.options, self.ranks = cfg, trainer, options, ranks
        self.schedule = parse(options.hd_every)
        if options.hd_early:
            frequency = cfg.optimization.update_freq[0]
            self.schedule = either(self.schedule, within_first_epoch(math.ceil(len(epoch_itr) / frequency)))
        self.file = options.hd_file or os.path.join(cfg.checkpoint.save_dir, "headdynamics.h5")
        self.last = -1
        with still(trainer.get_model(), trainer.get_criterion()), still_trainer(trainer):
            listens = listener(options, trainer, ranks)
            self.online = listens.online if listens is not None else None
            updates = trainer.get_num_updates()
            self.observer = observe(options, trainer, self.file, updates, self._tensorboard(), self.online, ranks)
            if listens is not None:
                listens.start(self.observer.model, next(iter(self.observer.batches)))
        kinds, counts = np.unique(self.observer.heads.kind, return_counts=True)
        logger.info(
            "headdynamics watches %d heads (%s); run file %s",
            len(self.observer.heads),
            ", ".join(f"{n} {kind}" for kind, n in zip(kinds, counts, strict=True)),
            self.observer.path,
        )

    def _tensorboard(self) -> list[Recorder]:
        place = self.options.hd_tensorboard
        if place == "none":
            return []
        from headdynamics.record.tensorboard import TensorBoardRecorder

        default = self.cfg.common.tensorboard_logdir or os.path.join(self.cfg.checkpoint.save_dir, "tensorboard")
        return [TensorBoardRecorder(os.path.join(place or default, "headdynamics"))]

    def before_saving(self, epoch_itr: Any, end_of_epoch: bool) -> None:
        """Measure now if it is time, so that a row stands before its checkpoint does."""
        moment = self._moment(epoch_itr, end_of_epoch)
        last = end_of_epoch and epoch_itr.epoch >= (self.cfg.optimization.max_epoch or math.inf)
        every = self.cfg.checkpoint.save_interval_updates
        self._listened(moment, end_of_epoch or self._stops_now() or (every > 0 and moment.update % every == 0))
        if self.schedule(moment) or ((last or self._stops_now()) and not alone(self.online, self.schedule)):
            self._snapshot(moment)

    def after_saving(self, epoch_itr: Any, stop: bool, end_of_epoch: bool) -> None:
        """An early stop by validation loss is known only now."""
        if stop:
            moment = self._moment(epoch_itr, end_of_epoch)
            self._listened(moment, close=True)
            if not alone(self.online, self.schedule):
                self._snapshot(moment)

    def _listened(self, moment: Moment, close: bool) -> None:
        """A window of online importance may be full; `close` where a checkpoint comes, so that a resume has no gap."""
        if self.online is not None:
            self.observer.window(self.online.step(moment.update, close))

    def _stops_now(self) -> bool:
        limit = self.cfg.optimization
        hours = self.trainer.cumulative_training_time() / 3600
        updates = self.trainer.get_num_updates()
        return bool(updates >= (limit.max_update or math.inf) or 0 < limit.stop_time_hours < hours)

    def _moment(self, epoch_itr: Any, end_of_epoch: bool) -> Moment:
        done = 1.0 if end_of_epoch else epoch_itr.iterations_in_epoch / len(epoch_itr)
        return Moment(self.trainer.get_num_updates(), epoch_itr.epoch - 1 + done, end_of_epoch)

    def _snapshot(self, moment: Moment) -> None:
        if moment.update == self.last:
            return
        self.last = moment.update
        with still_trainer(self.trainer):
            with self.ranks.together() if self.options.hd_strict else contextlib.nullcontext():
                checkpoint = self._checkpoint(moment)
            taken = self.observer.snapshot(moment.update, moment.epoch, checkpoint)
        logger.info(summary(taken, self.observer.run.metric))

    def _checkpoint(self, moment: Moment) -> str:
        """The file that will hold these weights: ours, or the one that the trainer is about to write; for the row."""
        if not self.ranks.writes:
            return ""
        if self.options.hd_save_weights:
            return save_weights(self.trainer.get_model(), self.observer.path, moment.update, self.options.hd_strict)
        saving, epoch = self.cfg.checkpoint, math.ceil(moment.epoch)
        if saving.no_save:
            return ""
        by_epoch = moment.end_of_epoch and not saving.no_epoch_checkpoints and epoch % saving.save_interval == 0
        by_update = saving.save_interval_updates > 0 and moment.update % saving.save_interval_updates == 0
        suffix = self.trainer.checkpoint_suffix
        if by_epoch:
            return os.path.join(saving.save_dir, f"checkpoint{epoch}{suffix}.pt")
        if by_update and not moment.end_of_epoch:
            return os.path.join(saving.save_dir, f"checkpoint_{epoch}_{moment.update}{suffix}.pt")
        return ""


def summary(taken: Snapshot, metric: str) -> str:
    """One line for the trainer's log."""
    where = f"epoch {taken.epoch:.2f} | update {taken.update}"
    if taken.importance is None:
        return f"{where} | failed: {taken.status}"
    points = [f"{metric} {taken.score:.4g}"]
    for name, curve in taken.curves.items():
        if name in ("importance", "random-1"):
            told = [(f, s) for f, s in zip(curve.fraction, curve.score, strict=True) if f in (0.2, 0.5)]
            points += [f"{name} order, {fraction:.0%} of heads gone: {score:.4g}" for fraction, score in told]
    return f"{where} | {' | '.join(points)} | {taken.seconds:.1f} s"
