"""What every command line shares: one line for an error, near misses, a console that suits a pipe."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from headdynamics.schema import RunFileError


class UsageError(Exception):
    """The command line makes no sense; the message says why."""


class Parser(argparse.ArgumentParser):
    """One line for an error, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and leaving."""
        raise UsageError(f"{message} (see {self.prog} --help)")


class Command(NamedTuple):
    """A subcommand: what it does, its function, and how its options are added."""

    help: str
    function: Callable[[argparse.Namespace], int]
    options: Callable[[argparse.ArgumentParser], object]


def run(argv: Sequence[str] | None, commands: Mapping[str, Command]) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None: the process's own.
        commands: what there is.

    Returns:
        0, or 2 after one line on stderr that says what is wrong.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv and not argv[0].startswith("-") and argv[0] not in commands:
            raise UsageError(_unknown(argv[0], commands))
        args = _parser(commands).parse_args(argv)
        return args.function(args)
    except (RunFileError, UsageError, ImportError, OSError, ValueError) as error:
        return complain(error)


def _parser(commands: Mapping[str, Command]) -> Parser:
    parser = Parser(prog="headdynamics", description="Which attention heads matter, and when in training that settles.")
    added = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for name, command in commands.items():
        one = added.add_parser(name, help=command.help, description=command.help)
        command.options(one)
        one.set_defaults(function=command.function)
    return parser


def _unknown(name: str, commands: Mapping[str, Command]) -> str:
    near = difflib.get_close_matches(name, commands, n=1, cutoff=0.4)
    meant = f"did you mean '{near[0]}'?" if near else f"the commands are {', '.join(commands)}"
    return f"there is no command '{name}': {meant}"


def check_picture(path: Path) -> None:
    """UsageError where no figure can be written in this form."""
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UsageError(f"{path} should end in .png, .pdf or .svg")


def console(make: Callable) -> object:
    """A rich console; `make` is rich's class, so that this file does not import it."""
    # A pipe has no width of its own: wide enough there for every table.
    return make(highlight=False, width=None if sys.stdout.isatty() else 160)


def printable(text: str) -> str:
    """Text from a file, safe for a terminal: what is neither a character to be seen nor a line's end becomes ``?``."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def no_formula(text: object) -> object:
    """Text from a file, safe for a spreadsheet: what it would take for a formula stands behind an apostrophe."""
    return f"'{text}" if isinstance(text, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


class Printable(logging.Formatter):
    """What is logged, safe for a terminal: it may name a stranger's folder."""

    def format(self, record: logging.LogRecord) -> str:
        """One record's text."""
        return printable(super().format(record))


def log_to_terminal() -> None:
    """Our own messages and other libraries' warnings, on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(Printable())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("headdynamics").setLevel(logging.INFO)


def complain(error: Exception) -> int:
    """One line on stderr; the status to leave with."""
    print(f"headdynamics: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    return 2
