"""One line of advice where an optional library is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed() -> Iterator[None]:
    """Import optional libraries inside this; a missing one says what to install.

    Raises:
        ImportError: naming the library and the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or str(error)).partition(".")[0]
        raise ImportError(
            f"headdynamics.analysis needs {name}, which is not installed: pip install 'headdynamics[analysis]'",
            name=name,
        ) from error
