"""Calls that leave more behind than what they return, or that run in another setting, are not remembered."""

import copy
import types

import pytest
import torch
from models import CASES
from torch import nn
from twisted import BATCHES, agree, by_passes, counted, measured, net, singles

import headdynamics as hd
from headdynamics.sharing import scores_under


def counts(layer, x):
    layer.count = getattr(layer, "count", 0) + 1
    return x * layer.count


def test_a_module_that_keeps_a_number():
    def fresh(model, x):
        for layer in model.layers:
            layer.count = 0
        return model(x) + model(x)

    model = net(twist=counts)
    for layer in model.layers:
        layer.count = 0
    agree(model, measured(fresh))


def test_a_module_that_keeps_a_tensor():
    def kept(layer, x):
        layer.norm.seen = x.mean(-1, keepdim=True)
        return x

    def reading(model, x):
        y = model(x)
        return y * model.layers[1].norm.seen

    model = net(twist=kept)
    for layer in model.layers:
        layer.norm.seen = None
    agree(model, measured(reading))


def test_a_module_that_writes_a_buffer():
    def running(layer, x):
        layer.total.add_(x.mean())
        return x + layer.total

    def fresh(model, x):
        for layer in model.layers:
            layer.total.zero_()
        return model(x) + model(x)

    model = net(twist=running)
    for layer in model.layers:
        layer.register_buffer("total", torch.zeros(()))
    agree(model, measured(fresh))


@pytest.mark.parametrize("make", [list, dict, lambda: types.SimpleNamespace(n=0)])
def test_a_module_that_writes_into_what_it_was_given(make):
    def noting(layer, x, notes):
        if isinstance(notes, list):
            notes.append(x)
        elif isinstance(notes, dict):
            notes[len(notes)] = x
        else:
            notes.n += 1
        return x

    def flow(model, x):
        notes = make()
        for layer in model.layers:
            x = layer(x, notes)
        if isinstance(notes, types.SimpleNamespace):
            return x * notes.n
        return x + sum(notes if isinstance(notes, list) else notes.values())

    agree(net(flow=flow, twist=noting), measured())


def test_lists_that_are_returned_may_be_changed():
    def listed(layer, x):
        return {"states": [x], "pair": (x, [x.mean()])}

    def flow(model, x):
        for layer in model.layers:
            out = layer(x)
            out["states"].append(x)
            out["pair"][1].clear()
            x = sum(out["states"])
            out["states"] = None
        return x

    agree(net(flow=flow, twist=listed), measured())


def test_what_is_returned_and_unknown():
    class Odd:
        def __init__(self, x):
            self.x, self.taken = x, False

        def take(self):
            assert not self.taken
            self.taken = True
            return self.x

    def flow(model, x):
        for layer in model.layers:
            x = layer(x).take()
        return x

    agree(net(flow=flow, twist=lambda layer, x: Odd(x)), measured())


def test_hooks_of_somebody_else_are_all_called():
    def collecting(model, x):
        seen = []
        handles = [layer.norm.register_forward_hook(lambda m, a, out: seen.append(out)) for layer in model.layers]
        try:
            y = model(x)
        finally:
            for handle in handles:
                handle.remove()
        return y + sum(seen)

    agree(net(), measured(collecting))
    agree(net(), measured(lambda model, x: model(x) + collecting(model, x)))
    module = nn.modules.module

    def for_all(model, x):
        seen = []
        handle = module.register_module_forward_hook(lambda m, a, out: seen.append(m))
        try:
            y = model(x)
        finally:
            handle.remove()
        return y * len(seen)

    agree(net(), measured(for_all))


def test_a_hook_that_was_there_before_is_called():
    model, seen = net(), []

    def watched(model, x):
        seen.clear()
        y = model(x)
        return y * sum(seen)

    handle = model.layers[0].norm.register_forward_hook(lambda module, args, out: seen.append(out))
    heads, score = hd.find_heads(model), measured(watched)
    for one, other in zip(
        scores_under(model, heads, score, singles(12)), by_passes(model, heads, score, singles(12)), strict=True
    ):
        assert one.stats.tobytes() == other.stats.tobytes()
    handle.remove()


@pytest.mark.parametrize("name", ["bert", "fairseq"])
def test_a_score_that_masks_heads_itself(name):
    case = CASES[name]
    model = case.build()
    heads = hd.find_heads(model)
    own = torch.ones(len(heads))
    own[[1, 6]] = 0

    def loss(model, batch):
        whole = case.loss(model, batch)
        with hd.masked(heads, own):
            first = case.loss(model, batch)
        with hd.masked(heads, own / 2):
            return whole + 3 * first + 7 * case.loss(model, batch)

    agree(model, hd.mean_loss([case.batch], loss))


@pytest.mark.parametrize("name", ["bert", "fairseq", "torch"])
def test_inside_a_mask(name):
    """Masks around multiply, and do not keep anything from being shared."""
    case = CASES[name]
    model = case.build()
    heads = hd.find_heads(model)
    around = torch.linspace(0.2, 1, len(heads))
    score = hd.mean_loss([case.batch], case.loss)
    with hd.masked(heads, around), counted(type(heads.blocks[0].module)) as runs:
        found = scores_under(model, heads, score, singles(len(heads)))
    assert runs[id(heads.blocks[0].module)] == 1
    for one, keep in zip(found, singles(len(heads)), strict=True):
        with hd.masked(heads, around), hd.masked(heads, keep):
            assert one.stats.tobytes() == score(model).stats.tobytes()


def test_a_copy_computes_for_itself():
    def copied(model, x):
        y = model(x)
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.mul_(2)
        return y + other(x)

    agree(net(), measured(copied))


def test_gradients_and_training_mode_are_not_shared():
    def with_gradient(model, x):
        with torch.enable_grad():
            y = model(x.clone().requires_grad_())
            return y.detach() + torch.autograd.grad(y.sum(), model.layers[0].up.weight)[0].sum()

    agree(net(), measured(lambda model, x: model(x) + with_gradient(model, x)))

    def half_trained(model, x):
        model.layers[1].norm.train()
        y = model(x)
        model.layers[1].norm.eval()
        return y + 2 * model(x)

    agree(net(twist=lambda layer, x: x * (1 + layer.norm.training)), measured(half_trained))
    model = net(twist=lambda layer, x: nn.functional.dropout(x, 0.5, layer.training)).train()
    torch.manual_seed(0)
    scores = scores_under(model, hd.find_heads(model), measured(), [torch.ones(12)] * 4)
    assert len({one.value for one in scores}) == 4


def test_inference_mode():
    def inferring(model, x):
        with torch.inference_mode():
            return model(x).clone()

    def straight(model, x):
        return sum(layer.attention(x)[0] for layer in model.layers)

    agree(net(flow=straight), measured(inferring))
    agree(net(), measured(inferring))
    with torch.inference_mode():
        made = BATCHES[0].clone()
    agree(net(), measured(lambda model, x: model(x) + model(made)[: len(x)]))
    agree(net(), measured(lambda model, x: model(x) + inferring(model, x)))
