"""Tasks on a local Ray cluster of two nodes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from srl.errors import UserError
from srl.rundir.directory import RunDirectory
from srl.rundir.find import find_runs
from srl.rundir.status import Status
from srl.sweep.engines import Job, Order, Task
from srl.sweep.engines.ray import Options, RayEngine
from srl.training.run import train_run
from tests.small_runs import BROKEN, SMALL_WORDS, small_spec, srl, start_srl, until
from tests.training.test_resume import outcome

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

#: Runs that wait at step 40 of their first attempt.
SPECS = [small_spec(env=f"{BROKEN}WaitsOnce-v0", seed=seed, n_timesteps=96) for seed in (1, 2)]
#: Code of the sweep process that is killed.
DRIVER = """
import sys
from pathlib import Path
from srl.sweep.engines.ray import Options, RayEngine
from tests.sweep.test_ray import orders
engine = RayEngine(sys.argv[1])
engine.submit(orders(Path(sys.argv[2])))
while True:
    engine.wait(1)
"""


def orders(root, **changes):
    specs = [spec.model_copy(update=changes) for spec in SPECS]
    return [
        Order(Task((Job(spec, root / str(place)),)), checkpoint_every=0) for place, spec in enumerate(specs)
    ]


def status(order):
    return RunDirectory(order.task.jobs[0].path).read_status()


def are_beyond(orders, steps):
    return all(status(order) is not None and status(order).timesteps > steps for order in orders)


def all_ended(engine, n):
    ended = []
    until(lambda: ended.extend(engine.wait(0.2)) or len(ended) == n)
    return ended


@pytest.fixture(scope="module")
def cluster(hears_ctrl_c):
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # By default, Ray's workers have low priority and would wait for other tests
        patch.setenv("RAY_worker_niceness", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.second = cluster.add_node(num_cpus=1, num_gpus=1)
        cluster.wait_for_nodes()
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Outcomes of uninterrupted runs."""
    root = tmp_path_factory.mktemp("whole")
    for place, spec in enumerate(SPECS):
        train_run(spec, root / str(place))
    return [outcome(root / str(place)) for place in range(len(SPECS))]


def test_sweep_resumes_after_lost_node_with_identical_results(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        *("sweep", "discrete_srl", "--envs", f"{BROKEN}WaitsOnce-v0", "--algos", "sppo", "--noise", "none"),
        *("--seeds", "0:2", "--timesteps", 96, "--device", "cpu", "--population", "off", *SMALL_WORDS),
        *("--checkpoint-every", 0),
    ]
    lost = Path("lost")

    def lose_a_node():
        marks = until(lambda: len(found := sorted(lost.rglob("mark"))) == 2 and found)
        cluster.remove_node(cluster.second, allow_graceful=False)
        until(lambda: not all(RunDirectory(mark.parent).in_progress for mark in marks))
        for mark in marks:
            mark.with_name("go").touch()

    losing = Thread(target=lose_a_node)
    losing.start()
    try:
        ended = srl(*words, "--engine", "ray", "--address", cluster.address, "--out", lost)
    finally:
        losing.join()
        cluster.second = cluster.add_node(num_cpus=1, num_gpus=1)
        cluster.wait_for_nodes()
    assert ended.status == 0, ended.err
    statuses = [run.read_status() for run in find_runs(lost)]
    assert [each.state for each in statuses] == ["done"] * 2
    assert sorted(each.attempts for each in statuses) == [1, 2]
    for place, run in enumerate(find_runs(lost)):
        train_run(run.read_spec(), tmp_path / str(place))  # the environment does not wait in this process
        assert outcome(run.path) == outcome(tmp_path / str(place))
        assert run.damage() == run.minor_damage() == []


def test_sweep_is_divided_by_cluster_resources(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr("srl.sweep.engines.available_memory", lambda: 0)
    words = [
        *("sweep", "discrete_srl", "--envs", "CartPole-v1", "--algos", "ppo", "sppo", "--noise", "none"),
        *("--seeds", "0:4", "--timesteps", 64, "--device", "cpu", "--out", tmp_path, *SMALL_WORDS),
        *("--engine", "ray", "--address", cluster.address),
    ]
    assert "Pending: 8 in 2 populations of 4, 2 at a time" in srl(*words, "--dry-run").out
    ended = srl(*words, "--jobs", 1)
    assert ended.status == 0, ended.err
    assert "Pending: 8 in 1 population of 8, 1 at a time" in ended.out
    # Two tasks per GPU, and the cluster has one GPU
    options = Options(address=cluster.address, tasks_per_gpu=2)
    assert options.capacity(on_gpus=True)[0] == 2
    assert options.capacity()[0] == 2
    engine = replace(options, n_jobs=3).start(tmp_path, 3)
    assert engine.room == 3
    engine.close()


def test_tasks_end_with_a_killed_sweep_and_resume_with_the_same_command(cluster, whole, tmp_path):
    asked = orders(tmp_path)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, cluster.address, str(tmp_path)])
    until(lambda: all((tmp_path / str(place) / "mark").exists() for place in range(2)))
    driver.kill()
    driver.wait()
    until(lambda: not any(RunDirectory(each.task.jobs[0].path).in_progress for each in asked))
    assert not any(status(each).state == "done" for each in asked)
    engine = RayEngine(cluster.address)
    try:
        engine.submit(asked)
        assert [each.killed for each in all_ended(engine, 2)] == ["", ""]
    finally:
        engine.close()
    assert [status(each).attempts for each in asked] == [2, 2]
    assert [outcome(tmp_path / str(place)) for place in range(2)] == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_stopped_sweep_stops_its_tasks_gracefully(number, cluster, tmp_path):
    words = [
        *("sweep", "discrete_srl", "--envs", "CartPole-v1", "--algos", "sppo", "--noise", "none"),
        *("--seeds", "0:2", "--timesteps", "1000000", "--device", "cpu", "--population", "off", *SMALL_WORDS),
        *("--engine", "ray", "--address", cluster.address, "--out", str(tmp_path / "out")),
    ]
    sweep = start_srl(*words)
    runs = [RunDirectory(tmp_path / "out" / "CartPole-v1" / "sppo" / "none" / f"seed-{i}") for i in range(2)]
    until(lambda: all((run.read_status() or Status("running")).timesteps > 0 for run in runs))
    sweep.send_signal(number)
    _, err = sweep.communicate(timeout=600)
    assert (sweep.returncode, err) == (130, "srl: stopped. Rerun the command to resume.\n")
    assert [run.read_status().reason for run in runs] == ["the sweep was stopped"] * 2
    assert not any(run.in_progress for run in runs)


def test_engine_reports_why_tasks_ended_and_closes_gracefully(cluster, tmp_path):
    first, second = orders(tmp_path, env="CartPole-v1", n_timesteps=1_000_000)
    on_gpu = Order(
        Task((Job(small_spec().model_copy(update={"device": "cuda"}), tmp_path / "gpu"),)), checkpoint_every=0
    )
    engine = RayEngine(cluster.address, n_lost=0)
    try:
        assert engine.room > 1000
        engine.submit([first, second])
        until(lambda: engine.wait(0) or are_beyond([first, second], 100))
        os.kill(status(first).pid, signal.SIGUSR1)
        until(lambda: "most recent call first" in first.task.log.read_text())
        os.kill(status(first).pid, signal.SIGKILL)
        (ended,) = all_ended(engine, 1)
        assert ended.task is first.task
        assert "WorkerCrashedError" in ended.killed
        assert "\n" not in ended.killed
        engine.end(second.task)
        (ended,) = all_ended(engine, 1)
        assert (ended.task, ended.killed) == (second.task, "it was cancelled")
        engine.submit([on_gpu])
        (ended,) = all_ended(engine, 1)
        assert (ended.killed, status(on_gpu).state) == ("", "done")
        until(lambda: not RunDirectory(second.task.jobs[0].path).in_progress)
        engine.submit([second])
        # Wait until training continues after the checkpoint is restored
        until(lambda: status(second).attempts == 2 and status(second).seconds > 0)
    finally:
        engine.close()
    assert status(second).reason == "stopped by the user"


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("127.0.0.1:1", "nothing answers there.*ray start --head"),
        ("head", "auto, local, or HOST:PORT"),
        ("ray://head:10001", "on a node of the cluster"),
    ],
)
def test_invalid_address_is_named_in_error(address, what):
    with pytest.raises(UserError, match=f"--address {address}: .*{what}"):
        RayEngine(address)


def test_address_without_a_ray_head_is_named_in_error():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(UserError, match="not the head of a Ray cluster"):
            RayEngine(address)


def test_missing_ray_is_named_in_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'symmetric-rl\[ray\]'"):
        RayEngine("auto")
