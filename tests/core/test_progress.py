"""The bar on the terminal and what it counts; Ctrl-C amid work, in a real process."""

import io
import signal
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import models
import numpy as np
import pytest

import headdynamics as hd
from headdynamics.checkpoints import Checkpoint, measure_checkpoints
from headdynamics.progress import Progress, counted, expected

BATCH = dict(input_ids=models.IDS, attention_mask=models.TOKENS, labels=models.CLASSES)
BATCHES = [BATCH, BATCH]


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Unsized:
    """Batches without a length."""

    def __iter__(self):
        return iter(BATCHES)


def observer(path=None, **given):
    usual = {"batches": BATCHES, "score": hd.accuracy(BATCHES), "fractions": (0, 0.5, 1), "orders": ["importance"]}
    return hd.Observer(models.bert(), path, update=None, **usual | given)


def plain(model):
    """A score that is a number."""
    return hd.accuracy(BATCHES)(model).value


@pytest.mark.parametrize(
    ("measured", "steps"),
    [
        ({}, 2 + 3 * 2),  # I(h), then three points; two batches each
        ({"ablations": ["one"]}, 2 + 3 * 2 + 9 * 2),  # eight heads and the whole model
        ({"orders": ["oracle"], "batches": Unsized()}, 2 + 9 * 2 + 3 * 2),
        ({"score": plain}, 2 + 3),
        ({"orders": ["importance", "greedy-1"], "fractions": (0, 1)}, None),
        ({"fractions": "knee", "orders": ["importance", "random-1"]}, None),
        ({"orders": ["shapley", "integrated-2"]}, None),
    ],
)
def test_what_a_snapshot_takes_is_known_before(measured, steps):
    """By hand for what searches nothing; for what does, no more than was expected, but for a probe or two."""
    watch = observer(**measured)
    told, loss, score = [], watch.loss, watch.score
    with counted(watch, told.append):
        assert watch.snapshot(1).status == "ok"
    assert watch.loss is loss and watch.score is score
    took = sum(told)
    if steps is not None:
        assert expected(watch) == steps and 0 <= took - steps <= 4  # the proof that heads may be taken out
    else:
        assert took / 4 <= expected(watch) and took <= expected(watch) + 4


class Bar:
    """As tqdm's, and what it was told."""

    def __init__(self):
        self.n, self.places = 0.0, []

    def update(self, more):
        self.n += more
        self.places.append(self.n)


def test_a_checkpoint_is_as_long_as_the_one_before():
    """The first as long as expected, and never whole before it is done; one that failed teaches nothing."""
    bar, ok = Bar(), observer().snapshot(1)
    progress = Progress(bar, 4)
    for told in (1, 1, 8, ok, 5, None, 5, ok):
        progress.step(told) if isinstance(told, int) else progress.done(told)
    assert np.allclose(bar.places, [0.25, 0.5, 0.99, 1, 1.5, 2, 2.5, 3])


def test_the_bar_grows_within_a_checkpoint_and_changes_no_number(tmp_path):
    quiet, loud = observer(str(tmp_path / "quiet.h5")), observer(str(tmp_path / "loud.h5"))
    points = [Checkpoint(u, float(u), "", lambda model: None) for u in (1, 2)]
    with redirect_stderr(Terminal()) as terminal:
        measure_checkpoints(loud, points)
    drawn = terminal.getvalue()
    assert "checkpoints:   0%" in drawn and "100%" in drawn and "0.0 of 2" in drawn and " left]" in drawn
    with redirect_stderr(io.StringIO()) as pipe:
        measure_checkpoints(quiet, points)
    assert pipe.getvalue() == ""
    one, other = (hd.load_run(each.path) for each in (quiet, loud))
    assert one.importance.identical(other.importance) and one.curve.identical(other.curve)


def test_a_bar_for_a_call_of_ones_own():
    model, score = models.bert(), hd.accuracy(BATCHES)
    with redirect_stderr(Terminal()) as terminal, hd.with_bar(score, 9) as shown:
        found = hd.ablate(model, shown)
    assert terminal.getvalue().rstrip().endswith("left") and "accuracy: 100%" in terminal.getvalue()
    assert np.array_equal(found.score, hd.ablate(model, score).score)
    with redirect_stderr(io.StringIO()), hd.with_bar(score, 9) as shown:
        assert shown is score


PROGRAM = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
import models, headdynamics as hd
from headdynamics.checkpoints import Checkpoint, measure_checkpoints
from headdynamics.interrupting import until_interrupted

batches = [dict(input_ids=models.IDS, attention_mask=models.TOKENS, labels=models.CLASSES)]
slow = []
def score(model):
    if slow:
        print(slow.pop(), flush=True)
        time.sleep(60)
    return 1.0

model = models.bert().train()
def observer(update=None):
    return hd.Observer(model, sys.argv[1], batches=batches, score=score, fractions=(0, 1), update=update)

watch = observer(0)
watch.snapshot(1)
slow.append("in training")
try:
    watch.snapshot(2)
except KeyboardInterrupt:
    print("training ends, as without us", model.training, flush=True)
watch.close()

points = [Checkpoint(u, u, "", lambda model: None) for u in (1, 2, 3)]
watch = observer()
with until_interrupted() as stop:
    slow.append("twice")
    try:
        measure_checkpoints(watch, points, stop=stop)
    except KeyboardInterrupt:
        print("at once", stop.status, flush=True)
watch.close()
"""


def test_ctrl_c_amid_a_snapshot_is_the_trainings_and_the_file_is_whole(tmp_path):
    """It goes through a snapshot as through any code; the second one goes through what the first let finish."""
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "run.h5")]
    with subprocess.Popen(words, stdout=-1, stderr=-1, text=True, cwd=Path(models.__file__).parent) as process:
        assert process.stdout.readline() == "in training\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "training ends, as without us True\n"
        assert hd.load_run(tmp_path / "run.h5").snapshots["update"].values.tolist() == [1]
        assert process.stdout.readline() == "twice\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n" and "once more: at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "at once 130\n"
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert hd.load_run(tmp_path / "run.h5").snapshots["update"].values.tolist() == [1]
