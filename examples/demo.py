"""Both examples, one after the other, then what their run files say: `make demo [EPOCHS=3] [FRESH=1]`."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fetch import has_apt

import headdynamics as hd

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
RUNS = Path("runs")


def train(name: str, epochs: str, fresh: bool) -> Path:
    """Run `examples/NAME.py` into `runs/NAME`, unless it is finished there; return its run file."""
    folder = RUNS / name
    marker = folder / "finished"  # holds the number of epochs; written only when all went well
    if marker.exists() and marker.read_text() == epochs and not fresh:
        print(f"{name}: a finished run of {epochs} epochs is in {folder}; FRESH=1 trains it again", flush=True)
        return folder / "headdynamics.h5"
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    _run([sys.executable, str(HERE / f"{name}.py"), "--save-dir", str(folder), "--epochs", epochs])
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    marker.write_text(epochs)
    return folder / "headdynamics.h5"


def answers(run_file: Path) -> None:
    """When head importance settled, the pruning curves, and the last model's score as heads are pruned."""
    program = str(BIN / "headdynamics")
    _run([program, "settle", str(run_file)])
    _run([program, "curves", str(run_file), "--output", str(run_file.with_name("curves.png"))])
    run = hd.load_run(run_file).usable()
    last = run.curve["score"].sel(order="importance").isel(snapshot=-1)
    pairs = zip(last["fraction"].values, last.values, strict=True)
    points = [f"{fraction:.0%}: {score:.3g}" for fraction, score in pairs]
    print(f"{run.attrs['metric']} of the last model by heads pruned, least important first: {', '.join(points)}")


def _run(argv: list[str]) -> None:
    print("$", " ".join(argv), flush=True)
    status = subprocess.run(argv).returncode
    if status:
        sys.exit(f"{argv[0]} ended with status {status}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", default="3", help="of translation; the sentiment model is fine-tuned for one")
    parser.add_argument("--fresh", action="store_true", help="train again even if a finished run is there")
    options = parser.parse_args()

    board = f"{BIN / 'tensorboard'} --logdir {RUNS}"
    print(f"to watch the heads while they train, in another terminal: {board} (the tab HEAD DYNAMICS)", flush=True)
    run_files = []
    if has_apt():
        run_files.append(train("translation", options.epochs, options.fresh))
    else:
        print("translation is skipped: its sentences are in Debian packages, and this machine has no apt-get")
    run_files.append(train("sentiment", "1", options.fresh))
    for run_file in run_files:
        print(f"\n== {run_file}")
        answers(run_file)

    report = RUNS / "report.html"
    _run([str(BIN / "headdynamics"), "report", *map(str, run_files), "-o", str(report)])

    print("\nrun files  ", *run_files)
    print("figures    ", *sorted(figure for file in run_files for figure in file.parent.rglob("*.png")))
    print("report     ", report)
    print("TensorBoard", board)


if __name__ == "__main__":
    main()
