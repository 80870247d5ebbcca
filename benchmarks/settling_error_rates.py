"""How often the verdict of analysis/settling.py is wrong: simulated runs whose truth is known.

python benchmarks/settling_error_rates.py            # 200 runs of each kind, about two minutes on one core
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import numpy as np
from headdynamics.analysis.ranking import agreement
from headdynamics.analysis.verdict import FEW_HEADS, FEW_SNAPSHOTS, NOISY, NOT_SETTLED, SETTLED, Rule, judge

BLOCKS = 10
ABRUPT_AT = 6  # position of the first snapshot after the change


def constant(draw, snapshots, heads):
    return np.tile(draw.normal(size=heads), (snapshots, 1))


def no_signal(draw, snapshots, heads):
    return np.zeros((snapshots, heads))


def abrupt(draw, snapshots, heads):
    before, after = draw.normal(size=(2, heads))
    return np.array([before if e < ABRUPT_AT else after for e in range(snapshots)])


def crossing(draw, snapshots, heads):
    """From one ranking to an unrelated one at a constant speed: its true r passes 0.9 after 2/3 of the run."""
    start, end = draw.normal(size=(2, heads))
    when = np.linspace(0, 1, snapshots)[:, None]
    return (1 - when) * start + when * end


def wandering(start_to_end):
    """Random walk whose first and last snapshots correlate by ``start_to_end``; it never stops."""

    def walk(draw, snapshots, heads):
        step = np.sqrt((1 / start_to_end**2 - 1) / (snapshots - 1))
        steps = step * draw.normal(size=(snapshots, heads))
        return draw.normal(size=heads) + np.cumsum(steps, axis=0) - steps[0]

    return walk


def decaying(draw, snapshots, heads):
    """Movement that halves every eighth of the run: it does settle."""
    start, end = draw.normal(size=(2, heads))
    left = 0.5 ** np.linspace(0, 8, snapshots)[:, None]
    return left * start + (1 - left) * end


TRUTHS = {
    "pure noise": no_signal,
    "constant ranking": constant,
    "abrupt change": abrupt,
    "decaying movement": decaying,
    "drift, crossing": crossing,
    "drift, walk .2": wandering(0.2),
    "drift, walk .5": wandering(0.5),
    "drift, walk .8": wandering(0.8),
}


def simulate(truth, noise, snapshots, heads, runs, seed):
    """Verdicts of ``runs`` runs, and where those that settled did."""
    draw = np.random.default_rng(seed)
    verdicts, where = Counter(), Counter()
    for _ in range(runs):
        log_importance = truth(draw, snapshots, heads)
        error = noise * draw.normal(size=(snapshots, BLOCKS, heads))
        verdict, at = judge(agreement(np.exp(log_importance[:, None] + error), seed=0), heads, Rule())
        verdicts[verdict] += 1
        where[at] += 1
    where.pop(None, None)
    return verdicts, where


def by_ceiling(snapshots, heads, runs, seed):
    """Verdicts over constant rankings, all truly settled, by how high the last ceiling came out."""
    draw = np.random.default_rng(seed)
    edges = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    found = {low: Counter() for low in edges[:-1]}
    while min(tally.total() for tally in found.values()) < runs:
        truth = constant(draw, snapshots, heads)
        error = draw.uniform(0.3, 2.0) * draw.normal(size=(snapshots, BLOCKS, heads))
        agreed = agreement(np.exp(truth[:, None] + error), seed=0)
        verdict, at = judge(agreed, heads, Rule())
        low = max((edge for edge in edges[:-1] if edge <= agreed.ceiling[-1]), default=None)
        if low is not None and found[low].total() < runs:
            found[low][SETTLED, "first" if at == 0 else "later"] += verdict == SETTLED
            found[low][NOT_SETTLED, ""] += verdict == NOT_SETTLED
    for low, high in zip(edges, edges[1:], strict=False):
        first, later, never = (found[low][key] for key in ((SETTLED, "first"), (SETTLED, "later"), (NOT_SETTLED, "")))
        print(f"| {low:g} to {high:g} | {heads} | {first} | {later} | {never} |", flush=True)


def places(where):
    """The three commonest positions, counted from 1, with how often."""
    return ", ".join(f"{at + 1} ({count})" for at, count in where.most_common(3)) or "-"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--snapshots", type=int, nargs="+", default=[20])
    parser.add_argument("--heads", type=int, nargs="+", default=[36, 144])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.3, 1.0, 2.0], help="sd of log I(h) of a block")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.perf_counter()
    print("| truth | heads | snapshots | noise | settled | not settled | too noisy | settled at snapshot (runs) |")
    print("|---|---|---|---|---|---|---|---|")
    for name, truth in TRUTHS.items():
        for heads in args.heads:
            for snapshots in args.snapshots:
                for noise in args.noise:
                    verdicts, where = simulate(truth, noise, snapshots, heads, args.runs, args.seed)
                    assert not verdicts[FEW_HEADS] and not verdicts[FEW_SNAPSHOTS]
                    counts = " | ".join(str(verdicts[v]) for v in (SETTLED, NOT_SETTLED, NOISY))
                    print(f"| {name} | {heads} | {snapshots} | {noise:g} | {counts} | {places(where)} |", flush=True)
    print("\n| C at the last snapshot | heads | settled at 1 | settled later | not settled |")
    print("|---|---|---|---|---|")
    for heads in args.heads:
        by_ceiling(args.snapshots[0], heads, args.runs, args.seed)
    print(f"\n{args.runs} runs a row, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
