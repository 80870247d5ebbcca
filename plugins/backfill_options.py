"""The options of `headdynamics backfill` and `watch`."""

from __future__ import annotations

import argparse
from pathlib import Path

from headdynamics.schema import KNEE


def backfill(parser: argparse.ArgumentParser) -> None:
    """Of `backfill`."""
    _shared(parser)
    parser.add_argument(
        "--every-th",
        type=int,
        default=1,
        metavar="N",
        help="every N-th checkpoint, counted back from the last (default: 1)",
    )
    parser.add_argument(
        "--transfer", action="store_true", help="also score the last model, pruned by each checkpoint's order"
    )
    ray = parser.add_argument_group("on a Ray cluster", "The same file, measured by many workers: docs/at_scale.md.")
    ray.add_argument("--ray", metavar="ADDRESS", help="auto, HOST:PORT, ray://HOST:PORT; or local: start one here")
    ray.add_argument("--ray-workers", type=int, metavar="N", help="at most (default: one a GPU; without any, by CPUs)")
    ray.add_argument("--ray-block", type=int, metavar="N", help="masks that a worker takes at once (default: 32)")


def watch(parser: argparse.ArgumentParser) -> None:
    """Of `watch`."""
    _shared(parser)
    parser.add_argument(
        "--look-every", type=float, default=10.0, metavar="SECONDS", help="look for new checkpoints (default: 10)"
    )
    parser.add_argument(
        "--until-update", type=int, metavar="N", help="end after the checkpoint of this update, or of a later one"
    )
    parser.add_argument(
        "--idle", type=float, metavar="SECONDS", help="end when nothing new came for so long (default: go on)"
    )


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoints",
        nargs="+",
        type=Path,
        metavar="CHECKPOINT",
        help="fairseq's checkpoint*.pt, a Trainer's checkpoint-*, or the folder that holds them",
    )
    parser.add_argument(
        "--data",
        required=True,
        type=Path,
        help="fairseq: the folder of binarised data; else a file of sentences with labels (.tsv, .csv, .jsonl)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="RUN.h5", help="run file (default: backfill.h5 beside the checkpoints)"
    )
    parser.add_argument(
        "--only", type=_numbers, default=[], metavar="UPDATE,...", help="only the checkpoints of these updates"
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument(
        "--strict", action="store_true", help="stop at a checkpoint that cannot be measured, instead of going on"
    )
    _measuring(parser)
    _fairseq(parser)
    _text(parser)


def _measuring(parser: argparse.ArgumentParser) -> None:
    measuring = parser.add_argument_group(
        "what to measure",
        "Default: fairseq: as the training was watched, where it was; else what stands in brackets.",
    )
    for name, kind, shown, text in (
        ("examples", int, "N", "examples for the importance I(h) of each head (1000)"),
        ("score-examples", int, "N", "examples for the score at each point of a curve (1000)"),
        ("score", str, "NAME", "loss, bleu, accuracy, perplexity or any that the task reports (fairseq: loss)"),
        ("estimator", str, "NAME", "of I(h): example, token, batch, signed or bertology (example)"),
        (
            "fractions",
            _fractions,
            "SHARES",
            "shares of the heads to prune, as 0,0.5,1 (tenths); or knee: how many may go",
        ),
        ("knee-tolerance", float, "SHARE", "the knee: share of the unpruned score that may be lost (0.01)"),
        ("knee-confidence", float, "P", "the knee: how sure that has to be, 0.5 to 1 (0.95)"),
        ("orders", str, "NAME,...", "orders to prune in: docs/orders.md (importance,random-1,random-2,random-3)"),
        ("ablate", str, "WHAT", "also score without each head in turn: one, all-but-one, or one,all-but-one (no)"),
        ("seed", int, "N", "of the draw of the examples (0)"),
    ):
        measuring.add_argument(f"--{name}", type=kind, metavar=shown, help=text)


def _fairseq(parser: argparse.ArgumentParser) -> None:
    fairseq = parser.add_argument_group("fairseq")
    fairseq.add_argument("--subset", metavar="NAME", help="part of the data: train, valid or test (default: valid)")
    fairseq.add_argument(
        "--reduction", choices=("mean", "sum"), help="an example's loss over its target tokens (default: mean)"
    )
    fairseq.add_argument("--eval-bleu-args", metavar="JSON", help="how BLEU decodes (default: as in training)")
    fairseq.add_argument(
        "--eval-bleu-remove-bpe", metavar="BPE", help="such as sentencepiece (default: as in training)"
    )
    fairseq.add_argument("--user-dir", default="", metavar="DIR", help="the training's own --user-dir: its code is run")


def _text(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument_group("Hugging Face text classifiers (any other: headdynamics.backfill in Python)")
    text.add_argument("--tokenizer", type=Path, metavar="DIR", help="its folder (default: the checkpoint's)")
    text.add_argument("--text-columns", type=words, default=[], metavar="NAME,...", help="of the data (default: text)")
    text.add_argument("--label-column", default="", metavar="NAME", help="of the data (default: label)")
    text.add_argument(
        "--max-length", type=int, metavar="TOKENS", help="cut longer texts (default: what the model takes)"
    )
    text.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="that of the training's evaluation (default: 64)"
    )
    text.add_argument("--training-seed", type=int, metavar="N", help="of the training, for the same signature as live")
    text.add_argument("--learning-rate", type=float, metavar="RATE", help="the same")


def words(text: str) -> list[str]:
    """Names with commas between them."""
    return text.split(",")


def _fractions(text: str) -> list[float] | str:
    try:
        return text if text == KNEE else [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0,0.2,0.5,1") from None


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of updates such as 427,854") from None
