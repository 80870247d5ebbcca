"""Build a model whose heads were taken out, and load its weights strictly: nothing is unpickled or run."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..foreign import read_config
from ..heads import Attention, Heads, find_heads, unwrap
from .config import ENTRY, short
from .cut import Edits
from .layouts import Layout, SurgeryError, read_layout
from .remove import cut_planned, planned


def load_pruned(source: Any, weights: Any, **options: Any) -> Any:
    """Load a model from which `prune` took heads.

    `source` is a Hugging Face model class and `weights` the folder that its `save_pretrained` wrote (`options` go to
    `from_pretrained`); or `source` is a model with all its heads (fairseq's, torch's, your own), which is cut in
    place to the shapes of `weights`: a state dict, a file of one, or a fairseq checkpoint. Returns the model.

    Raises:
        SurgeryError: the weights cannot be read, or are not those of this model with fewer heads, or their config asks
            for code from elsewhere. A model that was given is then untouched.

    """
    if isinstance(source, type):
        return _from_pretrained(source, weights, options)
    return _from_state(source, _state(weights))


def _from_pretrained(source: Any, folder: Any, options: dict[str, Any]) -> Any:
    if not hasattr(source, "config_class") or not hasattr(source, "from_pretrained"):
        raise SurgeryError(f"{source.__name__} is no Hugging Face model class such as BertForSequenceClassification")
    if not isinstance(folder, (str, os.PathLike)) or not Path(folder).is_dir():
        raise SurgeryError(f"{folder} is no folder: give one that save_pretrained wrote (of a hub: download it before)")
    options = {"use_safetensors": True, "local_files_only": True, **options, "output_loading_info": True}
    try:
        if options.get("config") is None:
            read_config(Path(folder, options.get("subfolder", "")))
            where = {name: options[name] for name in ("subfolder", "local_files_only") if name in options}
            options["config"] = source.config_class.from_pretrained(folder, **where)
        narrow = type(source.__name__, (source,), {"__init__": _narrow_init(source), "__module__": source.__module__})
        model, info = narrow.from_pretrained(folder, **options)  # type: ignore[attr-defined]
    except SurgeryError:
        raise
    except Exception as error:  # every library below has its own
        raise SurgeryError(f"{folder} cannot be loaded as a pruned {source.__name__}: {error}") from error
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
            _take_entry(self, {} if kept is None else kept)
        if native:
            config.pruned_heads = native

    return init


def _take_entry(model: nn.Module, entry: Any) -> None:
    heads = find_heads(model)
    counts = {short(model, block.name): block.heads for block in heads.blocks}
    if not isinstance(entry, dict):
        raise SurgeryError(f"the config's {ENTRY} is {entry!r:.80}, not lists of heads by the names of their blocks")
    strange = [str(name) for name in entry if name not in counts]
    if strange:
        raise SurgeryError(f"the config tells of heads of {', '.join(strange)}, which {type(model).__name__} has not")
    for name, kept in entry.items():
        numbers = isinstance(kept, list) and all(type(number) is int for number in kept)
        if not numbers or len(set(kept)) != len(kept) or not set(kept) <= set(range(counts[name])):
            raise SurgeryError(
                f"the config's {ENTRY} has {kept!r:.80} for {name}, not a list of heads 0 to {counts[name] - 1}, "
                "each at most once"
            )
    kept_of = [entry.get(name, range(count)) for name, count in counts.items()]
    stays = [number in mine for mine, count in zip(kept_of, counts.values(), strict=True) for number in range(count)]
    _narrow(model, heads, stays, Edits())


def _narrow(model: nn.Module, heads: Heads, stays: list[bool], edits: Edits) -> None:
    """Cut to the shapes of weights that are still to come: a doubt about whose rows go does not matter to them."""
    cut_planned(model, heads, planned(model, heads, torch.tensor(stays)), edits)


def _state(weights: Any) -> Mapping[str, Any]:
    if isinstance(weights, (str, os.PathLike)):
        weights = _file(Path(weights))
    if isinstance(weights, Mapping) and isinstance(weights.get("model"), Mapping):
        weights = weights["model"]
    if not isinstance(weights, Mapping):
        raise SurgeryError(
            f"the weights are a {type(weights).__name__}: give a state dict, a file of one, or a fairseq checkpoint "
            "(of a folder of save_pretrained: load_pruned(ItsClass, folder))"
        )
    return weights


def _file(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(str(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SurgeryError(
            f"{path} is damaged, or holds more than tensors and plain values, so it was not loaded (weights_only). For "
            "a fairseq checkpoint call headdynamics.plugins.fairseq_trainer.allow_fairseq_checkpoints() before"
        ) from error
    except Exception as error:  # torch and safetensors have many for damaged files
        raise SurgeryError(f"{path} cannot be read as a file of weights: {error}") from error


def _from_state(model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
    inner = unwrap(model)
    heads = find_heads(inner)
    names = {id(module): name for name, module in inner.named_modules()}
    stays = [bit for block in heads.blocks for bit in _stays(block, names, state)]
    with Edits() as edits:
        _narrow(inner, heads, stays, edits)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "(?s).*copying from a non-meta parameter")
                _load(_without_weights(inner), dict(state))
        except Exception as error:  # a model may have a load_state_dict of its own
            raise SurgeryError(f"not the weights of this model: {error}") from error
    _load(inner, dict(state))
    return model


def _load(model: nn.Module, state: dict[str, Any]) -> None:
    """Load strictly, but for weights that are tied to one that is loaded."""
    report = model.load_state_dict(state, strict=False)
    loaded = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in state}
    tied = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in loaded}
    missing = [name for name in report.missing_keys if name not in tied]
    if missing or report.unexpected_keys:
        raise SurgeryError(f"missing {missing}, unexpected {report.unexpected_keys}")


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy to try the loading on, so that the model itself is written only by weights that fit."""
    bare = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, dict[int, Any](bare))  # what it finds there it does not copy


def _stays(block: Attention, names: Mapping[int, str], state: Mapping[str, Any]) -> list[bool]:
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


def _width(layout: Layout, part: Any, names: Mapping[int, str], state: Mapping[str, Any]) -> int:
    key = f"{names[id(part.owner)]}.{part.weight}"
    if key not in state:
        raise SurgeryError(f"not the weights of this model: {key} is missing")
    shape = tuple(getattr(state[key], "shape", ()))
    if len(shape) <= part.axis:
        raise SurgeryError(f"not the weights of this model: {key} has the shape {shape}")
    return int(shape[part.axis])
