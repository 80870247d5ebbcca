"""A small net that does in each test one thing that a model might do, and what all tests of sharing assert."""

import contextlib
from collections import Counter
from unittest import mock

import numpy as np
import torch
from torch import nn

import headdynamics as hd
from headdynamics.scores import BatchScore, ratio
from headdynamics.sharing import scores_under


def singles(count):
    """No head masked, then each alone."""
    return [torch.ones(count), *(1 - torch.eye(count))]


def by_passes(model, heads, score, keeps):
    found = []
    for keep in keeps:
        with hd.masked(heads, keep):
            found.append(score(model))
    return found


def agree(model, score, keeps=None):
    """Scores under the masks, after making sure that one pass each gives the same bits and that nothing stays."""
    heads = hd.find_heads(model)
    keeps = singles(len(heads)) if keeps is None else keeps
    before = [dict(vars(module)) for module in model.modules()]
    found, wanted = scores_under(model, heads, score, keeps), by_passes(model, heads, score, keeps)
    for one, other in zip(found, wanted, strict=True):
        assert one.stats.dtype == other.stats.dtype and one.stats.tobytes() == other.stats.tobytes()
        assert one.value == other.value
    for module, attributes in zip(model.modules(), before, strict=True):
        assert vars(module).keys() == attributes.keys() and not module._forward_pre_hooks and not module._forward_hooks
    return found


@contextlib.contextmanager
def counted(kind=nn.Linear):
    """How often each module of this class ran, by its id."""
    runs, forward = Counter(), kind.forward

    def counting(self, *args, **kwargs):
        runs[id(self)] += 1
        return forward(self, *args, **kwargs)

    with mock.patch.object(kind, "forward", counting):
        yield runs


class Layer(nn.Module):
    """Pre-norm attention and a feed-forward part. Twisted in each test, by what a model might do."""

    def __init__(self, twist=None, inside=None):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), Attention(inside)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.twist = twist

    def forward(self, x, *args, **kwargs):
        x = x + self.attention(self.norm(x))[0]
        x = x + self.down(torch.relu(self.up(x)))
        return self.twist(self, x, *args, **kwargs) if self.twist else x


class Attention(nn.Module):
    """Self-attention of 4 heads of size 2; `inside` does something else with W_O and the context."""

    def __init__(self, inside=None):
        super().__init__()
        self.num_heads, self.inside = 4, inside
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(8, 8))

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (4, 2)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        weights = torch.softmax(q @ k.transpose(-1, -2), -1)
        context = (weights @ v).transpose(1, 2).flatten(2)
        return self.inside(self, x, context) if self.inside else (self.o_proj(context), weights)


class Net(nn.Module):
    """Three layers; `flow` says how they are called."""

    def __init__(self, flow=None, twist=None, inside=None):
        super().__init__()
        self.layers = nn.ModuleList(Layer(twist, inside) for _ in range(3))
        self.flow = flow

    def forward(self, x):
        if self.flow:
            return self.flow(self, x)
        for layer in self.layers:
            x = layer(x)
        return x


def net(**twists):
    torch.manual_seed(5)
    return Net(**twists).eval()


BATCHES = [torch.randn(rows, 5, 8, generator=torch.Generator().manual_seed(rows)) for rows in (3, 2)]


def measured(function=lambda model, x: model(x)):
    """A score of whatever `function(model, x)` returns, as numbers [B]."""

    def measure(model, x):
        out = function(model, x)
        return np.stack([out.double().flatten(1).sum(1).numpy(), np.ones(len(x))], 1)

    return BatchScore("sum", True, BATCHES, measure, ratio)
