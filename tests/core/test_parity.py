"""The estimators against plain rewritings of what other tools compute (docs/estimators.md), on the same batches."""

import math
import types

import numpy as np
import pytest
import torch
from models import CASES, dictionary
from test_importance import ALL, close, tapped
from torch import nn
from torch.nn.functional import cross_entropy

import headdynamics as hd

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
LAYERS, HEADS, SIZE, WORDS = 3, 4, 5, 20


class Attention(nn.Module):
    """BERT's, with the head mask where transformers had it, on the probabilities, and its context kept."""

    def __init__(self):
        super().__init__()
        self.num_heads = HEADS
        self.query, self.key, self.value, self.out_proj = (nn.Linear(HEADS * SIZE, HEADS * SIZE) for _ in range(4))

    def forward(self, states, padding, head_mask):
        q, k, v = (f(states).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(SIZE) - 10000.0 * padding[:, None, None, :]
        self.context = scores.softmax(-1) * head_mask[:, None, None] @ v  # [B, heads, T, size]
        if self.context.requires_grad:
            self.context.retain_grad()
        return self.out_proj(self.context.transpose(1, 2).flatten(2))


class Classifier(nn.Module):
    """A little BERT that classifies by its first token."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, HEADS * SIZE)
        self.attention = nn.ModuleList(Attention() for _ in range(LAYERS))
        self.norm = nn.ModuleList(nn.LayerNorm(HEADS * SIZE) for _ in range(LAYERS))
        self.classify = nn.Linear(HEADS * SIZE, 3)

    def forward(self, input_ids, attention_mask, labels=None, head_mask=None):
        head_mask = torch.ones(LAYERS, HEADS, dtype=torch.float64) if head_mask is None else head_mask
        states = self.embed(input_ids)
        for attention, norm, mask in zip(self.attention, self.norm, head_mask, strict=True):
            states = norm(states + attention(states, 1 - attention_mask, mask))
        logits = self.classify(states[:, 0].tanh())
        return {"logits": logits, "loss": cross_entropy(logits, labels)}  # the mean over the batch


@pytest.fixture
def model():
    torch.manual_seed(3)
    made = Classifier().double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)
    return made


def batches_of(*sizes):
    """Padded batches of these sizes."""
    draw = torch.Generator().manual_seed(5)
    made = []
    for size in sizes:
        lengths = torch.randint(2, 8, (size, 1), generator=draw)
        mask = (torch.arange(7) < lengths).long()
        ids = torch.randint(1, WORDS, (size, 7), generator=draw) * mask
        labels = torch.randint(0, 3, (size,), generator=draw)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    assert min(int(batch["attention_mask"].min()) for batch in made) == 0
    return made


def share_of_the_mean(model, batch):
    """Each example's share of the batch's mean loss, which is what the other tools differentiate."""
    logits = model(**batch)["logits"]
    return cross_entropy(logits, batch["labels"], reduction="none") / len(logits)


def by_layer(table):
    """Each row over its L2 norm."""
    return table / np.sqrt((table**2).sum(1, keepdims=True))


def real_tokens(batches):
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


def released_bert(model, batches):
    """Per layer, sums of abs(ctx . grad) with padding and all; over tokens, and over examples in the last layer."""
    total = np.zeros((LAYERS, HEADS))
    for batch in batches:
        model(**batch)["loss"].backward()
        for layer, attention in enumerate(model.attention):
            product = (attention.context * attention.context.grad).sum(-1)
            total[layer] += product.abs().sum((0, 2)).detach().numpy()
    total[:-1] /= real_tokens(batches)
    total[-1] /= sum(len(batch["labels"]) for batch in batches)
    return total


def test_the_papers_bert_code(model):
    """`token` is its number: at once after normalising by layer, else up to the last layer's own divisor."""
    batches = batches_of(4, 4, 2)
    expected = released_bert(model, batches)
    found = hd.importance(model, batches, share_of_the_mean, "token")
    close(found.normalized().reshape(LAYERS, HEADS), by_layer(expected), 1e-10)
    divisor = np.ones((LAYERS, 1))
    divisor[-1] = real_tokens(batches) / 10
    close(found.mean.reshape(LAYERS, HEADS) * divisor, expected, 1e-10)


def test_the_papers_bert_code_with_equal_batches(model):
    """With batches of one size the default loss gives the same table, since a layer's norm divides the size out."""
    batches = batches_of(4, 4, 4)
    expected = by_layer(released_bert(model, batches))
    close(hd.importance(model, batches, estimator="token").normalized().reshape(LAYERS, HEADS), expected, 1e-10)
    uneven = batches_of(4, 4, 1)
    default = hd.importance(model, uneven, estimator="token").normalized().reshape(LAYERS, HEADS)
    assert np.abs(default - by_layer(released_bert(model, uneven))).max() > 1e-3


def run_bertology(model, batches):
    """One head mask for all batches; its gradient is read after each and never zeroed; over the real tokens."""
    head_mask = torch.ones(LAYERS, HEADS, dtype=torch.float64, requires_grad=True)
    total = torch.zeros(LAYERS, HEADS, dtype=torch.float64)
    for batch in batches:
        model(**batch, head_mask=head_mask)["loss"].backward()
        total += head_mask.grad.abs()
    return (total / real_tokens(batches)).numpy()


@pytest.mark.parametrize("sizes", [(1,) * 6, (4, 4, 2), (5,)])
def test_run_bertology(model, sizes):
    batches = batches_of(*sizes)
    expected = run_bertology(model, batches)
    found = hd.importance(model, batches, estimator="bertology")
    close(found.mean.reshape(LAYERS, HEADS), expected, 1e-10)
    close(found.normalized().reshape(LAYERS, HEADS), by_layer(expected), 1e-10)
    assert np.isnan(found.stderr).all() and np.isnan(found.blocks).all() and found.blocks.shape == (10, 12)
    assert hd.prune_order(found).tolist() == np.argsort(by_layer(expected).ravel(), kind="stable").tolist()


def test_bertology_depends_on_the_order_of_the_batches(model):
    batches = batches_of(*(1,) * 6)
    forward, backward = (hd.importance(model, b, estimator="bertology").mean for b in (batches, batches[::-1]))
    assert np.abs(forward / backward - 1).max() > 0.1
    other = [hd.importance(model, b, estimator="batch").mean for b in (batches, batches[::-1])]
    close(*other, 1e-12)


def text_pruner(model, batches):
    """Sums over batches of abs(W_O . grad W_O) by head, zeroed after each batch; over the examples."""
    total = np.zeros((LAYERS, HEADS))
    for batch in batches:
        model.zero_grad()
        model(**batch)["loss"].backward()
        for layer, attention in enumerate(model.attention):
            weight = attention.out_proj.weight
            product = (weight * weight.grad).reshape(HEADS * SIZE, HEADS, SIZE)
            total[layer] += product.sum((0, 2)).abs().detach().numpy()
    return total / sum(len(batch["labels"]) for batch in batches)


def test_text_pruner(model):
    """`batch` of the batch's mean loss, but for one factor that all heads share."""
    batches = batches_of(4, 4, 2)
    found = hd.importance(model, batches, share_of_the_mean, "batch")
    close(found.mean.reshape(LAYERS, HEADS) * 3 / 10, text_pruner(model, batches), 1e-10)
    even = batches_of(4, 4, 4)
    default = hd.importance(model, even, estimator="batch").mean.reshape(LAYERS, HEADS)
    close(default * 3 / 12 / 4, text_pruner(model, even), 1e-10)


@ALL
def test_a_batch_for_free_from_the_gradient_of_w_o(case):
    """abs(sum over b of s[b,h]) is abs of W_O's part of head h times its gradient: no gate is needed for it."""
    model, tolerance = case.build().double(), 1e-9 if case.double else 1e-5
    batch = {k: v.double() if k == "pixel_values" else v for k, v in case.batch.items()}
    case.loss(model, batch).sum().backward()
    expected = []
    for path, _, _ in case.outputs:
        weight = case.weight(model, path)
        gradient = model.get_submodule(path).weight.grad
        gradient = gradient if case.name == "gpt2" else gradient.t()
        expected.extend((weight * gradient).detach().reshape(4, -1).sum(1).abs().numpy())
    close(hd.importance(model, [batch], case.loss, estimator="batch").mean, np.array(expected), tolerance)


def sums_of_losses(model, sample):
    """[B], each the sum over an example's target tokens."""
    logits = model(**sample["net_input"])[0].double()
    target = sample["target"]
    return cross_entropy(logits.transpose(1, 2), target, ignore_index=1, reduction="none").sum(1)


def released_fairseq(case, model, samples):
    """By block: sums of abs(ctx . grad) where not masked, over the mask's sum; decoder blocks have no mask."""
    from fairseq.criterions.cross_entropy import CrossEntropyCriterion

    criterion = CrossEntropyCriterion(types.SimpleNamespace(target_dictionary=dictionary()), sentence_avg=False)
    total, count = np.zeros((len(case.outputs), 4)), np.zeros((len(case.outputs), 1))
    for sample in samples:
        with tapped([model.get_submodule(path).weight for path, _, _ in case.outputs]) as inputs:
            criterion(model, {**sample, "ntokens": 0})[0].backward()
        for block, (_, kind, _) in enumerate(case.outputs):
            context = inputs[block].detach().reshape(-1, len(sample["target"]), 4, 4)  # [T, B, heads, size]
            gradient = inputs[block].grad.reshape(context.shape)
            mask = torch.ones(context.shape[:2])
            if kind == "encoder":
                mask = (sample["net_input"]["src_tokens"] != 1).t()
            total[block] += ((context * gradient).sum(-1).abs() * mask[..., None]).sum((0, 1)).numpy()
            count[block] += mask.sum().item()
    return total / count


def fairseq_samples(case):
    rows = ([0, 1, 2], [2, 1])
    return [
        {"net_input": {k: v[r] for k, v in case.batch["net_input"].items()}, "target": case.batch["target"][r]}
        for r in rows
    ]


def test_the_papers_fairseq_code():
    """`token` of summed losses is its number: exactly with its idea of padding, and after normalising with ours."""
    case = CASES["fairseq"]
    model = case.build().double()
    samples = fairseq_samples(case)
    expected = released_fairseq(case, model, samples)

    def source_alone(sample, kind):
        return case.positions(sample, kind) if kind == "encoder" else None

    exact = hd.importance(model, samples, sums_of_losses, "token", positions=source_alone)
    close(exact.mean.reshape(-1, 4), expected, 1e-6)
    ours = hd.importance(model, samples, sums_of_losses, "token", positions=case.positions)
    close(ours.normalized().reshape(-1, 4), by_layer(expected), 1e-6)
    assert np.abs(ours.mean.reshape(-1, 4) / expected - 1).max() > 0.1
