"""The commands that read run files: what each does and what options it takes. Each imports what it needs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from headdynamics.analysis import options
from headdynamics.analysis.program import Command, UsageError, check_picture, complain, console

from headdynamics.schema import RunFileError


def settle(args: argparse.Namespace) -> int:
    """Tell when head importance settled, for every file; a bad file does not stop the others."""
    from headdynamics.analysis.load import load_run
    from headdynamics.analysis.settling import settle as settle_run

    if not 0 <= args.fraction <= 1:
        raise UsageError(f"--fraction is {args.fraction:g}; give a share of the heads between 0 and 1, such as 0.5")
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


def report(args: argparse.Namespace) -> int:
    """Write one HTML file with panels and tables, and print its path."""
    from headdynamics.analysis.load import load_run
    from headdynamics.analysis.report import report as page

    if args.output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{args.output} should end in .html")
    args.output.write_text(page([load_run(path) for path in args.runs], args.speeds), encoding="utf-8")
    print(args.output)
    return 0


def show(args: argparse.Namespace) -> int:
    """Say what is in the file."""
    from headdynamics.analysis.load import load_run
    from headdynamics.analysis.tell import Console, tell_run

    tell_run(console(Console), load_run(args.run))
    return 0


COMMANDS = {
    "settle": Command(
        "tell when head importance settled",
        settle,
        options.settle,
        "The answer is a sentence (settled at which epoch and update, not settled, or too few or too noisy to tell), "
        "then a table of the views and one of the snapshots.",
        "settle run.h5 --threshold 0.8",
    ),
    "curves": Command(
        "draw the score as heads are pruned, at each snapshot",
        curves,
        options.curves,
        "The answer is a picture, figure 5 of the paper; its path is printed.",
        "curves run.h5 -o curves.svg",
    ),
    "orders": Command(
        "tell which pruning order wins, by the area under its curve",
        orders,
        options.orders,
        "The answer is a table of the orders, best first, with their difference from the order by I(h).",
        "orders run.h5 --snapshot 0 --figure orders.png",
    ),
    "ablations": Command(
        "tell what each head does to the score, with paired tests",
        ablations,
        options.ablations,
        "The answer is a table of layers by heads, the change of the score where each head is gone, and how many of "
        "them chance alone would mark.",
        "ablations run.h5 --correction holm --csv heads.csv",
    ),
    "compare": Command(
        "tell whether the same heads matter on other data",
        compare,
        options.compare,
        "The answer is a table of correlations over the heads, with intervals and the noise ceiling.",
        "compare news.h5 reviews.h5 --what importance --figure both.png",
    ),
    "export": Command(
        "write the numbers as tidy tables, CSV or Parquet",
        export,
        options.export,
        "The answer is a file for each table, one row a number; their paths are printed.",
        "export run.h5 --what all --csv -o tables/",
    ),
    "report": Command(
        "write one HTML file: panels, tables and where each number is from",
        report,
        options.report,
        "The answer is one file that a browser opens without a network; its path is printed.",
        "report run.h5 other.h5 -o report.html",
    ),
    "show": Command(
        "say what is in a run file",
        show,
        options.show,
        "The answer is what was measured, of which model and data, when, and with which settings.",
        "show run.h5",
    ),
}
