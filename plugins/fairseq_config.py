"""The configuration in a fairseq checkpoint, made harmless.

fairseq calls `eval` on some settings of its models, imports the module that `user_dir` names and starts the
program that `plasma_path` names. So of a checkpoint's configuration only what the model, its task and its
batches need is taken, only plain values, and no text that Python could run.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

TAKEN = ("task", "model", "criterion", "dataset", "optimization")
COMMON = ("seed", "cpu", "fp16", "bf16", "amp", "memory_efficient_fp16", "memory_efficient_bf16",
          "on_cpu_convert_precision")  # fmt: skip
BEST = ("best_checkpoint_metric", "maximize_best_checkpoint_metric")
LARGEST = 10_000  # numbers and letters that a text may grow into


class ConfigError(ValueError):
    """A checkpoint's configuration cannot be used; the message says why."""


def safe_config(found: Mapping[str, Any], data: str, task: Mapping[str, Any], cpu: bool) -> Any:
    """The configuration of one process, from a checkpoint's; `task` changes settings of the task.

    Raises:
        ConfigError: a part is missing, is unknown to this fairseq, or could lead to code being run.

    """
    from fairseq.dataclass.configs import CheckpointConfig, CommonConfig, DistributedTrainingConfig, EMAConfig

    missing = [name for name in (*TAKEN, "common") if not found.get(name)]
    if missing:
        raise ConfigError(f"the checkpoint's cfg has no {missing[0]}")
    taken = {name: found[name] for name in TAKEN}
    taken["common"] = _some(found["common"], COMMON)
    taken["checkpoint"] = _some(found.get("checkpoint") or {}, BEST)
    for name, section in taken.items():
        _check(section, name)
    taken["common"] = asdict(CommonConfig()) | taken["common"] | ({"cpu": True} if cpu else {})
    taken["checkpoint"] = asdict(CheckpointConfig()) | taken["checkpoint"]
    unknown = [name for name in task if name not in found["task"]]
    if unknown:
        raise ConfigError(f"the task {found['task'].get('_name')!r} has no setting {unknown[0]!r}")
    taken["task"] = {**found["task"], **task, "data": data}
    _check_names(taken)
    taken["distributed_training"] = asdict(DistributedTrainingConfig()) | {"distributed_world_size": 1}
    taken["ema"] = asdict(EMAConfig())
    return _omega(taken)


def _omega(taken: dict[str, Any]) -> Any:
    """As fairseq makes one: its older models take a Namespace, which omegaconf 2.0 has no flag for."""
    from fairseq.dataclass.utils import omegaconf_no_object_check
    from omegaconf import OmegaConf

    if "flags" in inspect.signature(OmegaConf.create).parameters:
        return OmegaConf.create(taken, flags={"allow_objects": True})
    with omegaconf_no_object_check():
        return OmegaConf.create(taken)


def _some(section: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: section[name] for name in names if name in section}


def _check(value: Any, place: str) -> None:
    """Plain values only, and no text that is more than text."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ConfigError(f"{place} has a setting that is not named by a text: {name!r}")
            _check(inner, f"{place}.{name}")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check(inner, place)
    elif isinstance(value, str):
        if "${" in value or _runs(value):
            raise ConfigError(f"the checkpoint's {place} is refused, because it could be run as code: {value[:80]!r}")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise ConfigError(f"the checkpoint's {place} is no plain value but a {type(value).__name__}")


def _runs(text: str) -> bool:
    """Whether Python's `eval` of it would do more than to make a few numbers, texts and lists of them."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return False
    except (MemoryError, RecursionError):
        return True
    try:
        return _size(tree.body) > max(LARGEST, len(text))
    except RecursionError:
        return True


def _size(node: ast.AST) -> float:
    """How many numbers and letters it evaluates to, at most; infinity for all that is not allowed.

    Names and their differences and quotients are allowed, for `de-en` and `data/valid.tsv` are such: they can
    neither call nor repeat anything.
    """
    match node:
        case ast.Constant(value=str() | bytes() as text):
            return len(text)
        case ast.Constant() | ast.Name():
            return 1
        case ast.Attribute(value=ast.Name() | ast.Attribute() as inner):
            return _size(inner)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=inner):
            return _size(inner)
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return 1 + sum(map(_size, parts))
        case ast.Dict(keys=keys, values=values):
            return 1 + sum(math.inf if part is None else _size(part) for part in (*keys, *values))
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Div() | ast.FloorDiv()):
            return _size(node.left) + _size(node.right)
        case ast.BinOp(op=ast.Mult(), left=ast.Constant(value=int(times)), right=part):
            return _repeated(part, times)
        case ast.BinOp(op=ast.Mult(), left=part, right=ast.Constant(value=int(times))):
            return _repeated(part, times)
    return math.inf


def _repeated(node: ast.AST, times: int) -> float:
    known = not any(isinstance(inner, ast.Name) for inner in ast.walk(node))
    return _size(node) * max(times, 1) if known and times <= LARGEST else math.inf


def _check_names(config: Mapping[str, Any]) -> None:
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
    from fairseq.tasks import TASK_REGISTRY

    model = config["model"] if isinstance(config["model"], dict) else vars(config["model"])
    arch = model.get("_name") or model.get("arch")
    tables = {
        "task": (config["task"].get("_name"), TASK_REGISTRY),
        "criterion": (config["criterion"].get("_name"), CRITERION_REGISTRY),
        "architecture": (arch, ARCH_MODEL_REGISTRY.keys() | MODEL_DATACLASS_REGISTRY.keys()),
    }
    for what, (name, known) in tables.items():
        if name not in known:
            raise ConfigError(f"this fairseq knows no {what} {name!r}: give the training's own code by --user-dir DIR")


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Whatever further file a model loads while it is built, torch loads it safely (its default since 2.6)."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
