"""The files of our pages: our own in `web/`, and plotly's script from the installed package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

WEB = Path(__file__).parent / "web"


def plotly_script() -> Path:
    """The plotting library as the package `plotly` brings it.

    Raises:
        ImportError: it is not installed; the message says what to install.
    """
    found = find_spec("plotly")
    if found is None or found.origin is None:
        raise ImportError("drawing in a browser needs plotly: pip install headdynamics[report]")
    return Path(found.origin).parent / "package_data/plotly.min.js"
