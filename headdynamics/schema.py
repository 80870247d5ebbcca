"""The run file's names and axes (HDF5, schema 1): the one contract between MEASURE and READ.

No torch and no h5py here, so that a reader needs neither to know what a file holds.
The file is netCDF-4 compatible: the dimension scales stand at the root, bear the name of
their axis and are attached to every dataset that has it, so
``xarray.open_dataset(path, engine="h5netcdf", group="importance")`` opens with named axes.
A missing value is NaN (text: the empty string), never 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

SCHEMA = 1
BLOCKS = 10  # disjoint blocks of examples whose means settle() needs (see analysis/settling.py)
KINDS = ("encoder", "decoder", "cross")

#: axis -> (dtype of its coordinate, what the coordinate holds)
AXES = {
    "snapshot": ("int64", "update at which the snapshot was taken; grows"),
    "head": ("int64", "head index, 0..H-1"),
    "order": ("str", "pruning order, e.g. importance, random-1, random-2, random-3"),
    "fraction": ("float64", "fraction of heads pruned"),
    "block": ("int64", "block of importance examples, 0..9"),
    "window": ("int64", "update at which an online window ended"),
}

KNEE = "knee"  # in the place of fractions: no curve, but how many heads may go

#: what was masked -> group
ABLATIONS = {"one": "ablation/one", "all-but-one": "ablation/all_but_one"}

#: attributes of the root group; all are required
ATTRIBUTES = (
    "schema",  # int
    "headdynamics",  # version that created the file
    "framework",  # fairseq | transformers | torch
    "model",  # class name
    "signature",  # JSON: settings, versions, seeds, data fingerprint; and "hash"
    "created",  # ISO 8601, UTC
    "metric",  # name of the score
    "greater_is_better",  # bool
    "estimator",  # which I(h)
)


class Field(NamedTuple):
    """One dataset: its dtype (``str`` is UTF-8 text) and its axes."""

    dtype: str
    axes: tuple[str, ...]


FIELDS = {
    "heads/kind": Field("str", ("head",)),  # encoder | decoder | cross
    "heads/layer": Field("int32", ("head",)),  # ordinal within its stack and kind, from 0
    "heads/number": Field("int32", ("head",)),  # within its layer, from 0
    "heads/module": Field("str", ("head",)),
    "snapshots/update": Field("int64", ("snapshot",)),  # the key
    "snapshots/epoch": Field("float64", ("snapshot",)),  # epochs completed: 1.0 after the first
    "snapshots/seconds": Field("float64", ("snapshot",)),  # what the snapshot took
    "snapshots/status": Field("str", ("snapshot",)),  # "ok", else what failed
    "snapshots/loss": Field("float64", ("snapshot",)),  # mean over the importance examples
    "snapshots/score": Field("float64", ("snapshot",)),  # unpruned
    "snapshots/n_importance": Field("int64", ("snapshot",)),
    "snapshots/n_score": Field("int64", ("snapshot",)),
    "snapshots/checkpoint": Field("str", ("snapshot",)),  # path; "" where none holds these weights
    "importance/mean": Field("float32", ("snapshot", "head")),
    "importance/stderr": Field("float32", ("snapshot", "head")),
    "importance/signed": Field("float32", ("snapshot", "head")),
    "importance/blocks": Field("float32", ("snapshot", "block", "head")),
    "curve/score": Field("float64", ("snapshot", "order", "fraction")),
    "curve/stderr": Field("float64", ("snapshot", "order", "fraction")),
    "orders/area": Field("float64", ("snapshot", "order")),  # mean score over the pruned fractions
    "orders/area_stderr": Field("float64", ("snapshot", "order")),
    "orders/difference": Field("float64", ("snapshot", "order")),  # area - that of importance, over the same heads
    "orders/difference_stderr": Field("float64", ("snapshot", "order")),  # paired: the same resampled examples
    "knee/fraction": Field("float64", ("snapshot", "order")),  # of the order's heads that may go within the tolerance
    "knee/score": Field("float64", ("snapshot", "order")),  # without these, on the examples that decided
    "knee/bound": Field("float64", ("snapshot", "order")),  # upper end of the score lost, at the given confidence
    "knee/evaluations": Field("int64", ("snapshot", "order")),  # counts of heads that were scored, and the whole model
    "knee/passes": Field("float64", ("snapshot", "order")),  # what these came to in passes over the examples
    **{
        f"{group}/{name}": Field("float64", ("snapshot", "head"))
        for group in ABLATIONS.values()
        # delta: score - unpruned score; pvalue: uncorrected, of the test in its attribute `test`
        for name in ("score", "delta", "stderr", "pvalue", "delta_first", "delta_second")  # even and odd examples
    },
    "online/update": Field("int64", ("window",)),
    "online/mean": Field("float32", ("window", "head")),  # its attribute `scale`: whether of an example's own loss
    "online/stderr": Field("float32", ("window", "head")),
    "online/signed": Field("float32", ("window", "head")),
    "online/average": Field("float32", ("window", "head")),  # exponential, of the means so far
    "online/n": Field("int64", ("window",)),  # examples (estimator batch: updates)
    "online/skipped": Field("int64", ("window",)),  # those whose gradient was not finite
    "transfer/score": Field("float64", ("snapshot", "fraction")),  # of the model at its attribute `update`
}

#: groups that exist only in runs that measured them; every other group is always there
OPTIONAL = ("orders/", "knee/", "ablation/", "online/", "transfer/")


class RunFileError(Exception):
    """A run file cannot be used; the message names the cause and the cure."""


def lies_elsewhere(dataset: Any) -> bool:
    """Whether an HDF5 dataset keeps its values in another file; HDF5 would read and write that, wherever it is."""
    return bool(dataset.external) or bool(dataset.is_virtual)
