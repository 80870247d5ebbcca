"""Other tasks than translation, each by a real training; two validation subsets, checkpoints within epochs."""

import json
from pathlib import Path

import fairseq_forked as forked
import fairseq_tasks as tasks
import h5py
import numpy as np
import pytest
import torch
from fairseq_tiny import needs_safe_reading
from headdynamics.plugins.fairseq_backfill import build
from headdynamics.plugins.fairseq_checkpoints import read
from run_content import content

from headdynamics.__main__ import main

OURS = """--valid-subset valid,valid1 --hd-every 8 --hd-examples 99 --hd-score-examples 0 --hd-fractions 0,1
 --hd-orders importance --hd-online --hd-strict""".split()
KINDS = {"language_modeling": "decoder", "masked_lm": "encoder", "sentence_prediction": "encoder"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sentences and their classes."""
    return tasks.make_data(tmp_path_factory.mktemp("fairseq-tasks"))


@needs_safe_reading
@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_task(data, tmp_path, task):
    """The score is the trainer's own, I(h) that of weights turned up and down, and backfill finds the same."""
    save = tmp_path / "run"
    subset = ["--hd-subset", "valid1" if task == "language_modeling" else "valid"]
    log = forked.run(tasks.command(task, data, save, *OURS, *subset), tmp_path / "log")
    lines = [line.split(f"| {subset[1]} | ") for line in log.splitlines()]
    valid = [json.loads(line[1]) for line in lines if len(line) == 2]
    losses = {int(one[f"{subset[1]}_num_updates"]): float(one[f"{subset[1]}_loss"]) for one in valid}
    with h5py.File(save / "headdynamics.h5") as file:
        updates = file["snapshot"][:].tolist()
        assert updates == [8, 16, 20] and set(file["heads/kind"].asstr()[:]) == {KINDS[task]}
        assert file["curve/score"][:, 0, 0] == pytest.approx([losses[u] for u in updates], abs=0.5e-3 + 1e-6)
        assert (file["curve/stderr"][:, 0, 0] > 0).all() and file["online/mean"].attrs["scale"] == "own loss"
        found = {name: file[f"importance/{name}"][-1] for name in ("mean", "signed")}
    s = sensitivities(save / "checkpoint_last.pt", data, subset[1])
    for name, want in {"mean": abs(s).mean(0), "signed": s.mean(0)}.items():
        np.testing.assert_allclose(found[name], want, rtol=0, atol=2e-3 * abs(s).max(), err_msg=name)
    assert main(["backfill", str(save / "checkpoint_last.pt"), "--data", str(data), "-o", f"{save}/back.h5"]) == 0
    live, back = content(save / "headdynamics.h5"), content(save / "back.h5")
    assert live["importance/mean"][1].endswith(back["importance/mean"][1])
    assert live["curve/score"][1].endswith(back["curve/score"][1])


def sensitivities(path: Path, data: Path, subset: str) -> np.ndarray:
    """dL_b/dxi of each example alone, [n, H]: by turning W_O's columns up and down; losses are float32 in any model."""
    trainer, _ = build(path, str(data), {}, "", True)
    task, model, criterion = trainer.task, trainer.get_model(), trainer.get_criterion()
    model.load_state_dict(read(path)["model"])
    model.double().eval()
    task.load_dataset(subset)
    dataset = task.dataset(subset)
    getattr(dataset, "set_epoch", lambda epoch: None)(1)  # as the trainer does for validation
    samples = [dataset.collater([dataset[i]]) for i in range(len(dataset))]
    weights = [m.weight for name, m in model.named_modules() if name.endswith("self_attn.out_proj")]

    def losses() -> np.ndarray:
        found = [criterion(model, sample)[:2] for sample in samples]
        return np.array([float(loss) / float(size) for loss, size in found])

    columns = []
    with torch.no_grad():
        for weight in weights:
            for head in weight.chunk(4, 1):
                before, sides = head.clone(), []
                for turned in (1.02, 0.98):  # nearer, float32 is too coarse
                    head.copy_(before * turned)
                    sides.append(losses())
                head.copy_(before)
                columns.append((sides[0] - sides[1]) / 0.04)
    return np.stack(columns, 1)
