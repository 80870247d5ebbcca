"""What online importance costs: training steps with it, and the same steps without, by turns.

Forward, backward and AdamW of a BERT classifier of 6 x 12 heads, 384 wide (MiniLM's shape, random weights), at length
128 and batch 16; and of a fairseq translation model of 36 heads on German and English sentences (`DATA/bin.de-en`,
skipped where it is not there), whose W_O is used as a function. The goals are of whole steps. What differs is less than
one part in a hundred, and the steps of a busy machine differ by three; so the time that such steps spend in our own
code stands beside, over that of a step without it. Writing a window, once in 100 updates, is a row of a run file:
`run_file.py` has what that takes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import warnings

import numpy as np
import torch
from side_by_side import DATA, at_most, finish, spread, told

import headdynamics as hd
from headdynamics import online_sources

BATCH, LENGTH, ROUNDS = 16, 128, 18


class Training:
    """One training, whose steps may be listened to by either form."""

    def __init__(self, model, batch, loss, weight):
        self.model, self.batch, self.loss, self.weight = model.train(), batch, loss, weight
        self.optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
        self.forms = {name: hd.Online(model, name, window=10**6, strict=True) for name in online_sources.SOURCES}
        self.updates = 0

    def step(self, form=None):
        """One update, listened to by `form`, if any."""
        online = self.forms.get(form)
        with online.tapped() if online else contextlib.nullcontext():
            self.loss(self.model, self.batch).backward()
        if online:
            online.add(self.weight)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if online:
            self.updates += 1
            online.step(self.updates)

    def by_turns(self, rounds):
        """CPU seconds of steps, [rounds, without | example | batch]; who goes first changes from round to round."""
        order, times = (None, *self.forms), np.zeros((rounds + 1, 3))
        for i in range(rounds + 1):
            for j in np.roll(range(3), i):
                began = time.process_time()
                self.step(order[j])
                times[i, j] = time.process_time() - began
        return times[1:]


@contextlib.contextmanager
def clocked(spent):
    """Add to spent[0] the CPU time of everything of ours that a step calls."""

    def timed(call):
        @functools.wraps(call)
        def wrapped(*args):
            began = time.process_time()
            try:
                return call(*args)
            finally:
                spent[0] += time.process_time() - began

        return wrapped

    parts = [(hd.Online, "add"), (hd.Online, "step")]
    parts += [(online_sources.Tap, "backward"), (online_sources.Tap, "forward")]
    parts += [(online_sources.WeightGradients, "_read")]
    before = [owner.__dict__[name] for owner, name in parts]
    try:
        for (owner, name), method in zip(parts, before, strict=True):
            static = isinstance(method, staticmethod)
            setattr(owner, name, staticmethod(timed(method.__func__)) if static else timed(method))
        yield
    finally:
        for (owner, name), method in zip(parts, before, strict=True):
            setattr(owner, name, method)


def with_own_code(training, form, without, steps=7):
    """A step and what it spends in our code, over a step of `without` seconds, [steps]."""
    ratios = []
    for _ in range(steps):
        spent = [0.0]
        with clocked(spent):
            training.step(form)
        ratios.append(1 + spent[0] / without)
    return np.array(ratios)


def classifier():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    ids = torch.randint(1000, config.vocab_size, (BATCH, LENGTH))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(0, 2, (BATCH,))}
    weight = torch.full((BATCH,), 1 / BATCH)
    return Training(BertForSequenceClassification(config), batch, lambda m, b: m(**b).loss, weight)


def translation():
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")  # fairseq's own
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    words = "--arch transformer --encoder-layers 3 --decoder-layers 3 --encoder-embed-dim 256 --decoder-embed-dim 256 "
    words += "--encoder-ffn-embed-dim 1024 --decoder-ffn-embed-dim 1024 --encoder-attention-heads 4 "
    words += "--decoder-attention-heads 4 --share-all-embeddings --criterion label_smoothed_cross_entropy"
    args = options.parse_args_and_arch(options.get_training_parser(), [str(DATA / "bin.de-en"), *words.split()])
    config = convert_namespace_to_omegaconf(args)
    torch.manual_seed(0)
    task = tasks.setup_task(config.task)
    task.load_dataset("valid")
    data, criterion = task.dataset("valid"), task.build_criterion(config.criterion)
    lengths = np.array([data.size(i)[0] for i in range(len(data))])
    batch = data.collater([data[int(i)] for i in np.flatnonzero((lengths > 20) & (lengths < 30))[:32]])
    counts = batch["target"].ne(task.target_dictionary.pad()).sum(1).float()
    return Training(task.build_model(config.model), batch, lambda m, b: criterion(m, b)[0], counts)


def main():
    torch.set_num_threads(1)
    training = classifier()
    what, against = "online importance of a training step, {}", "the same step, 6 x 12 heads, length 128, batch 16"
    times = training.by_turns(ROUNDS)
    ratios = times[:, 1:] / times[:, :1]
    without, rows = np.median(times[:, 0]), []
    for i, (form, limit) in enumerate((("example", 1.02), ("batch", 1.005))):
        own = with_own_code(training, form, without)
        rows.append(at_most(what.format(f"`{form}`"), against, limit, ratios[:, i], digits=3))
        rows.append(told(what.format(f"`{form}`") + ", by its own code", against, spread(own, digits=4)))
    if (DATA / "bin.de-en").exists():
        times = translation().by_turns(2 * ROUNDS)
        against = f"the same step, fairseq translation, 36 heads, {np.median(times[:, 0]):.2f} s"
        for i, form in enumerate(("`example`", "`batch`")):
            rows.append(told(what.format(form), against, spread(times[:, i + 1] / times[:, 0], digits=3)))
    finish(rows)


if __name__ == "__main__":
    main()
