"""`headdynamics backfill` and `watch`: which library's checkpoints, measured how. No torch until they run."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from headdynamics.analysis.program import log_to_terminal, printable

from headdynamics.interrupting import Stop, until_interrupted
from headdynamics.schema import KNEE

from .backfill_options import words

logger = logging.getLogger("headdynamics")


def run(args: argparse.Namespace) -> int:
    """Measure the checkpoints and print the run file's path."""
    for place in args.checkpoints:
        if not place.exists():
            raise ValueError(f"{place} does not exist")
    _check_data(args)
    return _measure(args, _is_fairseq(args.checkpoints), None)


def watch(args: argparse.Namespace) -> int:
    """Measure each checkpoint as it appears; print the run file's path at the end."""
    _check_data(args)
    until = max(args.only) if args.only and args.until_update is None else args.until_update
    how = {"look_every": args.look_every, "until_update": until, "idle": args.idle}
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
    """`how` to watch; None: backfill. Ctrl-C ends it after the checkpoint at hand, a second one at once."""
    log_to_terminal()
    first = args.checkpoints[0]
    alone = first.suffix == ".pt" or first.is_file() or _is_one(first)
    output = args.output or (first.parent if alone else first) / "backfill.h5"
    with until_interrupted() as stop:
        try:
            print(printable(str((_fairseq if fairseq else _transformers)(args, output, how, stop))))
        except (RuntimeError, LookupError, TypeError) as error:  # --strict: what a library said of a checkpoint
            raise ValueError(f"{type(error).__name__}: {error}") from error
        except ValueError:
            if not stop.is_set():  # else there was no time for any checkpoint
                raise
        except KeyboardInterrupt:
            logger.warning("what was measured is kept in %s: the same command goes on from there", output)
            raise
        return stop.status


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


def _fairseq(args: argparse.Namespace, output: Path, how: dict[str, Any] | None, stop: Stop) -> str:
    from .fairseq_backfill import backfill
    from .fairseq_checkpoints import watched

    given = _given(args, "examples", "score_examples", "score", "estimator", "orders", "ablate", "seed")
    given |= _given(args, "knee_tolerance", "knee_confidence")
    if args.fractions is not None:
        given["fractions"] = args.fractions if args.fractions == KNEE else ",".join(map(str, args.fractions))
    return backfill(
        args.checkpoints if how is None else watched(args.checkpoints, stop=stop, **how),
        str(args.data),
        output,
        given=given | _given(args, "subset", "reduction", "strict"),
        task=_given(args, "eval_bleu_args", "eval_bleu_remove_bpe"),
        user_dir=args.user_dir,
        only=args.only,
        cpu=args.cpu,
        **({} if how else {"every": args.every_th, "transfer": args.transfer, "ray": _ray(args), "stop": stop}),
    )


def _transformers(args: argparse.Namespace, output: Path, how: dict[str, Any] | None, stop: Stop) -> str:
    from headdynamics.backfilling import measure_chosen
    from headdynamics.farm import Farm

    from .hf_checkpoints import backfill, watched

    if how is not None:
        found = watched(args.checkpoints, stop=stop, **how)
        trainer = found.first(lambda checkpoint: _trainer(args, checkpoint, args.cpu))
        return backfill(trainer, output, found, only=args.only, **_text_options(args))
    ray = _ray(args)
    farm = None if ray is None else Farm(partial(text_subject, args, args.cpu), gpus=not args.cpu, **ray)
    here = partial(text_subject, args, args.cpu or farm is not None)  # a farm's workers have the GPUs
    return measure_chosen(
        here, str(output), every=args.every_th, only=args.only, transfer=args.transfer, farm=farm, stop=stop
    )


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
        given["orders"] = words(args.orders)
    if args.ablate is not None:
        given["ablations"] = words(args.ablate)
    return given
