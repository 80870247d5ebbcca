"""Trainings of two processes, one after the other in the same ones; what became of them is written to FOLDER/result-R.

torchrun --nproc_per_node 2 hf_ranks.py FOLDER CASE...     or by accelerate launch
"""

import contextlib
import os
import pickle
import random
import sys
from functools import partial
from pathlib import Path

import hf_tiny as tiny
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from hf_tiny import HeadDynamicsCallback, attach
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    default_data_collator,
)

from headdynamics.losses import cross_entropy

#: batches of 3 share 13 and 11 examples out of 23: no multiple of anything
UNEVEN = tiny.QUIET | {"examples": 13, "score_examples": 11, "batch_size": 3, "every": 2}
SAVED = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "per_device_eval_batch_size": 3}


def uneven(made):
    """The trainer, with 23 examples to evaluate on."""
    made.eval_dataset = made.eval_dataset[:23]
    return made


def ddp(folder, watch, **changes):
    """Accumulation of 2, the last of an epoch smaller; checkpointed layers."""
    return uneven(tiny.trainer(folder, watch, gradient_checkpointing=True, **SAVED | changes))


def compiled(folder, watch):
    """By dynamo alone, for what a backend makes of its graphs is not ours; and in bf16. The score is `eval_loss`."""
    half = {"bf16": True, "torch_compile_backend": "eager", "num_train_epochs": 1, "save_steps": 1}
    return uneven(tiny.trainer(folder, watch, metrics=None, **SAVED | half))


def padded(rows):
    """As long as the longest of them: one batch's predictions are wider than another's."""
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
        for name, value in fill.items()
    }


def words(prediction):
    """compute_metrics: right next tokens, of those that are none."""
    right = prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]
    counted = prediction.label_ids[:, 1:] != -100
    return {"accuracy": float((right & counted).sum() / counted.sum()), "width": float(prediction.predictions.shape[1])}


def language(folder, watch):
    """Sentences of 2 to 8 tokens; `watch` may be a callback alone, which has a loop of its own."""
    made = tiny.trainer(folder, None, lm=True, **SAVED | {"eval_strategy": "epoch"})
    made.data_collator, made.compute_metrics, lengths = padded, words, random.Random(2)
    made.eval_dataset = [
        {name: row[name][:n] for name in ("input_ids", "attention_mask", "labels")}
        for row, n in ((row, lengths.randint(2, 8)) for row in made.eval_dataset[:23])
    ]
    if isinstance(watch, tuple):
        made.preprocess_logits_for_metrics = lambda logits, labels: logits[..., :-1]  # the last token is never right
        made.watch = attach(made, watch[1], **watch[-1])
    elif watch is not None:
        made.add_callback(watch)
    return made


def mean_token(prediction):
    return {"mean": float(prediction.predictions.mean())}


def generated(folder, watch):
    """Beam search within the score."""
    tiny.set_seed(4)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "vocab_size": 20}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 8, "max_position_embeddings": 16}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    args = Seq2SeqTrainingArguments(
        str(folder), predict_with_generate=True, generation_max_length=7, generation_num_beams=2, num_train_epochs=2,
        save_strategy="epoch", report_to="none", use_cpu=True, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    data = [{k: v for k, v in row.items() if k != "unused"} for row in tiny.sentences(17, 2, lm=True)]
    model = BartForConditionalGeneration(BartConfig(**sizes, **heads, **ids))
    made = Seq2SeqTrainer(model, args, default_data_collator, data, data, compute_metrics=mean_token)
    made.noted = []
    if watch is not None:
        attach(made, watch[1], **watch[-1])
    return made


def online(folder, watch):
    """No step changes the model, nor does dropout: a window is the importance of its examples."""
    still = tiny.bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    made = tiny.trainer(folder, watch, model=still, learning_rate=0.0, num_train_epochs=1, save_strategy="no")
    made.train_dataset = made.train_dataset[:32]
    return made


def plain(folder, watch):
    """The score is accuracy, example by example."""
    return uneven(tiny.trainer(folder, watch, metrics=None, **SAVED | {"save_strategy": "no"}))


def fsdp(folder, watch, version=2):
    """accelerate has no FSDP for CPUs and trains without; so it is told that there are others."""
    made = plain(folder, None)
    how = {"sharding_strategy": "FULL_SHARD", "sync_module_states": False} if version == 1 else {}
    plugin = FullyShardedDataParallelPlugin(
        version, **how, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["BertLayer"]
    )
    for state in (AcceleratorState._shared_state, PartialState._shared_state):
        state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin, device=torch.device("cpu"))
    made.is_fsdp_enabled = True
    if watch is not None:
        made.watch = attach(made, watch[1], **watch[-1])
    return made


def zero(folder, watch, stage):
    """DeepSpeed; its checkpoints hold whole weights."""
    settings = {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    automatic = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    settings |= dict.fromkeys(automatic, "auto")
    return uneven(tiny.trainer(folder, watch, deepspeed=settings, save_only_model=True, **SAVED))


CASES = {
    "ddp": (ddp, {}),
    "compiled": (compiled, {"score": "eval_loss"}),
    "language": (language, {"score": "accuracy"}),
    "callback": (language, {"score": "accuracy", "compute_metrics": words}),
    "generated": (generated, {"score": "mean", "every": "epoch"}),
    "online": (online, {"online": True, "online_window": 2, "every": None}),
    "fsdp": (fsdp, {"save_weights": True}),
    "fsdp1": (partial(fsdp, version=1), {"save_weights": True}),
    **{f"zero{stage}": (partial(zero, stage=stage), {"save_weights": True}) for stage in (1, 2, 3)},
}


def options(case):
    return UNEVEN | CASES[case][1]


@contextlib.contextmanager
def own_environment():
    """transformers 4.57 leaves what it asks of accelerate (bf16, dynamo) to every training that follows."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def compare(folder, case):
    """Train without the instrument and with it: whether this process is left with the same bits, and with what."""
    found = []
    for watched in (False, True):
        path = folder / f"{case}.h5"
        watch = HeadDynamicsCallback(path, **options(case)) if case == "callback" else ("attach", path, options(case))
        made = CASES[case][0](folder / case / str(watched), watch if watched else None)
        made.train()
        found.append(left(made))
    return {"same": tiny.same(*found), "engine": type(made.model_wrapped).__name__}


def left(made):
    """What a training leaves: shards of weights and of the optimizer as they lie here, the log, the data."""
    weights = {name: getattr(p, "ds_tensor", p).detach().clone() for name, p in made.model.named_parameters()}
    if hasattr(made.model_wrapped, "zero_optimization"):  # its optimizer's states are no tensors of the model's
        made.optimizer = torch.optim.SGD(made.model.parameters())
    found = tiny.left(made)
    return {**found, "weights": local(weights), "optimizer": local(found["optimizer"])}


def local(state):
    """Each shard as a tensor."""
    if isinstance(state, dict):
        return {name: local(value) for name, value in state.items()}
    return state.to_local() if hasattr(state, "to_local") else state


class Sometimes:
    """cross_entropy that fails from the n-th of its calls on, on rank 1 alone."""

    def __init__(self, first, last):
        self.bad, self.calls = range(first, last), 0

    def __call__(self, model, batch):
        """[B]."""
        self.calls += 1
        if dist.get_rank() == 1 and self.calls in self.bad:
            raise ValueError("broken here")
        return cross_entropy(model, batch)


def failing(folder):
    """Trainings in which something fails on rank 1 alone; each is to end, with or without rows."""
    found = {}
    for case, more in {
        "a snapshot": {"loss": Sometimes(5, 7)},
        "attaching": {"compute_metrics": lambda prediction: 1 / 0 if dist.get_rank() else {"accuracy": 0.5}},
        "data": {"eval_dataset": tiny.sentences(23, 2 + dist.get_rank())},
        "online": {"online": True, "online_window": 2},
    }.items():
        path = folder / "failing" / f"{case}.h5"
        made = ddp(folder / "failing" / case, ("attach", path, UNEVEN | {"strict": False} | more), save_strategy="no")
        if case == "online" and dist.get_rank() == 1:
            made.add_callback(Deaf(made.watch))
        made.train()
        found[case] = made.state.global_step, made.watch.off
    return found


class Deaf(TrainerCallback):
    """Breaks what listens to the steps, at the first."""

    def __init__(self, watch):
        self.watch = watch

    def on_step_begin(self, args, state, control, **seen):
        if state.global_step == 0:
            self.watch.online.online._source = None


if __name__ == "__main__":
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    found = {}
    for case in cases:
        with own_environment():
            found[case] = failing(folder) if case == "failing" else compare(folder, case)
    (folder / f"result-{os.environ['RANK']}").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()
