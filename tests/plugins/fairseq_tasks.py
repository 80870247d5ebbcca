"""Tiny data of fairseq's other tasks, binarised by its own program, and the command lines that train on it."""

import random

import fairseq_forked as forked
import fairseq_tiny as tiny

SPLITS = {"train": 64, "valid": 13, "valid1": 9}
ENCODER = """--arch roberta_base --encoder-layers 2 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32
 --encoder-attention-heads 4 --max-positions 64 --batch-size 5""".split()
TASKS = {
    "language_modeling": """--task language_modeling --arch transformer_lm --decoder-layers 2 --decoder-embed-dim 16
     --decoder-ffn-embed-dim 32 --decoder-attention-heads 4 --activation-fn gelu --sample-break-mode complete
     --tokens-per-sample 12 --criterion cross_entropy --share-decoder-input-output-embed --batch-size 5""".split(),
    "masked_lm": [*ENCODER, *"""--task masked_lm --criterion masked_lm --sample-break-mode complete
     --tokens-per-sample 12 --mask-prob 0.4""".split()],
    "sentence_prediction": [*ENCODER, *"""--task sentence_prediction --criterion sentence_prediction --num-classes 3
     --init-token 0 --separator-token 2""".split()],
}
COMMON = """--optimizer adam --lr 0.01 --cpu --seed 3 --num-workers 0 --log-format json --no-progress-bar
 --required-batch-size-multiple 1 --max-update 20 --save-interval-updates 8 --no-epoch-checkpoints""".split()


def make_data(folder):
    """Sentences of letters and the class of each: how many of its letters are vowels, at most 2."""
    rng = random.Random(1)
    for split, n in SPLITS.items():
        lines = [[rng.choice("abcdefgh") for _ in range(rng.randint(2, 9))] for _ in range(n)]
        (folder / f"{split}.text").write_text("".join(" ".join(line) + "\n" for line in lines))
        labels = [min(2, sum(letter in "ae" for letter in line)) for line in lines]
        (folder / f"{split}.label").write_text("".join(f"{label}\n" for label in labels))
    for kind, to in (("text", "bin"), ("text", "bin/input0"), ("label", "bin/label")):
        splits = [part for split in ("train", "valid") for part in (f"--{split}pref", folder / f"{split}.{kind}")]
        splits[-1] = f"{splits[-1]},{folder / f'valid1.{kind}'}"
        words = ["fairseq-preprocess", "--only-source", *splits, "--destdir", folder / to, "--workers", "1"]
        forked.run(words, folder / "log", "fairseq_cli.preprocess")
    return folder / "bin"


def command(task, data, save, *more):
    """The command line of a watched training."""
    places = [str(data), "--save-dir", str(save), "--user-dir", tiny.USER_DIR]
    return ["fairseq-train", *places, *TASKS[task], *COMMON, *map(str, more)]
