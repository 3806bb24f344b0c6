"""Publishing and downloading runs with a local fake of the Hugging Face Hub's HTTP API."""

import base64
import json
import shutil
import threading
from dataclasses import replace
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import yaml
from stable_baselines3 import DQN

from srl import SPPO
from srl.rundir.directory import RunDirectory
from srl.rundir.names import EVALUATIONS, MODEL, SPEC, STATUS
from srl.sharing import pull
from srl.training.run import train_run
from tests.small_runs import contents, small_spec, srl

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
constants = pytest.importorskip("huggingface_hub.constants")

REPO = "me/sppo-CartPole-v1"
COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's API that a client needs to publish and download."""

    files: dict[str, bytes]
    requests: list[str]

    def log_message(self, *arguments):
        pass

    def answer(self, body, code=200, **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        path = urlparse(self.path).path
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append(f"POST {path}")
        if self.headers.get("Authorization") != "Bearer hf_secret":
            self.answer({"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            self.answer({"url": f"{constants.ENDPOINT}/{REPO}", "name": REPO})
        elif path.endswith("/preupload/main"):
            files = json.loads(content)["files"]
            self.answer(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for file in files
                    ]
                }
            )
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path.endswith("/commit/main"):
            for line in content.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            url = f"{constants.ENDPOINT}/{REPO}/commit/{COMMIT}"
            self.answer({"commitUrl": url, "commitOid": COMMIT})
        else:
            self.answer({"error": f"not here: {path}"}, 404)

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        self.requests.append(f"{self.command} {path}")
        if path.startswith(f"/api/models/{REPO}/revision/"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer({"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings})
        elif path.startswith(f"/api/models/{REPO}/tree/"):
            self.answer(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
                    for name, content in self.files.items()
                ]
            )
        elif path.startswith(f"/{REPO}/resolve/") and path.split("/", 5)[5] in self.files:
            content = self.files[path.split("/", 5)[5]]
            self.answer(content, ETag=f'"{sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)
        else:
            self.answer(b"", 404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

    do_HEAD = do_GET


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A fake Hub that the client connects to."""
    handler = type("OwnHub", (Hub,), {"files": {}, "requests": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield handler
    running.shutdown()
    running.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with normalization."""
    path = tmp_path_factory.mktemp("runs") / "run"
    spec = small_spec(overrides={"normalize": True, "beta": 7.5})
    train_run(spec, path, command="srl train --algo sppo --env CartPole-v1 --beta 7.5")
    return path


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """An empty working directory."""
    folder = tmp_path / "somewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_dry_run_writes_model_card_and_files_for_huggingface_sb3(run, somewhere):
    (somewhere / "film.mp4").write_bytes(b"film")
    before = contents(run)
    outcome = srl("push", run, REPO, "--dry-run", "files", "--video", "film.mp4")
    assert outcome.status == 0, outcome.err
    assert contents(run) == before
    files = {
        str(file.relative_to(somewhere / "files"))
        for file in (somewhere / "files").rglob("*")
        if file.is_file()
    }
    assert {"README.md", "sppo-CartPole-v1.zip", "vec_normalize.pkl", "results.json", "replay.mp4"} <= files
    assert {"run/spec.json", "run/evaluations.npz", "run/monitor/0.monitor.csv"} <= files
    assert not any("tfevents" in name for name in files)
    model = SPPO.load("files/sppo-CartPole-v1.zip")
    assert model.beta == 7.5
    status = json.loads((somewhere / "files" / "run" / STATUS).read_text())
    assert (status["host"], status["pid"], status["boot"]) == ("", 0, "")

    card = (somewhere / "files" / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    metadata = yaml.safe_load(head)
    returns = RunDirectory(run).read_evaluations()["results"][-1]
    assert metadata["library_name"] == "stable-baselines3"
    assert {"CartPole-v1", "reinforcement-learning", "stable-baselines3"} <= set(metadata["tags"])
    (model_index,) = metadata["model-index"]
    score = model_index["results"][0]["metrics"][0]
    assert score["type"] == "mean_reward"
    assert score["value"] == f"{returns.mean():.2f} +/- {returns.std():.2f}"
    for text in ("beta: 7.5", "srl train --algo sppo", f"srl pull {REPO}", "replay.mp4", "CartPole-v1"):
        assert text in body
    results = json.loads((somewhere / "files" / "results.json").read_text())
    assert results["mean_reward"] == returns.mean()


def test_run_with_algorithm_of_another_package_is_published(server, somewhere):
    words = (
        "--algo",
        "stable_baselines3:DQN",
        "--env",
        "CartPole-v1",
        "--timesteps",
        64,
        "--eval-episodes",
        1,
    )
    trained = srl("train", *words, "--hyperparams", "learning_rate=0.01", "n_envs=1", "--out", "dqn")
    assert trained.status == 0, trained.err
    outcome = srl("push", "dqn", REPO, "--dry-run", "files")
    assert outcome.status == 0, outcome.err
    name = "stable_baselines3-DQN-CartPole-v1.zip"
    assert not any(":" in file for file in contents(somewhere / "files"))
    assert DQN.load(somewhere / "files" / name).learning_rate == 0.01
    card = (somewhere / "files" / "README.md").read_text()
    for text in (
        "from stable_baselines3 import DQN\n",
        f'DQN.load(load_from_hub("{REPO}", "{name}"))',
        "learning_rate: 0.01",
    ):
        assert text in card
    assert yaml.safe_load(card.split("---\n")[1])["model-index"][0]["name"] == "stable_baselines3:DQN"
    assert srl("push", "dqn", REPO).status == 0
    pulled = srl("pull", REPO, "--out", "pulled")
    assert pulled.status == 0, pulled.err
    assert (somewhere / "pulled" / MODEL).read_bytes() == (somewhere / "dqn" / MODEL).read_bytes()


def test_class_of_a_published_run_is_not_imported(run, somewhere, monkeypatch):
    shutil.copytree(run, "own")
    values = json.loads((run / SPEC).read_text())
    Path("own", SPEC).write_text(json.dumps(values | {"algo": "spy:TRPO"}))
    directory = RunDirectory(Path("own"))
    directory.write_status(replace(directory.read_status(), files=directory.seal()))
    Path("spy.py").write_text("open('imported', 'w')\nfrom sb3_contrib import TRPO\n")
    monkeypatch.syspath_prepend(somewhere)
    outcome = srl("push", "own", REPO, "--dry-run", "files")
    assert outcome.status == 0, outcome.err
    assert not Path("imported").exists()


def test_pushed_and_pulled_run_is_unchanged(run, server, somewhere, monkeypatch):
    outcome = srl("push", run, REPO)
    assert outcome.status == 0, outcome.err
    outcome = srl("pull", REPO)
    assert outcome.status == 0, outcome.err
    path = somewhere / "runs" / "hub" / "me" / "sppo-CartPole-v1"
    for name in (SPEC, EVALUATIONS, MODEL, "vecnormalize.pkl", "progress.csv"):
        assert (path / name).read_bytes() == (run / name).read_bytes()
    directory = RunDirectory(path)
    assert directory.is_finished()
    assert directory.damage() == directory.minor_damage() == []
    # Equivalent to huggingface_sb3.load_from_hub
    file = hub.hf_hub_download(REPO, "sppo-CartPole-v1.zip")
    assert SPPO.load(file).beta == 7.5
    again = srl("pull", REPO)
    assert again.status == 2
    assert "exists. Name another folder with --out." in again.err


def test_run_modified_on_the_hub_is_rejected(run, server, somewhere):
    assert srl("push", run, REPO).status == 0
    server.files["sppo-CartPole-v1.zip"] += b"more"
    outcome = srl("pull", REPO, "--out", "pulled")
    assert outcome.status == 2
    assert "its run is not complete" in outcome.err
    server.files.pop("run/spec.json")
    outcome = srl("pull", REPO, "--out", "pulled")
    assert outcome.status == 2
    assert "contains no run of symmetric-rl" in outcome.err
    assert list(somewhere.iterdir()) == []


def test_unexpected_files_are_not_downloaded(run, server, somewhere):
    assert srl("push", run, REPO).status == 0
    server.files["run/sitecustomize.py"] = b"raise SystemExit"
    server.files["run/monitor/other.sh"] = b"exit"
    pull(REPO, somewhere / "pulled")
    names = {file.name for file in (somewhere / "pulled").rglob("*")}
    assert not names & {"sitecustomize.py", "other.sh"}


def test_unknown_repository_and_wrong_login_are_one_line_errors(run, server, somewhere, monkeypatch):
    outcome = srl("pull", "me/nothing")
    assert outcome.status == 2
    assert outcome.err.startswith("srl: me/nothing: the Hub rejected this (404)")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused = srl("push", run, REPO)
    assert refused.status == 2
    assert f"{REPO}: the Hub rejected this (401)" in refused.err
    assert all(len(each.err.splitlines()) == 1 for each in (outcome, refused))
    assert list(somewhere.iterdir()) == []


def test_mistake_exits_2_and_writes_nothing(run, somewhere, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / MODEL).unlink()
    (tmp_path / "there").mkdir()
    language_model = tmp_path / "llm"
    language_model.mkdir()
    llm = {"algo": "llm-sppo", "env": "offline", "seed": 0, "n_timesteps": 112}
    llm["hyperparams"] = {name: {"path": "offline"} for name in ("model", "data", "reward", "judge")}
    (language_model / SPEC).write_text(json.dumps(llm))
    for words, message in [
        (["push", run, REPO], "There is no login to the Hugging Face Hub."),
        (["push", run, "nothing"], "REPO must be OWNER/NAME"),
        (["push", run, "a/b/c"], "REPO must be OWNER/NAME"),
        (["push", tmp_path / "none", REPO], "there is no run."),
        (["push", unfinished, REPO, "--dry-run", "files"], "model.zip: missing."),
        (["push", language_model, REPO, "--dry-run", "files"], "a run of a language model"),
        (["push", run, REPO, "--dry-run", tmp_path / "there"], "exists. Name a new folder."),
        (["push", run, REPO, "--video", "none.mp4", "--dry-run", "x"], "must be an MP4 file."),
        (["pull", "nothing"], "REPO must be OWNER/NAME"),
        (["pull", REPO, "--out", tmp_path / "there"], "exists. Name another folder with --out."),
    ]:
        outcome = srl(*words)
        assert outcome.status == 2, words
        assert message in outcome.err, words
        assert len(outcome.err.splitlines()) == 1
    assert list(somewhere.iterdir()) == []


def test_missing_package_is_named_with_its_pip_command(run, monkeypatch):
    monkeypatch.setattr("srl.cli.share.find_spec", lambda name: None)
    outcome = srl("push", run, REPO)
    assert outcome.status == 2
    assert outcome.err == (
        "srl: srl push needs the package huggingface_hub: pip install 'symmetric-rl[share]'.\n"
    )
