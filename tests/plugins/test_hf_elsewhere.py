"""A real Trainer on a GPU that is not there: what it does, and we beside it, meets that device's refusals."""

import contextlib
from unittest import mock

import accelerate.accelerator
import h5py
import hf_tiny as tiny
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from elsewhere import elsewhere
from hf_tiny import FEW
from transformers import TrainingArguments

MPS, CUDA = torch.device("mps:0"), torch.device("cuda:0")
SET_UP = TrainingArguments.device.fget
ONLINE = {"online": True}
WATCHED = FEW | {"tensorboard": False, "strict": True, "ablations": ("one",)}


@contextlib.contextmanager
def on_a_gpu(model, device=MPS):
    """The Trainer of `hf_tiny` is on one, with this model."""
    with (
        elsewhere(device.type),
        mock.patch.object(TrainingArguments, "device", property(lambda arguments: (SET_UP(arguments), device)[1])),
        mock.patch.object(Accelerator, "device", device),
        mock.patch.object(tiny, "bert", lambda: model),
        mock.patch.object(tiny, "gpt2", lambda: model),
    ):
        yield


def trained(folder, lm, options, **settings):
    """The run file's rows and online importance, and the model in the end; `options` None: without us."""
    watch = None if options is None else ("attach", folder / "run.h5", WATCHED | options)
    made = tiny.trainer(folder, watch, lm=lm, save_strategy="no", **settings)
    made.train()
    if watch is None:
        return None, None, made.model
    with h5py.File(folder / "run.h5", "r") as file:
        return tiny.rows(folder / "run.h5"), file["online/mean"][:], made.model


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("lm", [False, True], ids=["bert", "gpt2"])
def test_a_training(tmp_path, lm):
    want, heard, here = trained(tmp_path / "here", lm, ONLINE)
    model = tiny.gpt2() if lm else tiny.bert()
    with on_a_gpu(model):
        found, online, model = trained(tmp_path / "there", lm, ONLINE)
        assert {parameter.device for parameter in model.parameters()} == {MPS}
    assert same_weights(model, here)
    assert found["status"] == ["ok", "ok"] and found["update"] == want["update"]
    for name in ("score", "curve", "seen"):
        np.testing.assert_allclose(found[name], want[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(online, heard, rtol=1e-5)


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="torch scales no gradients on a CPU before 2.3")
@pytest.mark.parametrize("scale", [2.0**16, 2.0**126], ids=["whole", "overflowing"])
def test_fp16_with_a_scaler(tmp_path, scale):
    """Torch's own scaler, which accelerate takes on a GPU alone; it halves a scale at which gradients overflow.

    That of torch 2.6 asks for float64, which CUDA has.
    """
    scalers = []

    def scaler(*_, **options):
        scalers.append(torch.amp.GradScaler("cpu", **{**options, "init_scale": scale}))
        return scalers[-1]

    weights = []
    for options in (ONLINE, None):
        model = tiny.bert()
        with on_a_gpu(model, CUDA), mock.patch.object(accelerate.accelerator, "get_grad_scaler", scaler):
            rows, online, model = trained(tmp_path / f"with-{options is not None}", False, options, fp16=True)
        weights.append(model)
        if options is not None:
            assert rows["status"] == ["ok", "ok"] and rows["update"] == [5, 10]
            seen = online
    assert same_weights(*weights)
    assert [one.get_scale() < scale for one in scalers] == [scale > 2.0**100] * 2
    if scale < 2.0**100:
        _, want, _ = trained(tmp_path / "here", False, ONLINE)
        np.testing.assert_allclose(seen, want, atol=0.05 * want.max())  # in half precision; the scale is 65,536
