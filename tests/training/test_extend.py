"""Extended runs and sweeps, compared with runs of the full length."""

from dataclasses import replace
from pathlib import Path

import pytest

from srl.rundir.directory import RunDirectory
from srl.training.extend import check_extendable, extend
from srl.training.run import train_run
from tests.small_runs import SMALL_WORDS, contents, small_spec, srl
from tests.training.test_resume import outcome

#: Evaluations at the end of the short run are regular, or happen only because it ends.
SPECS = {
    "ppo": dict(noise="gaussian:0.1", overrides=dict(normalize=True, n_envs=2, n_steps=16)),
    "evaluation at the end": dict(eval_freq=24),
    "a2c": dict(algo="dsa2c", env="Pendulum-v1"),
}


def trained(path, n_timesteps, **options):
    spec = small_spec(**options, n_timesteps=n_timesteps)
    train_run(spec, path)
    return spec


def extend_to(path, n_timesteps, *words):
    return srl("train", "--extend-to", n_timesteps, path, *words)


def outcome_without_best(path):
    return {name: value for name, value in outcome(path).items() if not name.startswith("best")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPECS)
def test_extended_run_is_bitwise_identical_to_the_long_run(kind, tmp_path):
    trained(tmp_path / "long", 160, **SPECS[kind])
    trained(tmp_path / "run", 64, **SPECS[kind])
    done = extend_to(tmp_path / "run", 96)
    assert done.status == 0, done.err
    assert extend_to(tmp_path / "run", 160).status == 0
    # The best model can be from the evaluation at the end of the short run
    compared = outcome_without_best if kind == "evaluation at the end" else outcome
    assert compared(tmp_path / "run") == compared(tmp_path / "long")
    status = RunDirectory(tmp_path / "run").read_status()
    assert (status.state, status.attempts, status.n_timesteps) == ("done", 3, 160)
    assert [note for note in status.notes if "extended from 64 to 96 steps" in note]
    assert RunDirectory(tmp_path / "run").damage() == []
    assert "finished. Nothing to do" in extend_to(tmp_path / "run", 160).out


@pytest.mark.slow
def test_sweep_is_extended_in_populations(tmp_path):
    words = (
        "sweep",
        "discrete_srl",
        "--envs",
        "CartPole-v1",
        "--algos",
        "sppo",
        "--noise",
        "none",
        "flip:0.1",
    )
    words = (*words, "--jobs", 1, "--population", 4, *SMALL_WORDS)
    assert srl(*words, "--seeds", "0:2", "--timesteps", 96, "--out", tmp_path / "long").status == 0
    assert srl(*words, "--seeds", "0", "--timesteps", 64, "--out", tmp_path / "runs").status == 0
    before = contents(tmp_path / "runs")
    words = (*words, "--seeds", "0:2", "--out", tmp_path / "runs")
    refused = srl(*words, "--timesteps", 96)
    assert refused.status == 2
    assert "n_timesteps is 64 there and 96 here" in refused.err
    dry = srl(*words, "--extend-to", 96, "--dry-run")
    assert dry.status == 0, dry.err
    assert "Extended: 2 runs" in dry.out
    assert contents(tmp_path / "runs") == before
    done = srl(*words, "--extend-to", 96)
    assert done.status == 0, done.err
    for long in (tmp_path / "long").rglob("seed-*"):
        assert outcome(tmp_path / "runs" / long.relative_to(tmp_path / "long")) == outcome(long), long
    assert "4/4 100%" in srl("status", tmp_path / "runs").out
    assert srl(*words, "--extend-to", 96).status == 0


@pytest.mark.slow
def test_extension_killed_at_its_start_resumes_with_the_same_command(tmp_path):
    spec = trained(tmp_path / "run", 64)
    trained(tmp_path / "long", 96)
    directory, longer = RunDirectory(tmp_path / "run"), spec.model_copy(update={"n_timesteps": 96})
    text = (tmp_path / "run" / "spec.json").read_text()
    extend(directory, spec, longer, print)
    # Simulate a kill between the writes of status and spec
    (tmp_path / "run" / "spec.json").write_text(text)
    assert extend_to(tmp_path / "run", 96).status == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "long")
    assert not list((tmp_path / "run").glob("damaged-*"))


@pytest.mark.slow
def test_schedule_that_depends_on_the_length_is_named(tmp_path):
    trained(tmp_path / "run", 64, overrides=dict(learning_rate="lin_1e-3", clip_range="lin_0.2"))
    done = extend_to(tmp_path / "run", 96)
    assert done.status == 0
    assert "learning_rate and clip_range fall linearly" in done.out
    assert RunDirectory(tmp_path / "run").read_spec().n_timesteps == 96


def test_changed_package_versions_are_named(tmp_path, monkeypatch, capsys):
    spec = trained(tmp_path / "run", 32)
    monkeypatch.setattr("srl.training.run._version", lambda package: "1.2.3")
    told = []
    extend(RunDirectory(tmp_path / "run"), spec, spec.model_copy(update={"n_timesteps": 64}), told.append)
    assert "gymnasium" in told[0]
    assert "not bitwise identical" in told[0]
    status = train_run(spec.model_copy(update={"n_timesteps": 64}), tmp_path / "run")
    assert status.resumed_from == 32
    assert any("extended with other versions" in note for note in status.notes)


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("short") / "run"
    trained(path, 32)
    return path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--extend-to", 16, "RUN"], "has 32 training steps already"),
        (["--extend-to", 64], "name the directory of the run"),
        (["--extend-to", 64, "no/such/run"], "there is no run in it"),
        (["--extend-to", 64, "RUN", "--seed", 3], "--seed: an extended run keeps its settings"),
        (["--extend-to", 64, "RUN", "--beta", 3], "--beta: an extended run keeps its settings"),
        (["RUN", "--algo", "sppo", "--env", "CartPole-v1"], "only with --extend-to"),
        (["--algo", "sppo"], "--algo and --env are needed"),
    ],
)
def test_mistake_is_one_line_error_and_writes_nothing(words, says, short, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(short)
    outcome = srl("train", *(short if word == "RUN" else word for word in words))
    assert outcome.status == 2
    assert says in outcome.err
    assert outcome.err.count("\n") == 1
    assert contents(short) == before
    assert not list(tmp_path.iterdir())


def test_non_extendable_run_is_rejected_unmodified_with_reason(short, tmp_path):
    (tmp_path / "run").mkdir()
    for file in short.iterdir():
        if file.is_file():
            (tmp_path / "run" / file.name).write_bytes(file.read_bytes())
    directory = RunDirectory(tmp_path / "run")
    status = directory.read_status()
    (tmp_path / "run" / "final_state.npz").unlink()
    directory.write_status(replace(status, files={**status.files}))
    before = contents(tmp_path)
    outcome = extend_to(tmp_path / "run", 64)
    assert outcome.status == 2
    assert "final_state.npz: missing" in outcome.err
    (tmp_path / "run" / "model.zip").write_bytes(b"")
    outcome = extend_to(tmp_path / "run", 64)
    assert outcome.status == 2
    assert "model.zip: damaged" in outcome.err
    assert contents(tmp_path).keys() == before.keys()
    with pytest.raises(ValueError, match="damaged"):
        check_extendable(directory, directory.read_spec())
