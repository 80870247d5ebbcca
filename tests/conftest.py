"""Test helpers are imported by name from the folder of their tests."""

import os
import sys
from pathlib import Path

import pytest

for folder in ("core", "plugins", "analysis", "web"):
    sys.path.insert(0, str(Path(__file__).parent / folder))


@pytest.fixture(autouse=True)
def accelerate_environment():
    """transformers 4.57 writes a Trainer's precision and compiler into the environment, for every later Trainer."""
    before = _of_accelerate()
    yield
    for name in _of_accelerate():
        del os.environ[name]
    os.environ.update(before)


def _of_accelerate():
    return {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
