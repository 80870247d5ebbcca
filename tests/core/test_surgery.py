"""A model whose heads are gone computes what the masked model does: in every code path, and in training on."""

import copy

import numpy as np
import pytest
import torch
from models import CASES, OLD
from more_models import MORE

import headdynamics as hd
from headdynamics.gates import slow_paths
from headdynamics.keep import keep_mask

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
FAMILIES = {**CASES, **MORE}
GROUPED = ("llama", "mistral", "qwen2", "qwen3")  # two query heads share each key/value head
ALL = pytest.mark.parametrize("case", FAMILIES.values(), ids=str)
WRITERS = pytest.mark.parametrize("case", [c for c in FAMILIES.values() if c.generate], ids=str)
HUGGING_FACE = [c for c in FAMILIES.values() if c.name not in ("fairseq", "torch")]
PATTERNS = {
    "uneven": [1, 1, 0, 0, 1, 1, 1, 1],
    "a layer empty": [1, 1, 1, 1, 0, 0, 0, 0],
    "first layers empty": [0, 0, 0, 0, 1, 1, 0, 0],
    "none left": [0] * 8,
    "equal": [0, 0, 1, 1] * 2,
}
MASKS = pytest.mark.parametrize("which", [*PATTERNS, "random", "one left"])


def mask(case, which):
    """Bool [H]; pairs of heads stay together where they share a key/value head."""
    size = 4 * len(case.outputs)
    if which == "random":
        keep = torch.rand(size, generator=torch.Generator().manual_seed(7)) > 0.45
    elif which == "one left":
        keep = torch.arange(size) == size - 2
    else:
        keep = torch.tensor(PATTERNS[which] * (size // 8)).bool()
    return keep.view(-1, 2)[:, :1].expand(-1, 2).reshape(-1).clone() if case.name in GROUPED else keep


def head_size(case):
    return 6 if case.name == "qwen3" else 4


def zeroed(case, model, keep):
    """The other oracle: a copy of the whole model whose W_O reads nothing of the heads that go."""
    other, size = copy.deepcopy(model), head_size(case)
    for head in (~keep).nonzero().flatten().tolist():
        path = case.outputs[head // 4][0]
        if OLD and case.name == "vit":
            path = path.replace("vit.layers", "vit.encoder.layer").replace("o_proj", "output.dense")
        weight = other.get_submodule(path).weight
        weight = weight if case.name == "gpt2" else weight.t()
        weight.data[head % 4 * size : (head % 4 + 1) * size] = 0
    return other


def logits(case, model, grad=False):
    with torch.set_grad_enabled(grad):
        return case.logits(model, case.batch).detach()


def masked_and_cut(case, keep, prepare=lambda model: model):
    """(model to mask, the same cut)."""
    whole, cut = prepare(case.build()), prepare(case.build())
    hd.remove_heads(cut, keep)
    return whole, cut


@MASKS
@ALL
def test_equals_the_masked_model(case, which):
    keep = mask(case, which)
    whole, cut = masked_and_cut(case, keep)
    with hd.masked(hd.find_heads(whole), keep):
        gated = logits(case, whole)
    for grad in (True, False):
        out = logits(case, cut, grad)
        torch.testing.assert_close(out, gated, atol=1e-5, rtol=0)
        torch.testing.assert_close(out, logits(case, zeroed(case, whole, keep), grad), atol=1e-5, rtol=0)
    assert not torch.allclose(gated, logits(case, whole), atol=1e-3)


@MASKS
@ALL
def test_in_float64(case, which):
    case, keep = case.in_float64(), mask(case, which)
    whole, cut = masked_and_cut(case, keep)
    with slow_paths():
        out, expected = (logits(case, model) for model in (cut, zeroed(case, whole, keep)))
    torch.testing.assert_close(out, expected, atol=case.tolerance, rtol=0)


@pytest.mark.parametrize("which", ["random", "first layers empty"])
@pytest.mark.parametrize("case", HUGGING_FACE, ids=str)
def test_in_eager_attention(case, which):
    keep = mask(case, which)
    whole, cut = masked_and_cut(case, keep)
    for model in (whole, cut):
        model.set_attn_implementation("eager")
    with hd.masked(hd.find_heads(whole), keep):
        gated = logits(case, whole)
    torch.testing.assert_close(logits(case, cut), gated, atol=1e-5, rtol=0)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("which", ["random", "first layers empty", "none left"])
@WRITERS
def test_generation_with_caches(case, which, beams):
    keep = mask(case, which)
    whole, cut = masked_and_cut(case, keep)
    plain = case.generate(whole, beams)
    with hd.masked(hd.find_heads(whole), keep):
        expected = case.generate(whole, beams)
    written = case.generate(cut, beams)
    assert len(written) == len(expected) and torch.equal(written[0], expected[0])
    for mine, theirs in zip(written, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert len(plain) != len(expected) or any(
        a.shape != b.shape or not torch.allclose(a, b) for a, b in zip(plain, expected, strict=True)
    )


def kept_rows(full, narrow, axis):
    """Which rows of `full` are in `narrow`, found by their values alone."""
    full, narrow = (x.detach().movedim(axis, 0).reshape(x.shape[axis], -1) for x in (full, narrow))
    return [next(i for i, row in enumerate(full) if torch.equal(row, wanted)) for wanted in narrow]


def matched(full, narrow, value):
    """`value` [shape of full] at the entries of the weight `full` that `narrow` still has."""
    for axis in range(full.dim()):
        if full.shape[axis] != narrow.shape[axis]:
            rows = kept_rows(full, narrow, axis)
            assert rows == sorted(set(rows))
            return value.index_select(axis, torch.tensor(rows, dtype=torch.long))
    return value


@pytest.mark.parametrize("which", ["random", "first layers empty"])
@ALL
def test_training_on(case, which):
    """The masked model's gradients at the weights that stay, and its logits after three steps.

    In float64: where a layer has no heads left, norms of little make much of float32's rounding.
    """
    case, keep = case.in_float64(), mask(case, which)
    whole, cut = masked_and_cut(case, keep)
    before = {name: p.detach().clone() for name, p in whole.named_parameters()}
    small = dict(cut.named_parameters())
    heads = hd.find_heads(whole)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (whole, cut)]
    for step in range(3):
        for optimizer, model, gates in zip(optimizers, (whole, cut), (keep, None), strict=True):
            optimizer.zero_grad()
            if gates is None:
                case.loss(model, case.batch).mean().backward()
            else:
                with hd.masked(heads, gates):
                    case.loss(model, case.batch).mean().backward()
        for name, parameter in whole.named_parameters() if step == 0 else ():
            if parameter.grad is not None and small[name].numel():
                mine = torch.zeros_like(small[name]) if small[name].grad is None else small[name].grad
                theirs = matched(before[name], small[name], parameter.grad)
                torch.testing.assert_close(mine, theirs, atol=case.tolerance, rtol=case.tolerance)
        for optimizer in optimizers:
            optimizer.step()
    with hd.masked(heads, keep):
        gated = logits(case, whole)
    torch.testing.assert_close(logits(case, cut), gated, atol=case.tolerance, rtol=0)


#: weights of one head at width 16 and head size 4: rows of q, k and v (with biases or not) and columns of W_O
PER_HEAD = {"bert": 3 * 4 * 17 + 64, "gpt2": 3 * 4 * 17 + 64, "bart": 3 * 4 * 17 + 64, "t5": 4 * 64, "fairseq": 268}
PER_PAIR = {"llama": 2 * 2 * 64 + 2 * 64, "qwen2": 2 * (4 * 17 + 64) + 2 * 4 * 17}  # two q and o, one k and v


@pytest.mark.parametrize("name", [*PER_HEAD, *PER_PAIR, "torch"])
def test_the_weights_are_really_gone(name):
    case = FAMILIES[name]
    keep = mask(case, "random")
    whole, cut = masked_and_cut(case, keep)
    blocks = hd.find_heads(whole).blocks
    stored = [1 + hasattr(b.parent, "out_proj_weight") for b in blocks for _ in range(b.heads)]  # twice: fairseq 0.12.2
    gone = int(torch.tensor(stored)[~keep].sum())
    saved = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in cut.parameters())
    assert saved == (gone // 2 * PER_PAIR[name] if name in PER_PAIR else gone * PER_HEAD.get(name, 268))
    assert len(hd.find_heads(cut)) == int(keep.sum())


@ALL
def test_importance_after_surgery_is_that_of_the_masked_model(case):
    keep = mask(case, "uneven")
    whole, cut = masked_and_cut(case, keep)
    heads = hd.find_heads(whole)
    with hd.masked(heads, keep):
        expected = hd.importance(whole, [case.batch], case.loss).signed[keep.numpy()]
    np.testing.assert_allclose(hd.importance(cut, [case.batch], case.loss).signed, expected, atol=1e-5, rtol=1e-3)


@ALL
def test_cutting_again(case):
    """Twice a little is once all of it; a copy is cut without touching the original."""
    first, both = mask(case, "uneven"), mask(case, "uneven") & mask(case, "equal")
    _, cut = masked_and_cut(case, first)
    once = logits(case, cut, grad=True)
    again = copy.deepcopy(cut)
    hd.remove_heads(again, both[first])
    torch.testing.assert_close(logits(case, again), logits(case, masked_and_cut(case, both)[1]), atol=1e-6, rtol=0)
    assert torch.equal(logits(case, cut, grad=True), once)
    assert len(hd.find_heads(cut)) == int(first.sum()) and len(hd.find_heads(again)) == int(both.sum())


def test_prune_follows_the_order():
    case = FAMILIES["bert"]
    order = np.array([6, 1, 0, 7, 3, 2, 5, 4])
    for fraction in (0, 0.3, 0.5, 1):
        model = case.build()
        keep = hd.prune(model, order, fraction)
        assert keep.dtype == torch.bool and torch.equal(keep.float(), keep_mask(order, fraction))
        with hd.masked(hd.find_heads(whole := case.build()), keep):
            torch.testing.assert_close(logits(case, model), logits(case, whole), atol=1e-5, rtol=0)


def test_prune_takes_whole_groups():
    """Groups (0 1) (2 3) (4 5) (6 7) stand at mean places 3.5, 3, 3.5 and 4: the second goes first, then the first."""
    order = np.array([0, 2, 6, 4, 5, 3, 7, 1])
    assert hd.prune(FAMILIES["llama"].build(), order, 0.1).tolist() == [1, 1, 0, 0, 1, 1, 1, 1]
    assert hd.prune(FAMILIES["llama"].build(), order, 0.5).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_equally_many_heads_of_each_group():
    case = FAMILIES["llama"]
    keep = torch.tensor([1, 0, 0, 1, 0, 0, 0, 1]).bool()  # one of each group; the last alone of its layer
    whole, cut = masked_and_cut(case, keep)
    with hd.masked(hd.find_heads(whole), keep):
        torch.testing.assert_close(logits(case, cut), logits(case, whole), atol=1e-5, rtol=0)


def test_an_order_of_some_heads_only():
    """Half of the cross heads: the fraction counts the order's heads."""
    model = FAMILIES["bart"].build()
    kinds = hd.find_heads(model).kind
    order = np.flatnonzero(kinds == "cross")[::-1]
    keep = hd.prune(model, order, 0.5)
    assert (~keep).nonzero().flatten().tolist() == sorted(order[:4].tolist())
    assert len(hd.find_heads(model)) == 20


@pytest.mark.parametrize("order", [[0, 0, 1], [0, 8], [-1]], ids=str)
def test_a_wrong_order_is_refused(order):
    with pytest.raises(ValueError, match="lists heads 0 to 7"):
        hd.prune(FAMILIES["bert"].build(), np.array(order), 0.5)


def test_half_a_group_in_an_order_is_refused():
    with pytest.raises(ValueError, match="only a part of a key/value group"):
        hd.prune(FAMILIES["llama"].build(), np.array([0, 2, 3]), 0.5)


def test_nothing_random_is_drawn():
    model = FAMILIES["vit"].build()
    before = torch.get_rng_state()
    hd.remove_heads(model, mask(FAMILIES["vit"], "random"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_without_heads_says_so():
    model = FAMILIES["bert"].build()
    hd.remove_heads(model, torch.zeros(8))
    with pytest.raises(hd.HeadsError, match="every head has been taken out"):
        hd.find_heads(model)
