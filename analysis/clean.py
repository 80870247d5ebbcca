"""What settling can use of a run: finite numbers from snapshots measured in full; the rest is named, not hidden."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from headdynamics.analysis.run import Run


@dataclass(frozen=True)
class LeftOut:
    """What was left out: ``failed`` snapshots by status, and a sentence for each other reason."""

    failed: int
    sentences: tuple[str, ...]


def clean(run: Run) -> tuple[Run, np.ndarray, np.ndarray, LeftOut]:
    """Leave out what has no numbers.

    Blocks and heads that are NaN at every snapshot go first (fewer examples than blocks; a head
    that was never reached), then every snapshot that still has a NaN or an infinity.

    Returns:
        the run with S usable snapshots, their blocks float64 ``[S, B, H]`` (heads without numbers
        still in place), which heads have numbers ``[H]``, and what was left out.
    """
    failed = len(run.failures)
    run = run.usable()
    blocks = run.importance["blocks"].values.astype(float)
    sentences = []
    if run.online is not None and len(run.online["window"]) and not len(run.snapshots["update"]):
        sentences.append("the run has no snapshots, only online importance of training's own steps: see Run.online")
    finite = np.isfinite(blocks)
    # Where nothing at all is finite, no block and no head is to blame: every snapshot goes.
    block_ok = finite.any(axis=(0, 2)) | ~finite.any()
    head_ok = finite.any(axis=(0, 1)) | ~finite.any()
    if not block_ok.all():
        sentences.append(f"{np.sum(~block_ok)} of {len(block_ok)} blocks of examples are empty at every snapshot")
    if not head_ok.all():
        sentences.append(f"{np.sum(~head_ok)} of {len(head_ok)} heads have no importance at any snapshot: left out")
    mean_ok = np.isfinite(run.importance["mean"].values)
    whole = (finite | ~head_ok)[:, block_ok].all(axis=(1, 2)) & (mean_ok | ~head_ok).all(axis=1)
    if not whole.all():
        updates = ", ".join(str(update) for update in run.snapshots["update"].values[~whole])
        sentences.append(f"importance holds NaN or infinity at update {updates}: left out")
    return run.select(whole), blocks[whole][:, block_ok], head_ok, LeftOut(failed, tuple(sentences))
