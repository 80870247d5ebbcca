"""A model of one attention layer whose loss is a known game of its heads."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from headdynamics.estimators import importance
from headdynamics.heads import find_heads
from headdynamics.situation import Situation


class Attention(nn.Module):
    """Self-attention, float64."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(2 * heads, 2 * heads, bias=False, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, E] -> [B, T, E]."""
        projected = (projection(x) for projection in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (part.unflatten(-1, (self.num_heads, 2)).transpose(1, 2) for part in projected)
        context = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.o_proj(context.transpose(1, 2).flatten(2))


class Toy(nn.Module):
    """`read` [E] of the mean over positions, [B]: each head adds its share."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.attention = Attention(heads)
        self.read = nn.Parameter(torch.randn(2 * heads, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, E] -> [B]."""
        return self.attention(x).mean(1) @ self.read


def additive(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x)


def squared(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x) ** 2


def shares(model: Toy, batches: list[torch.Tensor]) -> np.ndarray:
    """What each head adds to the output, [n, H], written out."""
    attention, found = model.attention, []
    with torch.no_grad():
        for x in torch.cat(batches):
            row = []
            for h in range(attention.num_heads):
                q, k, v = (getattr(attention, f"{n}_proj").weight[2 * h : 2 * h + 2] @ x.T for n in "qkv")
                mixed = torch.softmax(q.T @ k, -1) @ v.T
                row.append(float((mixed @ attention.o_proj.weight[:, 2 * h : 2 * h + 2].T).mean(0) @ model.read))
            found.append(row)
    return np.array(found)


def toy(loss, heads: int = 5) -> tuple[Situation, np.ndarray]:
    """A situation of `loss` over batches of 3, 2 and 4 examples, and the shares [n, H]."""
    torch.manual_seed(3)
    model = Toy(heads).eval()
    batches = [torch.randn(rows, 4, 2 * heads, dtype=torch.float64) for rows in (3, 2, 4)]
    found = find_heads(model)
    estimated = importance(model, batches, loss, heads=found)
    return Situation(model, found, batches, estimated, np.arange(heads), loss), shares(model, batches)
