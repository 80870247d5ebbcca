"""Orders, weights and configs that are not what they should be: one clear error, and the model as it was."""

import json
import os

import numpy as np
import pytest
import torch
import transformers as hf
from models import SIZES
from more_models import gpt_neox
from test_surgery import FAMILIES, logits, mask
from test_surgery_reload import BATCH, cut, fingerprint, same_fingerprint

import headdynamics as hd

BERT = FAMILIES["bert"]
BLOCK = "encoder.layer.0.attention.self"


@pytest.mark.parametrize(
    "order",
    [None, 3, "abc", ["a", "b"], [True, False], np.arange(8.0), np.arange(8).reshape(2, 4), [[]], [0.5], [None]],
    ids=repr,
)
def test_an_order_that_is_no_row_of_numbers(order):
    model = BERT.build()
    before = fingerprint(model)
    with pytest.raises(ValueError, match="lists heads 0 to 7 in one row of whole numbers"):
        hd.prune(model, order, 0.5)
    assert same_fingerprint(fingerprint(model), before)


@pytest.mark.parametrize("fraction", [float("nan"), float("inf"), None, "half", "1/0", True, -0.1, 1.1])
def test_a_fraction_that_is_none(fraction):
    with pytest.raises(ValueError, match="lies between 0 and 1"):
        hd.prune(BERT.build(), np.arange(8), fraction)


@pytest.mark.parametrize("order", [[], np.array([], int)], ids=["list", "array"])
def test_of_an_empty_order_nothing_goes(order):
    model = BERT.build()
    assert hd.prune(model, order, 0.5).all() and len(hd.find_heads(model)) == 8


@pytest.mark.parametrize("keep", [[1, 0, 1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 0, 0, 0]], ids=["uneven", "empty"])
def test_what_was_proved_on_a_batch_loads_without_one(keep, tmp_path):
    model = gpt_neox()
    hd.remove_heads(model, keep, batch=BATCH)
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    fresh = hf.GPTNeoXForCausalLM(gpt_neox().config).eval()
    for again in (hd.load_pruned(type(model), tmp_path), hd.load_pruned(fresh, tmp_path / "weights.pt")):
        with torch.no_grad():
            assert torch.equal(again(**BATCH).logits, model(**BATCH).logits)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder, its config) of a BERT without some heads."""
    folder = tmp_path_factory.mktemp("pruned")
    cut(BERT, "random").save_pretrained(folder)
    return folder, json.loads((folder / "config.json").read_text())


def load_changed(saved, **changes):
    folder, config = saved
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return hd.load_pruned(hf.BertForSequenceClassification, folder)


@pytest.mark.parametrize(
    "asks",
    [
        {"_attn_implementation": "someone/kernel"},
        {"attn_implementation": "someone/kernel"},
        {"attn_implementation": {"": "paged|someone/kernel@main"}},
        {"text_config": {"attn_implementation": "someone/kernel"}},
        {"parts": [{"experts_implementation": "someone/kernel"}]},
        {"configuration_files": ["config.4.0.0.json"]},
    ],
    ids=str,
)
def test_code_from_elsewhere_is_refused_before_transformers_sees_it(saved, asks, monkeypatch):
    def seen(*_, **__):
        raise AssertionError("transformers has read the config")

    monkeypatch.setattr(hf.BertConfig, "from_pretrained", seen)
    with pytest.raises(hd.SurgeryError, match="asks for code from elsewhere"):
        load_changed(saved, **asks)


@pytest.mark.parametrize(
    "entry",
    [
        [1, 2], "abc", 0, "", {BLOCK: 3}, {BLOCK: "0123"}, {BLOCK: None}, {BLOCK: {"0": 1}}, {BLOCK: [99]},
        {BLOCK: [-1]}, {BLOCK: [0, 0, 0]}, {BLOCK: [0.0]}, {BLOCK: [True]}, {BLOCK: [[0]]},
    ],
    ids=str,
)  # fmt: skip
def test_an_entry_that_is_no_list_of_heads(saved, entry):
    with pytest.raises(hd.SurgeryError, match="the config's kept_heads"):
        load_changed(saved, kept_heads=entry)


def test_a_config_of_another_shape(saved):
    with pytest.raises(hd.SurgeryError, match=r"(?s)cannot be loaded as a pruned Bert.*mismatch"):
        load_changed(saved, intermediate_size=24)


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "[" * 100000], ids=["none", "empty", "cut", "list", "deep"])
def test_a_folder_without_a_config(content, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(hd.SurgeryError, match="config.json"):
        hd.load_pruned(hf.BertModel, tmp_path)


def test_no_folder_no_weights_no_class(saved, tmp_path):
    with pytest.raises(hd.SurgeryError, match="is no folder: give one that save_pretrained wrote"):
        hd.load_pruned(hf.BertModel, tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps(saved[1]))
    with pytest.raises(hd.SurgeryError, match="cannot be loaded as a pruned BertModel"):
        hd.load_pruned(hf.BertModel, tmp_path)
    with pytest.raises(hd.SurgeryError, match="AutoModel is no Hugging Face model class"):
        hd.load_pruned(hf.AutoModel, tmp_path)


def other(**sizes):
    config = hf.BertConfig(
        **{"vocab_size": 16, "max_position_embeddings": 12, "num_labels": 3, "pad_token_id": 1, **SIZES, **sizes}
    )
    return hf.BertForSequenceClassification(config).eval()


def without(state, part):
    return {name: value for name, value in state.items() if part not in name}


W_O = "bert.encoder.layer.0.attention.output.dense.weight"
SPOILED = {
    "feed-forward": (lambda: other(intermediate_size=24), lambda state: state, "size mismatch for .*intermediate"),
    "hidden size": (lambda: other(hidden_size=32), lambda state: state, "size mismatch"),
    "lacking": (other, lambda state: without(state, "classifier"), "missing .*classifier"),
    "too many": (other, lambda state: {**state, "more": torch.ones(1)}, "unexpected .*more"),
    "flat": (other, lambda state: {**state, W_O: torch.ones(3)}, "has the shape"),
    "no tensor": (other, lambda state: {**state, W_O: "rows"}, "has the shape"),
    "names": (other, lambda state: {**state, 5: torch.ones(1)}, "not the weights of this model"),
    "a list": (other, lambda state: [1], "weights are a list"),
    "nothing": (other, lambda state: None, "weights are a NoneType"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_weights_that_do_not_fit_leave_the_model_untouched(name):
    build, spoil, why = SPOILED[name]
    model = build()
    before, values = fingerprint(model), {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(hd.SurgeryError, match=why):
        hd.load_pruned(model, spoil(cut(BERT, "random").state_dict()))
    assert same_fingerprint(fingerprint(model), before)
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [None, b"", os.urandom(300)], ids=["absent", "empty", "garbage"])
def test_files_that_hold_no_weights(content, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(hd.SurgeryError, match=f"weights{suffix} (cannot be read as|is damaged)"):
        hd.load_pruned(BERT.build(), path)


def test_the_weights_that_fit_still_do():
    """After a refusal the same model takes the right weights."""
    model, right = BERT.build(), cut(BERT, "random")
    with pytest.raises(hd.SurgeryError):
        hd.load_pruned(model, without(right.state_dict(), "classifier"))
    assert torch.equal(logits(BERT, hd.load_pruned(model, right.state_dict())), logits(BERT, right))
    assert len(hd.find_heads(model)) == int(mask(BERT, "random").sum())
