"""`python -m tests.matrix`: run the tests in every cell of versions and write docs/versions.md.

A cell whose result is recorded for this commit, these requirements and these tests is not run again; one that was
killed is. `--cells "py3.12-* *-torch2.2.2"` takes some cells, `--tests` some files, `--fresh` runs all anew.
"""

from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatch

from . import environment, results
from .cells import CELLS, Cell
from .environment import Blocked
from .results import Result
from .suite import tested


def main(words: list[str] | None = None) -> int:
    """Run what is asked for; 0 where all that ran has passed and no cell was blocked."""
    asked = _parser().parse_args(words)
    cells = [cell for cell in CELLS if any(fnmatch(cell.name, pattern) for pattern in asked.cells.split())]
    if not cells:
        print(f"no cell is called {asked.cells}; there are:", *(cell.name for cell in CELLS), sep="\n  ")
        return 2
    commit = environment.commit()
    if environment.uncommitted():
        print(f"testing commit {commit}: uncommitted changes are not in it", flush=True)
    return int(any([_fell(_run(cell, commit, asked.tests.split(), asked.fresh)) for cell in cells]))


def _run(cell: Cell, commit: str, tests: list[str], fresh: bool) -> Result:
    recorded = results.read(cell)
    if recorded and not fresh and recorded.answers(commit, cell.requirements, tests):
        print(recorded.line(), "(recorded)", flush=True)
        return recorded
    print(f"{cell.name}: ...", flush=True)
    try:
        result = tested(cell, environment.prepared(cell, commit), commit, tests)
    except Blocked as why:
        result = Result(cell.name, commit, list(cell.requirements), blocked=str(why))
    results.write(cell, result)
    told = [f"  skipped {number} x {why}" for why, number in result.skips.items()]
    print(result.line(), *told, *(f"  failed {name}" for name in result.failures), sep="\n", flush=True)
    return result


def _fell(result: Result) -> bool:
    return bool(result.blocked or result.failures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--cells", default="*", help="patterns of cells' names, with spaces between them")
    parser.add_argument("--tests", default="", help="files of tests, with spaces between them; default: all")
    parser.add_argument("--fresh", action="store_true", help="run what has a result too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
