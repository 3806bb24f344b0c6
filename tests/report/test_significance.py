"""The exact test compared with enumeration and SciPy, and its rate of false positives."""

import re
import sys
from itertools import combinations, product
from math import comb
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from srl.report import significance
from srl.report.cells import group
from srl.report.comparison import compare_pairs, family_sizes
from srl.report.runs import Run
from srl.report.significance import ALPHA, best_of_rows, holm, p_value, share_above, smallest_p_value

ROOT = Path(__file__).resolve().parents[2]
NAN = float("nan")


def draw(n_runs, n_tasks, generator, *, levels=None):
    """Draw scores without ties, or with few levels."""
    if levels:
        return generator.integers(0, levels, (n_runs, n_tasks)).astype(float)
    return generator.normal(size=(n_runs, n_tasks))


def assignments(pooled, n_x):
    """Yield all assignments of the pooled scores of each environment to X and Y."""
    n_runs, n_tasks = pooled.shape
    choices = [list(choice) for choice in combinations(range(n_runs), n_x)]
    for chosen in product(choices, repeat=n_tasks):
        x = np.column_stack([pooled[rows, task] for task, rows in enumerate(chosen)])
        y = np.column_stack([np.delete(pooled[:, task], rows) for task, rows in enumerate(chosen)])
        yield x, y


def enumerated_p_value(x, y):
    pooled, observed = np.concatenate([x, y]), share_above(x, y)
    shares = np.array([share_above(*sides) for sides in assignments(pooled, len(x))])
    one_sided = np.mean(shares >= observed - 1e-9), np.mean(shares <= observed + 1e-9)
    return min(1.0, 2 * min(one_sided))


# p-values


@pytest.mark.parametrize("levels", [None, 2, 4])
@pytest.mark.parametrize(("n_x", "n_y"), [(2, 2), (3, 3), (5, 5), (2, 6), (4, 3)])
def test_p_value_in_one_environment_matches_scipy_permutation_test(n_x, n_y, levels):
    generator = np.random.default_rng([n_x, n_y, levels or 0])
    x, y = draw(n_x, 1, generator, levels=levels), draw(n_y, 1, generator, levels=levels)

    def statistic(a, b):
        return share_above(a[:, None], b[:, None])

    expected = scipy.stats.permutation_test((x[:, 0], y[:, 0]), statistic, n_resamples=np.inf)
    assert p_value(x, y) == pytest.approx(expected.pvalue, abs=1e-12)


@pytest.mark.parametrize(("n_x", "n_y"), [(10, 10), (30, 30), (7, 40)])
def test_p_value_without_ties_in_one_environment_matches_mann_whitney(n_x, n_y):
    generator = np.random.default_rng(n_y)
    x, y = generator.normal(0.3, size=(n_x, 1)), generator.normal(size=(n_y, 1))
    expected = scipy.stats.mannwhitneyu(x[:, 0], y[:, 0], method="exact").pvalue
    assert p_value(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("levels", [None, 2, 3])
@pytest.mark.parametrize(("n_x", "n_y", "n_tasks"), [(2, 2, 3), (3, 3, 2), (2, 3, 2)])
def test_p_value_in_several_environments_matches_enumeration(n_x, n_y, n_tasks, levels):
    generator = np.random.default_rng([n_x, n_y, n_tasks, levels or 0])
    for _ in range(5):
        x, y = draw(n_x, n_tasks, generator, levels=levels), draw(n_y, n_tasks, generator, levels=levels)
        assert p_value(x, y) == pytest.approx(enumerated_p_value(x, y), abs=1e-12)


def test_p_value_does_not_depend_on_sides_order_or_scale():
    generator = np.random.default_rng(0)
    x, y = draw(6, 3, generator, levels=5), draw(6, 3, generator, levels=5) + 1
    p = p_value(x, y)
    assert 0 < p < 0.5
    for same in (
        (y, x),
        (x[::-1], y),
        (x[:, ::-1], y[:, ::-1]),
        (np.exp(x) * [1, 9, 1e6], np.exp(y) * [1, 9, 1e6]),
    ):
        assert p_value(*same) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(("n", "n_tasks"), [(10, 2), (10, 4), (10, 9), (40, 9)])
def test_tiny_p_values_are_exact_or_the_error_of_the_fft(n, n_tasks):
    x = np.arange(n)[:, None] + np.zeros((n, n_tasks))
    y = x - n
    smallest = 2 / comb(2 * n, n) ** n_tasks if n < 40 else 1e-15
    assert p_value(x, y) == pytest.approx(smallest, rel=1e-9, abs=0)
    assert p_value(y, x) == pytest.approx(smallest, rel=1e-9, abs=0)


def test_second_smallest_p_value_is_exact_and_symmetric():
    # The lowest run of X and the highest of Y change places in one of four environments
    x = np.arange(10.0)[:, None] + np.zeros((10, 4))
    y = x - 10
    x[0, 0], y[-1, 0] = y[-1, 0], x[0, 0]
    # Such an outcome exists in each environment, and one is more extreme
    expected = 2 * (1 + 4) / comb(20, 10) ** 4
    assert p_value(x, y) == pytest.approx(expected, rel=1e-9, abs=0)
    assert p_value(y, x) == pytest.approx(expected, rel=1e-9, abs=0)


def test_equal_scores_have_a_p_value_of_1():
    assert p_value(np.full((5, 3), 500.0), np.full((5, 3), 500.0)) == 1.0


@pytest.mark.parametrize(("n_x", "n_y"), [(0, 5), (1, 5), (5, 1), (1, 1)])
def test_fewer_than_two_runs_have_no_p_value(n_x, n_y):
    x, y = np.arange(float(n_x))[:, None], np.arange(float(n_y))[:, None]
    assert np.isnan(p_value(x, y))
    assert np.isnan(smallest_p_value(n_x, n_y, 9))


def test_sampled_p_value_is_deterministic_and_close_to_exact(monkeypatch):
    generator = np.random.default_rng(1)
    x, y = draw(20, 3, generator, levels=9), draw(20, 3, generator, levels=9) + 0.8
    exact = p_value(x, y)
    monkeypatch.setattr(significance, "_MAX_OPERATIONS", 0)
    sampled = p_value(x, y)
    assert sampled == p_value(x, y) != exact
    # Four standard errors of the estimate
    assert sampled == pytest.approx(exact, abs=4 * np.sqrt(2 * exact / 9_999))
    # No estimate is 0: the observed scores are one of the permutations
    assert p_value(x + 100, y) == 2 / 10_000


def test_p_value_of_hundreds_of_seeds_matches_normal_approximation():
    generator = np.random.default_rng(2)
    x, y = generator.normal(0.1, size=(400, 2)), generator.normal(size=(400, 2))
    separate = [scipy.stats.mannwhitneyu(x[:, task], y[:, task]).statistic - 80_000 for task in range(2)]
    z = sum(separate) / np.sqrt(2 * 400 * 400 * 801 / 12)
    assert p_value(x, y) == pytest.approx(2 * scipy.stats.norm.sf(abs(z)), abs=0.02)


# Rate of false positives

PATTERNS = {
    "different": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    "half at the maximum": [0, 1, 2, 3, 4, 5, 5, 5, 5, 5],
    "most at the maximum": [0, 1, 5, 5, 5, 5, 5, 5, 5, 5],
    "two values": [0, 1, 0, 1, 0, 1, 0, 1, 0, 1],
    "equal": [5] * 10,
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    ("n_x", "n_y", "n_tasks"), [(2, 2, 1), (2, 2, 3), (3, 3, 2), (4, 4, 1), (5, 5, 1), (3, 6, 1)]
)
def test_p_value_is_at_most_a_level_no_more_often_than_the_level(n_x, n_y, n_tasks, pattern):
    pooled = np.array(PATTERNS[pattern][-(n_x + n_y) :], dtype=float)[:, None].repeat(n_tasks, axis=1)
    found = np.array([p_value(x, y) for x, y in assignments(pooled, n_x)])
    for level in (*np.unique(found), 0.01, ALPHA, 0.1):
        assert np.mean(found <= level + 1e-12) <= level + 1e-9


def compared(x, y):
    """Return the comparison of SPPO with PPO for these scores of shape (n_seeds, n_envs)."""
    runs = [
        Run(
            f"{env}/{algo}/{seed}",
            f"E{env}",
            algo,
            algo,
            "none",
            seed,
            32,
            "done",
            score,
            settings=(("algo", algo),),
        )
        for algo, scores in (("sppo", x), ("ppo", y))
        for seed, row in enumerate(scores.tolist())
        for env, score in enumerate(row)
    ]
    (comparison,) = compare_pairs(group(runs), reps=2)
    return comparison


@pytest.mark.parametrize("n_seeds", [2, 3, 4, 5])
def test_report_finds_differences_in_at_most_5_percent_of_assignments(n_seeds):
    pooled = np.arange(2.0 * n_seeds)[:, None]
    shown = [compared(x, y).overall.shown for x, y in assignments(pooled, n_seeds)]
    assert np.mean(np.abs(shown)) <= ALPHA
    assert sum(shown) == 0
    # If significance is attainable, it is reached when all runs of one side are higher
    assert any(shown) == (n_seeds >= 4)


# Multiple comparisons


@pytest.mark.parametrize(
    ("given", "adjusted"),
    [
        ([], []),
        ([0.03], [0.03]),
        # Multiplied by 4, 3, 2 and 1 in ascending order, and never below an earlier one
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.9], [1.0, 1.0]),
        # Comparisons without a test do not count
        ([0.02, NAN, 0.03], [0.04, NAN, 0.04]),
        ([NAN], [NAN]),
    ],
)
def test_holm_correction_matches_manual_calculation(given, adjusted):
    assert holm(given) == pytest.approx(adjusted, nan_ok=True)


def test_overall_and_per_environment_comparisons_are_separate_families():
    generator = np.random.default_rng(0)
    runs = [
        Run(
            f"{env}/{algo}/{noise}/{seed}",
            env,
            algo,
            algo,
            noise,
            seed,
            32,
            "done",
            score,
            settings=(("algo", algo),),
        )
        for algo in ("sppo", "ppo", "sa2c", "a2c")
        for noise in ("none", "flip:0.1")
        for env in ("ABC" if "p" in algo else "A")
        for seed, score in enumerate(generator.normal(algo == "sppo", size=6))
    ]
    found = compare_pairs(group(runs), reps=2)
    # SPPO over PPO with two noises in three environments each, and SA2C over A2C in one
    assert family_sizes(found) == (2, 8)
    overall = [one.overall for one in found if len(one.overall.tasks) > 1]
    single = [own for one in found for own in one.per_task.values()]
    for family in (overall, single):
        adjusted = holm([one.p_value for one in family])
        assert [one.adjusted_p_value for one in family] == adjusted
        assert [one.shown != 0 for one in family] == [p <= ALPHA for p in adjusted]
    # A comparison in only one environment counts once
    for one in found:
        if len(one.overall.tasks) == 1:
            assert one.overall == one.per_task[one.overall.tasks[0]]


def test_best_column_is_significant_against_all_others_and_corrected_for_rows():
    low, high, higher = (np.arange(5.0)[:, None] + shift for shift in (0, 10, 20))
    row = {"a": (2.0, low), "b": (12.0, high), "c": (22.0, higher)}
    # The smallest p-value of 5 and 5 runs is 2 / 252: significant with 6 rows but not with 7
    assert best_of_rows([row]) == ["c"]
    assert best_of_rows([row] * 6) == ["c"] * 6
    assert best_of_rows([row] * 7) == [None] * 7
    # Rows without a test do not count: those with one column or a single run
    assert best_of_rows([row] * 6 + [{"a": (2.0, low)}, {}, {"a": (2.0, low), "b": (10.0, high[:1])}]) == [
        *["c"] * 6,
        *[None] * 3,
    ]
    # One other column is not significantly lower
    assert best_of_rows([row | {"d": (21.0, higher - 1)}]) == [None]
    # The highest mean, but most runs are lower than those of the other column
    assert best_of_rows([{"a": (1e6, np.array([[0.0]] * 9 + [[1e7]])), "b": (1.0, np.ones((10, 1)))}]) == [
        None
    ]


@pytest.mark.parametrize("n_runs", [2, 3, 4, 5])
def test_equal_columns_have_a_best_one_in_at_most_5_percent(n_runs):
    pooled = np.arange(2.0 * n_runs)[:, None]
    found = [
        best_of_rows([{"a": (x.mean(), x), "b": (y.mean(), y)}]) != [None]
        for x, y in assignments(pooled, n_runs)
    ]
    assert np.mean(found) <= ALPHA


# Smallest attainable p-value


@pytest.mark.parametrize(("n_x", "n_y"), [(2, 2), (3, 3), (4, 4), (3, 6), (10, 10)])
def test_smallest_p_value_is_reached_if_all_scores_of_one_side_are_higher(n_x, n_y):
    x, y = np.arange(n_x) + 100.0, np.arange(n_y) + 0.0
    expected = scipy.stats.mannwhitneyu(x, y, alternative="two-sided", method="exact").pvalue
    assert smallest_p_value(n_x, n_y, 1) == pytest.approx(expected, rel=1e-12)
    assert p_value(x[:, None], y[:, None]) == pytest.approx(expected, rel=1e-12)


def test_smallest_p_value_of_several_tasks_matches_manual_calculation():
    # 3 of 6 can be chosen in 20 ways, one of which is the most extreme on each side: 2 / 20. In two tasks,
    # both must be extreme on the same side: 2 / (20 * 20)
    assert smallest_p_value(3, 3, 1) == pytest.approx(0.1)
    assert smallest_p_value(3, 3, 2) == pytest.approx(2 / 400)
    # 2 of 4 can be chosen in 6 ways: 2 / 36 exceeds 5%, 2 / 216 does not
    assert smallest_p_value(2, 2, 1) == pytest.approx(1 / 3)
    assert smallest_p_value(2, 2, 2) == pytest.approx(1 / 18)
    assert smallest_p_value(2, 2, 3) == pytest.approx(1 / 108)
    # The number of assignments exceeds the range of floats
    assert smallest_p_value(2000, 2000, 9) == 0


# Simulation


@pytest.fixture(scope="module")
def simulation():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import simulate_false_positives

        yield simulate_false_positives
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.mark.parametrize(("n_seeds", "n_envs"), [(2, 9), (3, 2), (5, 1), (5, 3), (10, 1)])
@pytest.mark.parametrize("scores", ["normal", "skewed", "tied", "shared_streams"])
def test_simulated_equal_algorithms_differ_in_at_most_5_percent(scores, n_seeds, n_envs, simulation):
    n = 300
    rates = simulation.simulate(getattr(simulation, scores), n_seeds, n_envs, n)
    # Tolerance: three standard errors of 1,200 comparisons and of 300 families
    assert rates.simulated <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / (4 * n))
    assert rates.simulated_family <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / n)
    assert max(rates.exact, rates.exact_family) <= ALPHA
    if scores != "shared_streams":
        assert rates.simulated == pytest.approx(rates.exact, abs=3 * np.sqrt(ALPHA * (1 - ALPHA) / (4 * n)))


def documented(title):
    """Return the cells of a table in docs/reports.md by (seeds, environments)."""
    text = (ROOT / "docs" / "reports.md").read_text()
    head, _, *rows = re.search(re.escape(title) + r"[^|]*\n\n((?:\|.*\n)+)", text)[1].splitlines()
    envs = [int(number) for number in re.findall(r"(\d+) env", head)]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {(int(row[0]), n): cell for row in cells for n, cell in zip(envs, row[1:], strict=True)}


def test_documented_false_positive_rates_match_script_and_stay_below_5_percent(simulation, capsys):
    simulation.main(["--families", "1"])
    printed = capsys.readouterr().out
    text = (ROOT / "docs" / "reports.md").read_text()
    # Rates without ties are exact for any number of simulated families
    exact, *_, smallest = re.findall(r"(?:\|.*\n)+", printed)
    assert exact in text
    for cell, figures in documented("The smallest p-value").items():
        assert figures == simulation.attainable(*cell)
        assert f" {figures} " in smallest
    for title in ("Scores without ties", "Tied scores"):
        assert all(float(rate) <= 5.0 for text in documented(title).values() for rate in text.split(" / "))
