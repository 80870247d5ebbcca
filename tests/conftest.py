"""Test helpers are imported by name from the folder of their tests."""

import sys
from pathlib import Path

for folder in ("core", "plugins", "analysis"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
