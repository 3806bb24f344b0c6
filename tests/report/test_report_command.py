"""``srl report`` with invalid options and unfinished sweeps."""

import fcntl
import json
import re
from itertools import product

import numpy as np
import pytest

from srl.config.spec import RunSpec
from srl.report.report import make_report
from srl.report.scores import read_scores
from srl.rundir.plan import read_comparisons
from srl.sweep.engines import Job
from srl.sweep.plan import Plan, write_plan
from tests.report.hostile import parse
from tests.report.made_runs import lay_down
from tests.small_runs import contents, small_spec, srl

RETURNS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


@pytest.fixture
def runs(tmp_path):
    """Four finished runs with three evaluations each."""
    for algo in ("ppo", "sppo"):
        for seed in (0, 1):
            lay_down(tmp_path / "runs", RETURNS, algo=algo, seed=seed)
    return tmp_path / "runs"


def refused(outcome, *words):
    """Check that a command failed with a clear error and without other output."""
    assert outcome.status == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--last", 0), ("--last 0", "at least one evaluation")),
        (("--last", -3), ("--last -3", "at least one evaluation")),
        (("--last", "all"), ("--last", "all")),
        (("--reps", 10), ("--reps 10", "at least 100")),
        (("--reps", 0), ("--reps 0", "at least 100")),
        (("--normalize", "foo"), ("--normalize foo", "human", "minmax", "none", "auto")),
        (("--normalize", "minimax"), ("--normalize minimax", "minmax")),
        (("--format", "foo"), ("foo", "--format", "page", "json", "parquet", "zoo")),
        (("--format", "json", "--format", "zoo"), ("--format", "2 times")),
        (("--outt", "x"), ("--outt",)),
    ],
    ids=str,
)
def test_invalid_option_is_named_and_nothing_is_written(words, expected, runs):
    before = contents(runs)
    refused(srl("report", runs, *words), *expected)
    assert contents(runs) == before


@pytest.mark.parametrize("kind", ["archive", "json", "parquet", "zoo"])
def test_options_of_the_page_are_rejected_with_other_formats(kind, runs):
    words = ("--last", 3, "--reps", 999, "--normalize", "none", "--no-titles", "--format", kind)
    before = contents(runs)
    refused(
        srl("report", runs, *words),
        f"--last, --normalize, --reps, --no-titles: no effect with --format {kind}",
    )
    assert contents(runs) == before


def test_missing_folder_is_named_in_error(tmp_path):
    refused(srl("report", tmp_path / "nowhere"), str(tmp_path / "nowhere"), "no such folder")


def test_file_instead_of_a_folder_of_runs_is_named_in_error(tmp_path):
    (tmp_path / "file").write_text("")
    refused(srl("report", tmp_path / "file"), str(tmp_path / "file"), "neither a folder nor an archive")


@pytest.mark.parametrize("kind", ["page", "json", "parquet", "zoo"])
def test_empty_folder_is_rejected_and_stays_empty(kind, tmp_path):
    refused(srl("report", tmp_path, "--format", kind), str(tmp_path), "contains no runs")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["page", "json"])
@pytest.mark.parametrize("below", ["", "new/folder"], ids=["file", "path below file"])
def test_file_instead_of_the_out_folder_is_named_in_error(below, kind, runs, tmp_path):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / below
    refused(srl("report", runs, "--format", kind, "--out", out), str(tmp_path / "file"), "is a file", "--out")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["figures", "report.html", "table.md"])
def test_conflicting_entry_in_out_folder_is_named_in_error(name, runs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    if name == "figures":
        (out / name).write_text("mine")
    else:
        (out / name).mkdir()
    outcome = srl("report", runs, "--out", out, "--reps", 100)
    assert outcome.status in (1, 2)
    assert name in outcome.err
    assert "Traceback" not in outcome.err
    assert (out / name).exists()


def test_unreadable_specs_are_named_individually(runs):
    for number, file in enumerate(sorted(runs.rglob("spec.json"))):
        file.write_text(["{", "[]", '{"format": 2}', "null"][number])
    refused(
        srl("report", runs),
        "contains no runs",
        *(f"{a}/none/seed-{n}/spec.json" for a in ("ppo", "sppo") for n in (0, 1)),
    )


def page_of(root):
    """Return the rows of the run table of a page, its lines on excluded runs and its findings."""
    tree = parse((root / "report.html").read_bytes().decode())
    (body,) = tree.by_id("run-table").all("tbody")
    rows = [[cell.text for cell in row.children] for row in body.all("tr")]
    return rows, [line.text for line in tree.by_id("left-out").all("li")], tree.by_id("findings").text


def test_runs_with_too_few_evaluations_are_named_and_excluded(runs):
    lay_down(runs, [[7.0]] * 4 + [[9.0]], algo="a2c")
    outcome = srl("report", runs, "--last", 5, "--reps", 100)
    assert outcome.status == 0, outcome.err
    assert "1 of 5 runs are finished (4 short)" in outcome.out
    rows, left_out, _ = page_of(runs)
    assert {row[1]: row[5].partition(":")[0] for row in rows} == {
        "A2C": "done",
        "PPO": "short",
        "SPPO": "short",
    }
    for algo in ("ppo", "sppo"):
        cell = f"CartPole-v1/{algo}/none"
        (line,) = [one for one in left_out if one.startswith(f"{cell}: short: seed-0, seed-1: ")]
        assert "3, fewer than the 5" in line
    assert sorted(row[6] for row in rows) == ["-", "-", "-", "-", "7.4"]
    table = json.loads((runs / "statistics.json").read_text())["table"]
    assert {row["algorithm"]: row["mean"] for row in table} == {"a2c": 7.4, "ppo": None, "sppo": None}


def only_failed(root):
    lay_down(root, RETURNS[:1], state="failed", reason="it broke", n_timesteps=64, eval_freq=32)
    lay_down(root, None, state="failed", reason="it broke", n_timesteps=64, seed=1)


def only_missing(root):
    specs = [small_spec(seed=seed) for seed in (0, 1)]
    root.mkdir()
    write_plan(Plan(root, [Job(spec, root / spec.path) for spec in specs]))


def only_damaged(root):
    for seed in (0, 1):
        directory = lay_down(root, RETURNS, seed=seed)
        (directory.path / "evaluations.npz").write_bytes(b"PK\x03\x04")
        (directory.path / "progress.csv").write_bytes(b"")


@pytest.mark.parametrize("lay", [only_failed, only_missing, only_damaged])
def test_report_on_runs_without_scores_is_complete(lay, tmp_path):
    root = tmp_path / "runs"
    lay(root)
    outcome = srl("report", root, "--reps", 100)
    assert (outcome.status, outcome.err) == (0, "")
    state = lay.__name__.removeprefix("only_")
    assert f"0 of 2 runs are finished (2 {state})" in outcome.out
    rows, left_out, findings = page_of(root)
    assert [row[5].partition(":")[0] for row in rows] == [state] * 2
    assert len(left_out) >= 1
    assert "nothing is compared" in findings
    assert "nan" not in "".join([findings, *left_out, *(row[6] for row in rows)]).lower()
    for file in ("table", "robust", "improvement"):
        for kind in ("md", "csv", "tex"):
            assert "nan" not in (root / f"{file}.{kind}").read_text()
    assert json.loads((root / "statistics.json").read_text())["runs"] == {state: 2}


ENVS = ("CartPole-v1", "Acrobot-v1")
NOISES = ("none", "flip:0.1")


@pytest.fixture(scope="module")
def half_finished(tmp_path_factory):
    """A sweep of 24 runs, some finished and the others in every other state."""
    root = tmp_path_factory.mktemp("half")
    generator = np.random.default_rng(0)
    specs = [
        small_spec(algo, env, seed, noise=noise)
        for seed in range(3)
        for env in ENVS
        for algo in ("ppo", "sppo")
        for noise in NOISES
    ]
    write_plan(Plan(root, [Job(spec, root / spec.path) for spec in specs]))

    def lay(spec: RunSpec, n_evaluations=2, **changes):
        returns = generator.normal(size=(n_evaluations, 2)) if n_evaluations else None
        names = ("algo", "env", "noise", "seed", "n_timesteps", "eval_freq")
        own = {name: getattr(spec, name) for name in names}
        return lay_down(root, returns, **own, n_eval_episodes=2, n_eval_envs=2, **changes)

    for number, spec in enumerate(specs[:18]):
        if number < 13:
            lay(spec)
        elif number == 13:
            lay(spec, 1, state="failed", reason="it broke")
        elif number == 14:
            lay(spec, 1, state="running")
        elif number == 15:
            lay(spec, 0, state="running")
        elif number == 16:
            (lay(spec).path / "evaluations.npz").write_bytes(b"PK")
        else:
            (lay(spec).path / "status.json").write_text("{")
    return root


def names_seed(line, name):
    """Return whether a line like ``...: missing: seed-0 to seed-2, seed-7.`` names a seed like ``seed-1``."""
    ranges = re.findall(r"seed-(\d+)(?: to seed-(\d+))?", line.rpartition(": ")[2])
    return any(int(first) <= int(name.removeprefix("seed-")) <= int(last or first) for first, last in ranges)


@pytest.mark.slow
def test_half_finished_sweep_is_reported_with_its_finished_runs(half_finished, tmp_path):
    before = contents(half_finished)
    outcome = srl("report", half_finished, "--out", tmp_path, "--reps", 100, "--figures", "png")
    assert (outcome.status, outcome.err) == (0, "")
    assert contents(half_finished) == before
    counts = {"done": 13, "failed": 1, "interrupted": 2, "damaged": 2, "missing": 6}
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    assert statistics["runs"] == counts
    assert "13 of 24 runs are finished (2 interrupted, 1 failed, 2 damaged, 6 missing)" in outcome.out
    rows, left_out, findings = page_of(tmp_path)
    assert len(rows) == 24
    assert {state: sum(row[5].startswith(state) for row in rows) for state in counts} == counts
    assert "may change" in findings
    # Every run without a score is reported
    for row in rows:
        if row[5] != "done":
            folder, _, seed = row[-1].rpartition("/")
            assert any(folder in line and (seed in line or names_seed(line, seed)) for line in left_out), row[
                -1
            ]
    assert sum(row["n_seeds"] for row in statistics["table"]) == 13
    assert len(statistics["table"]) == len(ENVS) * len(NOISES) * 2
    done = {(row[0], row[1], row[2], row[3]) for row in rows if row[5] == "done"}
    for comparison in statistics["comparisons"]:
        assert comparison["seeds"]
        for seed, (env, _), side in product(comparison["seeds"], comparison["environments"], ("PPO", "SPPO")):
            assert (env, side, comparison["noise"], str(seed)) in done
    files = {file.relative_to(tmp_path / "figures").as_posix() for file in tmp_path.rglob("*.png")}
    assert {f"learning_curve/{env}.png" for env in ENVS} <= files


@pytest.mark.slow
def test_running_run_is_counted_as_running_and_not_modified(tmp_path):
    root = tmp_path / "runs"
    lay_down(root, RETURNS, algo="ppo")
    directory = lay_down(root, RETURNS[:1], algo="ppo", seed=1, state="running", n_timesteps=64, eval_freq=32)
    with (directory.path / "progress.csv").open("a") as log:
        log.write("64,")  # an incomplete line
    with (directory.path / "run.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = contents(root)
        outcome = srl("report", root, "--out", tmp_path / "out", "--reps", 100)
        assert outcome.status == 0, outcome.err
        assert contents(root) == before
    assert "1 of 2 runs are finished (1 running)" in outcome.out


def test_variant_in_one_environment_does_not_affect_other_comparisons(tmp_path):
    for env in ("CartPole-v1", "Acrobot-v1", "Pendulum-v1"):
        for number, algo in enumerate(("ppo", "sppo")):
            for seed in range(4):
                lay_down(tmp_path, [[0.0, 0.0], [seed, seed + number]], algo=algo, env=env, seed=seed)
    before = make_report(tmp_path, reps=100)
    assert [len(comparison.overall.tasks) for comparison in before.comparisons] == [3]
    assert [len(aggregate.matched.tasks) for aggregate in before.aggregates] == [3]
    lay_down(tmp_path, [[0.0, 0.0], [9.0, 9.0]], env="CartPole-v1", at="beta", overrides={"beta": 2.0})
    after = make_report(tmp_path, reps=100)
    assert max(len(comparison.overall.tasks) for comparison in after.comparisons) == 3
    assert [len(aggregate.matched.tasks) for aggregate in after.aggregates] == [3]


def test_warning_about_a_single_seed_counts_cases(tmp_path):
    lay_down(tmp_path, RETURNS)
    (line,) = [line for line in make_report(tmp_path, reps=100).summary if "only 1 seed." in line]
    # The rate is given as cases out of cases
    assert "93" not in line or "of 100 cases" in line


def test_runs_without_scores_are_reported_in_groups(tmp_path):
    for seed in range(3):
        lay_down(tmp_path, RETURNS, algo="ppo", seed=seed)
    places = product(("CartPole-v1", "Acrobot-v1"), ("ppo", "sppo"), range(4))
    specs = [small_spec(algo, env, seed) for env, algo, seed in places]
    write_plan(Plan(tmp_path, [Job(spec, tmp_path / spec.path) for spec in specs]))
    assert read_scores(tmp_path).left_out == [
        "CartPole-v1/ppo/none: missing: seed-3.",
        "CartPole-v1/sppo/none: missing: seed-0 to seed-3.",
        "Acrobot-v1: all 8 runs are missing.",
    ]


def test_runs_that_failed_for_the_same_reason_share_a_line(tmp_path):
    for seed, reason in enumerate(["out of memory", "out of memory", "NaN", "out of memory"]):
        directory = lay_down(tmp_path, RETURNS, algo="ppo", seed=seed)
        directory.write_status(directory.read_status().ended_as("failed", 0.0, reason))
    assert read_scores(tmp_path).left_out == [
        "CartPole-v1/ppo/none: failed: seed-0, seed-1, seed-3: out of memory",
        "CartPole-v1/ppo/none/seed-2: failed: NaN",
    ]


def test_sweep_without_pairs_keeps_its_default_pairs_next_to_one_with_pairs(tmp_path):
    for folder, algos in (
        ("own", ("sppo", "ppo", "a2c")),
        ("plain", ("sa2c", "a2c")),
        ("no sweep", ("dsppo", "dppo")),
    ):
        specs = [small_spec(algo, env="Pendulum-v1", seed=seed) for algo in algos for seed in (0, 1)]
        for spec in specs:
            lay_down(tmp_path / folder, RETURNS, env=spec.env, algo=spec.algo, seed=spec.seed)
        if folder != "no sweep":
            compare = [["ppo", "a2c"]] if folder == "own" else []
            write_plan(Plan(tmp_path / folder, [Job(spec, tmp_path) for spec in specs], compare))
    pairs = {(one.column, one.baseline) for one in make_report(tmp_path, reps=100).comparisons}
    assert pairs == {("PPO", "A2C"), ("SA2C", "A2C"), ("DSPPO", "DPPO")}


def test_sweep_without_pairs_keeps_its_default_pairs_before_one_with_pairs_in_its_folder(tmp_path):
    for algos, compare in ((("sppo", "ppo", "a2c"), []), (("ppo", "sa2c", "a2c"), [["sa2c", "ppo"]])):
        specs = [small_spec(algo) for algo in algos]
        write_plan(Plan(tmp_path, [Job(spec, tmp_path / spec.path) for spec in specs], compare))
    assert read_comparisons(tmp_path) == [("sppo", "ppo"), ("sa2c", "ppo")]
    # Of columns of both sweeps, the pairs of the later one count
    write_plan(
        Plan(tmp_path, [Job(small_spec(algo), tmp_path) for algo in ("ppo", "sppo")], [["ppo", "sppo"]])
    )
    assert read_comparisons(tmp_path) == [("sa2c", "ppo"), ("ppo", "sppo")]
