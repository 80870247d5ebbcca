"""I(h): how much the loss feels each head, by one backward pass to gates (Michel et al. 2019, equation 2).

Shapes: H heads, n examples, T positions. At each position g[b,t,h] = ctx . dL_b/dctx; its sum over an
example is s[b,h] = dL_b/dxi[h], the paper's Att_h(x)^T dL/dAtt_h(x). Every estimator is a way to average g:

| estimator | I(h)                                   |
|-----------|----------------------------------------|
| example   | mean over examples of abs(s[b,h])      |
| token     | mean over non-pad (b, t) of abs(g)     |
| batch     | mean over batches of abs(sum_b s[b,h]) |
| signed    | mean over examples of s[b,h]           |
| bertology | see `_bertology`: only to reproduce    |

docs/estimators.md says which of them other tools compute, and on what conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .devices import on_host, widest
from .heads import Heads, heads_in, unwrap
from .losses import Loss, check_losses, cross_entropy
from .names import unknown
from .nested import as_drawn, check_batches
from .ranks import each
from .schema import BLOCKS
from .stillness import frozen
from .taps import tapped

Positions = Callable[[Any, str], "torch.Tensor | None"]  # (batch, kind) -> bool [B, T], True where a token is real


@dataclass(frozen=True)
class Sensitivity:
    """What every estimator is made from, one row an example, float64."""

    signed: np.ndarray  # [n, H] s
    absolute: np.ndarray  # [n, H] sum over t of abs(g)
    tokens: np.ndarray  # [n, H] positions summed over
    batch: np.ndarray  # [n] which batch an example came in
    loss: np.ndarray  # [n]


@dataclass(frozen=True)
class Importance:
    """I(h) with its uncertainty. Arrays are float64.

    `mean`, `stderr`, `signed`: [H]; `blocks`: [10, H], the estimate over each of ten disjoint blocks of
    the examples; `n`: examples; `loss`: their mean loss; `block`: [H], the attention block a head is in.
    `stderr` and `blocks` are NaN for `bertology`, which is no mean over anything.
    """

    mean: np.ndarray
    stderr: np.ndarray
    signed: np.ndarray
    blocks: np.ndarray
    n: int
    loss: float
    estimator: str
    block: np.ndarray

    def normalized(self) -> np.ndarray:
        """`mean` divided by the L2 norm of its layer (section 4.1); an all-zero layer stays zero."""
        norm = np.sqrt(np.bincount(self.block, weights=self.mean**2))[self.block]
        return np.divide(self.mean, norm, out=np.zeros_like(self.mean), where=norm > 0)


def importance(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    estimator: str = "example",
    *,
    heads: Heads | None = None,
    positions: Positions | None = None,
) -> Importance:
    """Estimate I(h) over `batches` in the mode the model is in; parameters' `.grad` are not touched.

    `loss(model, batch) -> [B]`, one loss per example; default `losses.cross_entropy`. `positions(batch, kind)`
    says which positions are tokens, for the `token` estimator; default: `attention_mask` and labels. `heads`: those of
    this model, where they were found before.

    Raises:
        ValueError: unknown estimator, no example at all, a loss without a gradient by any head, or not [B].
        HeadsError: see `find_heads`.

    """
    if estimator not in ESTIMATORS:
        raise ValueError(unknown("estimator", estimator, ESTIMATORS))
    check_batches(batches, again=False)
    heads = heads_in(model, heads)
    found = sensitivity(model, heads, batches, loss or cross_entropy, positions or token_positions)
    mean, stderr = ESTIMATORS[estimator](found)
    blocks = _blocks(found, estimator)
    return Importance(
        mean, stderr, found.signed.mean(0), blocks, len(found.loss), float(found.loss.mean()), estimator, heads.block
    )


def sensitivity(
    model: nn.Module, heads: Heads, batches: Iterable[Any], loss: Loss, positions: Positions
) -> Sensitivity:
    """Run `loss` over the batches and differentiate it by the gates alone (no weight gradient is computed).

    Rows are in the order of the draw, whatever the order in which the batches give them (`nested.as_drawn`): blocks
    of every tenth row are then random ones, not sorted by length.
    """
    inner = unwrap(model)
    parts = each(batches, lambda batch: _one_batch(inner, heads, batch, loss, positions))
    if not parts:
        raise ValueError("no examples to estimate importance from: the batches are empty")
    signed, absolute, tokens, losses = (list(column) for column in zip(*parts, strict=True))
    batch = np.concatenate([np.full(len(s), i) for i, s in enumerate(signed)])
    columns = (np.concatenate(column) for column in (signed, absolute, tokens, [batch], losses))
    return Sensitivity(*(as_drawn(batches, column) for column in columns))


def _one_batch(
    model: nn.Module, heads: Heads, batch: Any, loss: Loss, positions: Positions
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    with torch.enable_grad(), frozen(model), tapped(heads) as tape:
        losses = check_losses(loss(model, batch))
        if not losses.requires_grad:
            raise ValueError("no head has a path to the loss, or it is computed without gradients (no_grad, detach)")
        gradients = torch.autograd.grad(losses.sum(), [gate for _, gate in tape], allow_unused=True)
    rows, device = len(losses), losses.device
    exact = widest(device)
    signed, absolute, tokens = (torch.zeros(rows, len(heads), dtype=exact, device=device) for _ in range(3))
    starts = np.concatenate([[0], np.cumsum(heads.sizes)])
    for (index, _), gradient in zip(tape, gradients, strict=True):
        block = heads.blocks[index]
        columns = slice(int(starts[index]), int(starts[index + 1]))
        if gradient is None:  # the head has no path to the loss (a stack the loss does not use)
            continue
        block.check_rows(gradient.shape, rows)
        g = gradient.movedim(block.batch_axis, 0).reshape(rows, -1, block.heads).to(device)
        real = positions(batch, block.kind)
        real = None if real is None or real.shape != g.shape[:2] else real.to(device)
        signed[:, columns] += g.sum(1, dtype=exact)
        size = g.abs() if real is None else g.abs() * real.unsqueeze(-1)
        absolute[:, columns] += size.sum(1, dtype=exact)
        tokens[:, columns] += g.shape[1] if real is None else real.sum(1, keepdim=True)
    return on_host(signed), on_host(absolute), on_host(tokens), on_host(losses)


def token_positions(batch: Any, kind: str) -> torch.Tensor | None:
    """Real tokens of a Hugging Face batch: its masks; for a decoder without one, its labels."""
    if not hasattr(batch, "get"):
        return None
    decoder_side = kind != "encoder" and (batch.get("labels") is not None or "decoder_input_ids" in batch)
    mask = batch.get("attention_mask")
    if decoder_side and batch.get("decoder_attention_mask") is not None:
        return batch["decoder_attention_mask"].bool()
    labels = batch.get("labels")
    if decoder_side and labels is not None and labels.dim() == 2 and (mask is None or mask.shape != labels.shape):
        return labels != -100
    return None if mask is None or mask.dim() != 2 else mask.bool()


def _blocks(found: Sensitivity, estimator: str) -> np.ndarray:
    """[10, H]: the estimate over every tenth example (`batch`: batch); NaN where the order of the batches counts."""
    if estimator == "bertology":
        return np.full((BLOCKS, found.signed.shape[1]), np.nan)
    rows = found.batch if estimator == "batch" else np.arange(len(found.loss))
    return np.stack([ESTIMATORS[estimator](_subset(found, rows % BLOCKS == b))[0] for b in range(BLOCKS)])


def _subset(found: Sensitivity, rows: np.ndarray) -> Sensitivity:
    columns = (found.signed, found.absolute, found.tokens, found.batch, found.loss)
    return Sensitivity(*(column[rows] for column in columns))


def _mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = len(values)
    missing = np.full(values.shape[1], np.nan)
    error = values.std(0, ddof=1) / np.sqrt(n) if n > 1 else missing
    return (values.mean(0) if n else missing), error


def _example(found: Sensitivity) -> tuple[np.ndarray, np.ndarray]:
    return _mean_and_error(np.abs(found.signed))


def _signed(found: Sensitivity) -> tuple[np.ndarray, np.ndarray]:
    return _mean_and_error(found.signed)


def _batch(found: Sensitivity) -> tuple[np.ndarray, np.ndarray]:
    sums = [found.signed[found.batch == b].sum(0) for b in np.unique(found.batch)]
    return _mean_and_error(np.abs(np.array(sums).reshape(len(sums), found.signed.shape[1])))


def _bertology(found: Sensitivity) -> tuple[np.ndarray, np.ndarray]:
    """Sum over batches t of abs(sum over r <= t of g_r), over the tokens; g_r: a batch's mean of s, never zeroed.

    Hugging Face's run_bertology.py read `head_mask.grad` after each batch and never cleared it, so early batches
    count many times and the order of the batches matters: there is no error and there are no blocks.
    """
    gradients = np.array([found.signed[found.batch == b].mean(0) for b in np.unique(found.batch)])
    total = found.tokens.sum(0)
    mean = np.abs(gradients.cumsum(0)).sum(0) / np.where(total > 0, total, np.nan)
    return mean, np.full_like(mean, np.nan)


def _token(found: Sensitivity) -> tuple[np.ndarray, np.ndarray]:
    """A ratio of sums; its error is clustered by example, because an example's tokens are not independent."""
    n, total = len(found.loss), found.tokens.sum(0)
    mean = np.divide(found.absolute.sum(0), total, out=np.full(total.shape, np.nan), where=total > 0)
    residual = found.absolute - mean * found.tokens
    error = np.sqrt((residual**2).sum(0) * n / max(n - 1, 1)) / np.where(total > 0, total, np.nan)
    return mean, error if n > 1 else np.full_like(mean, np.nan)


ESTIMATORS: dict[str, Callable[[Sensitivity], tuple[np.ndarray, np.ndarray]]] = {
    "example": _example,
    "token": _token,
    "batch": _batch,
    "signed": _signed,
    "bertology": _bertology,
}
BY_BATCH = ("batch", "bertology")  # they depend on how the examples are batched
