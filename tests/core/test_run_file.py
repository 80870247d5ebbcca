"""The run file: whole at every instant, never another run's, and readable by anyone."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from runs import ORDERS, a_run, a_snapshot, write_forever

from headdynamics.record import hdf5, layout
from headdynamics.record.hdf5 import HDF5Recorder
from headdynamics.record.memory import MemoryRecorder
from headdynamics.schema import ATTRIBUTES, AXES, FIELDS, OPTIONAL, RunFileError
from headdynamics.snapshot import Snapshot

RUNS = str(Path(__file__).parent / "runs.py")


def written(path, updates=(10, 20, 30), run=None, at=0):
    """Write a run and close it; the path that was written."""
    recorder = HDF5Recorder(path)
    recorder.start(run or a_run(), at)
    for update in updates:
        recorder.write(a_snapshot(update))
    recorder.close()
    return recorder.path


def begun(path):
    """One that goes on where `written` ended."""
    recorder = HDF5Recorder(written(path))
    recorder.start(a_run(), 30)
    return recorder


def rows(path):
    """The updates in a file, after checking that every field has as many rows, and the right ones."""
    with h5py.File(path, "r") as file:
        updates = file["snapshots/update"][:].tolist()
        assert file["snapshot"][:].tolist() == updates
        for name, field in FIELDS.items():
            assert not name.startswith(OPTIONAL) or name.startswith("orders/") or name not in file
            if field.axes[0] == "snapshot" and name in file:
                assert len(file[name]) == len(updates)
        for i, update in enumerate(updates):
            assert file["importance/mean"][i, 3] == np.float32(update + 0.003)
            assert file["curve/score"][i, 2].tolist() == [200 + update - p / 10 for p in range(11)]
    return updates


def test_every_axis_is_named(tmp_path):
    with h5py.File(written(tmp_path / "run.h5"), "r") as file:
        for name, field in FIELDS.items():
            if not name.startswith(OPTIONAL):
                assert [file[name].dims[i][0].name for i in range(len(field.axes))] == [f"/{a}" for a in field.axes]
        assert all(file[axis].is_scale and file[axis].attrs["long_name"] for axis in AXES)
        assert sorted(file.attrs) == sorted(ATTRIBUTES)
        assert json.loads(file.attrs["signature"]) == {"hash": "a" * 64}
        assert (file.attrs["schema"], file.attrs["model"], bool(file.attrs["greater_is_better"])) == (1, "Tiny", True)


def test_xarray_opens_it(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    path = written(tmp_path / "run.h5")
    with xarray.open_dataset(path, engine="h5netcdf", group="importance") as found:
        assert found["mean"].dims == ("snapshot", "head") and found["blocks"].dims == ("snapshot", "block", "head")
        assert found["mean"].isel(snapshot=1, head=7).item() == np.float32(20.007)
        assert found["blocks"].isel(snapshot=1, block=4, head=7).item() == np.float32(24.007)
    with xarray.open_dataset(path, engine="h5netcdf", group="curve") as found:
        assert found["score"].dims == ("snapshot", "order", "fraction")
        assert found["score"].isel(snapshot=2, order=2, fraction=7).item() == 229.3
    with xarray.open_dataset(path, engine="h5netcdf", group="heads") as found:
        assert found["module"].values.tolist() == ["läyer.0"] * 4 + ["läyer.1"] * 4


def test_every_value_comes_back(tmp_path):
    recorder = HDF5Recorder(tmp_path / "run.h5")
    recorder.start(a_run(), 0)
    recorder.write(a_snapshot(10, checkpoint="gewichte-ü.pt"))
    with h5py.File(recorder.path, "r") as file:
        texts = {n: file[f"snapshots/{n}"][0].decode("utf-8") for n in ("status", "checkpoint")}
        numbers = {n: file[f"snapshots/{n}"][0] for n in "update epoch seconds loss score n_importance n_score".split()}
        assert file["importance/stderr"][0, 2] == np.float32(1.0002)
        assert file["importance/signed"][0, 2] == np.float32(-10.002)
        assert file["curve/stderr"][0, 3].tolist() == [0.25] * 11
        assert file["order"].asstr()[:].tolist() == list(ORDERS)
        assert file["fraction"][:].tolist() == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
        assert file["heads/number"][:].tolist() == [0, 1, 2, 3] * 2
    assert texts == {"status": "ok", "checkpoint": "gewichte-ü.pt"}
    assert numbers == dict(update=10, epoch=1, seconds=1.5, loss=10.5, score=10, n_importance=100, n_score=60)


def test_what_is_missing_is_nan(tmp_path):
    recorder = HDF5Recorder(tmp_path / "run.h5")
    recorder.start(a_run(), 0)
    recorder.write(Snapshot(5, float("nan"), status="ValueError: Größe"))
    whole = a_snapshot(6)
    recorder.write(a_snapshot(6, curves={"random-1": whole.curves["random-1"]}))
    with h5py.File(recorder.path, "r") as file:
        assert file["snapshots/status"].asstr()[:].tolist() == ["ValueError: Größe", "ok"]
        for name in ("epoch", "seconds", "loss", "score"):
            assert np.isnan(file[f"snapshots/{name}"][0])
        for name in ("importance/mean", "importance/stderr", "importance/signed", "importance/blocks", "curve/score"):
            assert np.isnan(file[name][0]).all()
        assert file["snapshots/checkpoint"].asstr()[0] == ""
        assert np.isnan(file["curve/score"][1]).all(1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("at, left", [(0, []), (19, [10]), (20, [10, 20]), (25, [10, 20]), (99, [10, 20, 30])])
def test_resume_drops_the_lost_future(tmp_path, at, left):
    path = written(tmp_path / "run.h5")
    assert written(path, [], at=at) == path
    assert rows(path) == left
    assert written(path, [100], at=at) == path
    assert rows(path) == [*left, 100]


def test_a_row_measured_again_replaces_the_old_one(tmp_path):
    path = written(tmp_path / "run.h5", (10, 20, 20))
    assert rows(path) == [10, 20]
    memory = MemoryRecorder()
    memory.start(a_run(), 0)
    for update in (10, 20, 20):
        memory.write(a_snapshot(update))
    assert [s.update for s in memory.snapshots] == [10, 20]
    memory.start(a_run(), 15)
    assert [s.update for s in memory.snapshots] == [10]


def truncated(path, length):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * length)])


def reschema(path):
    with h5py.File(path, "a") as file:
        file.attrs["schema"] = 99


def torn(path):
    with h5py.File(path, "a") as file:
        file["importance/mean"].resize(1, axis=0)


SPOILS = {
    "another schema": (reschema, "it has schema 99, this version writes 1"),
    "no run file": (lambda path: path.write_text("my notes"), "it cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "it cannot be read"),
    "one byte short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "it cannot be read"),
    "rows torn": (torn, "importance/mean has 1 rows of 3"),
    "read-only": (lambda path: path.chmod(0o444), "it is read-only"),
    **{f"cut at {part}": (lambda path, part=part: truncated(path, part), "it cannot be read")
       for part in (0.01, 0.3, 0.6, 0.9)},
}  # fmt: skip


@pytest.mark.parametrize("spoil, why", SPOILS.values(), ids=SPOILS)
def test_a_file_that_is_not_ours_is_left_alone(tmp_path, caplog, spoil, why):
    path = written(tmp_path / "run.h5")
    spoil(path)
    before = path.read_bytes(), path.stat().st_mtime_ns
    second = written(path, [40])
    assert second == tmp_path / "run-2.h5" and rows(second) == [40]
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert f"leaves {path} alone" in caplog.text and why in caplog.text and f"writes {second} instead" in caplog.text
    assert written(path, [50], at=40) == second and rows(second) == [40, 50]


def test_other_runs_are_left_alone(tmp_path, caplog):
    path = written(tmp_path / "run.h5")
    before = path.read_bytes()
    second = written(path, [1], a_run(digest="b" * 64))
    assert "it belongs to another run" in caplog.text
    third = written(path, [2], a_run(digest="c" * 64, model="Other"))
    assert "it belongs to another model, Tiny" in caplog.text
    assert [second.name, third.name] == ["run-2.h5", "run-3.h5"]
    assert path.read_bytes() == before
    assert (rows(path), rows(second), rows(third)) == ([10, 20, 30], [1], [2])


def test_a_second_writer_is_refused(tmp_path):
    path = tmp_path / "run.h5"
    holder = subprocess.Popen([sys.executable, RUNS, path], stdin=-1, stdout=-1, text=True)
    try:
        assert holder.stdout.readline() == "holding\n"
        before = path.read_bytes()
        with pytest.raises(RunFileError, match=f"run.h5 is being written by process {holder.pid}: end that process"):
            written(path)
        assert path.read_bytes() == before and not (tmp_path / "run-2.h5").exists()
    finally:
        holder.kill()
        holder.communicate()
    assert written(path) == path and rows(path) == [10, 20, 30]


def test_a_missing_folder_is_made(tmp_path):
    assert rows(written(tmp_path / "a" / "b" / "run.h5")) == [10, 20, 30]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFileError, match="cannot make the folder of .*; choose another place"):
        written(tmp_path / "file" / "run.h5")


def test_leftovers_of_a_killed_writer_are_cleared(tmp_path):
    (tmp_path / ".run.h5.123.tmp").write_text("half")
    written(tmp_path / "run.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.h5", "run.h5.lock"]


def test_a_link_stays_a_link_and_a_private_file_private(tmp_path):
    """And a name that is a pattern is cleared of its own leftovers only."""
    (tmp_path / "scratch").mkdir()
    path, real = tmp_path / "run[1].h5", tmp_path / "scratch/real[1].h5"
    path.symlink_to(real)
    for leftover in ("real[1].h5", "real1.h5"):
        (real.parent / f".{leftover}.99.tmp").touch()
    recorder = begun(path)
    real.chmod(0o600)
    recorder.write(a_snapshot(40))
    recorder.close()
    assert path.is_symlink() and rows(path) == [10, 20, 30, 40] and real.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in real.parent.iterdir() if file.suffix == ".tmp"] == [".real1.h5.99.tmp"]


def test_what_a_full_disk_kept_back_is_written_at_the_end(tmp_path, monkeypatch, caplog):
    recorder = begun(tmp_path / "run.h5")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(RunFileError, match="this one is kept"):
            recorder.write(a_snapshot(40))
    recorder.close()
    assert rows(tmp_path / "run.h5") == [10, 20, 30, 40]
    recorder = begun(tmp_path / "other.h5")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(RunFileError):
            recorder.write(a_snapshot(40))
        recorder.close()
    assert "1 rows are lost: cannot write" in caplog.text and rows(tmp_path / "other.h5") == [10, 20, 30]


def test_the_first_file_is_complete_and_empty(tmp_path):
    path = written(tmp_path / "run.h5", [])
    assert rows(path) == []
    with h5py.File(path, "r") as file:
        assert all((name in file) is not name.startswith(OPTIONAL) for name in FIELDS)


def test_the_temporary_file_is_synced_before_it_replaces(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(hdf5.os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(hdf5.os, "replace", lambda a, b: (events.append(str(a)), replace(a, b)))
    written(tmp_path / "run.h5", [])
    temporary = str(tmp_path / f".run.h5.{os.getpid()}.tmp")
    assert events == [temporary, temporary]


def test_a_failed_write_waits_for_the_next(tmp_path, monkeypatch):
    recorder = HDF5Recorder(tmp_path / "run.h5")
    recorder.start(a_run(), 0)
    recorder.write(a_snapshot(1))
    with monkeypatch.context() as patch:
        patch.setattr(hdf5.os, "fsync", full_disk)
        for update in (2, 3):
            with pytest.raises(RunFileError, match="No space left .*; rows so far are safe and this one is kept"):
                recorder.write(a_snapshot(update))
    assert rows(recorder.path) == [1]
    recorder.write(a_snapshot(4))
    assert rows(recorder.path) == [1, 2, 3, 4]
    recorder.write(a_snapshot(5))
    assert rows(recorder.path) == [1, 2, 3, 4, 5]


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_snapshot_of_another_model_does_not_stop_later_ones(tmp_path):
    recorder = HDF5Recorder(tmp_path / "run.h5")
    recorder.start(a_run(), 0)
    with pytest.raises((TypeError, ValueError)):
        recorder.write(a_snapshot(1, heads=12))
    recorder.write(a_snapshot(2))
    assert rows(recorder.path) == [2]


def forked(work):
    """A child process that does `work` and never returns here: a new python would spend its time importing."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(1)
    return pid


def limited(path, short, again):
    """Write one row, one under a limit on file size, and perhaps one after it; whether the second was refused."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    recorder, refused = HDF5Recorder(path), False
    recorder.start(a_run(), 0)
    recorder.write(a_snapshot(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size - short, resource.RLIM_INFINITY))
    try:
        recorder.write(a_snapshot(2))
    except RunFileError as error:
        refused = "rows so far are safe" in str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if again:
        recorder.write(a_snapshot(3))
    return refused


@pytest.mark.parametrize("short", [1, 50_000])
@pytest.mark.parametrize("again, left", [(True, [1, 2, 3]), (False, [1])])
def test_a_limit_on_file_size(tmp_path, short, again, left):
    pid = forked(lambda: os._exit(7 if limited(tmp_path / "run.h5", short, again) else 1))  # it is a process's limit
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert rows(tmp_path / "run.h5") == left


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, of which a file may fill the rest."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root, with the right to mount, can make a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk):
    recorder = HDF5Recorder(small_disk / "run.h5")
    recorder.start(a_run(), 0)
    recorder.write(a_snapshot(1))
    ballast = small_disk / "ballast"
    with pytest.raises(OSError), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
            if os.statvfs(small_disk).f_bavail == 0:
                raise OSError(errno.ENOSPC, "full")
    for update in (2, 3):
        with pytest.raises(RunFileError, match="rows so far are safe"):
            recorder.write(a_snapshot(update))
        assert rows(recorder.path) == [1]
    assert not list(small_disk.glob(".*.tmp"))
    assert not [x for x in Path("/proc/self/fd").iterdir() if ".tmp" in os.path.realpath(x)]
    ballast.unlink()
    recorder.write(a_snapshot(4))
    assert rows(recorder.path) == [1, 2, 3, 4]
    recorder.close()


def killed(path, last, seconds):
    """A process that writes rows after `last` and is killed after its first row and some time: the rows it reported."""
    run, (reading, writing) = a_run(), os.pipe()
    pid = forked(lambda: write_forever(path, run, last, writing))
    os.close(writing)
    with os.fdopen(reading) as reports:
        first = reports.readline()
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return [int(line) for line in (first + reports.read()).split()]


def test_killed_at_any_instant(tmp_path):
    """Twenty kills: the file always opens, without a gap or a double, and holds every row that was reported."""
    path, rng, found = tmp_path / "run.h5", random.Random(0), []
    for _ in range(20):
        reported = killed(path, len(found), rng.uniform(0, 0.1))
        assert reported[0] == len(found) + 1
        found = rows(path)
        assert found == list(range(1, len(found) + 1))
        assert len(found) - reported[-1] in (0, 1)
    assert len(found) > 15


def test_a_thousand_snapshots_are_still_quick_to_extend(tmp_path):
    recorder = HDF5Recorder(tmp_path / "run.h5")
    recorder.start(a_run(144), 0)
    with recorder._rewritten() as file:
        layout.resize(file, "snapshot", 1000)
        file["snapshot"][:] = np.arange(1, 1001)
        for name in ("mean", "stderr", "signed", "blocks"):
            file[f"importance/{name}"][:] = np.random.default_rng(0).random(file[f"importance/{name}"].shape)
    times = []
    for update in range(1001, 1008):
        began = time.process_time()
        recorder.write(a_snapshot(update, 144))
        times.append(time.process_time() - began)
    with h5py.File(recorder.path, "r") as file:
        assert file["snapshot"][-7:].tolist() == list(range(1001, 1008)) and len(file["importance/mean"]) == 1007
    assert recorder.path.stat().st_size > 7_000_000
    assert min(times) < 0.05


def test_a_file_grows_by_what_is_measured_and_little_more(tmp_path):
    """The numbers of 144 heads are 8.3 kB; texts must not begin a heap of 4 kB each time."""
    recorder = HDF5Recorder(tmp_path / "run.h5")
    recorder.start(a_run(144), 0)
    sizes = []
    for update in range(1, 61):
        recorder.write(a_snapshot(update, 144, checkpoint=f"runs/checkpoint-{update}"))
        sizes.append(recorder.path.stat().st_size)
    assert sizes[0] < 300_000
    assert (sizes[-1] - sizes[19]) / 40 < 10_000
    with h5py.File(recorder.path, "r") as file:
        assert file["snapshots/checkpoint"].asstr()[:].tolist() == [f"runs/checkpoint-{u}" for u in range(1, 61)]
        assert np.array_equal(file["importance/mean"][:, 5], np.float32(np.arange(1, 61) + 0.005))


def test_a_file_of_another_chunk_size_is_gone_on_with(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(layout, "ROWS", 1024)
        patch.setattr(layout, "CHUNK", 1 << 17)
        path = written(tmp_path / "run.h5")
    assert written(path, (40, 50), at=30) == path and rows(path) == [10, 20, 30, 40, 50]


def test_a_reader_does_not_hold_up_the_writer_nor_the_other_way(tmp_path):
    """HDF5 locks what it opens; a row that waits for a reader could be the last one, and lost."""
    path = written(tmp_path / "run.h5", (10,))
    recorder = HDF5Recorder(path)
    recorder.start(a_run(), 10)
    reader = "import h5py, sys; f = h5py.File(sys.argv[1], 'r'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", reader, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        recorder.write(a_snapshot(20))
        other.stdin.close()
    with recorder._rewritten():  # while we write, others read
        done = subprocess.run([sys.executable, "-c", reader, str(path)], stdin=subprocess.DEVNULL, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
    recorder.close()
    assert rows(path) == [10, 20]
