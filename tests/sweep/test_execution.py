"""Sweeps survive failures of their processes and end with the same results."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from srl.errors import OutOfSpace, UserError
from srl.rundir.directory import RunDirectory
from srl.rundir.find import find_runs
from srl.rundir.status import Status
from srl.sweep import execution
from srl.sweep.engines import Ended, Job, Order, Task
from srl.sweep.engines.local import LocalEngine, visible_gpus
from srl.sweep.engines.slurm import parse_minutes
from srl.sweep.execution import Persistence, run_sweep
from srl.sweep.plan import Plan, make_plan, write_plan
from srl.training.attempt import RunFailed
from srl.training.run import train_run
from tests.small_runs import BROKEN, SMALL_WORDS, contents, small_spec, srl, start_srl, until
from tests.sweep import chaos
from tests.training.broken_envs import BreaksForOne
from tests.training.stacked.comparison import assert_same_result
from tests.training.test_resume import outcome

ROOT = Path(__file__).resolve().parents[2]
BAD = BreaksForOne.SEED


def execute(
    specs, root, *, engine=None, population="off", n_jobs=2, tell=lambda progress: None, **persistence
):
    """Run a sweep of specs; return its failures and messages."""
    plan = make_plan(specs, root, population=population, n_jobs=n_jobs)
    write_plan(plan)
    said: list[str] = []
    failures = run_sweep(
        plan,
        engine or LocalEngine(n_jobs),
        "",
        tell=tell,
        say=said.append,
        persistence=Persistence(checkpoint_every=0, **persistence),
    )
    return failures, said


def status(root, spec):
    return RunDirectory(root / spec.path).read_status()


class JumpingClock:
    """Advances the monotonic clock of this process by hours while only marked runs are pending.

    :param marks: Files that hanging environments write.
    """

    def __init__(self, monkeypatch, marks):
        self.hanging = list(marks)
        self._clock, self._offset = time.monotonic, 0.0
        self._deadline = self._clock() + 600
        monkeypatch.setattr(time, "monotonic", lambda: self._clock() + self._offset)

    def __call__(self, progress):
        assert self._clock() < self._deadline, "no run was ended"
        self.hanging = [mark for mark in self.hanging if not self._was_ended(mark)]
        if len(progress.pending) == len(self.hanging) and all(mark.exists() for mark in self.hanging):
            self._offset += 3600.0

    def _was_ended(self, mark):
        now = RunDirectory(mark.parent).read_status()
        return now is not None and "no heartbeat" in " ".join((now.reason, *now.notes))


# Retries


@pytest.mark.slow
def test_runs_that_hang_crash_or_are_killed_are_retried_from_checkpoints(tmp_path, monkeypatch):
    names = ("HangsOnce", "KilledOnce", "RaisesOnce")
    reasons = ("no heartbeat for 1,800 s", "killed by SIGKILL", "ConnectionError: the simulator is gone")
    specs = [small_spec(env=f"{BROKEN}{name}-v0", n_timesteps=96) for name in names]
    clock = JumpingClock(monkeypatch, [tmp_path / "out" / specs[0].path / "mark"])
    failures, said = execute(specs, tmp_path / "out", retries=1, tell=clock)
    assert failures == {}
    assert len(said) == 3
    for name, spec, reason in zip(names, specs, reasons, strict=True):
        run = RunDirectory(tmp_path / "out" / spec.path)
        now = run.read_status()
        assert (now.state, now.attempts, now.resumed_from) == ("done", 2, 32)
        (note,) = now.notes
        assert note.startswith("attempt 1 ended: ")
        assert reason in note
        (line,) = [line for line in said if spec.path in line]
        assert line.startswith(f"retried from step 32: {spec.path}: ")
        assert reason in line
        # An environment that only counts steps gives the same results in every run
        train_run(spec.model_copy(update={"env": f"{BROKEN}Fine-v0"}), tmp_path / name)
        assert outcome(run.path)["model.zip"] == outcome(tmp_path / name)["model.zip"]
        assert outcome(run.path)["evaluations.npz"] == outcome(tmp_path / name)["evaluations.npz"]
    # The traceback of the hanging process
    assert 'broken_envs.py", line' in (tmp_path / "out" / specs[0].path / "output.log").read_text()


@pytest.mark.slow
def test_clock_jumps_do_not_end_runs(tmp_path, monkeypatch):
    spec = small_spec(env=f"{BROKEN}WaitsOnce-v0")
    run = RunDirectory(tmp_path / spec.path)
    wall_clock, monotonic_clock = time.time, time.monotonic
    offsets = {"wall": 0.0, "monotonic": 0.0}
    monkeypatch.setattr(time, "time", lambda: wall_clock() + offsets["wall"])
    monkeypatch.setattr(time, "monotonic", lambda: monotonic_clock() + offsets["monotonic"])
    # NTP, NTP, and a suspended virtual machine
    jumps = [("wall", 7200.0), ("wall", -7200.0), ("monotonic", 7200.0), ("wall", 0.0)]
    shown, due = [], 0.0

    def tell(progress):
        nonlocal due
        if not (run.path / "mark").exists():
            return
        if not jumps:
            (run.path / "go").touch()
            return
        shown.append(len(progress.of("running")))
        if monotonic_clock() >= due:
            clock, offset = jumps.pop(0)
            offsets[clock] += offset
            due = monotonic_clock() + 1.5  # the sweep checks the run in between

    plan = make_plan([spec], tmp_path)
    persistence = Persistence(stall_timeout=3600)
    assert run_sweep(plan, LocalEngine(1), "", tell=tell, say=print, persistence=persistence) == {}
    assert (run.read_status().state, run.read_status().attempts) == ("done", 1)
    assert jumps == []
    assert set(shown) == {1}


@pytest.mark.slow
def test_run_that_always_hangs_fails_without_affecting_others(tmp_path, monkeypatch):
    specs = [small_spec(env=f"{BROKEN}HangsForOne-v0", seed=seed) for seed in (BAD, 1)]
    clock = JumpingClock(monkeypatch, [tmp_path / specs[0].path / "mark"])
    failures, said = execute(specs, tmp_path, retries=0, tell=clock)
    assert list(failures) == [specs[0].path]
    assert failures[specs[0].path].startswith("no heartbeat for 1,800 s, so it was killed (--stall-timeout)")
    assert [line.partition(":")[0] for line in said] == ["failed"]
    assert [status(tmp_path, spec).state for spec in specs] == ["failed", "done"]
    assert status(tmp_path, specs[0]).reason == failures[specs[0].path]


@pytest.mark.slow
def test_run_that_is_killed_each_time_is_retried_five_times_as_often(tmp_path):
    spec = small_spec(env=f"{BROKEN}KilledForOne-v0", seed=BAD)
    failures, said = execute([spec], tmp_path, retries=1)
    assert "its process was killed by SIGKILL" in failures[spec.path]
    # The killed run may not be at fault
    assert [line.partition(":")[0] for line in said] == ["retried from the start"] * 5 + ["failed"]
    now = status(tmp_path, spec)
    assert now.attempts == 6
    assert len(now.notes) == 5


@pytest.mark.slow
def test_run_that_fails_each_time_uses_all_retries(tmp_path):
    spec = small_spec(env=f"{BROKEN}Raises-v0")
    failures, said = execute([spec], tmp_path, retries=2)
    assert "KeyError" in failures[spec.path]
    assert len(said) == 3
    assert status(tmp_path, spec).attempts == 3


@pytest.mark.slow
def test_deterministic_failure_is_not_retried(tmp_path):
    spec = small_spec(env=f"{BROKEN}NanReward-v0")
    failures, said = execute([spec], tmp_path, retries=3)
    assert "NaN" in failures[spec.path]
    assert len(said) == 1
    assert status(tmp_path, spec).attempts == 1


@pytest.mark.slow
def test_killed_population_is_split_until_the_faulty_run_is_alone(tmp_path):
    specs = [small_spec(env=f"{BROKEN}KilledForOne-v0", seed=seed) for seed in (1, 2, BAD, 3)]
    failures, _ = execute(specs, tmp_path, population=4, n_jobs=1, retries=0)
    assert list(failures) == [specs[2].path]
    assert [status(tmp_path, spec).state for spec in specs] == ["done", "done", "failed", "done"]
    # Three attempts of all four, then two and two, then one and one
    assert [status(tmp_path, spec).attempts for spec in specs] == [4, 4, 5, 5]
    whole = tmp_path / "whole"
    fine = [spec.model_copy(update={"stacked": True}) for spec in specs if spec.seed != BAD]
    assert execute(fine, whole, population=3, n_jobs=1) == ({}, [])
    for spec in fine:
        assert_same_result(tmp_path / spec.path, whole / spec.path)


@pytest.mark.slow
def test_sweep_survives_a_killed_fork_server(tmp_path):
    engine = LocalEngine(1)
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    assert execute([small_spec()], tmp_path, engine=engine) == ({}, [])


@pytest.mark.slow
def test_run_whose_folder_is_removed_is_retrained(tmp_path):
    spec = small_spec(env=f"{BROKEN}WaitsOnce-v0", n_timesteps=320)
    path, removed = tmp_path / spec.path, tmp_path / "removed"

    def remove():
        until((path / "mark").exists)
        # Atomic removal: the run could write files while others are deleted
        path.rename(removed)
        (removed / "go").touch()
        until((path / "mark").exists)
        (path / "go").touch()

    removing = Thread(target=remove)
    removing.start()
    failures, said = execute([spec], tmp_path)
    removing.join()
    assert failures == {}
    assert len(said) == 1
    assert RunDirectory(path).damage() == RunDirectory(path).minor_damage() == []
    assert (path / "spec.json").exists()


def test_run_does_not_overwrite_the_status_of_a_replaced_folder(tmp_path):
    spec, path = small_spec(n_timesteps=320), tmp_path / "run"
    finished: dict[str, tuple[int, bytes]] = {}

    def replace_folder(status):
        if not finished:
            shutil.move(path, tmp_path / "away")
            train_run(spec, path)
            finished.update(contents(path))

    with pytest.raises(RunFailed, match="removed while it trained"):
        train_run(spec, path, tell=replace_folder)
    assert RunDirectory(path).read_status().state == "done"
    assert contents(path)["status.json"] == finished["status.json"]


# Concurrent sweeps


@pytest.mark.slow
def test_two_sweeps_in_one_folder_share_the_work(tmp_path):
    words = [
        *("sweep", "discrete_srl", "--envs", "CartPole-v1", "--algos", "ppo", "sppo", "--noise", "none"),
        *("--seeds", "0:3", "--timesteps", 640, "--device", "cpu", "--jobs", 1, "--population", "off"),
        *(*SMALL_WORDS, "--out", tmp_path / "both"),
    ]
    processes = [start_srl(*words) for _ in range(2)]
    ended = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    runs = find_runs(tmp_path / "both")
    assert len(runs) == 6
    assert {(run.read_status().state, run.read_status().attempts) for run in runs} == {("done", 1)}
    assert all("over 3 seeds" in " ".join(out.split()) for out, _ in ended)
    for out, err in ended:
        assert "failed:" not in out
        assert err == ""


# Kills


@pytest.mark.slow
def test_repeatedly_killed_sweep_has_identical_results(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(chaos.command(whole, 1, 2560), check=True, capture_output=True)
    n_sweeps, n_workers = chaos.disturb(chaos.command(killed, 1, 2560), killed, 4, seed=0, pause=2.0)
    assert n_sweeps + n_workers > 0
    chaos.compare(killed, whole)


# Full disks


class FullEngine:
    """An engine that executes nothing and reports a full disk when its first task ends."""

    room = 1

    def __init__(self, reason):
        self.reason = reason
        self.tasks: list[Task] = []
        self.closed = False

    def submit(self, orders):
        for order in orders:
            self.tasks.append(order.task)
            (job,) = order.task.jobs
            with RunDirectory(job.path).claimed(job.spec):
                RunDirectory(job.path).write_status(Status("failed", reason=self.reason))

    def wait(self, seconds):
        ended = [Ended(task) for task in self.tasks]
        self.tasks.clear()
        return ended

    def end(self, task):
        raise AssertionError

    def close(self):
        self.closed = True


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_stops_the_sweep_with_path_and_free_space(number, tmp_path):
    engine = FullEngine(f"OSError: [Errno {number}] {os.strerror(number)}: '/x/1.npz' (at step 64)")
    specs = [small_spec(seed=seed) for seed in range(3)]
    with pytest.raises(OutOfSpace, match=rf"{tmp_path} is full .*free\). Finished runs"):
        execute(specs, tmp_path, engine=engine)
    assert engine.closed
    # The other runs were not started
    assert len(find_runs(tmp_path)) == 1


def test_no_free_space_stops_the_sweep_regardless_of_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**12, free=50_000))
    with pytest.raises(OutOfSpace):
        execute([small_spec()], tmp_path, engine=FullEngine("it ended without saying why"))


ON_SMALL_DISK = """
mount -t tmpfs -o size=500k none "$1" || exit 99
shift
"$@"; echo "status $?"
mount -o remount,size=100m "$SMALL_DISK"
"$@"; echo "status $?"
cp -r "$SMALL_DISK/out" "$COPY"
"""


def can_mount():
    try:
        ask = [*UNSHARE, "sh", "-c", "mount -t tmpfs none /mnt"]
        return shutil.which("unshare") and subprocess.run(ask, capture_output=True).returncode == 0
    except OSError:
        return False


UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="this user may not mount a small disk")
def test_sweep_on_a_full_disk_reports_it_and_resumes_when_space_is_freed(tmp_path):
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    words = [
        *("sweep", "discrete_srl", "--envs", "CartPole-v1", "--algos", "ppo", "sppo", "--noise", "none"),
        *("--seeds", "0:3", "--timesteps", 320, "--device", "cpu", "--jobs", 2, "--population", "off"),
        *(*SMALL_WORDS, "--checkpoint-every", 0),
    ]
    srl_ = str(Path(sys.executable).with_name("srl"))
    both = subprocess.run(
        [*UNSHARE, "sh", "-c", ON_SMALL_DISK, "sh", disk, srl_, *map(str, words), "--out", disk / "out"],
        capture_output=True,
        text=True,
        env={**os.environ, "SMALL_DISK": str(disk), "COPY": str(copy)},
    )
    assert "status 1\n" in both.stdout, both.stdout + both.stderr
    assert f"srl: the disk of {disk}/out is full (" in both.stderr
    assert "Traceback" not in both.stdout + both.stderr
    assert both.stdout.rstrip().endswith("status 0")
    assert srl(*words, "--out", tmp_path / "whole").status == 0
    chaos.compare(copy, tmp_path / "whole")


# Options


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--retries", "-1"], "--retries -1: must be 0 or above"),
        (["--stall-timeout", "0"], "--stall-timeout 0: must be above 0"),
        (["--stall-timeout", "nan"], "--stall-timeout nan: must be above 0"),
        (["--checkpoint-every", "-1"], "--checkpoint-every -1: must be 0 or more"),
        (["--checkpoint-every", "nan"], "--checkpoint-every nan: must be 0 or more"),
        (["--partition", "gpu"], "--partition gpu: is for --engine slurm, and the engine is local"),
        (["--engine", "ray", "--time", "60"], "--time 60: is for --engine slurm, and the engine is ray"),
        (["--engine", "slurm", "--address", "auto"], "--address auto: is for --engine ray"),
        (["--engine", "ray", "--tasks-per-gpu", "0"], "--tasks-per-gpu 0: must be 1 or above"),
        (["--engine", "rai"], "--engine rai: must be local, ray, slurm, or module:Class with its arguments."),
        (["--engine", "ray: {address: auto}"], "--engine ray: must be local, ray, slurm, or module:Class"),
        (["--engine", "a:B: 3"], "--engine a:B: 3: must be a name, or 'module:Class: {ARGUMENT: VALUE}'"),
        (["--engine", "{}"], "--engine {}: must be a name, or 'module:Class: {ARGUMENT: VALUE}'"),
        (["--engine", "3: {a: 1}"], "--engine 3: {a: 1}: must be a name"),
        (["--engine", "{a:B: {}, c:D: {}}"], "--engine {a:B: {}, c:D: {}}: must be a name"),
        (["--engine", "no_module:B"], "no_module:B needs the module 'no_module'"),
        (
            ["--engine", "pathlib:Path"],
            "--engine pathlib:Path: must be a subclass of srl.sweep.engines.Engine",
        ),
        (
            ["--engine", "srl.sweep.engines.local:Options: {room: 3}"],
            "--engine srl.sweep.engines.local:Options: ",
        ),
        (["--engine", "slurm", "--time", "0"], "--time 0: must be H:MM:SS or minutes"),
        (["--engine", "slurm", "--time", "soon"], "--time soon: must be H:MM:SS or minutes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_option_is_named_and_nothing_is_written(words, says, tmp_path):
    ended = srl("sweep", "discrete_srl", "--quick", *words, "--out", tmp_path / "out")
    assert ended.status == 2
    assert says in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("4:00:00", 240), ("30:00", 30), ("0:30", 1), ("1-12:00:00", 2160), ("1:00:01", 61)],
)
def test_job_time_limit_is_parsed_like_in_slurm(text, minutes):
    assert parse_minutes(text) == minutes


def test_timeout_that_is_not_a_number_is_rejected():
    with pytest.raises(UserError):
        Persistence(0, float("nan"), 0.0)


# GPUs


class RecordingContext:
    """A multiprocessing context that only records GPU assignments."""

    def __init__(self):
        self.gpus: list[str | None] = []

    def Process(self, target, args):
        self.gpus.append(args[1])
        return RecordingProcess()


class RecordingProcess:
    pid = None

    def start(self): ...

    def terminate(self): ...

    def join(self, seconds=None): ...

    def is_alive(self):
        return False


def order(device, seed=0):
    spec = small_spec(seed=seed).model_copy(update={"device": device})
    return Order(Task((Job(spec, Path(spec.path)),)))


def test_tasks_are_distributed_over_visible_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-abc")
    engine = LocalEngine(6)
    engine._context = context = RecordingContext()
    engine.submit([order("cuda", 0), order("cpu", 1), order("cuda", 2), order("cuda", 3), order("cuda:1", 4)])
    # Tasks with an explicit GPU and tasks on the CPU are not assigned
    assert context.gpus == ["2", None, "GPU-abc", "2", None]
    assert engine.room == 1
    engine.close()


@pytest.mark.parametrize(("named", "gpus"), [("", []), ("-1", []), ("0, 3", ["0", "3"])])
def test_visible_gpus_follow_cuda_visible_devices(named, gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == gpus


def test_full_engine_receives_no_tasks(tmp_path):
    class Crowded(FullEngine):
        room = 0

    plan = Plan(tmp_path, [])
    job = Job(small_spec(), tmp_path / "run")
    plan.to_do, plan.tasks = [job], [Task((job,))]
    sweep = execution._Execution(plan, Crowded(""), "", print, print, Persistence())
    assert sweep.step()
    assert not (tmp_path / "run").exists()


DRIVER = """
import sys
from pathlib import Path
from tests.sweep.test_execution import BAD, BROKEN, execute, small_spec
execute([small_spec(env=f"{BROKEN}HangsForOne-v0", seed=BAD)], Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_hanging_process_exits_after_its_sweep_is_killed(tmp_path):
    sweep = subprocess.Popen([sys.executable, "-c", DRIVER, tmp_path], cwd=ROOT)
    run = RunDirectory(tmp_path / small_spec(env=f"{BROKEN}HangsForOne-v0", seed=BAD).path)
    until(lambda: (run.path / "mark").exists())
    sweep.kill()
    sweep.wait()
    assert run.in_progress
    until(lambda: not run.in_progress)
