"""Stacks of one kind are told apart by where they are in the model."""

import numpy as np
import pytest
from two_towers import build

import headdynamics as hd
from headdynamics.stacks import stacks


def of(*modules, kind=None):
    return [(one.title, one.at.tolist()) for one in stacks(kind or ["encoder"] * len(modules), modules)]


def test_a_stack_alone_has_its_kinds_name():
    kinds = ["encoder", "decoder", "cross", "decoder"]
    modules = ["encoder.layers.0.self", "decoder.layers.0.self", "decoder.layers.0.cross", "decoder.layers.1.self"]
    assert of(*modules, kind=kinds) == [("encoder", [0]), ("decoder", [1, 3]), ("cross", [2])]
    assert of("3.attn", "12.attn") == [("encoder", [0, 1])] and of() == []


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("text_model.encoder.layers.0.a", "vision_model.encoder.layers.0.a"), ("text_model", "vision_model")),
        (("clip.text.layers.0.a", "clip.vision.layers.0.a"), ("text", "vision")),
        (("enc.blocks.0.0.a", "dec.layers.0.a"), ("enc.blocks", "dec.layers")),
        (("encoder.layers.0.a", "encoder.pooler.layers.0.a"), ("layers", "pooler.layers")),
        (("a", "b.0.attn"), ("a", "b")),
    ],
)
def test_several_are_named_by_what_differs(paths, names):
    assert of(*paths) == [(f"encoder, {names[0]}", [0]), (f"encoder, {names[1]}", [1])]


def test_layer_and_number_are_unique_in_each_stack_of_a_real_model():
    heads = hd.find_heads(build())
    found = stacks(heads.kind, heads.module)
    assert [one.name for one in found] == ["text_model", "vision_model"]
    for one in found:
        assert len({*zip(heads.layer[one.at], heads.number[one.at], strict=True)}) == len(one.at) == 8
    assert np.sort(np.concatenate([one.at for one in found])).tolist() == list(range(16))
