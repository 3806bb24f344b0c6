"""Help texts and display of commands."""

import io
import re
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from srl import __version__
from srl.cli.options import parse_assignments
from srl.report.status import watch_status
from srl.rundir.directory import RunDirectory
from srl.sweep.display import RunDisplay
from srl.training.run import train_run
from tests.small_runs import small_spec, srl

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "command",
    ["train", "sweep", "enjoy", "report", "status", "tune", "push", "pull", "clean", "llm"],
)
def test_help_has_examples(command):
    outcome = srl(command, "--help")
    assert outcome.status == 0
    assert f"Examples:\n  srl {command} " in outcome.out


@pytest.mark.parametrize(
    "command",
    ["train", "sweep", "enjoy", "report", "status", "tune", "push", "pull", "clean"],
)
def test_help_has_plain_placeholders_and_no_empty_defaults(command):
    text = srl(command, "--help").out
    assert "--help" in text
    assert "{None}" not in text
    assert "[STR" not in text
    assert not re.search(r"default:[\s│]+(None)?\)", text)


def test_help_shows_option_groups():
    text = srl("sweep", "--help").out
    for group in (
        "loss options",
        "environment options",
        "evaluation options",
        "execution options",
        "cluster",
    ):
        assert group in text
    assert re.search(r"--envs ENV \[ENV \.\.\.\]", text)
    assert "Examples" not in srl("--help").out


def test_version_option_prints_version():
    assert srl("--version").out == f"srl {__version__}\n"


def test_assignments_accept_colon_and_equals_sign():
    given = ["n_steps:1024", "learning_rate=lin_3e-4", "policy_kwargs:{net_arch: [8]}", "env_wrapper=a:B"]
    assert parse_assignments("--hyperparams", given) == {
        "n_steps": 1024,
        "learning_rate": "lin_3e-4",
        "policy_kwargs": {"net_arch": [8]},
        "env_wrapper": "a:B",
    }


def test_boolean_flag_accepts_a_value(tmp_path):
    words = ("train", "--algo", "sppo", "--env", "CartPole-v1", "--timesteps", 64, "--out", tmp_path / "run")
    words = (*words, "--hyperparams", "n_steps:32", "batch_size:32", "n_envs:1", "--eval-episodes", 1)
    assert srl(*words, "--importance-weighting", "False").status == 0
    spec = RunDirectory(tmp_path / "run").read_spec()
    assert (spec.hyperparams.importance_weighting, spec.hyperparams.n_steps) == (False, 32)


def test_training_display_shows_return_and_loss(tmp_path, monkeypatch):
    monkeypatch.setattr("srl.sweep.display._LINE_INTERVAL", 0.0)
    monkeypatch.setattr("srl.training.run.Heartbeat.__init__.__defaults__", (0.0,))
    spec = small_spec(n_timesteps=160)
    out = io.StringIO()
    with RunDisplay(Console(file=out, width=200), spec) as display:
        train_run(spec, tmp_path / "run", tell=display.update)
    lines = [line for line in out.getvalue().splitlines() if "of 160 steps" in line]
    assert re.search(r"return \d+\.\d, loss -?\d", lines[-2]), lines
    status = RunDirectory(tmp_path / "run").read_status()
    assert status.state == "done"


def test_watch_waits_for_runs(tmp_path, monkeypatch):
    folder, waited = tmp_path / "runs", []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 1:
            folder.mkdir()
        if len(waited) == 2:
            train_run(small_spec(n_timesteps=32), folder / "run")

    monkeypatch.setattr("srl.report.status.time.sleep", sleep)
    out = io.StringIO()
    watch_status(folder, Console(file=out, width=200), 0.1)
    assert len(waited) == 2
    text = out.getvalue()
    assert "Waiting" in text
    assert "contains no runs" in text
    assert "All runs are finished" in text
    (tmp_path / "file").touch()
    assert srl("status", tmp_path / "file", "--watch").status == 2


def test_script_prints_its_help():
    for word in ("-h", "--help"):
        done = subprocess.run(
            ["bash", ROOT / "scripts" / "test.sh", word], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage: scripts/test.sh" in done.stdout
