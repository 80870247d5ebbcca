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
from compiler import needs_compiler
from hf_tiny import default_data_collator
from run_content import content

import headdynamics as hd

TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
#: hands over to torchrun; what the flags leave out it would read from a file of the user's
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--num_cpu_threads_per_process", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
ACCELERATE += ["--main_process_port"]
SHARDED = {"fsdp": "FSDPBertForSequenceClassification", "fsdp1": "FullyShardedDataParallel"}
ENGINES = SHARDED | {"compiled": "OptimizedModule"}
WHOLE = ["ddp", "compiled", "language", "callback", "generated"]
LACKS = {}
if needs_compiler.args[0]:
    LACKS |= {"compiled": needs_compiler.kwargs["reason"], "fsdp": "torch has no FSDP2 for a CPU before 2.7"}
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
def trained(tmp_path_factory):
    """Launched once, for that takes longer than the trainings."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, *launch(folder, ACCELERATE, [c for c in [*WHOLE, "online", "failing", *SHARDED] if c not in LACKS])


@pytest.mark.parametrize("case", [*WHOLE, *SHARDED])
def test_the_same_bits_and_the_run_file_of_one_process(trained, case):
    """Accumulation, checkpointed layers, dynamo and autocast, predictions of different widths, generation, FSDP."""
    if case in LACKS:
        pytest.skip(LACKS[case])
    folder, ranks, _ = trained
    expected = {"same": True, "engine": ENGINES.get(case, "DistributedDataParallel")}
    assert [one[case] for one in ranks] == [expected] * 2
    live, saved = folder / f"{case}.h5", folder / case / "True"
    make, without = hf_ranks.CASES[case][0], ()
    if case in SHARDED:
        make, saved, without = hf_ranks.plain, folder / f"{case}-weights", ("epoch",)
    updates, back = tiny.rows(live)["update"], folder / f"{case}-back.h5"
    with hf_ranks.own_environment():
        alone = make(folder / "alone", None)
        torch.nn.init.normal_(next(alone.model.parameters()))
        hd.backfill(alone, back, saved, only=updates, **hf_ranks.options(case))
    assert content(live, *without) == content(back, *without)
    assert len(updates) > 1 and set(tiny.rows(live)["status"]) == {"ok"}


def test_deepspeed(tmp_path):
    """ZeRO of each stage."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install deepspeed")
    ranks, _ = launch(tmp_path, TORCHRUN, ZERO)
    for case in ZERO:
        assert [one[case] for one in ranks] == [{"same": True, "engine": "DeepSpeedEngine"}] * 2
        alone, back = hf_ranks.uneven(tiny.trainer(tmp_path / "alone", None, **hf_ranks.SAVED)), f"{case}-back.h5"
        kept = tmp_path / f"{case}-weights"
        back = hd.backfill(alone, tmp_path / back, kept, **hf_ranks.options(case))
        assert content(tmp_path / f"{case}.h5", "epoch") == content(back, "epoch")


def test_a_window_counts_the_examples_of_all_ranks(trained):
    folder, ranks, _ = trained
    assert all(one["online"]["same"] for one in ranks)
    model = tiny.bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    rows = [{k: v for k, v in row.items() if k != "unused"} for row in tiny.sentences(36, 1)[:32]]
    expected = hd.importance(model.eval(), [default_data_collator(rows)])
    with h5py.File(folder / "online.h5") as file:
        assert file["window"][:].tolist() == [2] and file["online/n"][:].tolist() == [32]
        np.testing.assert_allclose(file["online/mean"][0], expected.mean, rtol=1e-5)
        np.testing.assert_allclose(file["online/signed"][0], expected.signed, rtol=1e-4, atol=1e-8)


def test_what_fails_on_one_rank_leaves_none_waiting(trained):
    """All six updates of each training are done; both ranks know what was off, and one of them says why."""
    folder, ranks, said = trained
    broken = "RankError: rank 1: ValueError: broken here"
    off = {"a snapshot": False, "attaching": True, "data": True, "online": False}
    assert [one["failing"] for one in ranks] == [{case: (6, is_off) for case, is_off in off.items()}] * 2
    statuses = tiny.rows(folder / "failing/a snapshot.h5")["status"]
    assert broken in statuses and "ok" in statuses and set(statuses) == {broken, "ok"}
    assert said.count("headdynamics is off: rank 1: ZeroDivisionError: division by zero. Training goes on") == 1
    assert said.count("headdynamics is off: rank 1 and rank 0 have different examples or settings") == 1
    assert "online importance is off: rank 1: ValueError: its online importance failed" in said
    with h5py.File(folder / "failing/online.h5") as file:
        assert file["snapshot"][:].tolist() == [2, 4, 6] and not len(file["window"])
