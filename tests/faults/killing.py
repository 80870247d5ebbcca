"""Killing: chain after chain of kills, until there were as many as asked for; a runner that is stopped goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import counts
from kills import Kills
from trainers import TRAINERS


def kill(kind: str, place: Path, times: int, found: dict) -> Iterator[dict]:
    """See `kinds.Fault`; the kind is `kills-TRAINER`."""
    if found["tried"] >= times:
        return
    kills = Kills(TRAINERS[kind.removeprefix("kills-")](place), place)
    try:
        while found["tried"] < times:
            seed, left = found.get("trainings", 0), times - found["tried"]
            found = counts.added(found, kills.chain(seed, left)) | {"trainings": seed + 1}
            yield found
    finally:
        kills.nursery.close()
