"""still(model): whatever is done inside, training does not notice.

Restored on the way out, whatever happened: the random states of python, numpy, torch and every GPU;
each module's own training mode; the `.grad` references (None while inside, so that nothing is added to
them); buffers, where they changed; cuDNN's switches. Compiled models run as plain ones inside.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from . import devices


@contextlib.contextmanager
def still(*models: nn.Module) -> Iterator[None]:
    """Put `models` into eval mode with no gradients for a while; leave everything as it was."""
    modules = [m for model in models for m in model.modules()]
    modes = [(m, m.training) for m in modules]
    parameters = [p for model in models for p in model.parameters()]
    grads = [(p, p.grad) for p in parameters]
    buffers = [(m, dict(m._buffers), [b if b is None else b.clone() for b in m._buffers.values()]) for m in modules]
    with _random_states(), _cudnn(), eager():
        try:
            for parameter in parameters:
                parameter.grad = None
            for model in models:
                model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, grad in grads:
                parameter.grad = grad
            for module, references, before in buffers:
                module._buffers.clear()
                module._buffers.update(references)
                for buffer, value in zip(references.values(), before, strict=True):
                    _restore(buffer, value)


def eager() -> contextlib.AbstractContextManager[Any]:
    """Run compiled modules as plain ones: their graphs are made without our hooks, and count against a limit."""
    stance = getattr(torch.compiler, "set_stance", None)  # since torch 2.6
    return stance("force_eager") if stance else contextlib.nullcontext()


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no weight of `model` ask for a gradient for a while: no linear then keeps its input (BERT: 41% less kept).

    A backward pass to gates is the same to the bit, and peaks lower than a training step.
    """
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _restore(buffer: torch.Tensor | None, before: torch.Tensor | None) -> None:
    if buffer is None or before is None:
        return
    same = buffer.shape == before.shape and torch.equal(buffer, before)
    if not same:  # an unchanged buffer is left alone: a write would bump its autograd version
        with torch.no_grad():
            buffer.resize_(before.shape).copy_(before)


@contextlib.contextmanager
def _random_states() -> Iterator[None]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with devices.random_states():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


@contextlib.contextmanager
def _cudnn() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    try:
        yield
    finally:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = before
