"""Which torch compiles, and which compiles transformers' models."""

import sys

import pytest
import torch

needs_compiler = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="transformers' models do not compile with torch before 2.7"
)
needs_dynamo = pytest.mark.skipif(
    sys.version_info >= (3, 12) and not hasattr(torch.nn, "RMSNorm"),  # which came with 2.4, too
    reason="torch compiles nothing on Python 3.12 before 2.4",
)
