"""`headdynamics backfill` and `watch`: their options, and which library's checkpoints. No torch until they run."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from headdynamics.analysis.program import log_to_terminal, printable

from headdynamics.schema import KNEE


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `headdynamics backfill`."""
    _shared(parser)
    parser.add_argument("--every-th", type=int, default=1, metavar="N", help="every N-th, counted back from the last")
    parser.add_argument("--transfer", action="store_true", help="prune the last model by each checkpoint's order, too")
    ray = parser.add_argument_group("on a Ray cluster", "The same file, measured by many workers: docs/at_scale.md.")
    ray.add_argument("--ray", metavar="ADDRESS", help="auto, HOST:PORT, ray://HOST:PORT; or local: start one here")
    ray.add_argument("--ray-workers", type=int, metavar="N", help="at most (default: one a GPU; without any, by CPUs)")
    ray.add_argument("--ray-block", type=int, metavar="N", help="masks that a worker takes at once (default: 32)")


def watch_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `headdynamics watch`."""
    _shared(parser)
    parser.add_argument(
        "--look-every", type=float, default=10.0, metavar="SECONDS", help="for new checkpoints (default: 10)"
    )
    parser.add_argument(
        "--until-update", type=int, metavar="N", help="end after the checkpoint of this update, or later"
    )
    parser.add_argument("--idle", type=float, metavar="SECONDS", help="end when nothing new came for so long")


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="checkpoint*.pt, checkpoint-*, or their folder"
    )
    parser.add_argument("--data", required=True, type=Path, help="fairseq: data-bin; else sentences (tsv, csv, jsonl)")
    parser.add_argument("-o", "--output", type=Path, help="run file (default: backfill.h5 beside the checkpoints)")
    parser.add_argument("--only", type=_numbers, default=[], metavar="UPDATE,...", help="only these updates")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--strict", action="store_true", help="stop at a checkpoint that cannot be measured")
    measuring = parser.add_argument_group(
        "what to measure", "Default: fairseq: as the training was watched; else the defaults of headdynamics.attach."
    )
    for name, kind, text in (
        ("examples", int, "examples for I(h)"),
        ("score-examples", int, "examples for the pruning curve"),
        ("score", str, "such as loss, bleu, accuracy"),
        ("estimator", str, "example, token, batch, signed"),
        ("fractions", _fractions, "pruned fractions, such as 0,0.5,1; or knee"),
        ("knee-tolerance", float, "the knee: share of the unpruned score that may be lost"),
        ("knee-confidence", float, "the knee: how sure that has to be"),
        ("orders", str, "pruning orders, such as importance,random-1"),
        ("ablate", str, "also without each head in turn: one, all-but-one, or both with a comma"),
        ("seed", int, "seed of the draw of examples"),
    ):
        measuring.add_argument(f"--{name}", type=kind, help=text)
    fairseq = parser.add_argument_group("fairseq")
    fairseq.add_argument("--subset", help="of the data (default: valid)")
    fairseq.add_argument("--reduction", choices=("mean", "sum"), help="an example's loss over its target tokens")
    fairseq.add_argument("--eval-bleu-args", metavar="JSON", help="how BLEU decodes (default: as in training)")
    fairseq.add_argument(
        "--eval-bleu-remove-bpe", metavar="BPE", help="such as sentencepiece (default: as in training)"
    )
    fairseq.add_argument("--user-dir", default="", help="the training's own --user-dir: its code is run")
    text = parser.add_argument_group("Hugging Face text classifiers (any other: headdynamics.backfill in Python)")
    text.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: the checkpoint's")
    text.add_argument("--text-columns", type=_words, default=[], metavar="NAME,...", help="default: text")
    text.add_argument("--label-column", default="", metavar="NAME", help="default: label")
    text.add_argument("--max-length", type=int, help="tokens; longer texts are cut")
    text.add_argument("--batch-size", type=int, default=64, help="in training: its evaluation's (default: 64)")
    text.add_argument("--training-seed", type=int, help="of the training, for the same signature as live")
    text.add_argument("--learning-rate", type=float, help="the same")


def run(args: argparse.Namespace) -> int:
    """Measure the checkpoints and print the run file's path."""
    for place in args.checkpoints:
        if not place.exists():
            raise ValueError(f"{place} does not exist")
    _check_data(args)
    return _measure(args, _is_fairseq(args.checkpoints), None)


def watch(args: argparse.Namespace) -> int:
    """Measure each checkpoint as it appears; print the run file's path at the end."""
    from headdynamics.watching import until_interrupted

    _check_data(args)
    until = max(args.only) if args.only and args.until_update is None else args.until_update
    with until_interrupted() as stop:
        how = {"look_every": args.look_every, "until_update": until, "idle": args.idle, "stop": stop}
        return _measure(args, args.data.is_dir(), how)  # binarised data are a folder, sentences a file


def _check_data(args: argparse.Namespace) -> None:
    if not args.data.exists():
        raise ValueError(f"--data {args.data} does not exist")


def _ray(args: argparse.Namespace) -> dict[str, Any] | None:
    """The cluster that is asked for, as `farm.Farm` takes it."""
    given = {name: getattr(args, f"ray_{name}", None) for name in ("workers", "block")}
    chosen = {name: value for name, value in given.items() if value is not None}
    if getattr(args, "ray", None) is None:
        if chosen:
            raise ValueError(f"--ray-{next(iter(chosen))} needs --ray ADDRESS")
        return None
    return {"address": args.ray, **chosen}


def _measure(args: argparse.Namespace, fairseq: bool, how: dict[str, Any] | None) -> int:
    log_to_terminal()
    first = args.checkpoints[0]
    alone = first.suffix == ".pt" or first.is_file() or _is_one(first)
    output = args.output or (first.parent if alone else first) / "backfill.h5"
    try:
        print(printable(str((_fairseq if fairseq else _transformers)(args, output, how))))
    except (RuntimeError, LookupError, TypeError) as error:  # --strict: what a library said of a checkpoint
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return 0


def _is_one(place: Path) -> bool:
    """Whether it is one checkpoint-*; `trainer.save_state()` leaves its file in the folder of them all as well."""
    state = "trainer_state.json"
    return (place / state).is_file() and not any(place.glob(f"checkpoint-*/{state}"))


def _is_fairseq(places: Sequence[Path]) -> bool:
    found = {p.suffix == ".pt" or (p.is_dir() and any(p.glob("checkpoint*.pt"))) for p in places}
    if len(found) > 1:
        raise ValueError(
            "some of these checkpoints are fairseq's (.pt) and some are not: backfill one training at a time"
        )
    return found.pop()


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _fairseq(args: argparse.Namespace, output: Path, how: dict[str, Any] | None) -> str:
    from .fairseq_checkpoints import backfill, watched

    given = _given(args, "examples", "score_examples", "score", "estimator", "orders", "ablate", "seed")
    given |= _given(args, "knee_tolerance", "knee_confidence")
    if args.fractions is not None:
        given["fractions"] = args.fractions if args.fractions == KNEE else ",".join(map(str, args.fractions))
    return backfill(
        args.checkpoints if how is None else watched(args.checkpoints, **how),
        str(args.data),
        output,
        given=given | _given(args, "subset", "reduction", "strict"),
        task=_given(args, "eval_bleu_args", "eval_bleu_remove_bpe"),
        user_dir=args.user_dir,
        only=args.only,
        cpu=args.cpu,
        **({} if how else {"every": args.every_th, "transfer": args.transfer, "ray": _ray(args)}),
    )


def _transformers(args: argparse.Namespace, output: Path, how: dict[str, Any] | None) -> str:
    from headdynamics.backfilling import measure_chosen
    from headdynamics.farm import Farm

    from .hf_checkpoints import backfill, watched

    if how is not None:
        found = watched(args.checkpoints, **how)
        trainer = found.first(lambda checkpoint: _trainer(args, checkpoint, args.cpu))
        return backfill(trainer, output, found, only=args.only, **_text_options(args))
    ray = _ray(args)
    farm = None if ray is None else Farm(partial(text_subject, args, args.cpu), gpus=not args.cpu, **ray)
    here = partial(text_subject, args, args.cpu or farm is not None)  # a farm's workers have the GPUs
    return measure_chosen(here, str(output), every=args.every_th, only=args.only, transfer=args.transfer, farm=farm)


@contextlib.contextmanager
def text_subject(args: argparse.Namespace, cpu: bool) -> Iterator[Any]:
    """The training of a text classifier, opened to be measured."""
    from .hf_checkpoints import find, subject

    found = find(args.checkpoints, strict=bool(args.strict))
    trainer = _trainer(args, max(found, key=lambda checkpoint: checkpoint.update), cpu)
    with subject(trainer, found, **_text_options(args)) as opened:
        yield opened


def _trainer(args: argparse.Namespace, checkpoint: Any, cpu: bool) -> Any:
    from transformers.utils import logging as of_transformers

    from .hf_text import text_trainer

    of_transformers.disable_progress_bar()  # one for the weights of each checkpoint
    return text_trainer(
        Path(checkpoint.path),
        args.data,
        tokenizer=args.tokenizer,
        text=args.text_columns,
        label=args.label_column,
        max_length=args.max_length,
        batch_size=args.batch_size,
        cpu=cpu,
        seed=args.training_seed,
        learning_rate=args.learning_rate,
    )


def _text_options(args: argparse.Namespace) -> dict[str, Any]:
    given = _given(args, "examples", "score_examples", "score", "estimator", "fractions", "seed", "strict")
    given |= _given(args, "knee_tolerance", "knee_confidence")
    if args.orders is not None:
        given["orders"] = _words(args.orders)
    if args.ablate is not None:
        given["ablations"] = _words(args.ablate)
    return given


def _fractions(text: str) -> list[float] | str:
    try:
        return text if text == KNEE else [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0,0.2,0.5,1") from None


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of updates such as 427,854") from None
