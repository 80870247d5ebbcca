import numpy as np
import pytest
from headdynamics.analysis.ranking import Agreement
from headdynamics.analysis.verdict import Rule, judge, stays_from


def found(r, last_ceiling=0.9):
    r = np.array(r, dtype=float)
    return Agreement(raw=r, ceiling=np.full(len(r), last_ceiling), corrected=r)


@pytest.mark.parametrize(
    ("r", "first"),
    [
        ([1, 1, 1], 0),
        ([0.5, 0.9, 1], 1),  # exactly the threshold counts
        ([0.95, 0.89, 1], 2),  # an early good one does not
        ([1, np.nan, 1], 2),  # an undefined one is below
        ([1, 1, np.nan], 3),
    ],
)
def test_stays_from(r, first):
    assert stays_from(np.array(r), 0.9) == first


@pytest.mark.parametrize(
    ("r", "ceiling", "heads", "verdict"),
    [
        ([0, 0, 1, 1, 1, 1], 0.9, 4, ("settled", 2)),
        ([0, 0, 0, 1, 1, 1], 0.9, 4, ("not settled", None)),
        ([1, 1, 1, 1, 1, 1], 0.9, 3, ("too few heads", None)),
        ([1, 1, 1, 1], 0.9, 4, ("too few snapshots", None)),
        ([1, 1, 1, 1, 1, 1], 0.49, 4, ("too noisy", None)),
        ([1, 1, 1, 1, 1, 1], 0.5, 4, ("settled", 0)),
        ([1, 1, 1, 1, 1, 1], np.nan, 4, ("too noisy", None)),
        ([1, np.nan, 1, 1, 1, 1], 0.9, 4, ("settled", 2)),
    ],
)
def test_judge(r, ceiling, heads, verdict):
    assert judge(found(r, ceiling), heads, Rule()) == verdict


def test_default_tail():
    assert [Rule().needed_after(s) for s in (5, 9, 10, 12, 13, 1000)] == [3, 3, 4, 4, 5, 334]
    assert Rule(tail=2).needed_after(1000) == 2
