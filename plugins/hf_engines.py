"""Engines that a Trainer trains on: which ones shard the model, and which ones leave no process anything to measure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, DynamoBackend
from torch import nn
from transformers.training_args import ParallelMode

from headdynamics.heads import HeadsError

FSDP, ZERO = "FSDP", "DeepSpeed ZeRO 3"


def sharded() -> str:
    """The engine that leaves each process a shard of every weight, of the training at hand; "" where none does.

    What was asked for does not tell: accelerate trains on CPUs without FSDP whatever the arguments say.
    """
    state = AcceleratorState()
    if getattr(state.deepspeed_plugin, "zero_stage", 0) == 3:
        return ZERO
    return FSDP if state.distributed_type == DistributedType.FSDP else ""


def compiled() -> bool:
    """Whether the training at hand compiles its model: by its own arguments, or as `accelerate launch` was asked to."""
    plugin = getattr(AcceleratorState(), "dynamo_plugin", None)
    return plugin is not None and plugin.backend != DynamoBackend.NO


def check_engine(model: nn.Module, args: Any) -> None:
    """Complain before training about an engine under which heads cannot be measured.

    Raises:
        HeadsError: processes hold different parts of the model or of an example.

    """
    for name in _unmeasurable(model, args):
        raise HeadsError(
            f"{name} is not supported: no process has whole heads on whole examples. Measure the checkpoints "
            "afterwards with headdynamics backfill"
        )


def _unmeasurable(model: nn.Module, args: Any) -> Iterator[str]:
    kind, mode = AcceleratorState().distributed_type, getattr(args, "parallel_mode", None)
    if kind == DistributedType.XLA or mode == ParallelMode.TPU or (args.fsdp and (args.fsdp_config or {}).get("xla")):
        yield "TPU/XLA"
    if mode == ParallelMode.SAGEMAKER_MODEL_PARALLEL:
        yield "SageMaker's model parallelism"
    if kind == DistributedType.MEGATRON_LM:
        yield "Megatron-LM"
    split = getattr(args, "parallelism_config", None) or getattr(AcceleratorState(), "parallelism_config", None)
    deepspeed = getattr(getattr(args, "hf_deepspeed_config", None), "config", {})
    tensor = [getattr(model, "_tp_size", 1), getattr(split, "tp_size", 1)]
    tensor.append((deepspeed.get("tensor_parallel") or {}).get("autotp_size", 1))
    if any((size or 1) > 1 for size in tensor):
        yield "tensor parallelism"
    for size, name in (("cp_size", "context parallelism"), ("sp_size", "sequence parallelism")):
        if (getattr(split, size, 1) or 1) > 1:
            yield name
    if getattr(model, "is_distributed_loading_by_transformers", False) is True:
        yield "a model that from_pretrained has sharded (distributed_config)"
