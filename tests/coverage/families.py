"""Every model type of the installed transformers, as a tiny model with weights that matter and a batch it takes."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from inputs import batches_for
from oracles import outputs
from shrink import ROWS, shrunk
from torch import nn
from transformers.models.auto import configuration_auto, modeling_auto

LARGEST = 16_000_000  # parameters; a model above this was not made tiny


class NotTinyError(Exception):
    """A family that cannot be built tiny from its configuration, or takes inputs that we do not generate."""


@dataclass(frozen=True)
class Tiny:
    """One family: its model in float64 and eval mode, and a batch of keyword inputs."""

    family: str
    model: nn.Module
    batch: dict[str, Any]
    rows: int  # examples in the batch


def families() -> list[str]:
    """Every model type of this transformers, in alphabetic order."""
    return sorted(configuration_auto.CONFIG_MAPPING_NAMES)


def tiny(family: str, rows: int = ROWS) -> Tiny:
    """Build `family` tiny; NotTinyError says in one line why it cannot be."""
    given = GIVEN.get(family, {})
    try:
        config = shrunk(configuration_auto.CONFIG_MAPPING[family], **given)
    except Exception as error:
        why = "it asks a hub for files" if "connect" in str(error) else _line(error)
        raise NotTinyError(f"configuration: {why}") from error
    failures: list[str] = []
    try:
        classes = list(_classes(family, type(config)))
    except ImportError as error:
        raise NotTinyError(_line(error)) from error
    for cls in classes:
        for dtype in (torch.float64, torch.float32):
            before = len(failures)
            found = _tried(family, cls, config, dtype, rows, failures)
            if found:
                return found
            if not any(re.search(r"dtype|Double|float64|overflow", line) for line in failures[before:]):
                break  # the same in every dtype
    raise NotTinyError((failures or ["no model class takes this configuration"])[0])


def _tried(
    family: str, cls: type[nn.Module], config: Any, dtype: torch.dtype, rows: int, failures: list[str]
) -> Tiny | None:
    """One class in one dtype, with the first batch that it takes; what fails is added to `failures`."""
    try:
        model = _built(cls, config, dtype)
        batches = list(batches_for(model, config, rows))
    except Exception as error:
        failures.append(f"{cls.__name__}: {_line(error)}")
        return None
    if not batches:
        failures.append(f"{cls.__name__}: what it takes as inputs is not known")
    for batch in batches:
        try:
            with torch.no_grad():
                if not any(t.isfinite().all() for t in outputs(model, batch)):
                    raise FloatingPointError(f"no finite output in {dtype}")
            return Tiny(family, model, batch, rows)
        except Exception as error:
            failures.append(f"{cls.__name__}: {_line(error)}")
    return None


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:110]}" if text else type(error).__name__


def _classes(family: str, config_class: type) -> Iterator[type[nn.Module]]:
    """Model classes for a configuration: the base model first, then those with a head; three at most."""
    module = configuration_auto.model_type_to_module_name(family)
    package = importlib.import_module(f"transformers.models.{module}")
    found: dict[str, type[nn.Module]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("modeling_") and not info.name.startswith(("modeling_tf", "modeling_flax")):
            source = importlib.import_module(f"{package.__name__}.{info.name}")
            for name, cls in inspect.getmembers(source, inspect.isclass):
                if issubclass(cls, transformers.PreTrainedModel) and cls.config_class is config_class:
                    if "forward" in vars(cls) and cls.__module__ == source.__name__:
                        found[name] = cls
    base = modeling_auto.MODEL_MAPPING_NAMES.get(family)
    base = base if isinstance(base, tuple) else (base,)
    ranked = sorted(found, key=lambda n: (n not in base, "For" in n, not n.endswith("Model"), n))
    yield from (found[name] for name in ranked[:3])


def _built(cls: type[nn.Module], config: Any, dtype: torch.dtype) -> nn.Module:
    config._experts_implementation = "eager"  # the faster ones know no float64
    with torch.device("meta"):
        size = sum(p.numel() for p in cls._from_config(config, attn_implementation="eager").parameters())
    if size > LARGEST:
        raise NotTinyError(f"{size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = cls._from_config(config, attn_implementation="eager").to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
RESNET = {"model_type": "resnet", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 32, 32], "embedding_size": 8}
DETR = {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False, "backbone_config": RESNET}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
MIXED = {"layer_types": ["linear_attention", "full_attention"]}

#: fields whose small values the rules cannot know, family by family; those that a version lacks are left out
GIVEN: dict[str, dict[str, Any]] = {
    **{f: {"rope_parameters": MROPE, "rope_scaling": MROPE} for f in (
        "glm4v_text", "glm_image_text", "glm_ocr_text", "paddleocr_vl_text", "qwen2_5_omni_text", "qwen2_5_vl_text",
        "qwen2_vl_text", "qwen2_5_omni_talker")},
    **{f: {"text_config.rope_parameters": MROPE, "text_config.rope_scaling": MROPE} for f in (
        "glm46v", "glm4v", "glm4v_moe", "glm_ocr", "paddleocr_vl", "qwen2_5_vl", "qwen2_vl", "qwen2_5_omni_thinker")},
    **{f: {"rope_parameters": ROPE} for f in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral", "hunyuan_vl_text")},
    **{f: DETR for f in ("detr", "conditional_detr", "deformable_detr", "table-transformer")},
    **{f: EXPERTS for f in ("deepseek_v2", "dots1", "deepseek_ocr2_text", "longcat_flash", "lfm2_moe")},
    "bamba": {"attn_layer_indices": [1]},
    "bridgetower": {"hidden_size": 128, "text_config.hidden_size": 128, "vision_config.hidden_size": 128},
    "bridgetower_vision_model": {"hidden_size": 128},
    "bros": {"hidden_size": 64},
    "dab-detr": {**DETR, "query_dim": 4},
    "diffusion_gemma_text": {"head_dim": 8},
    "esm": {"vocab_size": 33},
    "falcon_h1": {"mamba_chunk_size": 8},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3n_text": {"intermediate_size": 64},
    "glm4v_moe_text": {"rope_parameters": {**MROPE, "mrope_section": [1, 1, 0]}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "layers_block_type": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "input_size": 32},
    "lilt": {"hidden_size": 48},
    "longformer": {"attention_window": 4},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "perceiver": {"num_self_attends_per_block": 2, "num_latents": 8},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "swinv2": {"image_size": 64, "window_size": 2},
    "donut-swin": {"image_size": [64, 64], "window_size": 2},
    "t5gemma2": {"encoder.mm_tokens_per_image": 4},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}  # fmt: skip
