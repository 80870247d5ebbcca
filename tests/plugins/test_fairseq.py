"""The instrument on real fairseq-train processes."""

import json
import os
import sys
from importlib import metadata

import fairseq_forked as forked
import fairseq_tiny as tiny
import h5py
import pytest
from fairseq_tiny import BLEU, checkpoint


@pytest.mark.parametrize(("score", "decimals"), [("loss", 3), ("ppl", 2), ("nll_loss", 3), ("bleu", 2)])
def test_fraction_zero_is_the_trainers_own_score(data, tmp_path, score, decimals):
    """On the whole validation set, to the last digit that fairseq reports."""
    bleu = BLEU if score == "bleu" else []
    ours = ["--hd-score", score, "--hd-score-examples", "0", "--hd-fractions", "0,1", "--hd-orders", "importance"]
    log = forked.run(tiny.command(data, tmp_path, "--max-epoch", "3", *bleu, *ours), tmp_path / "log")
    valid = [json.loads(line.split("| valid | ")[1]) for line in log.splitlines() if "| valid | " in line]
    with h5py.File(tmp_path / "headdynamics.h5") as run:
        assert run["snapshots/n_score"][:].tolist() == [40] * 3
        ours = run["curve/score"][:, 0, 0]
        assert (run["curve/stderr"][-1, 0, 0] > 0) == (ours[-1] > 0)  # a BLEU of 0 is one in every resample
    half_a_digit = 0.5 * 10**-decimals + 1e-6  # fairseq adds up in float32
    assert ours == pytest.approx([float(v[f"valid_{score}"]) for v in valid], abs=half_a_digit)


def test_help_shows_our_options():
    text = tiny.run([sys.executable, "-m", "fairseq_cli.train", "--user-dir", tiny.USER_DIR, "--help"])
    for name in "every early examples score-examples subset score fractions estimator orders file tensorboard".split():
        assert f"--hd-{name}" in text, name
    for name in "save-weights budget strict off user-dir".split():
        assert f"--hd-{name}" in text, name


def test_python_m_and_own_user_dir(data, tmp_path):
    """`python -m fairseq_cli.train` runs a second copy of the module; the user's own user-dir comes along."""
    own = tmp_path / "mine"
    own.mkdir()
    (own / "__init__.py").write_text(
        "from fairseq.models import register_model_architecture\n"
        "from fairseq.models.transformer import base_architecture\n"
        "@register_model_architecture('transformer', 'mine_tiny')\n"
        "def mine_tiny(args): base_architecture(args)\n"
    )
    words = tiny.command(data, tmp_path / "run", "--max-update", "3", "--hd-user-dir", str(own))
    words[words.index("--arch") + 1] = "mine_tiny"
    tiny.run([sys.executable, "-m", "fairseq_cli.train", *words[1:]])
    with h5py.File(tmp_path / "run/headdynamics.h5") as run:
        assert run["snapshots/update"][:].tolist() == [3]


def test_hydra_train(data, tmp_path):
    """fairseq-hydra-train, configured by a file; our options are given as `+common.hd_*=`, where hydra allows that."""
    stack = "{layers: 1, embed_dim: 16, ffn_embed_dim: 16, attention_heads: 2}"
    (tmp_path / "tiny.yaml").write_text(
        f"""
common: {{user_dir: {tiny.USER_DIR}, cpu: true}}
task: {{_name: translation, data: {data}, source_lang: xx, target_lang: yy}}
model: {{_name: transformer, base_layers: 0, share_all_embeddings: true, encoder: {stack}, decoder: {stack}}}
criterion: {{_name: cross_entropy}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
dataset: {{max_tokens: 250, num_workers: 0}}
optimization: {{max_update: 3, lr: [0.001]}}
checkpoint: {{save_dir: {tmp_path / "run"}}}
"""
    )
    ours = ["common.hd_examples=10", "common.hd_score_examples=10", "common.hd_score=ppl"]
    if metadata.version("hydra-core").startswith("1.0."):
        program = [sys.executable, "-m", "headdynamics.plugins.fairseq_hydra"]
    else:
        program = [str(tiny.Path(sys.executable).parent / "fairseq-hydra-train")]
        ours = [f"+{option}" for option in ours]
    words = [*program, "--config-dir", str(tmp_path), "--config-name", "tiny", *ours]
    text = tiny.run(words, cwd=tmp_path, check=False)
    assert (tmp_path / "run/headdynamics.h5").exists(), text[-3000:]
    with h5py.File(tmp_path / "run/headdynamics.h5") as run:
        assert len(run["head"]) == 6
        assert run["snapshots/n_importance"][:].tolist() == [10]
        assert run.attrs["metric"] == "ppl" and run["snapshots/score"][0] > 1


def test_early_stop_is_measured(data, tmp_path):
    """--patience ends a run after validation, at an update that no schedule asked for."""
    words = "--max-epoch 9 --patience 1 --lr 1e-12 --hd-every never --save-interval 1".split()
    forked.run(tiny.command(data, tmp_path / "run", *words), tmp_path / "log")
    with h5py.File(tmp_path / "run/headdynamics.h5") as run:
        last = checkpoint(tmp_path / "run")["optimizer_history"][-1]["num_updates"]
        assert run["snapshots/update"][:].tolist() == [last]
        assert run["snapshots/checkpoint"].asstr()[0].endswith(".pt")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--hd-subset", "tset"], "no subset 'tset'"),
        (["--hd-every", "epcoh"], "'epcoh' is no schedule"),
        (["--hd-score", "blue", "--hd-every", "4"], "unknown score 'blue' (did you mean 'bleu'?)"),
        (["--hd-fractions", "0;1"], "no list of numbers"),
        (["--hd-estimator", "exmaple"], "unknown estimator 'exmaple'"),
        (["--hd-file", "/proc/nowhere/run.h5"], "choose another place"),
    ],
)
def test_failures_are_said_and_training_goes_on(data, tmp_path, options, sentence):
    log = forked.run(tiny.command(data, tmp_path / "run", "--max-update", "4", *options), tmp_path / "log")
    assert sentence in log
    assert "done training" in log
    assert checkpoint(tmp_path / "run")["optimizer_history"][-1]["num_updates"] == 4


def test_strict_ends_the_training(data, tmp_path):
    log = tiny.run(
        tiny.command(data, tmp_path / "run", "--max-update", "4", "--hd-strict", "--hd-subset", "tset"), check=False
    )
    assert "no subset 'tset'" in log and "done training" not in log


def test_off_and_second_writer(data, tmp_path):
    from headdynamics.record.hdf5 import lock

    save = tmp_path / "run"
    save.mkdir()
    held = lock(save / "headdynamics.h5")
    try:
        log = forked.run(tiny.command(data, save, "--max-update", "2"), tmp_path / "log")
    finally:
        held.close()
    assert f"being written by process {os.getpid()}" in log and "done training" in log
    assert not (save / "headdynamics.h5").exists()


def test_no_attention_is_said(data, tmp_path):
    """An LSTM has nothing to watch."""
    words = """--arch lstm --encoder-embed-dim 8 --decoder-embed-dim 8 --encoder-hidden-size 8 --decoder-hidden-size 8
     --decoder-out-embed-dim 8 --optimizer adam --criterion cross_entropy --max-tokens 250 --cpu --num-workers 0
     --max-update 2 --decoder-attention 0""".split()
    places = ["--save-dir", str(tmp_path / "run"), "--user-dir", tiny.USER_DIR]
    log = forked.run(["fairseq-train", data, *words, *places], tmp_path / "log")
    assert "no attention heads found in LSTMModel" in log and "done training" in log
    assert not (tmp_path / "run/headdynamics.h5").exists()


def test_another_runs_file_is_left_alone_and_tensorboard_may_be_missing(data, tmp_path, monkeypatch):
    """Other settings are another run: its file stays byte for byte. Without tensorboard the run file goes on."""
    save = tmp_path / "run"
    forked.run(tiny.command(data, save, "--max-update", "2"), tmp_path / "log")
    before = (save / "headdynamics.h5").read_bytes()
    (save / "checkpoint_last.pt").unlink()
    missing = tmp_path / "missing/tensorboard"
    missing.mkdir(parents=True)
    (missing / "__init__.py").write_text("raise ImportError('no tensorboard here')\n")
    monkeypatch.setitem(tiny.ENVIRONMENT, "PYTHONPATH", str(missing.parent))
    log = tiny.run(tiny.command(data, save, "--max-update", "3", "--hd-examples", "12"))
    assert "belongs to another run" in log and "headdynamics-2.h5" in log
    assert "pip install headdynamics[tensorboard]" in log and "done training" in log
    assert (save / "headdynamics.h5").read_bytes() == before
    with h5py.File(save / "headdynamics-2.h5") as run:
        assert run["snapshots/update"][:].tolist() == [3]
        assert run["snapshots/n_importance"][:].tolist() == [12]
