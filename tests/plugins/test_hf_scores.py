"""The curve at fraction 0 is the Trainer's own number, and the examples are those that were asked for."""

import json

import h5py
import hf_tiny as tiny
import numpy as np
import pytest
import torch
from headdynamics.plugins.hf_examples import Examples, drawn
from hf_tiny import QUIET, HeadDynamicsCallback, attach
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    default_data_collator,
)

WHOLE = QUIET | {"score_examples": 1000}


class Evaluations(TrainerCallback):
    """Keeps the metrics of each evaluation."""

    def __init__(self):
        self.metrics = []

    def on_evaluate(self, args, state, control, metrics, **_):
        self.metrics.append(dict(metrics))


def run(tmp_path, how="attach", lm=False, **options):
    """Train, watched; the curve's first points and each evaluation's metrics."""
    path, kept = tmp_path / "run.h5", Evaluations()
    options = WHOLE | options
    watch = HeadDynamicsCallback(path, **options) if how == "callback" else ("attach", path, options)
    tiny.trainer(tmp_path / "out", watch, lm=lm, callbacks=[kept]).train()
    return tiny.rows(path), kept.metrics


@pytest.mark.parametrize("how", ["attach", "callback"])
@pytest.mark.parametrize("score", ["accuracy", "eval_accuracy", "eval_loss", "right"])
def test_fraction_0_is_the_trainers_own_number(tmp_path, how, score):
    options = {} if how == "attach" else {"compute_metrics": tiny.accuracy}
    rows, metrics = run(tmp_path, how, score=score, **options)
    assert rows["metric"] == score.removeprefix("eval_")
    assert rows["curve"][:, 0, 0].tolist() == [m[f"eval_{rows['metric']}"] for m in metrics]
    assert rows["curve"][:, 1, 0].tolist() == rows["score"]
    assert score != "eval_loss" or len(set(rows["curve"][1, 0])) == 3  # pruned heads are felt


def test_a_language_models_eval_loss_is_the_trainers_own(tmp_path):
    rows, metrics = run(tmp_path, lm=True, score="eval_loss")
    assert rows["score"] == [m["eval_loss"] for m in metrics]


def test_without_compute_metrics_scores_are_per_example(tmp_path):
    path, kept = tmp_path / "run.h5", Evaluations()
    tiny.trainer(tmp_path / "out", HeadDynamicsCallback(path, **WHOLE), callbacks=[kept]).train()
    with h5py.File(path) as file:
        assert file.attrs["metric"] == "accuracy" and file.attrs["greater_is_better"]
        assert file["snapshots/n_score"][:].tolist() == [24, 24]
        assert np.isfinite(file["curve/stderr"][:, 0, 0]).all()
        theirs = [m["eval_accuracy"] for m in kept.metrics]
        assert file["snapshots/score"][:].tolist() == pytest.approx(theirs, abs=1e-15)


@pytest.mark.parametrize(("lm", "name"), [(True, "loss"), (False, "accuracy")])
def test_default_score(tmp_path, lm, name):
    assert run(tmp_path, lm=lm)[0]["metric"] == name


def test_lower_is_better_is_known(tmp_path):
    run(tmp_path, score="eval_loss")
    with h5py.File(tmp_path / "run.h5") as file:
        assert not file.attrs["greater_is_better"]
        settings = json.loads(file.attrs["signature"])["settings"]
    assert settings["examples"] == 12 and settings["score_examples"] == 24 and settings["seed"] == 0
    assert settings["score"] == "loss" and settings["source"] == "evaluation"


def test_the_draw_is_seeded_without_replacement_and_in_order():
    first = drawn(range(1000), 50, seed=3)
    assert first == drawn(range(1000), 50, seed=3) == sorted(set(first))
    assert len(first) == 50 and first != drawn(range(1000), 50, seed=4)
    assert drawn(range(5), 50, seed=3) == [0, 1, 2, 3, 4]
    assert drawn(iter(range(100)), 3, seed=3) == [0, 1, 2]  # a stream


class Masking:
    """A collator that draws, from a generator of its own and from torch's."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, rows):
        """Random numbers beside the ids."""
        own = torch.rand(len(rows), generator=self.generator)
        return {"own": own, "torch": torch.rand(len(rows)), "ids": torch.tensor(rows)}


def test_a_collator_that_draws_gives_the_same_examples_and_keeps_its_place():
    collate = Masking()
    made = [Examples(list(range(10)), collate, 7, 3, 0, torch.device("cpu")) for _ in range(2)]
    assert tiny.same(list(made[0]), list(made[1]))
    assert tiny.same(list(made[0]), list(made[0]))
    assert [len(batch["ids"]) for batch in made[0]] == [3, 3, 1]
    assert torch.equal(collate.generator.get_state(), Masking().generator.get_state())


def test_the_trainers_label_smoothing_does_not_eat_our_labels(tmp_path):
    path = tmp_path / "run.h5"
    watch = ("attach", path, WHOLE | {"score": "eval_loss"})
    tiny.trainer(tmp_path / "out", watch, label_smoothing_factor=0.1).train()
    assert tiny.rows(path)["status"] == ["ok", "ok"]


def test_one_of_several_evaluation_sets_by_name(tmp_path):
    path = tmp_path / "run.h5"
    trainer = tiny.trainer(tmp_path / "out", ("attach", path, WHOLE | {"eval_dataset": "second"}))
    trainer.eval_dataset = {"first": tiny.sentences(8, 7), "second": tiny.sentences(9, 8)}
    trainer.train()
    with h5py.File(path) as file:
        assert json.loads(file.attrs["signature"])["settings"]["score_examples"] == 9
    assert tiny.rows(path)["update"] == [5, 10]


def test_generated_text_is_scored_as_the_trainer_scores_it(tmp_path):
    tiny.set_seed(4)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "vocab_size": 20}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 8, "max_position_embeddings": 16}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    model = BartForConditionalGeneration(BartConfig(**sizes, **heads, **ids))

    def mean_token(prediction):
        return {"mean": float(prediction.predictions.mean())}

    kept, path = Evaluations(), tmp_path / "run.h5"
    words = {"predict_with_generate": True, "generation_max_length": 7, "generation_num_beams": 2}
    args = Seq2SeqTrainingArguments(
        str(tmp_path / "out"), eval_strategy="epoch", num_train_epochs=2, report_to="none", use_cpu=True, **words
    )
    data = [{k: v for k, v in row.items() if k != "unused"} for row in tiny.sentences(18, 2, lm=True)]
    trainer = Seq2SeqTrainer(
        model, args, default_data_collator, data, data, compute_metrics=mean_token, callbacks=[kept]
    )
    attach(trainer, path, **WHOLE, score="mean")
    trainer.train()
    assert tiny.rows(path)["score"] == [m["eval_mean"] for m in kept.metrics]


def test_metrics_by_batch_are_the_trainers_own(tmp_path):
    right = []

    def counted(prediction, compute_result):
        right.append((prediction.predictions.argmax(-1) == prediction.label_ids).float().sum().item())
        if compute_result:
            total = sum(right)
            right.clear()
            return {"accuracy": total}
        return {}

    path, kept = tmp_path / "run.h5", Evaluations()
    watch = ("attach", path, WHOLE)
    tiny.trainer(tmp_path / "out", watch, callbacks=[kept], metrics=counted, batch_eval_metrics=True).train()
    assert tiny.rows(path)["score"] == [m["eval_accuracy"] for m in kept.metrics]


def test_examples_for_the_models_signature_only():
    from headdynamics.plugins.hf_measures import kept_columns

    collate = kept_columns(tiny.bert(), default_data_collator, None)
    assert set(collate(tiny.sentences(2, 1))) == {"input_ids", "attention_mask", "labels"}
