"""Backfill on a real Ray cluster of this machine: the same file as without, whoever is killed. `make ray-test`."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import h5py
import pytest
import torch
from run_content import content
from test_backfill_text import training  # noqa: F401

import headdynamics as hd
from headdynamics.__main__ import main

WORDS = ["--batch-size", "8", "--cpu", "--examples", "12", "--score-examples", "10", "--fractions", "0,0.5,1"]
MEASURED = ["--orders", "importance,random-1", "--ablate", "one,all-but-one", "--transfer"]


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two CPUs; its address."""
    ray = pytest.importorskip("ray", reason="Ray, 240 MB, is not installed: make ray-test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # else, beside anything else, its workers take minutes to import torch
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # workers import `opened` from here
        context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield context.address_info["gcs_address"]
        ray.shutdown()


def statuses(path):
    with h5py.File(path) as file:
        updates = file["snapshots/update"][:].tolist()
        return dict(zip(updates, file["snapshots/status"].asstr()[:].tolist(), strict=True))


@pytest.fixture
def checkpoints(training, tmp_path):  # noqa: F811
    """Four checkpoints of which one is cut, and the sentences."""
    shutil.copytree(training / "out", tmp_path / "out")
    for update in (9, 12):
        folder = tmp_path / f"out/checkpoint-{update}"
        shutil.copytree(tmp_path / "out/checkpoint-6", folder)
        state = folder / "trainer_state.json"
        state.write_text(json.dumps(json.loads(state.read_text()) | {"global_step": update}))
    cut = tmp_path / "out/checkpoint-6/model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    shutil.copy(training / "valid.tsv", tmp_path)
    return tmp_path


def test_the_same_file_also_where_its_own_process_was_killed(cluster, checkpoints, monkeypatch):
    """Blocks of three masks, relative paths, a checkpoint that cannot be loaded; killed when the first row is there."""
    monkeypatch.chdir(checkpoints)
    words = ["backfill", "out", "--data", "valid.tsv", *WORDS, *MEASURED]
    on_ray = [*words, "-o", "ray.h5", "--ray", cluster, "--ray-workers", "1", "--ray-block", "3"]
    process = subprocess.Popen([sys.executable, "-m", "headdynamics", *on_ray])
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):  # not there yet, or just being replaced
            if statuses("ray.h5"):
                break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = statuses("ray.h5")
    assert first and len(first) < 4 and "transfer" not in content("ray.h5")
    assert main([*words, "-o", "here.h5"]) == 0
    assert main(on_ray) == 0
    assert content("here.h5") == content("ray.h5")
    found = statuses("ray.h5")
    assert [found[update] for update in (3, 9, 12)] == ["ok"] * 3 and found[6].startswith("SafetensorError: ")


class Net(torch.nn.Module):
    """Two layers of attention, and a number for each row."""

    def __init__(self):
        super().__init__()
        layer = partial(torch.nn.TransformerEncoderLayer, 16, 4, 32, 0.0, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False)
        self.last = torch.nn.Linear(16, 1)

    def forward(self, x):
        return self.last(self.encoder(x).mean(1)).squeeze(1)


def squared(model, batch):
    return (model(batch["x"]) - batch["y"]) ** 2


def loaded(model, update, folder, asking):
    """Put in the weights of an update; where a file lists it, the worker, and never `asking`, is killed instead."""
    mark = Path(folder) / f"kills-{update}"
    if mark.exists() and os.getpid() != asking:
        left = int(mark.read_text()) - 1
        mark.write_text(str(left)) if left else mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    torch.manual_seed(update)
    model.load_state_dict(Net().state_dict())


@contextlib.contextmanager
def opened(folder, asking, strict=False):
    torch.manual_seed(0)
    model = Net().eval()
    draw = torch.Generator().manual_seed(1)
    batches = [{"x": torch.randn(6, 5, 16, generator=draw), "y": torch.randn(6, generator=draw)} for _ in range(3)]

    def observe(path):
        plan = {"fractions": (0.0, 0.5, 1.0), "orders": ("importance", "random-1"), "ablations": ("one",)}
        score = hd.mean_loss(batches, squared)
        return hd.Observer(
            model, path, batches=batches, score=score, loss=squared, update=None, strict=strict, **plan
        )

    load = partial(partial, loaded, folder=folder, asking=asking)
    yield hd.Subject(observe, [hd.Checkpoint(u, u / 2, f"at {u}", load(update=u)) for u in (1, 2, 3, 4)])


def test_a_killed_worker_is_replaced_and_its_piece_done_again(cluster, tmp_path, caplog):
    """Update 2 kills once; update 3 as often as it is tried, and its row says so until the next call."""
    here = partial(opened, str(tmp_path), os.getpid())
    (tmp_path / "kills-2").write_text("1")
    (tmp_path / "kills-3").write_text("3")
    with caplog.at_level("INFO", "headdynamics"):
        path = hd.measure_chosen(here, str(tmp_path / "ray.h5"), farm=hd.Farm(here, cluster, block=3))
    assert caplog.text.count("died and is replaced") == 4 and not list(tmp_path.glob("kills-*"))
    found = statuses(path)
    assert found.pop(3).startswith("its worker died, 3 times: ") and found == {1: "ok", 2: "ok", 4: "ok"}
    assert hd.measure_chosen(here, path, farm=hd.Farm(here, cluster, workers=1)) == path
    assert hd.measure_chosen(here, str(tmp_path / "here.h5")) == str(tmp_path / "here.h5")
    assert content(path) == content(tmp_path / "here.h5") and set(statuses(path).values()) == {"ok"}


@contextlib.contextmanager
def other(folder, asking):
    """What another node finds there: one checkpoint fewer, or other examples."""
    with opened(folder, asking) as subject:
        yield subject._replace(observe=lambda path: hd.Observer(
            Net(), path, batches=[{"x": torch.ones(2, 5, 16), "y": torch.ones(2)}], loss=squared, update=None
        ))


@contextlib.contextmanager
def broken(folder, asking):
    if os.getpid() != asking:
        raise FileNotFoundError("no data on this node")
    with opened(folder, asking) as subject:
        yield subject


def test_workers_that_cannot_measure_the_same_end_it_with_one_clear_line(cluster, tmp_path):
    here = partial(opened, str(tmp_path), os.getpid())
    for there, said in ((other, "has another model, other examples"), (broken, "FileNotFoundError: no data on this")):
        with pytest.raises(ValueError, match=said):
            farm = hd.Farm(partial(there, str(tmp_path), os.getpid()), cluster, workers=1)
            hd.measure_chosen(here, str(tmp_path / "no.h5"), farm=farm)
    assert statuses(tmp_path / "no.h5") == {}


def test_bad_options_are_told_before_any_work(training, tmp_path, monkeypatch, capfd):  # noqa: F811
    words = ["backfill", str(training / "out"), "--data", str(training / "valid.tsv"), *WORDS]
    words += ["-o", str(tmp_path / "no.h5")]

    def said(*more):
        assert main([*words, *more]) == 2 and not (tmp_path / "no.h5").exists()
        return capfd.readouterr().err.strip().splitlines()[-1]

    assert said("--ray-block", "3") == "headdynamics: --ray-block needs --ray ADDRESS"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        assert said("--ray", "local") == "headdynamics: Ray is missing: pip install headdynamics[ray]"
    pytest.importorskip("ray", reason="Ray, 240 MB, is not installed: make ray-test")
    assert "give 1 or more" in said("--ray", "local", "--ray-workers", "0")
