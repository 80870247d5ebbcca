"""What comes after the gate in an attention module is done again, or the module runs."""

import numpy as np
import pytest
import torch
from torch import nn
from twisted import agree, measured, net


def normed(self, x, context):
    return nn.functional.layer_norm(x + self.o_proj(context).mul(0.5), (8,)), None


def derived(self, x, context):
    out = self.o_proj(context)
    return out, out.argmax(-1)


def in_place(self, x, context):
    out = self.o_proj(context)
    out += x
    return out, None


def in_place_elsewhere(self, x, context):
    total = x.clone()
    total += self.o_proj(context)
    return total, None


def in_place_later(self, x, context):
    share = x.clone()
    out = self.o_proj(context) + share
    share += 1
    return out + share, None


def context_reused(self, x, context):
    """The context itself, ungated, is part of the output."""
    out = self.o_proj(context)
    return out + context.mean(-1, keepdim=True), context


def context_overwritten(self, x, context):
    out = self.o_proj(context)
    return out + context.mul_(2), None


def branching(self, x, context):
    out = self.o_proj(context)
    return (out if float(out[0, 0, 0]) > 0 else -out), None


def twice(self, x, context):
    return self.o_proj(context) + self.o_proj(torch.tanh(context)), None


def viewed(self, x, context):
    out = self.o_proj(context.flatten(0, 1))
    return out.view(x.shape).transpose(0, 1).transpose(0, 1), None


def in_halves(self, x, context):
    first, second = self.o_proj(context).chunk(2, -1)
    return torch.cat([second, first], -1), None


def transposed(self, x, context):
    out = self.o_proj(context)
    square = out[:, :, :5]
    return out + nn.functional.pad(square - 2 * square.transpose(1, 2), (0, 3)), None


def outside_torch(self, x, context):
    """Torch does not see what becomes of W_O's output."""
    return torch.from_numpy(np.tanh(self.o_proj(context).numpy())), None


def not_returned(self, x, context):
    return x, self.o_proj(context)


INSIDES = [
    normed,
    derived,
    in_place,
    in_place_elsewhere,
    in_place_later,
    context_reused,
    context_overwritten,
    branching,
    twice,
    viewed,
    in_halves,
    transposed,
    outside_torch,
    not_returned,
]


@pytest.mark.parametrize("inside", INSIDES, ids=lambda inside: inside.__name__)
def test_after_the_gate(inside):
    def flow(model, x):
        for layer in model.layers:
            out, other = layer.attention(layer.norm(x))
            x = x + layer.down(torch.relu(layer.up(out)))
            x = x if other is None else x + other.float().mean()
        return x

    agree(net(flow=flow, inside=inside), measured())


def test_a_context_that_is_not_contiguous_is_copied_as_a_mask_would():
    class ByLayout(nn.Linear):
        def forward(self, x):
            return super().forward(x) * x.stride(-2)

    def sliced(self, x, context):
        return self.o_proj(torch.cat([context, context], -1)[..., :8]), None

    model = net(inside=sliced)
    for layer in model.layers:
        layer.attention.o_proj.__class__ = ByLayout
    agree(model, measured())
