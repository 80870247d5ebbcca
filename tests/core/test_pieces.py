"""A measurement in pieces, by one process or in turns by several: to the bit what it is in one go."""

import contextlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import CASES

import headdynamics as hd
from headdynamics.pieces import Answer, Bench, Failed, Piece, curves_apart, taken_apart
from headdynamics.snapshot import OK, Snapshot
from headdynamics.turns import Job, Waiting

sys.path.append(str(Path(__file__).parents[1] / "plugins"))
from run_content import content  # noqa: E402

ALL = {"orders": ("importance", "oracle", "random-1"), "ablations": ("one", "all-but-one")}


def subject(case, score=None, **plan):
    """Two checkpoints of a case's model, and an observer of it."""
    model = case.build()

    def load(scale):
        def into(held):
            held.load_state_dict({name: scale * value for name, value in case.build().state_dict().items()})

        return into

    def observe(path):
        batches = [case.batch, case.alone(case.batch, 1)]
        how = score or hd.mean_loss(batches, case.loss)
        return hd.Observer(model, path, batches=batches, loss=case.loss, score=how, update=None, **plan)

    return hd.Subject(observe, [hd.Checkpoint(u, u / 2, f"at {u}", load(1 + u / 10)) for u in (1, 2)])


def bench(made):
    found = Bench(lambda: contextlib.nullcontext(made), os.getcwd(), torch.get_num_threads())
    found.ready()
    return found


def result(flow, *benches):
    """What a flow comes to, its pieces done in turns, the last first."""
    answers = None
    while True:
        try:
            pieces = flow.send(answers)
        except StopIteration as end:
            return end.value
        done = {i: benches[i % len(benches)].do(2, pieces[i]).found for i in reversed(range(len(pieces)))}
        answers = [done[i] for i in range(len(pieces))]


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("bert", ALL),
        ("t5", ALL | {"orders": ("importance:decoder", "importance", "random-1")}),
        ("fairseq", ALL | {"fractions": (0, 0.3, 1)}),
        ("gpt2", {"fractions": "knee", "knee_tolerance": 0.2, "orders": ("importance", "random-2")}),
        ("llama", {"score": lambda model: sum(p.double().sum().item() for p in model.parameters()), **ALL}),
    ],
    ids=["bert", "t5", "fairseq", "gpt2-knee", "llama-number"],
)
def test_the_same_bits_as_in_one_go(name, plan, tmp_path):
    """Two processes' worth of benches, blocks of five masks, the first checkpoint measured in between."""
    case = CASES[name]
    whole, parts, theirs = (subject(case, **plan) for _ in range(3))
    one = whole.observe(str(tmp_path / "one.h5"))
    at = whole.checkpoints[1]
    assert one.snapshot(at.update, at.epoch, at.path, at.load).status == OK
    other = parts.observe(str(tmp_path / "other.h5"))
    benches = bench(theirs), bench(subject(case, **plan))
    assert isinstance(benches[0].do(1, Piece("ranked")), Answer)
    found, curves, ablations, knees = result(taken_apart(other, 5), *benches)
    other.record(Snapshot(at.update, at.epoch, 0.0, OK, found, curves, at.path, ablations, knees))
    assert content(tmp_path / "one.h5") == content(tmp_path / "other.h5")
    orders = {"a": np.arange(len(one.heads)), "b": np.arange(len(one.heads))[::-1]}
    drawn = result(curves_apart(other, orders, 4), *benches)
    wanted = hd.pruning_curve(_loaded(whole), orders["b"], one.score, one.run.fractions, heads=one.heads)
    assert drawn["b"].score.tobytes() == wanted.score.tobytes()


def _loaded(made):
    observer = made.observe(None)
    made.checkpoints[1].load(observer.model)
    return observer.model.eval()


def test_what_fails_says_why_and_the_next_piece_is_measured():
    made = subject(CASES["bert"])

    def bad(model):
        model.bert.encoder.layer[0].attention.self.value.weight.data.zero_()
        raise OSError("a cut file")

    broken = hd.Subject(made.observe, [hd.Checkpoint(1, 1.0, "", bad), *made.checkpoints[1:]])
    held = bench(broken)
    [before, _] = held.do(2, Piece("ranked")).found
    assert held.do(1, Piece("ranked")) == Failed("OSError: a cut file")
    assert held.do(1, Piece("ranked")) == Failed("OSError: a cut file")  # not what was left of it
    assert "update 7 is not found on" in held.do(7, Piece("ranked")).why
    [after, _] = held.do(2, Piece("ranked")).found  # loaded anew
    assert before.mean.all() and before.mean.tobytes() == after.mean.tobytes()


def test_turns():
    """What it holds itself, then what nobody holds, then help; a failed job's tasks are dropped, its flow is over."""

    def flow():
        first = yield [Piece("a"), Piece("b")]
        second = yield [Piece("c")]
        return first + second

    jobs = [Job(update, flow()) for update in (1, 2, 3)]
    waiting = Waiting([task for job in jobs for task in job.begin()])

    def take(holds, *held):
        task = waiting.next_for(holds, held)
        return task and (task.job.update, task.piece.what)

    assert [take(None, None), take(None, 1), take(2, 1), take(1, 2)] == [(1, "a"), (2, "a"), (2, "b"), (1, "b")]
    task = waiting.next_for(1, [2])
    assert (task.job.update, task.piece.what) == (3, "a")
    waiting.again(task)
    assert take(1, 2, 3) == (3, "a")  # help
    one, two = Job(4, flow()), Job(5, flow())
    a, b = one.begin()
    assert one.take(b, Answer("B", 1.0)) == []
    [c] = one.take(a, Answer("A", 2.0))
    assert one.take(c, Answer("C", 4.0)) == []
    assert one.result == ["A", "B", "C"] and one.seconds == 7 and one.pieces == 3
    waiting.add(two.begin())
    two.take(waiting.next_for(5, []), Failed("no"))
    waiting.drop(two)
    assert two.result == Failed("no") and take(5) == (3, "b") and take(5) is None
