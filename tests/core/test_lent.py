"""Curves with heads really removed, against masked passes: the same numbers, and nothing of it stays in the model."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf
from headdynamics.plugins.sacrebleu_scores import corpus_metric
from models import CASES, FAIRSEQ_BATCH, IDS, IMAGES, SIZES, TEXT, TOKENS, hf_logits
from more_models import MORE, bloom, gpt_neox, olmo2
from torch import nn

import headdynamics as hd
from headdynamics.curve import pruning_curves
from headdynamics.keep import keep_mask
from headdynamics.orders import random_order
from headdynamics.points import cuttable
from headdynamics.scores import BatchScore
from headdynamics.surgery.lent import removable, removed

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask", "ignore:The PyTorch API")
FAMILIES = {**CASES, **MORE}


def albert():
    config = hf.AlbertConfig(vocab_size=16, embedding_size=8, num_labels=3, pad_token_id=1, **SIZES)
    return hf.AlbertForSequenceClassification(config)


def swin():
    config = hf.SwinConfig(
        image_size=8, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 4], window_size=2, num_labels=3
    )
    return hf.SwinForImageClassification(config)


TEXTS = {"input_ids": IDS, "attention_mask": TOKENS}
ODD = {  # name: (model, batch, how many of its blocks may be cut)
    "albert": (albert, TEXT, 1),
    "swin": (swin, IMAGES, 0),  # a table of position biases has a column a head
    "gpt-neox": (gpt_neox, {**TEXTS, "labels": IDS}, 2),
    "olmo2": (olmo2, {**TEXTS, "labels": IDS}, 0),  # norms over all heads together
    "bloom": (bloom, {**TEXTS, "labels": IDS}, 0),  # alibi is made for all heads elsewhere
}


def by_masks(model, order, score, fractions=hd.TENTHS):
    """The oracle: a masked pass for each point."""
    heads, found = hd.find_heads(model), []
    for fraction in fractions:
        with hd.masked(heads, keep_mask(order, fraction, len(heads))):
            found.append(score(model))
    return found


def values(scores):
    return np.array([one.value for one in scores])


def score_of(case, batch=None):
    """The case's logits, as numbers that show every difference: 64 fixed random sums of each row."""

    def measure(model, some):
        logits = case.logits(model, some).double().flatten(1)
        mix = torch.randn(logits.shape[1], 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return (logits @ mix).numpy()

    return BatchScore("sums", True, [batch or case.batch], measure, lambda sums: np.asarray(sums)[..., 0])


def spied(score, seen):
    """The same score, noting the widths of all weights in `seen` at each full measurement."""

    def measure(model, batch):
        seen.append(sum(p.numel() for p in model.parameters()))
        return score.measure(model, batch)

    return BatchScore(score.name, score.greater_is_better, score.batches, measure, score.aggregate)


@pytest.mark.parametrize("case", FAMILIES.values(), ids=str)
def test_curves_are_those_of_masks(case):
    model, seen = case.build(), []
    order, score = random_order(4 * len(case.outputs), 3), score_of(case)
    curve = hd.pruning_curve(model, order, spied(score, seen))
    expected = by_masks(model, order, score)
    scale = max(np.abs(one.stats).max() for one in expected)
    assert np.abs(curve.score - values(expected)).max() < 1e-6 * scale
    assert curve.score[0] == score(model).value  # to the bit
    assert len(set(values(expected).round(9))) > 7
    assert min(seen) < 0.8 * sum(p.numel() for p in model.parameters())  # the heads were gone


@pytest.mark.parametrize("case", [c for c in FAMILIES.values() if c.double], ids=str)
def test_in_float64(case):
    case = case.in_float64()
    model = case.build()
    order, score = random_order(4 * len(case.outputs), 4), score_of(case, case.batch)
    curve = hd.pruning_curve(model, order, score)
    assert np.abs(curve.score - values(by_masks(model, order, score))).max() < 1e-10
    assert any(cuttable(model, hd.find_heads(model), score))


@pytest.mark.parametrize("name", ODD)
def test_odd_models(name):
    build, batch, cut = ODD[name]
    torch.manual_seed(0)
    model = build().eval()
    heads, score = hd.find_heads(model), hd.mean_loss([batch])
    order = random_order(len(heads), 5)
    assert sum(cuttable(model, heads, score)) == cut
    found = pruning_curves(model, {"": order}, score, heads=heads)[""].score
    assert np.abs(found - values(by_masks(model, order, score))).max() < 1e-6


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", ["fairseq", "bart", "t5", "llama"])
def test_bleu_by_beam_search(name, beams):
    case, metric = CASES[name], corpus_metric("bleu", tokenized=True)
    rows = range(1 if name == "fairseq" else 0, 3)

    def measure(model, row):
        written = case.generate(model, beams, slice(row, row + 1))[0].flatten().tolist()
        return metric.stats([(" ".join(map(str, written)), " ".join(map(str, IDS[row].tolist() * 2)))])

    score = BatchScore("bleu", True, rows, measure, metric.aggregate)
    model = case.build()
    order = random_order(4 * len(case.outputs), 6)
    assert any(cuttable(model, hd.find_heads(model), score))
    curve = hd.pruning_curve(model, order, score)
    assert curve.score.tolist() == values(by_masks(model, order, score)).tolist()
    assert len(set(curve.score)) > 1


def encoder_layers(monkeypatch, case, model):
    """A list that grows by one whenever a layer of the encoder runs."""
    stack = {"fairseq": "encoder.layers", "bart": "model.encoder.layers", "t5": "encoder.block"}[case.name]
    layers, ran = list(model.get_submodule(stack)), []
    real = type(layers[0]).forward

    def forward(self, *args, **kwargs):
        ran.extend([1] * (self in layers))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(layers[0]), "forward", forward)
    return ran


@pytest.mark.parametrize("name", ["fairseq", "bart", "t5"])
def test_an_encoder_left_whole_runs_once_a_batch(name, monkeypatch):
    case = CASES[name]
    model = case.build()
    heads, score = hd.find_heads(model), replace(score_of(case), batches=[case.batch] * 3)
    draw = np.random.default_rng(3)
    orders = {"decoder": draw.permutation(np.flatnonzero(heads.kind != "encoder")), "all": draw.permutation(24)}
    may_cut = cuttable(model, heads, score)
    assert all(may_cut)
    ran = encoder_layers(monkeypatch, case, model)
    curves = pruning_curves(model, orders, score, (0, 0.3, 0.7, 1), heads=heads)
    proofs, shared, alone = 4, 3, 3 * 3  # batches through the two layers: three points of "all" touch the encoder
    assert len(ran) == 2 * (proofs + shared + alone)
    assert "forward" not in vars(model.get_submodule("model.encoder" if name == "bart" else "encoder"))
    for which, order in orders.items():
        expected = values(by_masks(model, order, score, (0, 0.3, 0.7, 1)))
        assert np.abs(curves[which].score - expected).max() < 1e-6 * np.abs(expected).max()
        assert curves[which].score[0] == score(model).value


@pytest.mark.parametrize("name", ["fairseq", "bart", "t5"])
def test_beam_search_shares_the_encoder(name, monkeypatch):
    case = CASES[name]
    model = case.build()
    heads = hd.find_heads(model)
    order = np.random.default_rng(3).permutation(np.flatnonzero(heads.kind != "encoder"))

    def measure(model, row):
        written = torch.cat([x.flatten()[:4].double() for x in case.generate(model, 3, slice(row, row + 1))])
        return written.nan_to_num(neginf=0)[None, :8].numpy()

    score = BatchScore("written", True, [1, 2], measure, lambda sums: sums[..., 4])
    expected = values(by_masks(model, order, score))
    ran = encoder_layers(monkeypatch, case, model)
    curve = hd.pruning_curve(model, order, score, heads=heads)
    assert np.abs(curve.score - expected).max() < 1e-5 and len(set(expected)) > 4
    assert len(ran) == 2 * (4 + 2)


def everything(model):
    """Each module's own class, attributes, parameters and hooks, by identity."""
    found = {}
    for name, module in model.named_modules():
        parts = {k: v for k, v in vars(module).items() if not isinstance(v, dict)}
        dicts = {k: list(v.items()) for k, v in vars(module).items() if isinstance(v, dict)}
        found[name] = (type(module), parts, dicts)
    return found


@pytest.mark.parametrize("how", ["in peace", "with an error"])
@pytest.mark.parametrize("case", FAMILIES.values(), ids=str)
def test_everything_is_back(case, how):
    model = case.build().train()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        parameter.grad = torch.ones_like(parameter)
    heads = hd.find_heads(model)
    with torch.no_grad():
        case.logits(model, case.batch)  # which may fill caches of the model's own
    before, state = everything(model), copy.deepcopy(model.state_dict())
    config = copy.deepcopy(getattr(model, "config", None))
    keep = keep_mask(random_order(len(heads), 1), 0.6)
    try:
        with removed(model, heads, keep):
            narrow = [p.shape for p in model.parameters()]
            assert all(p.grad is None for p in model.parameters() if p.shape not in before_shapes(state))
            if how == "with an error":
                raise RuntimeError
            with torch.no_grad():
                case.logits(model, case.batch)
    except RuntimeError:
        assert how == "with an error"
    assert narrow != [p.shape for p in model.parameters()]
    after = everything(model)
    assert after.keys() == before.keys()
    for name, (kind, parts, dicts) in before.items():
        assert after[name][0] is kind and after[name][2].keys() == dicts.keys()
        assert after[name][1].keys() == parts.keys()
        assert all(after[name][1][k] is v or after[name][1][k] == v for k, v in parts.items())
        for key, items in dicts.items():
            assert [(k, id(v)) for k, v in items] == [(k, id(v)) for k, v in after[name][2][key]]
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[k]) for k, value in model.state_dict().items())
    assert all(p.requires_grad is (i % 2 == 0) and bool((p.grad == 1).all()) for i, p in enumerate(model.parameters()))
    assert config is None or config.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("layer", [0, 1])
def test_a_pass_that_fails_leaves_nothing_behind(layer):
    """T5's attention keeps the whole position bias while it runs."""
    case = CASES["t5"]
    model = case.build()
    before = everything(model)
    heads = hd.find_heads(model)

    def fail(*_):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        with removed(model, heads, keep_mask(random_order(24, 1), 0.5)):
            model.encoder.block[layer].layer[0].SelfAttention.o.forward = fail
            case.logits(model, case.batch)
    del model.encoder.block[layer].layer[0].SelfAttention.o.forward
    assert {name: set(parts) for name, (_, parts, _) in everything(model).items()} == {
        name: set(parts) for name, (_, parts, _) in before.items()
    }


def before_shapes(state):
    return {value.shape for value in state.values()}


def test_training_goes_on_to_the_bit():
    def trained(look):
        model = CASES["bert"].build()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(4):
            optimizer.zero_grad()
            CASES["bert"].loss(model, TEXT).mean().backward()
            if look:
                hd.pruning_curve(model, np.arange(8), hd.mean_loss([TEXT]))
            optimizer.step()
        return model, optimizer

    (watched, ours), (alone, theirs) = trained(True), trained(False)
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))
    for mine, other in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours.state[mine]["exp_avg_sq"], theirs.state[other]["exp_avg_sq"])


class Misleading(nn.Module):
    """One layer of attention that is not what its names say, or that lets its probabilities out."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.num_heads, self.head_dim = fault, 4, 4
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.fault == "rows":  # of the queries head h owns rows h, h + 4, ...
            q = self.q_proj(x).unflatten(-1, (self.head_dim, -1)).transpose(-1, -2)
        probabilities = (torch.einsum("bthd,bshd->bhts", q, k) / 2).softmax(-1)
        out = self.out_proj(torch.einsum("bhts,bshd->bthd", probabilities, v).flatten(2))
        return out, probabilities.mean(1)


class Model(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.fault, self.attention, self.extra = fault, Misleading(fault), nn.Linear(16, 16)

    def forward(self, x):
        out, probabilities = self.attention(x)
        return x + out + (probabilities @ x if self.fault == "pointer" else 0)


@pytest.mark.parametrize("fault", ["rows", "pointer", "none"])
def test_a_wrong_cut_is_seen(fault):
    torch.manual_seed(0)
    model = Model(fault).eval()
    score = BatchScore(
        "x", True, [torch.randn(2, 5, 16)], lambda m, x: m(x).flatten(1).double().numpy(), lambda s: s[..., 0]
    )
    heads, order = hd.find_heads(model), np.array([2, 0, 3, 1])
    assert cuttable(model, heads, score) == (fault == "none",)
    curve = hd.pruning_curve(model, order, score, heads=heads)
    assert np.abs(curve.score - values(by_masks(model, order, score))).max() < 1e-6
    with removed(model, heads, torch.tensor([0, 1, 0, 1.0]), (True,)), torch.no_grad():
        wrong = score(model).value
    with hd.masked(heads, torch.tensor([0, 1, 0, 1.0])):
        assert (abs(wrong - score(model).value) < 1e-5) == (fault == "none")


def test_what_cannot_be_cut_is_masked_and_the_rest_cut():
    model = CASES["bert"].build()
    first = model.bert.encoder.layer[0].attention.self
    nn.utils.parametrizations.weight_norm(first.query)
    heads, score = hd.find_heads(model), score_of(CASES["bert"])
    assert cuttable(model, heads, score) == (False, True)
    order = random_order(8, 2)
    curve = hd.pruning_curve(model, order, score, heads=heads)
    assert np.abs(curve.score - values(by_masks(model, order, score))).max() < 1e-5
    with removed(model, heads, torch.zeros(8)):
        assert [layer.attention.output.dense.weight.shape[1] for layer in model.bert.encoder.layer] == [16, 0]


def test_without_a_proof_what_is_in_doubt_is_masked():
    model = gpt_neox()
    heads, batch = hd.find_heads(model), {**TEXTS, "labels": IDS}
    keep = keep_mask(random_order(8, 1), 0.6)
    whole = [p.shape for p in model.parameters()]
    score = hd.mean_loss([batch])
    with removed(model, heads, keep):
        assert [p.shape for p in model.parameters()] == whole
        found = score(model).value
    with hd.masked(heads, keep):
        assert score(model).value == found != pytest.approx(hd.mean_loss([batch])(gpt_neox()).value)


def test_a_part_of_a_group_is_masked_and_whole_groups_go():
    model = CASES["llama"].build()
    heads = hd.find_heads(model)
    with removed(model, heads, torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])):
        assert [layer.self_attn.o_proj.weight.shape[1] for layer in model.model.layers] == [8, 16]
        assert [layer.self_attn.k_proj.weight.shape[0] for layer in model.model.layers] == [4, 8]


def test_weights_of_two_blocks_are_not_cut():
    model = CASES["bert"].build()
    layers = model.bert.encoder.layer
    layers[1].attention.self.key.weight = layers[0].attention.self.key.weight
    score = score_of(CASES["bert"])
    assert cuttable(model, hd.find_heads(model), score) == (False, False)


def test_a_plain_function_is_masked():
    model, seen = CASES["bert"].build(), set()

    def score(model):
        seen.add(sum(p.numel() for p in model.parameters()))
        return float(hf_logits(model, TEXT).sum().detach())

    curve = hd.pruning_curve(model, np.arange(8), score)
    assert len(seen) == 1 and len(set(curve.score)) > 5


def test_the_proof_looks_at_the_last_batch_alone():
    case, seen = CASES["fairseq"], []
    model = case.build()

    def measure(model, batch):
        seen.append(batch["id"])
        return case.loss(model, batch).detach().numpy()[:, None]

    batches = [{**FAIRSEQ_BATCH, "id": i} for i in range(3)]
    score = BatchScore("loss", False, batches, measure, lambda sums: sums[..., 0])
    assert all(cuttable(model, hd.find_heads(model), score)) and seen == [2] * 4
    hd.pruning_curve(model, np.arange(24), score, (0,))
    assert seen[4:] == [0, 1, 2]  # nothing to remove, nothing to prove


def test_bad_keep():
    model = CASES["bert"].build()
    heads = hd.find_heads(model)
    with pytest.raises(ValueError, match=r"keep has shape \(7,\); this model has 8 heads: \[8\]"):
        with removed(model, heads, torch.ones(7)):
            pass
    assert removable(model, heads, lambda: None) == (False, False)  # nothing ran: nothing is proved
