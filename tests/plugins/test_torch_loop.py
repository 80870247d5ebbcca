"""A plain loop, watched: right rows, and the same bits as without."""

import contextlib

import pytest
import torch
from headdynamics.plugins.torch_loop import Watch
from torch import nn

import headdynamics as hd
from headdynamics.record.memory import MemoryRecorder


class Tiny(nn.Module):
    """One attention layer with dropout over letters, and a classifier."""

    def __init__(self):
        super().__init__()
        self.embed, self.answer = nn.Embedding(10, 8), nn.Linear(8, 2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)

    def forward(self, input_ids, labels=None):
        """A dict with logits and, given labels, the loss."""
        logits = self.answer(self.layer(self.embed(input_ids)).mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"logits": logits, "loss": loss}


def data(n, seed):
    ids = torch.randint(0, 10, (n, 6), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": ids[i : i + 4], "labels": (ids[i : i + 4, 0] > 4).long()} for i in range(0, n, 4)]


def train(watch_with=None, steps=12, epoch=5):
    """Train `steps` updates, watched if asked; the weights and the optimizer's state."""
    torch.manual_seed(0)
    model = Tiny()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    batches = data(steps * 4, 1)
    with watch_with(model, epoch) if watch_with else contextlib.nullcontext() as watch:
        for batch in batches:
            weight = torch.full((len(batch["labels"]),), 1 / len(batch["labels"]))
            with watch.online(weight) if isinstance(watch, Listened) else contextlib.nullcontext():
                model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            if watch is not None:
                watch.step()
    return [*model.state_dict().values(), *(v for s in optimizer.state_dict()["state"].values() for v in s.values())]


def observer(model, memory, **options):
    valid = data(12, 2)
    return hd.Observer(model, batches=valid, score=hd.accuracy(valid), recorders=[memory], strict=True, **options)


@pytest.mark.parametrize(
    ("every", "early", "updates"),
    [
        ("epoch", False, [5, 10, 12]),
        (4, False, [4, 8, 12]),
        (None, False, [12]),
        ("log", False, [1, 2, 4, 8, 12]),
        ("epoch", True, [1, 2, 5, 10, 12]),
    ],
)
def test_rows_when_asked_and_the_same_bits(every, early, updates):
    memory = MemoryRecorder()
    watched = train(lambda model, epoch: Watch(observer(model, memory), epoch, every, early))
    assert [s.update for s in memory.snapshots] == updates
    assert [s.epoch for s in memory.snapshots] == [u / 5 for u in updates]
    assert all(map(torch.equal, watched, train()))


class Listened(Watch):
    """A watch whose loop below asks it to listen."""


def listened(model, memory, estimator="example", **options):
    return observer(model, memory, online=hd.Online(model, estimator, window=4, strict=True), **options)


@pytest.mark.parametrize("estimator", ["example", "batch"])
def test_a_loop_that_is_listened_to_is_the_same_loop(estimator):
    """Windows end when they are full, before a snapshot, and at the end; what training computes is the same bits."""
    memory = MemoryRecorder()
    heard = train(lambda model, epoch: Listened(listened(model, memory, estimator), epoch), steps=12)
    assert all(map(torch.equal, heard, train()))
    assert [window.update for window in memory.windows] == [4, 5, 9, 10, 12]
    per_update = 1 if estimator == "batch" else 4
    assert [window.n for window in memory.windows] == [per_update * n for n in (4, 1, 4, 1, 2)]
    assert all((window.mean > 0).all() for window in memory.windows)
    average = memory.windows[0].mean
    for window in memory.windows:
        average = average + (window.mean - average) * (1 - 0.5**0.25)
        assert window.average == pytest.approx(average, rel=1e-6)


def test_online_alone_takes_no_snapshot():
    memory = MemoryRecorder()
    train(lambda model, epoch: Listened(listened(model, memory), epoch, None))
    assert [window.update for window in memory.windows] == [4, 8, 12] and memory.snapshots == []


def test_listening_needs_an_ear():
    with Watch(observer(Tiny(), MemoryRecorder()), 5) as watch:
        with pytest.raises(ValueError, match="online=hd.Online"), watch.online():
            pass
        watch.observer.close()


def test_no_snapshot_after_a_failure():
    memory = MemoryRecorder()
    with pytest.raises(KeyError), Watch(observer(Tiny(), memory), 5) as watch:
        watch.step()
        raise KeyError
    assert memory.snapshots == []


def test_a_resumed_loop_goes_on_in_the_same_file(tmp_path):
    def run(start, stop):
        torch.manual_seed(0)
        watching = hd.Observer(Tiny(), str(tmp_path / "run.h5"), batches=data(12, 2), update=start)
        with Watch(watching, 5, update=start) as watch:
            for _ in range(start, stop):
                watch.step()

    run(0, 12)
    run(10, 15)
    import h5py

    with h5py.File(tmp_path / "run.h5") as file:
        assert file["snapshot"][:].tolist() == [5, 10, 15]
