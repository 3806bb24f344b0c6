"""``srl clean``: which files of runs and sweeps are removed, and which are never removed."""

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from srl.errors import UserError
from srl.rundir.clean import YOUNG, Garbage, find_garbage, remove
from srl.rundir.directory import RunDirectory
from srl.rundir.files import replacing
from srl.rundir.status import Status
from srl.sweep.plan import make_plan, write_plan
from srl.training.checkpoint import read_checkpoint, write_checkpoint
from srl.training.run import train_run
from tests.small_runs import contents, small_spec, srl

RESULTS = ["spec.json", "status.json", "versions.json", "progress.csv", "evaluations.npz", "model.zip"]
STATE = {"weights": np.arange(100.0)}
UNFINISHED = "left unfinished by a process that was killed"
FINISHED = "a checkpoint of a finished run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_run(small_spec(), folder)
    return folder


@pytest.fixture
def finished(trained, tmp_path):
    """A finished run in the folder layout of a sweep."""
    return Path(shutil.copytree(trained, tmp_path / "CartPole-v1" / "sppo" / "none" / "seed-0"))


@pytest.fixture
def unfinished(finished):
    """A killed run, which resumes from its checkpoint."""
    set_status(finished, "running")
    (finished / "model.zip").unlink()
    return finished


def set_status(run, state, **changes):
    status = RunDirectory(run).read_status()
    changes = dict(host=socket.gethostname(), updated=time.time()) | changes
    RunDirectory(run).write_status(replace(status, state=state, **changes))


def put(file, content=b"some", *, age=2 * YOUNG):
    """Write a file with an old modification time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    then = time.time() - age
    os.utime(file, (then, then))
    return file


def keep(run, *steps):
    """Write checkpoints at the given steps."""
    files = []
    for step in steps:
        write_checkpoint(run.parent, step, STATE)  # in its own folder, since it removes earlier ones
        made = run.parent / "checkpoints" / f"{step}.npz"
        (run / "checkpoints").mkdir(exist_ok=True)
        files.append(made.rename(run / "checkpoints" / f"{step}.npz"))
    (run.parent / "checkpoints").rmdir()
    return files


def found(root):
    return [(item.path, item.why) for item in find_garbage(root)]


def removed(root):
    """Remove all garbage, which must succeed; return the removed paths."""
    before = set(root.rglob("*"))
    garbage = find_garbage(root)
    freed, problems = remove(garbage)
    assert problems == []
    assert freed == sum(item.n_bytes for item in garbage)
    assert find_garbage(root) == []
    return before - set(root.rglob("*"))


def test_intact_run_has_nothing_to_remove(finished, tmp_path):
    before = contents(tmp_path)
    assert find_garbage(tmp_path) == find_garbage(finished) == []
    assert remove([]) == (0, [])
    assert contents(tmp_path) == before


def test_find_garbage_does_not_modify_files(finished, tmp_path):
    keep(finished, 32, 64)
    put(finished / ".model.zip.abcd_123")
    before = contents(tmp_path)
    assert len(find_garbage(tmp_path)) == 3
    assert contents(tmp_path) == before


def test_checkpoints_of_finished_run_are_removed_with_their_folder(finished, tmp_path):
    before = contents(tmp_path)
    files = keep(finished, 32, 64, 96)
    assert found(tmp_path) == [(file, FINISHED) for file in files]
    assert [item.n_bytes for item in find_garbage(finished)] == [file.stat().st_size for file in files]
    assert removed(tmp_path) == {*files, finished / "checkpoints"}
    assert contents(tmp_path) == before
    assert RunDirectory(finished).compare(small_spec()) == "done"


@pytest.mark.parametrize("state", ["running", "failed"])
def test_unfinished_run_keeps_its_last_two_checkpoints(state, unfinished, tmp_path):
    set_status(unfinished, state)
    files = keep(unfinished, 9, 10, 100)
    assert found(tmp_path) == [(files[0], "a checkpoint before the last 2")]
    assert removed(tmp_path) == {files[0]}
    assert read_checkpoint(unfinished, 100)["weights"].tolist() == STATE["weights"].tolist()


@pytest.mark.parametrize("damaged", [0, 1])
def test_earlier_checkpoints_are_kept_if_one_of_the_last_two_is_damaged(damaged, unfinished):
    files = keep(unfinished, 96, 64, 32)
    files[damaged].write_bytes(b"PK no more")
    assert find_garbage(unfinished) == []


@pytest.mark.parametrize("damage", ["model.zip", "evaluations.npz", "status.json"])
def test_checkpoints_are_kept_if_the_finished_run_is_damaged(damage, finished):
    keep(finished, 32, 64)
    (finished / damage).write_bytes(b"damaged")
    assert find_garbage(finished) == []


def test_run_without_status_keeps_its_checkpoints(finished):
    keep(finished, 32, 64)
    (finished / "status.json").unlink()
    assert find_garbage(finished) == []


def test_temporary_files_of_killed_processes_are_removed(unfinished, tmp_path):
    names = [*RESULTS, "vecnormalize.pkl", "error.txt"]
    names.remove("progress.csv")  # append-only, never replaced
    files = [put(unfinished / f".{name}.a_bcd012", b"12345") for name in names]
    files.append(put(unfinished / "checkpoints" / ".64.npz.zzzzzzzz"))
    before = contents(unfinished)
    assert found(tmp_path) == [(file, UNFINISHED) for file in sorted(files)]
    assert removed(tmp_path) == {*files, unfinished / "checkpoints"}
    assert {name: before[name] for name in contents(unfinished)} == contents(unfinished)


def test_temporary_file_is_removed_only_after_its_writer_is_gone(unfinished, monkeypatch):
    now = time.time()
    with replacing(unfinished / "model.zip"), replacing(unfinished / "spec.json"):
        left = [file for file in unfinished.iterdir() if file.name.startswith(".")]
        assert len(left) == 2
        # The wall clock jumps during writing
        monkeypatch.setattr(time, "time", lambda: now + 86_400)
        assert find_garbage(unfinished) == []
        # Files that a killed process leaves behind
        copies = [put(file.with_name(file.name[:-4] + "left")) for file in left]
        assert sorted(file for file, _ in found(unfinished)) == sorted(copies)
        assert all(file.read_bytes() == b"" for file in left)


def test_recent_temporary_file_is_kept(unfinished):
    put(unfinished / ".status.json.abcdefgh", age=YOUNG / 2)
    put(unfinished / ".model.zip.abcdefgh", age=-YOUNG)
    assert find_garbage(unfinished) == []


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/notes.txt",
        "checkpoints/032.npz",
        "checkpoints/32.npz.bak",
        "checkpoints/-32.npz",
        "checkpoints/٣٢.npz",
        "checkpoints/32.npz\n",
        "checkpoints/inner/32.npz",
        "checkpoints/.32.npz.abcdefg",
        "slurm/1.out",
        ".model.zip.abcdefghi",
        ".model.zip.ABCDEFGH",
        ".model.zip.abcdefgh\n",
        ".modelxzip.abcdefgh",
        ".notes.txt.abcdefgh",
        ".progress.csv.abcdefgh",
        "model.zip.abcdefgh",
        ".sweep.json.abcdefgh",
        "other/.model.zip.abcdefgh",
        "error.txt",
    ],
)
def test_files_with_other_names_are_kept(name, finished, tmp_path):
    put(finished / name)
    files = keep(finished, 64)
    assert removed(tmp_path) - {finished / "checkpoints"} == set(files)
    assert (finished / name).read_bytes() == b"some"


def test_empty_output_log_is_removed_only_from_finished_runs(finished, tmp_path):
    output = put(finished / "output.log", b"")
    assert find_garbage(tmp_path) == [Garbage(output, 0, "the empty output of a finished run")]
    output.write_bytes(b"a word")
    assert find_garbage(tmp_path) == []
    output.write_bytes(b"")
    set_status(finished, "failed")
    assert find_garbage(tmp_path) == []
    set_status(finished, "done")
    assert removed(tmp_path) == {output}


def sweep_of(run, *, seed=0):
    root = run.parent.parent.parent.parent
    write_plan(make_plan([small_spec(seed=seed)], root))
    return root


SWEEP_NAMES = [
    *(".sweep.json", ".table.md", ".table.csv", ".table.tex", ".table_iqm.md", ".statistics.json"),
    *(".report.html", ".evaluations.parquet"),
]


def test_temporary_files_of_killed_sweeps_and_reports_are_removed(finished):
    root = sweep_of(finished)
    files = [put(root / f"{name}.abcdefgh") for name in SWEEP_NAMES]
    put(root / ".notes.md.abcdefgh")
    put(root / ".table.md.20260101x")
    put(root / "CartPole-v1" / ".table.md.abcdefgh")
    assert found(root) == [(file, UNFINISHED) for file in sorted(files)]
    assert removed(root) == set(files)
    assert (root / "sweep.json").exists()


def test_nothing_is_removed_from_a_running_sweep(finished):
    root = sweep_of(finished)
    left = put(root / ".sweep.json.abcdefgh")
    checkpoints = keep(finished, 64)
    with RunDirectory(root / small_spec(seed=1).path).claimed(small_spec(seed=1)):
        assert found(root) == [(checkpoints[0], FINISHED)]
        freed, problems = remove([Garbage(left, 4, UNFINISHED)])
    assert (freed, problems) == (0, [f"{left}: left, since it is in use now or has changed"])
    assert found(root)[0] == (left, UNFINISHED)


@pytest.mark.parametrize("content", ["[]", "{}", "no plan", '{"runs": [1]}', '{"runs": []}'])
def test_sweep_files_of_other_programs_are_ignored(content, tmp_path):
    put(tmp_path / "sweep.json", content.encode())
    put(tmp_path / ".sweep.json.abcdefgh")
    assert find_garbage(tmp_path) == []


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff\xfe", b'{"name": "other", "version": 1}', b"null", b'"text"']
)
def test_folders_without_a_run_are_ignored(content, finished, tmp_path):
    keep(finished, 32, 64)
    put(finished / ".spec.json.abcdefgh")
    (finished / "spec.json").write_bytes(content)
    before = contents(tmp_path)
    assert find_garbage(tmp_path) == []
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["spec.json", "status.json", "run.lock"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "nowhere"])
def test_run_with_links_pipes_or_folders_instead_of_files_is_ignored(kind, name, finished, tmp_path):
    keep(finished, 32)
    moved = (finished / name).rename(tmp_path / "moved")
    if kind == "folder":
        (finished / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(finished / name)
    else:
        (finished / name).symlink_to(moved if kind == "link" else tmp_path / "nowhere")
    assert find_garbage(tmp_path) == []


def test_links_are_not_removed_or_followed(finished, tmp_path):
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    kept = put(outside / "checkpoints" / "64.npz")
    shutil.copytree(finished, outside / "run")
    keep(outside / "run", 64)
    before = contents(outside)
    (finished / "checkpoints").symlink_to(outside / "checkpoints")
    (finished / ".model.zip.abcdefgh").symlink_to(kept)
    (finished / "output.log").symlink_to(put(outside / "empty", b""))
    (tmp_path / "behind").symlink_to(outside)
    (finished / "loop").symlink_to(tmp_path)
    before = contents(outside)
    assert find_garbage(tmp_path) == []
    (finished / "checkpoints").unlink()
    files = keep(finished, 32)
    (finished / "checkpoints" / "64.npz").symlink_to(kept)
    (finished / "checkpoints" / ".96.npz.abcdefgh").symlink_to(tmp_path / "nowhere")
    assert removed(tmp_path) == set(files)
    assert (finished / "checkpoints" / "64.npz").is_symlink()
    assert contents(outside) == before


def test_file_replaced_by_a_link_is_not_removed(finished, tmp_path):
    (file,) = keep(finished, 64)
    garbage = find_garbage(tmp_path)
    target = put(tmp_path / "target")
    file.unlink()
    file.symlink_to(target)
    freed, problems = remove(garbage)
    assert freed == 0
    assert len(problems) == 1
    assert file.is_symlink()
    assert target.read_bytes() == b"some"


def test_folder_replaced_by_a_link_is_not_followed(finished, tmp_path):
    keep(finished, 64)
    garbage = find_garbage(finished)
    moved = (finished / "checkpoints").rename(tmp_path / "moved")
    (finished / "checkpoints").symlink_to(moved)
    freed, problems = remove(garbage)
    assert freed == 0
    assert len(problems) == 1
    assert (moved / "64.npz").exists()


def test_run_given_through_a_link_is_cleaned(finished, tmp_path):
    files = keep(finished, 64)
    (tmp_path / "link").symlink_to(finished)
    freed, problems = remove(find_garbage(tmp_path / "link"))
    assert freed > 0
    assert problems == []
    assert not files[0].exists()


def test_run_in_progress_in_this_process_is_ignored(unfinished, tmp_path):
    keep(unfinished, 32, 64, 96)
    put(unfinished / ".model.zip.abcdefgh")
    with RunDirectory(unfinished).claimed(small_spec(), keep=True):
        assert find_garbage(tmp_path) == []
    assert len(find_garbage(tmp_path)) == 2


HOLD = """
import sys, time
from pathlib import Path
from srl.rundir.directory import RunDirectory
from tests.small_runs import small_spec
with RunDirectory(Path(sys.argv[1])).claimed(small_spec(), keep=True):
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_run_claimed_by_another_process_is_not_cleaned(unfinished, tmp_path):
    keep(unfinished, 32, 64, 96)
    put(unfinished / ".model.zip.abcdefgh")
    garbage = find_garbage(tmp_path)
    assert len(garbage) == 2
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(unfinished)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert process.stdout.readline() == "claimed\n"
        before = contents(tmp_path)
        assert find_garbage(tmp_path) == []
        freed, problems = remove(garbage)
        assert freed == 0
        assert problems == [f"{item.path}: left, since it is in use now or has changed" for item in garbage]
        assert contents(tmp_path) == before
    finally:
        process.communicate("")
    assert remove(garbage) == (sum(item.n_bytes for item in garbage), [])


@pytest.mark.parametrize("age", [-86_400, 0, 86_400])
def test_run_on_another_machine_is_ignored_regardless_of_clocks(age, unfinished, tmp_path):
    put(unfinished / ".model.zip.abcdefgh")
    set_status(unfinished, "running", host="elsewhere", updated=time.time() - age)
    assert find_garbage(tmp_path) == []
    set_status(unfinished, "failed", host="elsewhere")
    assert len(find_garbage(tmp_path)) == 1


def test_failed_run_that_changed_keeps_its_checkpoints(unfinished):
    files = keep(unfinished, 32, 64, 96)
    garbage = find_garbage(unfinished)
    files[1].unlink()
    freed, problems = remove(garbage)
    assert freed == 0
    assert len(problems) == 1
    assert files[0].exists()


def test_already_removed_files_are_no_error(finished):
    files = keep(finished, 32, 64)
    garbage = find_garbage(finished)
    files[0].unlink()
    assert remove(garbage) == (files[1].stat().st_size if files[1].exists() else garbage[1].n_bytes, [])
    assert remove(garbage) == (0, [])


def test_only_garbage_is_removed(finished, tmp_path):
    before = contents(tmp_path)
    paths = [finished / name for name in RESULTS] + [finished, tmp_path, Path("/"), Path(__file__)]
    freed, problems = remove([Garbage(path, 1, FINISHED) for path in paths])
    assert freed == 0
    assert len(problems) == len(paths)
    assert contents(tmp_path) == before


def test_unremovable_file_is_named_and_the_rest_is_removed(finished, tmp_path, monkeypatch):
    files = keep(finished, 32, 64)
    unlink = Path.unlink

    def refuse(path, **options):
        if path == files[0]:
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, **options)

    garbage = find_garbage(tmp_path)
    monkeypatch.setattr(Path, "unlink", refuse)
    freed, problems = remove(garbage)
    assert freed == garbage[1].n_bytes
    assert problems == [f"{files[0]}: Permission denied"]
    assert files[0].exists()
    assert not files[1].exists()


def test_unreadable_folder_is_skipped(finished, tmp_path, monkeypatch):
    keep(finished, 32)
    left = put(finished / ".model.zip.abcdefgh")
    scandir = os.scandir

    def refuse(path="."):
        if str(path).endswith("checkpoints"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    # Tests may run as root, which ignores permissions
    monkeypatch.setattr(os, "scandir", refuse)
    assert found(tmp_path) == [(left, UNFINISHED)]


def test_run_with_unreadable_lock_is_ignored(finished, monkeypatch):
    keep(finished, 32)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "run.lock")
    assert find_garbage(finished) == []


@pytest.mark.parametrize(
    "name", ["-rf ~", "a\nb", "*", "checkpoints", "$(touch x)", os.fsdecode(b"\xff"), "é"]
)
def test_runs_in_folders_with_hostile_names_are_cleaned(name, trained, tmp_path):
    folder = tmp_path / name / "run"
    shutil.copytree(trained, folder)
    files = keep(folder, 64)
    other = put(tmp_path / "a" / "b" / "checkpoints" / "64.npz")
    garbage = find_garbage(tmp_path)
    assert [item.path for item in garbage] == files
    put(folder / "evaluations.npz", b"damaged")
    _, (problem,) = remove(garbage)
    assert problem.isprintable()
    shutil.copy2(trained / "evaluations.npz", folder)
    assert removed(tmp_path) == {*files, folder / "checkpoints"}
    assert other.exists()


@pytest.mark.parametrize("name", ["run.json", "nowhere/at/all"])
def test_root_must_be_a_folder(name, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="Name the folder of a run or a sweep"):
        find_garbage(tmp_path / name)


def test_run_that_never_started_is_ignored(tmp_path):
    with RunDirectory(tmp_path).claimed(small_spec()):
        pass
    RunDirectory(tmp_path).write_status(Status("failed"))
    assert find_garbage(tmp_path) == []


# The command


def test_clean_command_lists_files_and_removes_them_with_yes(tmp_path):
    run = tmp_path / "a\nline" / "run"
    train_run(small_spec(), run)
    checkpoint = run / "checkpoints" / "32.npz"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(bytes(5000))
    before = contents(tmp_path)
    asked = srl("clean", tmp_path)
    assert asked.status == 0
    assert f"{str(checkpoint)!a}  5.0 kB  a checkpoint of a finished run\n" in asked.out
    assert "5.0 kB in all; nothing was removed. Use --yes to remove them." in asked.out
    assert contents(tmp_path) == before
    told = srl("clean", tmp_path, "--yes")
    assert (told.status, "Removed: 5.0 kB." in told.out) == (0, True)
    assert not checkpoint.parent.exists()
    assert "nothing to remove" in srl("clean", tmp_path).out


def test_missing_folder_is_an_error(tmp_path):
    ended = srl("clean", tmp_path / "none", "--yes")
    assert ended.status == 2
    assert ended.err.startswith(f"srl: {tmp_path / 'none'} does not exist.")
