"""What TensorBoard is to find by the entry point `tensorboard_plugins`, once there is a tab; imports nothing heavy."""

from __future__ import annotations

import argparse

from tensorboard.plugins import base_plugin

from headdynamics.tags import PLUGIN


class Loader(base_plugin.TBLoader):
    """Asks TensorBoard to keep every snapshot where it would keep ten."""

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Keep all of our tensors, unless `--samples_per_plugin headdynamics=N` says how many."""
        flags.samples_per_plugin = {PLUGIN: 0, **(getattr(flags, "samples_per_plugin", None) or {})}
