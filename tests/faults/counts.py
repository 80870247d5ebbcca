"""What was tried and lost, kept in JSON beside this file, so that a runner that is stopped goes on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

PLACE = Path(__file__).with_name("measured")


def read(kind: str, place: Path = PLACE) -> dict:
    """What is known of a kind of fault."""
    path = place / f"{kind}.json"
    return {"tried": 0, "lost": 0} | (json.loads(path.read_text()) if path.exists() else {})


def write(kind: str, found: dict, place: Path = PLACE) -> None:
    """Keep it."""
    place.mkdir(exist_ok=True)
    (place / f"{kind}.json").write_text(json.dumps(found, indent=1) + "\n")


def added(found: dict, more: Counter) -> dict:
    """Counts with further counts."""
    return {"tried": 0, "lost": 0} | dict(Counter(found) + more)
