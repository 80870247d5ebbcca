"""What was taken out, written into a Hugging Face model's config: plain numbers, and only what the library lacks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..heads import HeadsError, find_heads
from .cut import GROUPS, HEADS, Edits
from .layouts import GROUP_SIZES, SurgeryError, read_layout
from .remove import Plan

#: the entry in the config: attention block (its path in the base model) -> the original numbers of its heads
ENTRY = "kept_heads"
COUNTS = (*HEADS, "encoder_attention_heads", "decoder_attention_heads")
TELLING = (*HEADS, *GROUPS, *GROUP_SIZES, "head_dim", "scaling", "scale", "kept_bias")


def write_config(model: nn.Module, plans: Mapping[str, Plan], edits: Edits) -> None:
    """Give `model` a config of its own, of which `save_pretrained` writes all that is needed to build it again.

    Where the model's own class builds these shapes from its config (equal head counts and an explicit head size;
    `pruned_heads` in transformers 4), the config says it in the library's words; else the entry `kept_heads` does.
    """
    if not plans or not hasattr(getattr(model, "config", None), "to_dict"):
        return
    config = _own_config(model, edits)
    entry = dict(getattr(config, ENTRY, None) or {})
    for name, plan in plans.items():
        old = entry.get(short(model, name), range(plan.layout.block.heads))
        entry[short(model, name)] = [old[head] for head in plan.heads]
    said = next((words for words in _own_words(model, config, entry) if _builds(model, words)), {})
    if getattr(config, "pruned_heads", None):  # of an earlier cut
        config.pruned_heads = {}
    for name, value in said.items():
        setattr(config, name, value)
    setattr(config, ENTRY, None if said and "pruned_heads" not in said else entry)


def _own_config(model: Any, edits: Edits) -> Any:
    """A copy of `model.config`, which other models may share, in the place of it and of its parts in all modules."""
    memo: dict[int, Any] = {}
    config = copy.deepcopy(model.config, memo)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if hasattr(value, "to_dict") and id(value) in memo:
                edits.set(module, name, memo[id(value)])
    return config


def short(model: Any, name: str) -> str:
    """The path of a block in the base model, the same whatever head the base model bears."""
    prefix = getattr(model, "base_model_prefix", "")
    return name.removeprefix(f"{prefix}.") if prefix else name


def _own_words(model: Any, config: Any, entry: Mapping[str, list[int]]) -> Iterator[dict[str, Any]]:
    try:
        blocks = find_heads(model).blocks
        layouts = [read_layout(block) for block in blocks]
    except (HeadsError, SurgeryError):  # none is left, or a block that was not cut is of an unknown layout
        return
    shapes = {(layout.block.heads, layout.groups, layout.size) for layout in layouts}
    if len(shapes) == 1:
        heads, groups, size = shapes.pop()
        counts = {name: heads for name in COUNTS} | {name: groups for name in GROUPS}
        known = {name: value for name, value in counts.items() if isinstance(getattr(config, name, None), int)}
        yield {**known, "head_dim": size}  # Qwen2's attention and ViT's read it, though their configs do not name it
    if hasattr(getattr(model, "base_model", None), "_prune_heads") and len({block.kind for block in blocks}) == 1:
        layers = {short(model, block.name): block.layer for block in blocks}
        if entry.keys() <= layers.keys():
            every = [getattr(config, name) for name in COUNTS if hasattr(config, name)][0]
            gone = {layers[name]: sorted(set(range(every)) - set(kept)) for name, kept in entry.items()}
            yield {"pruned_heads": gone}


def _builds(model: Any, words: Mapping[str, Any]) -> bool:
    """Whether the model's class, from a config of these words, builds the very shapes and counts of `model`."""
    config = copy.deepcopy(model.config)
    for name, value in {"pruned_heads": {}, **words}.items():
        setattr(config, name, copy.deepcopy(value))
    setattr(config, ENTRY, None)
    device = "cpu" if "pruned_heads" in words else "meta"  # transformers 4 cannot cut what is on meta
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            other = type(model)(config)
    except Exception:  # a config that its own class refuses does not build the model
        return False
    return _looks(other) == _looks(model)


def _looks(model: nn.Module) -> tuple[Any, ...]:
    shapes = [(name, tuple(value.shape)) for name, value in model.state_dict().items()]
    modules = [
        (name, type(module), [getattr(module, word, None) for word in TELLING])
        for name, module in model.named_modules()
        if hasattr(module, "_parameters")
    ]
    return shapes, modules
