"""A real fairseq training, pruned, saved as a fairseq checkpoint, and built again by one line."""

import fairseq_tiny as tiny
import pytest
import torch
from headdynamics.plugins.fairseq_trainer import allow_fairseq_checkpoints
from torch.nn.functional import cross_entropy

import headdynamics as hd

pytestmark = tiny.needs_safe_reading


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    save = tmp_path_factory.mktemp("pruned")
    tiny.run(tiny.command(data, save, "--max-epoch", "2", watched=False))
    return data, save / "checkpoint_last.pt"


def loaded(data, path):
    from fairseq import checkpoint_utils

    allow_fairseq_checkpoints()
    models, config, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], arg_overrides={"data": str(data)})
    task.load_dataset("valid")
    rows = task.dataset("valid")
    return models[0].eval(), config, task, rows.collater([rows[i] for i in range(12)])


def losses(model, batch):
    logits = model(**batch["net_input"])[0].transpose(1, 2)
    return cross_entropy(logits, batch["target"], ignore_index=1, reduction="none").sum(1)


def translations(task, model, batch):
    generator = task.build_generator([model], task_generation_arguments())
    hypotheses = task.inference_step(generator, [model], batch)
    return [(h["tokens"].tolist(), float(h["score"])) for best in hypotheses for h in best]


def task_generation_arguments():
    from fairseq.dataclass.configs import GenerationConfig

    return GenerationConfig(beam=3, max_len_b=12)


def test_pruned_saved_and_built_again(trained, tmp_path):
    data, path = trained
    model, config, task, batch = loaded(data, path)
    order = hd.prune_order(hd.importance(model, [batch], losses))
    expected_keep = torch.ones(24, dtype=torch.bool)
    expected_keep[order[:12].copy()] = False
    with hd.masked(hd.find_heads(model), expected_keep):
        expected = translations(task, model, batch)
    keep = hd.prune(model, order, 0.5)
    assert torch.equal(keep, expected_keep)
    written = translations(task, model, batch)
    assert [tokens for tokens, _ in written] == [tokens for tokens, _ in expected]
    assert [score for _, score in written] == pytest.approx([score for _, score in expected], abs=1e-4)

    state = tiny.checkpoint(path.parent)
    torch.save({**state, "model": model.state_dict()}, tmp_path / "pruned.pt")
    again = hd.load_pruned(task.build_model(config.model), tmp_path / "pruned.pt").eval()
    assert translations(task, again, batch) == written

    optimizer = torch.optim.SGD(again.parameters(), lr=0.01)
    before = losses(again, batch).mean()
    before.backward()
    optimizer.step()
    assert losses(again, batch).mean() < before


def test_fairseq_alone_refuses_the_pruned_weights(trained, tmp_path):
    """Never a wrong model: fairseq builds equal layers only."""
    data, path = trained
    model, config, task, _ = loaded(data, path)
    hd.remove_heads(model, [0, 1] * 12)
    with pytest.raises(RuntimeError, match="size mismatch"):
        task.build_model(config.model).load_state_dict(model.state_dict(), strict=True)


def test_a_checkpoint_with_other_objects_is_not_loaded(trained, tmp_path):
    data, path = trained
    model, config, task, _ = loaded(data, path)
    torch.save({"model": model.state_dict(), "task": tiny.Path(".")}, tmp_path / "odd.pt")
    with pytest.raises(hd.SurgeryError, match="weights_only"):
        hd.load_pruned(task.build_model(config.model), tmp_path / "odd.pt")
