"""Nests of tuples, lists and dicts: what modules take and return."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any


def mapped(nest: Any, each: Callable[[Any], Any]) -> Any:
    """The nest anew, with `each` applied to its leaves; a dict keeps its class, as models' outputs have their own."""
    if isinstance(nest, dict):
        new = copy.copy(nest)
        for key, value in nest.items():
            new[key] = mapped(value, each)
        return new
    if not _is_sequence(nest):
        return each(nest)
    parts = [mapped(part, each) for part in nest]
    return nest._make(parts) if hasattr(nest, "_make") else type(nest)(parts)


def leaves(nest: Any) -> Iterator[Any]:
    """What is neither tuple, list nor dict, in order."""
    if isinstance(nest, dict) or _is_sequence(nest):
        for part in nest.values() if isinstance(nest, dict) else nest:
            yield from leaves(part)
    else:
        yield nest


def _is_sequence(nest: Any) -> bool:
    return type(nest) in (tuple, list) or (isinstance(nest, tuple) and hasattr(nest, "_make"))
