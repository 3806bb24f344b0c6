"""Slurm jobs: real jobs with submitit's local executor, and requests to a fake cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from srl.errors import UserError
from srl.rundir.directory import RunDirectory
from srl.sweep.engines import Job, Order, Task
from srl.sweep.engines import slurm as engine_module
from srl.sweep.engines.slurm import SlurmEngine
from srl.training.run import train_run
from srl.training.stacked.train import train_population
from tests.small_runs import BROKEN, small_spec, until
from tests.training.test_resume import outcome

pytest.importorskip("submitit")

#: Runs that wait at step 40 of their first attempt, where they are preempted.
MEMBERS = [small_spec(env=f"{BROKEN}WaitsOnce-v0", seed=seed, n_timesteps=96) for seed in (1, 2)]
#: Fake Slurm commands; they log calls to the file `asked`, and sacct prints the file `states`.
FAKES = {
    "sbatch": 'cp "$1" "$HERE/script-$$.sh"; n=$(cat "$HERE/n" 2>/dev/null || echo 122); n=$((n + 1))\n'
    'echo $n > "$HERE/n"; echo "Submitted batch job $n"',
    "sacct": 'cat "$HERE/states" 2>/dev/null || true',
    "scancel": "true",
    "scontrol": "true",
    "srun": "true",
}


def order(path, *specs):
    return Order(
        Task(tuple(Job(spec, path / str(place)) for place, spec in enumerate(specs))), checkpoint_every=0
    )


def status(order, place=0):
    return RunDirectory(order.task.jobs[place].path).read_status()


def is_beyond(order, steps):
    return status(order) is not None and status(order).timesteps > steps


@pytest.fixture
def local(tmp_path):
    engine = SlurmEngine(tmp_path / "slurm", cluster="local", time=60)
    yield engine
    engine.close()


@pytest.mark.slow
def test_jobs_run_to_completion_and_report_results(local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = order(Path("good"), small_spec())
    bad = order(Path("bad"), small_spec(env=f"{BROKEN}Raises-v0"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    local.submit([good, bad])
    ended = []
    until(lambda: ended.extend(local.wait(0.2)) or len(ended) == 2)
    # The run directory contains the reason of the failure
    assert {each.task.name: each.killed for each in ended} == {good.task.name: "", bad.task.name: ""}
    assert status(good).state == "done"
    assert status(bad).state == "failed"
    assert "bad/0: " in bad.task.log.read_text()
    assert local.room > 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["alone", "population"])
def test_preempted_job_resumes_with_identical_results(kind, local, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    if kind == "alone":
        asked = order(tmp_path / "run", MEMBERS[0])
        train_run(MEMBERS[0], tmp_path / "whole" / "0")
    else:
        specs = [spec.model_copy(update={"stacked": True}) for spec in MEMBERS]
        asked = order(tmp_path / "run", *specs)
        train_population(specs, [tmp_path / "whole" / str(place) for place in range(2)])
    local.submit([asked])
    until((tmp_path / "run" / "0" / "mark").exists)
    # Like Slurm: SIGTERM at preemption, and the requested signal
    pid = status(asked).pid
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGUSR2)
    (ended,) = until(lambda: local.wait(0.2))
    assert ended.killed == ""
    for place in range(len(asked.task.jobs)):
        assert status(asked, place).state == "done"
        assert status(asked, place).attempts == 2
        assert status(asked, place).resumed_from > 0
        assert outcome(tmp_path / "run" / str(place)) == outcome(tmp_path / "whole" / str(place))


@pytest.mark.slow
def test_canceled_job_reports_why_and_closed_engine_stops_jobs_gracefully(local, tmp_path):
    endless = small_spec(n_timesteps=1_000_000)
    first, second = order(tmp_path / "first", endless), order(tmp_path / "second", endless)
    local.submit([first, second])
    until(lambda: is_beyond(first, 100) and is_beyond(second, 100))
    local.end(first.task)
    (ended,) = until(lambda: local.wait(0.2))
    assert ended.task is first.task
    assert "ended without a result" in ended.killed
    local.close()
    assert status(second).reason == "stopped by the user"
    assert not RunDirectory(second.task.jobs[0].path).in_progress


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Fake Slurm commands that log their calls."""
    here = tmp_path / "bin"
    here.mkdir()
    for name, does in FAKES.items():
        (here / name).write_text(f'#!/bin/sh\nHERE={here}\necho {name} "$@" >> "$HERE/asked"\n{does}\n')
        (here / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    monkeypatch.setattr(engine_module, "_CHECK_INTERVAL", 0)
    monkeypatch.setattr(engine_module, "_SACCT_INTERVAL", 0)
    monkeypatch.setattr(engine_module, "_GRACE", 1)
    return here


def scripts(here):
    return sorted((file.read_text() for file in here.glob("script-*.sh")), key=lambda text: "gpus" in text)


def test_sbatch_receives_one_array_for_cpu_and_one_for_gpu_tasks(cluster, tmp_path):
    engine = SlurmEngine(
        tmp_path / "slurm",
        partition="gpu",
        time=240,
        max_parallel=2,
        mem_gb=8,
        options={"account": "lab", "nice": True},
    )
    on_gpu = small_spec().model_copy(update={"device": "cuda"})
    orders = [order(tmp_path / str(seed), small_spec(seed=seed)) for seed in range(3)]
    orders += [order(tmp_path / f"gpu{seed}", on_gpu) for seed in range(2)]
    engine.submit(orders)
    on_cpu, on_gpu = scripts(cluster)
    for line in (
        "array=0-2%2", "partition=gpu", "time=240", "cpus-per-task=1", "signal=USR2@120", "requeue", "nice",
        "account=lab", "mem=8GB", "job-name=srl", "open-mode=append",
    ):  # fmt: skip
        assert f"#SBATCH --{line}\n" in on_cpu
    assert "gpus" not in on_cpu
    assert "#SBATCH --gpus-per-node=1\n" in on_gpu
    assert "#SBATCH --array=0-1%2\n" in on_gpu
    assert "export OMP_NUM_THREADS=1\n" in on_cpu
    assert on_cpu.index("OMP_NUM_THREADS") < on_cpu.index("srun ")
    assert sys.executable in on_cpu
    assert subprocess.run(["bash", "-n"], input=on_cpu, text=True, check=False).returncode == 0
    assert [each.job.job_id for each in engine._running] == ["123_0", "123_1", "123_2", "124_0", "124_1"]
    # Five jobs exist, two may run: no more are accepted until some end
    assert engine.room == 0
    submission = engine._running[0].job.submission()
    assert submission._timeout_countdown >= 1000
    assert submission._checkpoint_function().function == submission.function


def test_job_states_are_mapped_to_reasons(cluster, tmp_path):
    engine = SlurmEngine(tmp_path / "slurm", max_parallel=2)
    orders = [order(tmp_path / str(seed), small_spec(seed=seed)) for seed in range(5)]
    engine.submit(orders)

    def say(*lines):
        (cluster / "states").write_text("\n".join(("JobID|State|NodeList", *lines)) + "\n")

    say("123_0|NODE_FAIL|a", "123_1|RUNNING|a", "123_[2-4%2]|PENDING|")
    assert engine.wait(0) == []
    # The job was requeued
    say(
        "123_0|PENDING|",
        "123_1|CANCELLED by 1000|a",
        "123_2|OUT_OF_MEMORY|a",
        "123_3|SUSPENDED|a",
        "123_4|TIMEOUT|",
    )
    assert engine.wait(0) == []
    ended = engine.wait(0)
    assert [each.task for each in ended] == [orders[place].task for place in (1, 2, 4)]
    assert [each.killed.partition(" (")[0] for each in ended] == [
        "its job was cancelled", "its job ran out of memory", "its job was ended at its time limit",
    ]  # fmt: skip
    # Most clusters requeue preempted jobs, but not all
    say("123_0|PREEMPTED|a", "123_3|RUNNING|a")
    ended = [each for _ in range(12) for each in engine.wait(0)]
    assert [each.task for each in ended] == [orders[0].task]
    (cluster / "sacct").write_text("#!/bin/sh\nexit 1\n")
    assert engine.wait(0) == []
    (cluster / "asked").unlink()
    engine.end(orders[3].task)
    engine.close()
    assert (cluster / "asked").read_text().splitlines() == [
        "scancel --signal=USR1 123_3", "scancel 123_3", "scancel --signal=INT 123_3", "scancel 123_3",
    ]  # fmt: skip


def test_rejected_jobs_are_submitted_again_later(cluster, tmp_path, capsys):
    engine = SlurmEngine(tmp_path / "slurm", max_parallel=8)
    engine.submit([order(tmp_path / "first", small_spec())])
    (cluster / "sbatch").rename(cluster / "away")
    (cluster / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: Unable to contact slurm controller' >&2\nexit 1\n"
    )
    (cluster / "sbatch").chmod(0o755)
    engine.submit([order(tmp_path / "second", small_spec())])
    assert engine.wait(0) == []
    assert "Unable to contact slurm controller; retrying" in capsys.readouterr().err
    assert engine.room == 6
    (cluster / "away").rename(cluster / "sbatch")
    assert engine.wait(0) == []
    assert [each.job.job_id for each in engine._running] == ["123", "124"]


def test_missing_slurm_prerequisites_are_named_before_anything_starts(cluster, tmp_path, monkeypatch):
    (cluster / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpux' >&2\nexit 1\n"
    )
    engine = SlurmEngine(tmp_path / "slurm", partition="gpux")
    with pytest.raises(UserError, match="invalid partition specified: gpux"):
        engine.submit([order(tmp_path / "run", small_spec())])
    engine.close()
    (cluster / "sacct").write_text("#!/bin/sh\necho 'accounting storage is disabled' >&2\nexit 1\n")
    with pytest.raises(UserError, match="accounting storage is disabled"):
        SlurmEngine(tmp_path / "slurm")
    (cluster / "sbatch").unlink()
    with pytest.raises(UserError, match="no sbatch on the PATH"):
        SlurmEngine(tmp_path / "slurm")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'symmetric-rl\[slurm\]'"):
        SlurmEngine(tmp_path / "slurm")
    assert not (tmp_path / "run").exists()
