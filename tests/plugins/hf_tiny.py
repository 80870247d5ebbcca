"""Tiny BERT and GPT-2 with random weights, data that can be learned, and a Trainer that notes what it trains on."""

import itertools
import os
import random
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from headdynamics.plugins.hf_trainer import HeadDynamicsCallback, attach
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from headdynamics.observer import Observer
from headdynamics.record import hdf5

torch.set_num_threads(1)  # tiny matrices: threads would only wait for each other
FEW = {"examples": 12, "score_examples": 10, "fractions": (0, 0.5, 1), "orders": ("importance", "random-1")}
QUIET = FEW | {"tensorboard": False, "strict": True}
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6)
#: transformers 4.57 and later refuse to open an optimizer's state by an older torch, whatever is in it
needs_resume = pytest.mark.skipif(OLD, reason="transformers opens no optimizer.pt with torch before 2.6")


def bert(**changes):
    """2 layers of 4 heads, dropout on."""
    set_seed(5)
    config = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"intermediate_size": 16, "max_position_embeddings": 16, "num_labels": 2}
    return BertForSequenceClassification(BertConfig(**config | changes))


def gpt2():
    """2 layers of 2 heads, dropout on."""
    set_seed(6)
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=2))


def sentences(n, seed, lm=False):
    """Classified by whether token 3 is there; or, for a language model, each token the one before plus one."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        start = rng.randrange(4, 12)
        ids = [start + k for k in range(8)] if lm else [rng.randrange(4, 20) for _ in range(8)]
        if not lm and i % 2:
            ids[rng.randrange(8)] = 3
        labels = ids if lm else i % 2
        rows.append({"input_ids": ids, "attention_mask": [1] * 8, "labels": labels, "unused": i})
    return rows


def accuracy(prediction):
    """compute_metrics."""
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"right": float(right.sum()), "accuracy": float(right.mean())}


class NotingTrainer(Trainer):
    """Notes the data of each training step."""

    def training_step(self, model, inputs, *rest):
        self.noted = [*getattr(self, "noted", []), inputs["input_ids"].tolist()]
        return super().training_step(model, inputs, *rest)


def trainer(folder, watch=None, *, lm=False, evaluation=True, callbacks=(), model=None, metrics=accuracy, **changes):
    """A Trainer of 2 epochs of 5 updates; `watch`: its callback, or ("attach", options)."""
    settings = {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 7,
        "gradient_accumulation_steps": 2,
        "eval_strategy": "epoch" if evaluation else "no",
        "save_strategy": "epoch",
        "logging_steps": 1,
        "learning_rate": 0.01,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    attached = isinstance(watch, tuple)
    made = NotingTrainer(
        model or (gpt2() if lm else bert()),
        TrainingArguments(**settings | changes),
        train_dataset=sentences(36, 1, lm),
        eval_dataset=sentences(24, 2, lm) if evaluation else None,
        data_collator=default_data_collator,
        compute_metrics=None if lm else metrics,
        callbacks=[*callbacks, *([watch] if watch and not attached else [])],
    )
    if attached:
        made.watch = attach(made, *watch[1:-1], **watch[-1])
    return made


def rows(path):
    """The run file's snapshots as columns."""
    with h5py.File(path, "r") as file:
        columns = {name: file[f"snapshots/{name}"][:] for name in ("update", "epoch", "score", "n_importance")}
        texts = {name: file[f"snapshots/{name}"].asstr()[:].tolist() for name in ("status", "checkpoint")}
        curve = {"curve": file["curve/score"][:], "metric": file.attrs["metric"], "seen": file["importance/mean"][:]}
        return {name: column.tolist() for name, column in columns.items()} | texts | curve


def same(one, other):
    """Equal bit for bit, whatever the nesting."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (isinstance(one, float) and np.isnan(one) and np.isnan(other))


def left(made):
    """What a training leaves behind: weights, optimizer, the log without its clock, and the data it saw."""
    clock = ("runtime", "per_second")
    log = [{k: v for k, v in entry.items() if not any(c in k for c in clock)} for entry in made.state.log_history]
    for entry in log:
        entry.pop("eval_model_preparation_time", None)
    return {
        "weights": {k: v.clone() for k, v in made.model.state_dict().items()},
        "optimizer": made.optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "log": log,
        "data": made.noted,
    }


def hang(where, nth, mark):
    """Stop for good within the n-th snapshot, when it is measured or appended but not yet in place."""
    owner, name = {"measure": (Observer, "_measure"), "write": (hdf5, "append")}[where]
    original, calls = getattr(owner, name), itertools.count(1)

    def stuck(*args, **kwargs):
        result = original(*args, **kwargs)
        if next(calls) == int(nth):
            Path(mark).touch()
            time.sleep(600)
        return result

    setattr(owner, name, stuck)


if __name__ == "__main__":  # a process of its own, to be killed: FOLDER RUN_FILE [CHECKPOINT]
    folder, path, *checkpoint = sys.argv[1:]
    if "HD_TEST_HANG" in os.environ:
        hang(*os.environ["HD_TEST_HANG"].split(":"))
    watched = HeadDynamicsCallback(path, eval_dataset=sentences(24, 2), data_collator=default_data_collator, **QUIET)
    trainer(folder, watched, num_train_epochs=4).train(resume_from_checkpoint=(checkpoint or [None])[0])
