"""Results of the cells <-> measured/*.json -> docs/versions.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .cells import CELLS, Cell

MEASURED = Path(__file__).with_name("measured")
DOCS = Path(__file__).resolve().parents[2] / "docs" / "versions.md"
BESIDE = ("accelerate", "numpy", "h5py", "xarray", "scipy", "sacrebleu", "tensorboard", "matplotlib")
INTRODUCTION = """# Versions: what the suite was run with

    make matrix                                # every cell that has no result for this commit yet
    make matrix CELLS="py3.12-*"               # some cells
    make matrix CELLS="*-torch2.2.2" TESTS=tests/core/test_gates.py
    make matrix FRESH=1                        # all again

Each cell is an environment of its own under `.matrix/`, made with uv: one Python, fairseq 0.12.2 (Python 3.10) or its
build for Python 3.11 and later, one transformers, one torch, and of everything else the newest that goes with them.
The oldest torch is the oldest that the transformers beside it accepts. The same tests run in every cell, as `make
test` runs them, on the files of one commit. torch comes from the package index: a build for CUDA, here without a GPU.
uv asks the public index, or the one that `UV_DEFAULT_INDEX` names; pip's configuration is not read.
This page is written by that command; all packages of a cell, as pip lists them, are in `tests/matrix/measured/`.
"""


@dataclass
class Result:
    """What one cell gave: counts of tests, or why it could not be had."""

    cell: str
    commit: str
    requirements: list[str]
    tests: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    skips: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: int = 0
    blocked: str = ""

    def answers(self, commit: str, requirements: Sequence[str], tests: Sequence[str]) -> bool:
        """Whether this is the result of these tests on this commit with these requirements: no need to run again."""
        return not self.blocked and (self.commit, self.requirements, self.tests) == (
            commit,
            list(requirements),
            list(tests),
        )

    def line(self) -> str:
        """One line for the terminal."""
        if self.blocked:
            return f"{self.cell}: blocked: {self.blocked}"
        counted = ", ".join(f"{number} {what}" for what, number in self.counts.items())
        return f"{self.cell}: {counted} in {self.seconds} s ({_what(self.tests)})"


def read(cell: Cell) -> Result | None:
    """The recorded result of a cell, or None."""
    path = MEASURED / f"{cell.name}.json"
    return Result(**json.loads(path.read_text())) if path.exists() else None


def write(cell: Cell, result: Result) -> None:
    """Record a result and draw the page anew; a part of the tests never takes the place of a result of them all."""
    before = read(cell)
    if before and before.counts and not before.tests and (result.tests or result.blocked):
        return
    MEASURED.mkdir(exist_ok=True)
    (MEASURED / f"{cell.name}.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    DOCS.write_text(page())


def page() -> str:
    """docs/versions.md, whole."""
    results = [(cell, read(cell)) for cell in CELLS]
    head = ("Python", "fairseq", "transformers", "torch", "passed", "failed", "skipped", "minutes", "commit", "tests")
    lines = [INTRODUCTION, _row(head), _row("---" for _ in head)]
    lines += [_row(_cells(cell, result)) for cell, result in results]
    known = [result for _, result in results if result]
    lines += ["", "## Skipped, and why", ""]
    lines += [f"- {result.cell}: {number} x {why}" for result in known for why, number in sorted(result.skips.items())]
    lines += ["", "## Failed", ""]
    lines += [f"- {result.cell}: `{name}`" for result in known for name in result.failures] or ["Nothing."]
    lines += ["", "## Blocked", ""]
    lines += [f"- {result.cell}: {result.blocked}" for result in known if result.blocked] or ["Nothing."]
    lines += ["", "## What stood beside them", "", _row(("cell", *BESIDE)), _row("---" for _ in ("", *BESIDE))]
    lines += [
        _row((result.cell, *(result.versions.get(package, "-") for package in BESIDE)))
        for result in known
        if result.versions
    ]
    return "\n".join(lines) + "\n"


def _cells(cell: Cell, result: Result | None) -> list[str]:
    if result is None or result.blocked:
        state = "blocked" if result else "not run yet"
        return [cell.python, cell.fairseq, cell.transformers, cell.torch, state, "", "", "", "", ""]
    versions, counts = result.versions, result.counts
    fairseq = next(f"{name} {versions[name]}" for name in ("fairseq", "ve-fairseq") if name in versions)
    numbers = [str(counts[what]) for what in ("passed", "failed", "skipped")]
    shown = [versions["python"], fairseq, versions["transformers"], versions["torch"]]
    return [*shown, *numbers, f"{result.seconds / 60:.1f}", result.commit, _what(result.tests)]


def _what(tests: Sequence[str]) -> str:
    return " ".join(tests) or "all"


def _row(cells: object) -> str:
    return "| " + " | ".join(cells) + " |"  # type: ignore[call-overload]
