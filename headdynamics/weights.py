"""Weights of a snapshot, saved so that it can be measured again later (safetensors: nothing in it can be run)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

logger = logging.getLogger("headdynamics")


def save_weights(model: nn.Module, run_file: str | os.PathLike[str], update: int, strict: bool = False) -> str:
    """Write RUN-weights/update-000123.safetensors beside the run file, whole or not at all; its path, "" on failure."""
    path = Path(run_file).with_suffix("")
    path = path.with_name(f"{path.name}-weights") / f"update-{update:06d}.safetensors"
    temporary = path.with_suffix(".tmp")
    try:
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        weights, shared = _apart(model.state_dict())
        save_file(weights, str(temporary), shared)
        os.replace(temporary, path)
    except Exception as error:  # safetensors raises its own; none may reach training
        if strict:
            raise
        cure = "pip install safetensors" if isinstance(error, ImportError) else "see the cause"
        logger.error("headdynamics could not save the weights of update %d (%s): %s", update, error, cure)
        return ""
    return str(path)


def _apart(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(each tensor once, in a storage of its own; name of a tied one -> the name that it is kept under).

    safetensors keeps no views, and under DeepSpeed every weight is one, into a buffer of them all.
    """
    first: dict[object, str] = {}
    weights, shared = {}, {}
    for name, tensor in state.items():
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        part = () if whole else (tensor.shape, tensor.stride(), tensor.dtype)  # one storage whole is one, in any shape
        where = (tensor.device, tensor.data_ptr(), *part)
        kept = first.setdefault(where if tensor.numel() else name, name)
        if kept != name:
            shared[name] = kept
        else:
            weights[name] = (tensor if whole else tensor.to("cpu", copy=True)).contiguous()
    return weights, shared
