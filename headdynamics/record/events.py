"""Events: a run's rows as TensorBoard tensors, which the dashboard reads through TensorBoard's data provider.

| tag                  | what                                                                            |
|----------------------|---------------------------------------------------------------------------------|
| headdynamics/run     | JSON text: the run file's attributes, axes and heads; written at each start     |
| headdynamics/FIELD   | a field of the schema in one row (`importance/mean`: [H]); the step is the update |
| headdynamics/notes   | JSON text: field -> its attributes (the test that p-values are of)              |

All bear the plugin name `headdynamics`; a field that was not measured in a row has no event there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..online import Window
from ..schema import FIELDS
from ..snapshot import Run, Snapshot
from ..tags import NOTES, PLUGIN, RUN, tag_of
from .rows import attributes, fixed_axes, notes, values, window_values


def run_summary(run: Run) -> Any:
    """The summary of the tag `headdynamics/run`."""
    heads = {name: getattr(run.heads, name).tolist() for name in ("kind", "layer", "number", "module")}
    told = {"attrs": attributes(run), "axes": fixed_axes(run), "heads": heads}
    return summary({RUN: np.array(json.dumps(told).encode())})


def row_summary(run: Run, row: Snapshot | Window) -> Any:
    """The summary of one row."""
    found = window_values(row) if isinstance(row, Window) else values(row, run.orders, len(run.fractions))
    tensors = {tag_of(name): _array(name, value) for name, value in found.items()}
    told = notes(row)
    return summary(tensors | ({NOTES: np.array(json.dumps(told).encode())} if told else {}))


def summary(tensors: Mapping[str, np.ndarray]) -> Any:
    """One summary proto with a tensor for each tag."""
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.util.tensor_util import make_tensor_proto

    metadata = summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=PLUGIN),
        data_class=summary_pb2.DATA_CLASS_TENSOR,
    )
    made = summary_pb2.Summary()
    for tag, array in tensors.items():
        made.value.add(tag=tag, metadata=metadata, tensor=make_tensor_proto(array))
    return made


def _array(name: str, value: Any) -> np.ndarray:
    dtype = FIELDS[name].dtype
    return np.array(str(value).encode()) if dtype == "str" else np.asarray(value, dtype)
