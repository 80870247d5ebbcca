"""What TensorBoard finds by the entry point `tensorboard_plugins`; imports nothing heavy until a tab is made."""

from __future__ import annotations

import argparse
import logging

from tensorboard.plugins import base_plugin

from headdynamics.tags import PLUGIN

logger = logging.getLogger("headdynamics")


class Loader(base_plugin.TBLoader):
    """Makes the tab, and asks TensorBoard to keep every snapshot where it would keep ten."""

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Keep all of our tensors, unless `--samples_per_plugin headdynamics=N` says how many."""
        flags.samples_per_plugin = {PLUGIN: 0, **(getattr(flags, "samples_per_plugin", None) or {})}

    def load(self, context: base_plugin.TBContext) -> base_plugin.TBPlugin | None:
        """The tab; None, and one line in the log, where a library that it needs is missing."""
        try:
            from .dashboard import Dashboard

            return Dashboard(context)
        except ImportError as error:
            logger.warning("headdynamics: no tab HEAD DYNAMICS: %s", error)
            return None
