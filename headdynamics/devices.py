"""What differs from one kind of GPU to another: the widest float, random states, memory that torch keeps back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def widest(device: torch.device) -> torch.dtype:
    """float64, where the device has it: Apple's GPUs do not."""
    return torch.float32 if device.type == "mps" else torch.float64


def on_host(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's values, float64 [its shape]; widened on the host, because the device may not be able to."""
    return tensor.detach().cpu().double().numpy()


@contextlib.contextmanager
def random_states() -> Iterator[None]:
    """Put the random state of every GPU back at the end."""
    with contextlib.ExitStack() as back:
        for gpu in _awake():
            if hasattr(gpu, "get_rng_state_all"):
                back.callback(gpu.set_rng_state_all, gpu.get_rng_state_all())
            else:  # Apple's: a machine has one
                back.callback(gpu.set_rng_state, gpu.get_rng_state())
        yield


def give_memory_back() -> None:
    """Let go of the memory that torch keeps for tensors to come."""
    for gpu in _awake():
        gpu.empty_cache()


def _awake() -> list[Any]:
    """Modules of torch, one a kind of GPU that this process uses: to ask another would wake it, which takes memory."""
    several = [getattr(torch, name, None) for name in ("cuda", "xpu")]  # torch.xpu came with torch 2.3
    found = [gpu for gpu in several if gpu is not None and gpu.is_available() and gpu.is_initialized()]
    return [*found, torch.mps] if torch.backends.mps.is_available() else found
