"""Backfill of a fairseq training: its `checkpoint*.pt`, measured as the training would have been.

A checkpoint holds the training's whole configuration. It is read as data: see `fairseq_config`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from headdynamics.backfilling import Subject, measure_chosen
from headdynamics.checkpoints import Checkpoint
from headdynamics.farm import Farm
from headdynamics.observer import Observer
from headdynamics.stillness import still
from headdynamics.watching import Arrivals, measure_arriving

from .fairseq_checkpoints import Stand, find, read, reread
from .fairseq_config import ConfigError, safe_config, weights_only
from .fairseq_measures import still_trainer
from .fairseq_options import HeadDynamicsOptions
from .fairseq_setup import observe

logger = logging.getLogger("headdynamics")
MEASURING = (
    "examples score_examples subset score fractions knee_tolerance knee_confidence estimator reduction orders seed "
    "ablate budget"
).split()


def backfill(
    places: Iterable[Path] | Arrivals[Stand],
    data: str,
    output: str | Path,
    *,
    given: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    user_dir: str = "",
    every: int = 1,
    only: Sequence[int] = (),
    transfer: bool = False,
    cpu: bool = False,
    ray: Mapping[str, Any] | None = None,
    stop: threading.Event | None = None,
) -> str:
    """Measure checkpoints into a run file; the path that was written.

    Args:
        places: `checkpoint*.pt` files, or folders of them; or `watched` ones: then it goes on until these end.
        data: the binarised data, as for fairseq-train.
        output: the run file; one that has some of these rows already is completed.
        given: `HeadDynamicsOptions` by name without `hd_`. Default: those of the training itself, where the
            instrument was on, else the usual ones.
        task: settings of the task to change, such as `eval_bleu_args`.
        user_dir: the training's own `--user-dir`; what the checkpoint says of it is never imported.
        every: see `backfilling.measure_chosen`; not for watched ones, nor are `transfer` and `ray`.
        only: the same.
        transfer: the same.
        cpu: do not use a GPU.
        ray: measure on a Ray cluster: address, workers and block, as of `farm.Farm`.
        stop: see `backfilling.measure_chosen`; watched ones have their own.

    Raises:
        ValueError: no checkpoint can be used, or an option makes no sense.
        RunFileError: the run file cannot be written.

    """
    making: dict[str, Any] = {"data": data, "task": task or {}, "user_dir": user_dir}
    if isinstance(places, Arrivals):
        trainer, settings = places.first(lambda stand: build(stand.path, cpu=cpu, **making))
        with _observing(trainer, settings, given or {}) as observing:
            checkpoint = partial(_checkpoint, trainer=trainer, length=_Lengths(trainer))
            return measure_arriving(partial(observing, str(output)), places, checkpoint, only)
    opened = partial(subject, list(places), given=given or {}, **making)
    farm = None if ray is None else Farm(partial(opened, cpu=cpu), gpus=not cpu, **ray)
    here = partial(opened, cpu=cpu or farm is not None)  # a farm's workers have the GPUs
    return measure_chosen(here, str(output), every=every, only=only, transfer=transfer, farm=farm, stop=stop)


@contextlib.contextmanager
def subject(
    places: Iterable[Path], *, data: str, given: Mapping[str, Any], task: Mapping[str, Any], user_dir: str, cpu: bool
) -> Iterator[Subject]:
    """A finished training, opened to be measured; arguments as of `backfill`."""
    stands = find(places, strict=bool(given.get("strict")))
    last = max(stands, key=lambda stand: stand.update)
    trainer, settings = build(last.path, data, task, user_dir, cpu)
    with _observing(trainer, settings, given) as observing:
        length = _Lengths(trainer)
        yield Subject(observing, [_checkpoint(stand, trainer, length) for stand in stands])


@contextlib.contextmanager
def _observing(
    trainer: Any, settings: Mapping[str, Any], given: Mapping[str, Any]
) -> Iterator[Callable[[str | None], Observer]]:
    """What makes an observer of the trainer's model that writes a run file, or nothing at all."""
    options = _options(settings, given)
    with still(trainer.get_model(), trainer.get_criterion()), still_trainer(trainer):
        yield lambda path: observe(options, trainer, path, None)


def build(path: Path, data: str, task: Mapping[str, Any], user_dir: str, cpu: bool) -> tuple[Any, dict[str, Any]]:
    """The Trainer of fairseq for the model of a checkpoint (weights not loaded), and the training's settings.

    Raises:
        ConfigError: the configuration is missing, unknown to this fairseq, or could lead to code being run.
    """
    from fairseq import tasks, utils
    from fairseq.trainer import Trainer

    if user_dir:
        utils.import_user_module(argparse.Namespace(user_dir=user_dir))
    state = read(path)
    if not isinstance(state.get("cfg"), dict):
        raise ConfigError(f"{path} has no cfg: it was written by a fairseq older than 0.12, which is not supported")
    if not Path(data).is_dir():
        raise ValueError(f"--data {data} is no folder of binarised data")
    config = safe_config(state["cfg"], data, task, cpu)
    try:
        with weights_only():
            made = tasks.setup_task(config.task)
            model, criterion = made.build_model(config.model), made.build_criterion(config.criterion)
    except Exception as error:
        raise ConfigError(f"fairseq cannot build task and model of {path} with the data in {data}: {error}") from error
    return Trainer(config, made, model, criterion), dict(state["cfg"]["common"])


def _options(settings: Mapping[str, Any], given: Mapping[str, Any]) -> HeadDynamicsOptions:
    """What to measure: as `given`, else as the training was watched. Places to write to are never the training's."""
    kept = {f.name: f for f in fields(HeadDynamicsOptions) if f.name.removeprefix("hd_") in MEASURING}
    theirs = {n: settings[n] for n, f in kept.items() if type(settings.get(n)) is type(f.default)}
    return HeadDynamicsOptions(**theirs | {f"hd_{name}": value for name, value in given.items()})


class _Lengths:
    """Batches in an epoch, from the training data, read only where a checkpoint stands within an epoch."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.known = trainer, dict[int, float]()

    def __getitem__(self, epoch: int) -> float:
        if epoch not in self.known:
            try:
                self.known[epoch] = len(self.trainer.get_train_iterator(epoch=epoch))
            except Exception as error:
                logger.warning("how far epoch %d was is not known without the training data: %s", epoch, error)
                self.known[epoch] = math.nan
        return self.known[epoch]


def _checkpoint(stand: Stand, trainer: Any, length: _Lengths) -> Checkpoint:
    done = stand.iterations / length[stand.epoch] if stand.iterations else 0.0
    return Checkpoint(stand.update, stand.epoch - 1 + done, str(stand.path), _loader(stand, trainer))


def _loader(stand: Stand, trainer: Any) -> Callable[[nn.Module], None]:
    def load(model: Any) -> None:
        state = reread(stand)
        model.load_state_dict(state["model"], strict=True, model_cfg=trainer.cfg.model)
        if state.get("criterion"):  # an adaptive softmax, say, has weights of its own
            trainer.get_criterion().load_state_dict(state["criterion"], strict=True)
        if hasattr(model, "set_num_updates"):
            model.set_num_updates(stand.update)

    return load
