"""save_weights: beside the run file that is really written, whole or not at all, and never a training's end."""

import logging

import pytest
import torch
from safetensors.torch import load_file

from headdynamics.weights import save_weights


def test_the_weights_come_back(tmp_path):
    model = torch.nn.Linear(3, 2)
    path = save_weights(model, tmp_path / "run.h5", 12)
    assert path == str(tmp_path / "run-weights/update-000012.safetensors")
    saved = load_file(path)
    assert saved.keys() == dict(model.state_dict()).keys()
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())
    assert [p.name for p in (tmp_path / "run-weights").iterdir()] == ["update-000012.safetensors"]


def test_a_second_run_keeps_its_weights_apart(tmp_path):
    first = save_weights(torch.nn.Linear(3, 2), tmp_path / "run.h5", 1)
    before = load_file(first)
    second = save_weights(torch.nn.Linear(3, 2), tmp_path / "run-2.h5", 1)
    assert second == str(tmp_path / "run-2-weights/update-000001.safetensors")
    assert torch.equal(load_file(first)["weight"], before["weight"])


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("safetensors' own"), ImportError("no such")])
def test_no_failure_reaches_training(tmp_path, monkeypatch, caplog, error):
    import safetensors.torch

    def fails(model, path):
        raise error

    monkeypatch.setattr(safetensors.torch, "save_model", fails)
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
