"""Pruning orders by name: names, kinds, rankings, and what reaches the run file."""

import h5py
import numpy as np
import pytest
import torch
from models import CASES
from runs import a_run, a_snapshot
from scipy.integrate import trapezoid

import headdynamics as hd
from headdynamics.curve import Curve
from headdynamics.keep import keep_mask
from headdynamics.orders import ORDERS, check_orders, parse_order, random_order, reference_of
from headdynamics.record.hdf5 import HDF5Recorder
from headdynamics.record.memory import MemoryRecorder
from headdynamics.situation import Situation

CHEAP = {"gates": "gates-3", "integrated": "integrated-2", "random": "random-2"}
NAMES = [CHEAP.get(name, name) for name in ORDERS]


def situation(name="bart"):
    case = CASES[name]
    model = case.build()
    heads = hd.find_heads(model)
    found = hd.importance(model, [case.batch], heads=heads)
    return Situation(model, heads, [case.batch], found, np.arange(len(heads)))


@pytest.fixture(scope="module")
def bart():
    return situation()


def test_every_name_makes_an_order_of_all_heads_or_of_a_kind(bart):
    for name in NAMES:
        order = hd.make_order(name, bart)
        assert sorted(order) == list(range(24)), name
        order = hd.make_order(f"{name}:cross", bart)
        assert sorted(order) == np.flatnonzero(bart.heads.kind == "cross").tolist() and len(order) == 8, name


def test_names():
    order, number, kind = parse_order("importance-floor-2:decoder")
    assert order is ORDERS["importance-floor"] and (number, kind) == (2, "decoder")
    assert parse_order("importance-floor")[1:] == (1, None)
    assert parse_order("greedy")[1:] == (4, None) and parse_order("random-0")[1:] == (0, None)
    assert reference_of("fisher:cross", ["importance", "importance:cross"]) == "importance:cross"
    assert reference_of("random-1", ["importance"]) == "importance"
    assert reference_of("fisher:cross", ["importance"]) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("importence", "did you mean 'importance'?"),
        ("best", "there are importance, importance-raw, importance-floor-N"),
        ("shaply-3", "did you mean 'shapley'?"),
        ("importance:crss", "did you mean 'cross'?"),
        ("importance:", "there are encoder, decoder, cross"),
        ("importance-2", "takes no number"),
        ("random", "needs a number, its seed: random-1"),
        ("greedy-0", "needs at least 1"),
        ("random-x", "did you mean 'random'?"),
        ("", "unknown order ''"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_good_one(name, words):
    with pytest.raises(ValueError) as error:
        check_orders(["importance", name])
    assert words in str(error.value)


@pytest.mark.parametrize(
    "names",
    [
        ("random-1", "random-01"),
        ("".join(["random", "-1"]), "random-1"),
        ("greedy", "greedy-4"),
        ("importance:cross", "importance:cross"),
    ],
)
def test_the_same_order_twice_is_refused(names):
    """A second time it would count as one more draw, and no one would be told."""
    with pytest.raises(ValueError, match=f"orders '{names[0]}' and '{names[1]}' are one and the same: leave one out"):
        check_orders(["importance", *names])
    case = CASES["bert"]
    with pytest.raises(ValueError, match="one and the same"):
        hd.Observer(case.build(), batches=[case.batch], orders=names)
    check_orders(["random-1", "random-10", "random-1:cross", "importance", "importance-raw", "greedy", "greedy-8"])


def test_a_kind_that_the_model_lacks_is_refused_when_attached():
    case = CASES["bert"]
    with pytest.raises(ValueError, match="no cross heads; it has encoder"):
        hd.Observer(case.build(), batches=[case.batch], orders=["importance:cross"])
    with pytest.raises(ValueError, match="no cross heads"):
        hd.compare_orders(case.build(), ["oracle:cross"], [case.batch], hd.mean_loss([case.batch]))


def test_random_is_what_it_was():
    found = situation("bert")
    assert hd.make_order("random-3", found).tolist() == random_order(8, 3).tolist()


def layers(found):
    """Each layer's heads in bart: six blocks of four."""
    return [range(4 * b, 4 * b + 4) for b in range(6)]


def test_rankings_by_hand(bart):
    mean, signed = bart.importance.mean, bart.importance.signed
    normal = np.concatenate([mean[list(r)] / np.linalg.norm(mean[list(r)]) for r in layers(bart)])
    assert (signed > 0).any() and (signed < 0).any()
    made = {name: hd.make_order(name, bart).tolist() for name in ORDERS if name.startswith(("imp", "sig", "harm"))}
    assert made["importance"] == sorted(range(24), key=lambda h: normal[h]) == hd.prune_order(bart.importance).tolist()
    assert made["importance-raw"] == sorted(range(24), key=lambda h: mean[h])
    assert made["signed"] == sorted(range(24), key=lambda h: -signed[h])
    assert made["harmful-first"] == sorted(range(24), key=lambda h: (signed[h] <= 0, normal[h]))
    assert len({tuple(order) for order in made.values()}) >= 4


def test_the_most_harmful_head_goes_first_in_signed(bart):
    """s > 0 means that the loss falls as the head's gate is closed a little: finite differences."""
    first = int(hd.make_order("signed", bart)[0])
    keep = torch.ones(24)
    keep[first] -= 0.01
    case = CASES["bart"]
    with torch.no_grad(), hd.masked(bart.heads, keep):
        closed = case.loss(bart.model, case.batch).mean()
    assert closed < case.loss(bart.model, case.batch).mean()


def test_the_signed_estimator_does_not_prune_the_most_useful_first(bart):
    case = CASES["bart"]
    found = hd.importance(bart.model, [case.batch], estimator="signed", heads=bart.heads)
    assert hd.prune_order(found, normalize=False).tolist() == hd.make_order("signed", bart).tolist()


@pytest.mark.parametrize("floor", [1, 2, 3])
def test_the_floor_holds_at_every_count(bart, floor):
    order = hd.make_order(f"importance-floor-{floor}", bart)
    for gone in range(25):
        kept = [sum(h not in order[:gone] for h in layer) for layer in layers(bart)]
        assert min(kept) >= floor or max(kept) <= floor, gone
    if floor == 3:  # which I(h) alone does not keep
        plain = hd.prune_order(bart.importance).tolist()
        assert min(sum(h not in plain[:6] for h in layer) for layer in layers(bart)) < 3


def test_prune_order_of_a_kind(bart):
    cross = hd.prune_order(bart.importance, heads=bart.heads, kind="cross")
    assert cross.tolist() == [h for h in hd.prune_order(bart.importance) if bart.heads.kind[h] == "cross"]
    with pytest.raises(ValueError, match="heads=heads"):
        hd.prune_order(bart.importance, kind="cross")


def test_a_kind_is_pruned_alone(bart):
    """Fractions count the kind's heads; all of them gone is their W_O zero, and nothing else."""
    case = CASES["bart"]
    order = hd.make_order("importance:decoder", bart)
    keep = keep_mask(order, 0.5, 24)
    assert keep.shape == (24,) and (keep == 0).sum() == 4
    assert all(bart.heads.kind[h] == "decoder" for h in np.flatnonzero(keep == 0))
    curve = hd.pruning_curve(bart.model, order, hd.mean_loss([case.batch]), (0, 1))
    model = case.build()
    with torch.no_grad():
        for path, kind, _ in case.outputs:
            if kind == "decoder":
                model.get_submodule(path).weight.zero_()
        expected = case.loss(model, case.batch).mean().item()
    assert curve.score[1] == pytest.approx(expected, rel=1e-5) and curve.score[1] != curve.score[0]


def test_an_observer_takes_every_name(tmp_path):
    case, memory = CASES["bart"], MemoryRecorder()
    names = [*NAMES, "importance:encoder", "oracle:cross"]
    model = case.build()
    before = [p.clone() for p in model.parameters()]
    options = {"batches": [case.batch], "fractions": (0, 0.5, 1), "orders": names, "recorders": [memory]}
    observer = hd.Observer(model, str(tmp_path / "run.h5"), strict=True, **options)
    observer.snapshot(epoch=1)
    observer.close()
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))
    curves = memory.snapshots[0].curves
    assert list(curves) == names and len({tuple(c.score) for c in curves.values()}) > 8
    with h5py.File(observer.path) as run:
        assert run["order"].asstr()[:].tolist() == names
        for i, name in enumerate(names):
            expected = (curves[name].score @ [0.25, 0.5, 0.25]).item()
            assert run["orders/area"][0, i] == pytest.approx(expected), name
        at = names.index("importance:encoder")
        assert run["orders/difference"][0, [0, at]].tolist() == [0, 0]
        assert np.isnan(run["orders/difference"][0, names.index("oracle:cross")])


def test_areas_reach_the_file_also_one_begun_without_them(tmp_path):
    path = tmp_path / "run.h5"
    recorder = HDF5Recorder(path)
    recorder.start(a_run(), 0)
    recorder.write(a_snapshot(1))
    recorder.close()
    with h5py.File(path, "a") as file:  # as an older version left it
        del file["orders"]
    recorder.start(a_run(), 1)
    recorder.write(a_snapshot(2))
    with h5py.File(path) as file:
        area, difference = file["orders/area"][:], file["orders/difference"][:]
        assert file["orders/area"].dims[1][0].name == "/order" and len(area) == 2
    assert np.isnan(area[0]).all()
    assert area[1].tolist() == pytest.approx([100 * i + 2 - 0.5 for i in range(4)])
    assert difference[1].tolist() == pytest.approx([0, 100, 200, 300])


def curve(score, resampled=None):
    score = np.array(score, float)
    extra = () if resampled is None else (np.array(resampled, np.float32),)
    return Curve(np.array([0, 0.2, 1]), score, score * 0, 5, *extra)


def test_area_is_the_mean_height_over_the_fractions():
    assert curve([1, 1, 1]).area == 1 and np.isnan(curve([1, 1, 1]).area_stderr)
    assert curve([1, 0.5, 0]).area == pytest.approx(0.15 + 0.2)
    assert np.isnan(Curve(np.array([0.0]), np.ones(1), np.ones(1), 5).area)
    half = Curve(np.array([0, 0.5]), np.array([1.0, 0.0]), np.zeros(2), 5)
    assert half.area == 0.5
    difference, error = curve([1, 1, 1]).area_difference(curve([1, 0.5, 0]))
    assert difference == pytest.approx(0.65) and np.isnan(error)
    shared = np.random.default_rng(0).normal(size=(200, 1)) + np.zeros(3)
    difference, error = curve([2, 2, 2], shared + 2).area_difference(curve([1, 1, 1], shared + 1))
    assert difference == 1 and error < 1e-6 and curve([1, 1, 1], shared + 1).area_stderr > 0.8


def test_the_error_of_a_difference_is_paired():
    """Against the standard error of the mean over examples of each one's own difference of areas."""
    case = CASES["bert"]
    rows = [{k: torch.roll(v[i : i + 1], j, 1) if v.dim() > 1 else v[i : i + 1] for k, v in case.batch.items()}
            for i in range(3) for j in range(6)]  # fmt: skip
    model = case.build()
    found = hd.compare_orders(model, ["importance", "random-1"], rows, hd.mean_loss(rows))
    difference, error = found["random-1"].area_difference(found["importance"])
    heads = hd.find_heads(model)
    orders = [hd.prune_order(hd.importance(model, rows)), random_order(8, 1)]
    with torch.no_grad():
        own = []
        for order in orders:
            losses = []
            for count in (0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8):
                with hd.masked(heads, torch.tensor([float(h not in order[:count]) for h in range(8)])):
                    losses.append([case.loss(model, row).item() for row in rows])
            own.append(trapezoid(losses, dx=0.1, axis=0))
    apart = own[1] - own[0]
    assert difference == pytest.approx(apart.mean(), rel=1e-4)
    assert error == pytest.approx(apart.std() / len(apart) ** 0.5, rel=0.15)
