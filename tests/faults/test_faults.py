"""A sample of every kind of fault that `make faults` tries in full, and that the runner sees what is lost."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import failing
import faults_page
import fuzz
import pytest
import torch
from damage import damaged

REPO = Path(__file__).resolve().parents[2]


def test_the_page_is_drawn_from_what_was_measured():
    assert faults_page.DOCS.read_text() == faults_page.page()


@pytest.mark.parametrize("when", failing.WRITES)
def test_a_call_of_a_write_fails(tmp_path, when):
    """Every third call, by turns with a full disk and an I/O error."""
    if when == "an end" and sys.version_info < (3, 11):
        pytest.skip("pathlib of Python 3.10 keeps an os.unlink of its own, which is not made to fail")
    calls = []
    for nth in range(1, 99, 3):
        folder = tmp_path / str(nth)
        folder.mkdir()
        calls.append(failing.tried(folder, when, nth, (errno.ENOSPC, errno.EIO)[nth % 2]))
        if calls[-1] is None:
            break
    assert len(calls) > (1 if when == "an end" else 4) and calls[-1] is None


def test_a_damaged_file_is_refused(tmp_path):
    path, victim = fuzz.a_file(tmp_path, sealed=True), tmp_path / "damaged.h5"
    data = path.read_bytes()
    victim.write_bytes(data)
    right = fuzz.read(victim)
    verdicts = set()
    for seed in range(12):
        for old in tmp_path.glob("damaged*"):
            old.unlink()
        victim.write_bytes(damaged(data, seed)[1])
        verdicts.add(fuzz.judged(fuzz.read(victim), right))
    assert "error" in verdicts and verdicts <= {"error", "right numbers"}


def test_the_judge_sees_wrong_numbers_and_crashes():
    right = {"load_run": "1", "show": "2"}
    assert fuzz.judged({"load_run": "1", "show": "3"}, right) == "wrong numbers"
    assert fuzz.judged({"load_run": "crash", "show": fuzz.REFUSED}, right) == "crash"
    assert fuzz.judged({"load_run": fuzz.REFUSED, "show": "2"}, right) == "error"


@pytest.mark.parametrize("trainer", ["fairseq", "hf"])
def test_killed_trainings_end_as_if_never_killed(tmp_path, trainer):
    if trainer == "fairseq" and not hasattr(torch.serialization, "add_safe_globals"):
        pytest.skip("torch reads fairseq's checkpoints safely from 2.4 on, to tell which ones are torn")
    words = ["-m", "tests.faults", "--try", f"kills-{trainer}", "--times", "2", "--place", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], cwd=REPO, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-2])
    assert found["tried"] == 2 and found["lost"] == 0
