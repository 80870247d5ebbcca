"""headdynamics: which attention heads of a transformer matter, and when in training that settles.

The public names load on first use (PEP 562), so that analysis needs no torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "find_heads": "heads",
    "Heads": "heads",
    "HeadsError": "heads",
    "masked": "gates",
    "importance": "estimators",
    "Importance": "estimators",
    "prune_order": "orders",
    "make_order": "orders",
    "compare_orders": "comparing",
    "ORDERS": "orders",
    "Situation": "situation",
    "pruning_curve": "curve",
    "TENTHS": "curve",
    "find_knee": "knee",
    "Knee": "knee",
    "ablate": "ablation",
    "Ablation": "ablation",
    "paired_test": "significance",
    "PairedTest": "significance",
    "holm": "significance",
    "benjamini_hochberg": "significance",
    "prune": "surgery",
    "remove_heads": "surgery",
    "load_pruned": "surgery",
    "SurgeryError": "surgery",
    "Scores": "scores",
    "accuracy": "scores",
    "perplexity": "scores",
    "mean_loss": "scores",
    "Snapshot": "snapshot",
    "Online": "online",
    "Observer": "observer",
    "Ranks": "ranks",
    "HeadDynamicsCallback": "plugins.hf_trainer",
    "attach": "plugins.hf_trainer",
    "backfill": "plugins.hf_checkpoints",
    "watched": "plugins.hf_checkpoints",
    "Checkpoint": "checkpoints",
    "measure_checkpoints": "checkpoints",
    "measure_chosen": "backfilling",
    "Subject": "backfilling",
    "Farm": "farm",
    "with_bar": "progress",
    "saved_weights": "checkpoints",
    "load_run": "analysis.load",
    "RunFileError": "schema",
}
__all__ = list(_HOME)

# A bare checkout (`--user-dir path/to/headdynamics`, not installed): plugins/ and analysis/ stand beside us.
if (Path(__file__).parent.parent / "plugins" / "fairseq_trainer.py").exists():
    __path__.append(str(Path(__file__).parent.parent))


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """For completion, and for Python's own "Did you mean"."""
    return sorted([*globals(), *__all__])
