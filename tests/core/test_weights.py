"""save_weights: beside the run file that is really written, whole or not at all, and never a training's end."""

import logging
from pathlib import Path

import pytest
import torch
from models import CASES
from safetensors.torch import load_file

from headdynamics.checkpoints import saved
from headdynamics.weights import save_weights


def test_the_weights_come_back(tmp_path):
    model = torch.nn.Linear(3, 2)
    path = save_weights(model, tmp_path / "run.h5", 12)
    assert path == str(tmp_path / "run-weights/update-000012.safetensors")
    found = load_file(path)
    assert found.keys() == dict(model.state_dict()).keys()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    assert [p.name for p in (tmp_path / "run-weights").iterdir()] == ["update-000012.safetensors"]


def laid_into_one_buffer(model):
    """As DeepSpeed's ZeRO 1 and 2 do."""
    parameters = list(model.parameters())
    buffer, start = torch.cat([parameter.data.flatten() for parameter in parameters]), 0
    for parameter in parameters:
        parameter.data = buffer[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    return model


@pytest.mark.parametrize("lay", [lambda model: model, laid_into_one_buffer], ids=["apart", "flat"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "bart", "fairseq"])
def test_they_come_back_where_weights_are_tied_or_views(tmp_path, lay, name):
    model, other = lay(CASES[name].build()), CASES[name].build()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    path = save_weights(model, tmp_path / "run.h5", 1, strict=True)
    saved(Path(path)).load(other)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert Path(path).stat().st_size < 1.5 * size + 20_000  # no buffer of them all with each


def test_what_has_no_elements_and_what_is_transposed_come_back(tmp_path):
    model, other = (torch.nn.ParameterDict(
        {"none": torch.empty(0, 3), "too": torch.empty(0, 3), "turned": torch.arange(6.0).view(2, 3).t() * factor}
    ) for factor in (1, 0))  # fmt: skip
    saved(Path(save_weights(model, tmp_path / "run.h5", 1, strict=True))).load(other)
    assert torch.equal(other["turned"], torch.tensor([[0.0, 3], [1, 4], [2, 5]])) and other["too"].shape == (0, 3)


def test_one_storage_by_two_shapes_comes_back(tmp_path):
    made = [torch.nn.ParameterDict({"flat": torch.arange(6.0) * factor}) for factor in (1, 0)]
    for model in made:
        model["square"] = torch.nn.Parameter(model["flat"].data.view(2, 3))
    saved(Path(save_weights(made[0], tmp_path / "run.h5", 1, strict=True))).load(made[1])
    assert torch.equal(made[1]["square"], torch.arange(6.0).view(2, 3))


def test_a_second_run_keeps_its_weights_apart(tmp_path):
    first = save_weights(torch.nn.Linear(3, 2), tmp_path / "run.h5", 1)
    before = load_file(first)
    second = save_weights(torch.nn.Linear(3, 2), tmp_path / "run-2.h5", 1)
    assert second == str(tmp_path / "run-2-weights/update-000001.safetensors")
    assert torch.equal(load_file(first)["weight"], before["weight"])


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("safetensors' own"), ImportError("no such")])
def test_no_failure_reaches_training(tmp_path, monkeypatch, caplog, error):
    import safetensors.torch

    def fails(*_):
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", fails)
    with caplog.at_level(logging.ERROR, "headdynamics"):
        assert save_weights(torch.nn.Linear(3, 2), tmp_path / "run.h5", 5) == ""
    assert str(error) in caplog.text and "update 5" in caplog.text
    assert ("pip install safetensors" in caplog.text) == isinstance(error, ImportError)
    with pytest.raises(type(error)):
        save_weights(torch.nn.Linear(3, 2), tmp_path / "run.h5", 5, strict=True)


def test_a_file_in_the_folders_place_is_left_alone(tmp_path, caplog):
    (tmp_path / "run-weights").write_text("mine")
    assert save_weights(torch.nn.Linear(3, 2), tmp_path / "run.h5", 5) == ""
    assert (tmp_path / "run-weights").read_text() == "mine"
    assert "could not save" in caplog.text
