"""From our options and a fairseq Trainer to an Observer: one road for training and for backfill; what has none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from headdynamics.observer import Observer
from headdynamics.online import Online
from headdynamics.ranks import Ranks
from headdynamics.record import Recorder
from headdynamics.schema import KNEE

from .fairseq_losses import CriterionLoss, padding, token_positions
from .fairseq_measures import Examples, make_score
from .fairseq_options import HeadDynamicsOptions


def check_engine(cfg: Any, size: int) -> None:
    """Make sure that each of `size` ranks holds the whole model, and the same one.

    Raises:
        ValueError: one does not; the message has the option that makes it so.

    """
    parallel, engine = cfg.distributed_training, cfg.distributed_training.ddp_backend
    split = {
        "--ddp-backend fully_sharded": engine == "fully_sharded",
        f"--model-parallel-size {cfg.common.model_parallel_size}": cfg.common.model_parallel_size > 1,
        "--pipeline-model-parallel": parallel.pipeline_model_parallel,
    }
    apart = {
        "--ddp-backend slowmo": engine == "slowmo",
        "--use-bmuf": cfg.optimization.use_bmuf,
        "--base-layers": (getattr(cfg.model, "base_layers", 0) or 0) > 0,
    }
    for option in (name for name, given in split.items() if given):
        raise ValueError(f"with {option} parameters are sharded, and no rank has a whole model to measure")
    for option in (name for name, given in apart.items() if given and size > 1):
        raise ValueError(f"with {option} the weights of the ranks differ, and there is no one model to measure")
    if cfg.common.tpu:
        raise ValueError("with --tpu ranks do not talk through torch.distributed, which they would need to measure")


def observe(
    options: HeadDynamicsOptions,
    trainer: Any,
    path: str | None,
    update: int | None,
    recorders: Sequence[Recorder] = (),
    online: Online | None = None,
    ranks: Ranks | None = None,
) -> Observer:
    """An observer of the trainer's model; call it inside `still` and `still_trainer`. `update`, `ranks`: see there."""
    began = time.perf_counter()
    pad, nested = padding(trainer.task), options.hd_budget != 0
    batches = Examples(trainer, options.hd_subset, options.hd_examples, options.hd_seed, nested)
    scored = Examples(trainer, options.hd_subset, options.hd_score_examples, options.hd_seed + 1, nested)
    scored.ranks = ranks
    score = make_score(options.hd_score, trainer, scored, pad)
    drawing = time.perf_counter() - began
    observer = Observer(
        trainer.get_model(),
        path,
        batches=batches,
        score=score,
        loss=CriterionLoss(trainer.get_criterion(), pad, options.hd_reduction),
        estimator=options.hd_estimator,
        fractions=KNEE if options.hd_fractions == KNEE else _numbers(options.hd_fractions),
        knee_tolerance=options.hd_knee_tolerance,
        knee_confidence=options.hd_knee_confidence,
        orders=options.hd_orders.split(","),
        ablations=options.hd_ablate.split(",") if options.hd_ablate else (),
        recorders=recorders,
        positions=token_positions(trainer.task),
        still_too=[trainer.get_criterion()],
        budget=None if update is None else options.hd_budget or None,  # backfill has no training to share
        ranks=ranks,
        online=online,
        settings=_settings(options, trainer),
        framework="fairseq",
        update=update,
        strict=options.hd_strict,
    )
    if observer.budget:
        observer.budget.charge(drawing)
    return observer


def _settings(options: HeadDynamicsOptions, trainer: Any) -> dict[str, Any]:
    names = "subset examples score_examples score reduction seed"
    ours = {name: getattr(options, f"hd_{name}") for name in names.split()}
    criterion, task = type(trainer.get_criterion()).__name__, type(trainer.task).__name__
    return ours | {"criterion": criterion, "task": task, "training_seed": trainer.cfg.common.seed}


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--hd-fractions {text!r} is no list of numbers such as 0,0.2,0.5,1, nor {KNEE}") from None
