"""GPUs, of which there is none here: a device that is not there refuses what one would; random states of stand-ins."""

import types

import numpy as np
import pytest
import torch
from elsewhere import elsewhere
from models import CASES

import headdynamics as hd
from headdynamics import devices
from headdynamics.orders import ORDERS
from headdynamics.stillness import still

EVERY = tuple(name if name != "random" else "random-1" for name in ORDERS)
SEVERAL = {"orders": ("importance", "random-1"), "ablations": ("one", "all-but-one"), "fractions": (0, 0.5, 1)}
ROUNDING = {"rtol": 0, "atol": 1e-6}  # Apple's GPUs add up in float32


def test_the_device_that_is_not_there_refuses_what_a_real_one_does():
    weight = torch.ones(2, 2, requires_grad=True)
    with elsewhere("mps"):
        assert (weight.device.type, torch.ones(2).device.type, weight.cpu().device.type) == ("mps", "cpu", "cpu")
        assert torch.ones(2, device=weight.device).device == weight.new_ones(2).device == weight.t()[0].device
        with pytest.raises(RuntimeError, match="same device"):
            weight @ torch.ones(2)
        with pytest.raises(TypeError, match="float64"):
            weight.double()
        with pytest.raises(TypeError, match="float64"):
            torch.as_tensor(np.ones(2), device=weight.device)
        with pytest.raises(TypeError, match="numpy"):
            weight.detach().numpy()
        host = torch.ones(2, requires_grad=True)
        assert torch.autograd.grad((weight @ host.to(weight.device)).sum(), host)[0].device.type == "cpu"
    with elsewhere("cuda"):
        assert weight.double().device.type == "cuda"


def taken(case, model, **options):
    """A snapshot by the case's own loss."""
    observer = hd.Observer(model, batches=[case.batch] * 2, loss=case.loss, strict=True, **{**SEVERAL, **options})
    return observer.snapshot(epoch=1)


def equal(found, want):
    for one, other in ((found.importance, want.importance), *((found.curves[n], want.curves[n]) for n in want.curves)):
        for name in ("mean", "stderr", "signed", "blocks", "loss", "score"):
            if hasattr(other, name):
                np.testing.assert_allclose(getattr(one, name), getattr(other, name), **ROUNDING)
    for what, ablation in want.ablations.items():
        np.testing.assert_allclose(found.ablations[what].delta, ablation.delta, **ROUNDING)


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_a_snapshot(case):
    want = taken(case, case.build())
    model = case.build()
    with elsewhere("mps"):
        found = taken(case, model)
    equal(found, want)


def test_every_order_and_the_knee():
    case = CASES["bert"]
    options = {"orders": EVERY, "ablations": (), "score": hd.accuracy([case.batch] * 2)}
    want = taken(case, case.build(), **options)
    model = case.build()
    with elsewhere("mps"):
        found = taken(case, model, **options)
        assert taken(case, model, fractions="knee").knees.keys() == {"importance", "random-1"}
    equal(found, want)


def test_perplexity():
    case = CASES["gpt2"]
    want, model = hd.perplexity([case.batch])(case.build()).value, case.build()
    with elsewhere("mps"):
        assert hd.perplexity([case.batch])(model).value == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("estimator", ["example", "batch"])
def test_online(estimator):
    """Training steps with an optimizer; what its own backward pass says is I(h) of the same batch."""
    case = CASES["llama"]
    model = case.build().eval()
    weight, optimizer = torch.full((3,), 1 / 3), torch.optim.AdamW(model.parameters())
    with elsewhere("mps"):
        want = hd.importance(model, [case.batch], estimator=estimator)
        online = hd.Online(model, estimator, strict=True)
        with online.tapped():
            case.loss(model, case.batch).mean().backward()
        online.add(weight)
        optimizer.step()
        found = online.step(1, close=True)
    np.testing.assert_allclose(found.mean, want.mean, rtol=1e-5)


def test_a_mask_of_numpys_own_floats():
    case, keep = CASES["bert"], np.array([1, 0, 0.5, 1, 1, 1, 0, 1])
    model = case.build()
    with hd.masked(hd.find_heads(model), keep):
        want = case.logits(model, case.batch)
    with elsewhere("mps"), hd.masked(hd.find_heads(model), keep):
        found = case.logits(model, case.batch)
    torch.testing.assert_close(found, want)


def test_heads_taken_out():
    case, order = CASES["llama"], np.array([1, 5, 2, 0, 3, 4, 6, 7])
    want, model = case.build(), case.build()
    kept = hd.prune(want, order, 0.5)
    with elsewhere("mps"):
        stays = hd.prune(model, order, 0.5).tolist()
    assert stays == kept.tolist()
    torch.testing.assert_close(dict(model.state_dict()), dict(want.state_dict()), rtol=0, atol=0)


class Several:
    """torch.cuda or torch.xpu of two devices, drawn from on the CPU."""

    def __init__(self):
        self.generators, self.emptied = [torch.Generator().manual_seed(i) for i in range(2)], 0

    def is_available(self):
        return True

    is_initialized = is_available

    def get_rng_state_all(self):
        return [generator.get_state() for generator in self.generators]

    def set_rng_state_all(self, states):
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)

    def empty_cache(self):
        self.emptied += 1

    def draws(self):
        return [float(torch.rand((), generator=generator)) for generator in self.generators]


class One(Several):
    """torch.mps: one device, by other names."""

    is_initialized = get_rng_state_all = set_rng_state_all = property()

    def __init__(self):
        self.generators, self.emptied = [torch.Generator().manual_seed(7)], 0

    def get_rng_state(self):
        return self.generators[0].get_state()

    def set_rng_state(self, state):
        self.generators[0].set_state(state)


@pytest.fixture
def gpus(monkeypatch):
    """A GPU of each kind."""
    found = {"cuda": Several(), "xpu": Several(), "mps": One()}
    for name, gpu in found.items():
        monkeypatch.setattr(torch, name, gpu, raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    return list(found.values())


def test_random_states_of_every_gpu_stay(gpus):
    before = [gpu.draws() for gpu in (Several(), Several(), One())]
    with pytest.raises(KeyboardInterrupt), still():
        assert [gpu.draws() for gpu in gpus] == before
        raise KeyboardInterrupt
    assert [gpu.draws() for gpu in gpus] == before


def test_memory_of_every_gpu_is_given_back(gpus):
    devices.give_memory_back()
    assert [gpu.emptied for gpu in gpus] == [1, 1, 1]


def test_a_gpu_that_sleeps_is_let_sleep(monkeypatch):
    asleep = types.SimpleNamespace(is_available=lambda: True, is_initialized=lambda: False)  # all else would fail
    monkeypatch.setattr(torch, "cuda", asleep)
    monkeypatch.setattr(torch, "xpu", asleep, raising=False)
    with still():
        devices.give_memory_back()
