"""Damage: what a disk, a broken copy or a stray write does to a file, at places by chance."""

from __future__ import annotations

import random

BLOCK = 1 << 13  # bytes, at most


def flip(data: bytearray, at: int, rng: random.Random) -> bytearray:
    """One bit."""
    data[at] ^= 1 << rng.randrange(8)
    return data


def noise(data: bytearray, at: int, rng: random.Random) -> bytearray:
    """A few bytes become others."""
    size = min(rng.randint(1, 16), len(data) - at)
    data[at : at + size] = rng.randbytes(size)
    return data


def zeros(data: bytearray, at: int, rng: random.Random) -> bytearray:
    """A block is empty."""
    size = min(rng.randint(16, BLOCK), len(data) - at)
    data[at : at + size] = bytes(size)
    return data


def misplaced(data: bytearray, at: int, rng: random.Random) -> bytearray:
    """A block of the file stands where another should."""
    size = min(rng.randint(16, BLOCK), len(data) - at)
    start = rng.randrange(len(data) - size)
    data[at : at + size] = data[start : start + size]
    return data


def cut(data: bytearray, at: int, rng: random.Random) -> bytearray:
    """The rest is missing."""
    return data[:at]


def longer(data: bytearray, at: int, rng: random.Random) -> bytearray:
    """Something stands behind the end."""
    return data + rng.randbytes(rng.randint(1, BLOCK))


KINDS = (flip, noise, zeros, misplaced, cut, longer)


def damaged(data: bytes, seed: int) -> tuple[str, bytes]:
    """What was done, and the bytes."""
    rng = random.Random(seed)
    kind = rng.choice(KINDS)
    return kind.__name__, bytes(kind(bytearray(data), rng.randrange(len(data)), rng))
