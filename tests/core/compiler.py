"""Which torch compiles transformers' models."""

import pytest
import torch

needs_compiler = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="transformers' models do not compile with torch before 2.7"
)
