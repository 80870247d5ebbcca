"""Run -> Effects: what the score loses without each head, which losses are more than chance, which heads are best."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from headdynamics.analysis.program import no_formula
from headdynamics.analysis.run import Run
from headdynamics.analysis.words import moment

from headdynamics.best import Best, best_heads, held_out
from headdynamics.schema import ABLATIONS, RunFileError
from headdynamics.significance import benjamini_hochberg, holm
from headdynamics.stacks import Stack, stacks

#: how p-values of many heads are corrected: name -> [H] -> [H]
CORRECTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda pvalues: pvalues,
    "holm": holm,
    "bh": benjamini_hochberg,
}
NAMES = {"none": "uncorrected", "holm": "after Holm's correction", "bh": "after Benjamini and Hochberg's correction"}
#: a test's name in a run file -> in words
TESTS = {
    "mcnemar": "McNemar's exact test",
    "t": "paired t test",
    "permutation": "paired permutation test",
    "bootstrap": "paired bootstrap test",
    "sacrebleu": "sacrebleu's paired bootstrap test",
}


@dataclass(frozen=True, eq=False)
class Effects:
    """One ablation at one snapshot. Arrays are ``[H]``; NaN is missing.

    Attributes:
        what: "one" (each head masked in turn) or "all-but-one" (each head alone in its layer).
        model: its class; metric: name of the score; greater_is_better: its direction; when: of the snapshot.
        update, epoch: the same, as numbers.
        base: the whole model's score over ``n`` examples (0: the score tells nothing of its examples).
        test: name of the paired test; "none" where there is none.
        kind, layer, number, module: of each head.
        score, delta, stderr, pvalue: delta is score - base, stderr is delta's, pvalue is uncorrected.
        halves: ``[2, H]`` delta on the even and on the odd examples.
    """

    what: str
    model: str
    metric: str
    greater_is_better: bool
    when: str
    update: int
    epoch: float
    base: float
    n: int
    test: str
    kind: np.ndarray
    layer: np.ndarray
    number: np.ndarray
    module: np.ndarray
    score: np.ndarray
    delta: np.ndarray
    stderr: np.ndarray
    pvalue: np.ndarray
    halves: np.ndarray

    @property
    def block(self) -> np.ndarray:
        """``[H]`` which attention block (layer of one kind) a head is in, numbered in the model's order."""
        order = {name: i for i, name in enumerate(dict.fromkeys(self.module.tolist()))}
        return np.array([order[name] for name in self.module.tolist()])

    @property
    def stacks(self) -> list[Stack]:
        """The heads of each kind, and of each stack of it where a model has several."""
        return stacks(self.kind, self.module)

    @property
    def tested(self) -> int:
        """How many heads have a p-value."""
        return int(np.isfinite(self.pvalue).sum())

    def significant(self, alpha: float, correction: str = "none") -> np.ndarray:
        """Bool ``[H]``: the p-value, corrected over the heads, is at most ``alpha``."""
        with np.errstate(invalid="ignore"):
            return CORRECTIONS[correction](self.pvalue) <= alpha

    def best(self) -> Best:
        """The best head of each layer, chosen on the same examples."""
        return best_heads(self.delta, self.block, self.greater_is_better)

    def held_out(self) -> Best:
        """The best head of each layer, chosen on one half of the examples and measured on the other, and back."""
        return held_out(self.halves, self.block, self.greater_is_better)


def effects(run: Run, what: str | None = None, snapshot: int = -1) -> Effects:
    """One ablation of a run.

    Args:
        run: from ``load_run``.
        what: "one" or "all-but-one"; None: the first of these that was measured.
        snapshot: position among the snapshots measured in full; -1 is the last.

    Raises:
        RunFileError: the run holds no such ablation, or none at this snapshot.
    """
    groups = {name: getattr(run.usable(), group.replace("/", "_")) for name, group in ABLATIONS.items()}
    measured = [name for name, data in groups.items() if data is not None]
    if not measured or what not in (None, *measured):
        told = f"it holds {', '.join(measured)}" if measured else "ask for them in training"
        raise RunFileError(
            f"{run.path} holds no ablation {what or 'of heads'}: {told} "
            "(--hd-ablate one,all-but-one with fairseq, ablations=['one', 'all-but-one'] elsewhere)"
        )
    what = what or measured[0]
    data, rows = groups[what], run.usable().snapshots
    count = len(rows["update"])
    if not -count <= snapshot < count:
        raise RunFileError(f"{run.path} holds {count} snapshots measured in full: there is no number {snapshot}")
    columns = {name: data[name].values[snapshot] for name in ("score", "delta", "stderr", "pvalue")}
    if np.isnan(columns["score"]).all():
        raise RunFileError(f"{run.path} holds no ablation {what} at update {rows['update'].values[snapshot]}")
    update, epoch = int(rows["update"].values[snapshot]), float(rows["epoch"].values[snapshot])
    tested = bool(np.isfinite(columns["pvalue"]).any())
    return Effects(
        what,
        str(run.attrs["model"]),
        str(run.attrs["metric"]),
        bool(run.attrs["greater_is_better"]),
        moment(epoch, update),
        update,
        epoch,
        float(np.nanmedian(columns["score"] - columns["delta"])),  # to rounding the same for every head
        int(rows["n_score"].values[snapshot]),
        str(data["pvalue"].attrs.get("test", "unknown")) if tested else "none",
        **{name: run.heads[name].values for name in ("kind", "layer", "number", "module")},
        **columns,
        halves=np.stack([data[name].values[snapshot] for name in ("delta_first", "delta_second")]),
    )


def write_csv(found: Effects, path: Path) -> None:
    """One row a head, one column a number, each p-value corrected in every way; a missing number is empty."""
    columns = {
        **{name: [getattr(found, name)] * len(found.kind) for name in ("what", "metric", "update", "epoch", "base")},
        **{name: [getattr(found, name)] * len(found.kind) for name in ("n", "test")},
        **{name: getattr(found, name) for name in ("kind", "layer", "number", "module")},
        **{name: getattr(found, name) for name in ("score", "delta", "stderr", "pvalue")},
        **{f"pvalue_{name}": correct(found.pvalue) for name, correct in CORRECTIONS.items() if name != "none"},
        **dict(zip(("delta_first_half", "delta_second_half"), found.halves, strict=True)),
    }
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            # NaN alone differs from itself.
            table.writerow("" if value != value else no_formula(value) for value in row)
