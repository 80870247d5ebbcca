"""What TensorBoard finds by the entry point `tensorboard_plugins`; imports nothing heavy, and never fails."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from tensorboard.plugins import base_plugin

from headdynamics.tags import PLUGIN

logger = logging.getLogger("headdynamics")


class Loader(base_plugin.TBLoader):
    """Loads the dashboard, and asks TensorBoard to keep every snapshot where it would keep ten."""

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Keep all of our tensors, unless `--samples_per_plugin headdynamics=N` says how many."""
        flags.samples_per_plugin = {PLUGIN: 0, **(getattr(flags, "samples_per_plugin", None) or {})}

    def load(self, context: base_plugin.TBContext) -> Any:
        """The dashboard; None, and one line, where a library is missing."""
        try:
            from .dashboard import Dashboard
        except ImportError as error:
            logger.warning("headdynamics: no HEAD DYNAMICS tab: %s", error)
            return None
        return Dashboard(context)
