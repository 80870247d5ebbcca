"""`python -m tests.coverage`: measure every family of the installed transformers and write docs/coverage.md.

`python -m tests.coverage bert llama` measures these anew and keeps the other rows.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # a configuration that asks for weights is not built, instead of tried six times
sys.path.insert(0, str(Path(__file__).parent))  # the tests' modules import each other by name

import table
import torch
import transformers
from families import families
from measure import Row, measure

LIMIT = 60  # seconds for one family


def main(wanted: list[str]) -> None:
    """Measure, keep the rows, draw the table anew."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_long)
    rows = {} if not wanted else {row["family"]: row for row in table.read(transformers.__version__)}
    for family in wanted or families():
        signal.alarm(LIMIT)
        try:
            row = measure(family)
        except TimeoutError:
            row = Row(family, reason=f"not measured within {LIMIT} seconds")
        finally:
            signal.alarm(0)
        rows[family] = row.asdict()
        print(*row.asdict().values(), flush=True)
        if len(rows) % 20 == 0:  # a long run that is stopped keeps what it measured
            table.write(transformers.__version__, sorted(rows.values(), key=lambda row: row["family"]))
    table.write(transformers.__version__, sorted(rows.values(), key=lambda row: row["family"]))


def _too_long(*_: Any) -> None:
    raise TimeoutError


if __name__ == "__main__":
    main(sys.argv[1:])
