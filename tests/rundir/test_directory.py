"""The run directory: atomic writes, reading files, and ownership."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from srl.errors import UserError
from srl.rundir.directory import RunDirectory
from srl.rundir.files import check_writable, replacing, write_text
from srl.rundir.names import EVALUATIONS, SPEC, STATUS
from srl.rundir.plan import read_plan
from srl.rundir.status import Status
from tests.small_runs import contents, small_spec


def test_file_is_replaced_atomically_with_default_permissions(tmp_path):
    file = tmp_path / "file.txt"
    file.write_text("old")
    plain_mode = file.stat().st_mode
    with replacing(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert file.stat().st_mode == plain_mode
    assert list(tmp_path.iterdir()) == [file]


def test_exception_during_writing_keeps_the_old_file(tmp_path):
    file = tmp_path / "file.txt"
    file.write_text("old")

    def write_half():
        with replacing(file) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_invalid_text_keeps_the_old_file(tmp_path):
    file = tmp_path / "file.txt"
    file.write_text("old")
    with pytest.raises(TypeError):
        write_text(file, 3)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_undecodable_bytes_of_file_names_are_written_as_escapes(tmp_path):
    write_text(tmp_path / "file.txt", "caf\udce9")
    assert (tmp_path / "file.txt").read_text() == "caf\\udce9"


@pytest.fixture
def claimed(tmp_path):
    """A folder that was claimed for a run and released."""
    directory = RunDirectory(tmp_path / "run")
    with directory.claimed(small_spec()):
        pass
    return directory


def test_claimed_folder_contains_the_spec(claimed):
    assert claimed.read_spec() == small_spec()
    assert claimed.compare(small_spec()) == "unfinished"


def test_folder_with_another_spec_is_rejected_with_the_differences(claimed):
    before = contents(claimed.path)
    with pytest.raises(UserError) as error:
        claimed.compare(small_spec(seed=7, overrides={"gamma": 0.5}))
    assert "seed is 0 there and 7 here" in str(error.value)
    assert "hyperparams.gamma is 0.99 there and 0.5 here" in str(error.value)
    with pytest.raises(UserError), claimed.claimed(small_spec(seed=7)):
        pass
    assert contents(claimed.path) == before


def test_new_attempt_removes_files_of_the_previous_one(claimed):
    for name in ("progress.csv", "evaluations.npz", "events.out.tfevents.1", "error.txt", "versions.json"):
        (claimed.path / name).write_text("left")
    (claimed.path / ".evaluations.npz.abcdefgh").write_text("half")
    (claimed.path / "monitor").mkdir()
    (claimed.path / "monitor" / "0.monitor.csv").write_text("left")
    with claimed.claimed(small_spec()):
        assert sorted(file.name for file in claimed.path.iterdir()) == ["run.lock", "spec.json"]


def test_folder_with_foreign_files_is_rejected_unmodified(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"contains thesis\.tex and is not a run directory"):
        RunDirectory(tmp_path).compare(small_spec())
    assert contents(tmp_path) == before


def test_foreign_hidden_files_are_never_deleted(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("years of work")
    (tmp_path / ".bashrc").write_text("settings")
    try:
        with RunDirectory(tmp_path).claimed(small_spec()):
            pass
    except UserError:
        pass  # rejecting such a folder is also correct
    assert (tmp_path / ".git" / "HEAD").read_text() == "years of work"
    assert (tmp_path / ".bashrc").read_text() == "settings"


def test_finished_run_is_not_restarted(claimed):
    # Another process can finish the run after a sweep checked it
    (claimed.path / "model.zip").write_text("trained for days")
    np.savez(claimed.path / "evaluations.npz", timesteps=[64], results=[[1.0]], ep_lengths=[[1]])
    claimed.write_status(Status("done"))
    assert claimed.compare(small_spec()) == "done"
    try:
        with claimed.claimed(small_spec()):
            pass
    except UserError:
        pass
    assert (claimed.path / "model.zip").read_text() == "trained for days"


CLAIM = """
import sys, time
from pathlib import Path
from srl.rundir.directory import RunDirectory
from srl.rundir.status import Status
from tests.small_runs import small_spec
directory = RunDirectory(Path(sys.argv[1]))
with directory.claimed(small_spec()):
    import os, socket
    directory.write_status(Status("running", pid=os.getpid(), host=socket.gethostname()))
    print("claimed", flush=True)
    sys.stdin.read()
"""


@contextmanager
def claiming(path):
    """A process that holds the lock of a run's folder."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", CLAIM, path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout.readline() == b"claimed\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the lock of a run's folder, and the folder."""
    with claiming(tmp_path / "run") as process:
        yield process, tmp_path / "run"


@pytest.mark.slow
def test_claiming_a_claimed_run_fails_and_names_the_process(other_process):
    process, path = other_process
    before = contents(path)
    assert RunDirectory(path).in_progress
    with pytest.raises(UserError, match="another process") as error, RunDirectory(path).claimed(small_spec()):
        pass
    assert str(process.pid) in str(error.value)
    assert contents(path) == before


@pytest.mark.slow
def test_run_of_a_killed_process_can_be_claimed_immediately(other_process):
    process, path = other_process
    process.kill()
    process.wait()
    directory = RunDirectory(path)
    assert not directory.in_progress
    assert directory.read_status().state == "running"
    assert directory.compare(small_spec()) == "unfinished"
    with directory.claimed(small_spec()):
        assert directory.in_progress


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"state": "done"', '{"state": "over"}', "\udcff"],
)
def test_invalid_status_reads_as_none(claimed, text):
    (claimed.path / STATUS).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert claimed.read_status() is None
    assert claimed.compare(small_spec()) == "unfinished"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", '{"format": 1}', '{"hyperparams": {"z": 1}}', "\udcff"]
)
def test_invalid_spec_raises_user_error_with_file_name(claimed, text):
    (claimed.path / SPEC).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as error:
        claimed.compare(small_spec())
    assert str(claimed.path / SPEC) in str(error.value)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        dict(timesteps=np.array([1, 2]), results=np.ones((1, 3))),
        dict(timesteps=np.array([1]), results=np.ones(3)),
        dict(timesteps=np.array([]), results=np.ones((0, 3))),
        dict(timesteps=np.array([1]), results=np.ones((1, 0))),
        dict(timesteps=np.array(1), results=np.ones((1, 3))),
        dict(timesteps=np.array([1]), results=np.array([["a"]])),
        dict(timesteps=np.array([1]), results=np.array([[None]])),
    ],
    ids=str,
)
def test_evaluations_with_invalid_shape_are_damaged(claimed, arrays):
    np.savez(claimed.path / EVALUATIONS, **arrays)
    with pytest.raises(UserError, match=r"evaluations\.npz"):
        claimed.read_evaluations()


def test_truncated_evaluations_are_damaged(claimed):
    file = claimed.path / EVALUATIONS
    np.savez(file, timesteps=np.arange(100), results=np.ones((100, 3)))
    whole = file.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            claimed.read_evaluations()
    file.unlink()
    with pytest.raises(UserError, match="missing"):
        claimed.read_evaluations()


def test_unwritable_path_is_rejected(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(UserError, match="is a file, and a folder is needed"):
            check_writable(path)
    for path in (Path("/proc/runs"), Path("/proc/runs/deeper")):
        with pytest.raises(UserError, match="cannot be written"):
            check_writable(path)
    with pytest.raises(UserError):
        check_writable(tmp_path / ("x" * 300))
    check_writable(tmp_path / "new" / "deeper")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
@pytest.mark.parametrize("mode", [0o000, 0o555], ids=["closed", "read-only"])
def test_folder_of_another_user_is_rejected(tmp_path, mode):
    closed = tmp_path / "closed"
    closed.mkdir(mode=mode)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        for path in (closed, closed / "run"):
            with pytest.raises(UserError, match="cannot be written"):
                check_writable(path)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"runs": 3}', '{"runs": [{}]}', '{"runs": [3]}'],
)
def test_invalid_plan_raises_user_error_with_advice(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=r"sweep\.json: not the plan of a sweep: .* Remove it"):
        read_plan(tmp_path)


def test_status_round_trips_through_json(claimed):
    status = Status("failed", timesteps=5, n_timesteps=64, started=1.5, ended=2.5, reason="a | b", pid=3)
    claimed.write_status(status)
    assert claimed.read_status() == status
    assert json.loads((claimed.path / STATUS).read_text())["reason"] == "a | b"
