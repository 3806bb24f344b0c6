"""``srl status``: output for folders in all states, without modifying them."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext

from srl.report.markup import one_line
from srl.report.overview import Folder
from srl.report.screen import screen
from srl.rundir.directory import RunDirectory
from srl.rundir.plan import PlannedRun
from srl.rundir.status import Status, boot_id
from tests.report.made_runs import lay_down
from tests.small_runs import SMALL_WORDS, contents, small_spec, srl, until

SRL = Path(sys.executable).with_name("srl")
#: Two evaluations of two episodes.
RETURNS = [[0.0, 0.0], [9.0, 11.0]]
STEPS = 64


def lay(root, state="done", *, reason="", at=None, status=None, **changes):
    """Write a run of 64 steps; ``status`` overrides fields of its status."""
    directory = lay_down(root, RETURNS, at=at, state=state, reason=reason, n_timesteps=STEPS, **changes)
    if status is not None:
        directory.write_status(replace(directory.read_status(), **status))
    return directory


def plan(root, *specs, **changes):
    runs = [vars(PlannedRun.of(spec)) | changes for spec in specs]
    root.mkdir(parents=True, exist_ok=True)
    (root / "sweep.json").write_text(json.dumps({"format": 1, "runs": runs}))


def look(root):
    """Return the output of ``srl status`` and check that it modifies nothing."""
    before = contents(root)
    outcome = srl("status", root)
    assert (outcome.status, outcome.err) == (0, "")
    assert contents(root) == before
    return outcome.out


def drawn(root, width, height=None):
    """Return the lines on a terminal of this size."""
    console = Console(width=width, record=True, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(screen(Folder(root).read(), root, width, height))
    return console.export_text().splitlines()


def part(text, heading):
    """Return the lines below a heading."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    (lines,) = [lines[1:] for lines in blocks if lines[0].split()[:1] == [heading]]
    return lines


def words(text, heading):
    """Return the lines below a heading with single spaces between words."""
    return [" ".join(line.split()) for line in part(text, heading)]


def claimed(directory):
    """Claim a run in this process, so that it is in progress."""
    return directory.claimed(directory.read_spec())


def test_finished_sweep_is_summarized(tmp_path):
    specs = [small_spec(algo, seed=seed) for algo in ("ppo", "sppo") for seed in range(3)]
    plan(tmp_path, *specs)
    for spec in specs:
        lay(tmp_path, algo=spec.algo, seed=spec.seed)
    text = look(tmp_path)
    assert f"{tmp_path}: 6 runs\n6 done\n" in text
    assert "100%  384 of 384 steps" in text
    assert "All runs are finished." in text
    assert re.search("^environment +PPO +SPPO *$", text, re.MULTILINE)
    assert words(text, "environment") == ["CartPole-v1 3/3 100% 3/3 100%"]
    for word in ("running", "failed", "damaged", "interrupted", "not started"):
        assert word not in text


def test_runs_are_counted_by_state(tmp_path):
    plan(tmp_path, *(small_spec(seed=seed) for seed in range(8)))
    lay(tmp_path, seed=0)
    lay(tmp_path, seed=1)
    lay(tmp_path, "failed", seed=2, reason="it broke")
    lay(tmp_path, "running", seed=3)
    directory = lay(tmp_path, "running", seed=4, status=dict(timesteps=32, steps_per_second=8.0))
    (lay(tmp_path, seed=5).path / "evaluations.npz").write_bytes(b"PK")
    lay(tmp_path, seed=9)  # not in the plan
    with claimed(directory):
        text = look(tmp_path)
    assert ": 9 runs\n3 done, 1 running, 1 interrupted, 1 failed, 1 damaged, 2 not started\n" in text
    # 3 finished runs and half of one: runs without checkpoints restart
    assert f"38%  {3 * STEPS + 32} of {9 * STEPS} steps" in text
    assert words(text, "environment") == ["CartPole-v1 3/9 38%"]
    # 32 + 64 + 2 * 64 steps at 8 per second
    assert "8 steps/s, about 28 s left, failed runs left out" in text
    assert part(text, "failed") == ["CartPole-v1/sppo/none/seed-2: it broke"]
    (line,) = part(text, "damaged")
    assert line.startswith("CartPole-v1/sppo/none/seed-5/evaluations.npz: damaged")


def test_progress_is_100_percent_only_when_all_steps_are_done(tmp_path):
    for seed in range(2):
        directory = lay(tmp_path, "running", seed=seed, status=dict(timesteps=STEPS))
    lay_down(tmp_path, RETURNS, seed=2, n_timesteps=1_000_000)
    with claimed(directory):
        text = look(tmp_path)
    assert "99%  1,000,064 of 1,000,128 steps" in text


def test_time_left_is_unknown_if_nothing_runs_or_a_run_just_started(tmp_path):
    plan(tmp_path, small_spec(), small_spec(seed=1))
    assert "No runs are training; time left unknown." in look(tmp_path)
    directory = lay(tmp_path, "running", status=dict(timesteps=0, steps_per_second=0.0))
    with claimed(directory):
        text = look(tmp_path)
        assert "0 steps/s, time left unknown" in text
        assert words(text, "running") == ["CartPole-v1 SPPO none 0 0% 0 starting"]
        (directory.path / "status.json").unlink()
        assert words(look(tmp_path), "running") == words(text, "running")


def test_members_of_a_population_share_a_line(tmp_path, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    status = dict(timesteps=16, steps_per_second=1.0)
    directories = [lay(tmp_path, "running", seed=seed, status=status | dict(pid=7)) for seed in range(12)]
    directories.append(lay(tmp_path, "running", algo="ppo", seed=3, status=status | dict(pid=8)))
    silent = status | dict(boot=boot_id(), clock=now - 720)
    directories.append(lay(tmp_path, "running", noise="flip:0.1", seed=3, status=silent))
    with ExitStack() as stack:
        for directory in directories:
            stack.enter_context(claimed(directory))
        text = look(tmp_path)
    assert words(text, "running") == [
        "CartPole-v1 SPPO flip:0.1 3 25% 1 no heartbeat for 12 min",  # possibly stuck processes come first
        "CartPole-v1 PPO none 3 25% 1 48 s",
        "CartPole-v1 SPPO none 12 seeds 25% 12 48 s",
    ]


def test_run_in_evaluation_shows_evaluation_progress(tmp_path):
    text = "3/10 episodes, 12,300 steps"
    status = dict(timesteps=32, steps_per_second=1.0, evaluation=text, updated=time.time())
    directory = lay(tmp_path, "running", status=status)
    with claimed(directory):
        assert words(look(tmp_path), "running") == ["CartPole-v1 SPPO none 0 50% 1 evaluating 3/10"]


@pytest.mark.parametrize("jump", [-86_400, 86_400])
def test_time_since_heartbeat_ignores_wall_clock_jumps(jump, tmp_path, monkeypatch):
    now, monotonic = time.time(), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: monotonic)
    here = dict(updated=now, boot=boot_id(), clock=monotonic)
    elsewhere = dict(updated=now, boot="another machine's", clock=monotonic - 720, host="elsewhere")
    with ExitStack() as stack:
        for seed, fields in enumerate([here, elsewhere]):
            status = dict(timesteps=16, steps_per_second=1.0, pid=seed + 1) | fields
            directory = lay(tmp_path, "running", seed=seed, status=status)
            stack.enter_context(claimed(directory))
        monkeypatch.setattr(time, "time", lambda: now + jump)
        assert [line[-4:] for line in words(look(tmp_path), "running")] == ["48 s", "48 s"]
        # Later snapshots detect missing heartbeats
        folder = Folder(tmp_path)
        assert [run.silence for run in folder.read().runs] == [0, 0]
        monkeypatch.setattr(time, "monotonic", lambda: monotonic + 150)
        assert [run.silence for run in folder.read().runs] == [120, 120]
        directory.write_status(replace(directory.read_status(), timesteps=17))
        assert [run.silence for run in folder.read().runs] == [120, 0]


def test_heartbeat_of_one_run_counts_for_its_process(tmp_path, monkeypatch):
    monotonic = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: monotonic)
    status = dict(timesteps=16, steps_per_second=1.0, pid=7, boot=boot_id())
    with ExitStack() as stack:
        for algo, age in (("ppo", 720), ("sppo", 0)):
            clock = monotonic - age
            stack.enter_context(
                claimed(lay(tmp_path, "running", algo=algo, status=status | dict(clock=clock)))
            )
        assert "no heartbeat" not in look(tmp_path)


def test_at_most_twelve_processes_are_shown(tmp_path):
    directories = [lay(tmp_path, "running", seed=seed, status=dict(pid=seed + 1)) for seed in range(15)]
    with ExitStack() as stack:
        for directory in directories:
            stack.enter_context(claimed(directory))
        text = look(tmp_path)
    lines = part(text, "running")
    assert (len(lines), lines[-1]) == (13, "and 3 more")


def test_few_failures_are_listed_and_many_are_grouped_by_reason(tmp_path):
    for seed in range(10):
        lay(tmp_path, "failed", seed=seed, reason=f"lost at step {seed},000", status=dict(ended=float(seed)))
    text = look(tmp_path)
    lines = part(text, "failed")
    assert lines[0] == "CartPole-v1/sppo/none/seed-9: lost at step 9,000"  # the latest
    assert len(lines) == 10
    for number, kind in enumerate("abcdefghijkl"):
        lay(tmp_path, "failed", at=kind, seed=number + 20, reason=kind, status=dict(ended=number + 20.0))
    text = look(tmp_path)
    lines = part(text, "failed")
    assert lines[:2] == ["l: l", "k: k"]
    # Two other reasons, and ten runs with the oldest reason
    assert (len(lines), lines[-1]) == (11, "and 12 more")
    for kind in "defghijkl":
        lay(tmp_path, at=kind, seed=90 + ord(kind))
    assert "\nCartPole-v1/sppo/none/seed-9 and 9 more: lost at step 9,000" in look(tmp_path)
    assert "No runs are training. Rerun the command to retry failed runs." in look(tmp_path)


def damage(file, text):
    def do(directory):
        (directory.path / file).write_text(text)

    return do


DAMAGES = {
    "truncated status": (
        damage("status.json", '{"state": "do'),
        "seed-1/status.json: not the status of a run",
    ),
    "unknown state": (
        damage("status.json", '{"state": "x"}'),
        "status.json: not the status of a run: key state",
    ),
    "text instead of a number in status": (
        damage("status.json", '{"state": "running", "timesteps": "many"}'),
        "status.json: not the status of a run: key timesteps",
    ),
    "infinite status": (
        damage("status.json", '{"state": "running", "updated": -Infinity}'),
        "status.json: not the status of a run: a number in it is not finite",
    ),
    "truncated spec": (damage("spec.json", "{"), "seed-1/spec.json: not the spec of a run"),
    "spec of a later version": (damage("spec.json", '{"format": 2}'), "seed-1/spec.json"),
    "no evaluations": (
        lambda directory: (directory.path / "evaluations.npz").unlink(),
        "evaluations.npz: missing",
    ),
    "missing final evaluation": (
        lambda directory: (
            lay_down(directory.path.parent, RETURNS, at="seed-1", n_timesteps=32, seed=1)
            and (directory.path / "spec.json").write_text(small_spec(seed=1).model_dump_json())
        ),
        "evaluations.npz: the final evaluation is missing",
    ),
}


@pytest.mark.parametrize("planned", [True, False], ids=["planned", "alone"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_run_is_counted_and_its_damage_is_named(kind, planned, tmp_path):
    do, says = DAMAGES[kind]
    for seed in range(3):
        lay(tmp_path, seed=seed)
    do(RunDirectory(tmp_path / "CartPole-v1/sppo/none/seed-1"))
    if planned:
        plan(tmp_path, *(small_spec(seed=seed) for seed in range(3)))
    text = look(tmp_path)
    assert "3 runs\n2 done, 1 damaged\n" in text
    (line,) = part(text, "damaged")
    assert line.startswith("CartPole-v1/sppo/none/seed-1/")
    assert says in line
    assert str(tmp_path) not in line
    # The run is unknown if neither spec nor plan describes it
    n_known = 2 if "spec" in kind and not planned else 3
    assert words(text, "environment")[0].startswith(f"CartPole-v1 2/{n_known} ")


def test_damaged_status_of_a_run_in_progress_is_ignored(tmp_path):
    directory = lay(tmp_path, "running")
    (directory.path / "status.json").write_text("")
    with claimed(directory):
        assert "1 run\n1 running\n" in look(tmp_path)
    assert "1 run\n1 damaged\n" in look(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", '{"runs": 3}', '{"runs": [{"path": "x"}]}', "[]", '{"runs": [{"algo": "x"}]}']
)
def test_damaged_plan_is_named(text, tmp_path):
    lay(tmp_path / "sweep")
    (tmp_path / "sweep" / "sweep.json").write_text(text)
    shown = look(tmp_path)
    assert "1 run\n1 done\n" in shown
    assert "damaged\nsweep/sweep.json: not the plan of a sweep" in shown


def test_planned_run_that_failed_before_writing_a_spec_counts_as_failed(tmp_path):
    plan(tmp_path, small_spec(), small_spec(seed=1))
    folder = tmp_path / "CartPole-v1/sppo/none/seed-1"
    folder.mkdir(parents=True)
    RunDirectory(folder).write_status(Status("failed", reason="the process was killed"))
    text = look(tmp_path)
    assert "2 runs\n1 failed, 1 not started\n" in text
    assert "CartPole-v1/sppo/none/seed-1: the process was killed" in text
    RunDirectory(folder).write_status(Status("done", 64, 64))
    assert "seed-1/spec.json: missing" in look(tmp_path)


def test_plans_of_several_sweeps_in_a_folder_are_merged(tmp_path):
    for name, algo in (("a", "PPO"), ("b", "sppo")):
        plan(tmp_path / name, small_spec(algo), small_spec(algo, seed=1), algo=algo)
        lay(tmp_path / name, algo=algo.lower())
    text = look(tmp_path)
    assert "4 runs\n2 done, 2 not started\n" in text
    assert words(text, "environment") == ["CartPole-v1 1/2 50% 1/2 50%"]


def test_folder_of_one_run_is_summarized(tmp_path):
    directory = lay(tmp_path, "failed", reason="it broke")
    text = look(directory.path)
    assert "seed-0: 1 run\n1 failed\n" in text
    assert text.endswith("failed\nit broke\n")


def test_folder_is_named_as_given(tmp_path, monkeypatch):
    (lay(tmp_path / "s", seed=1).path / "spec.json").write_text("{")
    lay(tmp_path / "s", seed=2)
    monkeypatch.chdir(tmp_path)
    text = look(Path("s"))
    assert text.startswith("s: 2 runs\n")
    assert "damaged\nCartPole-v1/sppo/none/seed-1/spec.json: not" in text
    monkeypatch.chdir("s")
    assert "damaged\nCartPole-v1/sppo/none/seed-1/spec.json: not" in look(Path("."))


HOSTILE = ["[red]x", "[/]", "<b>", "a\nb", "\x1b[2Jclear", ":smile:", "\u5bbd" * 60, "x" * 300, "%s{0}", " "]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_names_and_reasons_from_files_are_shown_in_one_line(name, tmp_path):
    folder = name[:40].replace("/", "-")
    root = tmp_path / folder
    lay(root, "failed", env=name, at=f"{folder}/0", reason=name)
    running = lay(root, "running", env=name, at="1", seed=1)
    (lay(root, at=f"{folder}/2", seed=2).path / "spec.json").write_text("{")
    with claimed(running):
        text = look(root)
        narrow = drawn(root, 60)
    visible = one_line(name).rstrip()
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert [len(part(text, heading)) for heading in ("running", "failed", "damaged")] == [1, 1, 1]
    for heading in ("environment", "running"):
        assert part(text, heading)[0].startswith(visible[:100])
    assert part(text, "failed")[0].rstrip() == f"{one_line(folder)}/0: {visible}".rstrip()
    assert part(text, "damaged")[0].startswith(f"{one_line(folder)}/2/spec.json: not")
    assert all(cell_len(line) <= 60 for line in narrow)


@pytest.mark.slow
def test_folder_with_undecodable_name_is_shown(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    lay(folder, "failed", at=os.fsdecode(b"\xfe"), reason="it broke")
    outcome = subprocess.run([SRL, "status", folder], capture_output=True)
    assert (outcome.returncode, outcome.stderr) == (0, b"")
    assert b": it broke\n" in outcome.stdout


MISTAKES = [
    (["nowhere"], "nowhere: there is no such folder"),
    (["file"], "file: there is no such folder"),
    (["."], ". contains no runs"),
    ([], "equired"),
    *(([".", "--interval", value], f"--interval {value}: must be above 0") for value in ("0", "-1", "nan")),
    ([".", "--watch", "--interval", "inf"], "--interval inf"),
    ([".", "--interval", "soon"], "--interval"),
]


@pytest.mark.parametrize(("options", "says"), MISTAKES, ids=str)
def test_mistake_exits_2_with_clear_error(options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    outcome = srl("status", *options)
    assert outcome.status == 2
    assert says in outcome.err
    assert "Traceback" not in outcome.err
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_folder_with_only_a_damaged_plan_names_the_plan(tmp_path):
    (tmp_path / "sweep.json").write_text("{")
    outcome = srl("status", tmp_path)
    assert outcome.status == 2
    assert "contains no runs" in outcome.err
    assert "sweep.json: not the plan of a sweep" in outcome.err


def test_full_sweep_fits_80_columns_and_24_lines(tmp_path):
    envs = ["InvertedDoublePendulum-v4", *(f"{number}-v4" for number in range(8))]
    algos = ["da2c", "dsa2c", "dppo", "dsppo"]
    entries = [
        dict(path=f"{env}/{algo}/{noise}/{seed}", env=env, algo=algo, noise=noise, seed=seed)
        for env in envs
        for algo in algos
        for noise in ("none", "gaussian:0.05")
        for seed in range(30)
    ]
    runs = [entry | dict(n_timesteps=2_000_000) for entry in entries]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": runs}))
    for number in range(20):
        lay(tmp_path, "failed", seed=number, reason="broken " * 20 + "abcdefghijklmnopqrstu"[number])
        (lay(tmp_path, at=f"{number}").path / "spec.json").write_text("{")
    lines = drawn(tmp_path, 80, 24)
    assert len(lines) <= 24
    assert all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    assert "InvertedDoublePendulum-v4" + 4 * " 0/60 0%" in words(text, "environment")
    assert part(text, "failed")[-1].startswith("and 1")
    assert part(text, "damaged")[-1].startswith("and 1")


def test_algorithms_that_do_not_fit_are_shown_in_additional_tables(tmp_path):
    algos = ["a2c", "sa2c", "da2c", "dsa2c", "ppo", "sppo", "dppo", "dsppo"]
    plan(tmp_path, *(small_spec(env="Pendulum-v1", algo=algo, overrides=dict(beta=0)) for algo in algos))
    for width in (40, 80, 140):
        text = "\n".join(drawn(tmp_path, width))
        assert [word.lower() for word in re.findall(r"\bD?S?(?:A2C|PPO)\b", text)] == algos
        assert text.count("0/1") == 8
        # Only the long path in the first line is truncated
        assert "\u2026" not in "".join(text.splitlines()[1:])


def test_variants_have_their_own_columns(tmp_path):
    for name, state in (("sppo-beta=20", "done"), ("sppo-beta=5", "running"), ("tuned", "failed")):
        lay(tmp_path, state, variant=name)
    lay(tmp_path, "done", algo="ppo")
    for width in (60, 200):
        text = "\n".join(drawn(tmp_path, width))
        headings = " ".join(line for line in text.splitlines() if line.startswith("environment"))
        assert headings.replace("environment", "").split() == ["PPO", "sppo-beta=5", "sppo-beta=20", "tuned"]
        cells = " ".join(line for line in text.splitlines() if line.startswith("CartPole-v1 "))
        assert re.findall(r"\d/\d", cells)[:4] == ["1/1", "0/1", "1/1", "0/1"]


def test_long_lines_are_wrapped_or_truncated_if_lines_are_limited(tmp_path):
    reason = "the simulator was unstable, " * 5 + "and that is the end."
    lay(tmp_path, "failed", reason=reason)
    lines = part("\n".join(drawn(tmp_path, 60)), "failed")
    assert " ".join(line.strip() for line in lines) == f"CartPole-v1/sppo/none/seed-0: {reason}"
    (line,) = part("\n".join(drawn(tmp_path, 60, 24)), "failed")
    assert line.endswith("\u2026")
    assert reason in look(tmp_path)


def test_specs_and_evaluations_are_read_again_only_if_they_change(tmp_path, monkeypatch):
    for seed in range(3):
        lay(tmp_path, seed=seed)
    reads = []
    for name in ("read_spec_leniently", "read_evaluations"):
        read = getattr(RunDirectory, name)
        monkeypatch.setattr(
            RunDirectory, name, lambda self, read=read: reads.append(self.path.name) or read(self)
        )
    folder = Folder(tmp_path)
    assert len(folder.read().of("done")) == 3
    assert sorted(reads) == ["seed-0", "seed-0", "seed-1", "seed-1", "seed-2", "seed-2"]
    reads.clear()
    assert len(folder.read().of("done")) == 3
    assert reads == []
    lay(tmp_path, seed=1)
    (lay(tmp_path, seed=2).path / "evaluations.npz").unlink()
    lay(tmp_path, "failed", seed=3)
    overview = folder.read()
    assert [len(overview.of(state)) for state in ("done", "damaged", "failed")] == [2, 1, 1]
    assert set(reads) == {"seed-1", "seed-2", "seed-3"}


def test_run_that_finishes_during_a_snapshot_is_not_interrupted(tmp_path, monkeypatch):
    directory = lay(tmp_path, "running")

    def ends(self):
        directory.write_status(replace(directory.read_status(), state="done"))
        return False

    monkeypatch.setattr(RunDirectory, "in_progress", property(ends))
    assert len(Folder(tmp_path).read().of("done")) == 1


def test_watch_exits_when_nothing_is_pending(tmp_path):
    lay(tmp_path)
    lay(tmp_path, "failed", seed=1, reason="it broke")
    before = contents(tmp_path)
    watched = srl("status", tmp_path, "--watch")
    assert (watched.status, watched.err) == (0, "")
    assert watched.out == look(tmp_path)
    assert contents(tmp_path) == before


@contextmanager
def watch(root, **options):
    """Run the watch command, and kill it at the end of the test."""
    command = [SRL, "status", root, "--watch", "--interval", "0.1"]

    def heed_ctrl_c():
        # Shells ignore SIGINT in background processes, which the tests may be
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, preexec_fn=heed_ctrl_c, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process, text):
    """Return the output up to the line that contains a text; fail if the process ends first."""
    lines = []
    while not lines or text not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines)
    return "".join(lines)


@pytest.mark.slow
def test_watch_into_a_pipe_prints_changes_and_exits_with_the_last_run(tmp_path):
    plan(tmp_path, small_spec(), small_spec(seed=1))
    lay(tmp_path)
    with watch(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first = read_until(process, "CartPole-v1")
        assert "1 done, 1 not started" in first
        assert not select.select([process.stdout], [], [], 1.0)[0]
        lay(tmp_path, "failed", seed=1, reason="it broke")
        out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("\n")
    assert out.count("2 runs") == 1
    assert "1 done, 1 failed" in out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_watch_silently(number, tmp_path):
    plan(tmp_path, small_spec())
    before = contents(tmp_path)
    with watch(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        read_until(process, "CartPole-v1")
        process.send_signal(number)
        out, err = process.communicate(timeout=600)
    assert (process.returncode, out, err) == (0, "", "")
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_watch_on_a_terminal_updates_in_place_and_stops_with_ctrl_c(tmp_path):
    plan(tmp_path, small_spec(), small_spec(seed=1))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"TERM": "xterm"}
    with watch(tmp_path, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        out = ""
        while "CartPole-v1" not in out:
            out += os.read(master, 4096).decode()
        lay(tmp_path)
        while "1 not started" not in out:
            out += os.read(master, 4096).decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=600) == 0
        with suppress(OSError):  # end of the terminal
            while data := os.read(master, 4096):
                out += data.decode()
    os.close(master)
    assert "\x1b[1A" in out  # the cursor moved up
    assert "\x1b[?25h" in out  # and is visible afterwards
    for word in ("Traceback", "KeyboardInterrupt", "stopped", "starts the run again"):
        assert word not in out


@pytest.mark.slow
def test_trained_run_is_running_until_it_is_killed(tmp_path):
    options = ["train", "--algo", "sppo", "--env", "CartPole-v1", "--timesteps", "50000000", *SMALL_WORDS]
    path = tmp_path / "CartPole-v1/sppo/none/seed-0"
    command = [SRL, *options, "--checkpoint-every", "86400", "--out", path]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: (status := RunDirectory(path).read_status()) and status.steps_per_second > 0)
            # The run keeps writing, so the folder is not compared with its earlier content
            text = srl("status", tmp_path).out
        finally:
            process.kill()
    assert "1 run\n1 running\n" in text
    (line,) = words(text, "running")
    left = r"\d+ (s|min|h \d+ min|days \d+ h)"
    when = rf"{left}|no heartbeat for {left}|evaluating \d/2|starting"
    assert re.fullmatch(rf"CartPole-v1 SPPO none 0 \d+% [\d,]+ ({when})", line)
    text = look(tmp_path)
    assert "1 run\n1 interrupted\n" in text
    assert "0%  0 of 50,000,000 steps\nNo runs are training; time left unknown." in text


def test_tensorboard_lists_runs_by_folder_name(tmp_path):
    for algo in ("ppo", "sppo"):
        out = tmp_path / "CartPole-v1" / algo / "none" / "seed-0"
        options = ["--algo", algo, "--env", "CartPole-v1", "--timesteps", STEPS, "--out", out]
        outcome = srl("train", *options, *SMALL_WORDS)
        assert outcome.status == 0, outcome.err
    # Equivalent to `tensorboard --logdir`
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    shown = provider.list_scalars(RequestContext(), experiment_id="", plugin_name="scalars")
    assert sorted(shown) == ["CartPole-v1/ppo/none/seed-0", "CartPole-v1/sppo/none/seed-0"]
    for tags in shown.values():
        assert {"eval/mean_reward", "train/reverse_loss", "train/advantage_sign_change"} <= tags.keys()
        assert tags["eval/mean_reward"].max_step == STEPS


def test_steps_up_to_the_last_checkpoint_count(tmp_path):
    directory = lay_down(tmp_path, RETURNS, state="running", n_timesteps=64)
    (directory.path / "checkpoints").mkdir()
    (directory.path / "checkpoints" / "32.npz").write_bytes(b"")
    (run,) = Folder(tmp_path).read().runs
    assert (run.state, run.timesteps) == ("interrupted", 32)
