"""Names that somebody wrote and that are not there: which one was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")


def meant(given: object, names: Iterable[str]) -> str:
    """A question for the end of a message, `` (did you mean 'x'?)``; "" where none of `names` is near."""
    near = difflib.get_close_matches(str(given), list(names), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown(what: str, given: object, names: Iterable[str], listed: str = "") -> str:
    """A sentence: what is unknown, which of `names` it may have meant, and all that there are (or `listed`)."""
    every = list(names)
    return f"unknown {what} {given!r}{meant(given, every)}; there are {listed or ', '.join(every) or 'none'}"


def made(kind: type[T], given: dict[str, Any], others: Iterable[str] = ()) -> T:
    """A dataclass of options by name; `others`: what else its caller takes.

    Raises:
        TypeError: it has no such option; the message has the nearest that there is.

    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a dataclass
    for name in given:
        if name not in known:
            raise TypeError(unknown("option", name, [*known, *others]))
    return kind(**given)
