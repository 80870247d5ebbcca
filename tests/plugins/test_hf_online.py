"""Online importance of the Hugging Face Trainer: the same bits as without, and I(h) of every training batch."""

import functools
import gc
import itertools
import logging

import h5py
import hf_tiny as tiny
import numpy as np
import pytest
import torch
from compiler import needs_compiler
from headdynamics.analysis.__main__ import main
from hf_tiny import QUIET, HeadDynamicsCallback
from run_content import content
from transformers import AlbertConfig, AlbertForSequenceClassification, TrainerCallback, set_seed

import headdynamics as hd
from headdynamics.losses import per_example, predicts_next

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def albert():
    set_seed(5)
    sizes = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    return AlbertForSequenceClassification(
        AlbertConfig(vocab_size=20, intermediate_size=16, max_position_embeddings=16, hidden_dropout_prob=0.1, **sizes)
    )


def watch(path, **options):
    return ("attach", path, QUIET | {"online": True, "online_window": 3, "every": None} | options)


def windows(path):
    with h5py.File(path) as file:
        assert file["window"][:].tolist() == file["online/update"][:].tolist()
        return {name: file[f"online/{name}"][:] for name in file["online"]} | dict(file["online/mean"].attrs)


class GradientNorms(TrainerCallback):
    """Notes every update's gradients as the optimizer gets them."""

    def __init__(self):
        self.norms = []

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.norms.append([None if p.grad is None else p.grad.norm().item() for p in model.parameters()])


MODELS = {"bert": tiny.bert, "gpt2": tiny.gpt2, "albert": albert}
SETTINGS = {
    "plain": ("bert", {}),
    "checkpointing": ("bert", {"gradient_checkpointing": True}),
    "reentrant": ("bert", {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}),
    "bf16": ("bert", {"bf16": True}),
    "shared layers": ("albert", {}),
    "language model": ("gpt2", {"lm": True}),
}


def train(folder, name, online=None, **more):
    """What a training leaves, with the gradients of each step."""
    model, settings = SETTINGS[name]
    noted = GradientNorms()
    options = watch(folder / "run.h5", online=online, tensorboard=name == "plain") if online else None
    made = tiny.trainer(folder, options, model=MODELS[model](), callbacks=[noted], **settings | more)
    made.train()
    return {**tiny.left(made), "gradients": noted.norms}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_bits_with_and_without(tmp_path, name):
    alone = train(tmp_path / "alone", name)
    for online in (True, "batch"):
        assert tiny.same(train(tmp_path / str(online), name, online), alone)
        found = windows(tmp_path / str(online) / "run.h5")
        assert found["update"].tolist() == [3, 5, 8, 10]
        assert found["n"].tolist() == ([3, 2, 3, 2] if online == "batch" else [24, 12, 24, 12])
        assert np.isfinite(found["mean"]).all() and (found["mean"] > 0).all()
        assert found["estimator"] == ("batch" if online == "batch" else "example") and found["scale"] == "own loss"


class WeightsNotingTrainer(tiny.NotingTrainer):
    """Notes each update's batches, with the weights that they meet."""

    def training_step(self, model, inputs, *rest):
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.met = [*getattr(self, "met", []), (weights, dict(inputs))]
        return super().training_step(model, inputs, *rest)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        found = super().compute_loss(model, inputs, return_outputs, **kwargs)
        return found if return_outputs else 8 * found  # as a loss scale does


def wanted(made, estimator="example"):
    """hd.importance of each update's batches, at its weights and in training mode; nothing listens any more."""
    model, n = made.model.train(), made.args.gradient_accumulation_steps

    def loss(model, batch):
        return per_example(model(**batch), batch, predicts_next(model))

    for at in range(0, len(made.met), n):
        model.load_state_dict(made.met[at][0])
        yield hd.importance(model, [batch for _, batch in made.met[at : at + n]], loss, estimator)


def uneven(rows):
    """Labels of which unequally many count."""
    for i, row in enumerate(rows):
        row["labels"] = [-100] * (i % 6) + row["labels"][i % 6 :]
    return rows


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("lm", [False, True])
def test_i_of_every_update(tmp_path, monkeypatch, lm, accumulation):
    """Without dropout each window of one update is hd.importance of its batches, however the loss was scaled."""
    monkeypatch.setattr(tiny, "NotingTrainer", WeightsNotingTrainer)
    if lm:
        data = tiny.sentences
        monkeypatch.setattr(tiny, "sentences", lambda *args: uneven(data(*args)))
    model = tiny.gpt2() if lm else tiny.bert(**STILL)
    for module in model.modules() if lm else ():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        module.attention_dropout = 0.0 if hasattr(module, "attention_dropout") else None
    options = watch(tmp_path / "run.h5", online_window=1)
    made = tiny.trainer(
        tmp_path, options, model=model, lm=lm, gradient_accumulation_steps=accumulation, num_train_epochs=1, max_steps=4
    )
    made.train()
    found = windows(tmp_path / "run.h5")
    assert found["update"].tolist() == [1, 2, 3, 4] and found["scale"] == "own loss"
    for row, want in enumerate(wanted(made)):
        for name in ("mean", "signed", "stderr"):
            np.testing.assert_allclose(found[name][row], getattr(want, name), rtol=0, atol=2e-6 * want.mean.max())


def test_the_batch_form_of_every_update(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "NotingTrainer", WeightsNotingTrainer)
    options = watch(tmp_path / "run.h5", online_window=1, online="batch")
    made = tiny.trainer(tmp_path, options, model=tiny.bert(**STILL), gradient_accumulation_steps=1, max_steps=4)
    made.train()
    found = windows(tmp_path / "run.h5")
    for row, want in enumerate(wanted(made, "batch")):
        np.testing.assert_allclose(found["mean"][row], want.mean, rtol=0, atol=2e-6 * want.mean.max())
        np.testing.assert_allclose(found["signed"][row], want.signed, rtol=0, atol=2e-6 * want.mean.max())


@tiny.needs_resume
@pytest.mark.parametrize(("every", "middle", "ends"), [("epoch", 5, [3, 5, 8, 10]), ("steps", 4, [3, 4, 5, 8, 10])])
def test_resumed_windows_are_those_of_the_whole_run(tmp_path, capsys, every, middle, ends):
    """No gap and no double: windows end before each checkpoint, and the moving average goes on."""

    def train(name, checkpoint=None):
        made = tiny.trainer(tmp_path / name, watch(tmp_path / f"{name}.h5"), save_strategy=every, save_steps=4)
        made.train(resume_from_checkpoint=checkpoint)

    train("whole")
    train("parts")
    train("parts", str(tmp_path / f"parts/checkpoint-{middle}"))
    assert windows(tmp_path / "whole.h5")["update"].tolist() == ends
    assert content(tmp_path / "parts.h5", "checkpoint") == content(tmp_path / "whole.h5", "checkpoint")
    run = hd.load_run(tmp_path / "parts.h5")
    assert run.online["mean"].dims == ("window", "head") and run.online["window"].values.tolist() == ends
    assert (run.online["mean"].attrs["estimator"], run.online["mean"].attrs["scale"]) == ("example", "own loss")
    capsys.readouterr()
    assert main(["show", str(tmp_path / "parts.h5")]) == 0
    assert f"{len(ends)}, update 3 to 10, 72 examples of training" in " ".join(capsys.readouterr().out.split())


def test_a_callback_keeps_windows_until_it_sees_the_evaluation_data(tmp_path):
    options = QUIET | {"online": True, "online_window": 2, "every": None}
    tiny.trainer(tmp_path / "out", HeadDynamicsCallback(tmp_path / "run.h5", **options)).train()
    assert windows(tmp_path / "run.h5")["update"].tolist() == [2, 4, 5, 7, 9, 10]
    assert tiny.rows(tmp_path / "run.h5")["update"] == []


@pytest.mark.parametrize("attached", [True, False])
def test_online_alone_takes_no_snapshot(tmp_path, capsys, attached):
    """Not at the end, not where training is stopped, and not without evaluations; the readers say so."""
    path = tmp_path / "run.h5"
    options = QUIET | {"online": True, "online_window": 3, "every": None}
    how = ("attach", path, options) if attached else HeadDynamicsCallback(path, **options)
    tiny.trainer(tmp_path / "out", how, eval_strategy="steps", eval_steps=1000, max_steps=7).train()
    assert windows(path)["update"].tolist()[-1] == 7 and tiny.rows(path)["update"] == []
    for command, said in (("show", "only windows of online importance"), ("settle", "the run has no snapshots")):
        capsys.readouterr()
        assert main([command, str(path)]) == 0
        assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("how", ["label smoothing", "a loss of the user's own"])
def test_a_loss_that_is_not_the_models_own_is_relative(tmp_path, how, caplog):
    def own_loss(outputs, labels, num_items_in_batch=None):
        return 3 * torch.nn.functional.cross_entropy(outputs["logits"], labels)

    made = tiny.trainer(
        tmp_path, watch(tmp_path / "run.h5"), label_smoothing_factor=0.1 if how == "label smoothing" else 0.0
    )
    if how != "label smoothing":
        made.compute_loss_func = own_loss
    made.train()
    assert windows(tmp_path / "run.h5")["scale"] == "relative"
    assert [r.levelname for r in caplog.records if "online importance is relative" in r.getMessage()] == ["WARNING"]


@needs_compiler
def test_a_compiled_model(tmp_path, caplog, monkeypatch):
    """The batch form has numbers; the other is refused by a sentence, and snapshots go on."""
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    plain = tiny.trainer(tmp_path / "plain", None, **compiled)
    plain.train()
    made = tiny.trainer(tmp_path / "batch", watch(tmp_path / "batch.h5", online="batch"), **compiled)
    made.train()
    assert tiny.same(tiny.left(made), tiny.left(plain))
    found = windows(tmp_path / "batch.h5")
    assert (found["mean"] > 0).all() and found["n"].tolist() == [3, 2, 3, 2] and found["scale"] == "own loss"
    refusal = "without online importance: a compiled model does not run our hooks: choose online='batch'"
    options = watch(tmp_path / "example.h5", strict=False)
    tiny.trainer(tmp_path / "example", options, num_train_epochs=1, **compiled).train()
    assert refusal in caplog.text
    assert tiny.rows(tmp_path / "example.h5")["update"] == [5]
    caplog.clear()
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")  # as `accelerate launch --dynamo_backend eager` does
    options = watch(tmp_path / "launched.h5", strict=False)
    tiny.trainer(tmp_path / "launched", options, num_train_epochs=1).train()
    assert refusal in caplog.text
    assert tiny.rows(tmp_path / "launched.h5")["update"] == [5]


def test_data_parallel_is_refused(tmp_path):
    made = tiny.trainer(tmp_path, watch(tmp_path / "run.h5"))
    made.args._n_gpu = 2
    with pytest.raises(hd.HeadsError, match="DataParallel.*torchrun"):
        made.watch.on_train_begin(made.args, made.state, made.control, model=made.model)


def test_a_failure_ends_the_listening_not_the_training(tmp_path, caplog, monkeypatch):
    from headdynamics.online_sources import Contexts

    def broken(self, weight):
        raise ArithmeticError("no such weight")

    alone = tiny.trainer(tmp_path / "alone", None)
    alone.train()
    with monkeypatch.context() as patch:
        patch.setattr(Contexts, "collect", broken)
        made = tiny.trainer(tmp_path / "out", watch(tmp_path / "run.h5", strict=False))
        made.train()
        with pytest.raises(ArithmeticError):
            tiny.trainer(tmp_path / "strict", watch(tmp_path / "strict.h5")).train()
    assert tiny.same(tiny.left(made), tiny.left(alone))
    errors = [r.getMessage() for r in caplog.records if r.name == "headdynamics" and r.levelno >= logging.ERROR]
    assert errors == ["headdynamics: online importance is off: no such weight. Training goes on without it."]
    assert tiny.rows(tmp_path / "run.h5")["update"] == [10]


def test_an_interrupted_training_may_go_on_with_the_same_trainer(tmp_path):
    """What raised amid an update: the next training listens once, and from its beginning."""

    class Interrupted(TrainerCallback):
        on = True

        def on_substep_end(self, args, state, control, **_):
            if self.on and state.global_step == 2:
                raise KeyboardInterrupt

    stop = Interrupted()
    made = tiny.trainer(tmp_path, watch(tmp_path / "run.h5"), callbacks=[stop], num_train_epochs=1)
    with pytest.raises(KeyboardInterrupt):
        made.train()
    stop.on = False
    made.train()
    assert windows(tmp_path / "run.h5")["n"].tolist() == [24, 12]
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in made.model.modules())


class Functional(torch.nn.Module):
    """An attention layer whose W_O is a function's argument, and a classifier."""

    config = None

    def __init__(self):
        super().__init__()
        set_seed(5)
        self.embed, self.answer = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 2)
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.answer(self.layer(self.embed(input_ids)).mean(1))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class Struck(torch.autograd.Function):
    """The identity; Ctrl-C comes on its way back."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        raise KeyboardInterrupt


def strike(patch, model, where):
    """Ctrl-C in training's third forward or backward pass, in the middle of an attention."""
    if isinstance(model, Functional):
        owner, name = torch.nn.functional, "scaled_dot_product_attention"
    else:
        owner, name = type(model.bert.encoder.layer[0].attention.self), "forward"
    real, calls = getattr(owner, name), itertools.count(1)

    def struck(*args, **kwargs):
        nth = next(calls) if model.training else 0
        if nth == 5 and where == "forward":
            raise KeyboardInterrupt
        found = real(*args, **kwargs)
        if nth != 5:
            return found
        return (Struck.apply(found[0]), *found[1:]) if isinstance(found, tuple) else Struck.apply(found)

    patch.setattr(owner, name, struck)


def hooks(model):
    names = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_modules = sum(len(getattr(module, name)) for module in model.modules() for name in names)
    return of_modules + sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


@pytest.mark.parametrize("online", [True, "batch"])
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("build", [tiny.bert, Functional])
def test_an_interrupt_within_a_step_leaves_nothing(tmp_path, monkeypatch, build, where, online):
    """The model is untouched and can be pickled; the same trainer trains again, to the bits of one without us."""
    linear, left = torch.nn.functional.linear, []
    for name in ("alone", "listened"):
        options = watch(tmp_path / "run.h5", online=online) if name == "listened" else None
        made = tiny.trainer(tmp_path / name, options, model=build(), num_train_epochs=1, save_strategy="no")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            strike(patch, made.model, where)
            made.train()
        assert not hooks(made.model) and torch.nn.functional.linear is linear
        torch.save(made.model, tmp_path / "model.pt")
        made.model.zero_grad()
        made.train()
        assert not hooks(made.model) and torch.nn.functional.linear is linear
        assert "training_step" not in vars(made)
        left.append(tiny.left(made))
    assert tiny.same(*left)
    assert windows(tmp_path / "run.h5")["update"].tolist() == [3, 5]


def test_a_bare_callback_leaves_its_hooks_until_its_trainer_is_gone(tmp_path, monkeypatch):
    callback = HeadDynamicsCallback(tmp_path / "run.h5", **QUIET | {"online": True, "every": None})
    made = tiny.trainer(tmp_path, callback)
    model = made.model
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        strike(patch, model, "backward")
        made.train()
    assert hooks(model)
    del made, callback
    gc.collect()
    assert not hooks(model)


def test_a_training_step_of_the_users_own_is_put_back(tmp_path):
    made = tiny.trainer(tmp_path, watch(tmp_path / "run.h5"))
    own = made.training_step = functools.partial(made.training_step)
    made.train()
    assert made.training_step is own and windows(tmp_path / "run.h5")["n"].tolist() == [24, 12, 24, 12]


@pytest.mark.parametrize("options", [{"online": "token"}, {"online": True, "online_window": 0}])
def test_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match="online"):
        HeadDynamicsCallback(**options)
