"""docs/faults.md: what was tried, what was lost, and how; drawn from the counts."""

from __future__ import annotations

from pathlib import Path

import counts
from kinds import FAULTS
from points import ANY, FUNCTIONS

DOCS = Path(__file__).parents[2] / "docs" / "faults.md"
HEAD = """# Faults: what a run file goes through, and what it loses

Written by its runner, `make faults` (`python -m tests.faults`), which goes on where it was stopped. A sample of
each kind is in the test suite (`tests/faults`), with clocks that go back, update numbers that go back, a model of
another shape, and two runs on one file.

| fault | tried | lost |
|---|---|---|
"""
KILLS = """
## Kills

Real trainings of tiny models, every update measured and every fourth saved: half of the kills at any instant from
the start of the process on, half at a call of the process itself, before or after it (of those in a training that
resumes, half where it does). A training is killed up to eight times and restarted each time. Lost is a kill after
which the run file does not open, lacks a row that the trainer's log or its reporters said was recorded, or has a row
that is not, bit for bit, the one of the training that was never killed; or a restart that fails, or ends with a gap,
a double, another number or a file left over. The processes are forked from one that has imported the trainer's
libraries, but not headdynamics.

Bit for bit holds where the trainer itself resumes so. fairseq does not where it resumes within a second epoch: without
us, too, its losses differ from those of the training that never stopped. So the training that is killed has one epoch
there. The Trainer (transformers 5.23) does not where it resumes at an epoch's end: it then ends in other weights than
the training that never stopped, the same ones with us and without. So the one that is killed saves within epochs.

Torn checkpoints are the trainers' own: fairseq copies a checkpoint over `checkpoint_last.pt` in place, and the
Trainer writes the files of a checkpoint one by one into its folder. Neither can be resumed from, or not rightly;
the runner takes the newest whole one, as a user should, and counts them here. Rows beyond it are dropped and
measured again, to the bit.

| killed | fairseq | Hugging Face |
|---|---|---|
"""
FAIL = """
## Failing calls

Every call that a write makes of the system (the first file, one more row, a resume, an end; a short file, and a
long one that is copied ahead) fails once, with a full disk and with an I/O error. The file must stay as it was or
be as it should, and the next row must bring the one that was kept. {calls}

A failure while a resume reads the old file ends the start with an error: whose file it is is not known then, and a
`NAME-2.h5` would split the run.
"""
FUZZ = """
## Damaged files

A bit, up to 16 bytes or a block of up to 8 kB changed, zeroed or misplaced, the file cut, or something behind its
end: seeded, {readers}, each file in a process of its own. Each must be refused or read to exactly the numbers that
were written.

| | tried | refused | right numbers | wrong numbers | crash of the interpreter or traceback | hang |
|---|---|---|---|---|---|---|
{rows}

What refuses them is a checksum (crc32) of every 16 kB, behind the end of the HDF5, where every HDF5 library leaves
it unread; it is checked before HDF5 sees a byte. A write computes those of the pages that it changes, and checks
those that it reads. A file that another program wrote to has none (HDF5 cuts it off), as those of before: such a
file is read and gone on with as it is, and the next write of ours seals it. The last line above says what that
comes to.
"""
LONG = """
## Long runs

`python benchmarks/long_run.py` and `python benchmarks/run_file.py`; 144 heads, a curve of 4 orders x 11 fractions.

{figures}
"""


def page() -> str:
    """The page."""
    found = {kind: counts.read(kind) for kind in FAULTS}
    head = "".join(
        f"| {fault.what} | {found[kind]['tried']} | {found[kind]['lost']}{' (no promise)' * (not fault.promised)} |\n"
        for kind, fault in FAULTS.items()
    )
    calls = ", ".join(f"{name} {n}" for name, n in sorted(found["failing"].items()) if name not in ("tried", "lost"))
    rows = "\n".join(
        "| " + " | ".join([words, *(str(found[kind].get(what, 0)) for what in VERDICTS)]) + " |"
        for kind, words in (("fuzz", "as written"), ("fuzz-unsealed", "without checksums"))
    )
    readers = "by `hd.load_run`, `headdynamics show`, `settle` and `curves`, and a resume"
    return (
        HEAD + head + KILLS + _kills(found) + FAIL.format(calls=f"Calls: {calls}.")
        + FUZZ.format(readers=readers, rows=rows) + LONG.format(figures=_figures())
    )  # fmt: skip


VERDICTS = ("tried", "error", "right numbers", "wrong numbers", "crash", "hang")


def _kills(found: dict[str, dict]) -> str:
    lines = {ANY: ANY, **{what: f"{what} (`{module}.{name}`)" for what, (module, name, _) in FUNCTIONS.items()}}
    lines |= {"trainings": "trainings", TORN: f"{TORN}, not ours"}
    return "".join(
        f"| {words} | {found['kills-fairseq'].get(what, 0)} | {found['kills-hf'].get(what, 0)} |\n"
        for what, words in lines.items()
    )


TORN = "checkpoints that the trainer itself tore"


def _figures() -> str:
    kept = counts.PLACE / "long_run.txt"
    return kept.read_text().strip() if kept.exists() else "Not measured yet."
