"""Comparisons of runs: matching, significance, and normalized scores over several environments."""

import json
import re

import numpy as np
import pytest
import yaml
from rliable import library, metrics

from srl.config.files import configs_dir
from srl.errors import UserError
from srl.report.aggregate import make_aggregates
from srl.report.cells import group, name_seeds
from srl.report.comparison import Improvement, compare_pairs, match
from srl.report.intervals import Estimate
from srl.report.normalization import check_normalization, find_scales, read_human_scores
from srl.report.runs import Run, read_runs
from srl.report.statistics import aggregates, performance_profile, probability_of_improvement
from srl.rundir.plan import PlannedRun
from tests.report.made_runs import finish, lay_down
from tests.small_runs import small_spec

REPS = 200


def cells_of(root, last=1):
    return group(read_runs(root, last=last)[0])


def compare(root, noise="none", last=1):
    """Return all comparisons with one noise, by name."""
    found = compare_pairs(cells_of(root, last), reps=REPS)
    return {comparison.name: comparison for comparison in found if comparison.noise == noise}


def made_run(env, algo, seed, score):
    """Return a finished run without a folder."""
    return Run(
        f"{env}/{algo}/{seed}", env, algo, algo, "none", seed, 32, "done", score, settings=(("algo", algo),)
    )


def aggregate(root, how="auto"):
    cells = cells_of(root)
    scales, notes = find_scales(cells, how)
    found, left_out = make_aggregates(cells, scales, reps=REPS)
    return found, notes + left_out


def matrix(*rows):
    return np.array(rows, dtype=float)


def by_hand(x, y):
    """Return the probability of improvement and its interval, computed by rliable."""
    np.random.seed(0)
    values, intervals = library.get_interval_estimates(
        {"it": [x, y]}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=REPS
    )
    return [values["it"][0], *intervals["it"].ravel()]


def figures(estimate):
    return [estimate.value, estimate.low, estimate.high]


# Matching


def test_seeds_missing_on_one_side_are_excluded_and_reported(tmp_path):
    finish(tmp_path, "sppo", {seed: 10 * seed for seed in range(6)})
    finish(tmp_path, "ppo", {0: 5, 1: 15, 2: 12, 3: 1, 9: 1000})
    found = compare(tmp_path)["SPPO over PPO"]
    assert found.seeds == (0, 1, 2, 3)
    assert set(found.left_out) == {
        "A: seeds 4, 5, not finished with PPO",
        "A: seed 9, not finished with SPPO",
    }
    assert (found.overall.n_seeds, found.overall.tasks) == (4, (("A", 32),))
    expected = by_hand(matrix([0], [10], [20], [30]), matrix([5], [15], [12], [1]))
    assert figures(found.overall.estimate) == pytest.approx(expected, rel=1e-12)
    # With a single environment, both estimates use the same runs
    assert found.per_task == {("A", 32): found.overall}


def test_environment_missing_on_one_side_is_excluded_and_reported(tmp_path):
    for env in "AB":
        finish(tmp_path, "sppo", range(4), env)
    finish(tmp_path, "ppo", range(4), "B")
    finish(tmp_path, "ppo", range(4), "C")
    found = compare(tmp_path)["SPPO over PPO"]
    assert found.overall.tasks == (("B", 32),)
    assert list(found.per_task) == [("B", 32)]
    assert found.left_out == ("A: all seeds, none finished with PPO", "C: all seeds, none finished with SPPO")


def test_runs_of_different_lengths_are_not_compared(tmp_path):
    finish(tmp_path, "sppo", range(4), n_timesteps=32)
    finish(tmp_path, "ppo", range(4), n_timesteps=64)
    found = compare(tmp_path)["SPPO over PPO"]
    assert (found.overall, found.per_task, found.seeds) == (None, {}, ())
    assert found.left_out == (
        "A (32 steps): all seeds, none finished with PPO",
        "A (64 steps): all seeds, none finished with SPPO",
    )


def test_same_environment_with_another_length_is_a_separate_task(tmp_path):
    for steps, better in ((32, 1), (64, -1)):
        finish(tmp_path / str(steps), "sppo", dict.fromkeys(range(4), better), n_timesteps=steps)
        finish(tmp_path / str(steps), "ppo", dict.fromkeys(range(4), 0), n_timesteps=steps)
    found = compare(tmp_path)["SPPO over PPO"]
    assert found.overall.tasks == (("A", 32), ("A", 64))
    assert found.overall.estimate == Estimate(0.5, 0.5, 0.5)
    assert {task: own.estimate.value for task, own in found.per_task.items()} == {("A", 32): 1, ("A", 64): 0}


def test_runs_with_different_noise_are_not_compared(tmp_path):
    finish(tmp_path, "sppo", range(4), noise="flip:0.1")
    finish(tmp_path, "ppo", range(4), noise="flip:0.2")
    finish(tmp_path, "ppo", range(4))
    for noise in ("none", "flip:0.1", "flip:0.2"):
        assert compare(tmp_path, noise) == {}


def test_each_noise_is_compared_separately(tmp_path):
    for noise, better in (("none", 1), ("flip:0.1", -1)):
        finish(tmp_path, "sppo", dict.fromkeys(range(4), better), noise=noise)
        finish(tmp_path, "ppo", dict.fromkeys(range(4), 0), noise=noise)
    without, noisy = (compare(tmp_path, noise)["SPPO over PPO"] for noise in ("none", "flip:0.1"))
    assert (without.noise, without.overall.estimate.value) == ("none", 1.0)
    assert (noisy.noise, noisy.overall.estimate.value) == ("flip:0.1", 0.0)


def lay_damaged(root, **changes):
    directory = lay_down(root, [[0, 0], [99, 99]], **changes)
    file = directory.path / "evaluations.npz"
    file.write_bytes(file.read_bytes()[:100])


def lay_missing(root, **changes):
    planned = PlannedRun.of(small_spec(changes["algo"], seed=changes["seed"], n_timesteps=64))
    entry = {**vars(planned), "env": changes["env"], "path": "nowhere"}
    (root / "sweep.json").write_text(json.dumps({"format": 1, "runs": [entry]}))


UNFINISHED = {
    "failed": lambda root, **it: lay_down(root, [[0, 0], [99, 99]], state="failed", reason="broke", **it),
    "interrupted": lambda root, **it: lay_down(root, [[0, 0], [99, 99]], state="running", **it),
    "damaged": lay_damaged,
    "short": lambda root, **it: lay_down(root, [[99, 99]], n_timesteps=64, **it),
    "missing": lay_missing,
}


@pytest.mark.parametrize("state", UNFINISHED)
def test_runs_without_score_are_not_compared(state, tmp_path):
    for algo, seeds in (("sppo", (0, 1, 2)), ("ppo", (0, 2))):
        for seed in seeds:
            lay_down(tmp_path, [[0, 0], [seed, seed]], algo=algo, env="A", seed=seed, eval_freq=32)
    changes = {} if state == "missing" else {"eval_freq": 32}
    UNFINISHED[state](tmp_path, algo="ppo", env="A", seed=1, **changes)
    cells = cells_of(tmp_path, last=2)
    assert [cell.count(state) for cell in cells if cell.algo == "ppo"] == [1]
    found = compare(tmp_path, last=2)["SPPO over PPO"]
    assert found.seeds == (0, 2)
    assert found.left_out == ("A: seed 1, not finished with PPO",)


def test_running_run_is_not_compared(tmp_path):
    finish(tmp_path, "sppo", range(2))
    finish(tmp_path, "ppo", range(1))
    directory = lay_down(tmp_path, [[0, 0]], algo="ppo", env="A", seed=1, state="running")
    with directory.claimed(directory.read_spec(), keep=True):
        assert [cell.count("running") for cell in cells_of(tmp_path)] == [1, 0]
        found = compare(tmp_path)["SPPO over PPO"]
    assert found.seeds == (0,)
    assert found.left_out == ("A: seed 1, not finished with PPO",)


def test_disjoint_seeds_give_no_estimate_and_a_note(tmp_path):
    finish(tmp_path, "sppo", {0: 1, 1: 1})
    finish(tmp_path, "ppo", {2: 1, 3: 1})
    found = compare(tmp_path)["SPPO over PPO"]
    assert (found.overall, found.per_task, found.seeds) == (None, {}, ())
    assert set(found.left_out) == {
        "A: seeds 2, 3, not finished with SPPO",
        "A: seeds 0, 1, not finished with PPO",
    }
    made, notes = aggregate(tmp_path)
    assert made == []
    assert (
        "No aggregates, min-max normalized, without noise: no seed is finished with all of PPO, SPPO."
        in notes
    )


def test_missing_run_excludes_a_seed_instead_of_an_environment(tmp_path):
    for env, n in (("A", 10), ("B", 9), ("C", 10)):
        finish(tmp_path, "sppo", range(10), env)
        finish(tmp_path, "ppo", range(n), env)
    found = compare(tmp_path)["SPPO over PPO"]
    assert found.overall.tasks == (("A", 32), ("B", 32), ("C", 32))
    assert found.seeds == tuple(range(9))
    assert found.left_out == (
        "A: seed 9, not finished in all environments that are compared",
        "B: seed 9, not finished with PPO",
        "C: seed 9, not finished in all environments that are compared",
    )
    # The estimate of one environment uses all seeds that both have finished there
    assert {env: own.n_seeds for (env, _), own in found.per_task.items()} == {"A": 10, "B": 9, "C": 10}


@pytest.mark.parametrize(
    ("begun", "envs", "n_seeds"),
    [(range(5), "ABC", 5), (range(4), "AB", 10), (range(5, 15), "ABC", 5), (range(6, 16), "AB", 10)],
    ids=str,
)
def test_environment_that_would_exclude_most_seeds_is_excluded(begun, envs, n_seeds, tmp_path):
    for algo in ("sppo", "ppo"):
        for env in "AB":
            finish(tmp_path, algo, range(10), env)
        finish(tmp_path, algo, begun, "C")
    found = compare(tmp_path)["SPPO over PPO"]
    assert [env for env, _ in found.overall.tasks] == list(envs)
    assert len(found.seeds) == found.overall.n_seeds == n_seeds
    assert found.per_task["C", 32].n_seeds == len(begun)
    # Excluded runs are reported: all of C, or the seeds that are not shared
    lacking = {"A": 10 - n_seeds, "B": 10 - n_seeds, "C": len(begun) - (n_seeds if "C" in envs else 0)}
    assert [line.partition(":")[0] for line in found.left_out] == [env for env in "ABC" if lacking[env]]


def test_reason_for_excluding_barely_started_environment_is_correct(tmp_path):
    for algo in ("sppo", "ppo"):
        finish(tmp_path, algo, range(10), "A")
        finish(tmp_path, algo, range(2), "B")
    found = compare(tmp_path)["SPPO over PPO"]
    assert found.seeds == tuple(range(10))
    (line,) = found.left_out
    assert line.startswith("B: seeds 0, 1")
    # Seeds 0 and 1 are finished in B and in A, the only environment that is compared
    assert "not finished in all environments that are compared" not in line


def seeds_in(line):
    """Return the seeds that a line names."""
    found = set()
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", line.partition(":")[2].partition(", not ")[0]):
        found |= set(range(int(first), int(last or first) + 1))
    return found


@pytest.mark.parametrize("number", range(30))
def test_every_finished_run_of_uneven_sweep_is_compared_or_reported(number):
    generator = np.random.default_rng(number)
    share = generator.uniform(0.3, 1.0, (3, 4))
    runs = [
        made_run(env, algo, seed, generator.normal())
        for row, algo in enumerate(("ppo", "sppo", "a2c"))
        for place, env in enumerate("ABCD")
        for seed in range(8)
        if generator.random() < share[row, place]
    ]
    sides = {}
    for cell in group(runs):
        sides.setdefault(cell.column, {})[cell.env, cell.n_timesteps] = cell
    matched = match(sides)
    done = {(run.algo.upper(), run.env, run.seed): run.score for run in runs}
    shared = {
        env: {seed for seed in range(8) if all((column, env, seed) in done for column in sides)}
        for env in "ABCD"
    }
    most = max(map(len, shared.values()))
    envs = [env for env, _ in matched.tasks]
    assert envs == sorted(envs)
    assert bool(matched) == bool(envs) == (most > 0)
    # All seeds that these environments share, sorted, with their scores
    assert (
        matched.seeds
        == tuple(sorted(set(range(8)).intersection(*(shared[env] for env in envs))))[: 8 * len(envs)]
    )
    for column, scores in matched.scores.items():
        assert scores.tolist() == [[done[column, env, seed] for env in envs] for seed in matched.seeds]
    # At least half of the median number of seeds, and no environment is excluded without need
    enough = np.median([len(seeds) for seeds in shared.values() if seeds] or [1]) / 2
    if matched:
        assert len(matched.seeds) >= enough
    for env in set("ABCD") - set(envs):
        assert len(shared[env] & set(matched.seeds)) < max(enough, 1)
    # Finished runs that are not compared are reported
    for _, env, seed in done:
        if env in envs and seed in matched.seeds:
            continue
        lines = [line for line in matched.left_out if line.startswith(f"{env}: ")]
        assert any("all seeds, none finished with" in line or seed in seeds_in(line) for line in lines)
    # The order of the sides does not matter
    turned = match(dict(reversed(sides.items())))
    assert (turned.tasks, turned.seeds) == (matched.tasks, matched.seeds)
    assert set(turned.left_out) == set(matched.left_out)


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ({7}, "seed 7"),
        ({0, 1}, "seeds 0, 1"),
        ({0, 1, 2}, "seeds 0 to 2"),
        ({0, 1, 2, 3, 4, 7}, "seeds 0 to 4, 7"),
        ({10, 2, 9, 1, 0, 5}, "seeds 0 to 2, 5, 9, 10"),
        ({10000, 10001, 10002, 20000}, "seeds 10000 to 10002, 20000"),
    ],
)
def test_seeds_are_formatted_as_ranges(seeds, text):
    assert name_seeds(seeds) == text


# Pairs


def test_symmetric_algorithm_is_compared_with_its_matching_baseline(tmp_path):
    for algo in ("ppo", "sppo", "dppo", "dsppo", "a2c", "sa2c", "da2c", "dsa2c"):
        finish(tmp_path, algo, range(2))
    names = ["SA2C over A2C", "DSA2C over DA2C", "SPPO over PPO", "DSPPO over DPPO"]
    found = compare(tmp_path)
    assert list(found) == names
    assert [f"{one.column} over {one.baseline}" for one in found.values()] == names


@pytest.mark.parametrize("algos", [("sppo", "dppo"), ("sppo", "a2c"), ("sa2c", "da2c"), ("ppo", "a2c")])
def test_algorithms_that_differ_beyond_the_reverse_loss_are_not_compared(algos, tmp_path):
    for algo in algos:
        finish(tmp_path, algo, range(4))
    assert compare(tmp_path) == {}


def test_variants_of_both_sides_are_compared_pairwise(tmp_path):
    for beta in (1.0, 2.0):
        finish(tmp_path / f"{beta}", "sppo", dict.fromkeys(range(4), beta), overrides={"beta": beta})
    for alpha in (1.0, 1.5):
        finish(tmp_path / f"a{alpha}", "ppo", dict.fromkeys(range(4), alpha), overrides={"alpha": alpha})
    assert {name: found.overall.estimate.value for name, found in compare(tmp_path).items()} == {
        "SPPO (beta=1.0) over PPO (alpha=1.0)": 0.5,
        "SPPO (beta=2.0) over PPO (alpha=1.0)": 1.0,
        "SPPO (beta=1.0) over PPO (alpha=1.5)": 0.0,
        "SPPO (beta=2.0) over PPO (alpha=1.5)": 1.0,
    }


def lay_plan(root, *runs):
    """Write a plan of runs of 32 steps, given as (algorithm, environment, seed)."""
    planned = [PlannedRun(f"{env}/{algo}/none/seed-{s}", env, algo, "none", s, 32) for algo, env, s in runs]
    (root / "sweep.json").write_text(json.dumps({"format": 1, "runs": [vars(run) for run in planned]}))


@pytest.mark.parametrize("planned", [[], [("sppo", "D", 0)]], ids=["complete", "one pending environment"])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_variant_in_one_environment_does_not_split_other_runs(beta, planned, tmp_path):
    for env in "ABC":
        for algo in ("sppo", "ppo"):
            finish(tmp_path, algo, range(4), env)
    # Its folder sorts before or after the others
    finish(tmp_path / ("0" if beta < 1 else "z"), "sppo", range(4), "A", overrides={"beta": beta})
    lay_plan(tmp_path, *planned)
    found = compare(tmp_path)
    assert set(found) == {"SPPO over PPO", f"SPPO (beta={beta}) over PPO"}
    assert [env for env, _ in found["SPPO over PPO"].overall.tasks] == ["A", "B", "C"]
    assert [env for env, _ in found[f"SPPO (beta={beta}) over PPO"].overall.tasks] == ["A"]


def test_baseline_without_finished_run_forms_no_pair(tmp_path):
    finish(tmp_path, "sppo", range(4))
    for seed in range(4):
        lay_down(tmp_path, [[0.0]], algo="ppo", env="A", seed=seed, state="failed", reason="broke")
    assert compare(tmp_path) == {}


# Results of comparisons


def test_probability_of_improvement_matches_rliable_on_matched_runs(tmp_path):
    generator = np.random.default_rng(0)
    scores = {
        (algo, env): dict(enumerate(generator.integers(0, 20, 7).tolist()))
        for algo in ("sppo", "ppo")
        for env in "AB"
    }
    del scores["sppo", "A"][2], scores["ppo", "B"][6]
    # The order of folders does not matter
    for (algo, env), by_seed in reversed(scores.items()):
        finish(tmp_path, algo, dict(reversed(by_seed.items())), env)
    found = compare(tmp_path)["SPPO over PPO"]
    assert found.seeds == (0, 1, 3, 4, 5)
    x, y = (
        matrix(*([scores[algo, env][seed] for env in "AB"] for seed in found.seeds))
        for algo in ("sppo", "ppo")
    )
    assert figures(found.overall.estimate) == pytest.approx(by_hand(x, y), rel=1e-12)
    for env, seeds in (("A", (0, 1, 3, 4, 5, 6)), ("B", (0, 1, 2, 3, 4, 5))):
        x, y = (matrix(*([scores[algo, env][seed]] for seed in seeds)) for algo in ("sppo", "ppo"))
        own = found.per_task[env, 32]
        assert own.n_seeds == 6
        assert figures(own.estimate) == pytest.approx(by_hand(x, y), rel=1e-12)


@pytest.mark.parametrize(
    ("n_seeds", "envs", "shown"),
    [
        # If all scores are higher, the p-value is 1/3 with 2 seeds, 1/10 with 3, 1/35 with 4
        (2, "A", 0),
        (3, "A", 0),
        (4, "A", 1),
        # In two environments 1/18 (2 seeds) and 1/200 (3 seeds), in three 1/108 (2 seeds)
        (2, "AB", 0),
        (3, "AB", 1),
        (2, "ABC", 1),
        # One seed cannot be tested, regardless of the number of environments
        (1, "A", 0),
        (1, "ABCDEFG", 0),
    ],
)
def test_too_few_seeds_are_not_significant_even_if_all_scores_are_higher(n_seeds, envs, shown, tmp_path):
    for env in envs:
        finish(tmp_path, "sppo", {seed: 100 + seed for seed in range(n_seeds)}, env)
        finish(tmp_path, "ppo", range(n_seeds), env)
    overall = compare(tmp_path)["SPPO over PPO"].overall
    assert overall.estimate.value == 1.0
    assert overall.estimate.has_interval == (n_seeds > 1)
    assert overall.shown == shown
    assert overall.can_show == bool(shown)


@pytest.mark.parametrize(
    ("value", "adjusted", "shown"),
    [(0.7, 0.05, 1), (0.3, 0.05, -1), (0.9, 0.0501, 0), (0.1, 1.0, 0), (1.0, float("nan"), 0)],
)
def test_difference_is_significant_if_adjusted_p_value_is_at_most_5_percent(value, adjusted, shown):
    # Regardless of the interval
    for interval in ((value,), (value, 0.2, 0.9), (value, value, value)):
        assert Improvement(Estimate(*interval), 10, (("A", 32),), 0.001, adjusted, 0.001).shown == shown


def test_significance_is_corrected_for_number_of_comparisons(tmp_path):
    for env in "AB":
        finish(tmp_path, "sppo", {seed: 100 + seed for seed in range(4)}, env)
        finish(tmp_path, "ppo", range(4), env)
    found = compare(tmp_path)["SPPO over PPO"]
    for own in found.per_task.values():
        # The smallest p-value of 4 and 4 runs is 2 / 70: significant for one test but not for two
        assert (own.p_value, own.adjusted_p_value) == pytest.approx((2 / 70, 4 / 70))
        assert (own.smallest_p_value, own.can_show, own.shown) == (pytest.approx(4 / 70), False, 0)
    assert (found.overall.p_value, found.overall.shown) == (pytest.approx(2 / 4900), 1)


# Normalized scores


def test_aggregate_uses_normalized_scores_of_matched_runs(tmp_path):
    # Lowest and highest score, unmatched seeds included, are 0 and 20 in A, -100 and 100 in B
    finish(tmp_path, "ppo", {0: 0, 1: 5, 2: 10}, "A")
    finish(tmp_path, "sppo", {0: 10, 1: 15, 3: 20}, "A")
    finish(tmp_path, "ppo", {1: 0, 0: 50}, "B")
    finish(tmp_path, "sppo", {1: 100, 0: -100}, "B")
    (made,), notes = aggregate(tmp_path)
    assert (made.noise, made.kind) == ("none", "minmax")
    assert (made.matched.tasks, made.matched.seeds) == ((("A", 32), ("B", 32)), (0, 1))
    assert made.matched.scores["PPO"].tolist() == [[0, 50], [5, 0]]
    assert made.matched.scores["SPPO"].tolist() == [[10, -100], [15, 100]]
    ppo, sppo = matrix([0, 0.75], [0.25, 0.5]), matrix([0.5, 0], [0.75, 1])
    assert made.scores["PPO"] == pytest.approx(ppo)
    assert made.scores["SPPO"] == pytest.approx(sppo)
    assert made.figures == {
        "PPO": aggregates(made.scores["PPO"], reps=REPS),
        "SPPO": aggregates(made.scores["SPPO"], reps=REPS),
    }
    # Of 0, 0.5, 0.75 and 1: IQM 1.25 / 2, mean 2.25 / 4, optimality gap 1.75 / 4; task means 0.625 and 0.5
    values = {name: estimate.value for name, estimate in made.figures["SPPO"].items()}
    assert values == pytest.approx(dict(median=0.5625, iqm=0.625, mean=0.5625, optimality_gap=0.4375))
    assert made.profiles["SPPO"] == performance_profile(made.scores["SPPO"], made.thresholds, reps=REPS)
    assert (made.thresholds[0], made.thresholds[-1]) == (0, 1)
    where = "Left out of the aggregates, min-max normalized, without noise"
    assert {note for note in notes if note.startswith("Left out")} == {
        f"{where}: A: seed 3, not finished with PPO.",
        f"{where}: A: seed 2, not finished with SPPO.",
    }


def test_aggregate_compares_all_algorithms_on_the_same_runs(tmp_path):
    finish(tmp_path, "ppo", range(4))
    finish(tmp_path, "sppo", range(3))
    finish(tmp_path, "a2c", range(1, 4))
    (made,), _ = aggregate(tmp_path)
    assert made.matched.seeds == (1, 2)
    assert list(made.figures) == ["A2C", "PPO", "SPPO"]


@pytest.mark.parametrize(("begun", "kept"), [("A", False), ("AB", True), ("ABC", True)])
def test_algorithm_with_few_environments_does_not_exclude_others(begun, kept, tmp_path):
    for env in "ABCD":
        for algo in ("ppo", "sppo"):
            finish(tmp_path, algo, range(4), env)
    for env in begun:
        finish(tmp_path, "a2c", range(4), env)
    (made,), notes = aggregate(tmp_path)
    said = "without noise: A2C, which has few finished runs."
    assert any(note.startswith("Left out of the aggregates") and said in note for note in notes) != kept
    assert list(made.figures) == ["A2C", "PPO", "SPPO"][not kept :]
    assert [env for env, _ in made.matched.tasks] == list(begun if kept else "ABCD")
    assert made.matched.seeds == (0, 1, 2, 3)


def test_each_noise_has_an_aggregate_on_the_same_scale(tmp_path):
    finish(tmp_path, "ppo", {0: 0, 1: 2})
    finish(tmp_path, "ppo", {0: 4, 1: 8}, noise="flip:0.1")
    (without, noisy), _ = aggregate(tmp_path)
    assert (without.noise, noisy.noise) == ("none", "flip:0.1")
    assert without.scores["PPO"].ravel() == pytest.approx([0, 0.25])
    assert noisy.scores["PPO"].ravel() == pytest.approx([0.5, 1])
    assert without.thresholds.tolist() == noisy.thresholds.tolist() == np.linspace(0, 1, 101).tolist()


def read_atari():
    return yaml.safe_load((configs_dir() / "normalisation" / "atari.yml").read_text())["scores"]


def lone_cells(*envs, scores=(3.0, 8.0)):
    """Return one cell per environment, without folders."""
    runs = [made_run(env, "ppo", seed, score) for env in envs for seed, score in enumerate(scores)]
    return group(runs)


@pytest.mark.parametrize("name", ["{}NoFrameskip-v4", "ALE/{}-v5", "{}-v0", "{}Deterministic-v4"])
@pytest.mark.parametrize("how", ["auto", "human"])
def test_random_play_normalizes_to_0_and_human_score_to_1_in_every_game(name, how):
    games = read_atari()
    assert len(games) == 57
    scales, notes = find_scales(lone_cells(*map(name.format, games)), how)
    assert len(scales) == 57
    for game, (random, human) in games.items():
        scale = scales[name.format(game), 32]
        assert scale.kind == "human"
        between = (random + human) / 2
        assert scale.normalize(np.array([random, human, between])) == pytest.approx([0, 1, 0.5])
    assert not any("in no aggregate" in note for note in notes)


@pytest.mark.parametrize(
    ("game", "score", "normalized"),
    [
        # (401.2 - 1.7) / (30.5 - 1.7) of DQN in the Nature paper, and (18.9 + 20.7) / (14.6 + 20.7)
        ("Breakout", 401.2, 13.8715),
        ("Pong", 18.9, 1.1218),
        # Negative scores: (-10000 + 17098.1) / (-4336.9 + 17098.1)
        ("Skiing", -10000.0, 0.55622),
    ],
)
def test_human_normalized_score_matches_manual_calculation(game, score, normalized):
    scales, notes = find_scales(lone_cells(f"{game}NoFrameskip-v4"), "auto")
    (scale,) = scales.values()
    assert scale.normalize(np.array([score])) == pytest.approx([normalized], abs=1e-4)
    (note,) = notes
    assert note.startswith("Human-normalized: 0 is random play, 1 a human's score.")
    assert "arXiv 1511.06581" in note


def test_atari_games_and_other_environments_have_separate_aggregates(tmp_path):
    games = read_atari()
    for env, (low, high) in {
        "AlienNoFrameskip-v4": games["Alien"],
        "PongNoFrameskip-v4": games["Pong"],
        "A": (-5, 5),
        "B": (0, 1),
    }.items():
        finish(tmp_path, "ppo", {0: low, 1: low}, env)
        finish(tmp_path, "sppo", {0: high, 1: high}, env)
    made, _ = aggregate(tmp_path)
    assert [(one.kind, [env for env, _ in one.matched.tasks]) for one in made] == [
        ("human", ["AlienNoFrameskip-v4", "PongNoFrameskip-v4"]),
        ("minmax", ["A", "B"]),
    ]
    for one in made:
        assert one.figures["PPO"]["iqm"].value == pytest.approx(0.0, abs=1e-12)
        assert one.figures["SPPO"]["iqm"].value == pytest.approx(1.0)


def test_atari_game_without_human_score_is_not_aggregated_with_others(tmp_path):
    for env in ("AdventureNoFrameskip-v4", "CartPole-v1"):
        finish(tmp_path, "ppo", range(2), env)
    made, _ = aggregate(tmp_path)
    assert all(len(one.matched.tasks) == 1 for one in made)


def test_note_on_missing_aggregate_names_its_normalization(tmp_path):
    for algo, seed in (("ppo", 0), ("sppo", 1)):
        finish(tmp_path, algo, range(2), "AlienNoFrameskip-v4")
        finish(tmp_path, algo, {seed: seed}, "A")
    made, notes = aggregate(tmp_path)
    assert [(one.noise, one.kind) for one in made] == [("none", "human")]
    assert any("no seed is finished with all of PPO, SPPO" in note for note in notes)
    # An aggregate without noise exists
    assert not any(note.startswith("No aggregates, without noise:") for note in notes)


def test_min_max_uses_all_finished_runs_of_an_environment(tmp_path):
    finish(tmp_path, "ppo", {0: 10, 1: 20})
    finish(tmp_path, "sppo", {5: -30})
    finish(tmp_path, "a2c", {0: 70}, noise="flip:0.1")
    finish(tmp_path, "ppo", {0: 1000}, "B")
    finish(tmp_path, "ppo", {0: 2000}, n_timesteps=64)
    lay_down(tmp_path, [[9999]], env="A", algo="ppo", seed=7, state="failed", reason="broke")
    scales, notes = find_scales(cells_of(tmp_path), "auto")
    assert (scales["A", 32].kind, scales["A", 32].zero, scales["A", 32].one) == ("minmax", -30, 70)
    assert scales["A", 32].normalize(np.array([10.0, 20.0])) == pytest.approx([0.4, 0.5])
    assert scales["A", 64].zero == 2000
    assert any("These values change with the runs" in note for note in notes)


def test_equal_scores_normalize_to_0_with_a_note(tmp_path):
    for algo in ("ppo", "sppo"):
        finish(tmp_path, algo, {0: 7, 1: 7})
    (made,), notes = aggregate(tmp_path)
    assert [scores.tolist() for scores in made.scores.values()] == [[[0], [0]], [[0], [0]]]
    assert "A: all its scores are 7, which min-max normalization makes 0." in notes


def test_scores_are_unchanged_without_normalization(tmp_path):
    for env in ("AlienNoFrameskip-v4", "A"):
        finish(tmp_path, "ppo", {0: -3, 1: 700}, env)
    (made,), notes = aggregate(tmp_path, "none")
    assert made.kind == "none"
    assert made.scores["PPO"].tolist() == made.matched.scores["PPO"].tolist() == [[-3, -3], [700, 700]]
    assert (made.thresholds[0], made.thresholds[-1]) == (-3, 700)
    assert notes == []


def test_min_max_option_also_applies_to_atari_games(tmp_path):
    finish(tmp_path, "ppo", {0: 100, 1: 300}, "AlienNoFrameskip-v4")
    (made,), _ = aggregate(tmp_path, "minmax")
    assert made.kind == "minmax"
    assert made.scores["PPO"].ravel() == pytest.approx([0, 1])


def test_human_normalization_excludes_environment_without_human_score(tmp_path):
    for env in ("AlienNoFrameskip-v4", "Alien-ram-v4", "A"):
        finish(tmp_path, "ppo", range(2), env)
    (made,), notes = aggregate(tmp_path, "human")
    assert [env for env, _ in made.matched.tasks] == ["AlienNoFrameskip-v4"]
    for env in ("Alien-ram-v4", "A"):
        assert f"{env}: in no aggregate, since it has no human score." in notes


def test_probability_of_improvement_needs_no_normalization(tmp_path):
    # The comparison depends only on the order of scores
    finish(tmp_path, "sppo", {seed: 1e9 + seed for seed in range(4)}, "A")
    finish(tmp_path, "ppo", dict.fromkeys(range(4), -1e-09), "A")
    overall = compare(tmp_path)["SPPO over PPO"].overall
    assert overall.estimate == probability_of_improvement(np.ones((4, 1)), np.zeros((4, 1)), reps=REPS)


@pytest.mark.parametrize("how", ["auto", "human", "minmax", "none"])
def test_known_normalization_is_accepted(how):
    assert check_normalization(how) == how


@pytest.mark.parametrize("how", ["humans", "", "min-max", "None"])
def test_unknown_normalization_error_lists_valid_ones(how):
    with pytest.raises(UserError, match="auto, human, minmax, none"):
        check_normalization(how)


@pytest.mark.parametrize(
    "text", ["scores: {}\n", "a: [\n", "source: x\nscores: {Pong: [1]}\n", "source: x\nscores: 3\n", "[]\n"]
)
def test_malformed_human_score_file_is_named_in_error(text, tmp_path):
    (tmp_path / "atari.yml").write_text(text)
    with pytest.raises(UserError, match=r"atari\.yml"):
        read_human_scores(tmp_path)


@pytest.mark.parametrize(
    ("shared", "envs", "n_seeds"),
    [
        ({"A": range(25), "B": range(10), "C": range(10)}, "ABC", 10),
        ({"A": range(11), "B": range(20, 30), "C": range(20, 30), "D": range(20, 30)}, "BCD", 10),
        ({"A": range(5), "B": range(5), "C": range(1)}, "AB", 5),
        ({"A": range(5), "B": range(5), "C": range(4)}, "ABC", 4),
    ],
)
def test_maximum_number_of_environments_is_compared(shared, envs, n_seeds, tmp_path):
    for env, seeds in shared.items():
        for algo in ("sppo", "ppo"):
            finish(tmp_path, algo, seeds, env)
    found = compare(tmp_path)["SPPO over PPO"]
    assert "".join(env for env, _ in found.overall.tasks) == envs
    assert len(found.seeds) == n_seeds
