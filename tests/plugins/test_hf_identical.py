"""Training does not notice: weights, optimizer, log and data order are the same bits with and without."""

import hf_tiny as tiny
import pytest
import torch
from hf_tiny import QUIET, HeadDynamicsCallback


def watch(how, path, **options):
    return HeadDynamicsCallback(path, **QUIET | options) if how == "callback" else ("attach", path, QUIET | options)


def train_and_resume(folder, watch, **settings):
    """Train to the end, then, where that can be, again from the middle checkpoint; what both leave, with the files."""
    first = tiny.trainer(folder, watch, **settings)
    first.train()
    middle = folder / "checkpoint-5"
    optimizer = torch.load(middle / "optimizer.pt", weights_only=True)
    weights = (middle / "model.safetensors").read_bytes()
    if tiny.OLD:  # see tiny.needs_resume
        return tiny.left(first), optimizer, weights
    again = tiny.trainer(folder, watch, **settings)
    again.train(resume_from_checkpoint=str(middle))
    return tiny.left(first), tiny.left(again), optimizer, weights


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same trainings without the instrument, made once a setting."""
    known = {}

    def make(**settings):
        key = tuple(sorted(settings.items()))
        if key not in known:
            known[key] = train_and_resume(tmp_path_factory.mktemp("alone"), None, **settings)
        return known[key]

    return make


@pytest.mark.parametrize(
    ("how", "settings"),
    [
        ("callback", {}),
        ("attach", {}),
        ("callback", {"dataloader_num_workers": 2}),
        ("attach", {"dataloader_num_workers": 2}),
        ("callback", {"lm": True}),
        ("attach", {"lm": True}),
    ],
)
def test_the_same_bits_with_and_without(tmp_path, alone, how, settings):
    watched = train_and_resume(tmp_path / "run", watch(how, tmp_path / "run.h5", every=1), **settings)
    assert tiny.same(watched, alone(**settings))
    assert tiny.rows(tmp_path / "run.h5")["update"] == list(range(1, 11)) or how == "callback"
