"""I(h) against brute force: one example at a time, unpadded, a gate on W_O's columns, in float64."""

import contextlib
import copy
import itertools

import numpy as np
import pytest
import torch
from models import CASES, TARGETS
from taped import taped
from torch.func import functional_call

import headdynamics as hd
from headdynamics.estimators import Sensitivity, sensitivity, token_positions
from headdynamics.gates import slow_paths
from headdynamics.taps import tapped as tapped_gates

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
ALL = pytest.mark.parametrize("case", CASES.values(), ids=str)


def double(case):
    """The model and its batch in float64, and the relative tolerance that its float32 parts leave."""
    exact = case.in_float64()
    return exact.build(), exact.batch, exact.tolerance


def gated_loss(case, model, batch, gates):
    """The loss [B] with W_O's columns of head h multiplied by gates[h]."""
    weights = {}
    for i, (path, _, _) in enumerate(case.outputs):
        weight = model.get_submodule(path).weight.detach()
        columns = gates[4 * i : 4 * i + 4].repeat_interleave(4)
        weights[f"{path}.weight"] = weight * (columns[:, None] if case.name == "gpt2" else columns)
    return functional_call(Loss(model, case), {f"model.{k}": v for k, v in weights.items()}, (batch,))


class Loss(torch.nn.Module):
    """A case's loss as a module's forward, for `functional_call`."""

    def __init__(self, model, case):
        super().__init__()
        self.model, self.case = model, case

    def forward(self, batch):
        return self.case.loss(self.model, batch)


def brute_force(case, model, batch):
    """dL_b/dxi [3, H], example by example."""
    rows = []
    for row in range(3):
        gates = torch.ones(4 * len(case.outputs), dtype=torch.float64, requires_grad=True)
        gated_loss(case, model, case.alone(batch, row), gates).sum().backward()
        rows.append(gates.grad.numpy())
    return np.stack(rows)


@contextlib.contextmanager
def tapped(weights):
    """What each W_O multiplies, kept at the product itself, whoever calls it."""
    inputs, known = {}, {id(weight): i for i, weight in enumerate(weights)}

    def keeping(product):
        def call(*args, **kwargs):
            for given, weight in itertools.pairwise(args):  # linear(x, W, b) and addmm(b, x, W)
                if id(weight) in known:
                    inputs[known[id(weight)]] = given
                    given.retain_grad()
            return product(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", keeping(torch.nn.functional.linear))
        patch.setattr(torch, "addmm", keeping(torch.addmm))
        yield inputs


def brute_force_tokens(case, model, batch):
    """For each example and head, abs(ctx . dL/dctx) at each of its positions: [3][H][T_b]."""
    rows = []
    for row in range(3):
        with tapped([model.get_submodule(path).weight for path, _, _ in case.outputs]) as inputs:
            case.loss(model, case.alone(batch, row)).sum().backward()
        found = []
        for i in range(len(case.outputs)):
            product = (inputs[i] * inputs[i].grad).detach().reshape(-1, 4, 4).sum(-1).abs()
            found.extend(product.T.numpy())
        rows.append(found)
    return rows


def close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@ALL
def test_every_estimator_against_brute_force(case):
    model, batch, tolerance = double(case)
    s = brute_force(case, model, batch)
    assert np.abs(s).min(0).max() > 1e-3  # the heads do something
    n = np.sqrt(3)
    found = hd.importance(model, [batch], case.loss)
    close(found.mean, np.abs(s).mean(0), tolerance)
    close(found.stderr, np.abs(s).std(0, ddof=1) / n, tolerance)
    close(found.signed, s.mean(0), tolerance)
    signed = hd.importance(model, [batch], case.loss, estimator="signed")
    close(signed.mean, s.mean(0), tolerance)
    close(signed.stderr, s.std(0, ddof=1) / n, tolerance)
    parts = [case.alone(batch, row) for row in range(3)]
    sums = np.abs(np.stack([s.sum(0), s[0], s[1]]))
    by_batch = hd.importance(model, [batch, parts[0], parts[1]], case.loss, estimator="batch")
    close(by_batch.mean, sums.mean(0), tolerance)
    close(by_batch.stderr, sums.std(0, ddof=1) / n, tolerance)


@ALL
def test_taps_change_no_bit_and_give_what_gates_of_one_do(case):
    """Gates that really multiply are the oracle of those that only stand in for them."""
    model = case.build()
    heads, plain = hd.find_heads(model), case.logits(model, case.batch)
    found = []
    for gates in (tapped_gates, taped):
        with slow_paths(heads), gates(heads) as tape:
            logits = case.logits(model, case.batch)
            gradients = torch.autograd.grad(logits.square().sum(), [gate for _, gate in tape])
        if gates is tapped_gates:
            with slow_paths(heads):
                assert torch.equal(logits, case.logits(model, case.batch))
            assert torch.allclose(logits, plain, atol=1e-5)
        found.append(([index for index, _ in tape], gradients))
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@ALL
def test_tokens_against_brute_force(case):
    """The mean over real positions; its error takes an example's tokens as one cluster."""
    model, batch, tolerance = double(case)
    rows = brute_force_tokens(case, model, batch)
    found = hd.importance(model, [batch], case.loss, estimator="token", positions=case.positions)
    for head in range(len(found.mean)):
        sums, counts = (np.array([f(row[head]) for row in rows]) for f in (np.sum, len))
        mean = sums.sum() / counts.sum()
        close(found.mean[head], mean, tolerance)
        residual = sums - mean * counts
        error = np.sqrt(3 / 2 * (residual**2).sum()) / counts.sum()
        close(found.stderr[head], error, tolerance)


def test_padding_is_no_token_even_if_the_loss_reads_it():
    case = CASES["bart"]
    model, batch, _ = double(case)

    def loss(model, batch):
        return model(**batch).encoder_last_hidden_state.pow(2).sum((1, 2))

    with tapped([model.get_submodule(path).weight for path, _, _ in case.outputs[:2]]) as inputs:
        loss(model, batch).sum().backward()
    found = hd.importance(model, [batch], loss, estimator="token").mean[:8]
    for i in (0, 1):
        size = (inputs[i] * inputs[i].grad).detach().reshape(3, 6, 4, 4).sum(-1).abs()
        assert (size[1, 4:] > 0).any()  # the padding of the second example
        expected = (size[0].sum(0) + size[1, :4].sum(0) + size[2, :5].sum(0)) / 15
        close(found[4 * i : 4 * i + 4], expected.numpy(), 1e-9)


@ALL
def test_finite_differences_of_the_gate(case):
    """Where a part computes in float32, a wider step and what it leaves; wider still, and a ReLU bends within it."""
    model, batch, _ = double(case)
    step, tolerance = (1e-5, 1e-6) if case.double else (5e-4, 5e-3)
    heads = hd.find_heads(model)
    signed = hd.importance(model, [batch], case.loss).signed
    for head in (0, 3, len(heads) - 2):
        move = torch.zeros(len(heads), dtype=torch.float64)
        move[head] = step
        losses = []
        for keep in (1 + move, 1 - move):
            with torch.no_grad(), hd.masked(heads, keep):
                losses.append(case.loss(model, batch).mean().item())
        slope = (losses[0] - losses[1]) / (2 * step)
        assert slope == pytest.approx(signed[head], rel=tolerance, abs=tolerance * np.abs(signed).max())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "bart", "vit", "torch"])
def test_the_default_loss_is_the_hand_loop(name):
    case = CASES[name]
    model = case.build()
    default, given = (hd.importance(model, [case.batch], loss) for loss in (None, case.loss))
    close(default.mean, given.mean, 2e-5)
    assert default.loss == pytest.approx(given.loss, rel=1e-5)
    assert default.n == 3


def test_batching_does_not_matter():
    case = CASES["bart"]
    model, batch, tolerance = double(case)
    whole = hd.importance(model, [batch, batch], case.loss)
    parts = hd.importance(model, [case.alone(batch, row) for row in (0, 1, 2, 0, 1, 2)], case.loss)
    for name in ("mean", "stderr", "signed", "blocks"):
        close(np.nan_to_num(getattr(parts, name)), np.nan_to_num(getattr(whole, name)), tolerance)
    assert (whole.n, parts.n) == (6, 6)


def test_blocks_are_every_tenth_example_and_average_to_the_mean():
    case = CASES["bert"]
    model, batch, _ = double(case)
    s = np.abs(brute_force(case, model, batch))
    found = hd.importance(model, [batch] * 10, case.loss)  # 30 examples: block b holds b, b + 10, b + 20
    assert found.blocks.shape == (10, 8)
    close(found.blocks[4], (s[1] + s[2] + s[0]) / 3, 1e-9)
    close(found.blocks.mean(0), found.mean, 1e-12)


def test_blocks_without_examples_are_missing():
    case = CASES["bert"]
    found = hd.importance(case.build(), [case.batch])
    assert np.isnan(found.blocks[3:]).all() and not np.isnan(found.blocks[:3]).any()


def test_one_example_has_no_error():
    case = CASES["bert"]
    model, batch, _ = double(case)
    for estimator in ("example", "token", "batch", "signed"):
        assert np.isnan(hd.importance(model, [case.alone(batch, 0)], case.loss, estimator).stderr).all()


@pytest.mark.parametrize("name", ["bert", "torch"])
def test_bfloat16_is_reduced_in_float32(name):
    """Of bfloat16's 8 bits the sum over positions would keep too few: reduced in float32, s is a sum of float32."""
    case = CASES[name]
    model = case.build().bfloat16()
    wide = copy.deepcopy(model).double()
    exact = sensitivity(wide, hd.find_heads(wide), [case.batch], case.loss, token_positions)
    found = sensitivity(model, hd.find_heads(model), [case.batch], case.loss, token_positions)
    assert np.corrcoef(found.signed.ravel(), exact.signed.ravel())[0, 1] > 0.95
    as_bfloat16 = torch.from_numpy(found.signed).bfloat16().double().numpy()
    assert (as_bfloat16 != found.signed).mean() > 0.9


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@ALL
def test_grads_of_parameters_are_untouched(case, grad):
    model = case.build()
    parameters = list(model.parameters())
    kept = torch.ones_like(parameters[1])
    parameters[1].grad = kept
    with torch.set_grad_enabled(grad):
        hd.importance(model, [case.batch], case.loss)
        assert torch.is_grad_enabled() is grad
    assert parameters[1].grad is kept and torch.equal(kept, torch.ones_like(kept))
    assert all(p.grad is None for i, p in enumerate(parameters) if i != 1)


def test_weights_ask_for_gradients_again_even_after_a_failure():
    case = CASES["bert"]
    model = case.build()
    parameters = list(model.parameters())
    parameters[3].requires_grad_(False)
    seen = []

    def failing(model, batch):
        seen.extend(p.requires_grad for p in parameters)
        raise KeyError

    hd.importance(model, [case.batch], case.loss)
    with pytest.raises(KeyError):
        hd.importance(model, [case.batch], failing)
    assert not any(seen)
    assert [i for i, p in enumerate(parameters) if not p.requires_grad] == [3]


@pytest.mark.parametrize("name", ["bert", "torch", "fairseq", "t5"])
def test_less_is_kept_for_backward_than_a_training_step_keeps(name):
    """Bytes that autograd saves, weights aside."""
    case = CASES[name]
    model = case.build()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def kept(call):
        bytes_of = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                bytes_of[storage.data_ptr()] = storage.nbytes(), tensor  # alive, so that no place is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call()
        return sum(size for size, _ in bytes_of.values())

    training = kept(lambda: case.loss(model, case.batch).mean().backward())
    assert 0 < kept(lambda: hd.importance(model, [case.batch], case.loss)) < 0.8 * training


def test_a_loss_without_gradients_is_an_error():
    case = CASES["bert"]
    with pytest.raises(ValueError, match="no head has a path to the loss"):
        hd.importance(case.build(), [case.batch], lambda model, batch: case.loss(model, batch).detach())


def test_a_stack_that_the_loss_does_not_use_is_zero():
    """The decoder's heads have no path to a loss that reads the encoder."""
    case = CASES["bart"]
    found = hd.importance(
        case.build(), [case.batch], lambda model, batch: model(**batch).encoder_last_hidden_state.pow(2).sum((1, 2))
    )
    assert (found.mean[:8] > 0).all() and (found.mean[8:] == 0).all()


def test_importance_under_a_mask():
    """The gradient of a masked head's gate is zero, since its context is."""
    for case in CASES.values():
        model = case.build()
        heads = hd.find_heads(model)
        keep = torch.ones(len(heads))
        keep[2] = 0
        with hd.masked(heads, keep):
            found = hd.importance(model, [case.batch], case.loss, heads=heads)
        assert found.mean[2] == 0 and (np.delete(found.mean, 2) > 0).all(), case


def test_normalized_divides_by_each_layers_norm():
    found = hd.Importance(
        np.array([3.0, 4.0, 0.0, 0.0, 0.5, 0.0]), *[np.zeros(6)] * 2, np.zeros((10, 6)), 1, 0.0, "example",
        np.array([0, 0, 1, 1, 2, 2]),
    )  # fmt: skip
    assert found.normalized().tolist() == [0.6, 0.8, 0.0, 0.0, 1.0, 0.0]
    assert hd.prune_order(found).tolist() == [2, 3, 5, 0, 1, 4]
    assert hd.prune_order(found, normalize=False).tolist() == [2, 3, 5, 4, 0, 1]


def test_errors():
    case = CASES["bert"]
    model = case.build()
    with pytest.raises(ValueError, match="unknown estimator 'typo'; there are example, token, batch, signed"):
        hd.importance(model, [case.batch], estimator="typo")
    with pytest.raises(ValueError, match="the batches are empty"):
        hd.importance(model, [])


def test_token_positions():
    mask = torch.tensor([[1, 1, 0]])
    text = {"input_ids": mask, "attention_mask": mask}
    assert token_positions(text, "encoder").tolist() == [[True, True, False]]
    pair = {**text, "labels": TARGETS[1:2]}
    assert token_positions(pair, "encoder").tolist() == [[True, True, False]]
    for kind in ("decoder", "cross"):
        assert token_positions(pair, kind).tolist() == [[True, True, True, False, False]]
        asked = {**pair, "decoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0]])}
        assert token_positions(asked, kind).tolist() == [[True, True, True, True, False]]
    assert token_positions({"pixel_values": mask}, "encoder") is None
    assert token_positions("a batch of another kind", "encoder") is None


def test_tokens_counts_positions():
    """A ratio of sums, not a mean of ratios: 2 examples of 1 and 3 tokens."""
    from headdynamics.estimators import ESTIMATORS

    one = np.array([[1.0], [9.0]])
    found = Sensitivity(one, one, np.array([[1.0], [3.0]]), np.zeros(2), np.zeros(2))
    mean, error = ESTIMATORS["token"](found)
    assert mean.tolist() == [2.5]
    assert error[0] == pytest.approx(np.sqrt(2 * (1.5**2 + 1.5**2)) / 4)
