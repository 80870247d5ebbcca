"""Weights of a snapshot, saved so that it can be measured again later (safetensors: nothing in it can be run)."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from torch import nn

logger = logging.getLogger("headdynamics")


def save_weights(model: nn.Module, run_file: str | os.PathLike[str], update: int, strict: bool = False) -> str:
    """Write RUN-weights/update-000123.safetensors beside the run file, whole or not at all; its path, "" on failure."""
    path = Path(run_file).with_suffix("")
    path = path.with_name(f"{path.name}-weights") / f"update-{update:06d}.safetensors"
    temporary = path.with_suffix(".tmp")
    try:
        from safetensors.torch import save_model

        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, str(temporary))
        os.replace(temporary, path)
    except Exception as error:  # safetensors raises its own; none may reach training
        if strict:
            raise
        cure = "pip install safetensors" if isinstance(error, ImportError) else "see the cause"
        logger.error("headdynamics could not save the weights of update %d (%s): %s", update, error, cure)
        return ""
    return str(path)
