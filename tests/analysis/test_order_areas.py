"""Which order wins, from run files of made-up areas."""

import numpy as np
import pytest
from fake_run import TENTHS, blocks_of, layout, write_run
from headdynamics.analysis.__main__ import main
from headdynamics.analysis.curves import retained
from headdynamics.analysis.load import load_run
from headdynamics.analysis.order_figure import orders_figure
from headdynamics.analysis.orders import BETTER, UNCLEAR, WORSE, compare_orders, half_width
from scipy.stats import binom, norm, t

from headdynamics.schema import RunFileError

NAMES = ["importance", "oracle", "greedy", "random-1", "random-2", "importance:cross", "oracle:cross", "random-1:cross"]
AREA = np.array([0.60, 0.61, 0.70, 0.40, 0.50, 0.80, 0.75, 0.6])
DIFFERENCE = AREA - np.array([0.6] * 5 + [0.8] * 3)
ERROR = np.array([0, 0.02, 0.01, 0.01, 0.01, 0, 0.01, 0.01])
KINDS = layout(2, 4, ("encoder", "cross"))


def make(path, snapshots=3, optional=("orders/",), **changed):
    rows = {
        "orders__area": AREA,
        "orders__area_stderr": ERROR + 0.03,
        "orders__difference": DIFFERENCE,
        "orders__difference_stderr": ERROR,
    }
    areas = {name: np.tile(values, (snapshots, 1)) for name, values in rows.items() if optional}
    curve = np.tile((AREA[:, None] + 0.4 * (0.5 - TENTHS))[None], (snapshots, 1, 1))
    fields = {"order": np.array(NAMES), "curve__score": curve, "curve__stderr": curve * 0, **areas, **changed}
    return write_run(path, blocks_of(np.ones((snapshots, 16)), 0.1), KINDS, optional=optional, **fields)


def by_name(group):
    return {one.name: one for one in group.standings}


def test_the_best_comes_first_among_the_orders_of_the_same_heads(path):
    everything, cross = compare_orders(load_run(make(path))).groups
    assert [one.name for one in everything.standings] == ["greedy", "oracle", "importance", "random"]
    assert [one.name for one in cross.standings] == ["importance", "oracle", "random"]
    assert (everything.kind, everything.heads, cross.kind, cross.heads) == ("", 16, "cross", 8)


def test_verdicts_hold_for_all_differences_of_a_table_together(path):
    everything, cross = compare_orders(load_run(make(path))).groups
    found = by_name(everything)
    verdicts = [found[name].verdict for name in ("greedy", "oracle", "random", "importance")]
    assert verdicts == [BETTER, UNCLEAR, UNCLEAR, ""]  # two draws at random, 0.4 and 0.5, do not tell
    z = norm.isf(0.05 / 3 / 2)  # three orders against importance
    assert (found["greedy"].low, found["greedy"].high) == pytest.approx((0.1 - z * 0.01, 0.1 + z * 0.01))
    assert [by_name(cross)[name].verdict for name in ("oracle", "random")] == [WORSE, WORSE]
    assert by_name(cross)["oracle"].high == pytest.approx(-0.05 + norm.isf(0.0125) * 0.01)


def test_random_is_the_mean_over_its_draws_and_its_spread_widens_the_interval(path):
    random = by_name(compare_orders(load_run(make(path))).groups[0])["random"]
    sd = 0.1 / 2**0.5
    assert (random.draws, random.area, random.spread) == (2, pytest.approx(0.45), pytest.approx(sd))
    wide = np.hypot(norm.isf(0.05 / 6) * 0.01, t.isf(0.05 / 6, 1) * sd / 2**0.5)
    assert (random.low, random.high) == pytest.approx((-0.15 - wide, -0.15 + wide))
    np.testing.assert_allclose(random.curve, 0.45 + 0.4 * (0.5 - TENTHS))
    np.testing.assert_allclose(random.curve_spread, sd)


@pytest.mark.parametrize("draws", [2, 3, 5])
@pytest.mark.parametrize("error", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("differences", [1, 7])
def test_the_interval_of_a_few_draws_covers_the_truth(draws, error, differences):
    """Misses are at most as many as stated, but for what 4000 simulations leave to chance; exactly so without error."""
    random, tail = np.random.default_rng(0), 0.025 / differences
    areas = random.normal(size=(4000, draws)) + error * random.normal(size=(4000, 1))
    spread = areas.std(1, ddof=1)
    wide = np.array([half_width(error, one, draws, tail) for one in spread])
    missed = (np.abs(areas.mean(1)) > wide).sum()
    low, high = binom.interval(0.998, 4000, 2 * tail)
    assert missed <= high and (error or missed >= low), missed
    if not error:  # what was wrong before
        assert (np.abs(areas.mean(1)) > norm.isf(tail) * spread / draws**0.5).sum() > 1.5 * high


def test_the_interval_of_one_order_is_normal_and_of_draws_that_agree_too():
    assert half_width(0.1, np.nan, 1, 0.025) == half_width(0.1, 0.0, 3, 0.025) == pytest.approx(norm.isf(0.025) / 10)
    assert half_width(0.0, 3**0.5, 3, 0.025) == pytest.approx(t.isf(0.025, 2)) and half_width(0.0, 0.0, 3, 0.025) == 0
    assert np.isnan(half_width(np.nan, 0.1, 3, 0.025))


def test_where_lower_is_better_the_lowest_wins(path):
    lower = {"metric": "loss", "greater_is_better": False}
    everything = compare_orders(load_run(make(path, attrs=lower))).groups[0]
    assert [one.name for one in everything.standings] == ["random", "importance", "oracle", "greedy"]
    assert by_name(everything)["greedy"].verdict == WORSE and by_name(everything)["oracle"].verdict == UNCLEAR
    alike = np.tile(np.where(AREA == 0.5, 0.401, AREA), (3, 1))
    everything = compare_orders(load_run(make(path, attrs=lower, orders__area=alike))).groups[0]
    assert by_name(everything)["random"].verdict == BETTER


def test_a_file_without_areas_gives_them_without_errors(path):
    run = load_run(make(path, optional=()))
    assert run.orders is None
    found = by_name(compare_orders(run).groups[0])
    assert found["greedy"].area == pytest.approx(0.70) and found["greedy"].difference == pytest.approx(0.1)
    assert np.isnan([found["greedy"].stderr, found["greedy"].low]).all() and found["greedy"].verdict == ""


def test_draws_of_one_kind_are_not_draws_of_all_heads(path):
    data = retained(load_run(make(path)))
    assert data.draws == 2


def test_the_snapshot_is_chosen_among_those_measured_in_full(path):
    curve = np.tile(np.array([0.1, 0.2, 0.3])[:, None, None], (1, 8, 11))
    area = np.tile(np.array([0.1, 0.2, 0.3])[:, None], (1, 8))
    status = np.array(["ok", "ValueError: no", "ok"], object)
    run = load_run(make(path, curve__score=curve, orders__area=area, snapshots__status=status))
    assert [compare_orders(run, at).groups[0].standings[0].area for at in (0, 1, -1)] == [0.1, 0.3, 0.3]
    for wrong in (2, -3):
        with pytest.raises(RunFileError, match="holds 2 snapshots measured in full: there is no number"):
            compare_orders(run, wrong)


def test_the_command_prints_tables_and_draws(path, tmp_path, capsys):
    figure = tmp_path / "orders.svg"
    assert main(["orders", str(make(path)), "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert out.index("greedy") < out.index("oracle") < out.index("random (2 draws, sd 0.0707)")
    assert "cross heads alone (8)" in out and "better" in out and "importance:cross" in out and str(figure) in out
    assert "no difference seen" in out and "kept: area / unpruned score" in out
    assert figure.read_text().count("<svg") == 1
    assert main(["orders", str(path), "--snapshot", "7"]) == 2
    assert "there is no number 7" in capsys.readouterr().err


def test_the_figure_has_the_curves(path):
    found = compare_orders(load_run(make(path)))
    axes = orders_figure(found).axes
    assert [a.get_title() for a in axes] == ["all heads, by order", "cross heads alone", "importance, by kind of head"]
    lines = {line.get_label(): line.get_ydata() for line in axes[0].lines}
    np.testing.assert_allclose(lines["greedy"], 0.7 + 0.4 * (0.5 - TENTHS))
    assert [line.get_label() for line in axes[2].lines][:2] == ["cross heads alone (8)", "all heads (16)"]


def test_one_order_alone_is_drawn_too(path):
    write_run(path, blocks_of(np.ones((1, 16)), 0.1), KINDS, order=np.array(["fisher"] * 4))
    found = compare_orders(load_run(path))
    assert len(orders_figure(found).axes) == 1 and np.isnan(found.groups[0].standings[0].difference)
