"""A pruned model is saved and built again, strictly; and what cannot be cut is refused untouched."""

import json

import pytest
import torch
import transformers as hf
from models import CASES, TEXT
from more_models import bloom, gpt_neox, olmo2
from test_surgery import FAMILIES, HUGGING_FACE, OLD, logits, mask
from torch import nn

import headdynamics as hd
from headdynamics.surgery.layouts import FUSED

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
NATIVE = ("bert", "roberta", "distilbert", "gpt2", "vit", "bert-decoder")  # transformers 4 has words for these
UNIFORM = ("llama", "mistral", "qwen2", "qwen3")  # config has an explicit head size


def cut(case, which):
    model = case.build()
    hd.remove_heads(model, mask(case, which))
    return model


def without_us(model, folder):
    """The plain `from_pretrained`; None where it refuses."""
    try:
        return type(model).from_pretrained(folder).eval()
    except RuntimeError as error:
        assert "mismatch" in str(error)
        return None


@pytest.mark.parametrize("which", ["random", "first layers empty", "none left", "equal"])
@pytest.mark.parametrize("case", HUGGING_FACE, ids=str)
def test_save_pretrained_and_one_line_of_ours(case, which, tmp_path):
    model = cut(case, which)
    model.save_pretrained(tmp_path)
    again = hd.load_pruned(type(model), tmp_path)
    assert type(again) is type(model) and not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(logits(case, again), logits(case, model))
    assert again.config.kept_heads == model.config.kept_heads
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(logits(case, hd.load_pruned(type(model), tmp_path / "twice")), logits(case, model))


@pytest.mark.parametrize("which", ["random", "first layers empty", "equal"])
@pytest.mark.parametrize("case", HUGGING_FACE, ids=str)
def test_save_pretrained_without_us(case, which, tmp_path):
    """Where the library can say it the plain class loads the same; else it refuses: never a wrong model."""
    model = cut(case, which)
    model.save_pretrained(tmp_path)
    plain = without_us(model, tmp_path)
    sayable = which == "equal" and case.name in (*UNIFORM, "vit")
    sayable |= OLD and which != "first layers empty" and case.name in NATIVE
    assert (plain is not None) == sayable
    if plain is not None:
        assert torch.equal(logits(case, plain), logits(case, model))


def test_the_config_holds_plain_numbers(tmp_path):
    """Numbers of the original model, also after a second cut."""
    model = FAMILIES["bert"].build()
    hd.remove_heads(model, [1, 0, 1, 1, 1, 1, 1, 1])
    hd.remove_heads(model, [0, 1, 1, 1, 0, 0, 1])
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["kept_heads"] == {"encoder.layer.0.attention.self": [2, 3], "encoder.layer.1.attention.self": [0, 3]}
    assert saved["num_attention_heads"] == 4
    case = FAMILIES["bert"]
    assert torch.equal(logits(case, hd.load_pruned(type(model), tmp_path)), logits(case, model))


def test_equal_heads_need_no_entry(tmp_path):
    model = cut(FAMILIES["llama"], "equal")
    assert model.config.kept_heads is None
    assert (model.config.num_attention_heads, model.config.num_key_value_heads, model.config.head_dim) == (2, 1, 4)


def test_the_base_model_alone(tmp_path):
    model = cut(FAMILIES["bert"], "random")
    model.save_pretrained(tmp_path)
    with pytest.raises(hd.SurgeryError, match="unexpected"):  # the classifier: strict
        hd.load_pruned(hf.BertModel, tmp_path)
    model.bert.save_pretrained(tmp_path / "base")
    base = hd.load_pruned(hf.BertModel, tmp_path / "base")
    inputs = {name: value for name, value in TEXT.items() if name != "labels"}
    with torch.no_grad():
        assert torch.equal(base(**inputs).last_hidden_state, model.bert(**inputs).last_hidden_state)


def test_weights_of_another_model_are_refused(tmp_path):
    model = cut(FAMILIES["bert"], "random")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for entry, complaint in (({"encoder.layer.7.attention.self": []}, "encoder.layer.7"), ({}, "mismatch")):
        (tmp_path / "config.json").write_text(json.dumps({**config, "kept_heads": entry, "pruned_heads": {}}))
        with pytest.raises((hd.SurgeryError, RuntimeError), match=complaint):
            hd.load_pruned(type(model), tmp_path)


@pytest.mark.parametrize("which", ["random", "first layers empty", "none left"])
@pytest.mark.parametrize("name", ["fairseq", "torch", "llama", "gpt2", "bart"])
def test_a_state_dict_tells_the_shapes(name, which, tmp_path):
    case = FAMILIES[name]
    model = cut(case, which)
    path = tmp_path / "checkpoint.pt"
    torch.save(
        {"model": model.state_dict(), "extra_state": {"epoch": 3}} if name == "fairseq" else model.state_dict(), path
    )
    with torch.no_grad():
        for parameter in (fresh := case.build()).parameters():
            parameter.zero_()
    again = hd.load_pruned(fresh, path)
    assert again is fresh and torch.equal(logits(case, again), logits(case, model))


def test_equally_many_heads_of_each_group_in_a_state_dict():
    case = FAMILIES["llama"]
    model = case.build()
    hd.remove_heads(model, [1, 0, 0, 1, 0, 0, 1, 1])
    again = hd.load_pruned(case.build(), model.state_dict())
    assert torch.equal(logits(case, again), logits(case, model))


def test_weights_as_safetensors(tmp_path):
    """Tied weights are stored once."""
    from safetensors.torch import save_model

    case = FAMILIES["gpt2"]
    model = cut(case, "random")
    save_model(model, str(tmp_path / "model.safetensors"))
    again = hd.load_pruned(case.build(), tmp_path / "model.safetensors")
    assert torch.equal(logits(case, again), logits(case, model))


def test_state_dicts_that_do_not_fit_are_refused():
    case = FAMILIES["bart"]
    state = cut(case, "random").state_dict()
    lacking = {name: value for name, value in state.items() if "fc1" not in name}
    with pytest.raises(hd.SurgeryError, match="missing.*fc1"):
        hd.load_pruned(case.build(), lacking)
    with pytest.raises(hd.SurgeryError, match="unexpected.*extra"):
        hd.load_pruned(case.build(), {**state, "extra": torch.ones(1)})
    with pytest.raises(hd.SurgeryError, match="more than the model's"):
        hd.load_pruned(cut(case, "random"), case.build().state_dict())
    with pytest.raises(hd.SurgeryError, match="position bias by the number of the head"):
        hd.load_pruned(FAMILIES["t5"].build(), cut(FAMILIES["t5"], "random").state_dict())


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"model": FAMILIES["bert"]}, path)  # an object of a class of ours
    with pytest.raises(Exception, match="(?i)weights.only"):
        hd.load_pruned(FAMILIES["bert"].build(), path)


def fingerprint(model):
    return [
        (name, id(module), type(module), dict(vars(module), training=None)) for name, module in model.named_modules()
    ]


def same_fingerprint(first, second):
    def plain(entry):
        values = {k: v for k, v in entry[3].items() if isinstance(v, (int, float, str, bool))}
        hooks = [len(entry[3][k]) for k in ("_forward_hooks", "_forward_pre_hooks")]
        parts = [[(n, id(v)) for n, v in entry[3][k].items()] for k in ("_parameters", "_modules", "_buffers")]
        return entry[:3], values, hooks, parts

    return [plain(e) for e in first] == [plain(e) for e in second]


class LoRA(nn.Linear):
    """A linear layer with something beside it."""

    def __init__(self) -> None:
        super().__init__(16, 16)
        self.down, self.up = nn.Linear(16, 2), nn.Linear(2, 16)


def adapted():
    model = FAMILIES["bert"].build()
    model.bert.encoder.layer[1].attention.self.query = LoRA()
    return model


def tied():
    model = FAMILIES["bert"].build()
    first, second = (layer.attention.self.query for layer in model.bert.encoder.layer)
    second.weight = first.weight
    return model


def with_bias_k():
    model = CASES["torch"].build()
    model.encoder.layers[1].self_attn = nn.MultiheadAttention(16, 4, add_bias_kv=True, batch_first=True)
    return model


def strange():
    model = FAMILIES["bert"].build()
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        attention.queries_and_keys, attention.q_head = attention.query, attention.key
        del attention.query, attention.key
    return model


BATCH = {name: TEXT[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize(
    ("build", "keep", "batch", "why"),
    [
        (adapted, [1, 0] * 4, None, "LoRA, which holds more"),
        (tied, [1, 0] * 4, None, "are one weight"),
        (with_bias_k, [1, 0] * 4, None, "bias_k"),
        (strange, [1, 0] * 4, None, "not of a known layout"),
        (FAMILIES["llama"].build, [1, 0, 1, 1, 1, 1, 1, 1], None, "keep whole groups"),
        (olmo2, [1, 0] * 4, None, r"q_norm.weight \[16\] may belong to heads too"),
        (olmo2, [1, 0] * 4, BATCH, "does not run"),
        (gpt_neox, [1, 0] * 4, None, "query_key_value lays out its rows"),
        (bloom, [1, 0] * 4, BATCH, "does not run"),
        (FAMILIES["bert"].build, [1, 0, 1], None, r"this model has 8 heads"),
        (FAMILIES["bert"].build, torch.ones(2, 8), None, r"this model has 8 heads"),
    ],
    ids="lora tied bias_k strange groups norm norm-proved fused alibi short per-row".split(),
)
def test_refused_and_untouched(build, keep, batch, why):
    model = build()
    before = fingerprint(model)
    with pytest.raises(ValueError, match=why):
        hd.remove_heads(model, keep, batch=batch)
    assert same_fingerprint(fingerprint(model), before)


@pytest.mark.parametrize("keep", [[1, 0, 1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 0, 0, 0]], ids=["uneven", "empty"])
def test_a_fused_layout_is_proved_on_a_batch(keep):
    model, whole = gpt_neox(), gpt_neox()
    hd.remove_heads(model, keep, batch=BATCH)
    with hd.masked(hd.find_heads(whole), keep), torch.no_grad():
        torch.testing.assert_close(model(**BATCH).logits, whole(**BATCH).logits, atol=1e-5, rtol=0)


def test_a_wrong_guess_is_found_out(monkeypatch):
    """GPT-NeoX read as thirds has the right shapes and other heads."""
    monkeypatch.setitem(FUSED, "query_key_value", "thirds")
    model = gpt_neox()
    before = fingerprint(model)
    with pytest.raises(hd.SurgeryError, match="does not compute what the masked model does"):
        hd.remove_heads(model, [1, 0] * 4, batch=BATCH)
    assert same_fingerprint(fingerprint(model), before)


@pytest.mark.parametrize("name", ["bert", "t5", "fairseq", "torch", "llama"])
def test_a_batch_proves_any_cut(name):
    case = FAMILIES[name]
    model = case.build()
    hd.remove_heads(model, mask(case, "random"), batch=case.batch)
    assert len(hd.find_heads(model)) == int(mask(case, "random").sum())
    assert not model.training


@pytest.mark.parametrize("name", ["t5", "fairseq", "torch", "gpt2"])
def test_a_cut_that_fails_half_way_is_undone(name, monkeypatch):
    case = FAMILIES[name]
    model = case.build()
    before, out = fingerprint(model), logits(case, model)
    monkeypatch.setattr("headdynamics.surgery.remove.same", lambda *_: False)
    with pytest.raises(hd.SurgeryError, match="does not compute"):
        hd.remove_heads(model, mask(case, "first layers empty"), batch=case.batch)
    assert same_fingerprint(fingerprint(model), before)
    assert torch.equal(logits(case, model), out)
