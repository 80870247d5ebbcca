"""Models built from one config object are still models apart: taking heads out of one is nothing to the other."""

import copy

import numpy as np
import pytest
import torch
import transformers as hf
from models import TEXT
from test_surgery_reload import fingerprint, same_fingerprint

import headdynamics as hd

TINY = dict(hidden_size=16, intermediate_size=16, num_attention_heads=4, num_hidden_layers=2, vocab_size=16)
INPUTS = {name: TEXT[name] for name in ("input_ids", "attention_mask")}
ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])


def llama():
    return hf.LlamaForCausalLM, hf.LlamaConfig(**TINY)


def bert():
    return hf.BertForSequenceClassification, hf.BertConfig(**TINY)


def clip():
    image = dict(TINY, image_size=8, patch_size=4)
    del image["vocab_size"]
    return hf.CLIPModel, hf.CLIPConfig(text_config=TINY, vision_config=image)


PAIRS = pytest.mark.parametrize("kind", [llama, bert], ids=["llama", "bert"])


def out(model):
    with torch.no_grad():
        return model.eval()(**INPUTS).logits


def twins(kind):
    made, config = kind()
    first, second = made(config), made(config)
    assert first.config is second.config
    return made, first, second


@PAIRS
def test_the_other_model_keeps_its_config_and_loads(kind, tmp_path):
    made, cut, whole = twins(kind)
    before, alone = copy.deepcopy(whole.config.to_dict()), out(whole)
    hd.prune(cut, ORDER, 0.5)
    assert whole.config.to_dict() == before and cut.config.to_dict() != before
    for model, name in ((whole, "whole"), (cut, "cut")):
        model.save_pretrained(tmp_path / name)
    assert torch.equal(out(made.from_pretrained(tmp_path / "whole")), alone)
    assert torch.equal(out(hd.load_pruned(made, tmp_path / "cut")), out(cut))


@PAIRS
def test_the_other_model_is_pruned_later_by_its_own_numbers(kind, tmp_path):
    made, first, second = twins(kind)
    hd.remove_heads(first, [0, 0, 1, 1, 1, 1, 1, 1])
    hd.remove_heads(second, [1, 1, 0, 1, 0, 0, 1, 1])
    assert list(first.config.kept_heads.values()) == [[2, 3]]
    assert list(second.config.kept_heads.values()) == [[0, 1, 3], [2, 3]]
    for model, name in ((first, "first"), (second, "second")):
        model.save_pretrained(tmp_path / name)
        assert torch.equal(out(hd.load_pruned(made, tmp_path / name)), out(model))


@pytest.mark.parametrize("kind", [llama, bert, clip], ids=["llama", "bert", "clip"])
def test_every_part_reads_the_new_config(kind):
    """A setting changed after the cut must reach the attention itself, also through a composite's sub-configs."""
    _, cut, whole = twins(kind)
    hd.remove_heads(cut, [1, 0] * (len(hd.find_heads(cut)) // 2))
    old = {id(module.config) for module in whole.modules() if hasattr(module, "config")}
    new = {id(module.config) for module in cut.modules() if hasattr(module, "config")}
    assert len(new) == len(old) and not new & old
    cut.config._attn_implementation = "eager"  # set_attn_implementation leaves BERT as it is in transformers 4
    parts = [module.config._attn_implementation for module in cut.modules() if hasattr(module, "config")]
    others = [module.config._attn_implementation for module in whole.modules() if hasattr(module, "config")]
    assert set(parts) == {"eager"} and "eager" not in others


@PAIRS
def test_a_config_that_cannot_be_written_undoes_the_cut(kind, monkeypatch):
    _, model, other = twins(kind)
    before, said, alone = fingerprint(model), copy.deepcopy(model.config.to_dict()), out(model)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("headdynamics.surgery.config._builds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hd.prune(model, ORDER, 0.5)
    assert same_fingerprint(fingerprint(model), before) and torch.equal(out(model), alone)
    assert model.config is other.config and model.config.to_dict() == said
