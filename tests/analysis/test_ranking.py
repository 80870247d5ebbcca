import numpy as np
import pytest
from fake_run import blocks_of
from headdynamics.analysis.ranking import agreement, halves, kept, overlap, tau, unit_ranks
from scipy import stats


def slow_agreement(blocks, splits, seed):
    """DESIGN's definition, one pair at a time."""

    def rho(x, y):
        return stats.spearmanr(x, y).statistic

    raw, ceiling = [], []
    for e in range(len(blocks)):
        across, within = [], []
        for first, second in halves(blocks.shape[1], splits, seed):
            here_a, here_b = blocks[e, first].mean(0), blocks[e, second].mean(0)
            last_a, last_b = blocks[-1, first].mean(0), blocks[-1, second].mean(0)
            across += [rho(here_a, last_b), rho(here_b, last_a)]
            within.append(rho(here_a, here_b))
        raw.append(np.mean(across))
        ceiling.append(np.mean(within))
    return np.array(raw), np.array(ceiling)


@pytest.mark.parametrize("ties", [False, True])
def test_agreement_equals_a_slow_loop_over_scipy(ties):
    draw = np.random.default_rng(3)
    blocks = blocks_of(np.exp(np.cumsum(draw.normal(size=(6, 17)), axis=0)), noise=0.8)
    if ties:
        blocks = np.floor(blocks)
    found = agreement(blocks, splits=7, seed=5)
    raw, ceiling = slow_agreement(blocks, 7, 5)
    np.testing.assert_allclose(found.raw, raw, atol=1e-12)
    np.testing.assert_allclose(found.ceiling, ceiling, atol=1e-12)
    np.testing.assert_allclose(found.corrected, raw / np.sqrt(ceiling * ceiling[-1]), atol=1e-12)
    assert found.corrected[-1] == pytest.approx(1)


def test_halves_are_disjoint_and_seeded():
    for first, second in halves(10, 20, 0):
        assert sorted([*first, *second]) == list(range(10)) and len(first) == 5
    assert [a.tolist() for a, _ in halves(10, 3, 1)] == [a.tolist() for a, _ in halves(10, 3, 1)]


def test_unit_ranks_average_ties_and_refuse_constants():
    # ranks 1, 2.5, 2.5, 4 -> centred -1.5, 0, 0, 1.5 -> length 2.1213
    np.testing.assert_allclose(unit_ranks(np.array([[1.0, 5, 5, 9]])), [[-(0.5**0.5), 0, 0, 0.5**0.5]])
    assert np.isnan(unit_ranks(np.ones((1, 4)))).all()


def test_a_ceiling_below_zero_gives_nan_and_never_a_number():
    two = np.array([[1.0, 2, 3, 4], [4, 3, 2, 1]])  # two blocks that contradict each other: C = -1
    found = agreement(np.array([two, two, [[1.0, 2, 3, 4]] * 2]))
    np.testing.assert_allclose(found.ceiling, [-1, -1, 1])
    assert np.isnan(found.corrected[:2]).all() and found.corrected[2] == pytest.approx(1)


def test_one_block_or_no_snapshot_gives_nan_or_nothing():
    assert np.isnan(agreement(np.ones((3, 1, 5))).corrected).all()
    assert agreement(np.ones((0, 10, 5))).corrected.shape == (0,)


def test_tau_literal():
    # of 6 pairs one is discordant: (5 - 1) / 6
    np.testing.assert_allclose(tau(np.array([[1.0, 2, 4, 3], [1, 2, 3, 4]])), [4 / 6, 1])


def test_kept_is_exact():
    assert [kept(10, p) for p in np.arange(11) / 10] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert kept(10, 0.1 + 0.2) == 7 and kept(36, 0.7) == 10


def test_overlap_literal():
    importance = np.array([[4.0, 3, 2, 1], [1, 3, 2, 4]])
    # half of 4: {0, 1} against {1, 3}; a quarter: {0, 1, 2} against {1, 2, 3}
    found = overlap(importance, np.array([0, 0.25, 0.5, 0.75, 1]))
    np.testing.assert_allclose(found, [[1, 2 / 3, 0.5, 0, np.nan], [1, 1, 1, 1, np.nan]])


def test_overlap_breaks_ties_by_index_as_pruning_does():
    # heads 0 and 1 go first of four equals
    np.testing.assert_allclose(overlap(np.array([[1.0, 1, 1, 1], [0, 0, 1, 1]]), np.array([0.5]))[:, 0], [1, 1])
