"""Fuzz: a run file damaged at places by chance; every reader says so, or gives exactly the numbers that were written.

Each damaged file is read in a process of its own, which has a time limit: whatever HDF5 does to it is seen.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from damage import damaged
from headdynamics.analysis.__main__ import main as command
from run_content import content
from runs import a_run, a_snapshot

import headdynamics as hd
from headdynamics import seal
from headdynamics.record.hdf5 import HDF5Recorder
from headdynamics.schema import RunFileError

ROWS, LIMIT, MEMORY = 12, 20, 8 << 30  # rows, seconds, bytes
REFUSED = "refused"


def loaded(path: Path) -> object:
    """What `hd.load_run` gives, to the last bit."""
    try:
        run = hd.load_run(path)
    except RunFileError:
        return REFUSED
    groups = {name: part for name, part in vars(run).items() if hasattr(part, "data_vars")}
    values = {f"{g}/{n}": _plain(array.values) for g, part in groups.items() for n, array in part.variables.items()}
    return repr((sorted(run.attrs.items()), sorted(values.items())))


def _plain(values: np.ndarray) -> object:
    return values.tolist() if values.dtype.kind in "UO" else values.tobytes()


def told(*words: str):
    """A reader: what `headdynamics WORDS FILE` prints."""

    def tell(path: Path) -> object:
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            status = command([*words, str(path)])
        return REFUSED if status == 2 and error.getvalue().startswith("headdynamics: ") else out.getvalue()

    return tell


def gone_on_with(path: Path) -> object:
    """What the file holds after a resume and one more row, where the file was taken for ours."""
    recorder = HDF5Recorder(path)
    recorder.start(a_run(), ROWS)
    if recorder.path != path:
        return REFUSED
    recorder.write(a_snapshot(ROWS + 1))
    recorder.close()
    return repr(sorted(content(path).items()))


#: the last one writes
READERS = {
    "load_run": loaded,
    "show": told("show"),
    "settle": told("settle"),
    "curves": told("curves"),
    "resume": gone_on_with,
}


def read(path: Path) -> dict[str, str]:
    """What each reader said of a file, read in a process of its own; "crash" and "hang" are said of it."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        with contextlib.suppress(BaseException), os.fdopen(writing, "w") as answers:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.chdir(path.parent)  # `curves` draws where one stands
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            signal.alarm(LIMIT)  # ends the process, wherever it is
            for name, reader in READERS.items():
                answers.write(json.dumps([name, _said(reader, path)]) + "\n")
                answers.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        found = dict(json.loads(line) for line in answers if line.endswith("\n"))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if len(found) < len(READERS):
        found[list(READERS)[len(found)]] = "hang" if code == -signal.SIGALRM else "crash"
    return found


def _said(reader, path: Path) -> str:
    try:
        return str(reader(path))
    except Exception as error:
        return f"crash: {type(error).__name__}"


def judged(found: dict[str, str], right: dict[str, str]) -> str:
    """The worst that a reader did."""
    for worst in ("crash", "hang"):
        if any(said.startswith(worst) for said in found.values()):
            return worst
    if any(said not in (REFUSED, right[name]) for name, said in found.items()):
        return "wrong numbers"
    return "error" if REFUSED in found.values() else "right numbers"


def a_file(place: Path, sealed: bool) -> Path:
    """A run file of some rows; without a seal as it was before there were any."""
    path = place / "whole.h5"
    path.unlink(missing_ok=True)
    recorder = HDF5Recorder(path)
    recorder.start(a_run(), 0)
    for update in range(1, ROWS + 1):
        recorder.write(a_snapshot(update, checkpoint=f"checkpoint-{update}"))
    recorder.close()
    if not sealed:
        with open(path, "rb") as file:
            data = seal.whole(file.fileno())
        path.write_bytes(data)
    return path


def fuzz(kind: str, place: Path, times: int, found: dict) -> Iterator[dict]:
    """See `kinds.Fault`; the kind `fuzz-unsealed` is of a file without checksums."""
    path, victim = a_file(place, kind == "fuzz"), place / "damaged.h5"
    data, counts = path.read_bytes(), Counter(found)
    victim.write_bytes(data)
    for reader in READERS.values():  # what they import, once for all processes
        reader(victim)
    victim.write_bytes(data)
    right = read(victim)
    assert judged(right, right) == "right numbers", right
    for seed in range(found["tried"], times):
        what, bad = damaged(data, seed)
        for old in place.glob("damaged*"):
            old.unlink()
        victim.write_bytes(bad)
        verdict = judged(read(victim), right)
        counts.update(("tried", verdict))
        if verdict not in ("error", "right numbers"):
            counts["lost"] += 1
            print(f"{kind}: seed {seed}, {what}: {verdict}", flush=True)
        if seed % 20 == 19 or seed == times - 1:
            yield dict(counts)
