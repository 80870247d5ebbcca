"""What strangers' files may do: nothing. No source has a way to run them; a run file's text is shown, not obeyed."""

from __future__ import annotations

import ast
import json
import struct
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import h5py
import models
import numpy as np
import pytest
import torch
from fake_run import blocks_of, layout, write_run
from headdynamics.analysis.load import load_run
from runs import a_run, a_snapshot

import headdynamics as hd
from headdynamics.record.hdf5 import HDF5Recorder
from headdynamics.record.tensorboard import TensorBoardRecorder
from headdynamics.schema import RunFileError

ROOT = Path(hd.__file__).parents[1]
ROOMS = ("headdynamics", "plugins", "analysis")
RUNS = {"eval", "exec", "compile", "__import__", "breakpoint"}
#: what unpickles, or starts a program or a shell: "module": all of it; else its calls
MODULES = {"subprocess", "marshal", "shelve", "dill", "cloudpickle", "joblib", "pty", "code", "runpy", "ctypes"}
CALLS = {
    "os": {"system", "popen", "execv", "execve", "execvp", "spawnl", "spawnv", "startfile"},
    "pickle": {"load", "loads", "Unpickler"},
    "np": {"load"},
    "numpy": {"load"},
    "yaml": {"load", "unsafe_load", "full_load", "load_all"},
    "hub": {"load"},
    "jit": {"load"},
    "asyncio": {"create_subprocess_shell", "create_subprocess_exec"},
    "dist": {"all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list", "recv_object_list"},
}
#: uses that are right, and why
ALLOWED = {
    ("headdynamics/ranks.py", "dist.all_gather_object"): "between the processes of one training",
}


def dangers(source: str) -> set[str]:
    """Every way in which a module could run what a file holds."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names if one.name.partition(".")[0] in MODULES}
        if isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0] if not node.level else ""
            names = {one.name for one in node.names}
            found |= {f"{module}.{name}" for name in names if module in MODULES or name in CALLS.get(module, ())}
        if isinstance(node, ast.Call):
            found |= _called(node)
    return found


def _called(node: ast.Call) -> set[str]:
    named = {word.arg: ast.unparse(word.value) for word in node.keywords}
    found = {f"{name}={named[name]}" for name in ("shell", "trust_remote_code", "allow_pickle") if name in named}
    if "weights_only" in named and named["weights_only"] != "True":
        found.add(f"weights_only={named['weights_only']}")
    if isinstance(node.func, ast.Name) and node.func.id in RUNS:
        found.add(node.func.id)
    if isinstance(node.func, ast.Attribute):
        owner = ast.unparse(node.func.value).rpartition(".")[2]
        if node.func.attr in CALLS.get(owner, ()):
            found.add(f"{owner}.{node.func.attr}")
        if (owner, node.func.attr) == ("torch", "load") and named.get("weights_only") != "True":
            found.add("torch.load without weights_only=True")
    return {one for one in found if one.partition("=")[2] != "False"} | {one for one in found if "weights" in one}


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_in_the_source_can_run_a_file(room):
    """Beside what the table allows, which has to be there."""
    files = sorted((ROOT / room).rglob("*.py"))
    found = {(str(f.relative_to(ROOT)), one) for f in files for one in dangers(f.read_text(encoding="utf-8"))}
    assert len(files) > 10
    assert found == {use for use in ALLOWED if use[0].startswith(f"{room}/")}


@pytest.mark.parametrize(
    "source",
    [
        "eval(x)", "os.system(x)", "import subprocess", "from subprocess import run", "run(x, shell=True)",
        "pickle.loads(x)", "from pickle import loads", "torch.load(x)", "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)", "yaml.load(x)", "torch.hub.load(x)", "import dill.source",
        "AutoModel.from_pretrained(x, trust_remote_code=True)", "torch.distributed.dist.all_gather_object(x, y)",
    ],
)  # fmt: skip
def test_the_walk_over_the_source_sees(source):
    """Each way; and none where there is none."""
    assert dangers(source)
    assert not dangers("import pickle\nmodel.eval()\ntorch.load(x, weights_only=True)\nrun(x, shell=False)")


BAD = (
    "[red]x[/red] \x1b[31mred\x1b[0m \x9b2J \u202edlrow \x07$\\frac{ <script>alert(1)</script> --> "
    "`touch hit` $(touch hit)"
)
READ = """
import sys
seen = []
def hook(event, args):
    theirs = any(word in str(args) for word in ("c4nary", "touch hit", "/C calc", "alert(1)"))
    acts = event in ("open", "os.system", "os.exec", "subprocess.Popen", "compile")
    if event == "pickle.find_class" or theirs and acts:
        seen.append((event, str(args)))
sys.addaudithook(hook)
from headdynamics.__main__ import main
run = sys.argv[1]
for command in (["show", run], ["settle", run], ["settle", "--json", run], ["curves", run, "-o", "c.svg"],
                ["orders", run, "--figure", "o.svg"], ["ablations", run, "--csv", "a.csv", "--figure", "a.svg"],
                ["compare", run, run, "--other", "1", "--figure", "m.svg"],
                ["export", run, "--what", "all", "--csv", "-o", "t/"],
                ["export", run, "--what", "all", "--parquet", "-o", "t/"], ["report", run, "-o", "r.html"],
                ["show", "no\\x1b[31m.h5"]):
    code = main(command)
    assert code in (0, 2), (command, code)
    print("code", code, file=sys.stderr)
print("SEEN", seen, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What every command makes of a run file whose every text is hostile: (folder, stdout, stderr)."""
    folder = tmp_path_factory.mktemp("hostile")
    c4nary = folder / "c4nary"
    c4nary.write_text("secret")
    attrs = {name: f"{name} {BAD}" for name in ("model", "metric", "framework", "estimator", "headdynamics", "created")}
    signature = {f"settings {BAD}": BAD, "weights": str(c4nary), "hash": "../../c4nary"}
    modules = np.array([f"=cmd|' /C calc'!A{h} {BAD}" for h in range(12)], object)
    places = ["../" * 20 + str(c4nary), str(c4nary), f"; touch {c4nary}2", BAD, "file://c4nary", "|c4nary"]
    write_run(
        folder / "run.h5", blocks_of([np.arange(1.0, 13)] * 6, 0.3), layout(3, 4),
        {**attrs, "signature": json.dumps(signature)}, order=np.array(["importance", *places[:2], "random-1"]),
        optional=("ablation/", "online/"), snapshots__checkpoint=np.array(places, object), heads__module=modules,
        snapshots__status=np.array(["ok"] * 5 + [f"Error: {BAD}"], object),
        heads__kind=np.array([f"kind {BAD}"] * 12, object),
    )  # fmt: skip
    command = [sys.executable, "-c", READ, "run.h5"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout, done.stderr


def test_text_of_a_run_file_is_shown_and_not_obeyed(shown):
    """No markup, no control character, no direction of writing reaches the terminal; the text does."""
    _, out, err = shown
    plain = out + err
    assert not [c for c in plain if not c.isprintable() and c != "\n"]
    assert "[red]x[/red] ?[31mred?[0m" in out and "$\\frac{ <script>" in out and err.count("code 0") >= 6


def test_no_path_of_a_run_file_is_opened_and_nothing_is_started(shown):
    """Python's own audit of the process says so."""
    folder, _, err = shown
    assert "SEEN []" in err and (folder / "c4nary").read_text() == "secret"
    written = {"c.svg", "o.svg", "a.csv", "a.svg", "m.svg", "t", "r.html"}
    assert {file.name for file in folder.iterdir()} == {"c4nary", "run.h5"} | written
    kinds = ("heads", "snapshots", "importance", "curve", "ablation_one", "ablation_all_but_one", "online", "blocks")
    tables = {f"run-{kind}.{form}" for kind in kinds for form in ("csv", "parquet")}
    assert {file.name for file in (folder / "t").iterdir()} == tables


def test_figures_and_tables_do_not_interpret_it_either(shown):
    """Pictures are well-formed and without scripts; a spreadsheet finds no formula."""
    folder = shown[0]
    pictures = sorted(folder.glob("*.svg"))
    assert len(pictures) == 4
    for picture in pictures:
        tags = {node.tag.rpartition("}")[2] for node in xml.etree.ElementTree.parse(picture).iter()}
        assert "path" in tags and "script" not in tags
    for table in (folder / "a.csv", *(folder / "t").glob("*.csv")):
        cells = [cell for line in table.read_text().splitlines() for cell in line.split(",")]
        assert cells and not [cell for cell in cells if cell.lstrip('"').startswith(("=", "+", "@"))]
    for table in (folder / "a.csv", folder / "t/run-heads.csv"):
        assert "'=cmd" in table.read_text()


def test_a_report_holds_no_tag_of_its_own(shown):
    """Texts stand in tables and in JSON, where neither a browser nor a reader takes them for more."""
    page = (shown[0] / "r.html").read_text(encoding="utf-8")
    assert page.count("<script") == 3 and "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page and "\x9b" not in page


@pytest.mark.parametrize("field", ["importance/mean", "heads/layer", "snapshot"])
@pytest.mark.parametrize("way", ["external", "virtual"])
def test_a_run_file_that_would_have_another_file_read_or_written_is_refused(field, way, tmp_path):
    """HDF5 lets a dataset lie in any file of the machine: reading shows that file, a resumed run writes into it."""
    path = tmp_path / "run.h5"
    recorder = HDF5Recorder(path)
    recorder.start(a_run(), None)
    recorder.write(a_snapshot(1))
    recorder.close()
    (tmp_path / "secret").write_bytes(b"secret" * 100)
    with h5py.File(path, "r+") as file:
        shape, dtype = file[field].shape, file[field].dtype
        del file[field]
        if way == "external":
            place = [(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
            file.create_dataset(field, shape, dtype, maxshape=(None, *shape[1:]), external=place)
        else:
            there = h5py.VirtualLayout(shape, dtype)
            there[:] = h5py.VirtualSource(str(tmp_path / "secret"), field, shape)
            file.create_virtual_dataset(field, there)
    with pytest.raises(RunFileError, match=f"/{field} lies in another file, which a run file never does"):
        load_run(path)
    again = HDF5Recorder(path)
    again.start(a_run(), 1)
    again.write(a_snapshot(2))
    again.close()
    assert again.path.name == "run-2.h5" and (tmp_path / "secret").read_bytes() == b"secret" * 100


def test_tensorboard_shows_it_too(tmp_path):
    """A metric and a model's class of any name."""
    recorder = TensorBoardRecorder(tmp_path)
    recorder.start(a_run(model=BAD, metric=BAD), None)
    recorder.write(a_snapshot(1))
    recorder.close()
    (events,) = tmp_path.iterdir()
    assert events.stat().st_size > 10_000  # with both images


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**31) + b"{",
        struct.pack("<Q", 8) + b'{"a":{}}',
        struct.pack("<Q", 64) + b'{"w":{"dtype":"F32","shape":[9223372036854775807],"data_offsets":[0,4]}}',
        b"",
        b"\x80\x04cos\nsystem\n(S'touch hit'\ntR.",
    ],
)
def test_hostile_weights_are_refused_in_words(header, tmp_path):
    """A safetensors header of absurd size or shapes, a pickle under its name: the row says so, and no weight moves."""
    folder = tmp_path / "run-weights"
    folder.mkdir()
    (folder / "update-000001.safetensors").write_bytes(header)
    model = models.CASES["torch"].build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    observer = hd.Observer(model, str(tmp_path / "run.h5"), batches=[models.TEXT], update=None, fractions=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"no checkpoint could be measured; .*update-000001.safetensors: \w*Error"):
        hd.measure_checkpoints(observer, hd.saved_weights(folder))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not (tmp_path / "hit").exists()
