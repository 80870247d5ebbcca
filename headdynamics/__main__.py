"""The program: ``headdynamics settle|curves|show|...|backfill|watch``. What only reads imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from headdynamics.analysis.commands import COMMANDS as READERS
from headdynamics.analysis.program import Command, run
from headdynamics.plugins.backfill_command import run as backfill
from headdynamics.plugins.backfill_command import watch
from headdynamics.plugins.backfill_options import backfill as backfill_options
from headdynamics.plugins.backfill_options import watch as watch_options

_ANSWER = (
    "The answer is a run file, as if the training had been watched; its path is printed at the end. Ctrl-C ends it "
    "after the checkpoint at hand; the same command goes on."
)
COMMANDS = READERS | {
    "backfill": Command(
        "measure the checkpoints of a finished training",
        backfill,
        backfill_options,
        _ANSWER,
        "backfill runs/1 --data data-bin/de-en --score bleu --every-th 2",
    ),
    "watch": Command(
        "measure each checkpoint of a training that goes on, as it appears",
        watch,
        watch_options,
        _ANSWER,
        "watch runs/1 --data data-bin/de-en --idle 3600",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see `analysis.program.run`."""
    return run(argv, COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
