"""Sorted and trimmed examples measure what unsorted, padded ones do; where that is not so they are left alone."""

from functools import partial

import hf_tiny as tiny
import numpy as np
import pytest
import torch
from headdynamics.plugins.hf_examples import Examples
from headdynamics.plugins.hf_padding import length, padding_is_nothing, trimmed
from transformers import (
    ConvBertConfig,
    ConvBertForSequenceClassification,
    MobileBertConfig,
    MobileBertForSequenceClassification,
)

import headdynamics as hd
from headdynamics.estimators import sensitivity, token_positions
from headdynamics.losses import cross_entropy
from headdynamics.signature import fingerprint

IDS = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])


def rows(n, seed=0, longest=14):
    """Sentences of 2 to `longest` tokens, unsorted."""
    draw = np.random.default_rng(seed)
    made = []
    for i in range(n):
        ids = draw.integers(4, 20, draw.integers(2, longest + 1)).tolist()
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": i % 2})
    return made


class Padding:
    """Pads to the longest, or to `width`; notes how many it was given."""

    def __init__(self, width=None):
        self.width, self.calls = width, []

    def __call__(self, examples):
        self.calls.append(len(examples))
        width = self.width or max(len(example["input_ids"]) for example in examples)
        padded = {
            name: torch.tensor([example[name] + [0] * (width - len(example[name])) for example in examples])
            for name in ("input_ids", "attention_mask")
        }
        return padded | {"labels": torch.tensor([example["labels"] for example in examples])}


def examples(model, data, collate, **more):
    proof = partial(padding_is_nothing, model, cross_entropy)
    return Examples(data, collate, 1000, 4, 0, torch.device("cpu"), proof, **more)


def work(made):
    """Positions that a pass computes."""
    return sum(batch["input_ids"].numel() for batch in made)


@pytest.mark.parametrize("width", [None, 16], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("nested", [False, True])
def test_the_same_numbers_example_by_example_for_less_work(width, nested):
    model, data = tiny.bert().double().eval(), rows(45)
    plain = Examples(data, Padding(width), 1000, 4, 0, torch.device("cpu"), nested=nested)
    made = examples(model, data, Padding(width), nested=nested)
    tokens = sum(len(row["input_ids"]) for row in data)
    assert tokens <= work(made) < 0.9 * work(plain)
    assert all(bool(batch["attention_mask"].any(0).all()) for batch in made)
    heads = hd.find_heads(model)
    found, expected = (sensitivity(model, heads, e, cross_entropy, token_positions) for e in (made, plain))
    for name in ("signed", "absolute", "loss"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-9)
    assert not np.allclose(found.signed, np.roll(found.signed, 1, 0), rtol=1e-3)
    scores = [hd.mean_loss(e)(model).stats for e in (made, plain)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)
    assert np.array_equal(*(hd.accuracy(e)(model).stats for e in (made, plain)))
    assert [row["labels"] for row in made.dataset] == [row["labels"] for row in plain.dataset]


def test_every_part_is_sorted_and_some_of_them_are_the_first_of_all():
    model, data = tiny.bert().eval(), rows(64)
    made = examples(model, data, Padding(), nested=True)
    assert made.sizes == (4, 4, 8, 12, 16, 24, 32, 48, 64)
    assert sorted(made.places) == list(range(64)) and made.places.tolist() != list(range(64))
    scores = hd.mean_loss(made)
    whole = scores(model).stats
    for taken, size in enumerate(made.sizes, 1):
        made.taken = taken
        assert sorted(made.places) == list(range(size)) == list(range(len(made.dataset)))
        assert [len(batch["labels"]) for batch in made] == [4] * (size // 4)
        np.testing.assert_allclose(scores(model).stats, whole[:size], rtol=1e-5)
    lengths = [len(row["input_ids"]) for row in data]
    first = [len(row["input_ids"]) for row in made.dataset[:32]]
    assert abs(np.mean(first) - np.mean(lengths)) < 1.5  # a random half, not the shortest


def small(config, model):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
    made = model(config(vocab_size=20, max_position_embeddings=16, embedding_size=16, **sizes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (ConvBertConfig, ConvBertForSequenceClassification),
        (partial(MobileBertConfig, intra_bottleneck_size=16), MobileBertForSequenceClassification),
    ],
    ids=["convbert", "mobilebert"],
)
def test_a_model_that_feels_its_padding_keeps_it(config, model):
    made, data = small(config, model), rows(20)
    assert work(examples(made, data, Padding(16))) == 20 * 16
    assert examples(made, data, Padding(16)).places.tolist() == list(range(20))


class Pooling(torch.nn.Module):
    """BERT whose classifier takes the mean over all positions, those of the padding as well."""

    def __init__(self, by_token=False):
        super().__init__()
        self.bert, self.by_token = tiny.bert().bert, by_token
        self.out = torch.nn.Linear(16, 20 if by_token else 2)

    def forward(self, input_ids, attention_mask, labels=None):
        states = self.bert(input_ids, attention_mask).last_hidden_state
        pooled = states.mean(1)
        return {"logits": self.out(states + pooled[:, None] if self.by_token else pooled)}


def values_of_zero(model):
    for layer in model.bert.encoder.layer:
        torch.nn.init.zeros_(layer.attention.self.value.weight)
        torch.nn.init.zeros_(layer.attention.self.value.bias)


def output_of_zero(model):
    torch.nn.init.zeros_(model.out.weight)
    torch.nn.init.zeros_(model.out.bias)


@pytest.mark.parametrize("change", [lambda _: None, output_of_zero, values_of_zero, lambda m: m.bfloat16()])
def test_padding_that_a_loss_does_not_show_is_not_taken_for_nothing(change):
    model = Pooling().eval()
    change(model)
    assert work(examples(model, rows(20), Padding(16))) == 20 * 16
    assert work(examples(Pooling().bert.eval(), rows(20), Padding(16))) == 20 * 16  # no loss at all


@pytest.mark.parametrize("nested", [False, True])
def test_the_fingerprint_is_that_of_the_draw_sorted_or_not(nested):
    data, device = rows(45), torch.device("cpu")
    plain = Examples(data, Padding(), 30, 4, 0, device)
    made = Examples(data, Padding(), 30, 4, 0, device, lambda *_: True, nested=nested)
    assert made.places.tolist() != list(range(30))
    assert fingerprint(made) == fingerprint(plain) == fingerprint(plain.batches) != fingerprint(made.batches)
    assert fingerprint(Examples(data, Padding(), 30, 4, 1, device)) != fingerprint(plain)


def test_a_collator_that_draws_gives_what_it_gave_without_a_proof():
    data, device = rows(40), torch.device("cpu")
    plain, refused, proved = (
        Examples(data, masked_targets(0.3), 40, 4, 0, device, proof)
        for proof in (None, lambda *_: False, lambda *_: True)
    )
    first = fingerprint(plain)
    assert all(fingerprint(examples.batches) == first for examples in (plain, refused, proved))


def masked_targets(share, seed=0):
    """Labels at some tokens, drawn by the collator."""

    def collate(data):
        batch = Padding(16)(data)
        ids, hidden = batch["input_ids"], batch["attention_mask"] == 0
        return batch | {"labels": ids.masked_fill((torch.rand(ids.shape) > share) | hidden, -100)}

    return collate


@pytest.mark.parametrize("share", [0.15, 0.0])
def test_examples_without_a_target_prove_nothing(share):
    model, data = Pooling(by_token=True).eval(), rows(40)
    for seed in range(10):
        proof = partial(padding_is_nothing, model, cross_entropy)
        made = Examples(data, masked_targets(share), 40, 4, seed, torch.device("cpu"), proof)
        assert made.places.tolist() == list(range(40))


def test_a_model_that_sees_no_mask_keeps_its_padding():
    def without_mask(data):
        return {name: value for name, value in Padding(16)(data).items() if name != "attention_mask"}

    assert work(examples(tiny.bert().eval(), rows(20), without_mask)) == 20 * 16


def test_what_cannot_be_tried_is_left_alone():
    def failing(model, batch):
        raise KeyError

    model = tiny.bert().eval()
    assert not padding_is_nothing(model, failing, [{}], [{}])
    model.config.model_type = "big_bird"
    assert work(examples(model, rows(20), Padding(16))) == 20 * 16


def test_images_and_streams_stay_in_their_order():
    def stacked(data):
        return {"pixel_values": torch.stack(data)}

    images = [torch.full((3, 4, 4), float(i)) for i in range(9)]
    made = examples(tiny.bert().eval(), images, stacked)
    assert [float(row[0, 0, 0]) for batch in made for row in batch["pixel_values"]] == list(range(9))
    stream = Examples(iter(rows(9)), Padding(), 7, 4, 0, torch.device("cpu"))
    assert [len(batch["labels"]) for batch in stream] == [4, 3]


def test_examples_are_collated_as_drawn_for_the_proof_and_as_sorted_and_never_again():
    collate = Padding()
    made = examples(tiny.bert().eval(), rows(10), collate)
    list(made), list(made)
    assert collate.calls == [4, 4, 2, 5, 4, 4, 2]


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ({"input_ids": [1, 2, 3, 0], "attention_mask": [1, 1, 0, 0]}, 2),
        ({"input_ids": torch.ones(5), "attention_mask": torch.tensor([0, 1, 1])}, 2),
        ({"input_ids": [1, 2, 3], "text": "a long one"}, 3),
        ({"attention_mask": [[1, 1], [1]], "input_ids": [[4, 5], [6]]}, 2),
        ({"text": "four", "label": 1}, 4),
        (("sixsix", 0), 6),
        ({"label": torch.tensor(3)}, 0),
        (7, 0),
    ],
)
def test_length(example, expected):
    assert length(example) == expected


def test_trimmed_cuts_what_no_example_needs():
    batch = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": MASK, "labels": torch.tensor([0, 1])}
    cut = trimmed(batch)
    assert [cut[name].tolist() for name in cut] == [IDS[:, :3].tolist(), *[MASK[:, :3].tolist()] * 2, [0, 1]]
    assert batch["input_ids"].shape == (2, 5)
    labels = torch.full((2, 5), -100)
    assert trimmed(batch | {"labels": labels})["labels"].shape == (2, 3)
    labels[1, 3] = 4  # a decoder's target may be longer than its source
    assert trimmed(batch | {"labels": labels})["input_ids"].shape == (2, 4)


@pytest.mark.parametrize(
    "more",
    [
        {"attention_mask": MASK.flip(1)},
        {"attention_mask": torch.ones_like(MASK)},
        {"attention_mask": MASK[:, None, None]},
        {"pairs": torch.zeros(2, 5, 5)},
        {"positions": torch.arange(5)},
        {"decoder_input_ids": IDS},
        {"inputs_embeds": torch.zeros(2, 5, 3)},
        {"labels": torch.zeros(2, 5)},
        {"text": ["a", "b"]},
    ],
    ids=lambda more: next(iter(more)),
)
def test_trimmed_leaves_alone_what_it_does_not_know(more):
    batch = {"input_ids": IDS, "attention_mask": MASK} | more
    assert trimmed(batch).keys() == batch.keys()
    assert all(trimmed(batch)[name] is batch[name] for name in batch)


@pytest.mark.parametrize(("estimator", "cut"), [("example", True), ("batch", False), ("token", True)])
def test_what_the_trainer_evaluates_is_never_sorted(tmp_path, estimator, cut):
    """Nor are the examples of an estimator that depends on how they are batched."""
    trainers, options = {}, tiny.QUIET | {"estimator": estimator}
    for metrics in (tiny.accuracy, None):
        trainer = tiny.trainer(tmp_path / "out", ("attach", tmp_path / "run.h5", options), metrics=metrics, max_steps=1)
        trainer.data_collator, trainer.eval_dataset = Padding(16), rows(24)
        trainer.train_dataset = rows(24, 1)
        trainer.train()
        trainers[metrics] = trainer.watch.observer
    for observer in trainers.values():
        assert (work(observer.batches) < 12 * 16) is cut
    assert work(trainers[tiny.accuracy].score.examples) == 10 * 16
    assert work(trainers[None].score.batches) < 10 * 16
