"""The budget's arithmetic on a clock of its own, and parts of examples that stay a random subset."""

import logging

import numpy as np
import pytest
import torch
from models import CASES

import headdynamics as hd
from headdynamics.budget import Budget
from headdynamics.nested import Nested, as_drawn, in_parts, nested_sizes, taking
from headdynamics.observer import Observer
from headdynamics.record.memory import MemoryRecorder


class Clock:
    """Stands still until it is told."""

    now = 100.0

    def __call__(self):
        return self.now


def visits(share, trainings, price, fixed=0.0):
    """Sixteenths that each snapshot takes after so many seconds of training, and seconds in all of each."""
    clock, parts = Clock(), Nested(range(32))
    budget = Budget(share, [parts], clock)
    taken, took = [], 0.0
    for seconds in trainings:
        clock.now += seconds
        with budget.visit():
            taken.append(len(parts))
            assert sorted(parts) == sorted(list(Nested(range(32)))[: len(parts)])
            clock.now += fixed + price * len(parts)
        took += fixed + price * len(parts)
    assert budget.spent == pytest.approx(sum(fixed + price * n for n in taken))
    assert len(parts) == 32  # outside of a snapshot all
    return taken, budget.spent, sum(trainings)


def test_the_first_takes_one_part_and_the_others_what_they_can_pay_for():
    """5% of 100 s is 5 s, and a 32nd takes 0.5 s, 0.625 with the reserve."""
    taken, spent, training = visits(0.05, [100, 100, 100, 80], price=0.5)
    # 4.5 + 5 = 9.5 / 0.625 = 15.2 -> 12; 3.5 + 5 = 8.5 / 0.625 = 13.6 -> 12; 2.5 + 4 = 6.5 / 0.625 = 10.4 -> 8
    assert taken == [1, 12, 12, 8]
    assert spent == 16.5 and spent <= 0.05 * training


def test_all_examples_where_there_is_time_for_them():
    assert visits(0.05, [100, 1000, 1000], price=1)[0] == [1, 32, 32]


def test_a_deficit_is_paid_back(caplog):
    """One part takes 3 s where 1 s is allowed: the fewest until training has caught up, and the log says so once."""
    with caplog.at_level(logging.WARNING, logger="headdynamics"):
        taken, spent, training = visits(0.01, [100] * 5 + [3000], price=3)
    assert taken == [1, 1, 1, 1, 1, 4]  # 35 - 15 = 20 s for 5.3 batches
    assert [record.message.count("took 3.00 s, and the budget had 1.00 s") for record in caplog.records] == [1]
    assert spent == 27 <= 0.01 * training


def test_costs_that_no_example_causes_are_noticed():
    """With 4 s for the file, say, a snapshot's price falls as it grows: in proportion the first looks dear."""
    taken, spent, training = visits(0.1, [100] * 6, price=0.05, fixed=4)
    assert taken[0] == 1 and taken[-1] == 32
    assert spent <= 0.1 * training


@pytest.mark.parametrize("seed", range(20))
def test_never_beyond_the_budget_but_by_what_cannot_be_foreseen(seed):
    """Prices vary by a tenth and training by half: the total stays within the share, but for a part of one snapshot."""
    draw = np.random.default_rng(seed)
    clock, parts = Clock(), Nested(range(32))
    budget, training = Budget(0.05, [parts], clock), 0.0
    for _ in range(30):
        seconds = 60 * draw.uniform(0.5, 1.5)
        training += seconds
        clock.now += seconds
        with budget.visit():
            took = 0.15 * len(parts) * draw.uniform(0.9, 1.1)
            clock.now += took
        assert budget.spent <= 0.05 * training + 0.12 * took
    assert budget.spent > 0.035 * training  # and it is used


def test_a_failing_snapshot_is_booked_and_gives_the_parts_back():
    clock, parts = Clock(), Nested(range(32))
    budget = Budget(0.5, [parts], clock)
    with pytest.raises(KeyError), budget.visit():
        clock.now += 7
        raise KeyError
    assert budget.spent == 7 and len(parts) == 32


def test_what_it_took_to_attach_is_charged():
    """5 s of 5% of 100 s: nothing is left for the first snapshot but one part, and that too is paid back."""
    clock, parts = Clock(), Nested(range(32))
    budget, taken = Budget(0.05, [parts], clock), []
    budget.charge(5)
    for seconds in (100, 100, 100):
        clock.now += seconds
        assert budget.allowance() == pytest.approx(0.05 * (clock.now - 100 - budget.spent + 5) - budget.spent)
        with budget.visit():
            taken.append(len(parts))
            clock.now += 0.5 * len(parts)
    assert taken == [1, 6, 8]  # 0 s; 4.5 / 0.625 = 7.2; 6.5 / 0.625 = 10.4
    case = CASES["bert"]
    made = Observer(case.build(), batches=[case.batch] * 4, loss=case.loss, budget=0.1)
    assert 0 < made.budget.spent < 5


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan"), 5])
def test_a_budget_is_a_share(share):
    with pytest.raises(ValueError, match="a budget is a share of training time, above 0 and at most 1"):
        Budget(share, [])
    case = CASES["bert"]
    with pytest.raises(ValueError, match="such as 0.05"):
        Observer(case.build(), batches=[case.batch], budget=share)


def test_a_part_costs_what_it_holds():
    """Parts of whole batches: the first is two 32nds, not one, and takes 2 s of 32."""

    class Batches:
        sizes, taken = (2, 2, 4, 6, 8, 12, 16, 24, 32), 9

        def __iter__(self):
            return iter(range(self.sizes[self.taken - 1]))

    clock, parts, taken = Clock(), Batches(), []
    budget = Budget(0.1, [parts], clock)
    for _ in range(2):
        clock.now += 100
        with budget.visit():
            taken.append(len(list(parts)))
            clock.now += taken[-1]
    assert taken == [2, 12]  # 18 s / 1.25


def test_parts_are_whole_batches():
    assert nested_sizes(1000, 64) == (64, 64, 128, 192, 256, 384, 512, 768, 1000)
    assert nested_sizes(1000) == (32, 63, 125, 188, 250, 375, 500, 750, 1000)
    assert nested_sizes(3, 2) == (2, 2, 2, 2, 2, 2, 2, 3, 3)
    assert nested_sizes(0, 4) == (0,) * 9


def test_batches_of_a_generator_cannot_be_taken_in_parts():
    with pytest.raises(ValueError, match=r"give list\(batches\)"):
        in_parts(iter([1, 2]))
    parts = Nested([1, 2, 3])
    assert in_parts(parts) is parts


def test_a_plain_list_is_taken_at_random_and_always_alike():
    parts = Nested(list(range(64)))
    everything, first = list(parts), []
    assert sorted(everything) == list(range(64)) != everything
    for k, size in enumerate(parts.sizes, 1):
        with taking(k, parts):
            assert list(parts) == everything[:size] and len(parts) == size
            first.append(np.mean(list(parts)))
    assert max(abs(mean - 31.5) for mean in first[3:]) < 10  # no run of neighbours


class Sorted(list):
    """Batches of an odd order that say so."""

    places = np.array([2, 0, 4, 1, 3])


def test_rows_come_back_in_the_order_of_the_draw():
    assert as_drawn(Sorted(), np.array([20, 0, 40, 10, 30])).tolist() == [0, 10, 20, 30, 40]
    assert as_drawn([], np.array([20, 0])).tolist() == [20, 0]


def test_sorted_batches_give_the_same_importance_and_scores_row_by_row():
    case = CASES["bert"]
    model = case.build().double()
    rows = [case.alone(case.batch, i) for i in (0, 1, 2, 1, 0)]
    mixed = Sorted(rows[i] for i in Sorted.places)
    plain, other = (hd.importance(model, batches, case.loss) for batches in (rows, mixed))
    for name in ("mean", "stderr", "signed", "blocks"):
        np.testing.assert_allclose(getattr(other, name), getattr(plain, name), rtol=1e-12)
    assert plain.blocks[0].tolist() != plain.blocks[1].tolist()
    scores = [hd.mean_loss(batches, case.loss)(model).stats for batches in (rows, mixed)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-12)


def test_an_observer_buys_examples_with_time():
    """The budget's clock goes 1 s a batch of I(h) and of the score."""
    case, clock = CASES["bert"], Clock()

    def loss(model, batch):
        clock.now += 1
        return case.loss(model, batch)

    memory = MemoryRecorder()
    observer = Observer(
        case.build(), batches=[case.batch] * 32, loss=loss, fractions=(0,), orders=("importance",), budget=0.1,
        recorders=[memory], strict=True,
    )  # fmt: skip
    observer.budget = Budget(0.1, observer.budget.collections, clock)
    for update, seconds in ((1, 100), (2, 100), (3, 45)):
        clock.now += seconds
        observer.snapshot(update)
    # 1 + 1 batches; 18 s at 2.5 s a batch: 6 batches, 12 s; 10.5 s: 4 batches
    assert [s.importance.n for s in memory.snapshots] == [3, 18, 12]
    assert [s.curves["importance"].n for s in memory.snapshots] == [3, 18, 12]
    assert observer.budget.spent == 22
    assert observer.run.signature["settings"]["budget"] == 0.1
    errors = [s.importance.stderr.mean() for s in memory.snapshots]
    assert errors[1] < errors[2] < errors[0]
    plain = Observer(case.build(), batches=[case.batch] * 16, loss=case.loss, orders=("importance",), fractions=(0,))
    assert "budget" not in plain.run.signature["settings"] and plain.run.signature["hash"]
    assert torch.is_grad_enabled()
