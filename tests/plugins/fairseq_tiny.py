"""A tiny translation task (reverse a sentence of letters) and real fairseq-train processes on it."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from headdynamics.plugins.fairseq_trainer import allow_fairseq_checkpoints

REPO = Path(__file__).resolve().parents[2]
USER_DIR = str(REPO / "headdynamics")
PLAIN = str(Path(__file__).parent / "plain_user_dir")  # without the instrument
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # tiny matrices: threads would only wait for each other
MODEL = """--arch transformer --encoder-layers 2 --decoder-layers 2 --encoder-embed-dim 16 --decoder-embed-dim 16
 --encoder-ffn-embed-dim 32 --decoder-ffn-embed-dim 32 --encoder-attention-heads 4 --decoder-attention-heads 4
 --share-all-embeddings --dropout 0.2 --attention-dropout 0.1 --optimizer adam --lr 0.01 --criterion
 label_smoothed_cross_entropy --label-smoothing 0.1 --max-tokens 250 --cpu --seed 3 --num-workers 0
 --log-format json --log-interval 1 --no-progress-bar""".split()
FEW = ["--hd-examples", "30", "--hd-score-examples", "20", "--hd-fractions", "0,0.5,1"]

needs_safe_reading = pytest.mark.skipif(
    not hasattr(torch.serialization, "add_safe_globals"), reason="torch reads fairseq's checkpoints safely from 2.4 on"
)

BLEU = [
    "--eval-bleu",
    "--eval-bleu-args",
    '{"beam": 2, "max_len_a": 1.0, "max_len_b": 4}',
    "--eval-tokenized-bleu",
]


def make_data(folder: Path) -> Path:
    """Binarised train and valid subsets under `folder`/bin."""
    rng = random.Random(0)
    for split, n in (("train", 300), ("valid", 40)):
        lines = [[rng.choice("abcdefgh") for _ in range(rng.randint(2, 9))] for _ in range(n)]
        (folder / f"{split}.xx").write_text("".join(" ".join(line) + "\n" for line in lines))
        (folder / f"{split}.yy").write_text("".join(" ".join(line[::-1]) + "\n" for line in lines))
    words = "-s xx -t yy --joined-dictionary --workers 1".split()
    places = ["--trainpref", folder / "train", "--validpref", folder / "valid", "--destdir", folder / "bin"]
    run([sys.executable, "-m", "fairseq_cli.preprocess", *words, *map(str, places)])
    return folder / "bin"


def command(data: Path, save: Path, *more: str, watched: bool = True) -> list[str]:
    """The fairseq-train command line; `watched` adds the instrument."""
    ours = ["--user-dir", USER_DIR, *FEW] if watched else ["--user-dir", PLAIN]
    fairseq_train = str(Path(sys.executable).parent / "fairseq-train")
    return [fairseq_train, str(data), *MODEL, "--save-dir", str(save), *ours, *more]


def run(words: list[str], cwd: Path | None = None, check: bool = True) -> str:
    """Run to the end and give what was printed; fails with it."""
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, timeout=240, env=ENVIRONMENT)
    text = done.stdout + done.stderr
    assert not check or done.returncode == 0 or _loader_struck(done.returncode, text), text[-6000:]
    return text


def _loader_struck(code: int, text: str) -> bool:
    """Whether a training that is done was aborted at the interpreter's end; fairseq alone does so, too.

    Its thread that loads batches ahead is a daemon: where training ends amid an epoch, it may be within a C++ call.
    """
    last = text.strip().splitlines()[-1:]
    return code == -6 and "done training" in text and last == ["terminate called without an active exception"]


def checkpoint(save: Path, name: str = "checkpoint_last.pt") -> dict:
    """A checkpoint of a run, read by torch's safe loader."""
    return torch.load(save / name, map_location="cpu", weights_only=allow_fairseq_checkpoints())
