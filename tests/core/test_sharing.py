"""Sharing between masks: to the bit what one masked pass per mask gives, whatever a model does."""

import copy
import types
from collections import Counter

import numpy as np
import pytest
import torch
import transformers as hf
from models import CASES
from torch import nn

import headdynamics as hd
from headdynamics.scores import BatchScore, ratio
from headdynamics.sharing import remembered, scores_under


def singles(count):
    """No head masked, then each alone."""
    return [torch.ones(count), *(1 - torch.eye(count))]


def by_passes(model, heads, score, keeps):
    found = []
    for keep in keeps:
        with hd.masked(heads, keep):
            found.append(score(model))
    return found


def agree(model, score, keeps=None):
    """Scores under the masks, after making sure that one pass each gives the same bits and that nothing stays."""
    heads = hd.find_heads(model)
    keeps = singles(len(heads)) if keeps is None else keeps
    before = [dict(vars(module)) for module in model.modules()]
    found, wanted = scores_under(model, heads, score, keeps), by_passes(model, heads, score, keeps)
    for one, other in zip(found, wanted, strict=True):
        assert one.stats.dtype == other.stats.dtype and one.stats.tobytes() == other.stats.tobytes()
        assert one.value == other.value
    for module, attributes in zip(model.modules(), before, strict=True):
        assert vars(module).keys() == attributes.keys() and not module._forward_pre_hooks and not module._forward_hooks
    return found


@pytest.fixture
def runs(monkeypatch):
    """How often each linear layer ran, by its id."""
    counted, forward = Counter(), nn.Linear.forward

    def counting(self, x):
        counted[id(self)] += 1
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", counting)
    return counted


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


def test_what_is_computed(runs):
    """Of a pass without one head of layer 0 everything but that layer's attention; of one of layer 1 only its rest."""
    case = CASES["bert"]
    model = case.build()
    scores_under(model, hd.find_heads(model), hd.mean_loss([case.batch] * 3), singles(8))
    layers = [dict(layer.named_modules()) for layer in model.bert.encoder.layer]
    told = [[runs[id(layer[name])] for name in ("attention.self.query", "attention.output.dense")] for layer in layers]
    assert told == [[3 * 1, 3 * 5], [3 * 5, 3 * 9]] and runs[id(model.classifier)] == 3 * 9


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "t5", "bart", "fairseq", "torch"])
def test_an_attention_module_runs_again_only_behind_its_gate(name, monkeypatch):
    case, ran = CASES[name], Counter()
    model = case.build()
    heads = hd.find_heads(model)
    for kind in {type(block.module) for block in heads.blocks}:
        forward = kind.forward

        def counting(self, *args, _forward=forward, **kwargs):
            ran[id(self)] += 1
            return _forward(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", counting)
    score = hd.mean_loss([case.batch], *[case.loss] * (name == "fairseq"))
    scores_under(model, heads, score, singles(len(heads)))
    for i, block in enumerate(heads.blocks):
        earlier = 0 if (block.kind, block.layer) == ("decoder", 0) else i  # blocks that it depends on
        assert ran[id(block.module)] == 1 + 4 * earlier


class Layer(nn.Module):
    """Pre-norm attention and a feed-forward part. Twisted in each test, by what a model might do."""

    def __init__(self, twist=None, inside=None):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), Attention(inside)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.twist = twist

    def forward(self, x, *args, **kwargs):
        x = x + self.attention(self.norm(x))[0]
        x = x + self.down(torch.relu(self.up(x)))
        return self.twist(self, x, *args, **kwargs) if self.twist else x


class Attention(nn.Module):
    """Self-attention of 4 heads of size 2; `inside` does something else with W_O and the context."""

    def __init__(self, inside=None):
        super().__init__()
        self.num_heads, self.inside = 4, inside
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(8, 8))

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (4, 2)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        weights = torch.softmax(q @ k.transpose(-1, -2), -1)
        context = (weights @ v).transpose(1, 2).flatten(2)
        return self.inside(self, x, context) if self.inside else (self.o_proj(context), weights)


class Net(nn.Module):
    """Three layers; `flow` says how they are called."""

    def __init__(self, flow=None, twist=None, inside=None):
        super().__init__()
        self.layers = nn.ModuleList(Layer(twist, inside) for _ in range(3))
        self.flow = flow

    def forward(self, x):
        if self.flow:
            return self.flow(self, x)
        for layer in self.layers:
            x = layer(x)
        return x


def net(**twists):
    torch.manual_seed(5)
    return Net(**twists).eval()


BATCHES = [torch.randn(rows, 5, 8, generator=torch.Generator().manual_seed(rows)) for rows in (3, 2)]


def measured(function=lambda model, x: model(x)):
    """A score of whatever `function(model, x)` returns, as numbers [B]."""

    def measure(model, x):
        out = function(model, x)
        return np.stack([out.double().flatten(1).sum(1).numpy(), np.ones(len(x))], 1)

    return BatchScore("sum", True, BATCHES, measure, ratio)


def test_a_plain_net_shares(runs):
    model = net()
    scores_under(model, hd.find_heads(model), measured(), singles(12))
    assert [runs[id(layer.attention.q_proj)] for layer in model.layers] == [2 * 1, 2 * 5, 2 * 9]
    agree(model, measured())


# --- what a call is answered for: the same inputs, the same masks, nothing written to


def called_twice(model, x):
    """One module with two inputs, then again with the first."""
    first, *others = model.layers
    y = first(x) + first(2 * x) + first(x)
    for layer in others:
        y = layer(y)
    return y


def scaled(layer, x, factor=1, *rest):
    return x * factor


def with_arguments(model, x):
    for factor, layer in zip((True, 1, 1.5), model.layers, strict=True):
        x = layer(x, factor) + layer(x, factor=2) + layer(x, (factor, 3)[1]) + layer(x, 1, (x, None))
    return x


def by_layout(layer, x):
    return x * x.stride(-1)


def with_layouts(model, x):
    for layer in model.layers:
        x = layer(x) + layer(x.transpose(1, 2).contiguous().transpose(1, 2))
    return x


def types_apart(layer, x, factor=0):
    return x + isinstance(factor, bool)


def with_types(model, x):
    return model.layers[2](model.layers[1](model.layers[0](x, 1)) + model.layers[0](x, True), 1.0)


@pytest.mark.parametrize(
    "twists",
    [
        dict(flow=called_twice),
        dict(flow=with_arguments, twist=scaled),
        dict(flow=with_layouts, twist=by_layout),
        dict(flow=with_types, twist=types_apart),
    ],
    ids=lambda twists: twists["flow"].__name__,
)
def test_other_inputs(twists):
    agree(net(**twists), measured())


def in_place_outside(model, x):
    for layer in model.layers:
        x = layer(x)
        x += 1
    return x


def in_place_on_a_view(model, x):
    for layer in model.layers:
        x = layer(x)
        x[:, 0].mul_(2)
    return x


class Residual(Layer):
    """Adds to the tensor that it was given."""

    def forward(self, x, *args):
        x += self.attention(self.norm(x))[0]
        return x


def residual_in_place(model, x):
    x = x.clone()
    for layer in model.layers:
        x = layer(x)
    return x


def test_what_is_written_in_place():
    agree(net(flow=in_place_outside), measured())
    agree(net(flow=in_place_on_a_view), measured())
    model = net(flow=residual_in_place)
    for layer in model.layers:
        layer.__class__ = Residual
    agree(model, measured())


def test_what_a_score_writes_in_place():
    def spoiling(model, x):
        y = model(x)
        first = model.layers[0](x)
        first.mul_(3)
        return y + first + model.layers[0](x)

    agree(net(), measured(spoiling))


def test_weights_changed_between_passes():
    def changing(model, x):
        y = model(x)
        model.layers[0].up.weight.mul_(2)
        z = model(x)
        model.layers[0].up.weight.div_(2)
        return y + z

    agree(net(), measured(changing))


# --- calls that leave more behind than what they return


def counted(layer, x):
    layer.count = getattr(layer, "count", 0) + 1
    return x * layer.count


def test_a_module_that_keeps_a_number():
    def fresh(model, x):
        for layer in model.layers:
            layer.count = 0
        return model(x) + model(x)

    model = net(twist=counted)
    for layer in model.layers:
        layer.count = 0
    agree(model, measured(fresh))


def test_a_module_that_keeps_a_tensor():
    def kept(layer, x):
        layer.norm.seen = x.mean(-1, keepdim=True)
        return x

    def reading(model, x):
        y = model(x)
        return y * model.layers[1].norm.seen

    model = net(twist=kept)
    for layer in model.layers:
        layer.norm.seen = None
    agree(model, measured(reading))


def test_a_module_that_writes_a_buffer():
    def running(layer, x):
        layer.total.add_(x.mean())
        return x + layer.total

    def fresh(model, x):
        for layer in model.layers:
            layer.total.zero_()
        return model(x) + model(x)

    model = net(twist=running)
    for layer in model.layers:
        layer.register_buffer("total", torch.zeros(()))
    agree(model, measured(fresh))


@pytest.mark.parametrize("make", [list, dict, lambda: types.SimpleNamespace(n=0)])
def test_a_module_that_writes_into_what_it_was_given(make):
    def noting(layer, x, notes):
        if isinstance(notes, list):
            notes.append(x)
        elif isinstance(notes, dict):
            notes[len(notes)] = x
        else:
            notes.n += 1
        return x

    def flow(model, x):
        notes = make()
        for layer in model.layers:
            x = layer(x, notes)
        if isinstance(notes, types.SimpleNamespace):
            return x * notes.n
        return x + sum(notes if isinstance(notes, list) else notes.values())

    agree(net(flow=flow, twist=noting), measured())


def test_lists_that_are_returned_may_be_changed():
    def listed(layer, x):
        return {"states": [x], "pair": (x, [x.mean()])}

    def flow(model, x):
        for layer in model.layers:
            out = layer(x)
            out["states"].append(x)
            out["pair"][1].clear()
            x = sum(out["states"])
            out["states"] = None
        return x

    agree(net(flow=flow, twist=listed), measured())


def test_what_is_returned_and_unknown():
    class Odd:
        def __init__(self, x):
            self.x, self.taken = x, False

        def take(self):
            assert not self.taken
            self.taken = True
            return self.x

    def flow(model, x):
        for layer in model.layers:
            x = layer(x).take()
        return x

    agree(net(flow=flow, twist=lambda layer, x: Odd(x)), measured())


def test_hooks_of_somebody_else_are_all_called():
    def collecting(model, x):
        seen = []
        handles = [layer.norm.register_forward_hook(lambda m, a, out: seen.append(out)) for layer in model.layers]
        try:
            y = model(x)
        finally:
            for handle in handles:
                handle.remove()
        return y + sum(seen)

    agree(net(), measured(collecting))
    agree(net(), measured(lambda model, x: model(x) + collecting(model, x)))
    module = nn.modules.module

    def for_all(model, x):
        seen = []
        handle = module.register_module_forward_hook(lambda m, a, out: seen.append(m))
        try:
            y = model(x)
        finally:
            handle.remove()
        return y * len(seen)

    agree(net(), measured(for_all))


@pytest.mark.parametrize("name", ["bert", "fairseq"])
def test_a_score_that_masks_heads_itself(name):
    case = CASES[name]
    model = case.build()
    heads = hd.find_heads(model)
    own = torch.ones(len(heads))
    own[[1, 6]] = 0

    def loss(model, batch):
        whole = case.loss(model, batch)
        with hd.masked(heads, own):
            first = case.loss(model, batch)
        with hd.masked(heads, own / 2):
            return whole + 3 * first + 7 * case.loss(model, batch)

    agree(model, hd.mean_loss([case.batch], loss))


@pytest.mark.parametrize("name", ["bert", "fairseq", "torch"])
def test_inside_a_mask(name, runs):
    """Masks around multiply, and do not keep anything from being shared."""
    case = CASES[name]
    model = case.build()
    heads = hd.find_heads(model)
    around = torch.linspace(0.2, 1, len(heads))
    score = hd.mean_loss([case.batch], case.loss)
    with hd.masked(heads, around):
        found = scores_under(model, heads, score, singles(len(heads)))
    if name == "bert":
        assert runs[id(model.bert.encoder.layer[0].attention.self.query)] == 1
    for one, keep in zip(found, singles(len(heads)), strict=True):
        with hd.masked(heads, around), hd.masked(heads, keep):
            assert one.stats.tobytes() == score(model).stats.tobytes()


def test_a_copy_computes_for_itself():
    def copied(model, x):
        y = model(x)
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.mul_(2)
        return y + other(x)

    agree(net(), measured(copied))


def test_gradients_and_training_mode_are_not_shared():
    def with_gradient(model, x):
        with torch.enable_grad():
            y = model(x.clone().requires_grad_())
            return y.detach() + torch.autograd.grad(y.sum(), model.layers[0].up.weight)[0].sum()

    agree(net(), measured(lambda model, x: model(x) + with_gradient(model, x)))

    def half_trained(model, x):
        model.layers[1].norm.train()
        y = model(x)
        model.layers[1].norm.eval()
        return y + 2 * model(x)

    agree(net(twist=lambda layer, x: x * (1 + layer.norm.training)), measured(half_trained))
    model = net(twist=lambda layer, x: nn.functional.dropout(x, 0.5, layer.training)).train()
    torch.manual_seed(0)
    scores = scores_under(model, hd.find_heads(model), measured(), [torch.ones(12)] * 4)
    assert len({one.value for one in scores}) == 4


def test_inference_mode():
    def inferring(model, x):
        with torch.inference_mode():
            return model(x).clone()

    agree(net(), measured(inferring))
    agree(net(), measured(lambda model, x: model(x) + inferring(model, x)))


# --- what comes after the gate in an attention module


def normed(self, x, context):
    return nn.functional.layer_norm(x + self.o_proj(context).mul(0.5), (8,)), None


def derived(self, x, context):
    out = self.o_proj(context)
    return out, out.argmax(-1)


def in_place(self, x, context):
    out = self.o_proj(context)
    out += x
    return out, None


def in_place_later(self, x, context):
    share = x.clone()
    out = self.o_proj(context) + share
    share += 1
    return out + share, None


def context_reused(self, x, context):
    """The context itself, ungated, is part of the output."""
    out = self.o_proj(context)
    return out + context.mean(-1, keepdim=True), context


def context_overwritten(self, x, context):
    out = self.o_proj(context)
    return out + context.mul_(2), None


def branching(self, x, context):
    out = self.o_proj(context)
    return (out if float(out[0, 0, 0]) > 0 else -out), None


def twice(self, x, context):
    return self.o_proj(context) + self.o_proj(torch.tanh(context)), None


def viewed(self, x, context):
    out = self.o_proj(context.flatten(0, 1))
    return out.view(x.shape).transpose(0, 1).transpose(0, 1), None


def not_returned(self, x, context):
    return x, self.o_proj(context)


INSIDES = [
    normed,
    derived,
    in_place,
    in_place_later,
    context_reused,
    context_overwritten,
    branching,
    twice,
    viewed,
    not_returned,
]


@pytest.mark.parametrize("inside", INSIDES, ids=lambda inside: inside.__name__)
def test_after_the_gate(inside):
    def flow(model, x):
        for layer in model.layers:
            out, other = layer.attention(layer.norm(x))
            x = x + layer.down(torch.relu(layer.up(out)))
            x = x if other is None else x + other.float().mean()
        return x

    agree(net(flow=flow, inside=inside), measured())


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
def test_real_models(name, runs):
    build, batch = REAL[name]
    torch.manual_seed(2)
    model = build().eval()
    heads = hd.find_heads(model)
    keeps = singles(len(heads))
    score = hd.mean_loss([batch])
    if name == "states":
        score = hd.mean_loss([batch], lambda model, x: sum(part.flatten(1).sum(1) for part in model(**x).hidden_states))
    runs.clear()
    found = scores_under(model, heads, score, keeps)
    shared = sum(runs.values())
    runs.clear()
    for one, other in zip(found, by_passes(model, heads, score, keeps), strict=True):
        assert one.stats.tobytes() == other.stats.tobytes()
    hooked = name in ("audio", "states")  # where transformers collects hidden states by hooks, every module runs
    assert shared == sum(runs.values()) if hooked else shared < 0.95 * sum(runs.values())
    assert len({one.value for one in found}) > len(heads) // 2


class Tokens:
    """Generated tokens and their scores as one number a row."""

    def __init__(self, generate):
        self.generate = generate

    def __call__(self, model, batch):
        found = torch.cat([x.double().flatten() for x in self.generate(model, 2)])
        return torch.stack([found[found.isfinite()].sum(), torch.tensor(float(len(found)), dtype=torch.float64)])


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart", "fairseq"])
def test_beam_search(name, monkeypatch):
    case, ran = CASES[name], Counter()
    model = case.build()
    heads = hd.find_heads(model)
    score = hd.mean_loss([case.batch], Tokens(case.generate))
    kind = type(heads.blocks[0].module)
    forward = kind.forward

    def counting(self, *args, **kwargs):
        ran[id(self)] += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", counting)
    found = scores_under(model, heads, score, singles(len(heads)))
    if case.outputs[0][1] == "encoder":
        assert [ran[id(block.module)] for block in heads.blocks[:2]] == [1, 5]  # not for the heads of the decoder
    for one, other in zip(found, by_passes(model, heads, score, singles(len(heads))), strict=True):
        assert one.stats.tobytes() == other.stats.tobytes()
    assert len({one.value for one in found}) > len(heads) // 4


def test_generation_without_a_cache_does_not_pile_up():
    case = CASES["gpt2"]
    model = case.build()
    heads = hd.find_heads(model)
    ids = case.batch["input_ids"][:, :3]
    with torch.no_grad(), remembered(model, heads) as memory:
        for keep in singles(8)[:2]:
            memory.mask(keep)
            for _ in range(2):
                model.generate(ids, use_cache=False, max_new_tokens=10, min_new_tokens=10, do_sample=False)
        assert 0 < max(map(len, memory.calls.values())) <= 32
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


def test_a_forward_that_somebody_replaced_stays_and_is_used(runs):
    model = net()
    first = model.layers[0]
    replaced = lambda x: 2 * Layer.forward(first, x)  # noqa: E731
    first.forward = replaced
    agree(model, measured())
    assert first.forward is replaced and runs[id(first.attention.q_proj)] == 2 * (1 + 13)


def test_wrapped_models_and_scores_that_are_no_batches():
    case = CASES["bert"]
    model = case.build()
    wanted = hd.ablate(model, hd.mean_loss([case.batch]))
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        found = hd.ablate(wrapped, hd.mean_loss([case.batch]))
        assert found.score.tobytes() == wanted.score.tobytes() and found.pvalue.tobytes() == wanted.pvalue.tobytes()
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
