"""What a model's config.json may not ask for: code of somebody else, which a library would fetch and run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of `folder` as plain values; no library looks at it.

    Raises:
        ValueError: there is none, it is no JSON object, or it asks for code from elsewhere.

    """
    path = folder / "config.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(told, dict):
        raise ValueError(f"{path} does not hold a JSON object: not the config of a model")
    for key, value in settings(told):
        # attn_implementation AUTHOR/KERNEL is a kernel on a hub; configuration_files leads past this very check
        if "implementation" in key and "/" in json.dumps(value) or key == "configuration_files":
            raise ValueError(f"{path} asks for code from elsewhere ({key}: {value}): refused. Take the entry out")
    return told


def settings(config: Any) -> Iterator[tuple[str, Any]]:
    """Every key of nested JSON with its value."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield str(key), value
            yield from settings(value)
    elif isinstance(config, list):
        for value in config:
            yield from settings(value)
