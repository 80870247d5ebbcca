"""Curves of a translation model over its decoder's heads: heads removed and the encoder shared, against masked passes.

python benchmarks/curve_translation.py [--checkpoint RUN/checkpoint_best.pt]

A fairseq transformer of the usual base size (6+6 layers x 8 heads, 512 wide) on real German-English sentences of
DATA/bin.de-en. Its weights are random, so that every beam search runs to the same fixed length, whatever the heads; a
checkpoint's writes as long as it likes, and brings BLEU. Order: all heads of the decoder's own and cross-attention, by
seed. Both ways count sacrebleu's statistics of what is written, which have to be the same at each of the 11 points. The
proof that heads may be removed, on the last batch, is in the time.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from headdynamics.plugins.sacrebleu_scores import corpus_metric
from side_by_side import DATA, finish, seconds, spread, told
from torch.nn.functional import log_softmax

import headdynamics as hd
from headdynamics.keep import keep_mask
from headdynamics.points import scores_without
from headdynamics.scores import BatchScore

SENTENCES, BATCH, BEAM, LENGTH = 10, 2, 5, 10


def task_and_model(checkpoint):
    from fairseq import checkpoint_utils, options, tasks
    from headdynamics.plugins.fairseq_trainer import allow_fairseq_checkpoints

    logging.disable(logging.INFO)
    data = str(DATA / "bin.de-en")
    if checkpoint:
        allow_fairseq_checkpoints()
        (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], {"data": data})
        return task, model.eval()
    words = f"""{data} --arch transformer --share-all-embeddings"""  # fairseq's own defaults are the base model
    args = options.parse_args_and_arch(options.get_training_parser(), words.split())
    task = tasks.setup_task(args)
    torch.manual_seed(0)
    return task, task.build_model(args).eval()


def batches_of(task):
    task.load_dataset("valid")
    data = task.dataset("valid")
    chosen = np.random.default_rng(0).choice(len(data), SENTENCES, replace=False)
    chosen = sorted(chosen, key=lambda i: data.src_sizes[i])
    return [data.collater([data[int(i)] for i in chosen[s : s + BATCH]]) for s in range(0, SENTENCES, BATCH)]


def written_score(task, model, batches, fixed):
    """BLEU of beam search; `fixed`: every hypothesis has LENGTH words."""
    from fairseq.sequence_generator import SequenceGenerator

    words = task.target_dictionary
    lengths = {"min_len": LENGTH, "max_len_b": LENGTH} if fixed else {"max_len_a": 1.2, "max_len_b": 10}
    generator = SequenceGenerator([model], words, beam_size=BEAM, **lengths)
    metric = corpus_metric("bleu", tokenized=True)

    def measure(model, batch):
        found = generator.generate([model], {"net_input": batch["net_input"]})
        pairs = zip(found, batch["target"], strict=True)
        return metric.stats([(words.string(best[0]["tokens"]), words.string(target)) for best, target in pairs])

    return BatchScore("bleu", True, batches, measure, metric.aggregate)


def loss_score(task, batches):
    def loss(model, batch):
        log = log_softmax(model(**batch["net_input"])[0].float(), -1)
        real = batch["target"] != task.target_dictionary.pad()
        return -(log.gather(-1, batch["target"].unsqueeze(-1)).squeeze(-1) * real).sum(1) / real.sum(1)

    return hd.mean_loss(batches, loss)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a fairseq translation model on DATA/bin.de-en")
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    task, model = task_and_model(args.checkpoint)
    heads, batches = hd.find_heads(model), batches_of(task)
    order = np.random.default_rng(1).permutation(np.flatnonzero(heads.kind != "encoder"))
    keeps = [keep_mask(order, fraction, len(heads)) for fraction in hd.TENTHS]
    rows = []
    for what, score, rounds in (
        (f"BLEU, beam {BEAM}", written_score(task, model, batches, not args.checkpoint), 1),
        ("loss", loss_score(task, batches), 3),
    ):
        stats = {}

        def masked(score=score, stats=stats):
            stats["masked"] = []
            for keep in keeps:
                with hd.masked(heads, keep):
                    stats["masked"].append(score(model).stats)

        def ours(score=score, stats=stats):
            stats["ours"] = [found.stats for found in scores_without(model, heads, score, keeps)]

        score.probe(model)  # warms up
        times = np.empty((rounds, 2))
        for i in range(rounds):
            for way, call in list(enumerate((masked, ours)))[:: 1 if i % 2 else -1]:
                times[i, way] = seconds(call)
        ratios = times[:, 0] / times[:, 1]
        gap = max(np.abs(a - b).max() for a, b in zip(stats["masked"], stats["ours"], strict=True))
        name = f"11-point curve of {what}, {len(order)} decoder and cross heads, {SENTENCES} sentences"
        rows.append(told(name, "11 masked passes", f"{spread(ratios)}; largest difference of an example {gap:.1e}"))
    finish(rows)


if __name__ == "__main__":
    main()
