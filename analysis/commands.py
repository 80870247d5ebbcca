"""The commands that read run files: what each does and what options it takes. Each imports what it needs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from headdynamics.analysis.program import Command, UsageError, check_picture, complain, console
from headdynamics.analysis.run import TABLES

from headdynamics.schema import RunFileError


def settle(args: argparse.Namespace) -> int:
    """Tell when head importance settled, for every file; a bad file does not stop the others."""
    from headdynamics.analysis.load import load_run
    from headdynamics.analysis.settling import settle as settle_run

    answers, code = [], 0
    for path in args.runs:
        try:
            run = load_run(path)
        except RunFileError as error:
            code = complain(error)
            continue
        found = settle_run(run, threshold=args.threshold, tail=args.tail)
        if args.json:
            answers.append({"run": str(path), **found.to_dict()})
            continue
        from headdynamics.analysis.tell import Console, tell_settling

        if len(args.runs) > 1:
            print(path)
        tell_settling(console(Console), run, found, args.fraction)
    if args.json:
        print(json.dumps({"runs": answers}, allow_nan=False, indent=2))
    return code


def curves(args: argparse.Namespace) -> int:
    """Draw figure 5 and print the path of the picture."""
    from headdynamics.analysis.draw import draw_pruning
    from headdynamics.analysis.load import load_run

    out = args.output or Path(f"{args.run.stem}-curves.png")
    check_picture(out)
    run = load_run(args.run).with_curve()
    draw_pruning(run).savefig(out, dpi=150)
    print(out)
    if run.failures:
        print(f"{len(run.failures)} snapshots failed and are left out: see headdynamics show", file=sys.stderr)
    return 0


def ablations(args: argparse.Namespace) -> int:
    """Print what each head does to the score, with tests; as CSV and as a figure where asked."""
    from headdynamics.analysis.ablation_table import Console, tell_ablation
    from headdynamics.analysis.ablations import effects, write_csv
    from headdynamics.analysis.load import load_run

    if not 0 < args.alpha < 1:
        raise UsageError(f"--alpha is {args.alpha:g}; give a number between 0 and 1, such as 0.01")
    if args.figure is not None:
        check_picture(args.figure)
    found = effects(load_run(args.run), args.what, args.snapshot)
    tell_ablation(console(Console), found, args.alpha, args.correction)
    if args.csv is not None:
        write_csv(found, args.csv)
        print(args.csv)
    if args.figure is not None:
        from headdynamics.analysis.ablation_figure import ablation_figure

        ablation_figure(found, args.alpha, args.correction).savefig(args.figure, dpi=150)
        print(args.figure)
    return 0


def compare(args: argparse.Namespace) -> int:
    """Tell whether the same heads matter on two sides, and draw it."""
    from headdynamics.analysis.compare import MEASURES, compare_all
    from headdynamics.analysis.load import load_run

    if args.figure:
        check_picture(args.figure)
    measures = MEASURES if args.what == "both" else (args.what,)
    found, missing = compare_all(load_run(args.run), load_run(args.against), measures, args.snapshot, args.other)
    if args.figure:
        from headdynamics.analysis.compare_figure import draw_comparison

        draw_comparison(found).savefig(args.figure, dpi=150)
    if args.json:
        answer = {"comparisons": [one.to_dict() for one in found], "missing": missing}
        print(json.dumps(answer, allow_nan=False, indent=2))
        return 0
    from headdynamics.analysis.tell_compare import Console, tell_comparisons

    tell_comparisons(console(Console), found, missing)
    if args.figure:
        print(args.figure)
    return 0


def orders(args: argparse.Namespace) -> int:
    """Tell which pruning order wins at a snapshot, and draw the curves where asked."""
    from headdynamics.analysis.load import load_run
    from headdynamics.analysis.orders import compare_orders
    from headdynamics.analysis.tell_orders import Console, tell_orders

    if args.figure is not None:
        check_picture(args.figure)
    run = load_run(args.run).with_curve()
    found = compare_orders(run, args.snapshot)
    tell_orders(console(Console), found)
    if args.figure is not None:
        from headdynamics.analysis.order_figure import orders_figure

        orders_figure(found, f"{run.attrs['model']} at {found.when}").savefig(args.figure, dpi=150)
        print(args.figure)
    return 0


def export(args: argparse.Namespace) -> int:
    """Write tidy tables and print the path of each."""
    from headdynamics.analysis.export import check_form, check_output
    from headdynamics.analysis.export import export as write_tables
    from headdynamics.analysis.load import load_run

    check_form(args.form)
    check_output(args.output, args.what, args.form)
    for path in write_tables(load_run(args.run), args.what, args.form, args.output):
        print(path)
    return 0


def show(args: argparse.Namespace) -> int:
    """Say what is in the file."""
    from headdynamics.analysis.load import load_run
    from headdynamics.analysis.tell import Console, tell_run

    tell_run(console(Console), load_run(args.run))
    return 0


def _settle_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.h5")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, all views and fractions")
    parser.add_argument(
        "--threshold", type=float, default=0.9, help="r has to stay at or above it (default: %(default)s)"
    )
    parser.add_argument("--tail", type=int, help="snapshots that have to follow (default: max(3, a third of all))")
    parser.add_argument(
        "--fraction", type=float, default=0.5, help="show overlap and kept score with this fraction pruned"
    )


def _curves_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN.h5")
    parser.add_argument("-o", "--output", type=Path, help="png, pdf or svg (default: RUN-curves.png)")


def _ablations_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN.h5")
    parser.add_argument("--what", choices=("one", "all-but-one"), help="default: the first that was measured")
    parser.add_argument("--snapshot", type=int, default=-1, help="its position, from 0 (default: -1, the last)")
    parser.add_argument("--alpha", type=float, default=0.01, help="mark p-values up to this (default: %(default)s)")
    parser.add_argument(
        "--correction", choices=("none", "holm", "bh"), default="none", help="of these p-values, over all heads"
    )
    parser.add_argument("--csv", type=Path, help="write one row a head")
    parser.add_argument("--figure", type=Path, help="draw it: png, pdf or svg")


def _compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="A.h5")
    parser.add_argument("against", type=Path, metavar="B.h5", help="another run, or A.h5 again with --other")
    parser.add_argument(
        "--what", choices=("ablation", "importance", "both"), default="both", help="what of every head (default: both)"
    )
    where = "by position among those measured in full; -1 is the last"
    parser.add_argument("--snapshot", type=int, default=-1, metavar="N", help=f"which snapshot, {where} (default: -1)")
    parser.add_argument("--other", type=int, metavar="N", help="which snapshot of B.h5 (default: as --snapshot)")
    parser.add_argument("--figure", type=Path, help="scatter plot: png, pdf or svg")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def _orders_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN.h5")
    parser.add_argument("--snapshot", type=int, default=-1, help="its position, from 0 (default: -1, the last)")
    parser.add_argument("--figure", type=Path, help="draw figures 3 and 4: png, pdf or svg")


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN.h5")
    parser.add_argument("--what", choices=(*TABLES, "all"), default="importance", help="default: %(default)s")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--csv", dest="form", action="store_const", const=".csv", help="text, for spreadsheets and all")
    form.add_argument("--parquet", dest="form", action="store_const", const=".parquet", help="typed; needs pyarrow")
    parser.add_argument("-o", "--output", metavar="PATH", help="a file, or a folder/ (default: RUN-TABLE.csv, here)")


def _show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN.h5")


COMMANDS = {
    "settle": Command("tell when head importance settled", settle, _settle_options),
    "curves": Command("draw the score as heads are pruned, at each snapshot", curves, _curves_options),
    "orders": Command("tell which pruning order wins, by the area under its curve", orders, _orders_options),
    "ablations": Command("tell what each head does to the score, with paired tests", ablations, _ablations_options),
    "compare": Command("tell whether the same heads matter on other data", compare, _compare_options),
    "export": Command("write the numbers as tidy tables, CSV or Parquet", export, _export_options),
    "show": Command("say what is in a run file", show, _show_options),
}
