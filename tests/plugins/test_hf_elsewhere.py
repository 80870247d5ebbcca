"""A real Trainer on a GPU that is not there: what it does, and we beside it, meets that device's refusals."""

from unittest import mock

import hf_tiny as tiny
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from elsewhere import elsewhere
from hf_tiny import FEW
from transformers import TrainingArguments

MPS = torch.device("mps")
SET_UP = TrainingArguments.device.fget
WATCHED = FEW | {"tensorboard": False, "strict": True, "ablations": ("one",)}


def trained(folder, lm, options):
    """The run file's rows, and the weights in the end."""
    made = tiny.trainer(folder, ("attach", folder / "run.h5", WATCHED | options), lm=lm, save_strategy="no")
    made.train()
    return tiny.rows(folder / "run.h5"), made.model


@pytest.mark.parametrize("options", [{}, {"online": True}], ids=["snapshots", "online"])
@pytest.mark.parametrize("lm", [False, True], ids=["bert", "gpt2"])
def test_a_training(tmp_path, lm, options):
    want, there = trained(tmp_path / "here", lm, options)
    model = tiny.gpt2() if lm else tiny.bert()
    with (
        elsewhere("mps"),
        mock.patch.object(TrainingArguments, "device", property(lambda arguments: (SET_UP(arguments), MPS)[1])),
        mock.patch.object(Accelerator, "device", MPS),
        mock.patch.object(tiny, "bert", lambda: model),
        mock.patch.object(tiny, "gpt2", lambda: model),
    ):
        found, model = trained(tmp_path / "there", lm, options)
        assert {parameter.device for parameter in model.parameters()} == {MPS}
    for one, other in zip(model.parameters(), there.parameters(), strict=True):
        assert torch.equal(one, other)
    assert found["status"] == ["ok", "ok"] and found["update"] == want["update"]
    for name in ("score", "curve", "seen"):
        np.testing.assert_allclose(found[name], want[name], rtol=1e-5, atol=1e-6)
