"""Run every benchmark of what looking costs, and write benchmarks/results.md: `make bench`, about 15 minutes.

python benchmarks/report.py [NAME ...]      # only these: prints their part and writes no page

Each runs in a process of its own, on one thread. One that fails is a line of the page, never missing from it.
"""

from __future__ import annotations

import ast
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from side_by_side import ROOT, Row

HERE = Path(__file__).parent
PAGE = HERE / "results.md"
BENCHMARKS = (
    "importance",
    "peer_bertology",
    "online",
    "ablation",
    "curve",
    "curve_translation",
    "knee",
    "budget",
    "memory",
    "run_file",
    "import_time",
    "growth",
    "ranks",
)
LIMIT = 600  # seconds, of each
LIBRARIES = ("torch", "transformers", "ve-fairseq", "fairseq", "numpy", "h5py")
HEAD = ("what", "compared with", "goal", "measured", "met")
MET = {True: "yes", False: "**no**", None: ""}


def prepared(what: str) -> str:
    """Fetch and prepare an example's data once, as `make demo` does; what went wrong, or nothing."""
    return _said([sys.executable, str(ROOT / "examples/data.py"), what], 1800)


def measured(name: str) -> tuple[list[Row], str]:
    """The rows of a benchmark; or none and why."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows.json"
        trouble = _said([sys.executable, str(HERE / f"{name}.py"), "--json", str(found)], LIMIT)
        if not trouble and not found.exists():
            trouble = "it wrote no rows"
        return ([], trouble) if trouble else ([Row(**row) for row in json.loads(found.read_text())], "")


def _said(words: list[str], limit: float) -> str:
    """Run to the end; nothing, or the last line of what it complained about, without the folders in it."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=limit, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {limit:g} s"
    if done.returncode == 0:
        return ""
    lines = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
    return f"status {done.returncode}: " + re.sub(r"(/[^/\s'\"]+)+/", "", lines[-1])


def machine() -> Iterator[str]:
    """What the figures depend on, a line each."""
    cpu = re.search(r"model name\s*: (.+)", _read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+) kB", _read("/proc/meminfo"))
    yield f"processor: {cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores"
    if memory:
        yield f"memory: {int(memory[1]) / 2**20:.0f} GiB"
    yield f"system: {platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}"
    yield "libraries: " + ", ".join(f"{name} {version}" for name in LIBRARIES if (version := _version(name)))
    yield f"date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC"


def _read(place: str) -> str:
    return Path(place).read_text(encoding="utf-8") if Path(place).exists() else ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def part(name: str) -> tuple[list[str], bool]:
    """A benchmark's part of the page, as lines, and whether it ran."""
    place, began = HERE / f"{name}.py", time.monotonic()
    print(f"{name} ...", flush=True)
    rows, trouble = measured(name) if place.exists() else ([], "there is no such benchmark")
    seconds = time.monotonic() - began
    said = ast.get_docstring(ast.parse(_read(str(place)))) or name
    title = said.splitlines()[0].rstrip(".")
    lines = [f"## {title}", "", f"`python benchmarks/{name}.py`, {seconds:.0f} s"]
    if trouble:
        print(f"  failed: {trouble}", flush=True)
        return [*lines, "", f"**Failed:** {trouble}", ""], False
    for row in rows:
        print(f"  {row.what} | {row.against} | {row.goal} | {row.figure} | {MET[row.met]}", flush=True)
    cells = [HEAD, ["---"] * len(HEAD), *((r.what, r.against, r.goal, r.figure, MET[r.met]) for r in rows)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return [*lines, "", *table, ""], True


def main() -> int:
    """Measure, print, write the page; 1 where a benchmark failed."""
    names = sys.argv[1:] or BENCHMARKS
    before = os.getloadavg()[0]
    trouble = [f"{what} data: {why}" for what in ("sentiment", "translation") if (why := prepared(what))]
    parts = [part(name) for name in names]
    intro = [
        "# What looking costs",
        "",
        "`make bench` measures this page again. A figure is a median, with its quartiles in brackets; where nothing",
        "else is said, the two that are compared took turns in one process, on one thread",
        "(`benchmarks/side_by_side.py`).",
        "",
        *(f"- {line}" for line in machine()),
        f"- load: {before:.1f} before, {os.getloadavg()[0]:.1f} after",
        *(f"- **not prepared:** {line}" for line in trouble),
        "",
    ]
    page = "\n".join([*intro, *(line for lines, _ in parts for line in lines)]).rstrip() + "\n"
    if names is BENCHMARKS:
        PAGE.write_text(page, encoding="utf-8")
        print(f"written: {PAGE.relative_to(ROOT)}")
    else:
        print(page)
    return 0 if all(ran for _, ran in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
