"""Examples for the Hugging Face plugin: drawn once by seed, collated once, sorted by length and trimmed where asked."""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderStateMixin
from accelerate.state import GradientState

from headdynamics.nested import nested_sizes
from headdynamics.ranks import Ranks
from headdynamics.signature import fingerprint

from .hf_padding import length, trimmed

SAMPLE = 4  # examples of which padding is proved to be nothing
Proof = Callable[[list[dict[str, Any]], list[dict[str, Any]]], bool]  # (examples padded, without): are they one?


class Examples(DataLoaderStateMixin):
    """Batches of at most `size` examples of a dataset, drawn by seed and collated once: the same at every visit.

    Once, because a collator may draw (masked language models) or count. The Trainer's evaluation loop takes
    this for one of accelerate's dataloaders, and drops from the mean loss what the last batch lacks.

    Without `proof` the Trainer itself would see the same batches. With it they are sorted by length and trimmed, which
    saves work, where the proof says of the shortest examples that padding changes nothing; results come back in the
    order of the draw, by `places`. `nested`: in parts of which the first few may be taken, for a budget (see
    `headdynamics.nested`); each is sorted by itself. `fingerprint`: of the batches as they would be without all this.
    """

    _drop_last = False
    ranks: Ranks | None = None  # that share these batches

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Mapping[str, Any]],
        size: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        proof: Proof | None = None,
        nested: bool = False,
    ) -> None:
        self.batch_size = self.total_batch_size = batch_size
        self.device, self.gradient_state = device, GradientState()
        with keeps_its_place(dataset), keeps_its_place(collate):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            found = drawn(dataset, size, seed)
            if not found:
                raise ValueError("the evaluation data has no examples: give eval_dataset=... with some")
            order = np.random.default_rng(seed).permutation(len(found)) if nested else range(len(found))
            self._drawn = [found[i] for i in order]
            self.sizes = nested_sizes(len(found), batch_size) if nested else (len(found),)
            self.taken = len(self.sizes)
            plain_rows = _batched(found, (len(found),), batch_size, False)[0]
            plain = _collated(collate, found, plain_rows)
            with _from_here(collate):
                by_length = proof is not None and self._proved(collate, proof)
            for sorts in (True, False) if by_length else (False,):
                self._rows, self._ends = _batched(self._drawn, self.sizes, batch_size, sorts)
                moved = sorts or nested
                batches = _collated(collate, self._drawn, self._rows) if moved else plain
                drawn_rows = [[int(order[place]) for place in rows] for rows in self._rows]
                same = not moved or _same_rows(batches, drawn_rows, plain, plain_rows)
                if same:  # not where a collator draws, for it draws anew in other batches
                    break
        self.fingerprint = fingerprint(plain if same else batches)
        self._batches = [trimmed(batch) for batch in batches] if sorts else batches

    def _proved(self, collate: Callable[[list[Any]], Mapping[str, Any]], proof: Proof) -> bool:
        """Ask of the shortest examples, beside the longest, whether padding is nothing; no if nothing can be cut."""
        by_length = sorted(self._drawn, key=length)
        some = [*by_length[:SAMPLE], *by_length[SAMPLE:][-1:]]
        batch = dict(collate(some)) if some else {}
        if not all(isinstance(v, torch.Tensor) and v.shape[:1] == (len(some),) for v in batch.values()):
            return False
        padded = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(len(some))]
        pairs = [(one, trimmed(one)) for one in padded]
        pairs = [(one, cut) for one, cut in pairs if any(cut[name].shape != one[name].shape for name in one)]
        return bool(pairs) and proof([one for one, _ in pairs], [cut for _, cut in pairs])

    def first(self) -> Examples:
        """The first batch alone."""
        alone = copy.copy(self)
        alone.sizes, alone._ends, alone.taken = (len(self._rows[0]),), [1], 1
        return alone

    @property
    def dataset(self) -> list[Any]:
        """The examples in the order of the draw."""
        return self._drawn[: self.sizes[self.taken - 1]]

    @property
    def batches(self) -> list[dict[str, Any]]:
        """The batches, where they were collated."""
        return self._batches[: len(self)]

    @property
    def places(self) -> np.ndarray:
        """[n]: the place in the draw of each example that iteration gives."""
        return np.array([place for rows in self._rows[: len(self)] for place in rows], dtype=np.int64)

    def __len__(self) -> int:
        return self._ends[self.taken - 1]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches on the model's device; fresh dicts, because the Trainer takes labels out of them."""
        self.begin()
        try:
            for i, batch in enumerate(self.batches):
                self.end_of_dataloader = i == len(self) - 1
                yield {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        finally:
            self.end()


def _batched(
    examples: list[Any], sizes: tuple[int, ...], batch_size: int, by_length: bool
) -> tuple[list[list[int]], list[int]]:
    """(the examples of each batch, by place; batches up to the end of each part)."""
    batches: list[list[int]] = []
    ends = []
    for start, end in itertools.pairwise((0, *sizes)):
        places = list(range(start, end))
        if by_length:
            places.sort(key=lambda place: length(examples[place]))
        batches += [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
        ends.append(len(batches))
    return batches, ends


@contextlib.contextmanager
def _from_here(collate: Any) -> Iterator[None]:
    """What is drawn inside is drawn again afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with keeps_its_place(collate):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _collated(
    collate: Callable[[list[Any]], Mapping[str, Any]], examples: list[Any], batches: list[list[int]]
) -> list[dict[str, Any]]:
    with _from_here(collate):
        return [dict(collate([examples[place] for place in rows])) for rows in batches]


def _same_rows(
    one: list[dict[str, Any]], one_rows: list[list[int]], other: list[dict[str, Any]], other_rows: list[list[int]]
) -> bool:
    """Whether each example's tensors are the same in both, as far as the shorter ones reach."""
    where = {place: (batch, i) for batch, rows in zip(other, other_rows, strict=True) for i, place in enumerate(rows)}
    for batch, rows in zip(one, one_rows, strict=True):
        for i, place in enumerate(rows):
            there, at = where[place]
            for name, value in batch.items():
                if isinstance(value, torch.Tensor) and value.shape[:1] == (len(rows),):
                    pair = value[i], there[name][at]
                    common = tuple(slice(min(sizes)) for sizes in zip(*(v.shape for v in pair), strict=True))
                    if not torch.equal(pair[0][common], pair[1][common]):
                        return False
    return True


def drawn(dataset: Any, size: int, seed: int) -> list[Any]:
    """At most `size` examples, without replacement and in the dataset's order; the first ones of a stream."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return list(itertools.islice(dataset, size))
    total = len(dataset)
    indices = np.random.default_rng(seed).choice(total, size, replace=False) if size < total else np.arange(total)
    return [dataset[int(i)] for i in np.sort(indices)]


@contextlib.contextmanager
def as_it_was(*objects: Any) -> Iterator[None]:
    """Put back every attribute of these objects, whatever happens meanwhile."""
    before = [(o, dict(vars(o))) for o in objects if hasattr(o, "__dict__")]
    try:
        yield
    finally:
        for o, attributes in before:
            vars(o).clear()
            vars(o).update(attributes)


@contextlib.contextmanager
def keeps_its_place(source: Any) -> Iterator[None]:
    """A dataset or collator with random generators of its own goes on as if it had not been asked."""
    parts = [source, getattr(source, "data_collator", None)]  # the Trainer's wrapper holds the real collator
    streams = [v for part in parts for v in getattr(part, "__dict__", {}).values()]
    torches = [(g, g.get_state()) for g in streams if isinstance(g, torch.Generator)]
    numpys = [(g, copy.deepcopy(g.bit_generator.state)) for g in streams if isinstance(g, np.random.Generator)]
    pythons = [(g, g.getstate()) for g in streams if isinstance(g, random.Random)]
    try:
        with as_it_was(*(part for part in parts if part is not None)):
            yield
    finally:
        for of_torch, tensor in torches:
            of_torch.set_state(tensor)
        for of_numpy, numbers in numpys:
            of_numpy.bit_generator.state = numbers
        for of_python, state in pythons:
            of_python.setstate(state)
