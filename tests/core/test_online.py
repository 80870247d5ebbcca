"""Online importance: what training's own backward pass says, against I(h) of the same batch, and against nothing."""

import contextlib
import copy
import logging
import math

import numpy as np
import pytest
import torch
import transformers as hf
from compiler import needs_dynamo
from models import CASES, SIZES, TEXT, class_loss
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import headdynamics as hd
from headdynamics import online_sources
from headdynamics.online import Online, Window, averaged

SHARED = ("attention_dropout", "dropout", "dropout_prob", "dropout_p", "p")


def without_dropout(model, double):
    """In training mode, but nothing is drawn, so that two forward passes are one function."""
    for module in model.modules():
        for name in SHARED:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return (model.double() if double else model).train()


def batch_of(case):
    images = case.double and "pixel_values" in case.batch
    return {**case.batch, "pixel_values": case.batch["pixel_values"].double()} if images else case.batch


def said(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "headdynamics" and r.levelno == logging.ERROR]


def one_step(online, losses, weight):
    """One backward pass through sum(weight * losses()), and the window of it."""
    with online.tapped():
        (losses() * weight).sum().backward()
    online.add(weight)
    return online.step(1, close=True)


@pytest.fixture(params=CASES.values(), ids=str)
def case(request):
    return request.param


@pytest.mark.parametrize("weight", [(1 / 3, 1 / 3, 1 / 3), (2.0, 0.5, 700.0)])
def test_an_examples_own_i(case, weight):
    """The same numbers as hd.importance of the same batch, whatever the loss that training goes down by."""
    model, batch = without_dropout(case.build(), case.double), batch_of(case)
    weight = torch.tensor(weight, dtype=torch.float64 if case.double else torch.float32)
    want = hd.importance(model, [batch], case.loss)
    found = one_step(Online(model, strict=True), lambda: case.loss(model, batch), weight)
    error = want.mean.max() * (1e-9 if case.double else 2e-6)
    for name in ("mean", "signed", "stderr"):
        np.testing.assert_allclose(getattr(found, name), getattr(want, name), rtol=0, atol=error)
    assert (found.n, found.skipped, found.update, found.estimator) == (3, 0, 1, "example")


def test_an_example_of_no_weight_has_no_s():
    """None of its targets counts: it is an example whose s is 0."""
    case, weight = CASES["bert"], torch.tensor([1.0, 0.0, 2.0])
    model = without_dropout(case.build(), True)
    want = hd.importance(model, [case.batch], lambda m, b: case.loss(m, b) * (weight > 0))
    found = one_step(Online(model, strict=True), lambda: case.loss(model, case.batch), weight)
    assert (found.n, found.skipped) == (3, 0)
    np.testing.assert_allclose(found.mean, want.mean, rtol=1e-9)


def test_the_batch_form(case):
    model, batch = without_dropout(case.build(), case.double), batch_of(case)
    want = hd.importance(model, [batch], case.loss, "batch")
    weight = torch.full((3,), 7.0, dtype=torch.float64)
    found = one_step(Online(model, "batch", strict=True), lambda: case.loss(model, batch), weight)
    error = want.mean.max() * (1e-9 if case.double else 2e-6)
    np.testing.assert_allclose(found.mean, want.mean, rtol=0, atol=error)
    np.testing.assert_allclose(found.signed, want.signed, rtol=0, atol=error)
    assert found.n == 1 and np.isnan(found.stderr).all()


@pytest.mark.parametrize("estimator", ["example", "batch"])
def test_layers_that_share_their_weights(estimator):
    """ALBERT uses one block at each layer: its heads' s is the sum over the uses, in either form."""
    torch.manual_seed(0)
    config = hf.AlbertConfig(vocab_size=16, embedding_size=8, max_position_embeddings=12, num_labels=3, **SIZES)
    model = without_dropout(hf.AlbertForSequenceClassification(config), True)
    want = hd.importance(model, [TEXT], class_loss, estimator)
    online = Online(model, estimator, strict=True)
    assert len(online.heads) == 4  # of two layers
    found = one_step(online, lambda: class_loss(model, TEXT), torch.full((3,), 0.5, dtype=torch.float64))
    np.testing.assert_allclose(found.mean, want.mean, rtol=1e-9)


def gradients(case, how, drawn=True):
    """Loss and every gradient of a pass with dropout, `how` it is listened to."""
    model = case.build().train()
    torch.manual_seed(4)
    with Online(model, how, strict=True).tapped() if how else contextlib.nullcontext():
        loss = case.loss(model, case.batch).sum()
        loss.backward()
    return [loss.detach(), torch.get_rng_state(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("how", ["example", "batch"])
def test_the_same_bits(case, how):
    for one, other in zip(gradients(case, None), gradients(case, how), strict=True):
        assert one is other is None or torch.equal(one, other)


def test_nothing_is_left_on_the_model(case):
    model = case.build().train()

    def hooks():
        names = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
        own = [len(getattr(module, name)) for module in model.modules() for name in names]
        return own + [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()]

    before = hooks()
    for how in online_sources.SOURCES:
        with pytest.raises(KeyError), Online(model, how).tapped():
            assert hooks() != before
            raise KeyError
        assert hooks() == before


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("estimator", ["example", "batch"])
def test_checkpointed_layers(estimator, reentrant):
    case = CASES["bert"]
    model = without_dropout(case.build(), True)
    want = hd.importance(model, [case.batch], case.loss, estimator)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = one_step(Online(model, estimator, strict=True), lambda: case.loss(model, case.batch), torch.ones(3))
    np.testing.assert_allclose(found.mean, want.mean, rtol=1e-9)


def test_a_failure_amid_checkpointed_layers_does_not_reach_training(caplog):
    """The tap stays when the measuring ends: torch compares what a layer saves the first and the second time."""
    case = CASES["bert"]
    plain = gradients(case, None)

    def checkpointed(listen):
        model = case.build().train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        online = Online(model)
        if listen:
            online._source._heard[1] = None  # the last block's backward comes first, and cannot be kept
        torch.manual_seed(4)
        with online.tapped() if listen else contextlib.nullcontext():
            loss = case.loss(model, case.batch).sum()
            loss.backward()
        return online, [loss.detach(), torch.get_rng_state(), *(p.grad for p in model.parameters())]

    online, listened = checkpointed(True)
    assert online.failed and len(said(caplog)) == 1
    assert all(one is other is None or torch.equal(one, other) for one, other in zip(listened, plain, strict=True))
    online.add()
    assert online.step(1, close=True) is None


def test_strict_raises_in_training():
    case = CASES["bert"]
    model = case.build().train()
    online = Online(model, strict=True)
    online._source._heard[0] = None
    with pytest.raises(AttributeError), online.tapped():
        case.loss(model, case.batch).sum().backward()


class Toy(nn.Module):
    """One attention block whose s can be written by hand, and a loss per example."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.Module()
        self.attention.q_proj, self.attention.k_proj, self.attention.v_proj = (nn.Linear(8, 8) for _ in range(3))
        self.attention.out_proj, self.attention.num_heads = nn.Linear(8, 8), 4
        self.double()

    def forward(self, x):
        context = torch.tanh(self.attention.v_proj(x))
        return self.attention.out_proj(context).pow(3).sum((1, 2)), context


def by_hand(model, x):
    """s [B, 4]: context times its gradient."""
    losses, context = model(x)
    (grad,) = torch.autograd.grad(losses.sum(), context)
    return (context * grad).detach().view(len(x), -1, 4, 2).sum((1, 3)).numpy()


def trained(estimator, window, updates=7, spoil=()):
    """Windows of a training of two unequal batches an update, and s of each batch at the weights that it met."""
    model, found, seen = Toy(), [], []
    online = Online(model, estimator, window, strict=True)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for update in range(1, updates + 1):
        batches = [torch.randn(n, 5, 8, dtype=torch.float64) for n in (3, 2)]
        if update in spoil:
            batches[0][1] = math.nan
        seen.append(np.concatenate([by_hand(model, x) for x in batches]))
        for x in batches:
            with online.tapped():
                (model(x)[0].sum() / 5).backward()
            online.add(torch.full((len(x),), 0.2, dtype=torch.float64))
        if update not in spoil:
            optimizer.step()
        optimizer.zero_grad()
        found.append(online.step(update, close=update == updates))
    return [w for w in found if w], seen


def test_windows_of_examples():
    windows, seen = trained("example", 3)
    assert [(w.update, w.n, w.skipped) for w in windows] == [(3, 15, 0), (6, 15, 0), (7, 5, 0)]
    for window, part in zip(windows, (seen[:3], seen[3:6], seen[6:]), strict=True):
        s = np.concatenate(part)
        np.testing.assert_allclose(window.mean, np.abs(s).mean(0), rtol=1e-12)
        np.testing.assert_allclose(window.signed, s.mean(0), rtol=1e-12)
        np.testing.assert_allclose(window.stderr, np.abs(s).std(0, ddof=1) / np.sqrt(len(s)), rtol=1e-9)


def test_windows_of_batches():
    """A batch is that of an update, accumulated."""
    windows, seen = trained("batch", 3)
    assert [(w.update, w.n) for w in windows] == [(3, 3), (6, 3), (7, 1)]
    for window, part in zip(windows, (seen[:3], seen[3:6], seen[6:]), strict=True):
        sums = np.stack([s.sum(0) for s in part])
        np.testing.assert_allclose(window.mean, np.abs(sums).mean(0), rtol=1e-12)
        np.testing.assert_allclose(window.signed, np.concatenate(part).mean(0), rtol=1e-12)
        if len(part) > 1:
            np.testing.assert_allclose(window.stderr, np.abs(sums).std(0, ddof=1) / np.sqrt(3), rtol=1e-9)


def test_what_is_not_finite_is_left_out_and_counted():
    (window,), seen = trained("example", 9, updates=3, spoil=[2])
    s = np.concatenate(seen)
    assert (window.n, window.skipped) == (14, 1) and np.isnan(s).any(1).sum() == 1
    s = s[np.isfinite(s).all(1)]
    np.testing.assert_allclose(window.mean, np.abs(s).mean(0), rtol=1e-12)
    np.testing.assert_allclose(window.signed, s.mean(0), rtol=1e-12)
    (window,), seen = trained("batch", 9, updates=3, spoil=[2])
    assert (window.n, window.skipped) == (2, 1)
    np.testing.assert_allclose(window.mean, np.abs([seen[0].sum(0), seen[2].sum(0)]).mean(0), rtol=1e-12)


@pytest.mark.parametrize(("estimator", "n"), [("example", 12), ("batch", 2)])
def test_a_step_that_was_skipped_ends_no_window(estimator, n):
    """fp16 overflows: training counts no update, and asks again with the same one."""
    model = Toy()
    online, x = Online(model, estimator, window=2, strict=True), torch.randn(3, 5, 8, dtype=torch.float64)
    found = []
    for update in (1, 1, 1, 2, 2):
        with online.tapped():
            model(x)[0].mean().backward()
        online.add(torch.full((3,), 1 / 3))
        model.zero_grad()
        found.append(online.step(update))
    assert [w and w.n for w in found] == [None, None, None, n, None]


def test_a_pass_that_raises_is_forgotten_and_one_without_backward_too():
    model = Toy()
    online, x = Online(model, strict=True), torch.randn(3, 5, 8, dtype=torch.float64)
    with pytest.raises(MemoryError), online.tapped():
        model(x)[0].mean().backward()
        raise MemoryError
    with online.tapped():
        model(x)
    online.add()
    with online.tapped(), torch.no_grad():
        model(x)
    online.add()
    assert online.step(1, close=True) is None
    with online.tapped():
        model(x)[0].mean().backward()
    online.add()
    assert online.step(2, close=True).n == 3


def test_bfloat16_is_reduced_in_float32():
    """s is exact for what the pass computed: contexts and gradients in bfloat16, their products are not rounded."""
    case = CASES["bert"]
    model, kept = case.build().train().bfloat16(), {}
    for i, (path, _, _) in enumerate(case.outputs):

        def before(module, args, i=i):
            args[0].retain_grad()
            kept[i] = args[0]

        model.get_submodule(path).register_forward_pre_hook(before)
    online = Online(model, strict=True)
    found = one_step(online, lambda: case.loss(model, case.batch), torch.ones(3))
    s = [(x.double() * x.grad.double()).view(3, -1, 4, 4).sum((1, 3)) for x in kept.values()]
    want = torch.cat(s, 1).detach().abs().mean(0).numpy()
    np.testing.assert_allclose(found.mean, want, rtol=1e-5)


def test_the_moving_average():
    def window(values, n=1):
        values = np.array(values, float)
        return Window(1, values, values, values, n, 0, "example", "own loss")

    average = averaged(None, window([8.0, 0.0]))
    assert average.tolist() == [8, 0]
    for _ in range(4):
        average = averaged(average, window([0.0, 1.0]))
    np.testing.assert_allclose(average, [4, 0.5])
    assert averaged(average, window([math.nan] * 2, n=0)) is average


@needs_dynamo
def test_a_compiled_model_is_refused():
    model = CASES["bert"].build()
    with pytest.raises(hd.HeadsError, match="compiled.*online='batch'"):
        Online(torch.compile(copy.deepcopy(model)))
    model.bert.compile()
    with pytest.raises(hd.HeadsError, match="compiled"):
        Online(model)


def test_what_cannot_be_measured_is_said():
    model = CASES["bert"].build()
    with pytest.raises(ValueError, match="unknown estimator 'token'; there are example, batch"):
        Online(model, "token")
    with pytest.raises(ValueError, match="windows of 0 updates"):
        Online(model, window=0)
    tied = copy.deepcopy(model)
    tied.bert.encoder.layer[0].attention.self.query.weight = tied.bert.encoder.layer[1].attention.output.dense.weight
    with pytest.raises(hd.HeadsError, match="other modules share .*layer.1.attention"):
        Online(tied, "batch")
    Online(tied)
    model.requires_grad_(False)
    with pytest.raises(hd.HeadsError, match="frozen"):
        Online(model, "batch")
    attention = CASES["torch"].build()
    torch.nn.utils.parametrizations.weight_norm(attention.encoder.layers[0].self_attn.out_proj)
    with pytest.raises(hd.HeadsError, match="parametrized"):
        Online(attention)


def test_heads_on_frozen_layers_are_missing_not_zero(caplog):
    """No gradient reaches their W_O; those of the layer above are as always."""
    case = CASES["bert"]
    model = without_dropout(case.build(), True)
    want = hd.importance(model, [case.batch], case.loss).mean
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].requires_grad_(False)
    found = one_step(Online(model, strict=True), lambda: case.loss(model, case.batch), torch.ones(3))
    assert np.isnan(found.mean[:4]).all() and np.isnan(found.signed[:4]).all() and np.isnan(found.stderr[:4]).all()
    np.testing.assert_allclose(found.mean[4:], want[4:], rtol=1e-9)
    assert found.n == 3 and caplog.text.count("misses 4 of 8 heads") == 1


def test_a_block_that_does_not_fire_has_no_s():
    """As where training drops a layer."""
    case = CASES["bert"]
    model = without_dropout(case.build(), True)
    online = Online(model, strict=True)
    model.bert.encoder.layer = model.bert.encoder.layer[:1]
    want = hd.importance(model, [case.batch], case.loss).mean
    found = one_step(online, lambda: case.loss(model, case.batch), torch.ones(3))
    np.testing.assert_allclose(found.mean, [*want, 0, 0, 0, 0], rtol=1e-9)


class Waits(TorchDispatchMode):
    """Notes what makes the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        if str(call).split(".")[1] in ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_to_copy"):
            self.found += [] if "_to_copy" in str(call) and "device" not in (kwargs or {}) else [str(call)]
        return call(*args, **(kwargs or {}))


@pytest.mark.parametrize("estimator", ["example", "batch"])
def test_the_host_does_not_wait_before_a_window_ends(estimator):
    case = CASES["bert"]
    model = case.build().train()
    online, weight = Online(model, estimator, strict=True), torch.ones(3)
    for update in (1, 2, 3):
        with online.tapped():
            loss = case.loss(model, case.batch).sum()
            with Waits() as waits:
                loss.backward()
        with waits:
            online.add(weight)
            assert online.step(update) is None
    assert waits.found == []
    with waits:
        assert float(weight[0]) == 1
    assert waits.found == ["aten._local_scalar_dense.default"]


def test_the_batch_form_needs_the_weights(caplog):
    case = CASES["bert"]
    model = case.build().train()
    online = Online(model, "batch")
    with online.tapped():
        case.loss(model, case.batch).mean().backward()
    with caplog.at_level(logging.ERROR):
        online.add()
    assert online.failed and "give the weight of each example" in caplog.text


def test_a_model_that_passes_by_our_hooks_is_said_once(caplog):
    """Nothing was heard in a whole window: not a row of zeros, but a sentence."""
    model = Toy()
    online = Online(model, window=2)
    for update in (1, 2, 3):
        with online.tapped():
            pass
        online.add()
        assert online.step(update) is None
    assert said(caplog) == [
        "headdynamics: online importance is off: no gradient reached any W_O in 2 updates (is the model compiled?). "
        "Training goes on without it."
    ]


def test_a_loop_may_listen_to_few_of_its_steps():
    """A window in which nothing was listened to says nothing, and is no row; one that was has what it heard."""
    model, x, found = Toy(), torch.randn(3, 5, 8, dtype=torch.float64), []
    online = Online(model, window=5, strict=True)
    for update in range(1, 31):
        if update % 10 == 0:
            with online.tapped():
                model(x)[0].mean().backward()
            online.add()
        found.append(online.step(update))
    assert [(w.update, w.n) for w in found if w] == [(10, 3), (20, 3), (30, 3)]
    np.testing.assert_allclose(found[-1].mean, np.abs(by_hand(model, x)).mean(0), rtol=1e-12)


def test_two_passes_through_one_example_add_up():
    model, x = Toy(), torch.randn(3, 5, 8, dtype=torch.float64)
    online = Online(model, strict=True)
    with online.tapped():
        (checkpoint(lambda y: model(y)[0], x.requires_grad_(), use_reentrant=True) + model(x)[0]).mean().backward()
    online.add()
    np.testing.assert_allclose(online.step(1, True).mean, np.abs(2 * by_hand(model, x)).mean(0), rtol=1e-12)
