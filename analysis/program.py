"""What every command line shares: help, one line for an error, near misses, a console that suits a pipe."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import headdynamics
from headdynamics.names import meant, unknown
from headdynamics.schema import RunFileError

Screen = TypeVar("Screen")

INTERRUPTED = 130  # the status that shells give to what Ctrl-C ended


class UsageError(Exception):
    """The command line makes no sense; the message says why."""


class Parser(argparse.ArgumentParser):
    """One line for an error, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and leaving."""
        raise UsageError(f"{message}; see {self.prog} --help")

    def check_options(self, words: Sequence[str]) -> None:
        """UsageError where one of these is an option that there is not; the message has the nearest that there is."""
        known = [option for action in self._actions for option in action.option_strings]
        for word in words:
            name = word.partition("=")[0] if word.startswith("--") else word[:2]
            negative = name[1:].isdigit()
            if len(name) > 1 and name[0] == "-" and not negative and not any(one.startswith(name) for one in known):
                self.error(f"unknown option {name}{meant(name, known) if name[:2] == '--' else ''}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, unknown("choice", value, map(str, action.choices)))


class CommandParser(Parser):
    """A command's own: an unknown option comes before whatever else is wrong, for it may well be the reason."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ever, but nothing is left for later."""
        self.check_options(args if "--" not in args else args[: args.index("--")])
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"one argument too many: {rest[0]!r}")
        return parsed, rest


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        help: what it does, a line without a full stop.
        function: takes its options, gives the status to leave with.
        options: adds its options.
        answer: what comes out, in a sentence or two.
        example: how it is called, without the program's name.

    """

    help: str
    function: Callable[[argparse.Namespace], int]
    options: Callable[[argparse.ArgumentParser], object]
    answer: str = ""
    example: str = ""


def run(argv: Sequence[str] | None, commands: Mapping[str, Command]) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None: the process's own.
        commands: what there is.

    Returns:
        0; 2 after one line on stderr that says what is wrong; 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(commands)
    try:
        if not argv:
            parser.print_help()
            return 0
        if not argv[0].startswith("-") and argv[0] not in commands:
            raise UsageError(unknown("command", argv[0], commands))
        parser.check_options(argv[:1])
        args = parser.parse_args(argv)
        return args.function(args)
    except (RunFileError, UsageError, ImportError, OSError, ValueError) as error:
        return complain(error)
    except KeyboardInterrupt:
        print("headdynamics: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser(commands: Mapping[str, Command]) -> Parser:
    parser = Parser(
        prog="headdynamics",
        description="Which attention heads matter, and when in training that settles.",
        epilog="headdynamics COMMAND --help tells more of each, with an example.",
    )
    parser.add_argument("--version", action="version", version=f"headdynamics {headdynamics.__version__}")
    added = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=CommandParser, title="commands")
    for name, command in commands.items():
        one = added.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}. {command.answer}",
            epilog=f"Example: headdynamics {command.example}",
        )
        command.options(one)
        one.set_defaults(function=command.function)
    return parser


def check_picture(path: Path) -> None:
    """UsageError where no figure can be written in this form."""
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UsageError(f"{path} should end in .png, .pdf or .svg")


def console(make: Callable[..., Screen]) -> Screen:
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
    """What is logged, safe for a terminal: it may name a stranger's folder. Of a traceback the error alone."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        """One line."""
        told = " ".join(str(ei[1]).split())
        return f"  {ei[0].__name__}: {told[:300]}{'...' * (len(told) > 300)}"

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
