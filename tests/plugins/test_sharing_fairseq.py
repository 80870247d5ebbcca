"""Real fairseq translation: loss and beam-search BLEU without each head, shared and one pass each, to the bit."""

import fairseq_tiny as fairseq
import pytest
import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from headdynamics.plugins.fairseq_losses import CriterionLoss
from headdynamics.plugins.fairseq_measures import make_score

import headdynamics as hd
from headdynamics.sharing import scores_under


@pytest.fixture
def setting(data):
    """The task, a model of large random weights in eval mode, its criterion, and two batches."""
    words = [str(data), *fairseq.MODEL, *fairseq.BLEU]
    config = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
    task = tasks.setup_task(config.task)
    torch.manual_seed(4)
    model = task.build_model(config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5)
    task.load_dataset("valid")
    rows = task.dataset("valid")
    batches = [rows.collater([rows[i] for i in part]) for part in (range(6), range(6, 10))]
    return task, model.eval(), task.build_criterion(config.criterion).eval(), batches


@pytest.mark.parametrize("name", ["bleu", "loss"])
def test_every_head(setting, name):
    task, model, criterion, batches = setting
    if name == "bleu":
        score = make_score(name, type("Trainer", (), {"task": task}), batches, None)
    else:
        score = hd.mean_loss(batches, CriterionLoss(criterion, task.target_dictionary.pad()))
    heads = hd.find_heads(model)
    keeps = [torch.ones(24), *(1 - torch.eye(24)[::3])]
    found = scores_under(model, heads, score, keeps)
    for one, keep in zip(found, keeps, strict=True):
        with hd.masked(heads, keep):
            assert one.stats.tobytes() == score(model).stats.tobytes()
    assert len({one.stats.tobytes() for one in found}) > 4
