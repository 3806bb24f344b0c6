"""Learning and training curves, and scores of the last evaluations, compared with NumPy."""

import csv
import json
from contextlib import ExitStack
from itertools import product

import numpy as np
import pytest

from srl.report.cells import group
from srl.report.curves import (
    ENTROPY_LOSS,
    N_POINTS,
    SIGN_CHANGE,
    STEPS,
    learning_curve,
    read_training,
    training_curves,
)
from srl.report.runs import read_runs
from srl.report.source import Folders
from tests.report.made_runs import lay_down
from tests.small_runs import SMALL_WORDS, contents, srl


def only_cell(root, last=1):
    (cell,) = group(read_runs(root, last=last)[0])
    return cell


def curve_of(root, last=1):
    return learning_curve(only_cell(root, last))


def write_evaluations(directory, timesteps, results):
    """Replace the evaluations of a run."""
    np.savez(
        directory.path / "evaluations.npz",
        timesteps=np.asarray(timesteps),
        results=np.asarray(results, dtype=float),
        ep_lengths=np.ones(np.shape(results), dtype=int),
    )


def check_band(curve, values, rtol=1e-12):
    """Compare a curve with the mean and its exact bootstrap distribution over all resamples."""
    n = len(values)
    assert n <= 5
    resamples = np.array(list(product(range(n), repeat=n)))
    low, high = np.percentile(values[resamples].mean(axis=1), [2.5, 97.5], axis=0, method="inverted_cdf")
    np.testing.assert_allclose(curve.mean, values.mean(axis=0), rtol=rtol)
    # With two or three seeds, the bounds are minimum and maximum; with more, they are sampled
    tolerance = dict(rtol=rtol) if n < 4 else dict(rtol=0, atol=0.1 * (high - low).max())
    np.testing.assert_allclose(curve.low, low, **tolerance)
    np.testing.assert_allclose(curve.high, high, **tolerance)
    slack = max(rtol, 1e-12) * np.abs(values).max()
    assert (curve.low >= values.min(axis=0) - slack).all()
    assert (curve.high <= values.max(axis=0) + slack).all()


# Learning curves


def test_learning_curve_is_mean_and_bootstrap_interval_over_seeds(tmp_path):
    returns = np.random.default_rng(0).normal(100.0, 20.0, (4, 12, 3))
    for seed, own in enumerate(returns):
        lay_down(tmp_path, own, seed=seed, eval_freq=50)
    curve = curve_of(tmp_path)
    assert curve.steps.tolist() == [50.0 * n for n in range(1, 13)]
    check_band(curve, returns.mean(axis=2))
    assert (curve.n_seeds, curve.finished) == (4, True)


def test_learning_curve_matches_manual_calculation(tmp_path):
    # Two episodes per evaluation: means are 1 and 4 for one seed, 3 and 10 for the other
    lay_down(tmp_path, [[0, 2], [4, 4]], seed=0)
    lay_down(tmp_path, [[3, 3], [5, 15]], seed=1)
    curve = curve_of(tmp_path)
    assert curve.mean.tolist() == [2, 7]
    # Half of the resamples contain only one of the seeds
    assert (curve.low.tolist(), curve.high.tolist()) == ([1, 4], [3, 10])


def test_last_point_of_curve_is_the_score(tmp_path):
    for seed in range(3):
        lay_down(tmp_path, np.random.default_rng(seed).normal(size=(7, 4)), seed=seed, n_timesteps=1000)
    cell = only_cell(tmp_path)
    curve = learning_curve(cell)
    assert curve.steps[-1] == 1000
    assert curve.mean[-1] == pytest.approx(cell.mean, rel=1e-12)
    assert (curve.low[-1], curve.high[-1]) == pytest.approx((min(cell.values), max(cell.values)), rel=1e-12)


def test_single_seed_has_a_curve_without_interval(tmp_path):
    lay_down(tmp_path, [[1, 3], [5, 5]])
    curve = curve_of(tmp_path)
    assert curve.mean.tolist() == [2, 5]
    assert np.isnan([curve.low, curve.high]).all()
    assert curve.n_seeds == 1


def test_curve_uses_steps_shared_by_all_seeds(tmp_path):
    first = lay_down(tmp_path, [[0]] * 4, seed=0)
    second = lay_down(tmp_path, [[0]] * 4, seed=1)
    write_evaluations(first, [32, 64, 90, 96, 128], [[1], [2], [1000], [3], [4]])
    write_evaluations(second, [20, 64, 96, 100, 128], [[1000], [20], [30], [1000], [40]])
    curve = curve_of(tmp_path)
    assert curve.steps.tolist() == [64, 96, 128]
    assert curve.mean.tolist() == [11, 16.5, 22]
    assert curve.n_seeds == 2


def test_seeds_without_shared_steps_have_no_curve(tmp_path):
    write_evaluations(lay_down(tmp_path, [[0], [0]], seed=0), [10, 64], [[1], [2]])
    directory = lay_down(tmp_path, [[0], [0]], seed=1)
    write_evaluations(directory, [20, 65], [[1], [2]])
    assert curve_of(tmp_path) is None


@pytest.mark.parametrize("n", [1, 2, 99, 100, 101, 110, 199, 200, 250, 400, 777])
def test_long_curve_is_downsampled_to_means_of_neighbors(n, tmp_path):
    returns = np.random.default_rng(n).normal(size=(2, n, 1))
    for seed, own in enumerate(returns):
        lay_down(tmp_path, own, seed=seed, eval_freq=10, training={})
    curve = curve_of(tmp_path)
    means, steps = returns.mean(axis=2), 10.0 * np.arange(1, n + 1)
    assert len(curve.steps) == len(curve.mean) == len(curve.low) == min(n, N_POINTS)
    assert (np.diff(curve.steps) > 0).all()
    if n <= N_POINTS:
        assert curve.steps.tolist() == steps.tolist()
        check_band(curve, means)
        return
    # Each point is the mean of n // 100 neighbors, or of one more. Since steps are evenly spaced, the
    # position of a point, the mean of steps i to j, identifies its neighbors
    counts, start = [], 0
    for place, step in enumerate(curve.steps):
        middle = step / 10 - 1
        count = round(2 * (middle - start)) + 1
        own = means[:, start : start + count].mean(axis=1)
        assert curve.mean[place] == pytest.approx(own.mean(), rel=1e-9)
        assert (curve.low[place], curve.high[place]) == pytest.approx((own.min(), own.max()), rel=1e-9)
        counts.append(count)
        start += count
    assert start == n
    assert set(counts) <= {n // N_POINTS, n // N_POINTS + 1}
    weighted = np.average(curve.mean, weights=counts)
    assert weighted == pytest.approx(means.mean(), rel=1e-9)


def test_curve_with_twice_the_points_is_downsampled_to_pairwise_means(tmp_path):
    returns = np.random.default_rng(0).normal(size=(3, 2 * N_POINTS, 2))
    for seed, own in enumerate(returns):
        lay_down(tmp_path, own, seed=seed, eval_freq=10)
    curve = curve_of(tmp_path)
    means = returns.mean(axis=2).reshape(3, N_POINTS, 2).mean(axis=2)
    check_band(curve, means, rtol=1e-9)
    assert curve.steps.tolist() == [15.0 + 20 * n for n in range(N_POINTS)]
    assert curve.mean.mean() == pytest.approx(returns.mean(), rel=1e-9)


def test_negated_curve_has_negated_interval(tmp_path):
    for seed in range(2):
        lay_down(tmp_path, [[seed + 1.0], [seed + 5.0]], seed=seed)
    curve = curve_of(tmp_path)
    other = curve.negated()
    assert other.mean.tolist() == [-1.5, -5.5]
    assert (other.low.tolist(), other.high.tolist()) == ([-2.0, -6.0], [-1.0, -5.0])
    assert (other.steps.tolist(), other.n_seeds) == (curve.steps.tolist(), 2)


# Unfinished runs


def test_curve_of_running_runs_ends_at_the_slowest_run(tmp_path):
    common = dict(eval_freq=32, n_timesteps=320)
    with ExitStack() as trains:
        for seed, n in enumerate((5, 3)):
            directory = lay_down(
                tmp_path, [[seed + k] for k in range(n)], seed=seed, state="running", **common
            )
            trains.enter_context(directory.claimed(directory.read_spec(), keep=True))
        # One interrupted run, one without an evaluation, and one failed run
        lay_down(tmp_path, [[2 + k] for k in range(4)], seed=2, state="running", **common)
        directory = lay_down(tmp_path, [[9]], seed=3, state="running", **common)
        (directory.path / "evaluations.npz").unlink()
        lay_down(tmp_path, [[1000]], seed=4, state="failed", reason="broke", **common)
        cell = only_cell(tmp_path)
    assert [run.state for run in cell.runs] == ["running", "running", "interrupted", "interrupted", "failed"]
    curve = learning_curve(cell)
    assert curve.finished is False
    assert curve.n_seeds == 3
    assert curve.steps.tolist() == [32, 64, 96]
    # The k-th evaluation of seeds 0, 1 and 2 is k, 1 + k and 2 + k
    assert curve.mean.tolist() == [1, 2, 3]


def test_curve_uses_only_finished_runs_if_there_are_any(tmp_path):
    lay_down(tmp_path, [[1], [2], [3]], seed=0)
    lay_down(tmp_path, [[100]], seed=1, state="running", eval_freq=32, n_timesteps=96)
    lay_down(tmp_path, [[100], [100], [100]], seed=2, state="failed", reason="broke")
    curve = curve_of(tmp_path)
    assert (curve.finished, curve.n_seeds) == (True, 1)
    assert curve.mean.tolist() == [1, 2, 3]


def test_runs_without_evaluations_have_no_curve(tmp_path):
    lay_down(tmp_path, None, seed=0, state="running", eval_freq=32, n_timesteps=96)
    lay_down(tmp_path, [[1]], seed=1, state="failed", reason="broke", eval_freq=32, n_timesteps=96)
    cell = only_cell_of_any(tmp_path)
    assert learning_curve(cell) is None
    assert training_curves(cell, Folders(tmp_path).training) == ({}, [])


def only_cell_of_any(root):
    """Return the cell with an interrupted run; cells differ in the number of evaluation episodes."""
    cells = group(read_runs(root)[0])
    return next(cell for cell in cells if cell.count("interrupted"))


# Training curves


def log_of(rollouts):
    """Return SB3's log of these rollouts: the values of an update are in the row after its rollout."""
    names = [STEPS, "rollout/ep_rew_mean", SIGN_CHANGE, ENTROPY_LOSS]
    return "\n".join([",".join(names), *(",".join(map(str, row)) for row in rollouts), ""])


def training_of(root):
    return training_curves(only_cell(root), Folders(root).training)


def test_training_curves_are_means_of_logged_values_over_seeds(tmp_path):
    logs = np.random.default_rng(0).normal(20.0, 3.0, (3, 2, 5))
    for seed, (signs, entropies) in enumerate(logs):
        lay_down(
            tmp_path,
            [[0], [0]],
            n_timesteps=320,
            seed=seed,
            training={SIGN_CHANGE: signs.tolist(), ENTROPY_LOSS: entropies.tolist()},
        )
    curves, notes = training_of(tmp_path)
    assert notes == []
    assert set(curves) == {SIGN_CHANGE, ENTROPY_LOSS}
    for place, name in enumerate((SIGN_CHANGE, ENTROPY_LOSS)):
        # Updates at 64, 128, ... 320 are logged in the next row of a rollout or of an evaluation at 160 or
        # 320. The first of the two rows at 320 counts
        assert curves[name].steps.tolist() == [128, 160, 256, 320]
        # Training values are stored in single precision
        check_band(curves[name], logs[:, place, :4], rtol=1e-6)
        assert (curves[name].n_seeds, curves[name].finished) == (3, True)


def test_training_values_belong_to_the_steps_of_their_rows(tmp_path):
    directory = lay_down(tmp_path, [[0], [0]])
    rows = [(32, 1.5, "", ""), (64, 1.5, 10, -0.5), (96, "", 20, -0.25), (96, 2.5, "", ""), (128, "", "", -1)]
    (directory.path / "progress.csv").write_text(log_of(rows))
    curves, notes = training_of(tmp_path)
    assert notes == []
    assert curves[SIGN_CHANGE].steps.tolist() == [64, 96]
    assert curves[SIGN_CHANGE].mean.tolist() == [10, 20]
    assert curves[ENTROPY_LOSS].steps.tolist() == [64, 96, 128]
    assert curves[ENTROPY_LOSS].mean.tolist() == [-0.5, -0.25, -1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two seeds trained for 160 steps."""
    root = tmp_path_factory.mktemp("trained")
    for seed in (0, 1):
        words = ["--algo", "sppo", "--env", "CartPole-v1", "--seed", seed, "--timesteps", 160]
        outcome = srl("train", *words, "--out", root / str(seed), *SMALL_WORDS)
        assert outcome.status == 0, outcome.err
    return root


def test_training_curves_of_trained_runs_match_their_logs(trained):
    before = contents(trained)
    curves, notes = training_of(trained)
    assert notes == []
    for name in (SIGN_CHANGE, ENTROPY_LOSS):
        logged = []
        for seed in (0, 1):
            with (trained / str(seed) / "progress.csv").open() as file:
                logged.append(
                    {int(row[STEPS]): float(row[name]) for row in csv.DictReader(file) if row[name]}
                )
        assert len(logged[0]) >= 3
        assert logged[0].keys() == logged[1].keys()
        assert curves[name].steps.tolist() == list(logged[0])
        check_band(curves[name], np.array([list(own.values()) for own in logged]))
    # The entropy of two actions is at most log 2, and about log 2 at the start of training
    assert (curves[ENTROPY_LOSS].negated().mean <= np.log(2) + 1e-6).all()
    assert curves[ENTROPY_LOSS].negated().mean[0] == pytest.approx(np.log(2), abs=0.05)
    assert ((curves[SIGN_CHANGE].mean >= 0) & (curves[SIGN_CHANGE].mean <= 100)).all()
    assert contents(trained) == before


def test_learning_curve_of_trained_runs_matches_their_evaluations(trained):
    curve = curve_of(trained)
    results = [np.load(trained / str(seed) / "evaluations.npz") for seed in (0, 1)]
    assert curve.steps.tolist() == results[0]["timesteps"].tolist() == [32, 64, 96, 128, 160]
    check_band(curve, np.array([own["results"].mean(axis=1) for own in results]))


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_text(""),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "text instead of numbers": lambda file: file.write_text(log_of([(32, 1, "many", 2)])),
    "rows longer than the header": lambda file: file.write_text(log_of([(32, 1, 2, 3, 4), (64, 1, 2, 3, 4)])),
    "a row longer than the header": lambda file: file.write_text(
        log_of([(32, 1, 2, 3), (64, 1, 2, 3), (96, 1, 2, 3, 4)])
    ),
    "unterminated quote": lambda file: file.write_text(log_of([(32, 1, 2, 3), ('"64', 1, 2, 3)])),
    "binary data": lambda file: file.write_bytes(b"\xff\xfe\x00\x80" * 50),
    "no column of steps": lambda file: file.write_text(f"{SIGN_CHANGE}\n3\n"),
    "no known column": lambda file: file.write_text("a,b\n1,2\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_log_is_reported_and_excluded(damage, tmp_path):
    for seed in range(3):
        training = {SIGN_CHANGE: [10.0 * seed] * 2, ENTROPY_LOSS: [-1.0 * seed] * 2}
        lay_down(tmp_path, [[seed], [seed]], seed=seed, at=f"seed-{seed}", training=training)
    DAMAGES[damage](tmp_path / "seed-1" / "progress.csv")
    curves, notes = training_of(tmp_path)
    assert (set(curves[SIGN_CHANGE].mean), set(curves[ENTROPY_LOSS].mean)) == ({10.0}, {-1.0})
    assert curves[SIGN_CHANGE].n_seeds == curves[ENTROPY_LOSS].n_seeds == 2
    (note,) = notes
    assert note.startswith("seed-1: not in the curves of training figures, progress.csv: ")
    assert "\n" not in note
    assert len(note) < 300
    # The note does not depend on the location of the folder
    assert str(tmp_path) not in note
    # Its evaluations are still used
    assert curve_of(tmp_path).n_seeds == 3


def test_truncated_log_is_read_up_to_its_last_complete_row(tmp_path):
    directory = lay_down(tmp_path, [[0], [0]])
    whole = log_of([(32, 1, 2, 3), (64, 1, 4, 5), (96, 1, 6, 7)])
    (directory.path / "progress.csv").write_text(whole[: whole.index("96,1") + 3])
    curves, notes = training_of(tmp_path)
    assert notes == []
    assert curves[SIGN_CHANGE].steps.tolist() == [32, 64]
    assert curves[SIGN_CHANGE].mean.tolist() == [2, 4]


@pytest.mark.parametrize(("there", "missing"), [(SIGN_CHANGE, ENTROPY_LOSS), (ENTROPY_LOSS, SIGN_CHANGE)])
def test_never_logged_value_has_no_curve(there, missing, tmp_path):
    for seed in range(2):
        lay_down(tmp_path, [[0], [0]], seed=seed, training={there: [1.0, 2.0]})
    curves, notes = training_of(tmp_path)
    assert (list(curves), notes) == ([there], [])


def test_curve_uses_only_seeds_that_logged_the_value(tmp_path):
    lay_down(tmp_path, [[0], [0]], seed=0, training={SIGN_CHANGE: [8, 8], ENTROPY_LOSS: [-2, -2]})
    lay_down(tmp_path, [[0], [0]], seed=1, training={ENTROPY_LOSS: [-4, -4]})
    curves, _ = training_of(tmp_path)
    assert (curves[SIGN_CHANGE].n_seeds, curves[ENTROPY_LOSS].n_seeds) == (1, 2)
    assert set(curves[SIGN_CHANGE].mean) == {8}
    assert set(curves[ENTROPY_LOSS].mean) == {-3}


def test_run_without_updates_has_no_training_curves(tmp_path):
    lay_down(tmp_path, [[0], [0]], training={SIGN_CHANGE: [], ENTROPY_LOSS: []})
    assert training_of(tmp_path) == ({}, [])


def test_non_finite_values_are_excluded_from_training_curves(tmp_path):
    directory = lay_down(tmp_path, [[0], [0]])
    rows = [(32, 1, "nan", 1), (64, 1, 5, "inf"), ("", 1, 6, 6), (96, 1, 7, 7)]
    (directory.path / "progress.csv").write_text(log_of(rows))
    series = read_training(directory.path / "progress.csv")
    assert series[SIGN_CHANGE].steps.tolist() == [64, 96]
    assert series[SIGN_CHANGE].values.tolist() == [5, 7]
    assert series[ENTROPY_LOSS].steps.tolist() == [32, 96]
    assert series[ENTROPY_LOSS].values.tolist() == [1, 7]


def test_first_row_of_a_repeated_step_counts(tmp_path):
    directory = lay_down(tmp_path, [[0], [0]], seed=0)
    (directory.path / "progress.csv").write_text(log_of([(32, 1, 2, 2), (32, 1, 4, 4), (64, 1, 6, 6)]))
    series = read_training(directory.path / "progress.csv")[SIGN_CHANGE]
    assert series.steps.tolist() == [32, 64]
    assert series.values.tolist() == [2, 6]


def test_training_curves_of_running_runs_are_marked_and_end_at_the_slowest(tmp_path):
    for seed, n in enumerate((4, 2)):
        directory = lay_down(
            tmp_path, [[0]] * n, seed=seed, state="running", eval_freq=32, n_timesteps=320, training={}
        )
        rows = [(32 * k, 1, k + seed, -k) for k in range(1, n + 1)]
        (directory.path / "progress.csv").write_text(log_of(rows))
    curves, _ = training_of(tmp_path)
    assert curves[SIGN_CHANGE].finished is False
    assert curves[SIGN_CHANGE].steps.tolist() == [32, 64]
    assert curves[SIGN_CHANGE].mean.tolist() == [1.5, 2.5]


def test_long_log_is_downsampled_to_means_of_neighbors(tmp_path):
    directory = lay_down(tmp_path, [[0], [0]])
    rows = [(10 * k, 1, k % 7, -k) for k in range(1, 301)]
    (directory.path / "progress.csv").write_text(log_of(rows))
    curve = training_of(tmp_path)[0][SIGN_CHANGE]
    assert len(curve.steps) == N_POINTS
    figures = np.array([[step, signs] for step, _, signs, _ in rows], dtype=float)
    steps, mean = figures.reshape(N_POINTS, 3, 2).mean(axis=1).T
    np.testing.assert_allclose(curve.steps, steps)
    np.testing.assert_allclose(curve.mean, mean)


# Scores


@pytest.mark.parametrize(("last", "scores"), [(1, [8, 20]), (2, [6, 15]), (3, [14 / 3, 40 / 3])])
def test_score_is_mean_of_the_last_evaluations(last, scores, tmp_path):
    # Mean returns of the evaluations: 2, 4, 8 and 10, 10, 20
    lay_down(tmp_path, [[1, 3], [0, 8], [8, 8]], seed=0)
    lay_down(tmp_path, [[10, 10], [0, 20], [19, 21]], seed=1)
    cell = only_cell(tmp_path, last)
    assert cell.values == pytest.approx(scores, rel=1e-12)
    # The curve does not depend on the number of averaged evaluations
    assert learning_curve(cell).mean.tolist() == [6, 7, 14]


def test_run_with_too_few_evaluations_is_short_and_has_no_score(tmp_path):
    lay_down(tmp_path, [[1], [2], [3]], seed=0)
    short = lay_down(tmp_path, [[1], [2], [3]], seed=1)
    write_evaluations(short, [64, 96], [[5], [7]])
    assert [run.state for run in only_cell(tmp_path, 2).runs] == ["done", "done"]
    cell = only_cell(tmp_path, 3)
    assert [run.state for run in cell.runs] == ["done", "short"]
    assert cell.values == [2]
    assert "fewer than the 3 to average" in cell.runs[1].reason
    assert learning_curve(cell).n_seeds == 1


def test_last_option_sets_number_of_averaged_evaluations(tmp_path):
    lay_down(tmp_path / "runs", [[1, 3], [0, 8], [8, 8]])
    outcome = srl("report", tmp_path / "runs", "--last", 2, "--reps", 100, "--out", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    found = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert found["last"] == 2
    assert found["aggregates"][0]["columns"]["SPPO"]["scores"] == [[6.0]]
    assert [record["mean"] for record in found["table"]] == [6.0]
    assert "Mean return of the last 2 evaluations" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize("last", [0, -1])
def test_averaging_no_evaluations_is_rejected(last, tmp_path):
    lay_down(tmp_path, [[1], [2]])
    before = contents(tmp_path)
    outcome = srl("report", tmp_path, "--last", last)
    assert outcome.status == 2
    assert "at least one evaluation is needed" in outcome.err
    assert contents(tmp_path) == before


def test_incomplete_last_row_is_ignored(tmp_path):
    directory = lay_down(tmp_path, [[0], [0]])
    whole = log_of([(32, 1, 2, 3), (64, 1, 20, 5)])
    (directory.path / "progress.csv").write_text(whole[: whole.index("64,1,2") + 6])
    curves, _ = training_of(tmp_path)
    assert curves[SIGN_CHANGE].steps.tolist() == [32]
