"""Run: what a run file holds, as xarray Datasets with named axes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headdynamics.schema import FIELDS, RunFileError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr

GROUPS = tuple(dict.fromkeys(name.rpartition("/")[0].replace("/", "_") for name in FIELDS))
TABLES = (*GROUPS, "blocks")  # which are importance's, with an axis more
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

    def to_xarray(self) -> xr.Dataset:
        """Everything in one Dataset, each variable named as its path in the file: ``curve_score`` is ``/curve/score``.

        One Dataset and no tree of them, since all share their axes: one ``sel`` or ``where`` cuts every variable. Along
        ``snapshot`` (the update) the coordinates ``epoch`` and ``status``, along ``head`` ``kind``, ``layer``,
        ``number`` and ``module`` say what is measured. The file's attributes come along in types that
        ``to_netcdf()`` can write.
        """
        from headdynamics.analysis.tables import dataset

        return dataset(self)

    def to_dataframe(self, what: str = "importance") -> pd.DataFrame:
        """A tidy table: one row an observation, first where it stands and what it is of, then its numbers.

        Args:
            what: importance (a row a snapshot and head), blocks, curve, orders, knee, ablation_one,
                ablation_all_but_one, online, transfer, snapshots or heads.

        Where a row belongs to a snapshot, its columns are update, epoch, status and, unless the table has a score of
        its own, the unpruned ``score``; of a head: head, kind, layer, number. A note of the file on a variable is a
        column too: ``pvalue_test``. The file's attributes are the table's ``attrs``.

        Raises:
            RunFileError: that was not measured; the message says what was.
        """
        from headdynamics.analysis.tables import table

        return table(self, what)
