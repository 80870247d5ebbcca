import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for fake_run


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"
