"""What `benchmarks/pruned_speed.py` prints and a report repeats: what taking heads out saves, with rich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headdynamics.analysis.needs import needed
from headdynamics.analysis.tell import escape

from headdynamics.schema import RunFileError

with needed():
    from rich.console import Console
    from rich.table import Table


def tell_speeds(console: Console, found: Sequence[dict[str, Any]]) -> None:
    """Print a table a model (Michel, Levy and Neubig 2019, table 4).

    Raises:
        RunFileError: ``found`` is not what ``benchmarks/pruned_speed.py --json`` writes.
    """
    try:
        for one in found:
            _tell(console, one)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFileError(f"no table of speeds: {error!r}") from error


def _tell(console: Console, found: dict[str, Any]) -> None:
    table = Table(title=escape(f"{found['model']}: {found['pruned_heads']} of {found['heads']} heads taken out"))
    for column in ("batch", "whole, examples/s", "masked", "pruned", "bound by multiply-adds"):
        table.add_column(column, justify="right")
    for row in found["speed"]:
        cells = [f"{row['whole']['examples_per_second']:.1f}"]
        for name in ("masked", "pruned"):
            low, high = row[name]["spread"]
            cells.append(f"{row[name]['speedup']:.2f}x ({low:.2f} to {high:.2f})")
        table.add_row(f"{row['batch']:d}", *cells, f"{row['bound']:.2f}x")
    whole, pruned = found["weights"]["whole"], found["weights"]["pruned"]
    memory = found["peak_bytes_while_running_largest_batch"]
    console.print(table)
    console.print(
        f"parameters {whole['parameters']:,d} -> {pruned['parameters']:,d} "
        f"({1 - pruned['parameters'] / whole['parameters']:.1%} fewer); weights {whole['bytes'] / 1e6:.1f} -> "
        f"{pruned['bytes'] / 1e6:.1f} MB; masked: as whole"
    )
    told = ", ".join(f"{name} {memory[name] / 1e6:.0f} MB" for name in ("whole", "masked", "pruned"))
    console.print(f"peak memory while running the largest batch, beyond the loaded model: {told}")
    console.print(f"largest difference of pruned from masked outputs: {found['largest_difference_from_masked']:.1e}\n")
