"""The default loss, branch by branch, against a loop written out."""

import math
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from models import CASES, IDS, SIZES, TOKENS

from headdynamics.losses import NoLabelsError, cross_entropy, per_example, predicts_next

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0]])


def nll(row, label):
    """-log softmax(row)[label], in floats."""
    row = [float(x) for x in row]
    return math.log(sum(math.exp(x) for x in row)) - row[label]


def answer(logits, labels, **more):
    return per_example({"logits": logits}, {"labels": labels}, **more).tolist()


def test_classification():
    assert answer(LOGITS, torch.tensor([0, 2])) == pytest.approx([nll(LOGITS[0], 0), nll(LOGITS[1], 2)], rel=1e-6)
    assert answer(LOGITS, torch.tensor([[0], [2]])) == pytest.approx([nll(LOGITS[0], 0), nll(LOGITS[1], 2)], rel=1e-6)
    assert answer(LOGITS, torch.tensor([-100, 0]))[0] == 0


def test_regression():
    assert answer(torch.tensor([[1.5], [-1.0]]), torch.tensor([1.0, 1.0])) == [0.25, 4.0]
    assert answer(torch.tensor([[1.5], [-1.0]]), torch.tensor([1, 1])) == [0.25, 4.0]  # whole numbers, one output
    assert answer(LOGITS, torch.zeros(2, 3), regression=True) == pytest.approx([5 / 3, 1 / 6])


def test_several_labels():
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    expected = [
        sum(math.log1p(math.exp(-x if y else x)) for x, y in zip(row.tolist(), label.tolist(), strict=True)) / 3
        for row, label in zip(LOGITS, labels, strict=True)
    ]
    assert answer(LOGITS, labels) == pytest.approx(expected, rel=1e-6)


TOKEN_LOGITS = torch.arange(24.0).reshape(2, 4, 3).sin() * 3
TOKEN_LABELS = torch.tensor([[0, 1, 2, 1], [2, -100, 0, -100]])


def test_tokens_are_averaged_over_an_examples_own():
    expected = [
        sum(nll(TOKEN_LOGITS[0, t], label) for t, label in enumerate([0, 1, 2, 1])) / 4,
        (nll(TOKEN_LOGITS[1, 0], 2) + nll(TOKEN_LOGITS[1, 2], 0)) / 2,
    ]
    assert answer(TOKEN_LOGITS, TOKEN_LABELS) == pytest.approx(expected, rel=1e-5)


def test_causal_labels_are_for_the_token_before():
    expected = [
        sum(nll(TOKEN_LOGITS[0, t], label) for t, label in enumerate([1, 2, 1])) / 3,
        nll(TOKEN_LOGITS[1, 1], 0),
    ]
    assert answer(TOKEN_LOGITS, TOKEN_LABELS, shifted=True) == pytest.approx(expected, rel=1e-5)
    choices = per_example({"logits": TOKEN_LOGITS[None]}, {"labels": TOKEN_LABELS[None]}, shifted=True)
    assert choices.tolist() == pytest.approx([(expected[0] * 3 + expected[1]) / 4], rel=1e-5)


def test_an_example_without_targets_has_loss_zero():
    assert answer(TOKEN_LOGITS, torch.full((2, 4), -100)) == [0, 0]


def test_question_answering():
    batch = {"start_positions": torch.tensor([1, 0]), "end_positions": torch.tensor([[2], [7]])}  # 7 is cut off
    found = per_example({"start_logits": LOGITS, "end_logits": -LOGITS}, batch).tolist()
    assert found == pytest.approx([(nll(LOGITS[0], 1) + nll(-LOGITS[0], 2)) / 2, nll(LOGITS[1], 0) / 2], rel=1e-6)


def test_bfloat16_logits_are_widened():
    found = per_example({"logits": LOGITS.bfloat16()}, {"labels": torch.tensor([0, 2])})
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([nll(LOGITS[0], 0), nll(LOGITS[1], 2)], rel=1e-6)


def tiny_bert(head, **more):
    torch.manual_seed(0)
    config = hf.BertConfig(vocab_size=16, max_position_embeddings=16, pad_token_id=1, **SIZES, **more)
    return getattr(hf, f"BertFor{head}")(config).eval()


HEADS = {
    "classes": (tiny_bert("SequenceClassification", num_labels=3), torch.tensor([2])),
    "number": (tiny_bert("SequenceClassification", num_labels=1), torch.tensor([0.5])),
    "several": (tiny_bert("SequenceClassification", num_labels=3), torch.tensor([[1.0, 0.0, 1.0]])),
    "numbers": (
        tiny_bert("SequenceClassification", num_labels=3, problem_type="regression"),
        torch.tensor([[1.0, 0.0, 2.0]]),
    ),
    "tokens": (tiny_bert("TokenClassification", num_labels=3), torch.tensor([[0, 1, -100, 2, 1, 0]])),
    "masked": (tiny_bert("MaskedLM"), torch.tensor([[-100, 7, -100, -100, 6, -100]])),
    "gpt2": (CASES["gpt2"].build(), IDS[:1]),
    "bart": (CASES["bart"].build(), IDS[:1]),
}


@pytest.mark.parametrize("name", HEADS)
def test_one_example_gives_the_models_own_loss(name):
    """A second opinion: transformers' loss of a batch of one."""
    model, labels = HEADS[name]
    batch = {"input_ids": IDS[:1], "attention_mask": TOKENS[:1], "labels": labels}
    assert cross_entropy(model, batch).item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def test_which_models_predict_the_next_token():
    expected = {"GPT2LMHeadModel": True, "LlamaForCausalLM": True, "GPT2DoubleHeadsModel": True}
    expected |= {"BertForMaskedLM": False, "XLMWithLMHeadModel": False, "ViTForImageClassification": False}
    assert {name: predicts_next(type(name, (torch.nn.Module,), {})()) for name in expected} == expected
    seq2seq = type("OddLMHeadModel", (torch.nn.Module,), {"config": SimpleNamespace(is_encoder_decoder=True)})()
    assert predicts_next(seq2seq) is False


DECODER = dict(
    vocab_size=16, max_position_embeddings=16, d_model=16, decoder_layers=1, decoder_attention_heads=4,
    decoder_ffn_dim=32, pad_token_id=1, eos_token_id=2, bos_token_id=0, decoder_start_token_id=2,
    forced_eos_token_id=None,
)  # fmt: skip


@pytest.mark.parametrize("family", ["Bart", "MBart", "Marian", "Pegasus", "Blenderbot", "Mvp", "PLBart"])
def test_decoders_cut_from_an_encoder_decoder_take_labels_in_place(family):
    torch.manual_seed(0)
    more = {"decoder_vocab_size": 16} if family == "Marian" else {}
    model = getattr(hf, f"{family}ForCausalLM")(getattr(hf, f"{family}Config")(**DECODER, **more)).eval()
    batch = {"input_ids": IDS[:1], "labels": IDS[:1]}
    with torch.no_grad():
        assert cross_entropy(model, batch).item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    assert not predicts_next(model)


@pytest.mark.parametrize("name", ["labels", "label", "label_ids"])
def test_labels_are_found_by_each_name(name):
    batch = {name: [0, 2]}
    assert per_example({"logits": LOGITS}, batch).tolist() == answer(LOGITS, torch.tensor([0, 2]))


def test_no_labels():
    with pytest.raises(NoLabelsError) as error:
        per_example({"logits": LOGITS}, {"input_ids": 1, "labels": None})
    assert str(error.value) == (
        "the batch has no labels (it has input_ids, labels): give examples with one of labels, label, label_ids, "
        "or a loss of your own, loss(model, batch) -> [B]"
    )
