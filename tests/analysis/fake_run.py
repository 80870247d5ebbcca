"""Write a run file of schema 1 with h5py, from the schema alone, to test the reader on."""

import json

import h5py
import numpy as np

from headdynamics.schema import AXES, FIELDS, OPTIONAL, SCHEMA

TEXT = h5py.string_dtype("utf-8")
ORDERS = ("importance", "random-1", "random-2", "random-3")
TENTHS = np.arange(11) / 10


def blocks_of(truth, noise, seed=0, blocks=10):
    """[S, H] true importance -> [S, B, H] block means with multiplicative log-normal noise."""
    truth = np.asarray(truth, dtype=float)
    draw = np.random.default_rng(seed).normal(size=(truth.shape[0], blocks, truth.shape[1]))
    return truth[:, None, :] * np.exp(noise * draw)


def layout(layers, per_layer, kinds=("encoder",)):
    """[H] kind, layer, number of a regular model."""
    rows = [(k, n, h) for k in kinds for n in range(layers) for h in range(per_layer)]
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def values_of(blocks, heads, updates_per_epoch=300, optional=()):
    """Every field of the schema, by path, with plausible numbers."""
    snapshots, n_blocks, n_heads = blocks.shape
    kind, layer, number = heads
    size = {"snapshot": snapshots, "head": n_heads, "order": 4, "fraction": 11, "block": n_blocks, "window": 2}
    values = {}
    for name, field in FIELDS.items():
        if not name.startswith(OPTIONAL) or name.startswith(tuple(optional) or ("-",)):
            shape = tuple(size[axis] for axis in field.axes)
            values[name] = np.full(shape, "", object) if field.dtype == "str" else np.zeros(shape)
    update = updates_per_epoch * np.arange(1, snapshots + 1)
    score = 0.5 + 0.4 * (1 - np.exp(-np.arange(1, snapshots + 1) / 4))
    drop = np.stack([TENTHS**power for power in (4, 1.5, 1.7, 1.9)])
    values |= {
        "heads/kind": kind,
        "heads/layer": layer,
        "heads/number": number,
        "heads/module": np.array([f"{k}.layers.{n}.self_attn" for k, n in zip(kind, layer, strict=True)]),
        "snapshots/update": update,
        "snapshots/epoch": update / updates_per_epoch,
        "snapshots/seconds": np.full(snapshots, 1.5),
        "snapshots/status": np.full(snapshots, "ok", object),
        "snapshots/loss": 2 - score,
        "snapshots/score": score,
        "snapshots/n_importance": np.full(snapshots, 1000),
        "snapshots/n_score": np.full(snapshots, 1000),
        "importance/mean": blocks.mean(1),
        "importance/stderr": blocks.std(1, ddof=1) / np.sqrt(n_blocks),
        "importance/signed": blocks.mean(1) / 2,
        "importance/blocks": blocks,
        "curve/score": score[:, None, None] * (1 - drop),
    }
    axes = {"snapshot": update, "order": np.array(ORDERS), "fraction": TENTHS, "window": np.array([10, 20])}
    return values | {a: axes.get(a, np.arange(size[a])) for a in AXES if a != "window" or "online/" in optional}


def write_run(path, blocks, heads=None, attrs=None, optional=(), **changed):
    """Write the file; ``changed`` replaces fields by path, with "__" for "/" (None leaves one out)."""
    blocks = np.asarray(blocks, dtype=float)
    values = values_of(blocks, heads or layout(blocks.shape[2] // 4 or 1, min(4, blocks.shape[2])), optional=optional)
    values |= {name.replace("__", "/"): value for name, value in changed.items()}
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes() | (attrs or {}))
        for axis in AXES:
            if values.get(axis) is not None:
                _create(file, axis, values[axis], AXES[axis][0])
                file[axis].make_scale(axis)
        for name, field in FIELDS.items():
            if values.get(name) is not None:
                data = _create(file, name, values[name], field.dtype)
                for dim, axis in enumerate(field.axes):
                    data.dims[dim].attach_scale(file[axis])
    return path


def attributes():
    """The root attributes."""
    signature = {"hash": "abc123", "settings": {"examples": 1000, "every": "epoch"}}
    return {
        "schema": SCHEMA,
        "headdynamics": "0.1.0",
        "framework": "fairseq",
        "model": "TransformerModel",
        "signature": json.dumps(signature),
        "created": "2024-05-01T12:00:00+00:00",
        "metric": "accuracy",
        "greater_is_better": True,
        "estimator": "example",
    }


def _create(file, name, values, dtype):
    values = np.asarray(values)
    if dtype == "str":
        return file.create_dataset(name, data=values.astype(object), dtype=TEXT, maxshape=(None,) * values.ndim)
    return file.create_dataset(name, data=values.astype(dtype), maxshape=(None,) * values.ndim)
