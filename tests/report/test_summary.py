"""Summary sentences of a report and the numbers that they are based on."""

from itertools import product

import numpy as np
import pytest

from srl.report.cells import group
from srl.report.comparison import Comparison, Improvement, compare_pairs
from srl.report.intervals import Estimate
from srl.report.report import make_report
from srl.report.runs import read_runs
from srl.report.significance import smallest_p_value
from srl.report.summary import describe_runs, summarize
from tests.report.made_runs import finish, lay_down

REPS = 200
#: Parts that identify sentences.
COEFFICIENT = "the policy gradient of SPPO is PPO's times c = alpha + beta |z|"
FEW = "Some results use only"
UNFINISHED = "Not all runs are finished"
MANY = "A difference is called shown if its adjusted p-value is at most 0.05."


def summary(root):
    """Return all summary sentences on a folder except the first."""
    cells = group(read_runs(root)[0])
    return summarize(compare_pairs(cells, reps=REPS), cells)


def those_with(part, lines):
    return [line for line in lines if part in line]


def tasks(n):
    return tuple((env, 32) for env in "ABCDEFGHI"[:n])


def improved(figures, n_seeds, tasks):
    """Return an improvement from its value, adjusted p-value and optional interval."""
    value, p, low, high = (*figures, *[float("nan")] * 3)[:4]
    smallest = smallest_p_value(n_seeds, n_seeds, len(tasks))
    return Improvement(Estimate(value, low, high), n_seeds, tasks, p, p, smallest)


def compared(figures, *, n_seeds=10, n_tasks=3, noise="none", name="SPPO over PPO", per_task=None):
    """Return a comparison with that probability of improvement, adjusted p-value and interval."""
    symmetric, _, baseline = name.partition(" over ")
    own = {task: improved(one, n_seeds, (task,)) for task, one in (per_task or {}).items()}
    overall = None if figures is None else improved(figures, n_seeds, tasks(n_tasks))
    return Comparison(noise, symmetric, baseline, overall, own, (), tuple(range(n_seeds)))


#: Values in one environment: significantly higher, significantly lower, neither.
HIGHER, LOWER, NEITHER = (0.9, 0.01, 0.8, 1.0), (0.1, 0.01, 0.0, 0.2), (0.8, 0.051, 0.6, 1.0)


# Runs


def test_runs_are_counted_by_state(tmp_path):
    finish(tmp_path, "ppo", range(3))
    finish(tmp_path, "sppo", range(2), noise="flip:0.1")
    finish(tmp_path, "sppo", range(1), env="B")
    lay_down(tmp_path, [[0, 0]], algo="sppo", env="B", seed=1, state="failed", reason="broke")
    lay_down(tmp_path, [[0, 0]], algo="sppo", env="B", seed=2, state="running")
    lay_down(tmp_path, [[0, 0]], algo="sppo", env="B", seed=3, state="running")
    assert describe_runs(read_runs(tmp_path)[0], ["PPO", "SPPO"]) == (
        "6 of 9 runs are finished (2 interrupted, 1 failed): PPO and SPPO on 2 environments, without noise "
        "and with noise flip:0.1, with 4 seeds."
    )


def test_summary_of_a_finished_sweep_mentions_no_unfinished_runs(tmp_path):
    for algo in ("ppo", "sppo", "a2c"):
        finish(tmp_path, algo, {5: 1.0})
    assert describe_runs(read_runs(tmp_path)[0], ["A2C", "PPO", "SPPO"]) == (
        "3 of 3 runs are finished: A2C, PPO and SPPO on 1 environment, without noise, with 1 seed."
    )


def test_summary_starts_with_runs_followed_by_comparisons(tmp_path):
    finish(tmp_path, "sppo", {seed: 100 + seed for seed in range(4)})
    finish(tmp_path, "ppo", range(4))
    first, *rest = make_report(tmp_path, reps=REPS).summary
    assert first.startswith("8 of 8 runs are finished: PPO and SPPO on 1 environment")
    assert rest == summary(tmp_path)


# Verdicts


@pytest.mark.parametrize(
    ("comparison", "sentence"),
    [
        (
            compared((0.8, 0.0123, 0.6, 0.95), n_tasks=1),
            "Without noise, SPPO scores higher than PPO: a run of SPPO scores above one of PPO with "
            "probability 0.80 (95% interval 0.60 to 0.95; adjusted p = 0.012; A, 10 seeds each).",
        ),
        (
            compared((0.2, 0.00001, 0.1, 0.45), noise="flip:0.1", n_tasks=1),
            "With noise flip:0.1, SPPO scores lower than PPO: a run of SPPO scores above one of PPO with "
            "probability 0.20 (95% interval 0.10 to 0.45; adjusted p < 0.0001; A, 10 seeds each).",
        ),
        (
            # An interval that excludes 0.5 is not enough
            compared((0.7, 0.0501, 0.51, 0.85), name="DSA2C over DA2C"),
            "Without noise, no difference between DSA2C and DA2C is shown: a run of DSA2C scores above one "
            "of DA2C with probability 0.70 (95% interval 0.51 to 0.85; adjusted p = 0.0501; 3 environments, "
            "10 seeds each).",
        ),
        (
            compared((1.0, 0.1, 1.0, 1.0), n_seeds=3, n_tasks=1),
            "Without noise, SPPO and PPO have too few runs to show a difference: a run of SPPO scores above "
            "one of PPO with probability 1.00 (95% interval 1.00 to 1.00; adjusted p = 0.1; A, 3 seeds "
            "each).",
        ),
        (
            compared((0.0,), n_seeds=1, n_tasks=9),
            "Without noise, SPPO and PPO have too few runs to show a difference: a run of SPPO scores above "
            "one of PPO with probability 0.00 (9 environments, 1 seed each).",
        ),
        (
            compared(None),
            "Without noise, SPPO and PPO have no seed and environment in common that both have finished.",
        ),
    ],
    ids=["higher", "lower", "no difference", "too few runs", "one seed", "nothing in common"],
)
def test_sentence_follows_from_the_p_value(comparison, sentence):
    assert summarize([comparison], []) == [sentence]


@pytest.mark.parametrize(
    ("overall", "single", "says"),
    [
        (
            HIGHER,
            [HIGHER, NEITHER, HIGHER],
            "SPPO scores higher than PPO over 3 environments together, and in 2 of",
        ),
        (
            LOWER,
            [HIGHER, NEITHER, LOWER],
            "SPPO scores lower than PPO over 3 environments together, and in 1 of",
        ),
        (
            HIGHER,
            [NEITHER] * 3,
            "a difference between SPPO and PPO is shown over 3 environments together, but in none of them "
            "alone: ",
        ),
        (
            LOWER,
            [NEITHER, NEITHER, HIGHER],
            "a difference between SPPO and PPO is shown over 3 environments together, but the opposite is "
            "shown in some of them: ",
        ),
    ],
)
def test_headline_over_environments_counts_significant_environments(overall, single, says):
    found = dict(zip(tasks(3), single, strict=True))
    headline = summarize([compared(overall, per_task=found)], [])[0]
    assert headline.startswith(f"Without noise, {says}")
    assert ("higher" in headline or "lower" in headline) == (" and in " in headline)


@pytest.mark.parametrize(
    ("sppo", "ppo", "says"),
    [
        (range(100, 105), range(5), "SPPO scores higher than PPO"),
        (range(5), range(100, 105), "SPPO scores lower than PPO"),
        (range(5), range(5), "no difference between SPPO and PPO is shown"),
        (range(100, 103), range(3), "too few runs to show a difference"),
        ({0: 100}, {0: 0}, "too few runs to show a difference"),
        # Only matched seeds are compared: two of each
        ({0: 100, 1: 101}, range(30), "too few runs to show a difference"),
    ],
)
def test_sentence_follows_from_the_scores(sppo, ppo, says, tmp_path):
    finish(tmp_path, "sppo", sppo if isinstance(sppo, dict) else dict(enumerate(sppo)))
    finish(tmp_path, "ppo", ppo if isinstance(ppo, dict) else dict(enumerate(ppo)))
    first, *others = summary(tmp_path)
    assert says in first
    for other in ("higher", "lower", "no difference", "too few runs"):
        assert (other in first) == (other in says)
    assert not any(part in line for line in others for part in ("SPPO scores", "no difference"))


def test_headline_does_not_say_higher_if_no_environment_is_significant(tmp_path):
    # The smallest p-value of three seeds is 2 / 400 in two environments, and 2 / 20 in each of them
    for env in "AB":
        finish(tmp_path, "sppo", {seed: 100 + seed for seed in range(3)}, env)
        finish(tmp_path, "ppo", range(3), env)
    headline, alone, *_ = summary(tmp_path)
    assert headline.startswith(
        "Without noise, a difference between SPPO and PPO is shown over 2 environments together, but in none "
        "of them alone: a run of SPPO scores above one of PPO with probability 1.00 (95% interval 1.00 to "
        "1.00; adjusted p = 0.005; 2 environments, 3 seeds each)."
    )
    assert "higher" not in headline
    assert alone.endswith("and neither in 2 (A and B). 2 of them have too few runs to show a difference.")


def test_equal_scores_are_not_significant_with_many_runs(tmp_path):
    for algo in ("sppo", "ppo"):
        for env in "ABC":
            finish(tmp_path, algo, range(12), env)
    lines = summary(tmp_path)
    assert "no difference between SPPO and PPO is shown" in lines[0]
    assert "probability 0.50" in lines[0]
    assert lines[1].endswith("higher than PPO in 0, lower in 0, and neither in 3 (A, B and C).")


def test_one_seed_in_many_environments_has_no_interval(tmp_path):
    for env in "ABCDEF":
        finish(tmp_path, "sppo", {0: 1}, env)
        finish(tmp_path, "ppo", {0: 0}, env)
    first = summary(tmp_path)[0]
    assert "probability 1.00 (6 environments, 1 seed each)" in first
    # There is no interval that contains 0.5
    assert "within it" not in first


# Environments


def test_environments_are_counted_by_significance():
    single = [HIGHER, NEITHER, LOWER, *[NEITHER] * 4, HIGHER, HIGHER]
    found = dict(zip(tasks(9), single, strict=True))
    (_, line, caveat) = summarize([compared((0.6, 0.3, 0.4, 0.8), n_tasks=9, per_task=found)], [])
    assert line == (
        "By environment, without noise: of 9, SPPO is shown to score higher than PPO in 3 (A, H and I), "
        "lower in 1 (C), and neither in 5."
    )
    assert caveat == (
        f"{MANY} P-values are adjusted by Holm's method, separately for 1 comparison over several "
        "environments and 9 comparisons in one environment."
    )


def test_environment_with_several_lengths_is_named_with_its_lengths():
    found = {("A", 32): HIGHER, ("A", 64): LOWER}
    line = summarize([compared((0.5, 1.0, 0.3, 0.7), per_task=found)], [])[1]
    assert "higher than PPO in 1 (A (32 steps)), lower in 1 (A (64 steps)), and neither in 0." in line


def test_single_environment_is_not_counted_separately():
    lines = summarize([compared(HIGHER, n_tasks=1, per_task={("A", 32): HIGHER})], [])
    assert len(lines) == 1


# Noise


def noise_lines(*comparisons):
    return those_with("The probability of improvement of", summarize(comparisons, []))


def test_improvement_with_noise_is_reported_next_to_the_one_without_noise(tmp_path):
    finish(tmp_path, "sppo", {seed: 100 + seed for seed in range(5)})
    finish(tmp_path, "ppo", range(5))
    finish(tmp_path, "sppo", range(5), noise="flip:0.1")
    finish(tmp_path, "ppo", {seed: 100 + seed for seed in range(5)}, noise="flip:0.1")
    (line,) = those_with("The probability of improvement of", summary(tmp_path))
    assert line == (
        "The probability of improvement of SPPO over PPO is 0.00 [0.00, 0.00] with noise flip:0.1 and 1.00 "
        "[1.00, 1.00] without noise. Whether the two differ is not tested."
    )


def test_each_noise_and_pair_is_compared_with_its_own_runs_without_noise():
    lines = noise_lines(
        compared((0.2,)),
        compared((0.8,), name="SA2C over A2C"),
        compared((0.5,), noise="flip:0.1"),
        compared((0.6,), noise="flip:0.1", name="SA2C over A2C"),
        compared((0.7,), noise="flip:0.2"),
    )
    assert [line.partition(" of improvement of ")[2].partition(" noise.")[0] for line in lines] == [
        "SPPO over PPO is 0.50 with noise flip:0.1 and 0.20 without",
        "SA2C over A2C is 0.60 with noise flip:0.1 and 0.80 without",
        "SPPO over PPO is 0.70 with noise flip:0.2 and 0.20 without",
    ]


@pytest.mark.parametrize(
    "comparisons",
    [
        [compared((0.8, 0.7, 0.9), noise="flip:0.1")],
        [compared((0.8, 0.7, 0.9))],
        [compared((0.2, 0.1, 0.3)), compared(None, noise="flip:0.1")],
        [compared(None), compared((0.8, 0.7, 0.9), noise="flip:0.1")],
        [compared((0.2, 0.1, 0.3), name="SA2C over A2C"), compared((0.8, 0.7, 0.9), noise="flip:0.1")],
    ],
    ids=["no noise-free runs", "no noise", "no match with noise", "no match without noise", "another pair"],
)
def test_noise_is_not_mentioned_without_matching_runs(comparisons):
    assert noise_lines(*comparisons) == []


# Caveats


@pytest.mark.parametrize(
    ("n_seeds", "says"),
    [
        (1, "1 seed. Bootstrap intervals of few seeds are too narrow: a single run has none at all."),
        (2, "2 seeds. Bootstrap intervals of few seeds are too narrow: a 95% interval of 2 normally "
            "distributed scores holds their true interquartile mean in about 49 of 100 cases."),
        (5, "5 seeds. Bootstrap intervals of few seeds are too narrow: a 95% interval of 5 normally "
            "distributed scores holds their true interquartile mean in about 89 of 100 cases."),
        # The coverage of 6 seeds is not known; that of 5 is given instead
        (6, "6 seeds. Bootstrap intervals of few seeds are too narrow: a 95% interval of 5 normally"),
        (9, "9 seeds. Bootstrap intervals of few seeds are too narrow: a 95% interval of 7 normally"),
        (10, None),
        (12, None),
    ],
)  # fmt: skip
def test_few_seeds_are_reported(n_seeds, says, tmp_path):
    finish(tmp_path, "sppo", range(12))
    finish(tmp_path, "ppo", range(n_seeds))
    lines = those_with(FEW, summary(tmp_path))
    assert len(lines) == (says is not None)
    assert says is None or f"{FEW} {says}" in lines[0]


def test_few_shared_seeds_are_reported(tmp_path):
    finish(tmp_path, "sppo", range(10))
    finish(tmp_path, "ppo", range(5, 15))
    lines = summary(tmp_path)
    assert "A, 5 seeds each" in lines[0]
    assert len(those_with(f"{FEW} 5 seeds.", lines)) == 1


def test_unfinished_runs_are_reported(tmp_path):
    for algo in ("sppo", "ppo"):
        finish(tmp_path, algo, range(3))
    assert those_with(UNFINISHED, summary(tmp_path)) == []
    lay_down(tmp_path, [[0, 0]], algo="ppo", env="A", seed=3, state="failed", reason="broke")
    assert len(those_with(UNFINISHED, summary(tmp_path))) == 1


def test_correction_is_reported_for_several_comparisons(tmp_path):
    for algo in ("sppo", "ppo"):
        finish(tmp_path, algo, range(3), "A")
    assert those_with(MANY, summary(tmp_path)) == []
    for algo in ("sppo", "ppo"):
        finish(tmp_path, algo, range(3), "B")
    (line,) = those_with(MANY, summary(tmp_path))
    assert line.endswith("for 1 comparison over several environments and 2 comparisons in one environment.")


@pytest.mark.parametrize(
    ("sppo", "ppo", "same"),
    [
        # alpha + beta |z| compared with alpha: 0.5 + 1 * 1 and 1
        ({}, {}, False),
        ({}, {"alpha": 1.5}, True),
        ({"beta": 20.0}, {"alpha": 1.5}, False),
        ({"beta": 20.0}, {"alpha": 20.5}, True),
        # 0.5 + 2 * 0.25 and 0 + 0.5 * 2 are 1
        ({"beta": 2.0, "z": -0.25}, {}, True),
        ({"alpha": 0.0, "beta": 0.5, "z": -2.0}, {}, True),
        ({"beta": 2.0, "z": -0.5}, {}, False),
        # The gradient of the mean absolute error is twice PPO's for any z: 0.5 + 2 * 0.25
        ({"reverse_loss": "mae", "beta": 0.25}, {}, True),
        ({"reverse_loss": "mae", "beta": 0.5}, {}, False),
        # Floating point: 0.1 + 0.2 is not 0.3
        ({"alpha": 0.1, "beta": 0.2}, {"alpha": 0.3}, True),
        # Without importance weighting the gradient is not a multiple of PPO's
        ({"importance_weighting": False}, {}, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", ["", "d"])
def test_different_policy_coefficient_is_reported(prefix, sppo, ppo, same, tmp_path):
    finish(tmp_path, f"{prefix}sppo", range(2), overrides=sppo)
    finish(tmp_path, f"{prefix}ppo", range(2), overrides=ppo)
    lines = those_with(COEFFICIENT, summary(tmp_path))
    assert len(lines) == (not same)
    if lines:
        name = f"{prefix.upper()}SPPO over {prefix.upper()}PPO"
        assert lines[0].startswith(f"{name}: {COEFFICIENT}, and the baseline here has another balance of c")


def test_different_policy_coefficient_in_one_environment_is_reported(tmp_path):
    for env, beta in (("A", 1.0), ("B", 2.0)):
        finish(tmp_path, "sppo", range(2), env, overrides={"beta": beta})
        finish(tmp_path, "ppo", range(2), env, overrides={"alpha": 1.5})
    assert len(those_with(COEFFICIENT, summary(tmp_path))) == 1


@pytest.mark.parametrize(("without", "noisy"), [(1.0, 1.5), (1.5, 1.0)])
def test_different_policy_coefficient_with_one_noise_is_reported(without, noisy, tmp_path):
    for noise, alpha in (("none", without), ("flip:0.1", noisy)):
        finish(tmp_path, "sppo", range(2), noise=noise)
        finish(tmp_path, "ppo", range(2), noise=noise, overrides={"alpha": alpha})
    assert len(those_with(COEFFICIENT, summary(tmp_path))) == 1


def test_only_pairs_with_different_policy_coefficients_are_named(tmp_path):
    finish(tmp_path, "sppo", range(2))
    for alpha in (1.0, 1.5):
        finish(tmp_path / str(alpha), "ppo", range(2), overrides={"alpha": alpha})
    (line,) = those_with(COEFFICIENT, summary(tmp_path))
    assert line.startswith(f"SPPO over PPO (alpha=1.0): {COEFFICIENT}")


def test_policy_coefficient_with_several_noises_is_reported_once(tmp_path):
    for noise in ("none", "flip:0.1"):
        for algo in ("sppo", "ppo"):
            finish(tmp_path, algo, range(2), noise=noise)
    (line,) = those_with(COEFFICIENT, summary(tmp_path))
    assert line.startswith(f"SPPO over PPO: {COEFFICIENT}")


def test_policy_coefficient_is_not_reported_without_comparisons(tmp_path):
    for algo in ("sa2c", "a2c"):
        finish(tmp_path, algo, range(2))
    finish(tmp_path, "sppo", {0: 1})
    finish(tmp_path, "ppo", {1: 1})
    assert those_with(COEFFICIENT, summary(tmp_path)) == []


# Runs of several lengths


def test_environment_with_several_lengths_has_a_caveat(tmp_path):
    for algo in ("ppo", "sppo"):
        for seed, at in product((0, 1), ("", "long/")):
            returns = [[seed, 0]] * (2 if at else 1)
            lay_down(tmp_path, returns, algo=algo, seed=seed, at=f"{at}{algo}-{seed}")
            lay_down(tmp_path, [[seed, 0]], algo=algo, seed=seed, env="B", at=f"{at}B-{algo}-{seed}")
        part = "runs of several lengths are counted as several environments"
        assert len(those_with(part, summary(tmp_path))) == (algo == "sppo")
    (line,) = those_with(part, summary(tmp_path))
    assert line.startswith("CartPole-v1: ")


# Nothing to compare


@pytest.mark.parametrize("algos", [["ppo"], ["sppo"], ["sppo", "a2c"], ["sppo", "dppo"]])
def test_runs_without_a_counterpart_are_not_compared(algos, tmp_path):
    for algo in algos:
        finish(tmp_path, algo, range(10))
    assert summary(tmp_path) == [
        "There are no finished runs of a column and of its baseline under the same noise: "
        "nothing is compared."
    ]


def test_counterparts_with_different_noise_are_not_compared(tmp_path):
    finish(tmp_path, "sppo", range(10), noise="flip:0.1")
    finish(tmp_path, "ppo", range(10))
    assert "nothing is compared" in summary(tmp_path)[0]


def test_unfinished_runs_are_not_compared(tmp_path):
    for algo in ("sppo", "ppo"):
        lay_down(tmp_path, [[0, 0]], algo=algo, env="A", state="failed", reason="broke")
    lines = summary(tmp_path)
    assert "nothing is compared" in lines[0]
    assert len(those_with(UNFINISHED, lines)) == 1
    assert those_with(FEW, lines) == []


def test_summary_contains_no_nan_or_none(tmp_path):
    generator = np.random.default_rng(0)
    for noise in ("none", "flip:0.1"):
        for algo in ("sppo", "ppo", "sa2c", "a2c"):
            for env, n in (("A", 1), ("B", 3)):
                finish(tmp_path, algo, dict(enumerate(generator.normal(size=n))), env, noise=noise)
    text = " ".join(make_report(tmp_path, reps=REPS).summary)
    assert "nan" not in text
    assert "None" not in text
