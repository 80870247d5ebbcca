"""When a checkpoint counts as whole: a training is played by what happens between two looks."""

import logging
import os
import shutil
import signal
import threading
from types import SimpleNamespace

import pytest

from headdynamics.interrupting import until_interrupted
from headdynamics.watching import Arrivals


class Between(threading.Event):
    """Waits for nothing: plays the next scene; ends the watching after the last one."""

    def __init__(self, *scenes):
        super().__init__()
        self.scenes, self.waited = list(scenes), []

    def wait(self, timeout=None):
        self.waited.append(timeout)
        self.scenes.pop(0)() if self.scenes else self.set()


def nothing():
    pass


def read(path):
    text = (path / "state" if path.is_dir() else path).read_text()
    if not text.strip().isdigit():
        raise ValueError(f"{path.name} says {text!r}")
    return SimpleNamespace(update=int(text), path=path)


def watching(folder, *scenes, **how):
    stop = Between(*scenes)
    return Arrivals(lambda: sorted(folder.glob("c*")), read, stop=stop, **how)


def writer(path):
    def write(text, mode="w"):
        def scene():
            path.parent.mkdir(exist_ok=True)
            with open(path, mode) as file:
                file.write(text)

        return scene

    return write


def test_what_is_written_over_while_it_is_read_waits_for_those_before_it(tmp_path):
    """`cbest` was still, and of update 6; as it is read the training writes c18 and c24, and c24 over `cbest`."""
    write = {name: writer(tmp_path / name) for name in ("cbest", "c18", "c24")}
    write["cbest"]("6")()

    def overtaken(path):
        if not (tmp_path / "c18").exists():
            for name, update in {"c18": "18", "c24": "24", "cbest": "24"}.items():
                write[name](update)()
        return read(path)

    arrivals = Arrivals(lambda: sorted(tmp_path.glob("c*")), overtaken, until_update=24, stop=Between(*[nothing] * 4))
    assert [c.update for c in arrivals] == [18, 24]


def test_a_checkpoint_is_given_when_it_has_been_still_for_one_look(tmp_path):
    """Its first half says another update; the folder is not there at first."""
    write = writer(tmp_path / "run" / "c1")
    arrivals = watching(tmp_path / "run", nothing, write("1"), write("0", "a"), nothing, nothing, look_every=7)
    assert [c.update for c in arrivals] == [10]
    assert arrivals.stop.waited == [7] * 6


def test_a_folder_is_whole_when_nothing_in_it_changes(tmp_path):
    state, weights = writer(tmp_path / "c1" / "state"), writer(tmp_path / "c1" / "weights")
    given = []
    arrivals = watching(tmp_path, state("5"), weights("a"), weights("b", "a"), lambda: given.append("late"), nothing)
    for one in arrivals:
        given.append(one.update)
    assert given == ["late", 5]


def test_by_update_and_one_an_update(tmp_path):
    for name, update in (("c1", "30"), ("c2", "4"), ("c3", "30"), ("c4", "5")):
        (tmp_path / name).write_text(update)
    arrivals = watching(tmp_path, nothing, writer(tmp_path / "c5")("5"), writer(tmp_path / "c6")("6"), nothing, nothing)
    assert [(c.update, c.path.name) for c in arrivals] == [(4, "c2"), (5, "c4"), (30, "c1"), (6, "c6")]


def test_a_file_that_is_written_over_is_another_checkpoint(tmp_path):
    write = writer(tmp_path / "c_last")
    arrivals = watching(tmp_path, write("1"), nothing, nothing, write("22"), nothing, nothing)
    assert [c.update for c in arrivals] == [1, 22]


def test_what_cannot_be_read_yet_is_tried_again_and_said_once(tmp_path, caplog):
    write = writer(tmp_path / "c1")
    arrivals = watching(tmp_path, write("half"), nothing, nothing, nothing, write("8"), nothing, nothing)
    assert [c.update for c in arrivals] == [8]
    assert caplog.text.count("c1 says 'half'") == 1 and "tried again later" in caplog.text


def test_again(tmp_path, caplog):
    (tmp_path / "c1").write_text("1")
    given, arrivals = [], watching(tmp_path, nothing, nothing, nothing, nothing)
    for one in arrivals:
        given.append(one.update)
        if len(given) < 3:
            arrivals.again(one, "weights cut")
    assert given == [1, 1, 1] and caplog.text.count("weights cut") == 1


def test_what_is_deleted_before_its_turn_is_left_out_with_one_line(tmp_path, caplog):
    write, kept = writer(tmp_path / "c1"), writer(tmp_path / "c2")
    gone = (tmp_path / "c1").unlink
    assert [c.update for c in watching(tmp_path, write("1"), gone, kept("2"), nothing, nothing)] == [2]
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"left out: {tmp_path / 'c1'} was deleted before it was measured"]


def test_what_was_given_may_be_deleted(tmp_path, caplog):
    write, gone = writer(tmp_path / "c1"), (tmp_path / "c1").unlink
    with caplog.at_level(logging.INFO):
        assert [c.update for c in watching(tmp_path, write("1"), nothing, gone, nothing)] == [1]
    assert not caplog.text


def test_it_ends_after_an_update(tmp_path):
    for update in (1, 2, 5, 6):
        (tmp_path / f"c{update}").write_text(str(update))
    later = writer(tmp_path / "c9")("9")
    assert [c.update for c in watching(tmp_path, nothing, later, nothing, until_update=4)] == [1, 2, 5, 6]
    assert [c.update for c in watching(tmp_path, nothing, later, nothing, nothing, until_update=7)] == [1, 2, 5, 6, 9]


@pytest.fixture
def later(monkeypatch):
    """Scenes ten seconds later, by a clock of ours."""
    clock = [0.0]
    monkeypatch.setattr("headdynamics.watching.time.monotonic", lambda: clock[0])

    def later(*scenes):
        def scene():
            clock[0] += 10
            for one in scenes:
                one()

        return scene

    return later


def test_what_can_never_be_used_does_not_keep_it_going(tmp_path, later):
    (tmp_path / "c1").write_text("1")
    given, arrivals = [], watching(tmp_path, *map(later, [nothing] * 20), idle=45)
    for one in arrivals:
        given.append(one.update)
        arrivals.again(one, "cut")
    assert len(given) == 5 and len(arrivals.stop.waited) == 5


def test_it_ends_when_nothing_changes(tmp_path, later):
    write = writer(tmp_path / "c1")
    arrivals = watching(tmp_path, *map(later, [write("1"), write("2"), write("3"), *[nothing] * 9]), idle=25)
    assert [c.update for c in arrivals] == [3]
    assert len(arrivals.stop.waited) == 7  # changes until 30, measured at 40, idle at 50, 60 and 70
    arrivals = watching(tmp_path / "nowhere", *map(later, [nothing] * 9), idle=15)
    assert list(arrivals) == [] and len(arrivals.stop.waited) == 2


def test_a_short_idle_still_measures_what_is_there(tmp_path):
    (tmp_path / "c1").write_text("1")
    assert [c.update for c in watching(tmp_path, nothing, nothing, nothing, idle=1e-9)] == [1]


def test_stopped_within_a_look_the_rest_is_not_given(tmp_path):
    for update in (1, 2):
        (tmp_path / f"c{update}").write_text(str(update))
    given, arrivals = [], watching(tmp_path, nothing, nothing)
    for one in arrivals:
        given.append(one.update)
        arrivals.stop.set()
    assert given == [1]


def test_the_first_is_given_again_to_the_loop(tmp_path):
    for update in (1, 2):
        (tmp_path / f"c{update}").write_text(str(update))
    arrivals = watching(tmp_path, nothing, nothing)
    assert arrivals.first(lambda one: one.update * 10) == 10
    assert [c.update for c in arrivals] == [1, 2]


def test_the_first_may_be_deleted_while_it_is_used(tmp_path):
    def use(one):
        if one.update == 1:
            (tmp_path / "c1").unlink()
        raise KeyError(one.update)

    for update in (1, 2):
        (tmp_path / f"c{update}").write_text(str(update))
    with pytest.raises(KeyError, match="2"):
        watching(tmp_path, nothing, nothing).first(use)


def test_none_came(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint came$"):
        watching(tmp_path, nothing).first(nothing)
    (tmp_path / "c1").write_text("half")
    with pytest.raises(ValueError, match="no checkpoint came; c1 says 'half'"):
        watching(tmp_path, nothing).first(nothing)


@pytest.mark.parametrize("how", [{"look_every": 0}, {"look_every": float("nan")}, {"idle": 0}])
def test_a_time_that_makes_no_sense(how):
    with pytest.raises(ValueError, match="give times above 0"):
        Arrivals(list, read, **how)


@pytest.fixture
def ctrl_c_interrupts():
    """As in a terminal; what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_asked_for_politely_the_second_time_it_is_not(ctrl_c_interrupts):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with until_interrupted() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(5)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_place_that_vanishes_between_two_calls_is_not_there(tmp_path):
    folder = tmp_path / "c1"
    folder.mkdir()
    (folder / "state").write_text("1")

    def candidates():
        found = [folder]
        shutil.rmtree(folder, ignore_errors=True)
        return found

    assert list(Arrivals(candidates, read, stop=Between(nothing))) == []
