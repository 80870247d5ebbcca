"""Kills: a training is killed up to eight times, at instants by chance, restarted each time, and must end as if never.

After each kill the run file must open, hold every row that the trainer said was recorded, and be, bit for bit, the
first rows of the run that was never killed; after the last restart it must be that run.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import h5py
from points import Point, drawn
from run_content import content

import headdynamics as hd

PLACED = ("checkpoint", "created", "seconds")  # what differs: the folder and the clock
A_CHAIN = 8


class Lost(AssertionError):
    """What should have been in the run file is not, or is otherwise."""


class Nursery:
    """A process that forks training processes."""

    def __init__(self, trainer: str) -> None:
        words = [sys.executable, str(Path(__file__).with_name("nursery.py")), trainer]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout.readline() == "ready\n"

    def train(self, words: list[str], log: Path, point: Point | None = None) -> object:
        """One training process; its exit code."""
        print(json.dumps({"words": words, "log": str(log), "point": point}), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)


class Kills:
    """Kills of one trainer under `place`, which keeps the run that was never killed."""

    def __init__(self, trainer, place: Path) -> None:
        self.trainer, self.place, self.nursery = trainer, place, Nursery(trainer.name)
        self.log = place / f"{trainer.name}.log"
        self.reference = trainer.file(place / f"{trainer.name}-never")
        folder, began = self._fresh("never"), time.monotonic()
        code = self.nursery.train(trainer.words(folder), self.log)
        assert code == 0, self.log.read_text()[-3000:]
        self.length = time.monotonic() - began
        self.rows = list(range(1, trainer.rows + 1))

    def chain(self, seed: int, most: int = A_CHAIN) -> Counter:
        """One training, killed up to `most` times: what was tried, what was lost, what the trainer itself lost."""
        rng, folder, found, most = random.Random(seed), self._fresh("killed"), Counter(), min(most, A_CHAIN)
        for attempt in range(4 * most):
            found["checkpoints that the trainer itself tore"] += self.trainer.repair(folder)
            resumes = any(folder.glob(self.trainer.resumes_from))
            point = drawn(rng, self.length, resumes) if found["tried"] < most and attempt < 3 * most else None
            code = self.nursery.train(self.trainer.words(folder), self.log, point)
            try:
                self._check(folder, ended=code == 0)
                if code not in (0, -signal.SIGKILL):
                    raise Lost(f"the restart ended with {code}")
            except Exception as error:
                found["tried"] += code != 0
                found["lost"] += 1
                self._keep(seed, attempt, point, error)
                break
            if code == 0:
                break
            found["tried"] += 1
            found[point.what] += 1
        return found

    def _check(self, folder: Path, ended: bool) -> None:
        path, said = self.trainer.file(folder), self.trainer.recorded.findall(self.log.read_text(errors="replace"))
        if not path.exists():
            if said or ended:
                raise Lost("no run file")
            return
        rows = hd.load_run(path).snapshots["update"].values.tolist()
        if rows != self.rows[: len(rows)] or {int(update) for update in said} - set(rows):
            raise Lost(f"rows {rows}, and {said} were said to be recorded")
        if rows and first_rows(path, len(rows)) != first_rows(self.reference, len(rows)):
            raise Lost("other numbers than without a kill")
        if ended and (rows != self.rows or content(path, *PLACED) != content(self.reference, *PLACED)):
            raise Lost(f"ended with rows {rows}")
        if ended and [place for place in folder.iterdir() if place.name.startswith(".") or "-2.h5" in place.name]:
            raise Lost("a leftover")

    def _fresh(self, name: str) -> Path:
        folder = self.place / f"{self.trainer.name}-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _keep(self, seed: int, attempt: int, point: Point | None, error: Exception) -> None:
        kept = self.place / f"lost-{self.trainer.name}-{seed}-{attempt}"
        shutil.copytree(self.place / f"{self.trainer.name}-killed", kept, dirs_exist_ok=True)
        shutil.copyfile(self.log, kept / "log")
        (kept / "why").write_text(f"{point}\n{type(error).__name__}: {error}\n")
        print(f"LOST: {point}: {error}; kept in {kept}", flush=True)


def first_rows(path: Path, rows: int) -> dict[str, object]:
    """The first rows of everything that has a row a snapshot, but of the clock and of places, to the last bit."""
    found = {}
    with h5py.File(path) as file:
        for group in ("snapshots", "importance", "curve", "orders"):
            for name, dataset in file.get(group, {}).items():
                if name not in PLACED:
                    text = h5py.check_string_dtype(dataset.dtype) is not None
                    found[f"{group}/{name}"] = dataset.asstr()[:rows].tolist() if text else dataset[:rows].tobytes()
    return found
