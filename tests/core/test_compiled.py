"""Compiled models: their graphs know nothing of our hooks, and whoever trains them keeps the graphs."""

import numpy as np
import pytest
import torch
from compiler import needs_compiler
from models import CASES

import headdynamics as hd

pytestmark = pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch has no set_stance before 2.6")


class Graphs:
    """A compiler that counts the runs of its graphs and changes nothing."""

    def __init__(self):
        torch._dynamo.reset()
        self.runs = 0

    def __call__(self, graph, inputs):
        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def trained():
    """(a model compiled in place that has trained two steps, what counts its graphs, a step of so many rows)."""
    case, graphs = CASES["bert"], Graphs()
    model = case.build()
    model.compile(backend=graphs)
    model.train()

    def step(rows):
        before = graphs.runs
        model(**{name: value[:rows] for name, value in case.batch.items()}).loss.backward()
        model.zero_grad()
        return graphs.runs - before

    assert step(3) > 0 and step(3) > 0
    yield case, model, step
    torch._dynamo.reset()


def plain(case, model):
    twin = case.build()
    twin.load_state_dict(model.state_dict())
    return twin.eval()


@needs_compiler
def test_masks_curves_and_ablations_reach_a_compiled_model(trained):
    case, model, _ = trained
    score, twin = hd.mean_loss([case.batch] * 2), plain(case, model)
    model.eval()
    with torch.no_grad():
        score(model)  # an evaluation of the user's: its graph is there before we come
    none = torch.zeros(len(hd.find_heads(model)))
    with hd.masked(hd.find_heads(model), none), hd.masked(hd.find_heads(twin), none):
        assert score(model).value == score(twin).value
    order = np.arange(len(none))
    want = hd.pruning_curve(twin, order, score).score
    assert len(set(want)) > 5
    np.testing.assert_allclose(hd.pruning_curve(model, order, score).score, want, atol=1e-6)
    np.testing.assert_allclose(hd.pruning_curve(torch.compile(model), order, score).score, want, atol=1e-6)
    np.testing.assert_array_equal(hd.ablate(model, score).score, hd.ablate(twin, score).score)
    assert hd.find_knee(model, order, score, 0.2).pruned == hd.find_knee(twin, order, score, 0.2).pruned


@needs_compiler
def test_snapshots_leave_the_graphs_of_training_alone(trained):
    """Every graph that a snapshot would have made counts against a limit, beyond which training runs uncompiled."""
    case, model, step = trained
    observer = hd.Observer(model, None, batches=[case.batch] * 2, orders=["importance", "random-1"])
    for update in (2, 3):
        assert len(set(observer.snapshot(update=update).curves["importance"].score)) > 5
    assert step(3) > 0
    assert step(2) > 0


def test_removal_is_proved_on_the_longest_batch():
    case = CASES["bert"]
    short = {name: value[:, :1] if value.dim() > 1 else value for name, value in case.batch.items()}
    model = case.build().eval()
    whole = hd.mean_loss([short, case.batch])
    assert whole.probe(model).value == hd.mean_loss([case.batch])(model).value
