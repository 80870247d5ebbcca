"""Backfill of a Hugging Face training: its `checkpoint-*` folders, measured as the Trainer's callback would have."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from headdynamics.backfilling import Subject, measure_chosen
from headdynamics.checkpoints import Checkpoint, readable, saved
from headdynamics.heads import unwrap
from headdynamics.names import made
from headdynamics.observer import Observer
from headdynamics.stillness import still
from headdynamics.watching import Arrivals, measure_arriving

from .hf_examples import as_it_was
from .hf_setup import Options, observe

logger = logging.getLogger("headdynamics")
STATE = "trainer_state.json"
Place: TypeAlias = "str | os.PathLike[str]"


def backfill(
    trainer: Trainer,
    path: str | os.PathLike[str] = "run.h5",
    checkpoints: Place | Iterable[Place | Checkpoint] | Arrivals[Checkpoint] | None = None,
    *,
    every_th: int = 1,
    only: Sequence[int] = (),
    transfer: bool = False,
    **options: Any,
) -> str:
    """Measure a finished training's checkpoints as `attach` would have during it; the run file that was written.

    With the Trainer of that training and the options that `attach` took, the numbers are the same to the last
    bit. A second call goes on where the first ended; a file that `attach` wrote is completed.

    Args:
        trainer: gives model, data, collator and metrics; its weights are as before afterwards.
        path: the run file.
        checkpoints: `checkpoint-*` folders or a folder of them, `RUN-weights` or files of it, or `Checkpoint`s.
            Default: the Trainer's output_dir. Or `watched` ones: then it goes on until these end.
        every_th: measure every n-th checkpoint, counted back from the last; not for watched ones, nor is `transfer`.
        only: measure these updates.
        transfer: also score the last model, chosen or not, pruned by each checkpoint's order.
        options: see `hf_setup.Options`; those that say when to measure mean nothing here.

    Raises:
        ValueError: there is no checkpoint, or an option makes no sense.
        RunFileError: the run file cannot be written.

    """
    if isinstance(checkpoints, Arrivals):
        with _observing(trainer, made(Options, {"tensorboard": False} | options)) as observing:
            return measure_arriving(partial(observing, str(path)), checkpoints, lambda checkpoint: checkpoint, only)
    opened = partial(subject, trainer, checkpoints, **options)
    return measure_chosen(opened, str(path), every=every_th, only=only, transfer=transfer)


@contextlib.contextmanager
def subject(
    trainer: Trainer, checkpoints: Place | Iterable[Place | Checkpoint] | None = None, **options: Any
) -> Iterator[Subject]:
    """A finished training, opened: for `headdynamics.measure_chosen`, here or on a farm; arguments as of `backfill`."""
    wanted = made(Options, {"tensorboard": False} | options)
    given = str(trainer.args.output_dir) if checkpoints is None else checkpoints
    found = find([given] if isinstance(given, (str, os.PathLike)) else given, strict=wanted.strict)
    with _observing(trainer, wanted) as observing:
        yield Subject(observing, found)


@contextlib.contextmanager
def _observing(trainer: Trainer, options: Options) -> Iterator[Callable[[str | None], Observer]]:
    """What makes an observer of the Trainer's model that writes a run file, or nothing at all."""
    if trainer.args.world_size > 1:
        raise ValueError("backfill measures in one process: start it without torchrun or accelerate launch")
    assert trainer.model is not None  # there is no Trainer without
    model = unwrap(trainer.model)
    with still(model), _as_in_training(trainer):
        seen: dict[str, Any] = {"model": model}
        if trainer.eval_dataset is None and options.eval_dataset is None and trainer.train_dataset is not None:
            seen["train_dataloader"] = trainer.get_train_dataloader()
        mute = replace(options, tensorboard=False)
        yield lambda path: observe(options if path else mute, path, trainer.args, None, trainer, seen)


def watched(places: Place | Iterable[Place], **how: Any) -> Arrivals[Checkpoint]:
    """The `checkpoint-*` of a training that goes on, each as it appears; `how`: see `watching.Arrivals`.

    Args:
        places: folders of them, which need not be there yet, or single ones.
        how: when to look and when to end.

    """
    paths = [Path(place) for place in ([places] if isinstance(places, (str, os.PathLike)) else places)]
    return Arrivals(lambda: [folder for path in paths for folder in _folders(path)], _checkpoint, **how)


@contextlib.contextmanager
def _as_in_training(trainer: Trainer) -> Iterator[None]:
    """The Trainer evaluates as within a training: no half precision but that of the training itself."""
    with as_it_was(trainer):
        trainer.is_in_train = True
        if trainer.accelerator.mixed_precision != "no" and not trainer.accelerator._models:
            trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)  # autocast round its forward
        yield


def find(places: Iterable[Place | Checkpoint], strict: bool = False) -> list[Checkpoint]:
    """The checkpoints of these places: each a checkpoint, a folder of them, or weights that we saved.

    One that does not say where training stood is left out, and the log names it.

    Raises:
        ValueError: a place has none; none is left; or `strict` and one does not say where training stood.

    """
    paths = [path for place in places for path in ([place] if isinstance(place, Checkpoint) else _paths(Path(place)))]
    return readable(paths, _checkpoint, strict, "no checkpoint was given")


def _paths(place: Path) -> list[Path]:
    if place.suffix == ".safetensors":
        return [place]
    if found := _folders(place) or sorted(place.glob("update-*.safetensors")):
        return found
    raise ValueError(f"{place} is no checkpoint of a Trainer (it has no {STATE}) and holds none")


def _folders(path: Path) -> list[Path]:
    """The checkpoints in a folder, or it alone; `trainer.save_state()` makes an output_dir look like one as well."""
    inner = sorted(state.parent for state in path.glob(f"checkpoint-*/{STATE}"))
    if inner or (path / STATE).is_file():
        return inner or [path]
    return sorted(state.parent for state in path.glob(f"*/{STATE}"))


def _checkpoint(folder: Path | Checkpoint) -> Checkpoint:
    if isinstance(folder, Checkpoint):
        return folder
    if folder.suffix == ".safetensors":
        return saved(folder)
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        update, epoch = int(state["global_step"]), float(state["epoch"])
    except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError, OSError) as error:
        raise ValueError(f"{folder / STATE} does not say where training stood ({error!r})") from error
    if not 0 <= update < 2**63:
        raise ValueError(f"{folder / STATE} does not say where training stood (global_step {update})")
    return Checkpoint(update, epoch, str(folder), _loader(folder))


def _loader(folder: Path) -> Callable[[nn.Module], None]:
    def load(model: nn.Module) -> None:
        model.load_state_dict(read(folder, model), strict=True)

    return load


def read(folder: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    """Every weight of `model` from a checkpoint; of its files only those of weights are opened.

    Raises:
        ValueError: no weights, not the model's, or not only weights.

    """
    if isinstance(model, PreTrainedModel):
        return _by_transformers(folder, model)
    if (file := folder / "model.safetensors").is_file():
        from safetensors.torch import load_file

        return load_file(file)
    if (file := folder / "pytorch_model.bin").is_file():
        state: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return state
    raise ValueError(f"{folder} has neither model.safetensors nor pytorch_model.bin")


def _by_transformers(folder: Path, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """By transformers' own loader, which knows shards, tied weights and renamed ones; the config is the model's own."""
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder} holds an adapter, not a model: merge it, or give Checkpoints of your own")
    found: Any = type(model).from_pretrained(
        str(folder),
        config=model.config,
        dtype=model.dtype,
        local_files_only=True,
        weights_only=True,
        output_loading_info=True,
    )
    loaded, told = found
    for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, told[trouble])):
            what, more = trouble.replace("_keys", ""), f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"the weights in {folder} are not this model's: {what} {names[0]}{more}")
    state: dict[str, torch.Tensor] = loaded.state_dict()
    return state
