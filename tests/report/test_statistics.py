"""Estimates and intervals compared with rliable, SciPy and manual calculations."""

import math

import numpy as np
import pytest
from rliable import library, metrics

from srl.report import statistics
from srl.report.intervals import Estimate, mean_band
from srl.report.statistics import (
    AGGREGATES,
    DEFAULT_REPS,
    aggregates,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)

#: Number of bootstrap samples where it does not matter.
REPS = 200

RLIABLE_AGGREGATES = {
    "median": metrics.aggregate_median,
    "iqm": metrics.aggregate_iqm,
    "mean": metrics.aggregate_mean,
    "optimality_gap": metrics.aggregate_optimality_gap,
}


def draw(kind, n_runs, n_tasks, generator):
    """Draw a score matrix: all different, many equal, or far from 0 and 1."""
    if kind == "tied":
        return generator.integers(0, 4, (n_runs, n_tasks)) / 2
    if kind == "returns":
        return generator.normal(-1400.0, 300.0, (n_runs, n_tasks))
    return generator.normal(0.6, 0.5, (n_runs, n_tasks))


MATRICES = [
    pytest.param(draw(kind, *shape, np.random.default_rng([number, *shape])), id=f"{kind}-{shape}")
    for number, (kind, shapes) in enumerate(
        {
            # Numbers of scores with each remainder modulo 4, since the IQM trims quarters
            "different": ((2, 1), (3, 1), (5, 1), (10, 1), (2, 2), (3, 3), (5, 3), (7, 2), (30, 9)),
            "tied": ((5, 1), (7, 2)),
            "returns": ((5, 1), (7, 2)),
        }.items()
    )
    for shape in shapes
] + [
    pytest.param(np.full((4, 3), 0.7), id="constant"),
    pytest.param(np.tile([[0.1, 5.0]], (6, 1)), id="no-difference-between-runs"),
]

PAIRS = [
    pytest.param(
        draw(kind, n_x, n_tasks, np.random.default_rng([number, n_x, n_y, n_tasks])),
        draw(kind, n_y, n_tasks, np.random.default_rng([9, number, n_x, n_y, n_tasks])),
        id=f"{kind}-{n_x}-{n_y}-{n_tasks}",
    )
    for number, kind in enumerate(("different", "tied"))
    for n_x, n_y, n_tasks in ((2, 2, 1), (5, 5, 3), (4, 7, 2), (8, 2, 3), (10, 30, 1))
] + [
    pytest.param(np.ones((3, 2)), np.ones((3, 2)), id="equal"),
    pytest.param(np.ones((3, 2)) + np.eye(3, 2), np.zeros((4, 2)), id="all-above"),
    pytest.param(np.arange(6.0).reshape(3, 2), np.arange(6.0).reshape(3, 2), id="same-runs"),
]


def by_hand(given, function, reps):
    """Return values, lower and upper bounds of rliable for one algorithm or pair."""
    np.random.seed(0)
    values, intervals = library.get_interval_estimates({"it": given}, function, reps=reps)
    low, high = intervals["it"]
    return values["it"], low, high


def assert_same(estimates, expected):
    ours = np.array([(estimate.value, estimate.low, estimate.high) for estimate in estimates])
    np.testing.assert_allclose(ours.T, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scores", MATRICES)
def test_aggregates_match_rliable(scores):
    ours = aggregates(scores, reps=REPS)
    assert tuple(ours) == AGGREGATES == tuple(RLIABLE_AGGREGATES)
    expected = by_hand(scores, lambda x: np.array([f(x) for f in RLIABLE_AGGREGATES.values()]), REPS)
    assert_same(ours.values(), expected)


@pytest.mark.parametrize("scores", MATRICES)
def test_interquartile_mean_matches_rliable(scores):
    expected = by_hand(scores, lambda x: np.array([metrics.aggregate_iqm(x)]), REPS)
    assert_same([interquartile_mean(scores, reps=REPS)], expected)
    assert interquartile_mean(scores, reps=REPS) == aggregates(scores, reps=REPS)["iqm"]


@pytest.mark.parametrize("scores", MATRICES)
def test_performance_profile_matches_rliable(scores):
    # Some thresholds equal scores: a score is not above itself
    thresholds = np.union1d(np.linspace(-0.5, 2.0, 11), scores[:2].ravel())
    np.random.seed(0)
    values, intervals = library.create_performance_profile({"it": scores}, thresholds, reps=REPS)
    assert_same(performance_profile(scores, thresholds, reps=REPS), (values["it"], *intervals["it"]))


@pytest.mark.parametrize(("x", "y"), PAIRS)
def test_probability_of_improvement_matches_rliable(x, y):
    expected = by_hand([x, y], lambda *xy: np.array([metrics.probability_of_improvement(*xy)]), REPS)
    assert_same([probability_of_improvement(x, y, reps=REPS)], expected)


def test_default_number_of_bootstrap_samples_is_2000():
    scores, other = draw("different", 5, 2, np.random.default_rng(0)), np.full((5, 2), 0.5)
    assert DEFAULT_REPS == 2000
    expected = by_hand(scores, lambda x: np.array([metrics.aggregate_iqm(x)]), 2000)
    assert_same([interquartile_mean(scores)], expected)
    assert aggregates(scores)["iqm"] == interquartile_mean(scores)
    assert performance_profile(scores, np.array([0.5])) == performance_profile(
        scores, np.array([0.5]), reps=2000
    )
    assert probability_of_improvement(scores, other) == probability_of_improvement(scores, other, reps=2000)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # 8 scores without 2 at each tail: (3 + 4 + 5 + 6) / 4
        ([1, 2, 3, 4, 5, 6, 7, 8], 4.5),
        # Unsorted, with an outlier: (2 + 3 + 5 + 6) / 4
        ([8, 1, 7, 2, 6, 3, 5, -1e9], 4.0),
        # A quarter of 5, 6, 7 rounds down to 1: (2 + 3 + 4) / 3, (2 + 3 + 4 + 5) / 4, (1 + 2 + 3 + 4 + 5) / 5
        ([1, 2, 3, 4, 100], 3.0),
        ([1, 2, 3, 4, 5, 100], 3.5),
        ([-100, 1, 2, 3, 4, 5, 100], 3.0),
        # 3 scores are not trimmed: (1 + 2 + 9) / 3
        ([1, 2, 9], 4.0),
    ],
)
def test_interquartile_mean_matches_manual_calculation(scores, expected):
    assert interquartile_mean(np.array(scores, dtype=float)[:, None], reps=REPS).value == expected


def test_interquartile_mean_pools_runs_and_tasks():
    # Middle half of 1, 2, 3, 4, 6, 7, 8, 100: (3 + 4 + 6 + 7) / 4. The mean of the IQM of each task would be
    # ((2 + 3) / 2 + (6 + 7) / 2) / 2 = 4.5
    assert interquartile_mean(np.array([[1.0, 4], [2, 6], [3, 7], [100, 8]]), reps=REPS).value == 5.0


def test_median_is_over_task_means():
    # Task means are 2, 10 and 3; the median of all scores would be 2.5
    scores = np.array([[1.0, 0, 2], [3, 20, 4]])
    figures = aggregates(scores, reps=REPS)
    assert figures["median"].value == 3.0
    assert figures["mean"].value == 5.0
    # An even number of tasks: the average of the two means 2 and 10
    assert aggregates(scores[:, :2], reps=REPS)["median"].value == 6.0


def test_optimality_gap_ignores_scores_above_1():
    # Gaps to 1: 0.5, 0 (score of 3), 1, 0 (score of 1), 1.5 (score of -0.5) and 0: 3 / 6
    scores = np.array([[0.5, 3.0, 0.0], [1.0, -0.5, 1.0]])
    assert aggregates(scores, reps=REPS)["optimality_gap"].value == pytest.approx(0.5)


def test_profile_is_fraction_of_runs_above_threshold():
    # Of 0, 1, 2, 2, four scores are above -1, three above 0, two above 1, none above 2
    shares = performance_profile(np.array([[0.0, 1], [2, 2]]), np.array([-1.0, 0, 1, 1.5, 2]), reps=REPS)
    assert [share.value for share in shares] == [1.0, 0.75, 0.5, 0.5, 0.0]


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        # 1 beats 0, ties with 1; 2 beats both: (1 + 0.5 + 1 + 1) / 4
        ([[1], [2]], [[0], [1]], 0.875),
        # All tied
        ([[1], [1]], [[1], [1], [1]], 0.5),
        # 3 beats 1 and 2, 0 beats neither: 2 / 4
        ([[3], [0]], [[1], [2]], 0.5),
        # Mean of two tasks: 0.875 as above, and 0 and 5 against 5 and 7: (0 + 0 + 0.5 + 0) / 4
        ([[1, 0], [2, 5]], [[0, 5], [1, 7]], (0.875 + 0.125) / 2),
        # All 9 pairs, not only equal seeds: 2 beats 1, 3 beats 1, 4 beats 1
        ([[2], [3], [4]], [[1], [5], [6]], 3 / 9),
    ],
)
def test_probability_of_improvement_matches_manual_calculation(x, y, expected):
    x, y = np.array(x, dtype=float), np.array(y, dtype=float)
    assert probability_of_improvement(x, y, reps=REPS).value == pytest.approx(expected)
    assert probability_of_improvement(y, x, reps=REPS).value == pytest.approx(1 - expected)


def test_constant_scores_have_an_interval_of_zero_width():
    figures = aggregates(np.full((4, 2), 0.25), reps=REPS)
    assert figures == {name: Estimate(0.25, 0.25, 0.25) for name in ("median", "iqm", "mean")} | {
        "optimality_gap": Estimate(0.75, 0.75, 0.75)
    }
    above = probability_of_improvement(np.ones((3, 1)), np.zeros((3, 1)), reps=REPS)
    assert above == Estimate(1.0, 1.0, 1.0)
    assert above.has_interval


SCORES = draw("different", 6, 3, np.random.default_rng(3))
OTHER = draw("different", 4, 3, np.random.default_rng(4))

#: All functions that draw bootstrap samples.
CALLS = {
    "aggregates": lambda reps=REPS: list(aggregates(SCORES, reps=reps).values()),
    "interquartile mean": lambda reps=REPS: [interquartile_mean(SCORES, reps=reps)],
    "profile": lambda reps=REPS: performance_profile(SCORES, np.array([0.3, 0.6]), reps=reps),
    "improvement": lambda reps=REPS: [probability_of_improvement(SCORES, OTHER, reps=reps)],
}


def global_state():
    _, keys, *rest = np.random.get_state()
    return keys.tolist(), rest


@pytest.fixture
def drawn_from():
    """Set the global generator to an arbitrary state, and restore it afterwards."""
    state = np.random.get_state()
    np.random.seed(12345)
    # The generator stores every second normal number
    np.random.standard_normal(3)
    yield
    np.random.set_state(state)


@pytest.mark.parametrize("call", CALLS)
def test_global_generator_state_is_restored(call, drawn_from):
    before = global_state()
    CALLS[call]()
    assert global_state() == before
    assert before[1][1] == 1, "a normal number is kept for later"


@pytest.mark.parametrize("call", CALLS)
def test_global_generator_state_is_restored_after_an_exception(call, drawn_from, monkeypatch):
    def breaks(*given, **options):
        np.random.standard_normal(5)
        raise ArithmeticError("in the middle of a bootstrap")

    monkeypatch.setattr(statistics.library, "get_interval_estimates", breaks)
    before = global_state()
    with pytest.raises(ArithmeticError):
        CALLS[call]()
    assert global_state() == before


@pytest.mark.parametrize("call", CALLS)
def test_interval_does_not_depend_on_earlier_draws(call, drawn_from):
    first = CALLS[call]()
    np.random.standard_normal(7)
    for other in CALLS.values():
        other()
    assert CALLS[call]() == first
    assert CALLS[call](reps=10) != first, "the samples do not matter"


def test_single_run_has_no_interval():
    one, many = np.array([[0.1, 0.4, 0.7]]), SCORES
    estimates = [
        *aggregates(one, reps=REPS).values(),
        interquartile_mean(one, reps=REPS),
        *performance_profile(one, np.array([0.2, 0.5]), reps=REPS),
        probability_of_improvement(one, one, reps=REPS),
        probability_of_improvement(one, many, reps=REPS),
        probability_of_improvement(many, one, reps=REPS),
    ]
    for estimate in estimates:
        assert not estimate.has_interval
        assert math.isnan(estimate.low)
        assert math.isnan(estimate.high)
    # Estimates exist: median 0.4, IQM and mean 0.4, gap 0.6; two thirds above 0.2, one third above 0.5
    values = [estimate.value for estimate in estimates]
    assert values[:8] == pytest.approx([0.4, 0.4, 0.4, 0.6, 0.4, 2 / 3, 1 / 3, 0.5])


def test_interval_of_a_curve_stays_within_the_range_of_returns():
    returns = np.array([[500.0, 480.0], [500.0, 500.0], [500.0, 30.0], [500.0, 500.0]])
    mean, low, high = mean_band(returns)
    assert (mean.tolist(), low[0], high[0]) == ([500.0, 377.5], 500.0, 500.0)
    # The t-interval would extend to 751
    assert 30 <= low[1] < 377.5 < high[1] <= 500
    assert mean_band(returns)[1].tolist() == low.tolist()
    assert np.isnan(mean_band(returns[:1])[1:]).all()
