"""Tallies: what the training steps of a window said, added up on the device and, where it ends, over the ranks.

| estimator | a row of s [H] is                         | of different ranks                               |
|-----------|-------------------------------------------|--------------------------------------------------|
| example   | an example's                              | rows are of different examples: sums are added   |
| batch     | an update's, over all of its examples     | rows of one update are its parts, added up first |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from .devices import on_host, widest


class Sums(NamedTuple):
    """Over the rows that are finite: of abs(s), s and s squared [3, H]; and rows, rows skipped, examples [3]."""

    values: np.ndarray
    counts: np.ndarray


class Tally(Protocol):
    """One estimator's rows of a window."""

    def add(self, update: int, values: torch.Tensor, examples: int) -> None:
        """Rows of s, [rows, H], each of so many examples. Nothing is copied to the host."""

    def heard(self) -> Any:
        """All of it on the host, for `merged`; None where there was nothing."""

    @staticmethod
    def merged(heard: Sequence[Any]) -> Sums:
        """Of what each rank heard."""


class Rows:
    """`example`."""

    def __init__(self) -> None:
        self._sums: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, update: int, values: torch.Tensor, examples: int) -> None:
        """See `Tally`."""
        more = _added(values, examples)
        self._sums = more if self._sums is None else (self._sums[0] + more[0], self._sums[1] + more[1])

    def heard(self) -> Sums | None:
        """See `Tally`."""
        return None if self._sums is None else _on_host(*self._sums)

    @staticmethod
    def merged(heard: Sequence[Sums]) -> Sums:
        """See `Tally`."""
        values, counts = zip(*heard, strict=True)
        return Sums(np.sum(values, axis=0), np.sum(counts, axis=0))


class Updates:
    """`batch`."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[torch.Tensor, int]] = {}

    def add(self, update: int, values: torch.Tensor, examples: int) -> None:
        """See `Tally`."""
        self._rows[update] = values, examples

    def heard(self) -> dict[int, tuple[np.ndarray, int]] | None:
        """See `Tally`."""
        if not self._rows:
            return None
        values = on_host(torch.cat([row for row, _ in self._rows.values()]))
        return {update: (row, self._rows[update][1]) for update, row in zip(self._rows, values, strict=True)}

    @staticmethod
    def merged(heard: Sequence[dict[int, tuple[np.ndarray, int]]]) -> Sums:
        """See `Tally`."""
        found = []
        for update in sorted(set().union(*heard)):
            parts = [rank[update] for rank in heard if update in rank]
            row = torch.from_numpy(np.sum([row for row, _ in parts], axis=0))
            found.append(_on_host(*_added(row.unsqueeze(0), sum(examples for _, examples in parts))))
        return Rows.merged(found)


TALLIES: dict[str, Callable[[], Tally]] = {"example": Rows, "batch": Updates}


def _added(values: torch.Tensor, examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    finite = values.isfinite().all(1)
    s = values.where(finite.unsqueeze(1), values.new_zeros(())).to(widest(values.device))
    sums = torch.stack([s.abs().sum(0), s.sum(0), s.square().sum(0)])
    return sums, torch.stack([finite.sum(), (~finite).sum(), finite.sum() * examples])


def _on_host(values: torch.Tensor, counts: torch.Tensor) -> Sums:
    return Sums(on_host(values), counts.cpu().numpy())
