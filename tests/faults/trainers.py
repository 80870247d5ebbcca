"""The two trainers that are killed: how each is started, what it says was recorded, which checkpoints are whole."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import fairseq_tiny
import torch


def whole(path: Path) -> bool:
    """Whether torch's safe loader reads this checkpoint."""
    try:
        return bool(torch.load(path, map_location="cpu", weights_only=True))
    except Exception:
        return False


class Fairseq:
    """fairseq-train: one epoch, every update measured, every fourth saved.

    It copies each checkpoint to checkpoint_last.pt, in place. A second epoch after a resume in the first, or a resume
    in the second, does not go on bit by bit, without us either: there is none. Its build for Python 3.11 drops a last
    batch that is no multiple of 8 sentences, the release 0.12.2 does not: every number is a multiple of 1.
    """

    name, rows, resumes_from = "fairseq", 13, "checkpoint_last.pt"
    recorded = re.compile(r"\| headdynamics \| epoch [\d.]+ \| update (\d+)")

    def __init__(self, place: Path) -> None:
        fairseq_tiny.allow_fairseq_checkpoints()
        self.data = place / "data" / "bin"
        if not self.data.exists():
            self.data.parent.mkdir(parents=True, exist_ok=True)
            fairseq_tiny.make_data(self.data.parent)

    def words(self, folder: Path) -> list[str]:
        """The command line."""
        more = "--max-epoch 1 --max-tokens 160 --required-batch-size-multiple 1"
        saves = "--save-interval-updates 4 --no-epoch-checkpoints"
        ours = "--hd-every 1 --hd-strict --hd-tensorboard none"
        return fairseq_tiny.command(self.data, folder, *more.split(), *saves.split(), *ours.split())[1:]

    def file(self, folder: Path) -> Path:
        """The run file."""
        return folder / "headdynamics.h5"

    def repair(self, folder: Path) -> int:
        """Put the newest whole checkpoint in the place of a torn checkpoint_last.pt; how many were torn."""
        last = folder / "checkpoint_last.pt"
        torn = [path for path in folder.glob("checkpoint*.pt") if not whole(path)]
        for path in torn:
            path.unlink()
        left = sorted(folder.glob("checkpoint_*_*.pt"), key=lambda path: int(path.stem.rsplit("_")[-1]))
        if last in torn and left:
            shutil.copyfile(left[-1], last)
        return len(torn)


class HuggingFace:
    """A Trainer: every update measured, every fourth saved, file by file into its checkpoint's folder.

    Resumed at the end of an epoch, here of 5 updates, it does not go on bit by bit.
    """

    name, rows, resumes_from = "hf", 20, "checkpoint-*"
    recorded = re.compile(r"^recorded (\d+)$", re.MULTILINE)

    def __init__(self, place: Path) -> None:
        pass

    def words(self, folder: Path) -> list[str]:
        """The command line."""
        return [str(folder)]

    def file(self, folder: Path) -> Path:
        """The run file."""
        return folder / "run.h5"

    def repair(self, folder: Path) -> int:
        """Delete torn checkpoints; how many."""
        torn = [path for path in folder.glob("checkpoint-*") if not self._whole(path)]
        for path in torn:
            shutil.rmtree(path)
        return len(torn)

    def _whole(self, folder: Path) -> bool:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            json.loads((folder / "trainer_state.json").read_text())
            load_file(folder / "model.safetensors")
            torch.load(folder / "training_args.bin", weights_only=False)  # made by this test itself
        except (OSError, ValueError, EOFError, RuntimeError, SafetensorError):
            return False
        return all(whole(folder / name) for name in ("optimizer.pt", "scheduler.pt"))


TRAINERS = {trainer.name: trainer for trainer in (Fairseq, HuggingFace)}
