"""Grouping of runs into populations, and sweeps of populations."""

import csv
import os
import signal
from itertools import count
from pathlib import Path
from threading import Thread

import pytest

from srl.config.population import population_key
from srl.errors import UserError
from srl.rundir.directory import RunDirectory
from srl.sweep.engines import Job, Task
from srl.sweep.tasks import describe, divide, make_tasks, parse_population
from tests.small_runs import BROKEN, SMALL_WORDS, contents, small_spec, srl, start_srl, until
from tests.training.stacked.comparison import assert_same_result

MEGABYTE = 1e6


@pytest.fixture(autouse=True)
def plenty(monkeypatch):
    """Disable the memory limit."""
    monkeypatch.setattr("srl.sweep.engines.available_memory", lambda: None)


def jobs_of(specs):
    numbers = count()
    return [Job(spec, Path(f"{next(numbers)}") / spec.path) for spec in specs]


def seeds(n, **changes):
    return [small_spec(seed=seed, **changes) for seed in range(n)]


def sizes(tasks):
    return [len(task.jobs) for task in tasks]


def image_specs(n, device="cpu"):
    specs = seeds(n, env="PongNoFrameskip-v4")
    assert specs[0].hyperparams.policy == "CnnPolicy"
    return [spec.model_copy(update={"device": device}) for spec in specs]


@pytest.mark.parametrize(("text", "means"), [("auto", "auto"), ("off", "off"), ("1", 1), ("64", 64)])
def test_population_option_is_parsed(text, means):
    assert parse_population(text) == means


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1.5", "Auto", "on", "²", " 2", "1e3", "٣"])
def test_invalid_population_option_is_named_in_error(text):
    with pytest.raises(UserError) as error:
        parse_population(text)
    assert str(error.value) == f"--population {text}: must be auto, off, or the maximum size, 1 or above."


@pytest.mark.parametrize(
    "changes",
    [
        dict(seed=7),
        dict(noise="flip:0.1"),
        dict(algo="ppo"),
        dict(overrides={"alpha": 0.1}),
        dict(overrides={"beta": 9.0}),
        dict(overrides={"z": -5.0}),
        dict(overrides={"learning_rate": "lin_1e-3"}),
        dict(overrides={"ent_coef": 0.1}),
        dict(overrides={"vf_coef": 0.1}),
        dict(overrides={"max_grad_norm": 5.0}),
        dict(overrides={"gamma": 0.5}),
        dict(overrides={"gae_lambda": 0.5}),
        dict(overrides={"clip_range": 0.5}),
        dict(overrides={"advantage_flip_prob": 0.5}),
        dict(overrides={"clip_range_vf": 0.2}),
        dict(overrides={"normalize_advantage": False}),
        dict(overrides={"reverse_loss": "mae"}),
        dict(overrides={"advantage_transform": "sign"}),
        dict(overrides={"importance_weighting": False}),
        dict(overrides={"policy_kwargs": {"optimizer_kwargs": {"eps": 1e-3, "betas": [0.8, 0.9]}}}),
        dict(profile="authors"),
    ],
    ids=str,
)
def test_runs_that_differ_in_per_member_settings_train_together(changes):
    tasks = make_tasks(jobs_of([small_spec(), small_spec(**changes)]), "auto", 1)
    assert sizes(tasks) == [2]
    assert all(job.spec.stacked for job in tasks[0].jobs)


def test_clip_range_vf_can_differ_within_a_population():
    specs = [small_spec(overrides={"clip_range_vf": value}) for value in (0.1, "lin_0.2")]
    assert sizes(make_tasks(jobs_of(specs), "auto", 1)) == [2]


@pytest.mark.parametrize(
    "changes",
    [
        dict(env="Acrobot-v1"),
        dict(algo="sa2c"),
        dict(n_timesteps=128),
        dict(eval_freq=16),
        dict(n_eval_episodes=3),
        dict(overrides={"n_steps": 16}),
        dict(overrides={"n_envs": 2}),
        dict(overrides={"batch_size": 16}),
        dict(overrides={"n_epochs": 2}),
        dict(overrides={"normalize": True}),
        dict(overrides={"frame_stack": 2}),
        dict(overrides={"policy_kwargs": {"net_arch": [8]}}),
        dict(overrides={"policy_kwargs": {"optimizer_class": "AdamW"}}),
        dict(overrides={"policy_kwargs": {"optimizer_kwargs": {"amsgrad": True}}}),
        dict(threads=2),
        dict(env_backend="native"),
    ],
    ids=str,
)
def test_runs_that_differ_in_shapes_or_work_train_separately(changes):
    specs = [*seeds(2), small_spec(seed=5, **changes), small_spec(seed=6, **changes)]
    tasks = make_tasks(jobs_of([specs[0], specs[2], specs[1], specs[3]]), "auto", 1)
    assert [[job.spec.seed for job in task.jobs] for task in tasks] == [[0, 1], [5, 6]]


def test_runs_with_different_bins_or_devices_train_separately():
    specs = [small_spec("dsppo", "Pendulum-v1", bins=bins) for bins in (5, 7)]
    specs.append(specs[0].model_copy(update={"device": "cuda"}))
    assert len({population_key(spec) for spec in specs}) == 3


def test_discretized_and_other_runs_train_separately():
    assert population_key(small_spec("dppo", "Pendulum-v1")) != population_key(
        small_spec("ppo", "Pendulum-v1")
    )
    assert population_key(small_spec("dppo", "Pendulum-v1")) == population_key(
        small_spec("dsppo", "Pendulum-v1")
    )


@pytest.mark.parametrize("population", ["auto", 8])
@pytest.mark.parametrize(
    "changes",
    [
        dict(algo="ppo", env="Pendulum-v1", overrides={"use_sde": True}),
        dict(overrides={"target_kl": 0.1}),
        dict(overrides={"policy": "MultiInputPolicy"}),
        dict(overrides={"policy_kwargs": {"share_features_extractor": False}}),
        dict(overrides={"policy": "CnnPolicy", "normalize": True}),
    ],
    ids=str,
)
def test_runs_that_cannot_be_stacked_train_alone(changes, population):
    tasks = make_tasks(jobs_of(seeds(3, **changes)), population, 1)
    assert sizes(tasks) == [1, 1, 1]
    assert not any(task.jobs[0].spec.stacked for task in tasks)
    assert describe(tasks) == ""


def test_image_runs_train_alone_on_cpu_unless_a_population_size_is_given():
    specs = image_specs(4)
    alone = make_tasks(jobs_of(specs), "auto", 1)
    assert sizes(alone) == [1] * 4
    assert not any(task.jobs[0].spec.stacked for task in alone)
    assert sizes(make_tasks(jobs_of(specs), 4, 1)) == [4]
    assert sizes(make_tasks(jobs_of(image_specs(4, "cuda")), "auto", 1)) == [4]


def test_off_trains_each_run_alone():
    jobs = jobs_of(seeds(3))
    tasks = make_tasks(jobs, "off", 2)
    assert [task.jobs for task in tasks] == [(job,) for job in jobs]
    assert describe(tasks) == ""


@pytest.mark.parametrize(
    ("n", "population", "n_jobs", "expected"),
    [
        (1, "auto", 2, [1]),
        (2, "auto", 2, [1, 1]),
        (10, "auto", 2, [5, 5]),
        (11, "auto", 2, [6, 5]),
        (10, "auto", 3, [3, 4, 3]),
        (100, "auto", 1, [50, 50]),
        (64, "auto", 1, [64]),
        (65, "auto", 1, [33, 32]),
        (3, "auto", 8, [1, 1, 1]),
        (10, 4, 1, [3, 4, 3]),
        (10, 4, 8, [3, 4, 3]),
        (10, 100, 8, [10]),
        (3, 1, 2, [1, 1, 1]),
        (0, "auto", 2, []),
    ],
)
def test_populations_have_equal_sizes_and_use_all_processes(n, population, n_jobs, expected):
    jobs = jobs_of(seeds(n))
    tasks = make_tasks(jobs, population, n_jobs)
    assert sorted(sizes(tasks)) == sorted(expected)
    assert [job.path for task in tasks for job in task.jobs] == [job.path for job in jobs]
    for task in tasks:
        stacked = {job.spec.stacked for job in task.jobs}
        # A number requests populations of any size
        assert stacked == {n > n_jobs or population != "auto"}


def made_parts(n_runs, n_jobs, *, n_timesteps=None, largest=64):
    n_groups = len(n_runs)
    parts = divide(n_runs, n_timesteps or [1] * n_groups, [largest] * n_groups, n_jobs)
    for n, n_parts in zip(n_runs, parts, strict=True):
        assert -(-n // largest) <= n_parts <= n
    return parts


@pytest.mark.parametrize("n_jobs", [1, 2, 16, 64, 256, 1000])
def test_protocol_sweep_is_divided_among_jobs(n_jobs):
    # 9 environments and 2 families with 2 algorithms and 30 seeds each: 1,080 runs
    parts = made_parts([60] * 18, n_jobs)
    n_members = max(-(-60 // n_parts) for n_parts in parts)  # of the largest population
    assert (sum(parts), n_members) == {
        1: (18, 60), 2: (18, 60), 16: (48, 30), 64: (64, 20), 256: (256, 5), 1000: (1000, 2),
    }[n_jobs]  # fmt: skip
    assert max(parts) - min(parts) <= 1


def test_groups_get_processes_in_proportion_to_their_work():
    assert made_parts([30, 30], 4, n_timesteps=[3, 1]) == [3, 1]
    assert made_parts([60, 20], 4) == [3, 1]
    assert made_parts([60, 1, 1], 8) == [6, 1, 1]
    # Instead of two groups first, and then the third with half of the processes
    assert made_parts([10, 10, 10], 2) == [2, 1, 1]
    assert made_parts([100, 8], 4, largest=10) == [11, 1]
    assert made_parts([], 2) == []
    assert made_parts([0, 3], 2) == [0, 2]
    assert made_parts([3, 2], 10**9) == [3, 2]


def test_remaining_run_of_an_interrupted_population_trains_as_a_member():
    jobs = jobs_of(seeds(5))
    (task,) = make_tasks(jobs, "auto", 1, done={job.path for job in jobs[:4]})
    assert task.jobs[0].path == jobs[4].path
    assert task.jobs[0].spec.stacked


def test_resumed_run_keeps_its_mode_regardless_of_options():
    jobs = jobs_of(seeds(4))
    begun = {jobs[0].path: True, jobs[1].path: False}
    for population, expected in (("off", [True, False, False, False]), (4, [True, False, True, True])):
        tasks = make_tasks(jobs, population, 1, started=begun)
        stacked = {job.path: job.spec.stacked for task in tasks for job in task.jobs}
        assert [stacked[job.path] for job in jobs] == expected


def test_tasks_change_only_the_stacked_field_of_specs():
    jobs = jobs_of(seeds(3))
    (task,) = make_tasks(jobs, "auto", 1)
    for job, member in zip(jobs, task.jobs, strict=True):
        assert member.path == job.path
        assert member.spec == job.spec.model_copy(update={"stacked": True})
        assert not job.spec.stacked


def test_tasks_are_ordered_by_their_first_runs():
    mixed = [
        small_spec(env=env, seed=seed, overrides=overrides)
        for seed in range(3)
        for env, overrides in (
            ("CartPole-v1", {"target_kl": 0.1}),
            ("Acrobot-v1", {}),
            ("CartPole-v1", {}),
        )
    ]
    tasks = make_tasks(jobs_of(mixed), "auto", 1)
    first = [(task.jobs[0].spec.env, task.jobs[0].spec.seed, len(task.jobs)) for task in tasks]
    assert first == [
        ("CartPole-v1", 0, 1),
        ("Acrobot-v1", 0, 3),
        ("CartPole-v1", 0, 3),
        ("CartPole-v1", 1, 1),
        ("CartPole-v1", 2, 1),
    ]
    assert describe(tasks) == " in 2 populations of 3 and 3 alone"


def test_auto_populations_fit_in_memory():
    def largest(megabytes, specs, n_jobs=1):
        tasks = make_tasks(jobs_of(specs), "auto", n_jobs, memory=megabytes * MEGABYTE)
        assert sum(sizes(tasks)) == len(specs)
        return max(sizes(tasks))

    specs = seeds(60)
    found = [largest(megabytes, specs) for megabytes in (0, 500, 1000, 2000, 100_000)]
    assert found[0] == found[1] == 1
    assert found[-1] == 60
    assert found == sorted(found)
    assert 1 < found[3] < 60
    # Concurrent processes share the memory
    assert largest(2000, specs, n_jobs=2) < found[3]
    # Long rollouts of large observations need more memory
    images = [
        spec.model_copy(update={"hyperparams": spec.hyperparams.model_copy(update={"n_steps": 1024})})
        for spec in image_specs(60, "cuda")
    ]
    assert largest(2000, images) < found[3]


def test_explicit_population_size_ignores_memory():
    assert sizes(make_tasks(jobs_of(seeds(8)), 8, 2, memory=0)) == [8]


def test_tasks_are_described_by_population_sizes():
    assert describe([]) == ""
    assert describe(make_tasks(jobs_of(seeds(8)), 4, 1)) == " in 2 populations of 4"
    assert describe(make_tasks(jobs_of(seeds(7)), 4, 1)) == " in 2 populations of 3 to 4"
    some = make_tasks(jobs_of([*seeds(4), *seeds(2, overrides={"target_kl": 0.1})]), "auto", 1)
    assert describe(some) == " in 1 population of 4 and 2 alone"


def test_task_name_lists_what_its_runs_share():
    specs = [small_spec(algo, seed=seed) for seed in (3, 4) for algo in ("ppo", "sppo")]
    (task,) = make_tasks(jobs_of(specs), "auto", 1)
    assert task.name == "4 runs of CartPole-v1: ppo, sppo, from seed 3 none"
    assert Task(task.jobs[:1]).name == "CartPole-v1/ppo/none/seed-3"


# Sweeps


def sweep(root, *words, env="CartPole-v1", seeds="0:2", algos=("ppo", "sppo"), jobs=2):
    return srl(
        *("sweep", "discrete_srl", "--envs", env, "--algos", *algos, "--noise", "none", "--seeds", seeds),
        *("--timesteps", 64, "--jobs", jobs, "--out", root, *SMALL_WORDS, *words),
    )


@pytest.mark.slow
def test_sweep_results_do_not_depend_on_population_sizes(tmp_path):
    expected = {
        "off": ("Pending: 4, 2 at a time", 2, False),
        "auto": ("Pending: 4 in 1 population of 4, 1 at a time", 1, True),
        "2": ("Pending: 4 in 2 populations of 2, 2 at a time", 2, True),
    }
    tables = set()
    for population, (line, jobs, stacked) in expected.items():
        root = tmp_path / population
        outcome = sweep(root, "--population", population, jobs=jobs)
        assert outcome.status == 0, outcome.err
        assert line in outcome.out
        tables.add((root / "table.csv").read_bytes())
        runs = [RunDirectory(file.parent) for file in root.rglob("spec.json")]
        assert len(runs) == 4
        assert {run.read_spec().stacked for run in runs} == {stacked}
        for run in runs:
            assert_same_result(run.path, tmp_path / "off" / run.path.relative_to(root))
    (table,) = tables
    rows = list(csv.DictReader(table.decode().splitlines()))
    assert [(row["algorithm"], row["n_seeds"]) for row in rows] == [("ppo", "2"), ("sppo", "2")]


@pytest.mark.slow
@pytest.mark.parametrize(("made_by", "populations"), [("auto", ["off", "1"]), ("off", ["auto", "8"])])
def test_finished_runs_are_skipped_regardless_of_population_option(made_by, populations, tmp_path):
    options = dict(algos=("sppo",), seeds="0:3")
    assert sweep(tmp_path, "--population", made_by, **options).status == 0
    before = contents(tmp_path / "CartPole-v1")
    for population in populations:
        again = sweep(tmp_path, "--population", population, **options)
        assert again.status == 0
        assert "Finished: 3. Pending: 0, 1 at a time" in again.out
        assert contents(tmp_path / "CartPole-v1") == before


def test_dry_run_names_populations_and_writes_nothing(tmp_path):
    outcome = sweep(tmp_path / "out", "--dry-run")
    assert outcome.status == 0
    assert "Pending: 4 in 2 populations of 2, 2 at a time" in outcome.out
    assert outcome.out.count("pending  ") == 4
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 3, 64])
def test_slurm_sweep_is_divided_by_jobs_instead_of_local_cores(cores, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr("srl.sweep.engines.available_memory", lambda: 0)
    words = ["sweep", "continuous_srl", "--noise", "none", "--device", "cpu", "--dry-run"]
    words += ["--engine", "slurm", "--out", tmp_path / "out"]
    outcome = srl(*words, "--jobs", 256)
    assert outcome.status == 0, outcome.err
    assert "Pending: 1,080 in 256 populations of 4 to 5, 256 at a time" in outcome.out
    assert "in 64 populations of 4 to 30, 64 at a time" in srl(*words).out


@pytest.mark.parametrize("value", ["0", "x", "-3", "1.5"])
def test_invalid_population_size_is_an_error(value, tmp_path):
    outcome = sweep(tmp_path / "out", f"--population={value}")
    assert outcome.status == 2
    assert f"--population {value}: must be auto, off, or the maximum size, 1 or above" in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_failed_member_is_named_and_other_runs_finish(tmp_path):
    env = BROKEN + "NanRewardForOne-v0"
    options = dict(env=env, seeds="9:12", algos=("sppo",))
    outcome = sweep(tmp_path, "--population", "3", **options)
    assert outcome.status == 1
    assert "1 of 3 runs failed" in outcome.err
    failed = [line for line in outcome.err.splitlines() if "seed-" in line]
    assert failed
    assert all("seed-10" in line for line in failed)
    assert "non-finite reward (NaN) in environment 0. (at step 40)" in outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    folder = tmp_path / env.replace(":", "-") / "sppo" / "none"
    states = {seed: RunDirectory(folder / f"seed-{seed}").read_status().state for seed in (9, 10, 11)}
    assert states == {9: "done", 10: "failed", 11: "done"}
    again = sweep(tmp_path, **options)
    assert again.status == 1
    assert "Finished: 2. Pending: 1" in again.out
    assert "1 of 1 runs failed" in again.err


@pytest.mark.slow
def test_killed_population_process_fails_all_its_runs(tmp_path):
    env = BROKEN + "Killed-v0"
    outcome = sweep(tmp_path, "--retries", 0, env=env, algos=("sppo",), seeds="0:4")
    assert outcome.status == 1
    assert "4 of 4 runs failed" in outcome.err
    for file in tmp_path.rglob("spec.json"):
        status = RunDirectory(file.parent).read_status()
        assert status.state == "failed"
        assert status.reason.startswith("its process was killed by SIGKILL")


@pytest.mark.slow
def test_stopped_sweep_of_populations_marks_all_members_and_can_be_resumed(tmp_path):
    env = BROKEN + "WaitsOnce-v0"
    words = ["sweep", "discrete_srl", "--envs", env, "--algos", "sppo", "--noise", "none", "--seeds", "0:4"]
    words += ["--timesteps", "64", "--jobs", "1", "--population", "3", "--out", str(tmp_path), *SMALL_WORDS]
    process = start_srl(*words)
    runs = [RunDirectory(tmp_path / env.replace(":", "-") / "sppo" / "none" / f"seed-{i}") for i in range(4)]
    try:
        until((runs[0].path / "mark").exists)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "stopped" in err
    assert "Traceback" not in out + err
    for run in runs[:2]:
        assert not run.in_progress
        assert (run.read_status().state, run.read_status().reason) == ("interrupted", "the sweep was stopped")
        assert not (run.path / "model.zip").exists()
    for run in runs[2:]:
        assert not run.path.exists()
    waiting = Thread(target=lambda: until((runs[2].path / "mark").exists) and (runs[2].path / "go").touch())
    waiting.start()
    ended = srl(*words)
    waiting.join()
    assert ended.status == 0, ended.err
    assert "Pending: 4 in 2 populations of 2" in ended.out
    assert [run.read_status().state for run in runs] == ["done"] * 4
    assert not any((run.path / "error.txt").exists() for run in runs)
