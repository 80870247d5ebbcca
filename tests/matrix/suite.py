"""Run the tests in a cell's environment and read what they said."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from .cells import Cell
from .results import Result

LIMIT = 3 * 3600  # seconds for one cell


def tested(cell: Cell, folder: Path, commit: str, tests: Sequence[str]) -> Result:
    """Run the tests in a prepared folder, as `make test` does; the whole output is in its log.txt.

    Raises:
        RuntimeError: pytest did not come to its end: interrupted, or no test was found.

    """
    python, report, log = folder / "venv/bin/python", folder / "report.xml", folder / "log.txt"
    report.unlink(missing_ok=True)
    words = [str(python), "-m", "pytest", "-n", "2", "--dist", "loadfile", f"--junitxml={report}", *tests]
    path = os.pathsep.join([str(folder / "venv/bin"), os.environ["PATH"]])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    start = time.monotonic()
    with log.open("w") as output:
        options = {"cwd": folder / "source", "env": environment, "stdout": output, "stderr": output, "timeout": LIMIT}
        code = subprocess.run(words, **options).returncode
    if code not in (0, 1):  # it writes a report of an interrupted run too
        raise RuntimeError(f"pytest did not come to its end (exit status {code}); see {log}")
    counts, skips, failures = read_report(report)
    return Result(
        cell=cell.name,
        commit=commit,
        requirements=list(cell.requirements),
        tests=list(tests),
        versions=installed(python),
        counts=counts,
        skips=skips,
        failures=failures,
        seconds=round(time.monotonic() - start),
    )


def read_report(report: Path) -> tuple[dict[str, int], dict[str, int], list[str]]:
    """(how many passed, failed and were skipped; skip reason -> how many; the names of what failed)."""
    counts, skips, failures = Counter({"passed": 0, "failed": 0, "skipped": 0}), Counter[str](), []
    for case in ElementTree.parse(report).iter("testcase"):
        broken = case.find("failure") is not None or case.find("error") is not None
        skipped = case.find("skipped")
        counts["failed" if broken else "passed" if skipped is None else "skipped"] += 1
        if broken:
            failures.append(f"{case.get('classname')}::{case.get('name')}")
        elif skipped is not None:
            skips[skipped.get("message") or "no reason given"] += 1
    return dict(counts), dict(skips), sorted(failures)


def installed(python: Path) -> dict[str, str]:
    """What pip says stands beside this interpreter, and the interpreter's own version."""
    words = [str(python), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    listed = json.loads(subprocess.run(words, capture_output=True, text=True, check=True, timeout=300).stdout)
    version = subprocess.run([str(python), "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    return {"python": version.split()[1], **{package["name"]: package["version"] for package in listed}}
