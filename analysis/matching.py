"""What two run files have in common: which head is which, and whether their examples are the same."""

from __future__ import annotations

from collections import Counter

from headdynamics.analysis.run import Run

from headdynamics.schema import RunFileError
from headdynamics.stacks import stacks

#: settings that draw the scored examples, besides those that draw the ones of I(h)
DRAWING = ("score_examples", "subset", "seed", "source")


def same_heads(a: Run, b: Run) -> list[int]:
    """Where each head of `a` stands in `b`: by kind, layer and number, and by its stack where those repeat.

    Raises:
        RunFileError: one has heads that the other lacks.
    """
    plain = [_keys(run) for run in (a, b)]
    repeated = {key for keys in plain for key, count in Counter(keys).items() if count > 1}
    first, second = (
        [(*key, stack if key in repeated else "") for key, stack in zip(keys, _stack_names(run), strict=True)]
        for keys, run in zip(plain, (a, b), strict=True)
    )
    for path, mine, theirs in ((a.path, first, set(second)), (b.path, second, set(first))):
        alone = [head for head in mine if head not in theirs]
        if alone:
            some = ", ".join(
                f"{kind} layer {layer} head {number}{f' of {stack}' if stack else ''}"
                for kind, layer, number, stack in alone[:3]
            )
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            raise RunFileError(
                f"the files are of different architectures ({len(first)} and {len(second)} heads): only {path} has "
                f"{some}{more}; compare runs of one architecture"
            )
    at = {head: position for position, head in enumerate(second)}
    return [at[head] for head in first]


def same_examples(a: Run, b: Run, scored: bool) -> bool:
    """Whether both were measured on the same examples: those that are scored, or those of I(h)."""
    one, other = a.signature, b.signature
    if scored and "scored" in one and "scored" in other:
        return bool(one["scored"] == other["scored"])
    same = bool(one.get("data")) and one.get("data") == other.get("data")
    if not scored or not same:
        return same
    drawn = [signed.get("settings") or {} for signed in (one, other)]  # files from before `scored` was written
    return all(drawn[0].get(name) == drawn[1].get(name) for name in DRAWING)


def _keys(run: Run) -> list[tuple[str, int, int]]:
    return list(zip(*(run.heads[name].values.tolist() for name in ("kind", "layer", "number")), strict=True))


def _stack_names(run: Run) -> list[str]:
    """Of each head: `text_model` in a model of its own as well as in a wrapper, where it is `clip.text_model`."""
    found = stacks(run.heads["kind"].values, run.heads["module"].values)
    names = {head: stack.name for stack in found for head in stack.at.tolist()}
    return [names[head] for head in range(len(names))]
