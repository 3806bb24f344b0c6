"""Run directories of newer versions of srl, and links and pipes instead of files."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from srl.errors import UserError
from srl.report.curves import training_curves
from srl.report.scores import read_scores
from srl.report.source import Folders
from srl.rundir.directory import RunDirectory
from srl.rundir.plan import read_plan
from srl.sweep.plan import make_plan, write_plan
from srl.training.run import train_run
from tests.report.made_runs import lay_down
from tests.small_runs import SMALL_WORDS, contents, small_spec, srl

RETURNS = [[1.0, 2.0], [3.0, 4.0]]
NEWER = {
    "top level": {"shield": {"kind": "glass"}},
    "hyperparams": {"hyperparams": {"momentum": 0.9}},
    "nested": {"hyperparams": {"policy_kwargs": {"dropout": [0.1, 0.2]}, "normalize": {"momentum": 0.5}}},
    "format": {"format": 99},
    "everywhere": {
        "format": 99,
        "shield": 1,
        "hyperparams": {"momentum": 0.9, "policy_kwargs": {"dropout": 0}},
    },
}


def merged(values, changes):
    """Return nested mappings with changed keys."""
    changed = {
        key: merged(values.get(key) or {}, value) if isinstance(value, dict) and key in values else value
        for key, value in changes.items()
    }
    return values | changed


def make_newer(run, changes):
    """Change a spec like a newer version of srl, without updating the digest in the status."""
    file = run / "spec.json"
    file.write_text(json.dumps(merged(json.loads(file.read_text()), changes), indent=1) + "\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_run(small_spec(overrides={"normalize": True}), folder)
    return folder


@pytest.mark.parametrize("changes", NEWER.values(), ids=NEWER)
def test_run_of_a_newer_version_can_be_read(changes, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "runs" / "run")
    make_newer(run, changes)
    before = contents(run)
    scores = read_scores(tmp_path)
    assert [run.state for run in scores.runs] == ["done"]
    assert scores.left_out == []
    assert ": 1 run\n1 done\n" in (shown := srl("status", tmp_path).out)
    assert "damaged" not in shown
    assert srl("report", tmp_path, "--format", "json", "--out", tmp_path / "out").status == 0
    assert contents(run) == before


@pytest.mark.slow
def test_page_shows_unknown_keys_of_a_spec(trained, tmp_path):
    make_newer(shutil.copytree(trained, tmp_path / "run"), NEWER["everywhere"])
    ended = srl("report", tmp_path, "--reps", 100)
    assert (ended.status, ended.err) == (0, "")
    page = (tmp_path / "report.html").read_text()
    assert "not known to this version of srl" in page
    assert "hyperparams.policy_kwargs.dropout" in page
    assert "1 of 1 runs are finished" in ended.out


@pytest.mark.parametrize("changes", NEWER.values(), ids=NEWER)
@pytest.mark.parametrize("state", ["done", "running"])
def test_training_into_a_folder_of_a_newer_version_is_rejected(changes, state, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "CartPole-v1" / "sppo" / "none" / "seed-0")
    make_newer(run, changes)
    if state == "running":
        (run / "status.json").unlink()
        (run / "model.zip").unlink()
    before = contents(tmp_path)
    words = ["--device", "cpu", "--timesteps", 64, *SMALL_WORDS, "normalize=true"]
    one = ["train", "--algo", "sppo", "--env", "CartPole-v1", *words, "--out", run]
    several = ["sweep", "discrete_srl", "--envs", "CartPole-v1", "--algos", "sppo", "--noise", "none"]
    several += ["--seeds", "0", *words, "--out", tmp_path]
    for command in (one, several):
        ended = srl(*command)
        assert ended.status == 2
        assert f"{run / 'spec.json'} was written by a newer version of srl" in ended.err
        assert "Update srl" in ended.err
    with pytest.raises(UserError, match="newer version"):
        train_run(small_spec(overrides={"normalize": True}), run)
    assert contents(tmp_path) == before


def test_clean_ignores_folder_of_a_newer_version(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "32.npz").write_bytes(b"")
    make_newer(run, {"shield": 1})
    assert "nothing to remove" in srl("clean", tmp_path).out


def test_runs_that_differ_in_an_unknown_key_are_not_averaged(tmp_path):
    for seed in (0, 1):
        for momentum in (None, 0.5, 0.9):
            run = lay_down(tmp_path, RETURNS, seed=seed, at=f"{momentum}/{seed}").path
            if momentum is not None:
                make_newer(run, {"hyperparams": {"momentum": momentum}})
    cells = read_scores(tmp_path).cells
    assert sorted((cell.variant, len(cell.runs)) for cell in cells) == [
        ("", 2),
        ("momentum=0.5", 2),
        ("momentum=0.9", 2),
    ]
    assert read_scores(tmp_path).left_out == []


def test_spec_of_an_older_version_uses_defaults_for_new_keys(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    values = json.loads((run / "spec.json").read_text())
    del values["env_backend"], values["hyperparams"]["advantage_transform"]
    (run / "spec.json").write_text(json.dumps(values))
    (run / "status.json").unlink()
    assert RunDirectory(run).read_spec() == small_spec(overrides={"normalize": True})
    assert [run.state for run in read_scores(tmp_path).runs] == ["done"]


def test_reformatted_spec_is_the_same_spec(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    values = json.loads((run / "spec.json").read_text())
    (run / "spec.json").write_text(json.dumps(values, sort_keys=True))
    directory = RunDirectory(run)
    assert directory.damage() == []
    assert directory.compare(small_spec(overrides={"normalize": True})) == "done"


@pytest.mark.parametrize(
    "changes",
    [{"format": 2}, {"engine": "slurm"}, {"runs": [{"priority": 1}]}, {"format": None}],
    ids=str,
)
def test_plan_of_a_newer_version_is_read_but_never_overwritten(changes, tmp_path):
    write_plan(make_plan([small_spec()], tmp_path))
    plan = tmp_path / "sweep.json"
    values = json.loads(plan.read_text())
    if "runs" in changes:
        values["runs"][0] |= changes["runs"][0]
    else:
        values |= changes
    plan.write_text(json.dumps(values))
    before = contents(tmp_path)
    assert [run.seed for run in read_plan(tmp_path)] == [0]
    assert "1 not started" in srl("status", tmp_path).out
    with pytest.raises(UserError, match=r"sweep\.json was written by a newer version of srl, or by another"):
        make_plan([small_spec(seed=1)], tmp_path)
    assert contents(tmp_path) == before


def test_plan_of_another_program_is_never_overwritten(tmp_path):
    (tmp_path / "sweep.json").write_text('{"runs": [], "method": "bayes"}')
    with pytest.raises(UserError, match="method='bayes'"):
        make_plan([small_spec()], tmp_path)
    (tmp_path / "sweep.json").unlink()
    (tmp_path / "sweep.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"sweep\.json is a link"):
        make_plan([small_spec()], tmp_path)


def read_training_logs(root):
    for cell in read_scores(root).cells:
        training_curves(cell, Folders(root).training)


PIPES = ["spec.json", "status.json", "evaluations.npz", "versions.json", "progress.csv", "run.lock"]


@pytest.mark.parametrize("name", [*PIPES, "../sweep.json"])
def test_pipe_instead_of_a_file_does_not_block(name, trained, tmp_path):
    root = tmp_path / "runs"
    for seed in (1, 2):
        lay_down(root, RETURNS, seed=seed, overrides={"normalize": True}, at=f"seed-{seed}")
    run = Path(shutil.copytree(trained, root / "run"))
    pipe = run / name
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    shown = {}

    def waits(number, frame):
        raise AssertionError("it waits for the pipe")

    earlier = signal.signal(signal.SIGALRM, waits)
    signal.alarm(120)
    try:
        shown["status"] = srl("status", root)
        shown["report"] = srl("report", root, "--format", "zoo", "--out", tmp_path / "out")
        shown["clean"] = srl("clean", root)
        read_training_logs(root)
        try:
            RunDirectory(run).compare(small_spec(overrides={"normalize": True}))
        except UserError as error:
            shown["compare"] = str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
    assert [shown[name].status for name in ("status", "report", "clean")] == [0, 0, 0]
    n_done = 2 if name in ("spec.json", "evaluations.npz") else 3
    assert len(list((tmp_path / "out" / "zoo").rglob("evaluations.npz"))) == n_done
    if name in ("spec.json", "evaluations.npz"):
        assert name in shown["compare"]
