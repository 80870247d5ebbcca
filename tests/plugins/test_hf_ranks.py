"""A Trainer of two processes: it does not notice, and the run file is that of one process, to the last bit."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import hf_ranks
import hf_tiny as tiny
import numpy as np
import pytest
import torch
from hf_tiny import default_data_collator
from run_content import content

import headdynamics as hd

TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--num_cpu_threads_per_process", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
ACCELERATE += ["--main_process_port"]
SHARDED = {"fsdp": "FSDPBertForSequenceClassification", "fsdp1": "FullyShardedDataParallel"}
ENGINES = SHARDED | {"compiled": "OptimizedModule"}
BY_TORCHRUN = ["ddp", "bf16", "compiled", "language", "callback", "generated"]
BY_ACCELERATE = ["online", "failing", "fsdp", "fsdp1"]
ZERO = ["zero1", "zero2", "zero3"]


def launch(folder, launcher, cases):
    """What each of two processes says of these trainings."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(hf_ranks.__file__).parent)}
    program = [sys.executable, "-m", *launcher, port, hf_ranks.__file__, str(folder), *cases]
    done = subprocess.run(program, env=environment, timeout=280, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(2)], done.stderr


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    return folder, *launch(folder, TORCHRUN, BY_TORCHRUN)


@pytest.fixture(scope="module")
def accelerated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accelerate")
    return folder, *launch(folder, ACCELERATE, BY_ACCELERATE)


def check(folder, ranks, case):
    """The same bits on both ranks; the engine was the one that is meant; the run file is that of one process."""
    expected = {"same": True, "engine": ENGINES.get(case, "DistributedDataParallel")}
    assert [one[case] for one in ranks] == [expected] * 2
    live, watched = folder / f"{case}.h5", folder / case / "True"
    trained = hf_ranks.CASES[case][0](folder / "alone", None) if case not in SHARDED else fsdp_alone(folder)
    trained.args.greater_is_better = None
    updates = tiny.rows(live)["update"]
    saved = folder / f"{case}-weights" if case in SHARDED else watched
    torch.nn.init.normal_(next(trained.model.parameters()))
    back = hd.backfill(trained, folder / f"{case}-back.h5", saved, only=updates, **hf_ranks.options(case))
    without = ("epoch",) if case in SHARDED else ()
    assert content(live, *without) == content(back, *without)
    assert len(updates) > 1 and set(tiny.rows(live)["status"]) == {"ok"}


def fsdp_alone(folder):
    return hf_ranks.uneven(tiny.trainer(folder / "alone", None, metrics=None, **hf_ranks.SAVED))


@pytest.mark.parametrize("case", BY_TORCHRUN)
def test_the_same_bits_and_the_run_file_of_one_process(torchrun, case):
    """Accumulation, checkpointed layers, autocast, dynamo, predictions of different widths, generation."""
    check(*torchrun[:2], case)


@pytest.mark.parametrize("case", list(SHARDED))
def test_sharded_models_are_measured_whole(accelerated, case):
    """FSDP of both versions."""
    check(*accelerated[:2], case)


def test_deepspeed(tmp_path):
    """ZeRO of each stage."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install deepspeed")
    ENGINES.update(dict.fromkeys(ZERO, "DeepSpeedEngine"))
    ranks, _ = launch(tmp_path, TORCHRUN, ZERO)
    for case in ZERO:
        made = hf_ranks.uneven(tiny.trainer(tmp_path / "alone", None, **hf_ranks.SAVED))
        assert [one[case] for one in ranks] == [{"same": True, "engine": "DeepSpeedEngine"}] * 2
        back = hd.backfill(made, tmp_path / f"{case}-back.h5", tmp_path / case / "True", **hf_ranks.options(case))
        assert content(tmp_path / f"{case}.h5") == content(back)


def test_a_window_counts_the_examples_of_all_ranks(accelerated):
    folder, ranks, _ = accelerated
    assert all(one["online"]["same"] for one in ranks)
    model = tiny.bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    rows = [{k: v for k, v in row.items() if k != "unused"} for row in tiny.sentences(36, 1)[:32]]
    expected = hd.importance(model.eval(), [default_data_collator(rows)])
    with h5py.File(folder / "online.h5") as file:
        assert file["window"][:].tolist() == [2] and file["online/n"][:].tolist() == [32]
        np.testing.assert_allclose(file["online/mean"][0], expected.mean, rtol=1e-5)
        np.testing.assert_allclose(file["online/signed"][0], expected.signed, rtol=1e-4, atol=1e-8)


def test_what_fails_on_one_rank_leaves_none_waiting(accelerated):
    """All six updates of each training are done; both ranks know what was off, and one of them says why."""
    folder, ranks, said = accelerated
    broken = "RankError: rank 1: ValueError: broken here"
    off = {"a snapshot": False, "attaching": True, "data": True, "online": False}
    assert [one["failing"] for one in ranks] == [{case: (6, is_off) for case, is_off in off.items()}] * 2
    statuses = tiny.rows(folder / "failing/a snapshot.h5")["status"]
    assert broken in statuses and "ok" in statuses and set(statuses) == {broken, "ok"}
    assert said.count("headdynamics is off: rank 1: ZeroDivisionError: division by zero. Training goes on") == 1
    assert said.count("headdynamics is off: rank 1 and rank 0 have different examples or settings") == 1
    assert "online importance is off: rank 1: its online importance failed" in said
    with h5py.File(folder / "failing/online.h5") as file:
        assert file["snapshot"][:].tolist() == [2, 4, 6] and not len(file["window"])
