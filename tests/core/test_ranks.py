"""Several processes measure together: the numbers of one, each example once; no rank is left waiting."""

from __future__ import annotations

import numpy as np
import pytest
import ranked
import torch

import headdynamics as hd
from headdynamics.ranks import Ranks, SharedOut, each

OPTIONS = [
    {"fractions": (0.0,), "orders": ("importance",)},
    {"orders": ranked.ORDERS, "ablations": ("one", "all-but-one"), "fractions": (0.0, 0.25, 0.5, 1.0)},
    {"estimator": "batch", "fractions": "knee", "knee_tolerance": 0.4},
    {"estimator": "bertology"},
    {"estimator": "token"},
]


@pytest.mark.parametrize("size", [2, 3])
def test_the_numbers_of_one_process(size, tmp_path):
    """On every rank; four batches are shared by two or by three, each measured once.

    Mostly to the bit; a library's sums may end in another one in another process (seen: 1e-16, once in many).
    """
    alone, _ = ranked.every_number(Ranks(), tmp_path, OPTIONS)
    ranks = ranked.run(size, ranked.every_number, tmp_path / str(size), OPTIONS)
    assert sum(len(one) for one in alone) > 100
    for found, _ in ranks:
        for ours, theirs in zip(alone, found, strict=True):
            assert len(ours) == len(theirs)
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6 if a.dtype == np.float32 else 1e-9, atol=1e-12)
    first = [int(batch["input_ids"][0, 0]) for batch in ranked.batches()]
    assert [seen for _, seen in ranks] == [first[rank::size] for rank in range(size)]


@pytest.fixture(scope="module")
def bad_days(tmp_path_factory):
    """See `ranked.bad_days`: what each of two ranks saw, and the folder."""
    folder = tmp_path_factory.mktemp("bad days")
    return ranked.run(2, ranked.bad_days, folder), folder


def test_what_fails_on_one_rank_fails_on_all_and_they_go_on(bad_days):
    """In the run file, too; the next snapshot is measured."""
    found, folder = bad_days
    said = "RankError: rank 1: ValueError: broken here"
    assert [one["fails"] for one in found] == [["ok", said, "ok"]] * 2
    assert list(hd.load_run(str(folder / "run.h5")).snapshots["status"].values) == ["ok", said, "ok"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("examples", "RankError: rank 1 and rank 0 have different examples or settings"),
        ("order", "RankError: rank 1 and rank 0 have different examples or settings"),
        ("file", "RankError: rank 0: RunFileError: cannot make the folder"),
        ("nothing", "attached"),
    ],
)
def test_attaching_fails_on_all_ranks_or_on_none(what, said, bad_days):
    """The cause is named on each."""
    assert all(one[what].startswith(said) for one in bad_days[0])


def test_a_recorder_that_fails_is_raised_on_all_ranks_if_strict(bad_days):
    """And on none otherwise."""
    assert [one["recorder"] for one in bad_days[0]] == [["RankError: rank 0: OSError: no space left", ""]] * 2


def test_ranks_of_a_budget_take_the_same_examples(bad_days):
    """Rank 0 decides."""
    first, second = (one["budget"] for one in bad_days[0])
    assert first == second and 0 < first[0] < first[-1]


def test_a_plain_loop_with_distributed_data_parallel(tmp_path):
    """Windows and snapshots are those of one process that sees all sentences; watched, it trains to the same bits."""
    zero, one = ranked.run(2, ranked.loops, tmp_path)
    for estimator in ("example", "batch"):
        rows, weights = zero[estimator]
        expected, _ = ranked.looped(Ranks(), tmp_path, estimator)
        assert [type(row).__name__ for row in rows] == ["Snapshot"] * 3 + ["Window"] * 3 and not one[estimator][0]
        assert [row.n for row in rows[3:]] == ([8, 8, 4] if estimator == "example" else [2, 2, 1])
        for ours, theirs in zip(rows, expected, strict=True):
            for a, b in zip(ranked.numbers(ours), ranked.numbers(theirs), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        for a, b, c in zip(weights, one[estimator][1], zero[""][1], strict=True):
            assert torch.equal(a, b) and torch.equal(a, c)


def test_a_rank_that_dies_leaves_none_waiting(tmp_path):
    """The others' snapshot fails; what becomes of the training is its own affair."""
    zero, one, two = ranked.run(3, ranked.one_dies, tmp_path)
    assert one is None and all("RankError: a rank does not answer" in said for said in (zero, two))


def test_a_group_is_let_go_while_its_threads_let_go_of_tensors(tmp_path):
    """With torch before 2.8 a training of several processes hung at its end, here within ten groups."""
    assert ranked.run(2, ranked.many_groups, tmp_path) == [24, 24]


def test_every_rank_sees_the_same_batches_though_a_loader_shuffles(bad_days):
    """Each example once, at each snapshot; and the loader is the user's again afterwards."""
    for one in bad_days[0]:
        assert one["shuffled"] == [7, 7, True]


def test_orders_are_those_of_rank_0(bad_days):
    """An order that differs by rank would mix batches of different masks."""
    first, second = (one["mixed"] for one in bad_days[0])
    assert first == second


def test_online_and_observer_have_the_same_ranks(bad_days):
    """Else rank 0 would record its own share for all."""
    assert all("the same ranks" in one["online"] for one in bad_days[0])


def test_alone_nothing_is_exchanged():
    """Errors come as they are."""
    batches = [1, 2, 3]
    ranks = Ranks()
    assert each(batches, float) == each(SharedOut(batches, ranks), float) == [1.0, 2.0, 3.0]
    assert ranks.every(5) == [5] and ranks.first(6) == 6
    with pytest.raises(KeyError), ranks.together():
        raise KeyError("x")
    with pytest.raises(ZeroDivisionError):
        each(batches, lambda batch: 1 / 0)
