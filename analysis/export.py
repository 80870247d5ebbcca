"""Run -> files that spreadsheets, R and other programs read: its tidy tables as CSV or Parquet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from headdynamics.analysis.needs import needed
from headdynamics.analysis.program import UsageError, no_formula
from headdynamics.analysis.run import Run
from headdynamics.analysis.tables import table, tables

with needed():
    import pandas as pd

ALL = "all"


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """A header and a line a row, UTF-8; what is missing is empty, and no text is a formula.

    A number has every digit of the double that it is, also where the file holds half of one: whoever reads it gets it
    back, whatever type it is read into.
    """
    halves = frame.select_dtypes("float32").columns
    texts = frame.select_dtypes(exclude="number").columns
    frame = frame.astype(dict.fromkeys(halves, "float64"))
    frame = frame.assign(**{name: frame[name].map(no_formula) for name in texts})
    frame.to_csv(path, index=False, lineterminator="\n")


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Columns in the run file's own types, and the run's attributes (its signature among them) in the metadata."""
    frame.to_parquet(path, engine="pyarrow", index=False)


#: what a file's name ends in -> how it is written
FORMS: dict[str, Callable[[pd.DataFrame, Path], None]] = {".csv": write_csv, ".parquet": write_parquet}


def check_form(form: str) -> None:
    """ImportError, naming what to install, where this form cannot be written."""
    if form == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError as error:
            raise ImportError("--parquet needs pyarrow, which is not installed: pip install pyarrow") from error


def check_output(output: str | None, what: str, form: str) -> None:
    """UsageError where no such table can be written there."""
    if output is None or is_folder(output):
        return
    if not output.endswith(form):
        raise UsageError(f"{output} should end in {form}, or in {os.sep} for a folder")
    if what == ALL:
        raise UsageError(f"{output} is one file; --what {ALL} writes several: name a folder, such as -o tables{os.sep}")


def is_folder(output: str) -> bool:
    """Whether this names a folder, there or to be made."""
    return output.endswith(os.sep) or Path(output).is_dir()


def export(run: Run, what: str, form: str, output: str | None = None) -> Iterator[Path]:
    """Write one table, or all that the run has, and yield the path of each as it is written.

    Args:
        run: from ``load_run``.
        what: a name of `run.TABLES`, or "all".
        form: a key of `FORMS`.
        output: a file, or a folder (made where missing) for files called RUN-TABLE; None: the current folder.

    Raises:
        RunFileError: the run holds no such table.
        OSError: a file cannot be written.
    """
    names = list(tables(run)) if what == ALL else [what]
    folder = Path(output or ".")
    one = None if output is None or is_folder(output) else folder
    for name in names:
        frame = table(run, name)
        if one is None:
            folder.mkdir(parents=True, exist_ok=True)
        path = one or folder / f"{run.path.stem}-{name}{form}"
        FORMS[form](frame, path)
        yield path
