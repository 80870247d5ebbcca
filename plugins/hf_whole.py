"""The model to measure where training holds shards of it: a copy that has weights only while it is measured.

    kept = Kept()
    kept.keep(model)                        # before training wraps it; takes no memory for weights
    with kept.whole(trained) as model:      # all processes: every weight of `trained`, in one piece
        ...
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import convert_outputs_to_fp32
from torch import nn

from headdynamics.heads import HeadsError, unwrap

from .hf_engines import FSDP, ZERO, sharded

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")  # in the names of buffers


class Kept:
    """What is known of a Trainer's model before training: a `Whole`, if training is going to shard it."""

    def __init__(self) -> None:
        self._found: Whole | HeadsError | None = None

    def keep(self, model: nn.Module) -> None:
        """Look at a model before training; a failure is kept as well, until it is asked for."""
        engine = sharded()
        try:
            self._found = Whole(model, engine) if engine else None
        except Exception as error:
            self._found = HeadsError(f"no copy can be made of the model that {engine} shards: {error}")

    def unsharded(self, model: nn.Module) -> nn.Module:
        """The model of training, with all its layers; weights it may have none.

        Raises:
            HeadsError: training shards the model, and it was not seen before that, or it cannot be copied.

        """
        if isinstance(self._found, HeadsError):
            raise self._found
        if self._found is None and (engine := sharded()):
            raise HeadsError(f"{engine} had sharded the model before headdynamics saw it: use headdynamics.attach")
        return model if self._found is None else self._found.model

    @contextlib.contextmanager
    def whole(self, trained: nn.Module) -> Iterator[nn.Module]:
        """The model of training, with all its weights, for a while; every process has to ask for it."""
        if isinstance(self._found, Whole):
            with self._found.filled(trained) as model:
                yield model
        else:
            yield trained


class Whole:
    """The model as it is before FSDP or ZeRO 3 shards it, without weights; they come and go by `filled`.

    Under mixed precision it computes as a model of DDP does: whole weights within autocast.

    Raises:
        HeadsError: it has been sharded already.

    """

    def __init__(self, model: nn.Module, engine: str) -> None:
        model, self.engine = unwrap(model), engine
        if engine == FSDP and any("FSDP" in kind.__name__ for kind in type(model).__mro__):
            raise HeadsError("it is sharded already; attach before the first training")
        empty = {id(p): _empty(p) for p in model.parameters()}
        self.model = copy.deepcopy(model, dict(empty))  # which takes these for the copies of the weights
        names = {id(empty[id(p)]): name for name, p in model.named_parameters()}
        self._places = [
            (module, own, names[id(p)]) for module in self.model.modules() for own, p in _own(module).items()
        ]
        self._empty = {names[id(p)]: p for p in empty.values()}
        if (half := HALF.get(str(AcceleratorState().mixed_precision))) is not None:
            forward = torch.autocast(AcceleratorState().device.type, half)(self.model.forward)
            self.model.forward = convert_outputs_to_fp32(forward)

    @contextlib.contextmanager
    def filled(self, trained: nn.Module) -> Iterator[nn.Module]:
        """The whole model, for a while; every process has to ask for it."""
        device = AcceleratorState().device
        try:
            weights = _of_zero(trained) if self.engine == ZERO else _of_fsdp(trained)
            found = {name: weights[name].to(device) for name in self._empty}
            self._fill({name: nn.Parameter(found.pop(name), p.requires_grad) for name, p in self._empty.items()})
            del weights
            self._copy_buffers(trained, device)
            yield self.model
        finally:
            self._fill(self._empty)

    def _fill(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for module, own, name in self._places:
            module._parameters[own] = parameters[name]

    def _copy_buffers(self, trained: nn.Module, device: torch.device) -> None:
        """No engine shards these; under some ways of loading only the trained model has them."""
        for name, buffer in trained.named_buffers():
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            path, _, own = name.rpartition(".")
            self.model.get_submodule(path)._buffers[own] = buffer.detach().clone().to(device)


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module._parameters.items() if p is not None}


def _empty(parameter: nn.Parameter) -> nn.Parameter:
    shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO 3 may have loaded it in shards
    return nn.Parameter(torch.empty(shape, dtype=parameter.dtype, device="meta"), parameter.requires_grad)


def _of_fsdp(trained: nn.Module) -> Mapping[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(trained, options=StateDictOptions(full_state_dict=True, cpu_offload=False))


def _of_zero(trained: nn.Module) -> Mapping[str, Any]:
    """One weight after the other, so that two whole models never stand side by side."""
    import deepspeed

    found = {}
    for name, parameter in unwrap(trained).named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            found[name] = parameter.detach().clone()
    return found
