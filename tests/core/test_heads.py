"""Every head is found, with its kind, layer, number and W_O; what is not understood is named."""

import copy
import warnings

import numpy as np
import pytest
import torch
import transformers as hf
from models import CASES, IDS, SIZES
from torch import nn

import headdynamics as hd
from headdynamics.surgery.lent import removed

SMALL = dict(vocab_size=16, max_position_embeddings=16, **SIZES)
GPT = dict(vocab_size=16, n_positions=16, n_embd=16, n_layer=2, n_head=4)


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_heads_are_these(case):
    model = case.build()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heads = hd.find_heads(model)
    expected = [(kind, layer, number) for _, kind, layer in case.outputs for number in range(4)]
    assert list(zip(heads.kind, heads.layer, heads.number, strict=True)) == expected
    assert [block.projection for block in heads.blocks] == [model.get_submodule(path) for path, _, _ in case.outputs]
    assert all(block.functional is case.functional for block in heads.blocks)
    assert len(heads) == len(expected) and heads.sizes == [4] * len(case.outputs)
    assert heads.block.tolist() == [i for i in range(len(case.outputs)) for _ in range(4)]
    assert heads.unread == ()


def test_bart_literally():
    table = hd.find_heads(CASES["bart"].build()).table()
    assert len(table) == 24
    assert table[5] == {"kind": "encoder", "layer": 1, "number": 1, "module": "model.encoder.layers.1.self_attn"}
    assert table[12] == {"kind": "cross", "layer": 0, "number": 0, "module": "model.decoder.layers.0.encoder_attn"}
    assert table[19] == {"kind": "decoder", "layer": 1, "number": 3, "module": "model.decoder.layers.1.self_attn"}


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_wrappers_are_seen_through(case):
    model = case.build()
    heads = hd.find_heads(nn.DataParallel(model))
    assert heads.blocks == hd.find_heads(model).blocks


class Attention(nn.Module):
    """Attention of nobody's library; `heads` is known only if given."""

    def __init__(self, heads=None):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        if heads:
            self.num_heads = heads


class GatedOutput(nn.Module):
    """transformers' Inkling2 (5.24): what the heads give is gated by the layer's input on its way into W_O."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.linear = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, context, hidden):
        return self.linear(context * self.gate_proj(hidden).sigmoid())


def test_the_linear_of_a_gated_output():
    layer = Attention(heads=4)
    layer.o = GatedOutput()
    heads = hd.find_heads(layer)
    assert [block.projection for block in heads.blocks] == [layer.o.linear] and len(heads) == 4
    context, hidden = torch.randn(2, 3, 5, 16)
    with hd.masked(heads, torch.tensor([1.0, 1, 0, 1])):
        found = layer.o(context, hidden)
    with torch.no_grad():
        layer.o.linear.weight[:, 8:12] = 0
    torch.testing.assert_close(found, layer.o(context, hidden))


def test_flags_tell_the_kind():
    model = nn.ModuleList(Attention(4) for _ in range(4))
    model[1].is_cross_attention, model[2].is_causal, model[3].is_decoder = True, True, True
    assert hd.find_heads(model).kind[::4].tolist() == ["encoder", "cross", "decoder", "decoder"]


def test_attention_without_a_head_count_is_named():
    model = nn.ModuleDict({"known": Attention(4), "unknown": Attention()})
    with pytest.warns(UserWarning, match="leaves out unknown: the head count of Attention cannot be known"):
        heads = hd.find_heads(model)
    assert heads.module.tolist() == ["known"] * 4
    assert [name for name, _ in heads.unread] == ["unknown"]


def test_something_else_in_w_o_is_named():
    model = nn.ModuleDict({"known": Attention(4), "mixed": Attention(3)})
    with pytest.warns(UserWarning, match="leaves out mixed: 3 heads do not fill W_O's input of width 16"):
        assert len(hd.find_heads(model)) == 4


def test_attention_without_a_projection_is_named():
    bare = Attention(4)
    del bare.o
    model = nn.ModuleDict({"known": Attention(4), "bare": bare})
    with pytest.warns(UserWarning, match="leaves out bare: Attention has no output projection"):
        assert len(hd.find_heads(model)) == 4


def test_convbert_mixes_convolution_into_w_o():
    model = hf.ConvBertModel(hf.ConvBertConfig(embedding_size=16, **SMALL))
    with pytest.raises(hd.HeadsError, match="2 heads do not fill W_O's input of width 16: something else") as error:
        hd.find_heads(model)
    assert "encoder.layer.1.attention.self" in str(error.value)


def test_xlnet_is_seen_but_not_understood():
    model = hf.XLNetModel(hf.XLNetConfig(vocab_size=16, d_model=16, n_layer=2, n_head=4, d_inner=32))
    with pytest.raises(hd.HeadsError, match="seen but not understood:\n  layer.0.rel_attn: XLNetRelativeAttention has"):
        hd.find_heads(model)


def test_fnet_has_no_heads():
    config = hf.FNetConfig(vocab_size=16, hidden_size=16, num_hidden_layers=2, intermediate_size=32)
    with pytest.raises(hd.HeadsError) as error:
        hd.find_heads(hf.FNetModel(config))
    assert str(error.value) == (
        "no attention heads found in FNetModel: no module owns query, key and value projections. "
        "Models without softmax attention (FNet, plain convolutions, recurrent nets) have no heads to measure."
    )


VERSION = tuple(map(int, hf.__version__.split(".")[:2]))
CAUSAL = {
    "openai-gpt": lambda: hf.OpenAIGPTModel(hf.OpenAIGPTConfig(**GPT)),
    "bloom": lambda: hf.BloomModel(hf.BloomConfig(vocab_size=16, hidden_size=16, n_layer=2, n_head=4)),
    "codegen": lambda: hf.CodeGenModel(hf.CodeGenConfig(n_ctx=16, rotary_dim=4, bos_token_id=0, eos_token_id=2, **GPT)),
    "clip": lambda: hf.CLIPTextModel(hf.CLIPTextConfig(bos_token_id=0, eos_token_id=2, pad_token_id=1, **SMALL)),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_a_probe_tells_decoders_whose_code_does_not_say(name):
    model = CAUSAL[name]().train()
    says = name == "codegen" and VERSION >= (5, 24)
    assert hd.find_heads(model).kind.tolist() == ["decoder" if says else "encoder"] * 8
    heads = hd.find_heads(model, {"input_ids": IDS})
    assert heads.kind.tolist() == ["decoder"] * 8
    assert heads.layer.tolist() == [0] * 4 + [1] * 4
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["bert", "bart", "t5", "torch", "gpt2"])
def test_the_probe_leaves_others_as_they_are(name):
    case = CASES[name]
    model = case.build()
    assert hd.find_heads(model, case.batch).kind.tolist() == hd.find_heads(model).kind.tolist()


def test_bert_as_decoder_with_cross_attention():
    model = hf.BertLMHeadModel(hf.BertConfig(is_decoder=True, add_cross_attention=True, **SMALL))
    heads = hd.find_heads(model)
    assert heads.kind.tolist() == (["decoder"] * 4 + ["cross"] * 4) * 2
    assert heads.layer.tolist() == [0] * 8 + [1] * 8


def test_torch_decoder_layers():
    heads = hd.find_heads(nn.Transformer(16, 4, 1, 2, 32))
    assert heads.kind.tolist() == ["encoder"] * 4 + (["decoder"] * 4 + ["cross"] * 4) * 2
    assert heads.layer.tolist() == [0] * 12 + [1] * 8


class FusedLayer(nn.TransformerEncoderLayer):
    """As in fairseq 0.12.2: a layer with fused copies of its attention's weights and a path around it."""

    def __init__(self):
        super().__init__(16, 4, 32, batch_first=True)
        self.in_proj_weight = nn.Parameter(torch.zeros(48, 16))
        self.can_use_fastpath = 1

    def forward(self, x):
        return x if self.can_use_fastpath else super().forward(x)


def test_a_layers_own_fast_path_is_off_while_masked():
    layer = FusedLayer().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heads = hd.find_heads(nn.Sequential(layer))
    assert heads.module.tolist() == ["0.self_attn"] * 4
    x = torch.randn(2, 3, 16)
    with hd.masked(heads, torch.zeros(4)):
        assert layer.can_use_fastpath is False
        assert not torch.equal(layer(x), x)
    with removed(layer, heads, torch.ones(4)):  # a point of a curve at which all heads are there
        assert layer.can_use_fastpath is False
    assert layer.can_use_fastpath == 1 and torch.equal(layer(x), x)


def test_heads_of_another_model_are_refused():
    """A mask on a copy's heads would have no effect, and nobody would notice."""
    case = CASES["bert"]
    model = case.build()
    heads = hd.find_heads(copy.deepcopy(model))
    score = hd.mean_loss([case.batch])
    order = np.arange(len(heads))
    for measure in (
        lambda: hd.importance(model, [case.batch], heads=heads),
        lambda: hd.pruning_curve(model, order, score, heads=heads),
        lambda: hd.ablate(model, score, heads=heads),
        lambda: hd.prune(model, order, 0.5, heads=heads),
    ):
        with pytest.raises(hd.HeadsError, match="found on another model"):
            measure()


def test_heads_from_before_a_removal_are_refused():
    case = CASES["bert"]
    model = case.build()
    heads = hd.find_heads(model)
    hd.prune(model, np.arange(len(heads)), 0.5)
    with pytest.raises(hd.HeadsError, match="find_heads"):
        hd.pruning_curve(model, np.arange(len(heads)), hd.mean_loss([case.batch]), heads=heads)
