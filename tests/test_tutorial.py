"""The tutorial notebook, executed: its numbers against what h5py reads, its words against its numbers."""

import json
import re
from pathlib import Path

import h5py
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples/tutorial.ipynb"
KINDS = ("encoder", "decoder", "cross")
TOLD = """
import json
print(json.dumps({
    "top": top[["kind", "layer", "number"]].values.tolist(), "grid": grid.values.tolist(), "half": half.values.tolist(),
    "verdicts": {view.name: [view.verdict, view.update] for view in found.views},
    "effect": effect.values.tolist(), "r": [view.correlations[0].value for view in compared.views],
    "share": share.div(share.sum(axis=1), axis=0)[["encoder", "decoder", "cross"]].values.tolist(),
}))
"""


@pytest.fixture(scope="module")
def execute(tmp_path_factory):
    """A function that runs cells in a folder, in a kernel of its own that knows nothing of this user's settings."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(home / name))
        patch.delenv("MPLBACKEND", raising=False)

        def run(cells, folder):
            book = nbformat.v4.new_notebook(cells=cells)
            NotebookClient(book, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
            return book.cells

        yield run


@pytest.fixture(scope="module")
def executed(execute):
    """(its cells with their outputs, the values of its names), run where Jupyter would: in examples/."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    *done, told = execute([*cells, nbformat.v4.new_code_cell(TOLD)], NOTEBOOK.parent)
    return done, json.loads(told.outputs[0].text)


@pytest.fixture(scope="module")
def files():
    """run file -> dataset's path -> its array."""
    found = {}
    for name in ("training", "help", "packages"):
        with h5py.File(ROOT / f"results/translation-{name}.h5") as file:
            read = {}
            file.visititems(lambda path, data, to=read: to.update({path: data[()]}) if hasattr(data, "shape") else None)
        found[name] = read
    return found


def text_of(cells):
    """Everything that a reader sees beside pictures and tables."""
    return "".join(one.text for cell in cells for one in cell.get("outputs", ()) if one.output_type == "stream")


def test_it_is_committed_as_nobody_has_run_it():
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert 10 <= len(code) <= 14 and not any(cell.outputs or cell.execution_count or cell.metadata for cell in code)


def test_every_cell_shows_something_and_none_complains(executed):
    cells = [cell for cell in executed[0] if cell.cell_type == "code"]
    outputs = [one for cell in cells for one in cell.outputs]
    assert all(cell.outputs for cell in cells[1:])
    assert not [one for one in outputs if one.get("name") == "stderr" or one.output_type == "error"]
    assert sum("image/png" in one.get("data", {}) for one in outputs) == 5


def test_importance_and_curves_are_those_of_the_file(executed, files):
    told, read = executed[1], files["training"]
    kind, last = read["heads/kind"].astype("U"), read["importance/mean"][-1]
    place = [kind.tolist(), read["heads/layer"].tolist(), read["heads/number"].tolist()]
    best = np.argsort(-last)[:10]
    assert told["top"] == [[column[head] for column in place] for head in best]
    shown = [told["grid"][KINDS.index(k)][layer][number] for k, layer, number in zip(*place, strict=True)]
    assert np.array_equal(shown, last.astype(float)) and np.shape(told["grid"]) == (3, 4, 8)
    assert read["order"].astype("U").tolist() == ["importance", "random-1"] and read["fraction"][5] == 0.5
    assert np.allclose(told["half"], read["curve/score"][:, :, 5] / read["curve/score"][:, :, 0], rtol=1e-12)
    sums = np.stack([read["importance/mean"][:, kind == one].sum(1) for one in KINDS], axis=1)
    assert np.allclose(told["share"], sums / sums.sum(1, keepdims=True), rtol=1e-5)


def test_it_settles_as_the_repositorys_table_says(executed):
    table = (ROOT / "results/tables/settle-translation.txt").read_text()
    for name, (verdict, update) in executed[1]["verdicts"].items():
        row = next(line for line in table.splitlines() if line.startswith(f"│ {name}"))
        assert f"│ {verdict} " in row and (update is None or f"(update {update})" in row)
    assert "Head importance settled at epoch 3 (update 1281)" in text_of(executed[0])


def test_ablations_are_counted_beside_chance(executed, files):
    delta, pvalue = (files["help"][f"ablation/one/{name}"][-1] for name in ("delta", "pvalue"))
    rejected = np.sort(pvalue) <= 0.01 / np.arange(96, 0, -1)  # Holm: as long as all before are
    counts = ((pvalue <= 0.01).sum(), 0.01 * len(pvalue), np.cumprod(rejected).sum(), (delta > 0).sum())
    assert (counts[0], counts[2], counts[3], np.sum((delta > 0) & (pvalue <= 0.01))) == (4, 0, 32, 0)
    words = text_of(executed[0])
    assert "p <= 0.01: 4 heads; chance alone would mark about 1.0\n" in words and round(counts[1], 1) == 1.0
    assert "after Holm's correction for 96 tests: 0 heads" in words
    assert "better without the head: 32 heads; of these p <= 0.01: 0\n" in words
    effect = executed[1]["effect"]
    assert [row[3] for row in effect] == np.sort(delta).tolist()
    assert [row[:3] for row in effect[:2]] == executed[1]["top"][:2]  # "also those that I(h) put on top"


def test_the_comparison_is_pearsons(executed, files):
    kind = files["help"]["heads/kind"].astype("U")
    a, b = (files[name]["importance/mean"][-1].astype(float) for name in ("help", "packages"))
    views = [kind != "", *(kind == name for name in KINDS)]
    assert np.allclose(executed[1]["r"], [np.corrcoef(a[view], b[view])[0, 1] for view in views], atol=1e-9)
    words = text_of(executed[0])
    assert re.search(r"all heads  r = 0\.94 .*: nearly the same\n(.*\n)+cross .*: different beyond noise\n", words)


def test_it_finds_the_run_files_from_the_root_too(execute):
    first = next(cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code")
    shown = execute([first, nbformat.v4.new_code_cell("print(results, len(run.heads['head']))")], ROOT)
    assert text_of(shown) == "results 96\n"


def test_its_links_lead_somewhere():
    words = "".join(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells)
    targets = re.findall(r"\]\(([^)#]+)", words)
    assert len(targets) >= 5 and all((NOTEBOOK.parent / target).is_file() for target in targets)
