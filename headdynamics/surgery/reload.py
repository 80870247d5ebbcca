"""Build a model whose heads were taken out, and load its weights strictly: nothing is unpickled or run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..heads import Attention, find_heads, unwrap
from .config import ENTRY, short
from .layouts import Layout, SurgeryError, read_layout
from .remove import take_out


def load_pruned(source: Any, weights: Any, **options: Any) -> Any:
    """Load a model from which `prune` took heads.

    `source` is a Hugging Face model class and `weights` what its `save_pretrained` wrote (`options` go to
    `from_pretrained`); or `source` is a model with all its heads (fairseq's, torch's, your own), which is cut in
    place to the shapes of `weights`: a state dict, a file of one, or a fairseq checkpoint. Returns the model.

    Raises:
        SurgeryError: the weights are not those of this model with fewer heads.

    """
    if isinstance(source, type):
        return _from_pretrained(source, weights, options)
    return _from_state(source, _state(weights))


def _from_pretrained(source: Any, folder: Any, options: dict[str, Any]) -> Any:
    config = options.pop("config", None) or source.config_class.from_pretrained(folder)
    narrow = type(source.__name__, (source,), {"__init__": _narrow_init(source), "__module__": source.__module__})
    options = {"use_safetensors": True, **options, "config": config, "output_loading_info": True}
    model, info = narrow.from_pretrained(folder, **options)  # type: ignore[attr-defined]
    wrong = {what: names for what, names in info.items() if names}
    if wrong:
        raise SurgeryError(f"{folder} does not hold the weights of a pruned {source.__name__}: {wrong}")
    model.__class__ = source
    return model


def _narrow_init(source: Any) -> Any:
    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        kept, native = getattr(config, ENTRY, None), getattr(config, "pruned_heads", None)
        if native:
            config.pruned_heads = {}  # transformers 4 would cut as well
        source.__init__(self, config, *args, **kwargs)
        with torch.device("cpu"):  # from_pretrained builds on meta; only weights belong there
            _take_entry(self, kept or {})
        if native:
            config.pruned_heads = native

    return init


def _take_entry(model: nn.Module, entry: Mapping[str, list[int]]) -> None:
    heads = find_heads(model)
    names = {short(model, block.name): block.heads for block in heads.blocks}
    strange = [name for name in entry if name not in names]
    if strange:
        raise SurgeryError(f"the config tells of heads of {', '.join(strange)}, which {type(model).__name__} has not")
    kept = [entry.get(name, range(count)) for name, count in names.items()]
    stays = [number in mine for mine, count in zip(kept, names.values(), strict=True) for number in range(count)]
    take_out(model, heads, torch.tensor(stays))


def _state(weights: Any) -> Mapping[str, torch.Tensor]:
    if isinstance(weights, (str, os.PathLike)):
        if Path(weights).suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(weights)
        else:
            weights = _safely(weights)
    return weights["model"] if isinstance(weights.get("model"), Mapping) else weights


def _safely(path: str | os.PathLike[str]) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SurgeryError(
            f"{path} holds more than tensors and plain values, so it was not loaded (weights_only). For a fairseq "
            "checkpoint call headdynamics.plugins.fairseq_trainer.allow_fairseq_checkpoints() before"
        ) from error


def _from_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> nn.Module:
    inner = unwrap(model)
    heads = find_heads(inner)
    names = {id(module): name for name, module in inner.named_modules()}
    stays = [bit for block in heads.blocks for bit in _stays(block, names, state)]
    take_out(inner, heads, torch.tensor(stays))
    report = inner.load_state_dict(dict(state), strict=False)
    loaded = {id(p) for name, p in inner.named_parameters(remove_duplicate=False) if name in state}
    tied = {name for name, p in inner.named_parameters(remove_duplicate=False) if id(p) in loaded}
    missing = [name for name in report.missing_keys if name not in tied]
    if missing or report.unexpected_keys:
        raise SurgeryError(f"not the weights of this model: missing {missing}, unexpected {report.unexpected_keys}")
    return model


def _stays(block: Attention, names: Mapping[int, str], state: Mapping[str, torch.Tensor]) -> list[bool]:
    """Which heads to leave: as many as the weights have, the first ones (their weights are replaced anyway)."""
    layout = read_layout(block)
    count = _width(layout, layout.output, names, state) // layout.size
    if count > block.heads:
        raise SurgeryError(f"the weights have {count} heads in {block.name}, more than the model's {block.heads}")
    if count < block.heads and block.kind != "cross" and hasattr(block.module, "has_relative_attention_bias"):
        raise SurgeryError(
            f"{block.name} takes its position bias by the number of the head, which a state dict does not tell: "
            "save with save_pretrained and give load_pruned the class"
        )
    grouped = layout.groups != block.heads
    groups = _width(layout, layout.inputs[-1], names, state) // layout.size if grouped else count
    each = count // max(groups, 1)
    return [h // layout.per_group < groups and h % layout.per_group < each for h in range(block.heads)]


def _width(layout: Layout, part: Any, names: Mapping[int, str], state: Mapping[str, torch.Tensor]) -> int:
    key = f"{names[id(part.owner)]}.{part.weight}"
    if key not in state:
        raise SurgeryError(f"not the weights of this model: {key} is missing")
    return int(state[key].shape[part.axis])
