"""Stacks: where one kind of attention has layers in several places (CLIP's text and vision), layers repeat.

numpy only: the recorders and the readers ask here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Stack(NamedTuple):
    """Heads whose layers are counted together. (layer, number) is unique in one."""

    kind: str
    name: str  # what tells it from the other stacks of its kind; "" where there is no other
    at: np.ndarray  # [h] indices of its heads

    @property
    def title(self) -> str:
        """`encoder`, or `encoder, text_model` where there are several."""
        return f"{self.kind}, {self.name}" if self.name else self.kind


def stack_of(module: str) -> str:
    """A module's path before its first number: `encoder.layers.` of `encoder.layers.3.self_attn`."""
    return re.sub(r"\d+.*", "", module)


def stacks(kind: Iterable[str], module: Iterable[str]) -> list[Stack]:
    """The stacks of heads of these kinds [H] in these modules [H], in the order of their first heads."""
    found: dict[tuple[str, str], list[int]] = {}
    for head, (its_kind, path) in enumerate(zip(kind, module, strict=True)):
        found.setdefault((str(its_kind), stack_of(str(path))), []).append(head)
    names = {one: _apart([path for a, path in found if a == one]) for one, _ in found}
    return [Stack(one, names[one][path], np.array(heads)) for (one, path), heads in found.items()]


def _apart(paths: list[str]) -> dict[str, str]:
    """The part of each path that differs: `text_model` of `clip.text_model.layers.`; "" of a single one."""
    if len(paths) == 1:
        return {paths[0]: ""}
    parts = [path.split(".") for path in paths]
    first, last = _shared(parts), _shared([part[::-1] for part in parts])
    shortest = min(map(len, parts)) - 1  # of every path something stays
    first = min(first, shortest)
    last = min(last, shortest - first)
    return {path: ".".join(part[first : len(part) - last]).strip(".") for path, part in zip(paths, parts, strict=True)}


def _shared(parts: list[list[str]]) -> int:
    return len(os.path.commonprefix(parts))
