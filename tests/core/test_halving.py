"""What memory does not hold is measured again in batches of half the size: the same numbers, or a failure by name."""

from __future__ import annotations

import collections
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import ranked
import torch
import transformers as hf
from torch import nn

import headdynamics as hd
from headdynamics.halving import cut, out_of_memory, rows
from headdynamics.losses import cross_entropy
from headdynamics.ranks import RankError, Ranks

Pair = collections.namedtuple("Pair", "x y")
MEASURED = dict(
    orders=("importance", "greedy-2", "fisher", "oracle", "integrated-2", "reestimated-3", "random-1"),
    ablations=("one", "all-but-one"),
    fractions=(0.0, 0.25, 0.5, 1.0),
)


def whole() -> dict[str, torch.Tensor]:
    """All seven sentences in one batch."""
    return {name: torch.cat([batch[name] for batch in ranked.batches()]) for name in ranked.batches()[0]}


LONG = [ranked.batches()[0], whole()]  # of which rank 1 of 2 has the second


class Room:
    """cross_entropy where memory holds `most` examples; how large the batches were that it saw."""

    def __init__(self, most: int, error: str = "CUDA out of memory") -> None:
        self.most, self.error, self.seen = most, error, list[int]()

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """[B]."""
        self.seen.append(len(batch["labels"]))
        if self.seen[-1] > self.most:
            raise torch.cuda.OutOfMemoryError(self.error)
        return cross_entropy(model, batch)


def watched(room: Room, batches: Any = None, path: str | None = None, **options: Any) -> hd.Observer:
    """A tiny BERT, seen by seven examples in batches of four and three."""
    examples = ranked.batches()[:2], ranked.batches()[2:]
    four = [{name: torch.cat([one[name] for one in some]) for name in some[0]} for some in examples]
    given = [four if batches is None else batches] * 2
    score = hd.accuracy(given[1])
    return hd.Observer(models.CASES["bert"].build(), path, batches=given[0], score=score, loss=room, **options)


def same(ours: Any, theirs: Any) -> None:
    """All numbers of two snapshots, up to rounding."""
    pairs = list(zip(ranked.numbers(ours), ranked.numbers(theirs), strict=True))
    assert len(pairs) > 20
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [MEASURED, {"estimator": "token"}, {"fractions": "knee", "knee_tolerance": 0.4}])
def test_smaller_batches_give_the_same_numbers(options, caplog):
    """7 examples in batches of 4 and 3; memory holds 1; the second snapshot begins there; the log says it once."""
    room = Room(1)
    observer = watched(room, strict=True, **options)
    with caplog.at_level(logging.WARNING, "headdynamics"):
        first = observer.snapshot(update=1)
        at = len(room.seen)
        second = observer.snapshot(update=2)
    same(first, watched(Room(99), strict=True, **options).snapshot(update=1))
    same(second, watched(Room(99), strict=True, **options).snapshot(update=2))
    assert room.seen[:2] == [4, 2] and set(room.seen[at:]) == {1}
    said = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    assert len(said) == 1 and "batches of 4 examples" in said[0] and "at most 1" in said[0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"estimator": "batch"}, "I(h) by 'batch'"),
        ({"estimator": "bertology"}, "I(h) by 'bertology'"),
        ({"orders": ("importance", "gates-3", "shapley")}, "the order 'gates-3' and the order 'shapley'"),
    ],
)
def test_what_depends_on_batches_fails_by_name(options, named):
    """Never measured in other batches; with room again it is measured."""
    room = Room(2)
    observer = watched(room, **options)
    failed = observer.snapshot(update=1)
    assert failed.status == (
        f"MemoryError: OutOfMemoryError: CUDA out of memory; and in smaller batches {named} would be others: give "
        "smaller ones"
    )
    room.most = 99
    assert observer.snapshot(update=2).status == "ok" and max(room.seen) == 4 and min(room.seen) == 3


def test_where_no_batch_is_small_enough_the_row_fails_and_batches_are_as_before(tmp_path):
    """A score that is a plain function may be what takes too much: then smaller batches are no cure."""
    room = Room(0)
    observer = watched(room, path=str(tmp_path / "run.h5"))
    why = "one example at a time does not help, or what takes the memory is in no batches"
    said = f"MemoryError: OutOfMemoryError: CUDA out of memory; {why}"
    assert observer.snapshot(update=1).status == said and room.seen == [4, 2, 1]
    room.most = 99
    assert observer.snapshot(update=2).status == "ok" and max(room.seen[3:]) == 4
    assert list(hd.load_run(str(tmp_path / "run.h5")).snapshots["status"].values) == [said, "ok"]
    room.error, room.most = "x", 0
    room.__class__ = type("Broken", (Room,), {"__call__": lambda self, model, batch: 1 / 0})
    assert observer.snapshot(update=3).status.startswith("ZeroDivisionError") and observer.batches.most is None


def test_pieces_that_are_not_of_examples_fail_by_name():
    """Positions come first here, eight of them: pieces of a batch are then parts of all its sentences."""

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        if len(batch["input_ids"]) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return cross_entropy(model, {"input_ids": batch["input_ids"].t(), "labels": torch.tensor([0, 1])})

    batch = {"input_ids": (torch.arange(16) % 10 + 3).view(8, 2)}
    model = models.CASES["bert"].build()
    observer = hd.Observer(
        model, batches=[batch], score=lambda model: 0.0, loss=loss, orders=("importance",), path=None
    )
    said = "ValueError: batches of 8 examples, cut for want of memory, gave 4"
    assert observer.snapshot(update=1).status.startswith(said)


def test_under_a_budget():
    """Nested parts stay the same examples; 32 batches of 7, of which memory holds 3 at a time."""
    taken = []
    for room in (Room(99), Room(3)):
        observer = watched(room, [whole() for _ in range(32)], budget=0.5, fractions=(0.0, 1.0), strict=True)
        first = observer.snapshot(update=1)
        observer.budget.began -= 1e6
        taken += [(first, observer.snapshot(update=2))]
    (few, many), (few_halved, many_halved) = taken
    assert few.importance.n == 7 and many.importance.n > 7
    same(few_halved, few)
    same(many_halved, many)


def one_lacks(ranks: Ranks, folder: Path) -> tuple[Any, Any, list[int]]:
    """Numbers of two snapshots and the batches seen, where rank 1 alone lacks memory; what a lasting lack says."""
    room = Room(2 if ranks.rank else 99)
    observer = watched(room, LONG, ranks=ranks, strict=True)
    found = [list(ranked.numbers(observer.snapshot(update=update))) for update in range(2)]
    fails = watched(Room(0 if ranks.rank else 99), LONG, ranks=ranks)
    statuses = [fails.snapshot(update=1).status, str(fails.batches.most)]
    return found, statuses, room.seen


def test_all_ranks_halve_together(tmp_path):
    """Where one lacks memory; a lack that stays fails on all, by name, and none hangs."""
    (zero, said, seen), (one, also_said, also_seen) = ranked.run(2, one_lacks, tmp_path)
    alone = watched(Room(99), LONG, strict=True)
    for update in range(2):
        expected = list(ranked.numbers(alone.snapshot(update=update)))
        for a, b, c in zip(zero[update], one[update], expected, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_allclose(a, c, rtol=1e-6, atol=1e-6)
    assert said == also_said and said[1] == "None"
    assert said[0].startswith("MemoryError: rank 1: OutOfMemoryError: CUDA out of memory; one example")
    assert also_seen[0] == 7 and max(seen[-3:]) == max(also_seen[-3:]) == 2


NARROW = """
import resource, sys
import torch, transformers as hf
import headdynamics as hd

torch.set_num_threads(1)
torch.manual_seed(0)
config = hf.BertConfig(vocab_size=16, num_labels=3, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                       intermediate_size=32, attn_implementation="eager", max_position_embeddings=256)
model = hf.BertForSequenceClassification(config)
ids = torch.randint(3, 14, (48, 256))
batches = [{"input_ids": ids, "labels": ids[:, 0] % 3}]
observer = hd.Observer(model, sys.argv[1], batches=batches, fractions=(0.0, 1.0), orders=("importance",))
wide = observer.snapshot(update=1)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[2]) * 2**20,) * 2)
narrow = observer.snapshot(update=2)
print(narrow.status, observer.batches.most)
assert abs(narrow.importance.mean - wide.importance.mean).max() < 1e-6 * abs(wide.importance.mean).max() + 1e-9
"""


def test_memory_of_a_cpu_that_really_runs_out(tmp_path):
    """torch's allocator fails under a limit of the address space."""
    command = [sys.executable, "-c", NARROW, str(tmp_path / "run.h5"), "64"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    status, most = done.stdout.split()
    assert status == "ok" and 1 <= int(most) < 48


def numpy_lacks():
    """numpy's own error, whose class has no public name and stands elsewhere in numpy 1."""
    with pytest.raises(MemoryError) as raised:
        np.empty(1 << 59)
    assert type(raised.value) is not MemoryError
    return raised.value


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (numpy_lacks(), True),
        (MemoryError(), True),
        (RankError("rank 3: AcceleratorError: CUDA error: out of memory"), True),
        (RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"), True),
        (RankError("rank 3: OutOfMemoryError: CUDA out of memory"), True),
        (RankError("rank 3: ValueError: a note on OutOfMemoryError: x"), False),
        (RankError("a rank does not answer: Connection closed"), False),
        (ValueError("DefaultCPUAllocator"), False),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_which_errors_are_a_lack_of_memory(error, lacks):
    """By what all ranks are told."""
    assert out_of_memory(error) is lacks


def test_batches_of_every_make_are_cut():
    """Nests, texts, fairseq's samples, transformers' own mappings; as many rows as asked, in order."""
    x = torch.arange(10).view(5, 2)
    sample = {"id": x[:, 0], "nsentences": 5, "net_input": {"src_tokens": x, "positions": x[:1], "prev": None}}
    part = cut(sample, slice(2, 4))
    assert rows(sample) == 5 and part["id"].tolist() == [4, 6] and sample["id"].tolist() == [0, 2, 4, 6, 8]
    assert torch.equal(part["net_input"]["src_tokens"], x[2:4]) and torch.equal(part["net_input"]["positions"], x[:1])
    assert part["net_input"]["prev"] is None
    pair = cut(Pair(x, ["a", "b", "c", "d", "e"]), slice(4, 8))
    assert isinstance(pair, Pair) and pair.x.tolist() == [[8, 9]] and pair.y == ["e"]
    coded = cut(hf.BatchEncoding({"input_ids": x, "scale": torch.tensor(2.0)}), slice(0, 2))
    assert isinstance(coded, hf.BatchEncoding) and len(coded["input_ids"]) == 2 and coded["scale"] == 2
    assert len(cut(x, slice(0, 3))) == 3 and rows({"text": ["a"]}) == 0
    listed = [{"input_ids": row, "labels": row[:1]} for row in x]
    assert rows(listed) == 5 and cut(listed, slice(1, 3))[0]["input_ids"].tolist() == [2, 3]
    first = {"position_ids": torch.arange(2).view(1, 2), "input_ids": x}
    assert rows(first) == 5 and len(cut(first, slice(0, 2))["input_ids"]) == 2
    with pytest.raises(ValueError, match=r"batches of 5 examples have a tensor \[20, 3\] that cannot be cut"):
        cut({"labels": x[:, 0], "patches": torch.zeros(20, 3)}, slice(0, 2))
