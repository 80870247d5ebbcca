"""What taking heads out saves (Michel et al. 2019, table 4): parameters, memory, speed, against masking and the bound.

python benchmarks/pruned_speed.py                                   # MiniLM on Rotten Tomatoes sentences
python benchmarks/pruned_speed.py --checkpoint RUN/checkpoint_best.pt   # and a fairseq translation model

Whole, masked and pruned model take turns over the same batches in one process, on one thread; time is the CPU time of
that process, which other processes on the machine hardly change; the speed-up is the median of the ratios of
neighbouring turns. The bound is what the removed multiply-adds would save if time were work. The translation model is
run with teacher forcing: the same work whatever it writes.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import gc
import itertools
import json
import logging
import math
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from headdynamics.analysis.tell_speeds import tell_speeds
from rich.console import Console
from torch.nn.functional import log_softmax
from torch.utils import flop_counter

import headdynamics as hd

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("HEADDYNAMICS_DATA", ROOT / "data"))
SENTENCES = 64  # for I(h), and to draw batches from
VARIANTS = ("whole", "masked", "pruned")


@dataclass
class Subject:
    """A model, real batches of any size, and one loss an example."""

    name: str
    model: torch.nn.Module
    batches: object  # size -> list of batches
    run: object  # (model, batch) -> outputs
    loss: object  # (model, batch) -> [B]


def minilm():
    from transformers import AutoTokenizer, BertForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    rows = [line.split("\t", 1) for line in (DATA / "sentiment/test.tsv").read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(DATA / "minilm")
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(DATA / "minilm", num_labels=2).eval()

    def batches(size):
        drawn = [rows[i] for i in np.random.default_rng(0).choice(len(rows), SENTENCES, replace=False)]
        for start in range(0, SENTENCES, size):
            some = drawn[start : start + size]
            inputs = tokenizer([text for _, text in some], padding=True, return_tensors="pt")
            yield {**inputs, "labels": torch.tensor([int(label) for label, _ in some])}

    return Subject("MiniLM, 6 x 12 heads", model, batches, lambda m, batch: m(**batch).logits, None)


def translation(checkpoint):
    logging.disable(logging.INFO)
    from fairseq import checkpoint_utils
    from headdynamics.plugins.fairseq_trainer import allow_fairseq_checkpoints

    allow_fairseq_checkpoints()
    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], arg_overrides={"data": str(DATA / "bin.de-en")}
    )
    task.load_dataset("test")
    data = task.dataset("test")
    model.eval()

    def batches(size):
        drawn = np.random.default_rng(0).choice(len(data), SENTENCES, replace=False)
        for start in range(0, SENTENCES, size):
            yield data.collater([data[int(i)] for i in drawn[start : start + size]])

    def loss(model, batch):
        log = log_softmax(model(**batch["net_input"])[0].float(), -1)
        real = batch["target"] != task.target_dictionary.pad()
        return -(log.gather(-1, batch["target"].unsqueeze(-1)).squeeze(-1) * real).sum(1) / real.sum(1)

    counts = "+".join(str(len(stack.layers)) for stack in (model.encoder, model.decoder))
    name = f"fairseq {counts} layers, {len(hd.find_heads(model))} heads"
    return Subject(name, model, batches, lambda m, batch: m(**batch["net_input"])[0], loss)


def cut(subject, fraction):
    """A pruned copy by I(h), and what it keeps."""
    subject.model.eval()
    importance = hd.importance(subject.model, subject.batches(32), subject.loss)
    pruned = copy.deepcopy(subject.model)
    return pruned, hd.prune(pruned, hd.prune_order(importance), fraction)


def multiply_adds(subject, model, batch):
    """Of one batch, counted by torch (CPU attention added to its table)."""

    def scores(q, k, v, *_, **__):
        return flop_counter.sdpa_flop_count(q, k, v)

    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: scores}
    with torch.no_grad(), flop_counter.FlopCounterMode(display=False, custom_mapping=attention) as counter:
        subject.run(model, batch)
    return counter.get_total_flops() / 2


def seconds(subject, model, batches, keep, heads):
    """One turn over the batches; entering the mask is not timed."""
    gates = hd.masked(heads, keep) if keep is not None else contextlib.nullcontext()
    with torch.inference_mode(), gates:
        began = time.process_time()
        for batch in batches:
            subject.run(model, batch)
        return time.process_time() - began


def speed(subject, pruned, keep, size, turns, per_turn):
    """Medians and spread at one batch size."""
    batches = list(itertools.islice(subject.batches(size), max(1, math.ceil(per_turn / size))))
    heads = hd.find_heads(subject.model)
    times = {name: [] for name in VARIANTS}
    for turn in range(turns + 1):
        for name in VARIANTS if turn % 2 else VARIANTS[::-1]:
            mask = keep if name == "masked" else None
            taken = seconds(subject, pruned if name == "pruned" else subject.model, batches, mask, heads)
            if turn:  # the first warms up
                times[name].append(taken)
    examples = min(SENTENCES, size * len(batches))
    work = [sum(multiply_adds(subject, m, b) for b in batches) for m in (subject.model, pruned)]
    found = {"batch": size, "examples": examples, "bound": work[0] / work[1]}
    for name in VARIANTS:
        ratios = np.array(times["whole"]) / np.array(times[name])
        found[name] = {
            "examples_per_second": examples / float(np.median(times[name])),
            "speedup": float(np.median(ratios)),
            "spread": [float(q) for q in np.quantile(ratios, [0.25, 0.75])],
        }
    return found


def peak(*args):
    """Peak resident bytes, beyond the loaded model, of a process of its own that runs the largest batch once."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, args)


def _peak(which, checkpoint, state, keep, size):
    torch.set_num_threads(1)
    subject = build(checkpoint)
    if which == "pruned":
        hd.load_pruned(subject.model, state)
    for weight in subject.model.parameters():
        weight.data = weight.data.clone()  # a file that is only mapped would be read by the run itself
    heads, batch = hd.find_heads(subject.model), next(iter(subject.batches(size)))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what loading freed must not serve the run
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is counted from here
    before, mask = _status("VmRSS"), keep if which == "masked" else None
    seconds(subject, subject.model, [batch], mask, heads)
    return _status("VmHWM") - before


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def build(checkpoint):
    return translation(checkpoint) if checkpoint else minilm()


def measure(checkpoint, args):
    subject = build(checkpoint)
    pruned, keep = cut(subject, args.fraction)
    weights = {
        name: {"parameters": sum(p.numel() for p in m.parameters()), "bytes": sum(p.nbytes for p in m.parameters())}
        for name, m in (("whole", subject.model), ("pruned", pruned))
    }
    largest = next(iter(subject.batches(max(args.batch))))
    with torch.inference_mode(), hd.masked(hd.find_heads(subject.model), keep):
        gap = (subject.run(subject.model, largest) - subject.run(pruned, largest)).abs().max()
    state, size = pruned.state_dict(), max(args.batch)
    memory = {which: peak(which, checkpoint, state, keep, size) for which in VARIANTS}
    return {
        "model": subject.name,
        "pruned_heads": int((~keep).sum()),
        "heads": len(keep),
        "largest_difference_from_masked": float(gap),
        "weights": weights,
        "peak_bytes_while_running_largest_batch": memory,
        "speed": [speed(subject, pruned, keep, size, args.turns, args.per_turn) for size in args.batch],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, default=0.5, help="of the heads, least important first")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--per-turn", type=int, default=8, help="sentences a turn, at least one batch")
    parser.add_argument("--checkpoint", type=Path, help="a fairseq translation model on DATA/bin.de-en")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.checkpoint and not args.checkpoint.exists():
        parser.error(f"{args.checkpoint} does not exist")
    found = []
    for checkpoint in (None, args.checkpoint) if args.checkpoint else (None,):
        found.append(measure(checkpoint, args))
        tell_speeds(Console(width=110), found[-1:])
    if not args.checkpoint:
        print("translation: skipped, for there is no --checkpoint")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
