"""The command line of the readers alone: ``python -m headdynamics.analysis settle|curves|... RUN.h5``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from headdynamics.analysis.commands import COMMANDS
from headdynamics.analysis.program import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see `program.run`."""
    return run(argv, COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
