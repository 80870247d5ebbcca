import numpy as np
import pytest
from fake_run import TENTHS, blocks_of, layout, write_run
from headdynamics.analysis import draw, figures
from headdynamics.analysis.curves import retained
from headdynamics.analysis.load import load_run
from headdynamics.analysis.settling import settle

from headdynamics.schema import RunFileError


@pytest.fixture
def make(path):
    def make(snapshots=6, **options):
        blocks = blocks_of(np.tile(np.arange(1.0, 13), (snapshots, 1)), 0.2)
        return load_run(write_run(path, blocks, layout(3, 4), **options))

    return make


def test_ratio_of_the_same_epochs_score(make):
    data = retained(make(snapshots__score=[0.5] * 6, curve__score=np.full((6, 4, 11), 0.4)))
    assert data.is_ratio and data.draws == 3 and "/ unpruned accuracy" in data.label
    np.testing.assert_allclose(data.importance, 0.8)


def test_random_band_is_mean_and_sd_over_draws(make):
    score = np.ones((6, 4, 11)) * np.array([9, 1, 2, 6])[None, :, None]
    data = retained(make(snapshots__score=[1.0] * 6, curve__score=score))
    np.testing.assert_allclose(data.random, 3)
    np.testing.assert_allclose(data.random_sd, 7**0.5)  # (4 + 1 + 9) / 2


def test_lower_is_better_gives_a_difference_and_the_label_says_so(make):
    lower = {"metric": "loss", "greater_is_better": False}
    data = retained(make(attrs=lower, snapshots__score=[2.0] * 6, curve__score=np.full((6, 4, 11), 2.5)))
    assert not data.is_ratio and data.label.endswith("(lower is better)") and "\N{MINUS SIGN}" in data.label
    np.testing.assert_allclose(data.importance, 0.5)


@pytest.mark.parametrize("zero", [0.0, -0.1])
def test_an_unpruned_score_not_above_zero_gives_differences(make, zero):
    score = [zero, 0.5, 0.5, 0.5, 0.5, 0.5]
    data = retained(make(snapshots__score=score, curve__score=np.full((6, 4, 11), 0.25)))
    assert not data.is_ratio and "(higher is better)" in data.label
    np.testing.assert_allclose(data.importance[:, 0], 0.25 - np.array(score))


def test_one_random_draw_has_no_spread_and_none_has_no_mean(make):
    data = retained(make(order=["importance", "random-1", "x", "y"]))
    assert data.draws == 1 and np.isfinite(data.random).all() and np.isnan(data.random_sd).all()
    data = retained(make(order=["x", "y", "z", "w"]))
    assert data.draws == 0 and np.isnan(data.random).all() and np.isnan(data.importance).all()


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_figures_are_drawn(make, tmp_path, suffix):
    run = make(attrs={"metric": "BLEU $x_", "model": "M$"})
    for number, figure in enumerate([draw.draw_pruning(run), draw.draw_heads(run), draw.draw_settling(settle(run))]):
        figure.savefig(tmp_path / f"{number}.{suffix}")
        assert (tmp_path / f"{number}.{suffix}").stat().st_size > 5000


def test_figure_5_holds_the_numbers(make):
    run = make()
    left, right = draw.draw_pruning(run).axes[:2]
    data = retained(run)
    assert len(left.collections[0].get_segments()) == 6
    np.testing.assert_allclose(left.collections[0].get_segments()[2][:, 1], data.importance[2])
    assert len(right.lines) == 10
    np.testing.assert_allclose(right.lines[4].get_ydata(), data.importance[:, 5])


def test_nan_epochs_fall_back_to_updates(make):
    run = make(snapshots__epoch=[np.nan] * 6)
    assert draw.draw_pruning(run).axes[1].get_xlabel() == "update"
    assert "settled at update 300" in settle(run).headline


def test_nothing_to_draw_says_so(make):
    with pytest.raises(RunFileError, match="nothing to draw"):
        draw.draw_pruning(make(snapshots=0))


def test_odd_arrays_do_not_stop_a_figure():
    nan = np.full((2, 11), np.nan)
    figures.curves_figure(TENTHS, nan, np.array([0.0, 1.0]), nan, nan).savefig("/dev/null", format="png")
    figures.heads_figure(np.full(4, np.nan), ["encoder"] * 4, np.arange(4), np.zeros(4, int))
    figures.settling_figure(np.arange(3.0), np.full(3, np.nan), np.full(3, np.nan)).savefig("/dev/null", format="png")
    figures.curves_figure(TENTHS, nan[:1] + 1, np.array([3.0])).savefig("/dev/null", format="png")
