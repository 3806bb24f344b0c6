"""Tracking services in offline mode."""

import json
import sqlite3
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from srl.rundir.directory import RunDirectory
from srl.rundir.names import EVALUATIONS, MODEL, MONITOR, PROGRESS, SPEC
from srl.tracking.follower import TRACKING, Follower, read_progress
from tests.small_runs import SMALL_WORDS, srl

TRAIN = ["train", "--algo", "sppo", "--env", "CartPole-v1", "--timesteps", 128, *SMALL_WORDS]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """An empty working directory, and offline settings of the services."""
    folder = tmp_path / "somewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return folder


def wandb_records(file):
    """Yield the records of a W&B file, which is a LevelDB log after seven bytes."""
    content, record = file.read_bytes(), b""
    position = 7
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left  # the rest of a block is too small for a header
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or its last part
            yield record
            record = b""


def of_wandb(root, run_id):
    """Return config, evaluations by step, artifact files and number of sessions from W&B's offline files."""
    from wandb.proto import wandb_internal_pb2

    config, evaluations, files = {}, {}, set()
    sessions = sorted(root.glob(f"wandb/offline-run-*-{run_id}/*.wandb"))
    for file in sessions:
        for data in wandb_records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            for item in record.run.config.update:
                config[item.key or item.nested_key[0]] = json.loads(item.value_json)
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            if "eval/mean_reward" in row:
                evaluations[row["time/total_timesteps"]] = row["eval/mean_reward"]
            artifact = record.artifact or record.request.log_artifact.artifact
            files |= {entry.path for entry in artifact.manifest.contents}
            files |= {entry.path for entry in record.request.log_artifact.artifact.manifest.contents}
    return config, evaluations, files, len(sessions)


def of_mlflow(root, run_id):
    """Return the same values from MLflow's file store."""
    from mlflow import MlflowClient

    client = MlflowClient(f"file://{root / 'mlruns'}")
    run = client.get_run(run_id)
    config = {name: json.loads(value) for name, value in run.data.params.items()}
    evaluations = {
        metric.step: metric.value for metric in client.get_metric_history(run_id, "eval/mean_reward")
    }
    files = {file.path.rpartition("/")[2] for file in client.list_artifacts(run_id, "model")}
    assert run.info.status == "FINISHED"
    return config, evaluations, files, 1


def of_trackio(root, run_id):
    """Return the same values from Trackio's database."""
    (file,) = root.glob("trackio/*.db")
    config, evaluations = {}, {}
    with sqlite3.connect(file) as database:
        for name, text in database.execute("SELECT run_name, config FROM configs"):
            if name.endswith(run_id):
                config = json.loads(text)
        for name, step, text in database.execute("SELECT run_name, step, metrics FROM metrics"):
            values = json.loads(text)
            if name.endswith(run_id) and "eval/mean_reward" in values:
                evaluations[step] = values["eval/mean_reward"]
    files = {MODEL for _ in root.glob("trackio/artifacts/**/*") if _.is_file()}
    return config, evaluations, files, 1


READERS = {"wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}
services = pytest.mark.parametrize(
    "service",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")
        )
        for name in READERS
    ],
)


def results(path):
    """Return the results of a run that must not depend on tracking."""
    names = [EVALUATIONS, MODEL, SPEC]
    rows = [(step, values) for step, values in read_progress(path)]
    monitor = [
        [line.split(",")[:2] for line in file.read_text().splitlines()[1:]]
        for file in sorted((path / MONITOR).iterdir())
    ]
    return [(path / name).read_bytes() for name in names], rows, monitor


@services
def test_offline_store_contains_evaluations_spec_and_model(somewhere, service):
    assert srl(*TRAIN, "--out", "alone").status == 0
    outcome = srl(*TRAIN, "--out", "tracked", "--track", service, "--track-project", "mine")
    assert outcome.status == 0, outcome.err
    path = somewhere / "tracked"
    assert results(path) == results(somewhere / "alone")
    sent = json.loads((path / TRACKING).read_text())[service]
    config, evaluations, files, _ = READERS[service](somewhere.parent, sent["id"])
    npz = np.load(path / EVALUATIONS)
    expected = dict(zip(npz["timesteps"].tolist(), npz["results"].mean(axis=1).tolist(), strict=True))
    assert len(expected) == 4
    assert evaluations == pytest.approx(expected, rel=1e-5)
    assert config["env"] == "CartPole-v1"
    beta = config.get("hyperparams.beta", config.get("hyperparams", {}).get("beta"))
    assert beta == RunDirectory(path).read_spec().hyperparams.beta
    assert MODEL in files
    # Sent data is not sent again
    again = srl(*TRAIN, "--out", "tracked", "--track", service, "--track-project", "mine")
    assert again.status == 0, again.err
    assert json.loads((path / TRACKING).read_text())[service] == sent


@services
def test_resumed_run_continues_the_same_tracked_run(somewhere, service, monkeypatch):
    from srl.training.callbacks import EvaluationLog

    add = EvaluationLog.add

    def stop_at_96(self, timesteps, episodes, logger):
        if timesteps == 96:
            raise KeyboardInterrupt
        add(self, timesteps, episodes, logger)

    words = [*TRAIN, "--out", "run", "--track", service, "--checkpoint-every", 0]
    monkeypatch.setattr(EvaluationLog, "add", stop_at_96)
    assert srl(*words).status == 130
    first = json.loads((somewhere / "run" / TRACKING).read_text())[service]
    assert not first["done"]
    monkeypatch.setattr(EvaluationLog, "add", add)
    assert srl(*words).status == 0
    second = json.loads((somewhere / "run" / TRACKING).read_text())[service]
    assert second["id"] == first["id"]
    _, evaluations, files, n_sessions = READERS[service](somewhere.parent, second["id"])
    assert sorted(evaluations) == [32, 64, 96, 128]
    assert MODEL in files
    assert n_sessions == (2 if service == "wandb" else 1)


@services
def test_sweep_runs_are_tracked_in_groups_by_cell(somewhere, service):
    outcome = srl(
        *("sweep", "discrete_srl", "--envs", "CartPole-v1", "--algos", "sppo", "--noise", "none"),
        *("--seeds", 0, 1, "--timesteps", 64, *SMALL_WORDS, "--out", "sweep", "--track", service),
    )
    assert outcome.status == 0, outcome.err
    paths = [run.path for run in map(RunDirectory, sorted((somewhere / "sweep").glob("*/*/*/seed-*")))]
    records = [json.loads((path / TRACKING).read_text())[service] for path in paths]
    assert len({record["id"] for record in records}) == 2
    assert {record["project"] for record in records} == {"discrete_srl"}
    for record in records:
        assert sorted(READERS[service](somewhere.parent, record["id"])[1]) == [32, 64]


class Failing:
    """A service that fails in the first call of a method."""

    def __init__(self, method):
        self.fails = method
        self.created, self.rows, self.finished = [], [], []

    def _may_fail(self, method):
        if method == self.fails:
            self.fails = ""
            raise ConnectionError("no network")

    def create(self, sent, spec, group):
        self._may_fail("create")
        self.created.append(sent.id)
        return sent.id

    def start(self, sent, spec, group):
        self._may_fail("start")

    def log(self, run_id, rows):
        self._may_fail("log")
        self.rows += rows

    def finish(self, run_id, state, files):
        self._may_fail("finish")
        self.finished.append((state, [file.name for file in files]))


@pytest.mark.parametrize("method", ["create", "start", "log", "finish"])
def test_failed_uploads_are_reported_and_sent_later(somewhere, method):
    assert srl(*TRAIN, "--out", "run").status == 0
    service = Failing(method)
    follower = Follower("wandb", "mine", [somewhere / "run"], service)
    (problem,) = follower.send_new()
    assert problem.endswith("run: ConnectionError: no network")
    assert follower.send_new(last=True) == []
    assert [step for step, values in service.rows if "eval/mean_reward" in values] == [32, 64, 96, 128]
    assert len(service.created) == 1
    assert service.finished == [("done", [MODEL, "versions.json"])]
    # A later process finds that everything was sent
    later = Failing("")
    assert Follower("wandb", "mine", [somewhere / "run"], later).send_new(last=True) == []
    assert later.created == later.rows == later.finished == []


@pytest.fixture
def progress(somewhere, monkeypatch):
    """A function that sets the number of lines and the state of the run ``run``."""
    assert srl(*TRAIN, "--out", "run").status == 0
    lines = (somewhere / "run" / PROGRESS).read_text().splitlines(True)
    read_status = RunDirectory.read_status

    def set_progress(n_rows, state="running"):
        (somewhere / "run" / PROGRESS).write_text("".join(lines[: n_rows + 1]))
        monkeypatch.setattr(RunDirectory, "read_status", lambda self: replace(read_status(self), state=state))
        return len(lines) - 1

    return set_progress


def test_each_row_is_sent_once_by_processes_that_track_one_folder(somewhere, progress):
    one, two, other = Failing(""), Failing(""), Failing("")
    paths = [somewhere / "run"]
    first, second = (Follower("mlflow", "mine", paths, service) for service in (one, two))
    n_rows = progress(1)
    assert first.send_new() == second.send_new() == []
    progress(2)
    assert first.send_new() == second.send_new() == []
    assert (len(one.rows), two.created, two.rows) == (2, [], [])
    (problem,) = Follower("mlflow", "yours", paths, other).send_new(last=True)
    assert problem.endswith("run: RuntimeError: another process tracks this run")
    # The second process continues when the first one ends
    assert first.send_new(last=True) == []
    progress(n_rows, "done")
    assert second.send_new(last=True) == []
    assert len(one.rows + two.rows) == n_rows
    assert (len(one.created), two.created) == (1, [])
    assert [state for state, _ in one.finished + two.finished] == ["running", "done"]
    third = Follower("mlflow", "mine", paths, other)
    assert third.send_new(last=True) == other.rows == other.finished == []


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_failing_start_creates_one_run_in_mlflow(somewhere, monkeypatch):
    from mlflow import MlflowClient

    from srl.tracking.backends import MlflowBackend

    assert srl(*TRAIN, "--out", "run").status == 0
    log_batch, failures = MlflowClient.log_batch, iter([OSError("503")] * 2)

    def fail_twice(self, *arguments, **options):
        for failure in failures:
            raise failure
        return log_batch(self, *arguments, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", fail_twice)
    backend = MlflowBackend("mine")
    follower = Follower("mlflow", "mine", [somewhere / "run"], backend)
    assert len(follower.send_new() + follower.send_new()) == 2
    assert follower.send_new(last=True) == []
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "0"


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("print('error: no network'); sys.exit(1)", "no network"),
        ("os.kill(os.getpid(), 9)", "the tracking process ended with status -9"),
    ],
)
def test_tracking_failure_is_reported_without_failing_the_run(somewhere, monkeypatch, end, message):
    program = f"import os, sys; print('ready', flush=True); sys.stdin.read(); {end}"
    monkeypatch.setattr("srl.tracking.process._COMMAND", [sys.executable, "-c", program])
    monkeypatch.setattr("srl.tracking.backends.check_backend", lambda backend: None)
    outcome = srl(*TRAIN, "--out", "run", "--track", "wandb")
    assert outcome.status == 1
    assert outcome.err == (
        "srl: tracking failed; the runs are not affected. Rerun the command to send what is missing. "
        f"{message}\n"
    )
    assert "Final evaluation at step 128" in outcome.out
    assert RunDirectory(somewhere / "run").is_finished()


def test_incomplete_lines_are_not_sent(tmp_path):
    header = "eval/mean_reward,time/total_timesteps,time/fps,train/loss\n"
    (tmp_path / PROGRESS).write_text(f"{header}1.5,32,100,\n,64,100,nan\n2.5,96,1")
    assert read_progress(tmp_path) == [(32, {"eval/mean_reward": 1.5}), (64, {})]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--track", "wandbb"], "--track wandbb: must be one of wandb, mlflow, trackio. Did you mean wandb?"),
        (["--track-project", "mine"], "--track-project mine: needs --track."),
    ],
)
def test_mistake_exits_2_and_writes_nothing(somewhere, words, message):
    outcome = srl(*TRAIN, *words)
    assert outcome.status == 2
    assert message in outcome.err
    assert list(somewhere.iterdir()) == []


DRY_RUN = ("sweep", "discrete_srl", "--envs", "CartPole-v1", "--dry-run")


@pytest.mark.parametrize("command", [TRAIN, DRY_RUN], ids=["train", "dry run"])
def test_missing_package_is_named_with_its_pip_command(somewhere, monkeypatch, command):
    monkeypatch.setattr("srl.tracking.backends.find_spec", lambda name: None)
    outcome = srl(*command, "--track", "mlflow")
    assert outcome.status == 2
    assert outcome.err == "srl: --track mlflow needs the package mlflow: pip install mlflow-skinny.\n"
    assert list(somewhere.iterdir()) == []


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_missing_login_is_an_error_before_training(somewhere, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(somewhere.parent))
    monkeypatch.setenv("NETRC", str(somewhere.parent / "netrc"))
    outcome = srl(*TRAIN, "--track", "wandb")
    assert outcome.status == 2
    assert "--track wandb: " in outcome.err
    assert "Nothing was trained." in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (somewhere / "runs").exists()
