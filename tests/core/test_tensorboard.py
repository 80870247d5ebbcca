"""TensorBoard: a tag for each layer of each stack, and no more kept than is drawn."""

from dataclasses import replace

import numpy as np
import pytest
from runs import a_run, a_snapshot, an_ablation
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from headdynamics.heads import Attention, Heads
from headdynamics.record.tensorboard import TensorBoardRecorder, scalars


def layers(heads):
    run, snapshot = replace(a_run(), heads=heads), a_snapshot(0, heads=len(heads))
    return {tag.split("/")[1]: value for tag, value in scalars(run, snapshot) if tag.startswith("importance_by_layer")}


def towers(*paths):
    linear = nn.Linear(1, 1)
    return Heads(tuple(Attention(path, linear, linear, 4, "encoder", i % 2, False) for i, path in enumerate(paths)))


def test_a_layer_of_each_stack_has_a_tag_of_its_own():
    found = layers(towers("text.layers.0.a", "text.layers.1.a", "vision.layers.0.a", "vision.layers.1.a"))
    means = {"encoder-text-0": 0.0015, "encoder-text-1": 0.0055, "encoder-vision-0": 0.0095, "encoder-vision-1": 0.0135}
    assert found == pytest.approx(means)
    assert layers(towers("layers.0.a", "layers.1.a")) == pytest.approx({"encoder-0": 0.0015, "encoder-1": 0.0055})


def test_a_long_run_keeps_neither_resamples_nor_ablations(tmp_path):
    whole = a_snapshot(1)
    curves = {name: replace(curve, resampled=np.ones((200, 11), np.float32)) for name, curve in whole.curves.items()}
    whole = replace(whole, curves=curves, ablations={"one": an_ablation()})
    recorder = TensorBoardRecorder(tmp_path)
    recorder.start(a_run(), None)
    recorder.write(whole)
    (kept,) = recorder._taken
    assert not kept.ablations and not any(owned(curve.resampled) for curve in kept.curves.values())
    assert whole.ablations and whole.curves["importance"].resampled.shape == (200, 11)
    recorder.close()
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    drawn = {"heads/importance", "curve/figure_5"}
    assert drawn <= set(tags["images"]) and {"score/unpruned", "retained/random_20"} <= set(tags["scalars"])


def owned(array):
    """Bytes that an array keeps alive, its own or those that it is a view of."""
    return array.nbytes if array.base is None else max(array.nbytes, array.base.nbytes)
