"""Foreign files in a run directory are never modified."""

import json
import shutil
from functools import partial

import pytest

from srl import SPPO
from srl.errors import UserError
from srl.rundir.checkpoints import checkpoint_steps
from srl.rundir.directory import RunDirectory
from srl.rundir.files import write_text
from srl.training.run import train_run
from tests.small_runs import contents, small_spec, srl
from tests.training.test_resume import interrupt_at, outcome

SPEC = small_spec(n_timesteps=160)
MINE = [
    "notes.txt", "model.zip.bak", ".model.zip.backup", ".spec.json.swp", "events.out.tfevents.mine",
    "events.out.tfevents.1700000000.host.12.0.bak", "monitor/notes.txt", "monitor/mine.csv",
    "monitor/0.monitor.csv.bak", "checkpoints/best.npz", "checkpoints/032.npz", "checkpoints/notes/64.npz",
    "damaged-1/notes.txt", "slurm/1.out",
]  # fmt: skip


def put(run):
    """Write foreign files; they are long, so that truncating them as logs would be visible."""
    for name in MINE:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"{name}: years of work\n" * 100)
    (run / "monitor" / "linked").symlink_to(run / "nowhere")
    (run / "checkpoints" / "7.npz").mkdir()
    (run / "checkpoints" / "8.npz").symlink_to(run / "notes.txt")


def mine(run):
    """Return the foreign files."""
    found = {name: file for name, file in contents(run).items() if name in MINE}
    links = [run / "monitor" / "linked", run / "checkpoints" / "8.npz"]
    return found, [link.readlink() for link in links], (run / "checkpoints" / "7.npz").is_dir()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_run(SPEC, folder / "whole")
    interrupt_at(5, SPPO, "train", partial(train_run, SPEC, folder / "begun", checkpoint_every=0))
    assert checkpoint_steps(folder / "begun") == [128, 96]
    return folder


@pytest.mark.parametrize("state", ["resumed", "restarted", "damaged"])
def test_foreign_files_survive_a_run(state, trained, tmp_path):
    run = shutil.copytree(trained / ("whole" if state == "damaged" else "begun"), tmp_path / "run")
    put(run)
    for steps in (96, 128):
        if state == "restarted":
            (run / "checkpoints" / f"{steps}.npz").write_bytes(b"damaged")
    if state == "damaged":
        (run / "model.zip").write_bytes(b"damaged")
    before = mine(run)
    status = train_run(SPEC, run, checkpoint_every=0)
    assert status.resumed_from == (128 if state == "resumed" else 0)
    assert mine(run) == before
    # Only the foreign files are left
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "best.npz", "032.npz", "notes", "7.npz", "8.npz",
    }  # fmt: skip
    assert RunDirectory(run).damage() == RunDirectory(run).minor_damage() == []
    assert not set(MINE) & RunDirectory(run).read_status().files.keys()
    if state == "damaged":
        assert (run / "damaged-2" / "model.zip").read_bytes() == b"damaged"
    srl("clean", run, "--yes")
    assert mine(run) == before
    for name in ("monitor/notes.txt", "monitor/mine.csv", "monitor/0.monitor.csv.bak"):
        (run / name).unlink()
    (run / "monitor" / "linked").unlink()
    assert outcome(run) == outcome(trained / "whole")


@pytest.mark.parametrize(
    "content", ['{"state": "running"}', '{"state": "done", "checksum": "x"}', "[]", "ok\n"], ids=str
)
def test_status_of_another_program_is_not_replaced(content, tmp_path):
    (tmp_path / "status.json").write_text(content)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"contains status\.json and is not a run directory"):
        train_run(SPEC, tmp_path)
    assert contents(tmp_path) == before


def test_folder_with_foreign_files_is_rejected_unmodified(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"contains thesis\.tex and is not a run directory"):
        train_run(SPEC, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("target", ["mine.txt", "nowhere"])
def test_link_is_never_replaced(target, tmp_path):
    (tmp_path / "mine.txt").write_text("years of work")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(UserError, match=r"link is a link, and srl writes a file there\. Move it away"):
        write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "mine.txt").read_text() == "years of work"


def test_status_of_a_run_that_replaced_another_is_not_overwritten(tmp_path):
    # A sweep records failures only in its own runs; this run belongs to another spec
    from srl.sweep.engines import Job, Task
    from srl.sweep.execution import _Execution, _Running

    other = small_spec(seed=7)
    train_run(other, tmp_path / "run")
    before = contents(tmp_path)
    job = Job(SPEC, tmp_path / "run")
    execution = object.__new__(_Execution)
    status = RunDirectory(job.path).read_status()
    reason = execution._reason(job, status, "", _Running(Task((job,))))
    assert "holds a run of another spec" in reason
    assert contents(tmp_path) == before
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
