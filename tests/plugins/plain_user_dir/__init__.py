"""fairseq alone: lets torch's safe loader read its checkpoints, without which this build cannot resume at all."""

import argparse

import numpy as np
import torch

if hasattr(torch.serialization, "add_safe_globals"):  # torch 2.4; older ones load everything by default
    torch.serialization.add_safe_globals(
        [argparse.Namespace, np.dtype, np.ndarray, np._core.multiarray._reconstruct, np._core.multiarray.scalar]
        + [type(np.dtype(name)) for name in ("float64", "int64")]
    )
