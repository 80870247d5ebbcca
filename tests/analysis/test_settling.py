import json

import numpy as np
import pytest
from fake_run import blocks_of, layout, write_run
from headdynamics.analysis.load import load_run
from headdynamics.analysis.settling import layer_scale, settle

RANKING, OTHER = np.exp(np.random.default_rng(0).normal(size=(2, 24)))
HEADS = layout(3, 4, ("encoder", "decoder"))


def verdicts(found):
    return {view.name: (view.verdict, view.update) for view in found.views}


def run_of(path, truth, noise=0.3, heads=HEADS, **changed):
    return load_run(write_run(path, blocks_of(truth, noise), heads, **changed))


def test_abrupt_change_settles_at_the_change_in_every_view(path):
    found = settle(run_of(path, [RANKING] * 6 + [OTHER] * 14))
    assert set(verdicts(found).values()) == {("settled", 2100)}
    assert list(verdicts(found)) == ["all heads", "within layers", "encoder heads", "decoder heads"]
    assert found.headline.startswith("Head importance settled at epoch 7 (update 2100):")
    assert ">= 0.9" in found.headline and "13 more snapshots (7 required)" in found.headline
    assert found.tail == 7


def test_constant_ranking_settles_at_the_first_snapshot_and_says_that_it_may_have_before(path):
    found = settle(run_of(path, [RANKING] * 10))
    assert verdicts(found)["all heads"] == ("settled", 300)
    assert "may have settled before" in found.headline


def test_drift_to_the_end_is_not_settled(path):
    when = np.linspace(0, 1, 12)[:, None]
    found = settle(run_of(path, np.exp((1 - when**2) * np.log(RANKING) + when**2 * np.log(OTHER))))
    assert verdicts(found)["all heads"] == ("not settled", None)
    assert "has not settled" in found.headline and "4 required" in found.headline


def test_not_settled_under_a_low_ceiling_says_that_noise_can_cause_it(path):
    draw = np.random.default_rng(4)
    truth = np.exp(draw.normal(size=(12, 24)))
    low, high = (settle(run_of(path, truth, noise)) for noise in (1.0, 0.2))
    assert low.views[0].verdict == high.views[0].verdict == "not settled"
    assert 0.5 <= low.views[0].ceiling[-1] < 0.8 <= high.views[0].ceiling[-1]
    assert "Noise alone can cause this" in low.headline and "Noise alone" not in high.headline


def test_pure_noise_is_too_noisy(path):
    found = settle(run_of(path, np.ones((12, 24)), noise=1.0))
    assert verdicts(found)["all heads"] == ("too noisy", None)
    assert "C = " in found.headline


def test_four_snapshots_are_too_few_and_five_are_enough(path):
    assert settle(run_of(path, [RANKING] * 4)).views[0].verdict == "too few snapshots"
    assert settle(run_of(path, [RANKING] * 5)).views[0].verdict == "settled"
    assert settle(run_of(path, np.empty((0, 24)))).views[0].verdict == "too few snapshots"


def test_two_heads_are_too_few_and_four_are_enough(path):
    assert settle(run_of(path, np.tile([1.0, 9], (8, 1)), heads=layout(1, 2))).views[0].verdict == "too few heads"
    assert settle(run_of(path, np.tile([1.0, 9, 99, 999], (8, 1)), heads=layout(1, 4))).views[0].verdict == "settled"


def test_the_default_tail_is_a_third_rounded_up(path):
    # 10 snapshots: 4 have to follow; a change before the 6th leaves 4, before the 7th 3
    assert settle(run_of(path, [RANKING] * 5 + [OTHER] * 5)).views[0].update == 1800
    late = run_of(path, [RANKING] * 6 + [OTHER] * 4)
    assert settle(late).views[0].verdict == "not settled"
    assert "3 more snapshots (4 required)" in settle(late).headline
    assert settle(late, tail=3).views[0].update == 2100


def test_ties_get_average_ranks(path):
    tied = np.tile(np.repeat([1.0, 2, 3], 8), (8, 1))
    found = settle(run_of(path, tied, noise=0.0))
    np.testing.assert_allclose(found.views[0].r, 1)
    assert found.views[0].verdict == "settled"


def test_all_equal_heads_have_no_ranking(path):
    found = settle(run_of(path, np.ones((8, 24)), noise=0.0))
    assert found.views[0].verdict == "too noisy"
    assert np.isnan(found.views[0].r).all()


def test_nan_rows_and_failed_snapshots_are_left_out_and_reported(path):
    blocks = blocks_of([RANKING] * 6 + [OTHER] * 14, 0.3)
    blocks[2, 3, 5] = np.nan
    blocks[19] = np.nan
    status = ["ok"] * 20
    status[10] = "out of memory"
    found = settle(load_run(write_run(path, blocks, HEADS, snapshots__status=status)))
    assert found.views[0].update == 2100
    assert found.failed == 1 and len(found.update) == 17
    assert found.notes == ("importance holds NaN or infinity at update 900, 6000: left out",)


def test_a_head_without_numbers_is_left_out_alone(path):
    blocks = blocks_of([RANKING] * 8, 0.3)
    blocks[:, :, 4] = np.nan
    found = settle(load_run(write_run(path, blocks, HEADS)))
    assert found.views[0].heads == 23 and found.views[0].verdict == "settled"
    assert "1 of 24 heads" in found.notes[0]


def test_layers_are_normalised_by_kind_and_zero_layers_stay_zero():
    kind, layer = np.array(["encoder"] * 4 + ["decoder"] * 2), np.array([0, 0, 1, 1, 0, 0])
    np.testing.assert_allclose(
        layer_scale(kind, layer)(np.array([[3.0, 4, 0, 0, 6, 8]])), [[0.6, 0.8, 0, 0, 0.6, 0.8]]
    )


def test_layer_scales_alone_do_not_settle_within_layers(path):
    """One layer is 10 times the next throughout; inside each layer the ranking never stops changing."""
    draw = np.random.default_rng(2)
    level = np.repeat(10.0 ** np.arange(6), 4)
    truth = level * np.exp(0.8 * draw.normal(size=(12, 24)))
    found = verdicts(settle(run_of(path, truth, noise=0.1)))
    assert found["all heads"] == ("settled", 300)
    assert found["within layers"] == ("not settled", None)


def test_a_lone_head_of_one_kind_is_alone_whatever_other_kinds_have_in_that_layer(path):
    heads = (np.array(["encoder"] * 5 + ["decoder"]), np.array([0, 0, 0, 0, 0, 0]), np.array([0, 1, 2, 3, 4, 0]))
    found = settle(run_of(path, np.tile(np.arange(1.0, 7), (6, 1)), noise=0.01, heads=heads))
    assert found.views[1].heads == 5


def test_nan_in_the_mean_alone_leaves_the_snapshot_out(path):
    blocks = blocks_of([RANKING] * 8, 0.3)
    mean = blocks.mean(1)
    mean[3, 2] = np.nan
    found = settle(load_run(write_run(path, blocks, HEADS, importance__mean=mean)))
    assert len(found.update) == 7 and "update 1200" in found.notes[0]


def test_a_lone_head_of_a_layer_does_not_count_within_layers(path):
    heads = (np.full(6, "encoder"), np.array([0, 0, 0, 0, 1, 2]), np.array([0, 1, 2, 3, 0, 0]))
    found = settle(run_of(path, np.tile(np.arange(1.0, 7), (6, 1)), noise=0.01, heads=heads))
    assert [(view.name, view.heads) for view in found.views] == [("all heads", 6), ("within layers", 4)]


def test_retained_scores_stand_beside_the_verdict(path):
    found = settle(run_of(path, [RANKING] * 6))
    assert found.retained[0, 5] == pytest.approx(1 - 0.5**4)
    assert found.retained_random[0, 5] == pytest.approx(1 - np.mean([0.5**1.5, 0.5**1.7, 0.5**1.9]))


def test_json_has_no_nan_and_names_what_decided(path):
    found = settle(run_of(path, np.ones((8, 24)), noise=0.0), threshold=0.8)
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = json.loads(text)
    assert again["rule"] == {"threshold": 0.8, "tail": None, "splits": 20, "seed": 0} and again["tail"] == 3
    assert again["views"][0]["r"] == [None] * 8


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"threshold": 1.1}, {"tail": 0}, {"splits": 0}])
def test_senseless_options_are_refused(path, wrong):
    with pytest.raises(ValueError, match="has to be|have to be"):
        settle(run_of(path, [RANKING] * 6), **wrong)


def test_a_thousand_snapshots_take_seconds(path):
    truth = np.tile(np.exp(np.random.default_rng(0).normal(size=144)), (1000, 1))
    assert settle(run_of(path, truth, heads=layout(12, 12))).views[0].update == 300
