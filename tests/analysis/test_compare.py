"""Correlations against scipy, and against simulations whose truth is known."""

import json

import numpy as np
import pytest
from blocked import BANNED, run_without
from fake_run import blocks_of, layout, write_run
from headdynamics.analysis import correlation
from headdynamics.analysis.__main__ import main
from headdynamics.analysis.compare import compare, compare_all
from headdynamics.analysis.compare_figure import LOOKS, draw_comparison
from headdynamics.analysis.correlation import (
    COEFFICIENTS,
    Correlation,
    across_halves,
    correlations,
    interval,
    reliability,
    unit,
)
from headdynamics.analysis.load import load_run
from headdynamics.analysis.ranking import unit_ranks
from headdynamics.analysis.reading import DIFFER, NEARLY, NOISY, OPEN, SAME, UNKNOWN, reading, sentence
from scipy import stats

from headdynamics.schema import RunFileError

HEADS = layout(4, 3, ("encoder", "decoder", "cross"))
TRUTH = np.exp(np.random.default_rng(3).normal(size=36))
OTHER = TRUTH**0.5 * np.exp(np.random.default_rng(4).normal(size=36) * 0.6)


def ablation(first, second):
    """Fields of /ablation/one, [S, H], from the deltas on two halves of the examples."""
    halves = np.stack([first, second])
    names = {"delta": halves.mean(0), "delta_first": first, "delta_second": second}
    empty = {name: np.full(np.shape(first), np.nan) for name in ("score", "stderr", "pvalue")}
    return {f"ablation__one__{name}": values for name, values in (empty | names).items()}


def a_run(path, truth, noise=0.3, seed=0, data="", heads=HEADS, harm=None, attrs=None):
    """Two snapshots of which the second has this truth; with an ablation where `harm` [2, H] (the halves) is given."""
    blocks = blocks_of([OTHER[: len(truth)], truth], noise, seed)
    attrs = {"signature": json.dumps({"data": data or str(path)})} | (attrs or {})
    extra = {} if harm is None else ablation(*-np.stack([harm, harm], 1))
    write_run(path, blocks, heads, attrs, ("ablation/one",) if harm is not None else (), **extra)
    return load_run(path)


@pytest.fixture
def files(tmp_path):
    draw = np.random.default_rng(1)
    harm = [value + 0.2 * draw.normal(size=(2, 36)) for value in (TRUTH, OTHER)]
    return (
        a_run(tmp_path / "news.h5", TRUTH, seed=1, harm=harm[0]),
        a_run(tmp_path / "films.h5", OTHER, seed=2, harm=harm[1]),
    )


def in_words(found):
    view = found.views[0]
    assert view.reading == reading(view.correlations[0])
    return sentence(view.name, view.correlations[0])


def noisy(truth, parts, noise, draw):
    """[B, H] measurements whose mean has the noise `noise`, in units of the truth's standard deviation."""
    return truth + noise * truth.std() * np.sqrt(parts) * draw.normal(size=(parts, len(truth)))


def test_coefficients_are_scipys(files):
    found = compare(*files)
    x, y = (run.importance["mean"].values[-1].astype(float) for run in files)
    expected = stats.pearsonr(x, y).statistic, stats.spearmanr(x, y).statistic, stats.kendalltau(x, y).statistic
    assert [one.value for one in found.views[0].correlations] == pytest.approx(expected, abs=1e-12)
    for view in found.views[1:]:
        here = HEADS[0] == view.name
        assert view.heads == 12
        assert view.correlations[1].value == pytest.approx(stats.spearmanr(x[here], y[here]).statistic, abs=1e-12)
    assert [view.name for view in found.views] == ["all heads", "encoder", "decoder", "cross"]
    np.testing.assert_array_equal(found.x, x)


def test_ablation_is_the_harm_and_its_ceiling_by_hand(files):
    found = compare(*files, what="ablation")
    first, second = (run.ablation_one.isel(snapshot=-1) for run in files)
    np.testing.assert_allclose(found.x, -first["delta"].values)
    product = 1.0
    for side in (first, second):
        r = stats.pearsonr(side["delta_first"].values, side["delta_second"].values).statistic
        product *= 2 * r / (1 + r)
    pearson = found.views[0].correlations[0]
    assert pearson.ceiling == pytest.approx(np.sqrt(product), rel=1e-12)
    assert pearson.corrected == pytest.approx(pearson.value / np.sqrt(product), rel=1e-12)
    assert found.labels[0].startswith("harm of removing a head (fall of accuracy)\nnews.h5")


def test_harm_of_a_metric_where_lower_is_better(tmp_path, files):
    worse = a_run(tmp_path / "b.h5", OTHER, harm=np.stack([-TRUTH, -TRUTH]), attrs={"greater_is_better": False})
    found = compare(files[0], worse, what="ablation")
    np.testing.assert_allclose(found.y, TRUTH)  # the file holds delta = +TRUTH: the loss rises
    assert "rise of accuracy" in found.labels[1]


@pytest.mark.parametrize("parts", [2, 10])
def test_reliability_is_the_correlation_of_two_whole_measurements(parts):
    draw = np.random.default_rng(0)
    truth = np.exp(draw.normal(size=100))
    estimates = [reliability(noisy(truth, parts, 0.7, draw)) for _ in range(60)]
    twice = [stats.pearsonr(*(noisy(truth, parts, 0.7, draw).mean(0) for _ in range(2)))[0] for _ in range(300)]
    assert np.mean(estimates) == pytest.approx(np.mean(twice), abs=0.02)
    assert np.mean(twice) == pytest.approx(1 / (1 + 0.7**2), abs=0.02)  # classical test theory


def test_reliability_of_what_has_none():
    draw = np.random.default_rng(0)
    assert reliability(np.stack([np.arange(9.0), -np.arange(9.0)])) == 0
    assert np.isnan(reliability(np.ones((10, 9)))) and np.isnan(reliability(draw.normal(size=(1, 9))))
    parts = draw.normal(size=(10, 9)) + np.arange(9)
    missing = np.vstack([parts, np.full(9, np.nan)])
    assert reliability(missing) == reliability(parts)


def test_corrected_is_unbiased_and_raw_is_not():
    """True correlation 0.6 between 400 heads, noise as large as 0.7 of the spread: raw r is about 0.4."""
    draw = np.random.default_rng(0)
    raw, corrected = [], []
    for seed in range(40):
        x = draw.normal(size=400)
        y = 0.6 * x + 0.8 * draw.normal(size=400)
        sides = [noisy(side, 10, 0.7, draw) for side in (x, y)]
        ceiling = np.sqrt(reliability(sides[0], seed=seed) * reliability(sides[1], seed=seed))
        raw.append(stats.pearsonr(sides[0].mean(0), sides[1].mean(0)).statistic)
        corrected.append(raw[-1] / ceiling)
    error = np.std(corrected, ddof=1) / np.sqrt(40)
    assert abs(np.mean(corrected) - 0.6) < 4 * error < 0.05
    assert np.mean(raw) < 0.45


@pytest.mark.parametrize("scale", [unit, unit_ranks], ids=["pearson", "spearman"])
def test_halves_across_take_out_shared_noise(scale):
    """Two truths without any correlation, one noise: the raw r is about 1/3, the corrected one about 0."""
    draw = np.random.default_rng(0)
    raw, corrected = [], []
    for _ in range(30):
        x, y = draw.normal(size=(2, 400))
        noise = 0.7 * np.sqrt(10) * draw.normal(size=(10, 400))
        corrected.append(across_halves(x + noise, y + noise, scale))
        raw.append(stats.spearmanr((x + noise).mean(0), (y + noise).mean(0)).statistic)
    assert np.mean(raw) > 0.25
    assert abs(np.mean(corrected)) < 4 * np.std(corrected, ddof=1) / np.sqrt(30) < 0.06
    same = [across_halves(x + n, x + n, scale) for n in 0.7 * np.sqrt(10) * draw.normal(size=(20, 10, 400))]
    assert np.mean(same) == pytest.approx(1, abs=1e-12)


def test_interval_covers_the_truth():
    """Nominal 95% over 200 simulations of 36 heads: binomial noise leaves 0.895 to 0.995 once in a thousand."""
    draw = np.random.default_rng(0)
    covered = np.zeros(3)
    for seed in range(200):
        x = draw.normal(size=36)
        y = 0.6 * x + 0.8 * draw.normal(size=36)
        truths = {"pearson": 0.6, "spearman": 6 / np.pi * np.arcsin(0.3), "kendall": 2 / np.pi * np.arcsin(0.6)}
        ends = [interval(x, y, COEFFICIENTS[name], 400, seed) for name in truths]
        covered += [low <= truth <= high for (low, high), truth in zip(ends, truths.values(), strict=True)]
    assert ((covered / 200 >= 0.895) & (covered / 200 <= 0.995)).all(), covered


def test_full_agreement_has_an_interval_too():
    for coefficient in COEFFICIENTS.values():
        assert interval(TRUTH, 3 * TRUTH + 1, coefficient, 100) == pytest.approx((1, 1), abs=1e-9)
        assert np.isnan(interval(TRUTH, np.ones(36), coefficient, 100)).all()
    few, others = np.arange(4.0), np.array([0.0, 2, 1, 3])
    low, high = interval(few, others, COEFFICIENTS["pearson"])  # one head four times is a resample, too
    assert -1.001 < low < 0.8 < high < 1.001


@pytest.mark.parametrize("shared", [False, True])
def test_one_truth_is_seldom_called_different(shared):
    """At most 5% nominally; of 60, more than 8 would be a wonder."""
    draw, readings = np.random.default_rng(0), []
    for seed in range(60):
        truth = np.exp(draw.normal(size=24))
        sides = [noisy(truth, 10, 0.4, draw) for _ in range(2)]
        if shared:
            sides[1] = (sides[0] + sides[1]) / 2
        found = correlations(*(side.mean(0) for side in sides), *sides, shared, resamples=200, seed=seed)
        readings.append(reading(found[0]))
    assert readings.count(DIFFER) + readings.count(NEARLY) <= 8 and readings.count(SAME) >= 45


def test_readings(tmp_path):
    a = a_run(tmp_path / "a.h5", TRUTH, 0.2, seed=1)
    same = compare(a, a_run(tmp_path / "b.h5", TRUTH, 0.2, seed=2))
    assert same.views[0].reading == SAME and "What keeps r from 1 is noise" in in_words(same)
    permuted = np.random.default_rng(0).permutation(TRUTH)
    other = compare(a, a_run(tmp_path / "c.h5", permuted, 0.2, seed=2))
    assert other.views[0].reading == DIFFER and "Not quite the same heads" in in_words(other)
    assert abs(other.views[0].correlations[1].value) < 0.4
    flat = compare(a, a_run(tmp_path / "d.h5", np.ones(36), 0.5, seed=2))
    assert flat.views[0].reading == NOISY and "too noisy to tell" in in_words(flat)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0.7, 0.5, 0.85, 0.8, 0.7 / 0.8), SAME),
        ((0.7, 0.5, 0.79, 0.8, 0.7 / 0.8), DIFFER),
        ((0.9, 0.85, 0.93, 0.95, 0.9 / 0.95), NEARLY),
        ((0.2, -0.2, 0.9, 0.8, 0.25), OPEN),
        ((0.3, 0.1, 0.45, 0.4, 0.75), NOISY),
        ((0.3, 0.1, 0.45, np.nan, np.nan), UNKNOWN),
        ((0.0, -0.2, 0.2, 0.8, 0.1), DIFFER),
        ((0.95, 0.9, 0.97, 0.6, 0.8), DIFFER),  # shared noise: r is above its ceiling, and yet
    ],
)
def test_reading(numbers, expected):
    assert reading(Correlation("pearson", *numbers)) == expected


def test_two_snapshots_of_one_file(files):
    found = compare(files[0], files[0], snapshot=0, other=-1)
    assert found.shared and found.sides == ("news.h5, epoch 1 (update 300)", "news.h5, epoch 2 (update 600)")
    blocks = files[0].importance["blocks"].values.astype(float)
    pearson = found.views[0].correlations[0]
    assert pearson.corrected == pytest.approx(across_halves(blocks[0], blocks[1], unit), rel=1e-9)
    assert pearson.corrected != pytest.approx(pearson.value / pearson.ceiling, rel=1e-4)
    assert "shared noise" in found.notes[0]
    with pytest.raises(ValueError, match="with itself: name another snapshot or file"):
        compare(files[0], files[0], snapshot=1, other=-1)


def test_shared_examples_are_known_by_their_fingerprint(tmp_path):
    a, b = (a_run(tmp_path / f"{n}.h5", TRUTH, seed=n, data="same") for n in (1, 2))
    assert compare(a, b).shared
    assert not compare(a, a_run(tmp_path / "3.h5", TRUTH, seed=3, data="other")).shared


@pytest.mark.parametrize(
    ("one", "other", "importance", "ablation"),
    [
        ({"data": "d", "scored": "s"}, {"data": "d", "scored": "s"}, True, True),
        ({"data": "d", "scored": "s"}, {"data": "d", "scored": "t"}, True, False),
        ({"data": "d", "scored": "s"}, {"data": "e", "scored": "s"}, False, True),
        # older files: without a fingerprint of what was scored
        ({"data": "d", "settings": {"score_examples": 200}}, {"data": "d", "scored": "s"}, True, False),
        *[
            ({"data": "d", "settings": {name: 1, "score": "x"}}, {"data": "d", "settings": {name: 2}}, True, False)
            for name in ("score_examples", "subset", "seed", "source")
        ],
        ({"data": "d", "settings": {"seed": 1, "score": "x"}}, {"data": "d", "settings": {"seed": 1}}, True, True),
        ({"data": "d"}, {"data": "d"}, True, True),
        ({"data": "d"}, {"data": "e"}, False, False),
        ({}, {}, False, False),
    ],
)
def test_ablations_share_what_was_scored_and_not_what_importance_is_of(
    tmp_path, monkeypatch, one, other, importance, ablation
):
    monkeypatch.setattr(correlation, "interval", lambda *_: (np.nan, np.nan))  # long, and not asked for
    harm = np.stack([TRUTH, TRUTH])
    runs = [
        a_run(tmp_path / f"{n}.h5", TRUTH, seed=n, harm=harm, attrs={"signature": json.dumps(signed)})
        for n, signed in enumerate((one, other))
    ]
    assert [compare(*runs, what).shared for what in ("importance", "ablation")] == [importance, ablation]


def test_heads_are_matched_by_what_they_are(tmp_path, files):
    """The same heads in another order, as another library lists them."""
    order = np.random.default_rng(0).permutation(36)
    mixed = a_run(tmp_path / "mixed.h5", TRUTH[order], 0.0, heads=tuple(column[order] for column in HEADS))
    found = compare(a_run(tmp_path / "plain.h5", TRUTH, 0.0), mixed)
    np.testing.assert_allclose(found.x, found.y)
    assert [one.value for one in found.views[0].correlations] == pytest.approx([1, 1, 1])
    shaky = a_run(tmp_path / "shaky.h5", TRUTH[order], 0.5, heads=tuple(column[order] for column in HEADS))
    blocks = shaky.importance["blocks"].values[-1].astype(float)
    mine = files[0].importance["blocks"].values[-1].astype(float)
    for view in compare(files[0], shaky).views[1:]:
        sides = mine[:, HEADS[0] == view.name], blocks[:, HEADS[0][order] == view.name]
        expected = np.sqrt(reliability(sides[0]) * reliability(sides[1]))
        assert view.correlations[0].ceiling == pytest.approx(expected)


def test_other_architectures_are_refused(tmp_path, files):
    small = a_run(tmp_path / "small.h5", TRUTH[:24], heads=layout(4, 3, ("encoder", "decoder")))
    with pytest.raises(RunFileError, match=r"36 and 24 heads\): only .*news.h5 has cross layer 0 head 0.* and 9 more"):
        compare(files[0], small)


def test_what_is_missing_is_said(tmp_path, files):
    bare = a_run(tmp_path / "bare.h5", TRUTH)
    with pytest.raises(RunFileError, match="bare.h5 has no ablation of single heads at epoch 2"):
        compare(files[0], bare, what="ablation")
    found, missing = compare_all(files[0], bare, ("ablation", "importance"))
    assert [one.what for one in found] == ["importance"] and "no ablation" in missing[0]
    with pytest.raises(RunFileError, match="has 2 snapshots measured in full, so there is none at position 2"):
        compare(*files, snapshot=2)
    with pytest.raises(ValueError, match="unknown measure 'heat'; there are ablation, importance"):
        compare(*files, what="heat")


def test_heads_without_numbers_are_left_out_and_unknown_noise_is_said(tmp_path, files):
    mean = np.stack([OTHER, TRUTH])
    mean[:, 5] = np.nan
    blocks = np.full((2, 10, 36), np.nan)
    path = write_run(
        tmp_path / "nan.h5", blocks, HEADS, {"estimator": "bertology"}, importance__mean=mean, importance__blocks=blocks
    )
    found = compare(files[0], load_run(path))
    assert found.views[0].heads == 35 and found.views[0].reading == UNKNOWN
    assert "is not known" in in_words(found)
    assert "1 heads have no numbers" in found.notes[0] and "example and bertology" in found.notes[1]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["views"][0]["correlations"][0]["ceiling"] is None


def test_the_command(files, tmp_path, capsys):
    paths = [str(run.path) for run in files]
    assert main(["compare", *paths, "--figure", str(tmp_path / "f.svg")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in ("Harm of removing each head alone: news.h5, epoch 2", "Importance I(h)", "Kendall", "f.svg"):
        assert words in out
    svg = (tmp_path / "f.svg").read_text()
    assert "<svg" in svg
    assert main(["compare", paths[0], paths[0], "--snapshot", "0", "--other", "-1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [one["what"] for one in answer["comparisons"]] == ["ablation", "importance"]
    assert len(answer["comparisons"][0]["heads"]["x"]) == 36
    assert main(["compare", *paths, "--figure", "f.doc"]) == 2 and "f.doc should end in" in capsys.readouterr().err


def test_the_figure_has_every_head_under_its_kind(files):
    found = compare(*files)
    axes = draw_comparison([found]).axes[0]
    drawn = {one.get_label(): one for one in axes.collections}
    assert set(drawn) == {f"{kind} (12 heads)" for kind in LOOKS}
    for kind in LOOKS:
        here = found.kind == kind
        np.testing.assert_allclose(drawn[f"{kind} (12 heads)"].get_offsets(), np.stack([found.x, found.y], 1)[here])
    assert len({one.get_paths()[0].vertices.shape for one in drawn.values()}) == 3  # three shapes of marker
    r = found.views[0].correlations[0].value
    assert f"Pearson r = {r:.2f}" in axes.get_title() and "news.h5" in axes.get_xlabel()
    assert "films.h5" in axes.get_ylabel()


def test_without_torch(files):
    code = "import sys; from headdynamics.analysis.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = run_without(BANNED, code, "compare", *(run.path for run in files), "--what", "importance")
    assert (done.returncode, done.stderr) == (0, "") and "Pearson r = " in done.stdout
