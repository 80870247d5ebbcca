"""A masked head is exactly a head whose columns of W_O are zero, in every code path; and nothing is left behind."""

import contextlib
import copy

import pytest
import torch
from models import CASES
from taped import taped

import headdynamics as hd
from headdynamics.gates import slow_paths

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
ALL = pytest.mark.parametrize("case", CASES.values(), ids=str)
WRITERS = pytest.mark.parametrize("case", [c for c in CASES.values() if c.generate], ids=str)


def without(case, model, heads):
    """A copy of `model` whose W_O reads nothing of the heads listed."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for head in heads:
            weight = case.weight(other, case.outputs[head // 4][0])
            weight[head % 4 * 4 : head % 4 * 4 + 4] = 0
    return other


def keep_all_but(case, heads):
    keep = torch.ones(4 * len(case.outputs))
    keep[list(heads)] = 0
    return keep


def forward(case, model, train, grad):
    """Logits of the padded batch, the same dropout each time."""
    model.train(train)
    torch.manual_seed(3)
    with contextlib.nullcontext() if grad else torch.no_grad():
        return case.logits(model, case.batch).detach()


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@ALL
def test_gate_zero_is_a_zeroed_column(case, train, grad):
    model = case.build()
    heads = hd.find_heads(model)
    every = range(len(heads))
    plain = forward(case, model, train, grad)
    for gone in (*([h] for h in every), every):
        with hd.masked(heads, keep_all_but(case, gone)):
            gated = forward(case, model, train, grad)
        with slow_paths():  # torch's fused encoder sums in another order; below it is compared as it is
            zeroed = forward(case, without(case, model, gone), train, grad)
        assert torch.equal(gated, zeroed), list(gone)
        assert not torch.equal(gated, plain), list(gone)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@ALL
def test_gate_one_changes_no_bit(case, train, grad):
    model = case.build()
    heads = hd.find_heads(model)
    plain = forward(case, model, train, grad)
    with slow_paths():
        slow = forward(case, model, train, grad)
    for keep in (torch.ones(len(heads)), [True] * len(heads), torch.ones(3, len(heads))):
        with hd.masked(heads, keep):
            gated = forward(case, model, train, grad)
        assert torch.equal(gated, slow)
        if case.name == "torch" and not (train or grad):  # the fused path of an untouched model sums otherwise
            torch.testing.assert_close(gated, plain, atol=1e-6, rtol=1e-6)
        else:
            assert torch.equal(gated, plain)


@ALL
def test_taped_gates_change_no_bit(case):
    model = case.build()
    with slow_paths():
        plain = forward(case, model, True, True)
    with taped(hd.find_heads(model)):
        assert torch.equal(forward(case, model, True, True), plain)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_torch_fused_path_is_off_while_masked(train):
    """Left on, the mask would be passed by in eval mode without grad."""
    case = CASES["torch"]
    model = case.build()
    with hd.masked(hd.find_heads(model), torch.zeros(8)):
        gated = forward(case, model, train, False)
    zeroed = forward(case, without(case, model, range(8)), train, False)
    torch.testing.assert_close(gated, zeroed, atol=1e-6, rtol=1e-6)


@ALL
def test_half_a_gate_is_half_a_column(case):
    model = case.build()
    half = copy.deepcopy(model)
    with torch.no_grad():
        case.weight(half, case.outputs[-1][0])[4:8] *= 0.5
    keep = torch.ones(4 * len(case.outputs))
    keep[-3] = 0.5
    with hd.masked(hd.find_heads(model), keep), slow_paths():
        gated = forward(case, model, False, True)
    assert torch.equal(gated, forward(case, half, False, True))  # a power of two rounds nothing


@pytest.mark.parametrize("beams", [1, 5])
@WRITERS
def test_generation_is_masked_too(case, beams):
    """Greedy and beam search over sentences of three lengths: tokens and scores of every step."""
    model = case.build()
    heads = hd.find_heads(model)
    plain = case.generate(model, beams)
    with hd.masked(heads, torch.ones(len(heads))):
        assert same(case.generate(model, beams), plain)
    for gone in ([0], [5], [len(heads) - 1], range(len(heads))):
        with hd.masked(heads, keep_all_but(case, gone)):
            gated = case.generate(model, beams)
        assert same(gated, case.generate(without(case, model, gone), beams)), list(gone)
        assert not same(gated, plain), list(gone)


def same(first, second):
    """Equal tokens and bit-equal scores."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("name", ["bart", "t5", "gpt2"])
def test_each_row_generates_under_its_own_mask(name, beams):
    case = CASES[name]
    model = case.build()
    heads = hd.find_heads(model)
    keep = rows_of_masks(len(heads))
    with hd.masked(heads, keep):
        tokens = case.generate(model, beams)[0]
    for row in range(3):
        with hd.masked(heads, keep[row]):
            assert torch.equal(tokens[row], case.generate(model, beams)[0][row])


def rows_of_masks(count):
    return (torch.rand(3, count, generator=torch.Generator().manual_seed(4)) > 0.4).float()


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@ALL
def test_a_mask_a_row(case, train):
    model = case.build()
    heads = hd.find_heads(model)
    keep = rows_of_masks(len(heads))
    with hd.masked(heads, keep):
        together = forward(case, model, train, False)
    for row in range(3):
        with hd.masked(heads, keep[row]):
            assert torch.equal(together[row], forward(case, model, train, False)[row])
    assert not torch.equal(together, forward(case, model, train, False))


@ALL
def test_a_mask_that_requires_grad_gets_it(case):
    model = case.build()
    heads = hd.find_heads(model)
    keep = torch.ones(len(heads), requires_grad=True)
    with hd.masked(heads, keep):
        case.loss(model, case.batch).sum().backward()
    signed = hd.importance(model, [case.batch], case.loss, heads=heads).signed * 3
    torch.testing.assert_close(keep.grad, torch.tensor(signed).float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (), (2, 2, 8)])
def test_a_mask_of_another_shape_is_refused(shape):
    heads = hd.find_heads(CASES["bert"].build())
    with pytest.raises(ValueError, match=r"needs \[8\] or \[B, 8\]"), hd.masked(heads, torch.ones(shape)):
        pass


def test_rows_that_do_not_fit_are_refused():
    case = CASES["bert"]
    model = case.build()
    with pytest.raises(ValueError, match="does not hold 2 rows along axis"):
        with hd.masked(hd.find_heads(model), torch.ones(2, 8)):
            forward(case, model, False, False)


def fast():
    """Whether torch may take its fused path; before 2.3 it has no switch, and asks for any function mode."""
    if hasattr(torch.backends, "mha"):
        return torch.backends.mha.get_fastpath_enabled()
    return not torch.overrides.has_torch_function((torch.ones(1),))


def state(model):
    """Everything a context could leave behind, by identity."""
    hooks = "_forward_hooks _forward_pre_hooks _backward_hooks _forward_hooks_with_kwargs".split()
    hooks += "_forward_pre_hooks_with_kwargs _forward_hooks_always_called".split()
    return [
        fast(),
        torch.nn.functional.linear,
        [(name, id(module)) for name, module in model.named_modules()],
        [(name, id(parameter)) for name, parameter in model.named_parameters()],
        [(list(module._modules), [list(getattr(module, hook)) for hook in hooks]) for module in model.modules()],
        list(model.state_dict()),
        torch.get_rng_state().tolist(),
    ]


class Boom(BaseException):
    """Raised on purpose: like an interrupt, no Exception."""


def boom(*_, **__):
    raise Boom


def ungated(heads):
    return hd.masked(heads, [1.0] * len(heads))


def interrupted(case, model, heads, context, where, monkeypatch):
    """Enter `context`, run the model and raise at `where`."""
    projection, linear = model.get_submodule(case.outputs[-1][0]), torch.nn.functional.linear
    spots = {"attention": heads.blocks[-1].module, "W_O": projection}
    with monkeypatch.context() as patch, context:
        if where == "W_O" and heads.blocks[-1].functional:  # its forward may never run
            trap = {id(projection.weight): boom}
            patch.setattr(torch.nn.functional, "linear", lambda x, w, b: trap.get(id(w), linear)(x, w, b))
        elif where in spots:
            patch.setattr(spots[where], "forward", boom)
        assert not fast()
        case.logits(model, case.batch)
        if where == "body":
            boom()


@pytest.mark.parametrize("gates", [taped, ungated], ids=["taped", "masked"])
@pytest.mark.parametrize("where", ["nowhere", "body", "attention", "W_O"])
@ALL
def test_nothing_is_left_behind(case, where, gates, monkeypatch):
    model = case.build()
    heads = hd.find_heads(model)
    if hasattr(torch.backends, "mha"):
        torch.backends.mha.set_fastpath_enabled(True)
    before = state(model)
    with contextlib.nullcontext() if where == "nowhere" else pytest.raises(Boom):
        interrupted(case, model, heads, gates(heads), where, monkeypatch)
    assert state(model) == before


@ALL
def test_nested_masks_multiply(case):
    model = case.build()
    heads = hd.find_heads(model)
    first, second = rows_of_masks(len(heads))[:2]
    with hd.masked(heads, first * second):
        product = forward(case, model, True, False)
    with hd.masked(heads, first), hd.masked(heads, second):
        assert torch.equal(forward(case, model, True, False), product)
    with hd.masked(heads, first), taped(heads), hd.masked(heads, second):
        assert torch.equal(forward(case, model, True, True), product)


@pytest.mark.parametrize("name", ["fairseq", "torch"])
def test_a_hook_of_the_user_sees_what_attention_gives(name):
    case = CASES[name]
    model = case.build()
    heads, seen = hd.find_heads(model), []
    heads.blocks[0].module.register_forward_hook(lambda _, args, out: seen.append(out[0].detach()))
    with slow_paths():
        forward(case, model, False, False)
    with hd.masked(heads, torch.ones(len(heads))):
        forward(case, model, False, False)
    assert torch.equal(seen[0], seen[1])


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("name", ["fairseq", "torch"])
def test_a_weight_that_is_computed_anew_is_no_silent_miss(name):
    """W_O's weight is known by identity; under a parametrization every use has another."""
    case = CASES[name]
    model = case.build()
    heads = hd.find_heads(model)
    torch.nn.utils.parametrize.register_parametrization(heads.blocks[0].projection, "weight", Doubled())
    with pytest.raises(hd.HeadsError, match="a parametrization"), hd.masked(heads, torch.zeros(len(heads))):
        forward(case, model, True, False)
