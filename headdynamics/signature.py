"""The signature: what makes a number what it is. Its hash says whether two runs are the same run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from .heads import Heads


def signature(
    model: nn.Module,
    heads: Heads,
    batches: Iterable[Any],
    settings: Mapping[str, Any],
    scored: Iterable[Any] | None = None,
    beside: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Settings, model, heads, data fingerprint and versions; `hash` covers all of it but the versions.

    `scored` are the examples of the score, where they are known: their fingerprint is in no hash, so that a run keeps
    the hash that it had before there was one. `beside` are settings that are shown and in no hash, because they change
    which rows there are, or of how many examples, and not what is measured.
    """
    identity = {
        "settings": dict(settings),
        "model": type(model).__name__,
        "parameters": {name: list(p.shape) for name, p in model.named_parameters()},
        "heads": heads.table(),
        "data": fingerprint(batches),
    }
    text = json.dumps(identity, sort_keys=True, default=_lasting)
    return {
        "settings": {**settings, **(beside or {})},
        "data": identity["data"],
        **({} if scored is None else {"scored": identity["data"] if scored is batches else fingerprint(scored)}),
        "hash": hashlib.sha256(text.encode()).hexdigest(),
        "versions": versions(),
    }


def scored_examples(score: Any) -> Iterable[Any] | None:
    """What a score is measured on, its `batches` or `examples`; None where it does not tell."""
    for name in ("batches", "examples"):
        found = getattr(score, name, None)
        if isinstance(found, Iterable) and not isinstance(found, Iterator):  # an iterator would be used up
            return found
    return None


def _lasting(value: Any) -> str:
    """Text of a value that is the same in the next process: an address in memory is not."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


def versions() -> dict[str, str]:
    """Versions of python and of the libraries that numbers depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in ("headdynamics", "torch", "numpy", "transformers", "fairseq", "ve-fairseq", "sacrebleu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def fingerprint(batches: Iterable[Any]) -> str:
    """SHA-256 over every tensor of the batches, with names and shapes; their own `fingerprint`, where they have one.

    Batches have one where their order or padding is chosen for speed: that of the same examples as they were drawn.
    """
    own = getattr(batches, "fingerprint", None)
    if isinstance(own, str):
        return own
    digest = hashlib.sha256()

    def feed(name: str, value: Any) -> None:
        if isinstance(value, Mapping) or hasattr(value, "items"):
            for key, item in sorted(value.items(), key=lambda pair: str(pair[0])):
                feed(f"{name}.{key}", item)
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                feed(f"{name}.{i}", item)
        elif isinstance(value, (torch.Tensor, np.ndarray)):
            array = value.detach().cpu().float().numpy() if isinstance(value, torch.Tensor) else value
            digest.update(f"{name}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        else:
            digest.update(f"{name}={_lasting(value)}".encode())

    for i, batch in enumerate(batches):
        feed(str(i), batch)
    return digest.hexdigest()
