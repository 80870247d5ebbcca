"""Sharing between masks: to the bit what one masked pass per mask gives, and how much of it is not computed."""

from functools import partial

import numpy as np
import pytest
import torch
import transformers as hf
from compiler import needs_dynamo
from models import CASES
from torch import nn
from twisted import Layer, agree, by_passes, counted, measured, net, singles

import headdynamics as hd
from headdynamics.scores import BatchScore, ratio
from headdynamics.sharing import remembered, scores_under


@pytest.mark.parametrize("own_loss", [True, False])
@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_every_architecture(case, own_loss):
    if case.name == "fairseq" and not own_loss:
        return  # its batches are no keyword arguments
    model, count = case.build(), 4 * len(case.outputs)
    score = hd.mean_loss([case.batch, case.batch], *[case.loss] * own_loss)
    block = torch.arange(count) // 4
    others = 1 - (block == block[:, None]).float() + torch.eye(count)
    halves = [
        torch.linspace(0, 1, count),
        torch.arange(count) % 2,
        torch.stack([torch.arange(count) % n for n in (2, 3, 4)]) > 0,
    ]
    found = agree(model, score, [*singles(count), *others, *(half.float() for half in halves)])
    assert len({one.value for one in found}) > count


def test_what_is_computed():
    """Of a pass without one head of layer 0 everything but that layer's attention; of one of layer 1 only its rest."""
    case = CASES["bert"]
    model = case.build()
    with counted() as runs:
        scores_under(model, hd.find_heads(model), hd.mean_loss([case.batch] * 3), singles(8))
    layers = [dict(layer.named_modules()) for layer in model.bert.encoder.layer]
    told = [[runs[id(layer[name])] for name in ("attention.self.query", "attention.output.dense")] for layer in layers]
    assert told == [[3 * 1, 3 * 5], [3 * 5, 3 * 9]] and runs[id(model.classifier)] == 3 * 9


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "t5", "bart", "fairseq", "torch"])
def test_an_attention_module_runs_again_only_behind_its_gate(name):
    case = CASES[name]
    model = case.build()
    heads = hd.find_heads(model)
    score = hd.mean_loss([case.batch], *[case.loss] * (name == "fairseq"))
    with counted(type(heads.blocks[0].module)) as runs:
        scores_under(model, heads, score, singles(len(heads)))
    for i, block in enumerate(heads.blocks):
        earlier = 0 if (block.kind, block.layer) == ("decoder", 0) else i  # blocks that it depends on
        assert runs[id(block.module)] == 1 + 4 * earlier


def test_what_is_remembered():
    """The stack, the layers, their attention and what comes before them; not what a layer does in between."""
    case = CASES["bert"]
    model = case.build()
    with torch.no_grad(), remembered(model, hd.find_heads(model)) as memory, counted(nn.Embedding) as runs:
        for keep in singles(8):
            memory.mask(keep)
            case.loss(model, case.batch)
        names = {name for name, module in model.named_modules() if module in memory.calls}
    layers = [f"bert.encoder.layer.{i}{part}" for i in range(2) for part in ("", ".attention", ".attention.self")]
    first = "bert.encoder.layer.0.attention.output"  # called before the gate that is in it
    stack = set() if hf.__version__.startswith("4.") else {"bert.encoder"}  # there its layers are, it is not
    assert names == {"bert", "bert.embeddings", first, *stack, *layers} and set(runs.values()) == {1}


def test_a_plain_net_shares():
    model = net()
    with counted() as runs:
        scores_under(model, hd.find_heads(model), measured(), singles(12))
    assert [runs[id(layer.attention.q_proj)] for layer in model.layers] == [2 * 1, 2 * 5, 2 * 9]
    agree(model, measured())


# --- real models and generation


def hf_config(kind, **changed):
    sizes = dict(vocab_size=16, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32)
    return kind(**{**sizes, "pad_token_id": 1, **changed})


def albert():
    config = hf_config(hf.AlbertConfig, embedding_size=8, max_position_embeddings=12, num_labels=3)
    return hf.AlbertForSequenceClassification(config)


def switch():
    config = hf.SwitchTransformersConfig(
        vocab_size=16, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=4, num_experts=3,
        pad_token_id=1, eos_token_id=2, decoder_start_token_id=0, expert_capacity=4,
    )  # fmt: skip
    return hf.SwitchTransformersForConditionalGeneration(config)


def gated():
    """Attention whose W_O sees the context times a function of the input."""
    config = hf_config(
        hf.Qwen3NextConfig, num_key_value_heads=2, head_dim=4, num_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=8, shared_expert_intermediate_size=8, layer_types=["full_attention"] * 3,
        linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=4, linear_value_head_dim=4,
    )  # fmt: skip
    return hf.Qwen3NextForCausalLM(config)


def audio():
    config = hf_config(
        hf.Wav2Vec2Config, conv_dim=(8, 8), conv_stride=(3, 2), conv_kernel=(4, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, num_labels=3, classifier_proj_size=8,
    )  # fmt: skip
    return hf.Wav2Vec2ForSequenceClassification(config)


SOUND = {
    "input_values": torch.randn(3, 60, generator=torch.Generator().manual_seed(0)),
    "labels": torch.tensor([0, 2, 1]),
}
REAL = {
    "albert": (albert, CASES["bert"].batch),
    "deberta": (lambda: hf.DebertaV2ForSequenceClassification(
        hf_config(hf.DebertaV2Config, relative_attention=True, pos_att_type=["p2c", "c2p"], num_labels=3)
    ), CASES["bert"].batch),
    "switch": (switch, CASES["t5"].batch),
    "gated": (gated, CASES["llama"].batch),
    "audio": (audio, SOUND),
    "eager": (lambda: hf.BertForSequenceClassification(
        hf_config(hf.BertConfig, num_labels=3, attn_implementation="eager")
    ), CASES["bert"].batch),
    "states": (lambda: hf.BertForSequenceClassification(
        hf_config(hf.BertConfig, num_labels=3, output_hidden_states=True, output_attentions=True)
    ), CASES["bert"].batch),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_models(name):
    build, batch = REAL[name]
    torch.manual_seed(2)
    model = build().eval()
    heads = hd.find_heads(model)
    keeps = singles(len(heads))
    score = hd.mean_loss([batch])
    if name == "states":
        score = hd.mean_loss([batch], lambda model, x: sum(part.flatten(1).sum(1) for part in model(**x).hidden_states))
    with counted() as sharing:
        found = scores_under(model, heads, score, keeps)
    with counted() as whole:
        wanted = by_passes(model, heads, score, keeps)
    for one, other in zip(found, wanted, strict=True):
        assert one.stats.tobytes() == other.stats.tobytes()
    hooked = name in ("audio", "states")  # where transformers collects hidden states by hooks, all layers run
    assert sharing.total() <= whole.total() * (1 if hooked else 0.95)
    assert len({one.value for one in found}) > len(heads) // 2


class Tokens:
    """Generated tokens and their scores as one number a row."""

    def __init__(self, generate):
        self.generate = generate

    def __call__(self, model, batch):
        found = torch.cat([x.double().flatten() for x in self.generate(model, 2)])
        return torch.stack([found[found.isfinite()].sum(), torch.tensor(float(len(found)), dtype=torch.float64)])


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart", "fairseq"])
def test_beam_search(name):
    case = CASES[name]
    model = case.build()
    heads = hd.find_heads(model)
    score = hd.mean_loss([case.batch], Tokens(case.generate))
    with counted(type(heads.blocks[0].module)) as runs:
        found = scores_under(model, heads, score, singles(len(heads)))
    if case.outputs[0][1] == "encoder":
        assert [runs[id(block.module)] for block in heads.blocks[:2]] == [1, 5]  # not for the heads of the decoder
    for one, other in zip(found, by_passes(model, heads, score, singles(len(heads))), strict=True):
        assert one.stats.tobytes() == other.stats.tobytes()
    assert len({one.value for one in found}) > len(heads) // 4


def test_what_is_remembered_of_one_module_is_limited():
    model = net()
    with torch.no_grad(), remembered(model, hd.find_heads(model)) as memory:
        memory.mask(torch.ones(12))
        for i in range(40):  # as generation without a cache does
            model(torch.full((1, 3, 8), float(i)))
        assert max(len(calls) for calls in memory.calls.values()) == 32
        memory.forget()
        assert not memory.calls


# --- leaving things as they were


def test_an_error_leaves_nothing_behind():
    model = net()
    heads = hd.find_heads(model)
    before = [dict(vars(module)) for module in model.modules()]

    def failing(model, x):
        model(x)
        raise RuntimeError("boom")

    def failing_inside(self, x, context):
        self.o_proj(context)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        scores_under(model, heads, measured(failing), singles(12))
    model.layers[1].attention.inside = failing_inside
    with pytest.raises(RuntimeError, match="boom"):
        scores_under(model, heads, measured(), singles(12))
    model.layers[1].attention.inside = None
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    for module, attributes in zip(model.modules(), before, strict=True):
        assert vars(module) == attributes
    agree(model, measured())


def test_a_forward_that_somebody_replaced_stays_and_is_used():
    model = net()
    first = model.layers[0]
    replaced = lambda x: 2 * Layer.forward(first, x)  # noqa: E731
    first.forward = replaced
    with counted() as runs:
        agree(model, measured())
    assert first.forward is replaced and runs[id(first.attention.q_proj)] == 2 * (1 + 13)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, pytest.param(partial(torch.compile, backend="eager"), marks=needs_dynamo)]
)
def test_wrapped_models(wrap):
    case = CASES["bert"]
    model = case.build()
    wanted = hd.ablate(model, hd.mean_loss([case.batch]))
    with counted() as runs:
        found = hd.ablate(wrap(model), hd.mean_loss([case.batch]))
    assert runs[id(model.bert.encoder.layer[0].attention.self.query)] == 1
    assert found.score.tobytes() == wanted.score.tobytes() and found.pvalue.tobytes() == wanted.pvalue.tobytes()


def test_scores_that_are_no_batches():
    case = CASES["bert"]
    model = case.build()
    wanted = hd.ablate(model, hd.mean_loss([case.batch]))
    plain = hd.ablate(model, lambda model: float(hd.mean_loss([case.batch])(model).value))
    assert plain.score.tobytes() == wanted.score.tobytes() and plain.base == wanted.base

    class Own(BatchScore):
        def __call__(self, model):
            return 2 * super().__call__(model).value

    score = hd.mean_loss([case.batch])
    assert hd.ablate(model, Own("own", *list(vars(score).values())[1:])).base == 2 * wanted.base


def test_a_measure_may_take_labels_out_of_its_batch():
    case = CASES["bert"]
    model = case.build()

    def measure(model, batch):
        labels = batch["inner"].pop("labels")
        return np.stack([model(**batch["inner"]).logits[:, 0].double().numpy(), labels.numpy()], 1)

    batches = [{"inner": dict(case.batch)}]
    assert (
        len(scores_under(model, hd.find_heads(model), BatchScore("x", True, batches, measure, ratio), singles(8))) == 9
    )
