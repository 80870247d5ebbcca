"""Checkpoints of a fairseq training, `checkpoint*.pt`: found, and read as data; nothing in them is ever run."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from headdynamics.checkpoints import readable
from headdynamics.watching import Arrivals

from .fairseq_trainer import allow_fairseq_checkpoints


class Stand(NamedTuple):
    """Where training stood when a checkpoint was written."""

    path: Path
    update: int
    epoch: int  # the epoch in progress, from 1
    iterations: int  # batches of it that were done
    mapped: bool = True  # the file stays as it is, so that it may be read by mapping it into memory


def find(places: Iterable[Path], strict: bool = False) -> list[Stand]:
    """Every checkpoint that can be read; one that cannot is left out, and the log names it.

    Raises:
        ValueError: there is none, or `strict` and one cannot be read; the message has the reason of the first.

    """
    return readable(_files(places), _stand, strict, "no checkpoint*.pt in the given folders")


def watched(places: Sequence[Path], **how: Any) -> Arrivals[Stand]:
    """The checkpoints of a training that goes on, each as it appears; `how`: see `Arrivals`.

    A file may be written over at any time (`checkpoint_last.pt`), so none is mapped into memory: a mapped file that
    is cut ends the process.
    A torch that can read none is a ValueError: the watching would never end.
    """
    arrivals = Arrivals(lambda: _files(places), partial(_stand, mapped=False), **how)
    _able()
    return arrivals


def _files(places: Iterable[Path]) -> list[Path]:
    return [path for place in places for path in (sorted(place.glob("checkpoint*.pt")) if place.is_dir() else [place])]


def read(path: Path, mapped: bool = True) -> dict[str, Any]:
    """A checkpoint's content by torch's safe loader; `mapped`: what is not used of it is not read.

    Raises:
        ValueError: the file is damaged, is no fairseq checkpoint, or holds more than tensors and plain values; or
            this torch cannot read such files without running what they hold.

    """
    _able()
    try:
        mmap = (mapped and zipfile.is_zipfile(path)) or None
        state = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        why = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
        raise ValueError(
            f"{path} is not loaded: it is damaged or holds more than tensors and plain values, and nothing in a "
            f"checkpoint is ever run. {why}".rstrip()
        ) from error
    except Exception as error:  # damaged bytes lead torch to struct.error, IndexError, KeyError, ...
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict) or not {"model", "optimizer_history", "extra_state"} <= state.keys():
        raise ValueError(f"{path} is no checkpoint of fairseq-train")
    return state


def _able() -> None:
    if not allow_fairseq_checkpoints():
        raise ValueError(
            f"no checkpoint is loaded: torch {torch.__version__} cannot read fairseq's without running what they hold; "
            "torch 2.4 and later can"
        )


def reread(stand: Stand) -> dict[str, Any]:
    """The content of a checkpoint that was found; ValueError where it was written over since."""
    state = read(stand.path, stand.mapped)
    if _stood(stand.path, state, stand.mapped) != stand:
        raise ValueError(f"{stand.path} was written over meanwhile")
    return state


def _stand(path: Path, mapped: bool = True) -> Stand:
    return _stood(path, read(path, mapped), mapped)


def _stood(path: Path, state: Mapping[str, Any], mapped: bool) -> Stand:
    try:
        at = state["extra_state"]["train_iterator"]
        update = int(state["optimizer_history"][-1]["num_updates"])
        stand = Stand(path, update, int(at["epoch"]), int(at["iterations_in_epoch"]), mapped)
    except Exception as error:  # anything may be in their place
        raise ValueError(f"{path} does not say where training stood ({error!r})") from error
    if not all(0 <= number < 2**63 for number in stand[1:4]):
        raise ValueError(f"{path} does not say where training stood ({stand[1:4]})")
    return stand
