"""Whatever happens inside still(), training finds everything as it was."""

import contextlib
import random

import numpy as np
import pytest
import torch
from torch import nn

from headdynamics.stillness import still


class Boom(BaseException):
    """Raised on purpose."""


def draws():
    """What the three generators would give next."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def next_draws():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    found = draws()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    return found


def visit(fail, *models, do):
    """Do something inside, and perhaps fail after it."""
    with pytest.raises(Boom) if fail else contextlib.nullcontext(), still(*models):
        do()
        if fail:
            raise Boom


FAIL = pytest.mark.parametrize("fail", [False, True], ids=["well", "failing"])


@FAIL
def test_random_states(fail):
    expected = next_draws()

    def reseed():
        draws()
        random.seed(0), np.random.seed(0), torch.manual_seed(0)

    visit(fail, do=reseed)
    assert draws() == expected


@FAIL
def test_modes_one_by_one(fail):
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout()))
    model[1][0].eval()  # a frozen part in a model that trains
    before = [m.training for m in model.modules()]
    assert before == [True, True, True, False, True]
    inside = []
    visit(fail, model, do=lambda: (inside.extend(m.training for m in model.modules()), model.train()))
    assert inside == [False] * 5
    assert [m.training for m in model.modules()] == before


@FAIL
def test_grads_are_the_same_objects(fail):
    model = nn.Linear(2, 2)
    model.weight.grad = kept = torch.ones(2, 2)
    inside = []

    def backward():
        inside.extend(p.grad for p in model.parameters())
        model(torch.ones(1, 2)).sum().backward()

    visit(fail, model, do=backward)
    assert inside == [None, None]
    assert model.weight.grad is kept and torch.equal(kept, torch.ones(2, 2))
    assert model.bias.grad is None


@FAIL
def test_batch_norm_and_other_buffers(fail):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Module())
    model[1].register_buffer("empty", None)
    model[1].register_buffer("cache", torch.zeros(2))
    model[1].register_buffer("quiet", torch.full((2,), float("nan")), persistent=False)
    model[0](torch.randn(4, 3))
    before = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    untouched = model[0].running_var._version

    def change():
        model.train()
        model[0].running_mean.add_(1)
        model[0].num_batches_tracked = torch.tensor(77)
        model[1].cache.resize_(5).fill_(3)
        model[1].empty = torch.ones(1)
        model[1].register_buffer("new", torch.ones(1))
        del model[1].quiet

    visit(fail, model, do=change)
    after = dict(model.named_buffers())
    assert list(after) == list(before)
    for name, (buffer, value) in before.items():
        assert after[name] is buffer
        torch.testing.assert_close(buffer, value, atol=0, rtol=0, equal_nan=True)
    assert model[1]._buffers["empty"] is None
    assert model[0].running_var._version == untouched


@FAIL
def test_switches(fail):
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic

    def flip():
        torch.backends.cudnn.benchmark = not before[0]
        torch.backends.cudnn.deterministic = not before[1]

    visit(fail, do=flip)
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == before


@FAIL
def test_several_models(fail):
    model, criterion = nn.Linear(1, 1), nn.BatchNorm1d(2)
    visit(fail, model, criterion, do=lambda: (criterion.train(), criterion(torch.randn(3, 2))))
    assert criterion.running_mean.tolist() == [0, 0] and criterion.num_batches_tracked == 0
    assert model.training and criterion.training


def test_training_goes_on_bit_for_bit():
    """Dropout, BatchNorm, momentum and accumulated gradients: ten steps with and without a visit in the middle."""
    finals = []
    for visited in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
        for step in range(10):
            model(torch.randn(8, 4)).pow(2).sum().backward()
            if visited and step == 5:
                with still(model):
                    model.train()(torch.randn(8, 4)).sum().backward()
            if step % 2:
                optimizer.step()
                optimizer.zero_grad()
        finals.append(torch.cat([v.flatten().float() for v in model.state_dict().values()]))
    assert torch.equal(*finals) and finals[0].isfinite().all()
