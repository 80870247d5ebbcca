"""One loss per example, [B]: what I(h) differentiates.

A loss is any `loss(model, batch) -> [B]`. The default reads logits and labels as every Hugging Face
head lays them out, and averages over an example's own target tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Loss = Callable[[nn.Module, Any], torch.Tensor]
IGNORED = -100  # the label that counts for nothing, as in torch and transformers
LABELS = ("labels", "label", "label_ids")
#: causal language models of transformers (4.57 to 5.24) that compare the logits at t with the label at t
IN_PLACE = {
    f"{name}ForCausalLM"
    for name in (
        "Bart BigBirdPegasus Blenderbot BlenderbotSmall CpmAnt MBart Marian Mvp PLBart Pegasus ProphetNet TrOCR Whisper"
    ).split()
} | {"XLNetLMHeadModel"}


class NoLabelsError(ValueError):
    """A batch has nothing to compute a loss from."""


def check_losses(losses: torch.Tensor) -> torch.Tensor:
    """The losses of a batch, after making sure that they are one an example, [B]; else ValueError."""
    if losses.dim() != 1:
        raise ValueError(
            f"a loss gives one number an example, [B], and this one gave shape {list(losses.shape)}: torch's give "
            "it with reduction='none', and those of tokens are averaged over each example's own"
        )
    return losses


def cross_entropy(model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Cross-entropy from logits and labels, [B], in nats; the mean over each example's own target tokens.

    Classification ([B] labels), regression (one float label), several labels (float [B, C]), token
    labels ([B, T], shifted by one for causal language models), and question answering spans.

    Raises:
        NoLabelsError: the batch has no labels.

    """
    output = forward(model, batch)
    regression = getattr(getattr(model, "config", None), "problem_type", None) == "regression"
    return per_example(output, batch, predicts_next(model), regression)


def forward(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """The model's output for a batch, without the cache of keys and values that decoders keep for generation."""
    cached = "use_cache" not in batch and "use_cache" in inspect.signature(model.forward).parameters
    return model(**batch, use_cache=False) if cached else model(**batch)


def predicts_next(model: nn.Module) -> bool:
    """Whether a model's logits at t are for the label at t + 1 (a causal LM without an encoder)."""
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    name = type(model).__name__
    if encoder_decoder or "WithLMHead" in name or name in IN_PLACE:  # XLM and FlauBERT are named WithLMHead
        return False
    return "CausalLM" in name or "LMHead" in name or "DoubleHeads" in name


def find_labels(batch: Mapping[str, Any]) -> torch.Tensor:
    """The labels of a batch, or NoLabelsError naming what the batch has."""
    for name in LABELS:
        if batch.get(name) is not None:
            labels = batch[name]
            return labels if isinstance(labels, torch.Tensor) else torch.as_tensor(labels)
    raise NoLabelsError(
        f"the batch has no labels (it has {', '.join(batch)}): give examples with one of {', '.join(LABELS)}, "
        "or a loss of your own, loss(model, batch) -> [B]"
    )


def per_example(output: Any, batch: Mapping[str, Any], shifted: bool = False, regression: bool = False) -> torch.Tensor:
    """Losses [B] from a model's output and its batch; see `cross_entropy`."""
    if "start_positions" in batch:
        return (
            _span(output["start_logits"], batch["start_positions"])
            + _span(output["end_logits"], batch["end_positions"])
        ) / 2
    labels = find_labels(batch)
    logits = _wide(output["logits"])
    labels = labels.to(logits.device)
    if labels.is_floating_point() or (labels.dim() == 1 and logits.shape[1:] == (1,)):
        several = labels.dim() == 2 and logits.shape[-1] > 1 and not regression
        loss = F.binary_cross_entropy_with_logits if several else F.mse_loss
        return loss(logits, labels.to(logits.dtype).reshape(logits.shape), reduction="none").flatten(1).mean(1)
    if labels.dim() == 1:
        return F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
    if shifted:
        logits, labels = logits[..., :-1, :], labels[..., 1:]
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORED)
    counted = (labels != IGNORED).flatten(1).sum(1).clamp(min=1)
    return losses.view(labels.shape).flatten(1).sum(1) / counted


def _span(logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of one end of an answer; an answer cut off with its text counts for nothing, as in transformers."""
    cut = logits.shape[1]
    positions = positions.to(logits.device).reshape(len(logits)).clamp(0, cut)
    return F.cross_entropy(_wide(logits), positions, reduction="none", ignore_index=cut)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
