"""Trends of differences over noise levels: the test and its place in reports."""

from __future__ import annotations

import csv
import shutil
from itertools import permutations, product

import numpy as np
import pytest
from scipy.stats import spearmanr

from srl.report import significance
from srl.report.report import make_report
from srl.report.significance import holm, trend_test
from srl.report.tables import noise_order
from srl.report.trends import noise_level
from tests.report.made_runs import lay_down
from tests.small_runs import srl

LEVELS = {"none": 0.0, "gaussian:0.1": 0.1, "gaussian:0.2": 0.2, "gaussian:0.4": 0.4}
ENV, OTHER = "CartPole-v1", "Acrobot-v1"


def enumerated(values):
    """Return Spearman's correlation and its two-sided p-value over all permutations within seeds."""
    levels = np.arange(values.shape[1])

    def correlation(orders):
        return spearmanr(np.concatenate(orders), values.ravel()).statistic

    orders = [np.array(order) for order in permutations(levels)]
    null = np.array([correlation(chosen) for chosen in product(orders, repeat=len(values))])
    observed = correlation([levels] * len(values))
    # Equal values can differ by rounding errors
    ends = (np.mean(null >= observed - 1e-12), np.mean(null <= observed + 1e-12))
    return observed, min(1.0, 2 * min(ends))


@pytest.mark.parametrize("shape", [(1, 4), (2, 3), (3, 3), (2, 4)], ids=str)
@pytest.mark.parametrize("n_distinct", [None, 3], ids=["no ties", "ties"])
def test_trend_test_matches_spearman_and_enumeration(shape, n_distinct):
    generator = np.random.default_rng(1)
    values = (
        generator.normal(size=shape) if n_distinct is None else generator.integers(n_distinct, size=shape)
    )
    correlation, p = trend_test(values.astype(float))
    expected = enumerated(values)
    assert correlation == pytest.approx(expected[0], abs=1e-12)
    assert p == pytest.approx(expected[1], abs=1e-12)


@pytest.mark.parametrize(
    ("n_seeds", "n_levels", "p"),
    [(1, 3, 2 / 6), (2, 3, 2 / 36), (3, 4, 2 / 24**3), (10, 5, 2 / 120**10), (20, 7, 1e-15)],
)
def test_monotonic_values_in_each_seed_have_the_smallest_p_value(n_seeds, n_levels, p):
    # Seeds have offsets; the test permutes only within seeds
    values = np.arange(n_levels, dtype=float) + 0.1 * np.arange(n_seeds)[:, None]
    assert trend_test(values) == (pytest.approx(spearmanr_of(values)), pytest.approx(p, rel=1e-9, abs=0))
    assert trend_test(-values) == (pytest.approx(-spearmanr_of(values)), pytest.approx(p, rel=1e-9, abs=0))


def spearmanr_of(values):
    levels = np.tile(np.arange(values.shape[1]), len(values))
    return spearmanr(levels, values.ravel()).statistic


def test_equal_values_have_no_trend():
    assert np.isnan(trend_test(np.ones((3, 4)))).all()


def test_sampled_p_value_of_many_levels_is_close_to_exact(monkeypatch):
    values = np.random.default_rng(0).normal(size=(4, 5)) + 0.3 * np.arange(5)
    exact = trend_test(values)
    monkeypatch.setattr(significance, "_MOST_EXACT_LEVELS", 4)
    sampled = trend_test(values)
    assert sampled == trend_test(values)
    assert sampled[0] == exact[0]
    assert 0.001 < exact[1] < 0.5
    assert sampled[1] == pytest.approx(exact[1], rel=0.2)


def test_trend_test_has_at_most_5_percent_false_positives():
    generator = np.random.default_rng(0)
    # Seeds differ in mean and spread
    values = generator.normal(size=(1000, 4, 1)) + generator.exponential(size=(1000, 4, 1)) * (
        generator.normal(size=(1000, 4, 4))
    )
    share = np.mean([trend_test(one)[1] <= 0.05 for one in values])
    assert 0.03 < share <= 0.06


def test_noise_level_is_the_parameter_of_the_noise():
    assert [noise_level(noise) for noise in ("none", "flip:0.1", "a:b")] == [
        ("none", 0.0),
        ("flip", 0.1),
        ("a:b", 0.0),
    ]


def test_noises_are_ordered_by_their_parameters():
    noises = ["none", "flip:0.1", "gaussian:1e-05", "gaussian:0.5", "gaussian:2.0", "gaussian:10.0"]
    assert sorted([*noises[3:], *noises[:3]], key=noise_order) == noises


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The difference of SPPO over PPO grows with the noise; that of SA2C over A2C does not."""
    root = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    for env in (ENV, OTHER):
        for noise, level in LEVELS.items():
            for algo in ("ppo", "sppo", "a2c", "sa2c"):
                for seed in range(5):
                    gain = 500 * level if algo == "sppo" else 0
                    returns = 100 + gain + generator.normal(scale=20, size=(2, 2))
                    lay_down(root, returns, env=env, algo=algo, noise=noise, seed=seed)
    lay_down(root, [[1.0, 1.0]] * 2, env=ENV, algo="ppo", noise="none", seed=9)
    variant = {"algo": "sppo", "variant": "sppo-beta=5", "overrides": {"beta": 5.0}}
    lay_down(root, [[1.0, 1.0]] * 2, env=OTHER, **variant)
    return root


def test_report_tests_the_trend_of_each_pair_in_each_environment(root):
    report = make_report(root, reps=100)
    found = {(one.task[0], one.name): one for one in report.trends}
    pairs = ("SPPO over PPO", "SA2C over A2C")
    assert set(found) == {(env, pair) for env in (ENV, OTHER) for pair in pairs}
    assert {(one.levels, one.seeds) for one in found.values()} == {((0.0, 0.1, 0.2, 0.4), (0, 1, 2, 3, 4))}
    assert {pair for (_, pair), one in found.items() if one.shown == 1} == {"SPPO over PPO"}
    assert {pair for (_, pair), one in found.items() if one.shown == 0} == {"SA2C over A2C"}
    adjusted = holm([one.p_value for one in report.trends])
    assert [one.adjusted_p_value for one in report.trends] == adjusted
    assert any(
        f"{pairs[0]} is shown to grow with gaussian noise in 2 ({OTHER} and {ENV})" in line
        for line in report.summary
    )
    (note,) = (line for line in report.notes if "trend of SPPO over PPO" in line)
    assert f"in {ENV}: seed 9, not finished under every noise" in note


def test_noises_of_equal_level_count_once(tmp_path):
    for noise in ("none", "flip:0", "flip:0.1", "flip:0.2"):
        for algo in ("ppo", "sppo"):
            for seed in range(3):
                if noise != "flip:0.2" or seed:
                    lay_down(tmp_path / noise, [[float(seed)]], algo=algo, noise=noise, seed=seed)
    (trend,) = make_report(tmp_path, reps=100).trends
    assert (trend.levels, trend.seeds) == ((0.0, 0.1, 0.2), (1, 2))
    shutil.rmtree(tmp_path / "flip:0.2")
    assert make_report(tmp_path, reps=100).trends == []


@pytest.mark.slow
def test_pairs_of_the_compare_option_form_the_family(root, tmp_path):
    words = ("--reps", 100, "--figures", "png", "--out", tmp_path, "--compare", "sppo:ppo")
    outcome = srl("report", root / OTHER, *words)
    assert outcome.status == 0, outcome.err
    with (tmp_path / "trend.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["environment"], row["noise"], row["column"], row["shown"]) == (OTHER, "gaussian", "SPPO", "1")
    assert row["adjusted_p_value"] == row["p_value"]
    with (tmp_path / "improvement.csv").open() as file:
        assert {row["column"] for row in csv.DictReader(file)} == {"SPPO"}
    page = (tmp_path / "report.html").read_text()
    figures = {
        f"trend/{OTHER}": f"{OTHER}: probability of improvement and noise",
        f"ablation/{OTHER}-beta": f"{OTHER}: final return and beta",
    }
    for path, caption in figures.items():
        assert (tmp_path / "figures" / f"{path}.png").exists()
        assert caption in page


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("sppo:ppo --format json", "--compare: no effect with --format json"),
        ("sppo", "must be COLUMN:BASELINE"),
        (":ppo", "must be COLUMN:BASELINE"),
        ("a:b:ppo", "no column 'a:b' to compare"),
        ("sppo:sppo", "must be COLUMN:BASELINE"),
        ("sppo:ppo ppo:sppo", "--compare sppo:ppo: tests the same as ppo:sppo. Remove one."),
        ("sppo:pppo", "no column 'pppo' to compare. Known: a2c, sa2c, ppo, sppo, sppo-beta=5. Did you mean"),
    ],
)
def test_invalid_pair_is_named_in_error(pair, says, root, tmp_path):
    outcome = srl("report", root, "--out", tmp_path / "out", "--compare", *pair.split())
    assert outcome.status == 2
    assert says in outcome.err
    assert not (tmp_path / "out").exists()
