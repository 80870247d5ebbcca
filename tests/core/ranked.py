"""Several processes of torch.distributed, over gloo, on this machine; what each of them runs in test_ranks.py."""

from __future__ import annotations

import contextlib
import datetime
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
import torch.distributed as dist
from headdynamics.plugins.torch_loop import Watch
from torch import multiprocessing, nn

import headdynamics as hd
from headdynamics.losses import cross_entropy
from headdynamics.ranks import Ranks
from headdynamics.record.memory import MemoryRecorder
from headdynamics.snapshot import Snapshot

ORDERS = ("importance", "random-1", "shapley", "greedy-2", "gates-3", "fisher", "oracle", "reestimated-3")


def run(size: int, work: Callable[..., Any], folder: Path, *more: Any) -> list[Any]:
    """What `work(ranks, folder, *more)` returned on each rank; None where it did not return."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_start, args=(rank, size, work, folder, *more)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    assert not hanging, f"ranks {hanging} hang"
    files = [folder / f"result-{rank}" for rank in range(size)]
    return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


def _start(rank: int, size: int, work: Callable[..., Any], folder: Path, *more: Any) -> None:
    torch.set_num_threads(1)
    store, limit = f"file://{folder / 'store'}", datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=limit)
    found = work(Ranks.of_training(), folder, *more)
    (folder / f"result-{rank}").write_bytes(pickle.dumps(found))


def batches() -> list[dict[str, torch.Tensor]]:
    """Seven sentences in four batches, the last of one."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 14, (7, 6), generator=draw)
    labels, mask = torch.randint(0, 3, (7,), generator=draw), torch.ones(7, 6, dtype=torch.long)
    mask[::2, 4:] = 0
    whole = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return [{name: value[i : i + 2] for name, value in whole.items()} for i in range(0, 7, 2)]


class Placed(list[dict[str, torch.Tensor]]):
    """Batches that come in another order than that of the draw."""

    places = np.array([6, 2, 0, 4, 5, 1, 3])


class CountedLoss:
    """cross_entropy; the batches that it saw, by their first token."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """[B]."""
        self.seen.append(int(batch["input_ids"][0, 0]))
        return cross_entropy(model, batch)


def observed(ranks: Ranks, **options: Any) -> tuple[Snapshot, CountedLoss]:
    """One snapshot of a tiny BERT, as this rank has it."""
    model, loss, memory = models.CASES["bert"].build(), CountedLoss(), MemoryRecorder()
    examples = Placed(batches())
    scored = hd.accuracy(Placed(batches()))
    observer = hd.Observer(
        model, None, batches=examples, score=scored, loss=loss, recorders=[memory], ranks=ranks, strict=True, **options
    )
    taken = observer.snapshot(update=1)
    assert len(memory.snapshots) == (1 if ranks.writes else 0)
    return taken, loss


def numbers(value: Any) -> Iterator[Any]:
    """Every number of a snapshot but its seconds, in order."""
    if isinstance(value, (np.ndarray, float, int)):
        yield np.asarray(value)
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from numbers(value[key])
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            if name != "seconds":
                yield from numbers(getattr(value, name))


def every_number(ranks: Ranks, folder: Path, options: list[dict[str, Any]]) -> tuple[list[Any], list[int]]:
    """All numbers of snapshots with each of the options, and the batches that I(h) of the first was measured on."""
    found = [observed(ranks, **one) for one in options]
    return [list(numbers(taken)) for taken, _ in found], found[0][1].seen


def one_fails(ranks: Ranks, folder: Path) -> list[str]:
    """Statuses of three snapshots, of which the second fails on rank 1 in the middle of the work."""
    broken = [False]

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        if broken[0]:
            raise ValueError("broken here")
        return cross_entropy(model, batch)

    model = models.CASES["bert"].build()
    path = str(folder / "run.h5")
    observer = hd.Observer(model, path, batches=batches(), score=hd.accuracy(batches()), loss=loss, ranks=ranks)
    statuses = []
    for update in range(3):
        broken[0] = update == 1 and ranks.rank == 1
        statuses.append(observer.snapshot(update=update).status)
    observer.close()
    return statuses


def one_dies(ranks: Ranks, folder: Path) -> str:
    """The status of a snapshot in which rank 1 is gone."""

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        if ranks.rank == 1 and hasattr(model, "measured"):
            os._exit(3)
        return cross_entropy(model, batch)

    model = models.CASES["bert"].build()
    observer = hd.Observer(model, None, batches=batches(), score=hd.accuracy(batches()), loss=loss, ranks=ranks)
    model.measured = True
    return observer.snapshot(update=1).status


def bad_days(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """What became of each, one after the other in the same processes."""
    found: dict[str, Any] = {"fails": one_fails(ranks, folder)}
    for what in ("examples", "order", "file", "nothing"):
        found[what] = attached(ranks, folder, what)
    found |= {"recorder": cannot_record(ranks, folder), "budget": budgeted(ranks, folder)}
    return found | {"shuffled": shuffled(ranks), "mixed": mixed(ranks), "online": unlike(ranks)}


def shuffled(ranks: Ranks) -> list[Any]:
    """Different examples that all ranks together measured I(h) on at two snapshots, and whether the loader is free."""
    torch.manual_seed(ranks.rank)
    whole = {name: torch.cat([batch[name] for batch in batches()]) for name in batches()[0]}
    rows = [{name: value[i] for name, value in whole.items()} for i in range(7)]
    loader = torch.utils.data.DataLoader(rows, 2, shuffle=True, generator=torch.Generator().manual_seed(5))
    seen: list[tuple[int, ...]] = []

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.extend(map(tuple, batch["input_ids"].tolist()))
        return cross_entropy(model, batch)

    model = models.CASES["bert"].build()
    observer = hd.Observer(
        model, None, batches=loader, score=lambda model: 0.0, loss=loss, orders=("importance",), ranks=ranks
    )
    found: list[Any] = []
    for update in range(2):
        seen.clear()
        observer.snapshot(update=update)
        every = sum(ranks.every(list(seen)), [])
        found.append(len(set(every)) if len(every) == 7 else -1)
    return [*found, not hasattr(loader, "ranks")]


def mixed(ranks: Ranks) -> list[float]:
    """A curve by an order that comes out differently on rank 1."""
    from headdynamics import orders

    def backwards(situation: Any, number: int) -> np.ndarray:
        return situation.wanted[:: -1 if ranks.rank else 1]

    before = orders.ORDERS["signed"]
    orders.ORDERS["signed"] = orders.Order(backwards, "a test's")
    try:
        taken, _ = observed(ranks, orders=("importance", "signed"))
    finally:
        orders.ORDERS["signed"] = before
    return taken.curves["signed"].score.tolist()


def unlike(ranks: Ranks) -> str:
    """What an observer says of an Online that does not know of the other ranks."""
    model = models.CASES["bert"].build()
    try:
        hd.Observer(model, None, batches=batches(), online=hd.Online(model), ranks=ranks)
    except ValueError as error:
        return str(error)
    return ""


def attached(ranks: Ranks, folder: Path, what: str) -> str:
    """What attaching says where rank 1 has other examples, or the run file cannot be written."""
    model, examples = models.CASES["bert"].build(), batches()
    if what == "examples" and ranks.rank == 1:
        examples[0]["input_ids"] += 1
    if what == "order" and ranks.rank == 1:
        examples = Placed(examples)
    path = str(folder / "run.h5" / "no folder" / "run.h5") if what == "file" else None
    try:
        hd.Observer(model, path, batches=examples, score=hd.accuracy(examples), ranks=ranks)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "attached"


def looped(ranks: Ranks, folder: Path, estimator: str, watched: bool = True) -> tuple[list[Any], list[torch.Tensor]]:
    """Snapshots and windows of a plain loop with DistributedDataParallel, and the trained weights.

    Each update sees the same four sentences, whatever the number of ranks.
    """
    torch.manual_seed(1)
    inner = models.CASES["bert"].build().double().train()
    inner.config.hidden_dropout_prob = 0.0
    for module in inner.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):  # of transformers 4's attention, no module of its own
            module.dropout_prob = 0.0
    model = nn.parallel.DistributedDataParallel(inner) if ranks.size > 1 else inner
    optimizer, memory = torch.optim.SGD(model.parameters(), 0.05), MemoryRecorder()
    whole = {name: torch.cat([batch[name] for batch in batches()])[:4] for name in batches()[0]}
    mine = {name: value[ranks.rank :: ranks.size] for name, value in whole.items()}
    weight = torch.full((len(mine["labels"]),), 1 / len(mine["labels"]), dtype=torch.double)
    with contextlib.ExitStack() as stack:
        if watched:
            online = hd.Online(model, estimator, window=2, strict=True, ranks=ranks)
            observer = hd.Observer(
                model, None, batches=batches(), recorders=[memory], online=online, ranks=ranks, strict=True
            )
            watch = stack.enter_context(Watch(observer, updates_per_epoch=2))
        for _ in range(5):
            with watch.online(weight) if watched else contextlib.nullcontext():
                cross_entropy(model, mine).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if watched:
                watch.step()
    return [*memory.snapshots, *memory.windows], [value.detach() for value in inner.state_dict().values()]


def loops(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """A loop with each estimator, and one without."""
    found: dict[str, Any] = {estimator: looped(ranks, folder, estimator) for estimator in ("example", "batch")}
    return found | {"": looped(ranks, folder, "", watched=False)}


class Full:
    """A recorder on a disk that is full."""

    def start(self, run: Any, update: int | None) -> None:
        """See `Recorder`."""

    def write(self, snapshot: Snapshot) -> None:
        """See `Recorder`."""
        raise OSError("no space left")

    def write_window(self, window: Any) -> None:
        """See `Recorder`."""

    def close(self) -> None:
        """See `Recorder`."""


def cannot_record(ranks: Ranks, folder: Path) -> list[str]:
    """What a snapshot raises where rank 0 cannot record it: strict, and not."""
    said = []
    for strict in (True, False):
        model = models.CASES["bert"].build()
        observer = hd.Observer(model, None, batches=batches(), recorders=[Full()], ranks=ranks, strict=strict)
        try:
            observer.snapshot(update=1)
            said.append("")
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def budgeted(ranks: Ranks, folder: Path) -> list[int]:
    """How many examples each of some snapshots took, where every rank's clock says something else."""
    model, examples = models.CASES["bert"].build(), batches() * 16
    observer = hd.Observer(model, None, batches=examples, fractions=(0.0, 1.0), ranks=ranks, budget=0.1, strict=True)
    assert observer.budget is not None
    counts = []
    for update in range(4):
        observer.budget.began -= 100.0 if ranks.rank else 5.0
        found = observer.snapshot(update=update).importance
        counts.append(found.n if found else 0)
    return counts


def many_groups(ranks: Ranks, folder: Path) -> int:
    """How many groups, one after the other, were made, used and let go."""
    ranks.close()
    for done in range(25):
        ranks = Ranks.of_training()
        assert ranks.every(done) == [done] * ranks.size
        ranks.close()
    return done
