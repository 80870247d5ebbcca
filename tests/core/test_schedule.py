"""When to look."""

import pytest

from headdynamics.schedule import Moment, either, every_epoch, every_updates, log_spaced, parse, within_first_epoch


def updates(schedule, last=40, epoch=10):
    """At which updates it looks, in epochs of ten updates."""
    return [u for u in range(last + 1) if schedule(Moment(u, u / epoch, u > 0 and u % epoch == 0))]


def test_parse():
    assert updates(parse("epoch")) == [10, 20, 30, 40]
    assert updates(parse("log")) == [1, 2, 4, 8, 16, 32]
    assert updates(parse("never")) == updates(parse(None)) == []
    assert updates(parse("15")) == updates(parse(15)) == [15, 30]
    assert parse(every_epoch) is every_epoch


@pytest.mark.parametrize("text", ["often", "", "-5", "1.5", "0", 0, -3])
def test_what_is_no_schedule(text):
    with pytest.raises(ValueError, match="is no schedule: write epoch, log, never, or a number|give 1 or more"):
        parse(text)


def test_the_error_tells_what_to_write():
    with pytest.raises(ValueError) as error:
        parse("often")
    assert str(error.value) == "'often' is no schedule: write epoch, log, never, or a number of updates such as 500"


def test_parts_of_the_first_epoch():
    assert updates(within_first_epoch(80), last=100) == [10, 20, 40]
    assert updates(within_first_epoch(3)) == [1, 2]
    assert updates(within_first_epoch(1)) == [1]


def test_either():
    assert updates(either(every_updates(15), log_spaced)) == [1, 2, 4, 8, 15, 16, 30, 32]
    assert updates(either()) == []
