"""Curves by removal and the knee in real trainings: the scores are those of masks, whatever library measures them."""

import fairseq_tiny as fairseq
import hf_tiny as hf
import numpy as np
import pytest
import torch
from headdynamics.analysis.load import load_run
from transformers import BartConfig, BartForConditionalGeneration, Seq2SeqTrainer, Seq2SeqTrainingArguments

import headdynamics as hd
from headdynamics.keep import keep_mask
from headdynamics.orders import random_order
from headdynamics.points import cuttable
from headdynamics.stillness import still


def by_masks(model, order, score):
    heads, found = hd.find_heads(model), []
    for fraction in hd.TENTHS:
        with hd.masked(heads, keep_mask(order, fraction, len(heads))):
            found.append(score(model))
    return found


def test_the_trainers_own_evaluation(tmp_path):
    """`compute_metrics` gets the same, and never the few predictions of the proof."""
    sizes = []

    def metrics(prediction):
        sizes.append(len(prediction.label_ids))
        return {"spread": float(prediction.predictions.std()), "first": float(prediction.predictions[0, 0])}

    options = {**hf.QUIET, "fractions": hd.TENTHS, "orders": ("random-1",), "score": "spread"}
    trainer = hf.trainer(tmp_path / "out", ("attach", tmp_path / "run.h5", options), metrics=metrics)
    trainer.train()
    ours = [n for n in sizes if n != 24]
    assert set(ours) == {10}
    observer = trainer.watch.observer
    with still(trainer.model):
        assert all(cuttable(trainer.model, observer.heads, observer.score))
        expected = by_masks(trainer.model, random_order(8, 1), observer.score)
    assert load_run(tmp_path / "run.h5").curve["score"].values[-1, 0] == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) > 5


def test_the_trainers_own_generation(tmp_path):
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=20, max_position_embeddings=16, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=1,
        eos_token_id=2, bos_token_id=0, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)

    def metrics(prediction):
        return {"sum": float(np.where(prediction.predictions > 0, prediction.predictions, 0).sum())}

    args = Seq2SeqTrainingArguments(
        str(tmp_path), predict_with_generate=True, generation_max_length=7, report_to="none", use_cpu=True,
        per_device_eval_batch_size=5, disable_tqdm=True, num_train_epochs=1, max_steps=2,
    )  # fmt: skip
    rows = hf.sentences(20, 1, lm=True)
    trainer = Seq2SeqTrainer(model, args, train_dataset=rows, eval_dataset=rows, compute_metrics=metrics)
    options = {**hf.QUIET, "fractions": hd.TENTHS, "orders": ("random-1",), "score": "sum", "score_examples": 20}
    watch = hd.attach(trainer, tmp_path / "run.h5", **options)
    trainer.train()
    with still(model):
        assert all(cuttable(model, watch.observer.heads, watch.observer.score))
        expected = by_masks(model, random_order(12, 1), watch.observer.score)
    assert load_run(tmp_path / "run.h5").curve["score"].values[-1, 0].tolist() == expected
    assert len(set(expected)) > 2


def test_a_trainer_does_not_notice_the_knee(tmp_path):
    options = {**hf.QUIET, "fractions": "knee", "knee_tolerance": 0.05, "knee_confidence": 0.8, "score": "loss"}
    left = []
    for watch in (("attach", tmp_path / "run.h5", options), None):
        trainer = hf.trainer(tmp_path / str(watch is None), watch, metrics=None)
        trainer.train()
        left.append(hf.left(trainer))
    assert hf.same(*left)
    run = load_run(tmp_path / "run.h5")
    assert not run.failures and run.knee["fraction"].dims == ("snapshot", "order")
    assert np.isfinite(run.knee["bound"].values).all()
    assert run.signature["settings"]["knee"] == {"tolerance": 0.05, "confidence": 0.8}


@pytest.mark.parametrize("score", ["bleu", "accuracy"])
def test_fairseq_finds_the_knee(score, data, tmp_path):
    """Of BLEU by beam search, and of what the task reports as a plain number."""
    words = ["--hd-fractions", "knee", "--hd-knee-tolerance", "0.2", "--hd-strict", "--max-update", "6"]
    words += ["--hd-score", score, "--hd-every", "never", "--hd-orders", "importance,random-1:decoder"]
    words += ["--report-accuracy"] if score == "accuracy" else fairseq.BLEU
    assert "done training" in fairseq.run(fairseq.command(data, tmp_path, *words))
    run = load_run(tmp_path / "headdynamics.h5")
    fraction, evaluations = (run.knee[name].values[-1] for name in ("fraction", "evaluations"))
    assert not run.failures and ((fraction >= 0) & (fraction <= 1)).all()
    assert (evaluations <= [1 + 5, 1 + 4]).all() and (evaluations > 1).all()
    assert run.signature["settings"]["knee"] == {"tolerance": 0.2, "confidence": 0.95}
