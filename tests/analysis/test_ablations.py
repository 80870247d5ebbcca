"""Ablations read from a run file: the numbers, the tables, the CSV and the figure, by command and without torch."""

import csv

import h5py
import numpy as np
import pytest
from blocked import BANNED, run_without
from fake_run import blocks_of, layout, write_run
from headdynamics.analysis.__main__ import main
from headdynamics.analysis.ablation_figure import ablation_figure
from headdynamics.analysis.ablation_table import decimals
from headdynamics.analysis.ablations import effects
from headdynamics.analysis.load import load_run

from headdynamics.schema import RunFileError

MAIN = "import sys; from headdynamics.analysis.__main__ import main; sys.exit(main(sys.argv[1:]))"
NAN = float("nan")
HEADS = layout(2, 4, ("encoder", "decoder"))  # 16 heads
P = np.array([0.0001, 0.002, 0.009, 0.02, *[0.5] * 12])
DELTA = np.array([-0.2, 0.05, -0.03, 0.01, *np.linspace(-0.001, 0.001, 12)])
BLOCKS = blocks_of(np.exp(np.random.default_rng(0).normal(size=(3, 16))), 0.3)


def ablated(path, one=DELTA, alone=None, p=P, test="mcnemar", **more):
    """A run of three snapshots; the last one's ablations are given, the others' are zero."""
    optional, changed = [], {}
    for group, delta in (("one", one), ("all_but_one", alone)):
        if delta is None:
            continue
        optional.append(f"ablation/{group}/")
        names = ("score", "delta", "stderr", "pvalue", "delta_first", "delta_second")
        rows = {name: np.zeros((3, 16)) for name in names}
        rows["score"][-1], rows["delta"][-1], rows["stderr"][-1], rows["pvalue"][-1] = 0.9 + delta, delta, 0.01, p
        rows["delta_first"][-1], rows["delta_second"][-1] = delta, delta[::-1]
        changed |= {f"ablation__{group}__{name}": values for name, values in rows.items()}
    score = [0.5, 0.7, 0.9]
    write_run(path, BLOCKS, HEADS, optional=optional, **{"snapshots__score": score, **changed, **more})
    with h5py.File(path, "a") as file:
        for group in optional:
            file[f"{group}pvalue"].attrs["test"] = test
    return path


def printed(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_the_numbers(path):
    found = effects(load_run(ablated(path)))
    assert (found.what, found.test, found.n, found.update) == ("one", "mcnemar", 1000, 900)
    assert found.base == pytest.approx(0.9, rel=1e-15)
    assert found.delta.tolist() == DELTA.tolist() and found.pvalue.tolist() == P.tolist()
    assert found.block.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert found.significant(0.01).sum() == 3 and found.significant(0.01, "holm").tolist() == [True] + [False] * 15
    assert found.significant(0.05, "bh").sum() == 3 and found.significant(0.05, "holm").sum() == 2
    assert effects(load_run(path), snapshot=0).delta.tolist() == [0] * 16
    assert load_run(path).ablation_one["pvalue"].attrs == {"test": "mcnemar"}


def test_the_table_of_one_head(path, capsys):
    assert main(["ablations", str(ablated(path))]) == 0
    out = printed(capsys)
    assert "TransformerModel at epoch 3 (update 900): each head masked in turn" in out
    assert "accuracy of the whole model: 0.9 (1000 examples)" in out
    assert "0 -0.200* +0.050* -0.030* +0.010 1 -0.001 -0.001" in out and "-0.000" not in out
    assert "encoder: change" in out and "decoder: change" in out and "a minus is worse" in out
    assert "* p <= 0.01 uncorrected (McNemar's exact test of each head" in out and "16 heads tested" in out
    assert "Chance alone marks about 0.16 of 16 heads" in out
    assert "Found: 3 uncorrected; 1 after Holm's correction; 1 after Benjamini and Hochberg's." in out


def test_the_correction_decides_the_marks(path, capsys):
    assert main(["ablations", str(ablated(path)), "--correction", "holm", "--alpha", "0.05"]) == 0
    out = printed(capsys)
    assert "0 -0.200* +0.050* -0.030 +0.010" in out and "p <= 0.05 after Holm's correction" in out
    assert "Chance alone marks about 0.8 of 16 heads" in out and "Found: 4 uncorrected" in out


def test_the_mark_is_bold_too(path):
    from headdynamics.analysis.ablation_table import _cell

    assert str(_cell(0.5, True, 1).style) == "bold" and str(_cell(0.5, False, 1).style) == ""


def test_the_best_head_of_each_layer(path, capsys):
    """Tables 2 and 3; on held-out data other heads, and smaller numbers."""
    alone = np.array([-3.0, -1, -2, -4, 0.5, 0, 0, 0, *[-1.0] * 7, 2.0])
    assert main(["ablations", str(ablated(path, None, alone))]) == 0
    out = printed(capsys)
    assert "every head masked but one in its layer" in out and "partly luck" in out
    # the second half is the first one backwards: in encoder 0 it has 2, -1, -1, -1, in encoder 1 -1 everywhere, and
    # in decoder 1 -4, -2, -1, -3; so what one half chooses gets from the other -1 and -3, -1 and 0.5, -3 and -1
    assert "encoder 0 1 -0.1 -1.00* 0.002 -2.00 1, 0" in out
    assert "encoder 1 0 1.4 +0.50 0.5 -0.25 0, 0" in out
    assert "decoder 1 3 2.9 +2.00 0.5 -2.00 3, 2" in out


def test_lower_is_better(path, capsys):
    alone = np.arange(16.0)
    ablated(path, DELTA, alone, attrs={"greater_is_better": False, "metric": "loss"})
    assert main(["ablations", str(path)]) == 0 and "a plus is worse" in printed(capsys)
    assert effects(load_run(path), "all-but-one").best().head.tolist() == [0, 4, 8, 12]


def test_csv(path, tmp_path):
    out = tmp_path / "heads.csv"
    p = P.copy()
    p[5] = NAN
    assert main(["ablations", str(ablated(path, p=p)), "--csv", str(out)]) == 0
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 16
    assert (rows[1]["kind"], rows[1]["layer"], rows[1]["number"], rows[1]["what"]) == ("encoder", "0", "1", "one")
    assert [float(row["delta"]) for row in rows] == DELTA.tolist()
    assert rows[5]["pvalue"] == rows[5]["pvalue_holm"] == rows[5]["pvalue_bh"] == ""
    assert float(rows[0]["pvalue_holm"]) == pytest.approx(0.0015)
    assert float(rows[1]["pvalue_bh"]) == pytest.approx(0.015)
    assert rows[0]["test"] == "mcnemar" and float(rows[3]["delta_second_half"]) == DELTA[12]


def test_the_figure_shows_every_head(path, tmp_path):
    p = P.copy()
    figure = ablation_figure(effects(load_run(ablated(path, p=p))))
    histogram, *panels, bar = figure.axes
    assert sum(patch.get_height() for patch in histogram.patches) == 16
    names = [text.get_text() for text in histogram.get_legend().get_texts()]
    assert "13 heads, not significant" in names and "whole model: 0.9" in names
    assert any("3 heads with p" in name and "McNemar" in name for name in names)
    assert [axes.get_title() for axes in panels] == ["encoder", "decoder"]
    shown = panels[0].images[0]
    assert shown.get_array().tolist() == DELTA[:8].reshape(2, 4).tolist()
    assert (shown.norm.vmin, shown.norm.vmax) == (-0.2, 0.2)
    assert [text.get_position() for text in panels[0].texts] == [(0, 0), (1, 0), (2, 0)] and not panels[1].texts
    red, _, blue, _ = shown.to_rgba(np.array([[-0.2]]))[0, 0]
    assert red > blue and "orange is worse" in bar.get_ylabel()
    ablated(path, attrs={"greater_is_better": False})
    shown = ablation_figure(effects(load_run(path))).axes[1].images[0]
    red, _, blue, _ = shown.to_rgba(np.array([[-0.2]]))[0, 0]
    assert blue > red


def test_a_score_without_examples(path, capsys, tmp_path):
    ablated(path, p=np.full(16, NAN), test="none", snapshots__n_score=[0, 0, 0])
    assert main(["ablations", str(path), "--figure", str(tmp_path / "f.png")]) == 0
    out = printed(capsys)
    assert "number of examples unknown" in out and "No test: accuracy was given as a plain number" in out
    assert "*" not in out.split("No test")[0]


def test_every_delta_zero_can_be_drawn(path, tmp_path):
    assert main(["ablations", str(ablated(path, DELTA * 0)), "--figure", str(tmp_path / "f.svg")]) == 0


def test_without_torch(path, tmp_path):
    places = ["--figure", tmp_path / "f.pdf", "--csv", tmp_path / "f.csv"]
    done = run_without(BANNED, MAIN, "ablations", ablated(path), *places)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.endswith(f"{tmp_path}/f.csv\n{tmp_path}/f.pdf\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--what", "all-but-one"], "holds no ablation all-but-one: it holds one (--hd-ablate"),
        (["--snapshot", "3"], "holds 3 snapshots measured in full: there is no number 3"),
        (["--snapshot", "-4"], "there is no number -4"),
        (["--alpha", "5"], "give a number between 0 and 1"),
        (["--figure", "f.xyz"], "should end in .png, .pdf or .svg"),
        (["--what", "two"], "unknown choice 'two'"),
    ],
)
def test_errors_are_one_line(path, capsys, arguments, words):
    assert main(["ablations", str(ablated(path)), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err


def test_a_run_without_ablations(path):
    write_run(path, BLOCKS, HEADS)
    with pytest.raises(RunFileError, match="holds no ablation of heads: ask for them in training"):
        effects(load_run(path))


def test_a_snapshot_before_the_first_ablation(path):
    ablated(path, np.full(16, NAN))
    with pytest.raises(RunFileError, match="holds no ablation one at update 900"):
        effects(load_run(path))


def test_decimals():
    assert [decimals(np.array([x])) for x in (0.2, 0.0375, -3.24, 41.0, 1234.5, 0.0, 3e-12)] == [3, 4, 2, 1, 0, 1, 8]
    assert decimals(np.array([NAN, 0.5])) == 3
