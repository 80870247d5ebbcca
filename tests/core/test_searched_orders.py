"""Orders that look at the model again, against brute force, exact games and loops written out."""

import itertools
import math

import numpy as np
import pytest
import torch
from models import CASES
from toy import additive, squared, toy

import headdynamics as hd
from headdynamics import searched_orders as searched
from headdynamics.situation import Situation


def situation(case, model, wanted=None):
    heads = hd.find_heads(model)
    found = hd.importance(model, [case.batch], case.loss, heads=heads)
    wanted = np.arange(len(heads)) if wanted is None else np.array(wanted)
    return Situation(model, heads, [case.batch], found, wanted, case.loss)


@pytest.mark.parametrize("name", ["bert", "bart", "gpt2"])
def test_oracle_is_the_order_of_losses_with_zeroed_w_o(name):
    case = CASES[name]
    losses = []
    with torch.no_grad():
        for head in range(4 * len(case.outputs)):
            model = case.build()
            rows = slice(4 * (head % 4), 4 * (head % 4) + 4)
            case.weight(model, case.outputs[head // 4][0])[rows].zero_()
            losses.append(case.loss(model, case.batch).mean().item())
    assert searched.oracle(situation(case, case.build())).tolist() == np.argsort(losses, kind="stable").tolist()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("step", "steps"), [(1, 1), (3, 3), (None, 3)])
def test_reestimated_is_a_loop_by_hand(normalize, step, steps):
    """s by autograd through the mask itself, not through the tape."""
    case = CASES["bart"]
    model = case.build()
    heads = hd.find_heads(model)
    left, expected = list(range(24)), []
    while left:
        keep = torch.tensor([[float(h in left) for h in range(24)]] * 3, requires_grad=True)
        with hd.masked(heads, keep):
            case.loss(model, case.batch).sum().backward()
        size = (keep.grad * keep.detach()).abs().mean(0).numpy()
        if normalize:
            size = np.concatenate([layer / (np.linalg.norm(layer) or 1) for layer in size.reshape(6, 4)])
        going = sorted(left, key=lambda h: size[h])[:steps]
        expected += going
        left = [h for h in left if h not in going]
    assert searched.reestimated(situation(case, case.build()), step, normalize).tolist() == expected


def test_reestimating_changes_the_order():
    found = situation(CASES["bart"], CASES["bart"].build())
    assert searched.reestimated(found, 1).tolist() != hd.prune_order(found.importance).tolist()
    assert searched.reestimated(found, 24).tolist() == hd.prune_order(found.importance).tolist()


def exact_shapley(game, players):
    """Shapley values of `game`, a function of a frozenset, by all coalitions."""
    values = []
    for player in range(players):
        others = [p for p in range(players) if p != player]
        total = 0.0
        for size in range(players):
            weight = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
            for coalition in itertools.combinations(others, size):
                total += weight * (game(frozenset(coalition) | {player}) - game(frozenset(coalition)))
        values.append(total)
    return np.array(values)


def test_values_of_an_additive_game_are_the_shares():
    found, shares = toy(additive)
    assert searched.shapley_values(found, 1, truncate=False) == pytest.approx(shares.mean(0), abs=1e-12)
    assert searched.integrated_values(found, 1) == pytest.approx(shares.mean(0), abs=1e-12)
    expected = np.argsort(-shares.mean(0)).tolist()
    assert searched.oracle(found).tolist() == searched.greedy(found).tolist() == expected
    assert searched.integrated(found, 3).tolist() == expected


def test_one_antithetic_pair_is_exact_where_heads_interact_in_pairs():
    found, shares = toy(squared)
    exact = exact_shapley(lambda coalition: (shares[:, list(coalition)].sum(1) ** 2).mean(), 5)
    assert searched.shapley_values(found, 1, seed=4, truncate=False) == pytest.approx(exact, abs=1e-12)
    assert np.abs(exact - (shares**2).mean(0)).max() > 0.01  # the pairs do matter
    assert searched.integrated_values(found, 4) == pytest.approx(exact, abs=1e-12)  # quadratic: no error either


def test_shapley_values_of_a_real_model_approach_the_exact_ones():
    case = CASES["bert"]
    model = case.build()
    found = situation(case, model, wanted=[1, 2, 4, 7])

    def game(coalition):
        return found.mean_loss([h for i, h in enumerate(found.wanted) if i not in coalition])

    exact = exact_shapley(game, 4)
    draws = np.stack([searched.shapley_values(found, 10, seed, truncate=False) for seed in range(6)])
    error = draws.std(0, ddof=1) / 6**0.5
    assert (np.abs(draws.mean(0) - exact) < 4 * error + 1e-6).all()
    assert np.abs(exact).max() > 20 * error.max()  # an error small enough to tell right from wrong
    total = game(frozenset(range(4))) - game(frozenset())
    assert draws.sum(1) == pytest.approx(np.full(6, total), abs=1e-5)  # efficiency holds for every draw
    assert searched.integrated_values(found, 64).sum() == pytest.approx(total, rel=2e-3)
    order = searched.shapley(found, 10).tolist()
    assert order == found.wanted[np.argsort(-searched.shapley_values(found, 10, 0))].tolist()


def test_truncation_saves_passes_and_keeps_what_came_before():
    """A loss of 1 as soon as any head is gone: the first to go bears it all, and the walk ends there."""
    found, _ = toy(additive)
    calls = []

    def brittle(model, x):
        calls.append(1)
        return (model(x).double() != whole[len(x)]).double()

    with torch.no_grad():
        whole = {len(x): found.model(x) for x in found.batches}
    broken = Situation(found.model, found.heads, found.batches, found.importance, found.wanted, brittle)
    values = searched.shapley_values(broken, 20)
    assert len(calls) == 3 * (2 + 2 * 20)
    assert values.sum() == pytest.approx(-1) and (values < -0.05).all()
    calls.clear()
    assert searched.shapley_values(broken, 1, truncate=False).sum() == pytest.approx(-1)
    assert len(calls) == 3 * (2 + 2 * 5)


def test_fisher_is_greedy_over_sets_written_out():
    case = CASES["bart"]
    found = situation(case, case.build(), wanted=range(4, 16))
    keep = torch.ones(3, 24, requires_grad=True)
    with hd.masked(found.heads, keep):
        s = torch.autograd.grad(case.loss(found.model, case.batch).sum(), keep)[0].double().numpy()
    order = []
    while len(order) < 12:
        left = [h for h in range(4, 16) if h not in order]
        order.append(min(left, key=lambda h: (s[:, [*order, h]].sum(1) ** 2).mean()))
    made = searched.fisher(found).tolist()
    # three examples: beyond three heads sets that sum to nearly nothing are ties to rounding
    assert made[:3] == order[:3] and sorted(made) == list(range(4, 16))
    cost = [(s[:, made[: i + 1]].sum(1) ** 2).mean() for i in range(12)]
    best = [(s[:, order[: i + 1]].sum(1) ** 2).mean() for i in range(12)]
    assert cost == pytest.approx(best, rel=1e-3, abs=1e-6)


def test_greedy_is_the_exhaustive_one_where_each_loss_makes_the_next_dearer():
    """A squared sum of positive shares: to take a head away always costs more the more are gone."""
    found, shares = toy(squared)
    with torch.no_grad():  # every head's share is positive: values are read as they are
        attention = found.model.attention
        attention.v_proj.weight.copy_(torch.eye(10))
        attention.o_proj.weight.copy_(torch.eye(10))
        found.model.read.fill_(1.0)
    batches = [x.abs() for x in found.batches]
    found = Situation(found.model, found.heads, batches, found.importance, found.wanted, squared)
    order, left = [], list(range(5))
    while left:
        order.append(min(left, key=lambda h: found.mean_loss([*order, h])))
        left.remove(order[-1])
    assert searched.greedy(found, looks=5).tolist() == order


def test_greedy_counts_its_looks_and_beats_the_oracle_on_its_own_examples():
    case, calls = CASES["bart"], []
    found = situation(case, case.build())

    def counted(model, batch):
        calls.append(1)
        return case.loss(model, batch)

    watched = Situation(found.model, found.heads, found.batches, found.importance, found.wanted, counted)
    order = searched.greedy(watched, looks=3)
    assert 25 + 23 <= len(calls) <= 25 + 3 * 23
    score = hd.mean_loss([case.batch], case.loss)
    areas = [hd.pruning_curve(found.model, o, score).area for o in (order, searched.oracle(found))]
    assert areas[0] < areas[1]


def test_gates_learn_an_additive_game():
    """Each example counts alike, however small its batch."""
    found, shares = toy(additive, heads=4)
    for seed in (0, 2):
        order = searched.gates(found, steps=300, seed=seed).tolist()
        assert order == np.argsort(-shares.mean(0)).tolist() != hd.prune_order(found.importance).tolist()
    assert searched.gates(found, steps=30).tolist() == searched.gates(found, steps=30).tolist()


def test_gates_prune_every_count_alike():
    """Each row's mask takes away between 1 and all but one of the wanted heads, and never another."""
    found, _ = toy(additive)
    masks = []
    found = Situation(found.model, found.heads, found.batches, found.importance, np.array([0, 2, 3, 4]), additive)
    real = Situation.losses

    class Spied(Situation):
        def losses(self, batch, keep):
            masks.append(keep.detach())
            return real(self, batch, keep)

    spied = Spied(*(getattr(found, f) for f in Situation.__dataclass_fields__))
    searched.gates(spied, steps=60)
    rows = torch.cat([mask for mask in masks if mask.dim() == 2])
    assert set(rows.unique().tolist()) == {0.0, 1.0} and (rows[:, 1] == 1).all()
    assert np.bincount((rows == 0).sum(1).numpy(), minlength=4)[1:] == pytest.approx(len(rows) / 3, rel=0.3)
