"""Readers of a model with two stacks of one kind, where (kind, layer, number) is no name of a head."""

import h5py
import numpy as np
import pytest
from fake_run import blocks_of, write_run
from headdynamics.analysis.__main__ import main
from headdynamics.analysis.ablation_figure import ablation_figure
from headdynamics.analysis.ablations import effects
from headdynamics.analysis.compare import compare
from headdynamics.analysis.draw import draw_heads
from headdynamics.analysis.load import load_run
from headdynamics.analysis.matching import same_heads
from headdynamics.analysis.settling import settle

from headdynamics.schema import RunFileError

MODULES = np.repeat([f"{tower}_model.encoder.layers.{n}.self_attn" for tower in ("text", "vision") for n in (0, 1)], 4)
HEADS = np.array(["encoder"] * 16), np.tile(np.repeat([0, 1], 4), 2), np.tile(np.arange(4), 4)
TRUTH = np.exp(np.random.default_rng(0).normal(size=16))
DELTA = -np.arange(1.0, 17) / 100


def towers(path, order=None, prefix="", modules=MODULES, heads=HEADS):
    """Three snapshots of sixteen heads, listed in this order, in a wrapper with this prefix."""
    order = np.arange(16) if order is None else order
    changed = {}
    for group in ("one", "all_but_one"):
        rows = {name: np.tile(DELTA[order], (3, 1)) for name in ("delta", "delta_first", "delta_second")}
        rows |= {"score": 0.9 + rows["delta"], "stderr": rows["delta"] * 0, "pvalue": np.ones((3, 16))}
        changed |= {f"ablation__{group}__{name}": values for name, values in rows.items()}
    modules = np.array([prefix + path for path in modules[order]])
    listed = tuple(column[order] for column in heads)
    blocks = blocks_of([TRUTH[order]] * 3, 0.0)
    optional = ("ablation/one", "ablation/all_but_one")
    write_run(path, blocks, listed, optional=optional, heads__module=modules, snapshots__score=[0.9] * 3, **changed)
    return load_run(path)


def test_heads_are_matched_within_their_tower(tmp_path):
    plain = towers(tmp_path / "a.h5")
    assert same_heads(plain, plain) == list(range(16))
    images_first = np.roll(np.arange(16), 8)
    wrapped = towers(tmp_path / "b.h5", images_first, "clip.")
    assert same_heads(plain, wrapped) == images_first.tolist()
    for what in ("importance", "ablation"):
        found = compare(plain, wrapped, what)
        np.testing.assert_allclose(found.x, found.y)


def test_towers_of_other_names_are_refused_by_name(tmp_path):
    other = towers(tmp_path / "b.h5", modules=np.char.replace(MODULES, "vision", "audio"))
    with pytest.raises(RunFileError, match="a.h5 has encoder layer 0 head 0 of vision_model, .* and 5 more"):
        same_heads(towers(tmp_path / "a.h5"), other)


def test_where_no_head_repeats_modules_may_have_any_name(tmp_path):
    heads = HEADS[0], np.repeat(np.arange(4), 4), HEADS[2]
    plain = towers(tmp_path / "a.h5", heads=heads)
    assert same_heads(plain, towers(tmp_path / "b.h5", modules=np.array(["x"] * 16), heads=heads)) == list(range(16))


def test_the_table_has_a_part_for_each_tower(path, capsys):
    towers(path)
    assert main(["ablations", str(path), "--what", "one"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    text, vision = out.index("encoder, text_model: change"), out.index("encoder, vision_model: change")
    assert text < out.index("0 -0.010 -0.020 -0.030 -0.040 1 -0.050 -0.060 -0.070 -0.080") < vision
    assert vision < out.index("0 -0.090 -0.100 -0.110 -0.120 1 -0.130 -0.140 -0.150 -0.160")
    assert main(["ablations", str(path), "--what", "all-but-one"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "encoder, text_model 1 0 0.85" in out and "encoder, vision_model 1 0 0.77" in out


def test_the_figures_have_a_panel_for_each_tower(path):
    run = towers(path)
    for figure, values in ((ablation_figure(effects(run, "one")), DELTA), (draw_heads(run), TRUTH)):
        panels = {axes.get_title(): axes.images[0].get_array() for axes in figure.axes if axes.images}
        assert list(panels) == ["encoder, text_model", "encoder, vision_model"]
        for shown, expected in zip(panels.values(), np.split(values, 2), strict=True):
            np.testing.assert_allclose(shown, expected.reshape(2, 4), rtol=1e-6)


def test_settling_scales_each_layer_of_each_tower(tmp_path):
    """Within layers, what one tower weighs against the other is no matter: the images' heads times 1000."""
    truth = np.exp(np.random.default_rng(1).normal(size=(6, 16)))
    blocks = blocks_of(truth, 0.3)
    views = []
    for name, factor in (("a.h5", 1.0), ("b.h5", 1000.0)):
        scaled = blocks * np.repeat([1.0, factor], 8)
        views.append(settle(load_run(write_run(tmp_path / name, scaled, HEADS, heads__module=MODULES))).views)
    everything, within = zip(*views, strict=True)
    np.testing.assert_allclose(within[0].r, within[1].r, rtol=1e-4)
    assert np.abs(everything[0].r - everything[1].r).max() > 0.01


def test_the_layers_of_both_towers_are_counted(path, capsys):
    towers(path)
    assert main(["show", str(path)]) == 0
    assert "encoder heads 16 in 4 layers" in " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two real runs of one CLIP, the second inside a wrapper, and a tower's tags in TensorBoard."""
    pytest.importorskip("transformers")
    import two_towers

    import headdynamics as hd

    paths = [tmp_path_factory.mktemp("clip") / f"{name}.h5" for name in ("plain", "wrapped")]
    for path, model in zip(paths, (two_towers.build(), two_towers.Wrapped(0)), strict=True):
        asked = {"orders": ["importance"], "fractions": (0, 1), "ablations": ["one"], "strict": True}
        watching = hd.Observer(model, str(path), batches=two_towers.BATCHES, loss=two_towers.loss, **asked)
        watching.snapshot(update=1, epoch=1.0)
        watching.close()
    return paths


def test_a_real_model_and_the_same_in_a_wrapper_have_the_same_heads(measured):
    plain, wrapped = map(load_run, measured)
    assert wrapped.heads["module"].values[0].startswith("clip.text_model.")
    assert same_heads(plain, wrapped) == list(range(16))
    for what in ("importance", "ablation"):
        found = compare(plain, wrapped, what)
        assert found.shared and [one.value for one in found.views[0].correlations] == pytest.approx([1, 1, 1])
    with h5py.File(measured[0]) as file:
        np.testing.assert_array_equal(found.x, file["ablation/one/delta"][0])  # of the loss: higher is worse
