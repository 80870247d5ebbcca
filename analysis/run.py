"""Run: what a run file holds, as xarray Datasets with named axes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headdynamics.schema import RunFileError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr

OK = "ok"  # the status of a snapshot that was measured in full


@dataclass(frozen=True, eq=False)
class Run:
    """One training run, wholly in memory; the file is closed.

    Every Dataset has the axes that ``headdynamics.schema.FIELDS`` names (S snapshots, H heads,
    P fractions), and their coordinates: ``snapshot`` is the update, ``fraction`` the fraction of
    heads pruned, ``order`` the pruning order's name. What a run did not measure is ``None``.
    """

    path: Path
    attrs: Mapping[str, Any]
    heads: xr.Dataset
    snapshots: xr.Dataset
    importance: xr.Dataset
    curve: xr.Dataset
    orders: xr.Dataset | None = None
    knee: xr.Dataset | None = None
    ablation_one: xr.Dataset | None = None
    ablation_all_but_one: xr.Dataset | None = None
    online: xr.Dataset | None = None
    transfer: xr.Dataset | None = None

    @property
    def signature(self) -> dict[str, Any]:
        """Settings, versions, seeds and data fingerprint; empty where they are not readable JSON."""
        try:
            found = json.loads(self.attrs["signature"])
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def failures(self) -> list[tuple[int, str]]:
        """``(update, status)`` of every snapshot that was not measured in full."""
        pairs = zip(self.snapshots["update"].values, self.snapshots["status"].values, strict=True)
        return [(int(update), str(status)) for update, status in pairs if status != OK]

    def usable(self) -> Run:
        """The same run with only those snapshots whose status is "ok"."""
        return self.select(self.snapshots["status"].values == OK)

    def with_curve(self) -> Run:
        """The run itself.

        Raises:
            RunFileError: it has no curve, only the unpruned score.
        """
        if len(self.curve["fraction"]) < 2:
            raise RunFileError(f"{self.path} has no pruning curve, only unpruned scores (a knee?): headdynamics show")
        return self

    def select(self, keep: np.ndarray) -> Run:
        """The same run with some snapshots only.

        Args:
            keep: bool ``[S]``, or the positions to keep.
        """
        datasets = ((field.name, getattr(self, field.name)) for field in fields(self))
        return replace(
            self,
            **{name: data.isel(snapshot=keep) for name, data in datasets if "snapshot" in getattr(data, "dims", ())},
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row per snapshot and head: where it stands, what it is, its importance.

        Columns: update, epoch, status, score, head, kind, layer, number, mean, stderr, signed.
        """
        table = self.importance[["mean", "stderr", "signed"]].to_dataframe().reset_index()
        heads = self.heads[["kind", "layer", "number"]].to_dataframe()
        snapshots = self.snapshots[["update", "epoch", "status", "score"]].to_dataframe()
        table = table.join(heads, on="head").join(snapshots, on="snapshot")
        columns = ["update", "epoch", "status", "score", "head", "kind", "layer", "number", "mean", "stderr", "signed"]
        return table[columns]
