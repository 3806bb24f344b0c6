"""Progress and time estimates: the model, a resumed run, and a sweep compared with `srl status`."""

from __future__ import annotations

import io
import math
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain

import pytest
from rich.console import Console

from srl.report.overview import Folder
from srl.rundir.directory import RunDirectory
from srl.rundir.plan import PlannedRun
from srl.rundir.progress import Progress, RunProgress, duration, makespan, outlook
from srl.rundir.status import Status
from srl.sweep import display, execution
from srl.sweep.engines import Ended
from srl.sweep.execution import Persistence
from srl.sweep.plan import make_plan, write_plan
from srl.training import run as run_module
from srl.training.callbacks import Heartbeat
from srl.training.run import train_run
from srl.training.stacked import members as members_module
from srl.training.stacked.train import train_population
from tests.report.made_runs import lay_down
from tests.small_runs import small_spec


def run(state, n_timesteps=1000, timesteps=0, speed=0.0, seconds=60.0, *, env="CartPole-v1", algo="ppo"):
    """Return a run in a state; if it is not training, ``timesteps`` is the step of its checkpoint."""
    status = Status(
        "done" if state == "done" else "running",
        timesteps=timesteps,
        n_timesteps=n_timesteps,
        steps_per_second=speed,
        seconds=seconds,
    )
    entry = PlannedRun("x", env, algo, "none", 0, n_timesteps)
    return RunProgress("x", entry, state, status, checkpoint=timesteps)


ESTIMATES = {
    "one run": ([run("running", timesteps=400, speed=10)], 60),
    "no run is training": ([run("not started"), run("done", speed=10)], math.inf),
    "not measured yet": ([run("running"), run("not started")], math.inf),
    "only one evaluation is left": ([run("running", timesteps=1000, speed=10)], 0),
    "the slowest run decides": ([run("running", speed=10), run("running", 100, speed=100)], 100),
    # Two at a time: 100 s each, then two of three, then the third
    "waiting runs of the same kind": ([run("running", speed=10)] * 2 + [run("not started")] * 3, 300),
    "a waiting run resumes from its checkpoint": (
        [run("running", speed=10), run("interrupted", timesteps=900)],
        110,
    ),
    "runs of different lengths": (
        [run("running", speed=10), run("running", 500, speed=10), run("not started", 300)],
        100,
    ),
    # In start order: 100 s, and 50 + 10 s
    "kinds with known different speeds": (
        [
            run("running", speed=10),
            run("running", 500, speed=10),
            run("done", speed=100, env="Acrobot-v1"),
            run("not started", env="Acrobot-v1"),
        ],
        100,
    ),
    "an unmeasured kind uses the mean speed": (
        [run("running", speed=10), run("running", speed=30), run("not started", env="Acrobot-v1")],
        max(100, 1000 / 30 + 1000 / 20),
    ),
    "baselines are as fast as symmetric algorithms": (
        [run("running", speed=10), run("running", speed=30, algo="a2c"), run("not started", algo="sa2c")],
        100,
    ),
    "failed and damaged runs are excluded": (
        [run("running", speed=10), run("failed"), run("damaged"), run("done")],
        100,
    ),
    # 600 steps in 60 s and 60 in 2 s
    "a recently started run has little weight": (
        [run("running", speed=10), run("running", speed=30, seconds=2)],
        max(100, 1000 / (660 / 62)),
    ),
    "only a recently started run is measured": ([run("running", speed=30, seconds=2)], 1000 / 30),
    "16 members at once": (
        [run("running", timesteps=500, speed=5)] * 16 + [run("not started")] * 16,
        300,
    ),
}


@pytest.mark.parametrize("case", ESTIMATES)
def test_time_left_estimate(case):
    runs, seconds = ESTIMATES[case]
    assert Progress(runs).seconds_left == pytest.approx(seconds)


def test_next_item_starts_in_the_first_free_slot():
    assert makespan([3, 1], []) == 3
    assert makespan([3, 1], [1, 4]) == 6
    assert makespan([0], [1, 2, 3]) == 6


def test_time_span_has_at_most_two_units():
    spans = [0, -5, 89, 90, 5399, 5400, 172_799, 172_800, 1e9]
    assert list(map(duration, spans)) == [
        "0 s", "0 s", "89 s", "2 min", "90 min", "1 h 30 min", "2 days 0 h", "2 days 0 h", "11574 days 1 h",
    ]  # fmt: skip


# A resumed run


class Interrupted(BaseException):
    """Not an Exception, so that no handler catches it."""


def train(specs, paths, tell, monkeypatch):
    """Train alone or as a population, with a heartbeat at each step and a checkpoint at each update."""
    monkeypatch.setattr(run_module, "Heartbeat", partial(Heartbeat, interval=0.0))
    monkeypatch.setattr(members_module, "beat_interval", lambda n: 0.0)
    if len(specs) == 1:
        return [train_run(specs[0], paths[0], tell=lambda status: tell([status]), checkpoint_every=0)]
    return train_population(specs, paths, tell=tell, checkpoint_every=0)


@pytest.mark.slow
@pytest.mark.parametrize("n_members", [1, 2])
def test_speed_of_a_resumed_run_uses_only_the_last_attempt_and_ignores_clock_jumps(
    n_members, tmp_path, monkeypatch
):
    specs = [small_spec(seed=seed, n_timesteps=96, eval_freq=96) for seed in range(n_members)]
    paths = [tmp_path / str(spec.seed) for spec in specs]

    def interrupt(statuses):
        if statuses[0].timesteps == 90:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(specs, paths, interrupt, monkeypatch)
    told = []
    now, began = time.time, time.monotonic()
    monkeypatch.setattr(time, "time", lambda: now() + (-1) ** len(told) * 86_400)
    ended = train(specs, paths, told.append, monkeypatch)
    elapsed = time.monotonic() - began
    assert [(status.state, status.attempts, status.resumed_from) for status in ended] == [
        ("done", 2, 64)
    ] * n_members
    for status in [*chain(*told), *ended]:
        if status.seconds == 0:
            assert status.timesteps in (64, 65)
            assert status.steps_per_second == 0
        else:
            assert status.seconds <= elapsed
            assert status.steps_per_second * status.seconds == pytest.approx(status.timesteps - 65)
        assert 0 <= status.silence <= time.monotonic() - began


# A sweep, its display and `srl status`


class Holding:
    """An engine that starts nothing and claims the folders of two tasks."""

    room = 2

    def __init__(self):
        self.resources = ExitStack()

    def submit(self, orders):
        self.room -= len(orders)
        for order in orders:
            for job in order.task.jobs:
                directory = RunDirectory(job.path)
                earlier = directory.read_status() or Status("running")
                self.resources.enter_context(directory.claimed(job.spec, keep=True))
                directory.write_status(replace(earlier, state="running", attempts=earlier.attempts + 1))

    def wait(self, seconds):
        return list[Ended]()

    def close(self):
        self.resources.close()


def test_resumed_sweep_and_status_show_the_same_speed_and_time_left(tmp_path, monkeypatch):
    monkeypatch.setattr(display, "_LINE_INTERVAL", 0.0)
    n_timesteps = 1_000_000
    # Each trains at 1,000 steps/s, after 990,000 steps of earlier attempts
    beginning = dict(timesteps=990_000, resumed_from=989_000, steps_per_second=1000.0, seconds=1.0)
    specs = [small_spec(seed=seed, n_timesteps=n_timesteps) for seed in range(6)]
    specs.append(small_spec(env="Acrobot-v1", n_timesteps=n_timesteps))
    for seed, state in enumerate(["done", "running", "running", "failed"]):
        directory = lay_down(tmp_path, [[1.0], [2.0]], seed=seed, state=state, n_timesteps=n_timesteps)
        (directory.path / "spec.json").write_text(specs[seed].model_dump_json(indent=1))
        if state == "running":
            directory.write_status(replace(directory.read_status(), **beginning))
    (tmp_path / specs[4].path / "checkpoints").mkdir(parents=True)
    (tmp_path / specs[4].path / "checkpoints" / "500000.npz").touch()
    (tmp_path / specs[4].path / "spec.json").write_text(specs[4].model_dump_json(indent=1))
    plan = make_plan(specs, tmp_path)
    # The failed run comes last, and `srl status` does not know that it is retried
    plan.tasks = [task for task in plan.tasks if task.jobs[0].spec.seed != 3]
    write_plan(plan)
    out = io.StringIO()
    told = []
    engine = Holding()
    try:
        shown = display.SweepDisplay(Console(file=out, width=200))
        sweep = execution._Execution(plan, engine, "", told.append, print, Persistence())
        sweep._record(plan.jobs[3], "failed")
        assert sweep.step()
        overview = Folder(tmp_path).read()
    finally:
        engine.close()
    (progress,) = told
    shown.update(progress)
    # 10 s for each running run, then 500 s and 1,000 s at the speed of their kind, then Acrobot for 1,000 s
    assert outlook(progress) == outlook(overview) == "2,000 steps/s, about 25 min left"
    assert out.getvalue() == "1 done, 2 running, 1 failed, 3 pending; 2,000 steps/s, about 25 min left\n"
    assert progress.seconds_left == overview.seconds_left == pytest.approx(1510)
    assert progress.timesteps == overview.timesteps
    assert progress.n_timesteps == overview.n_timesteps == 7 * n_timesteps
