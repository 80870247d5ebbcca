"""The options of the commands that read run files."""

from __future__ import annotations

import argparse
from pathlib import Path

from headdynamics.analysis.run import TABLES

RUN = "run file, such as SAVE_DIR/headdynamics.h5"
PICTURE = "the form is that of its name: .png, .pdf or .svg"
WHICH = "which snapshot, by its position among those measured in full: 0 is the first, -1 the last"


def settle(parser: argparse.ArgumentParser) -> None:
    """Of `settle`."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.h5", help=RUN)
    parser.add_argument("--json", action="store_true", help="print everything as JSON, all views and fractions")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.9,
        metavar="R",
        help="r, the agreement with the last snapshot (-1 to 1), has to stay at or above it (default: %(default)s)",
    )
    parser.add_argument(
        "--tail", type=int, metavar="N", help="snapshots that have to follow (default: 3, or a third of all if more)"
    )
    parser.add_argument(
        "--fraction",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="show overlap and kept score with this share of the heads pruned, 0 to 1, or the nearest that was "
        "measured (default: %(default)s)",
    )


def curves(parser: argparse.ArgumentParser) -> None:
    """Of `curves`."""
    parser.add_argument("run", type=Path, metavar="RUN.h5", help=RUN)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PICTURE", help=f"{PICTURE} (default: RUN-curves.png, in this folder)"
    )


def ablations(parser: argparse.ArgumentParser) -> None:
    """Of `ablations`."""
    parser.add_argument("run", type=Path, metavar="RUN.h5", help=RUN)
    parser.add_argument(
        "--what",
        choices=("one", "all-but-one"),
        help="the model without each head, or with each head alone in its layer (default: the first that was measured)",
    )
    parser.add_argument("--snapshot", type=int, default=-1, metavar="N", help=f"{WHICH} (default: %(default)s)")
    parser.add_argument(
        "--alpha", type=float, default=0.01, metavar="P", help="mark p-values up to this, 0 to 1 (default: %(default)s)"
    )
    parser.add_argument(
        "--correction",
        choices=("none", "holm", "bh"),
        default="none",
        help="of the p-values, for testing as many heads: Holm's, or Benjamini and Hochberg's (default: %(default)s)",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write one row a head there")
    parser.add_argument("--figure", type=Path, metavar="PICTURE", help=f"also draw it; {PICTURE}")


def compare(parser: argparse.ArgumentParser) -> None:
    """Of `compare`."""
    parser.add_argument("run", type=Path, metavar="A.h5", help=RUN)
    parser.add_argument("against", type=Path, metavar="B.h5", help="another run, or A.h5 again with --other")
    parser.add_argument(
        "--what",
        choices=("ablation", "importance", "both"),
        default="both",
        help="what of every head: what its removal does to the score, I(h), or both (default: %(default)s)",
    )
    parser.add_argument("--snapshot", type=int, default=-1, metavar="N", help=f"{WHICH} (default: %(default)s)")
    parser.add_argument("--other", type=int, metavar="N", help="the same of B.h5 (default: as --snapshot)")
    parser.add_argument("--figure", type=Path, metavar="PICTURE", help=f"also draw a scatter plot; {PICTURE}")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def orders(parser: argparse.ArgumentParser) -> None:
    """Of `orders`."""
    parser.add_argument("run", type=Path, metavar="RUN.h5", help=RUN)
    parser.add_argument("--snapshot", type=int, default=-1, metavar="N", help=f"{WHICH} (default: %(default)s)")
    parser.add_argument(
        "--figure", type=Path, metavar="PICTURE", help=f"also draw figures 3 and 4 of the paper; {PICTURE}"
    )


def export(parser: argparse.ArgumentParser) -> None:
    """Of `export`."""
    parser.add_argument("run", type=Path, metavar="RUN.h5", help=RUN)
    parser.add_argument(
        "--what",
        choices=(*TABLES, "all"),
        default="importance",
        metavar="TABLE",
        help=f"{', '.join(TABLES)}, or all that were measured (default: %(default)s)",
    )
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--csv", dest="form", action="store_const", const=".csv", help="text, for spreadsheets and all")
    form.add_argument("--parquet", dest="form", action="store_const", const=".parquet", help="typed; needs pyarrow")
    parser.add_argument("-o", "--output", metavar="PATH", help="a file, or a folder/ (default: RUN-TABLE.csv, here)")


def report(parser: argparse.ArgumentParser) -> None:
    """Of `report`."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.h5", help=RUN)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="PAGE.html",
        help="where to (default: %(default)s, in this folder)",
    )
    parser.add_argument(
        "--speeds", type=Path, metavar="FILE.json", help="also show these speeds, of benchmarks/pruned_speed.py --json"
    )


def show(parser: argparse.ArgumentParser) -> None:
    """Of `show`."""
    parser.add_argument("run", type=Path, metavar="RUN.h5", help=RUN)
