"""One family through every check: what stands in its row of docs/coverage.md."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from families import NotTinyError, Tiny, tiny
from oracles import Outputs, Probabilities, outputs, row_loss, scaled_columns, slope, zeroed_values
from transformers.models.auto import configuration_auto

import headdynamics as hd
from headdynamics.estimators import sensitivity
from headdynamics.heads import Heads

ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-5}  # largest difference allowed, of the largest output
SEEN = 1e-4  # least change by a head, of the largest output, for an agreement to mean something
STEPS = (1e-2, 1e-3, 3e-2, 1e-4, 1e-1, 1e-5)  # of the finite differences
SLOPE = {
    torch.float64: 5e-3,
    torch.float32: 2e-2,
}  # largest difference allowed between I(h) and finite differences, of the largest slope


@dataclass(frozen=True)
class Row:
    """One family: yes, no or - for each claim, and in one line what is not so."""

    family: str
    folder: str = "-"
    model: str = "-"
    heads: int = 0
    found: str = "-"
    gate: str = "-"
    importance: str = "-"
    removable: str = "-"
    reason: str = ""

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


class NotExactError(Exception):
    """A claim that does not hold for a family."""


def measure(family: str) -> Row:
    """Build a family tiny and put every claim to its test."""
    folder = configuration_auto.model_type_to_module_name(family)
    try:
        built = tiny(family)
    except NotTinyError as error:
        return Row(family, folder, reason=f"not built: {error}")
    row: dict[str, Any] = {"family": family, "folder": folder, "model": type(built.model).__name__}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            heads = hd.find_heads(built.model)
        except hd.HeadsError as error:
            return Row(**row, found="no", reason=_refusal(str(error)))
        row |= {"heads": len(heads), "found": "yes"}
        notes = [f"{len(heads.unread)} attention modules left out: {heads.unread[0][1]}"] if heads.unread else []
        for claim, check in CHECKS.items():
            verdict, said = _verdict(check, built, heads)
            row[claim] = verdict
            notes += said
            if claim == "gate" and verdict == "no":
                break
    return Row(**row, reason="; ".join(notes))


def _verdict(check: Callable[[Tiny, Heads], list[str]], built: Tiny, heads: Heads) -> tuple[str, list[str]]:
    try:
        return "yes", check(built, heads)
    except NotExactError as error:
        return "no", [OURS_NOT.get((built.family, check.__name__), str(error))]
    except TimeoutError:
        raise
    except Exception as error:  # a reason is part of the result
        return "no", [f"{check.__name__}: {type(error).__name__}: {' '.join(str(error).split())[:110]}"]


def _refusal(message: str) -> str:
    """The first reason that `find_heads` gives."""
    lines = message.splitlines()
    return lines[1].partition(": ")[2] if len(lines) > 1 else lines[0].partition(": ")[2]


def gate_exact(built: Tiny, heads: Heads) -> list[str]:
    """A masked head is a head without its W_O columns, and a head without its attention probabilities."""
    plain, rounding = _run(built), ROUNDING[built.model.dtype]
    fired = _fired(built, heads)
    silent = [block.name for block, calls in zip(heads.blocks, fired, strict=True) if not calls]
    if len(silent) == len(heads.blocks):
        raise NotExactError("no W_O is called in this forward pass")
    by_values = False
    for turn in range(max(heads.sizes)):
        keep = [torch.ones(n, dtype=torch.float64) for n in heads.sizes]
        for i, one in enumerate(keep):
            one[(turn + i) % len(one)] = 0
        with hd.masked(heads, torch.cat(keep)):
            ours = _run(built)
        if _distance(ours, plain) < SEEN:
            raise NotExactError(f"masking heads changes the output by {_distance(ours, plain):.0e} only")
        with scaled_columns(heads, keep):
            if (off := _distance(ours, _run(built))) > rounding:
                raise NotExactError(f"a masked head is not a head without its W_O columns: {off:.0e}")
        with Probabilities(heads, keep)() as softmax:
            theirs = _run(built)
        if why := _not_these_heads(softmax, fired, _distance(ours, theirs), rounding):
            with zeroed_values(heads, keep) as known:
                if softmax.unclear or not known or _distance(ours, _run(built)) > rounding:
                    raise NotExactError(why)
            by_values = True
    notes = ["heads taken out by their values instead of their probabilities"] if by_values else []
    if softmax.elsewhere:
        notes.append(f"not found: {', '.join(sorted(softmax.elsewhere))}")
    if silent:
        notes.append(f"{len(silent)} of {len(heads.blocks)} attention blocks take no part in this forward pass")
    return notes


def _not_these_heads(softmax: Probabilities, fired: list[int], off: float, rounding: float) -> str:
    """Why the run without attention probabilities does not prove the heads; empty if it does."""
    blocks = zip(softmax.heads.blocks, softmax.calls, fired, strict=True)
    silent = [type(b.module).__name__ for b, calls, f in blocks if f and not calls]
    if softmax.unclear:
        return f"attention probabilities of shape {sorted(softmax.unclear)[0]}: which axis is the heads'?"
    if silent:
        return f"{silent[0]} computes no softmax that could prove its heads"
    return f"a masked head is not a head without attention probabilities: {off:.0e}" if off > rounding else ""


def importance_exact(built: Tiny, heads: Heads) -> list[str]:
    """Each row's I(h), signed, is its d loss / d xi by finite differences, along two random directions over all heads.

    A row counts with the step that agrees best: routers, kinks and float32 parts each spoil some steps.
    """
    notes = []
    try:
        signed = torch.from_numpy(_sensitivity(built, heads))
    except ValueError as error:
        if "batches of one example" not in str(error):
            raise
        built = replace(built, batch=tiny(built.family, rows=1).batch, rows=1)
        signed = torch.from_numpy(_sensitivity(built, heads))
        notes = ["I(h) in batches of one example only: W_O sees all examples as one sequence"]
    if not signed.any():
        raise NotExactError("no head reaches the loss")
    seed = torch.Generator().manual_seed(3)
    for _ in range(2):
        direction = torch.randn(len(heads), generator=seed, dtype=torch.float64)
        ours, along = signed @ direction, list(direction.split(heads.sizes))
        off = torch.full_like(ours, torch.inf)
        for step in STEPS:
            theirs = slope(lambda: row_loss(built.rows, built.model, built.batch), heads, along, step)
            off = off.minimum((theirs - ours).abs() / ours.abs().max())
            if off.max() <= SLOPE[built.model.dtype]:
                break
        else:
            raise NotExactError(f"I(h) is off finite differences by {off.max():.0e} of the slope")
    return notes


def removable(built: Tiny, heads: Heads) -> list[str]:
    """A model with three tenths of its heads taken out computes what the masked model does."""
    order = np.random.default_rng(7).permutation(len(heads))
    pruned = replace(built, model=copy.deepcopy(built.model))
    try:
        keep = hd.prune(pruned.model, order, 0.3, batch=built.batch)
    except hd.SurgeryError as error:
        raise NotExactError(f"not removable: {' '.join(str(error).split())[:160]}") from error
    with hd.masked(heads, keep):
        off = _distance(_run(pruned), _run(built))
    if off > ROUNDING[built.model.dtype]:
        raise NotExactError(f"the pruned model is not the masked model: {off:.0e}")
    return []


CHECKS: dict[str, Callable[[Tiny, Heads], list[str]]] = {
    "gate": gate_exact,
    "importance": importance_exact,
    "removable": removable,
}
#: why a claim fails where the cause is the model's own
OURS_NOT = {
    ("groupvit", "importance_exact"): "its hard assignment has a straight-through gradient, which is no derivative",
    ("groupvit_vision_model", "importance_exact"): "its hard assignment has a straight-through gradient, which is no "
    "derivative",
    ("hrm_text", "importance_exact"): "it cuts the gradient of all but its last cycles, by torch.no_grad",
    ("yoso", "importance_exact"): "its backward pass is an approximation by design",
}


def _sensitivity(built: Tiny, heads: Heads) -> np.ndarray:
    return sensitivity(
        built.model, heads, [built.batch], partial(row_loss, built.rows), lambda batch, kind: None
    ).signed


def _run(built: Tiny) -> Outputs:
    torch.manual_seed(0)  # models that draw numbers in evaluation, too
    with torch.no_grad():
        return outputs(built.model, built.batch)


def _fired(built: Tiny, heads: Heads) -> list[int]:
    calls = [0] * len(heads.blocks)

    def count(index: int) -> Any:
        def hook(*_: Any) -> None:
            calls[index] += 1

        return hook

    handles = [
        (b.module if b.functional else b.projection).register_forward_hook(count(i)) for i, b in enumerate(heads.blocks)
    ]
    try:
        _run(built)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _distance(one: Outputs, other: Outputs) -> float:
    """The largest difference of two runs, of the largest output of its tensor."""
    pairs = [(a.where(b.isfinite(), 0.0), b.where(b.isfinite(), 0.0)) for a, b in zip(one, other, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)
