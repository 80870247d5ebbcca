"""The program: ``headdynamics settle|curves|show|...|backfill|watch``. What only reads imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from headdynamics.analysis.commands import COMMANDS as READERS
from headdynamics.analysis.program import Command, run
from headdynamics.plugins import backfill_command

COMMANDS = READERS | {
    "backfill": Command(
        "measure the checkpoints of a finished training", backfill_command.run, backfill_command.options
    ),
    "watch": Command(
        "measure each checkpoint of a training that goes on, as it appears",
        backfill_command.watch,
        backfill_command.watch_options,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see `analysis.program.run`."""
    return run(argv, COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
