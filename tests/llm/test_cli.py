"""Output and errors of the ``srl llm`` commands."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from srl.cli import main
from srl.cli.llm import _quieten
from srl.llm import extras
from tests.llm.project import make_project

ROOT = Path(__file__).resolve().parents[2]
SGRPO = ("train", "offline", "--algo", "sgrpo", "--hyperparams")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    return folder


@pytest.fixture(autouse=True)
def _inside(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(project))


def command(capsys, *words):
    """Return exit status, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as ended:
        main(["llm", *map(str, words)])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_train_eval_and_sample(project, capsys):
    train = ("train", project / "tiny.yml", "--local-files", project / "files", "--out", "run")
    status, out, err = command(capsys, *train, "--device", "cpu", "--seed", 3)
    assert (status, err) == (0, "")
    assert out.count("before (") == out.count("after  (") == 6
    assert "):  " not in out
    assert "perplexity:" in out
    status, out, err = command(capsys, *train, "--device", "cpu", "--seed", 3)
    assert (status, "Nothing to do" in out) == (0, True)
    status, out, err = command(capsys, "eval", "run", "--local-files", project / "files", "--episodes", 4)
    assert (status, err) == (0, "")
    assert {"reward:", "kl:", "length:", "perplexity:"} <= set(out.split())
    status, out, err = command(capsys, "sample", "run", "the movie was", "--n", 2)
    assert (status, err, out.count("\n")) == (0, "", 2)
    assert command(capsys, "sample", "run", " ")[0] == 2
    assert command(capsys, "sample", "run", "the", "--n", 0)[0] == 2
    assert command(capsys, "eval", "run", "--episodes", 0)[0] == 2
    for words in (("sample", "run", "the"), ("eval", "run", "--local-files", project / "files")):
        status, _, err = command(capsys, *words, "--seed", -1)
        assert (status, err) == (2, "srl: --seed -1: must be at least 0.\n")
        if not torch.cuda.is_available():
            status, _, err = command(capsys, *words, "--device", "cuda")
            assert (status, "sees 0 CUDA devices" in err) == (2, True)
        assert command(capsys, *words, "--device", "cpu")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "ofline"), "there is no such task"),
        (("train", "offline", "--algo", "dpo"), "There is no algorithm 'dpo'"),
        (("train", "offline", "--noise", "flip:2"), "prob is 2.0"),
        (("train", "offline", "--beta", -1), "Hyperparameter beta"),
        (("train", "offline", "--algo", "ppo", "--beta", 1), "LLM-PPO has no reverse loss. Use sppo,"),
        (("train", "offline", "--z", 1), "Hyperparameter z"),
        (("train", "offline", "--z", -2, "--hyperparams", "z=-1"), "z is specified twice: as --z and in"),
        (
            ("train", "offline", "--hyperparams", "normalize_advantage=false", "mask_normalization=false"),
            "mask_normalization: has no effect, because normalize_advantage is false",
        ),
        (("train", "offline", "--hyperparams", "kl=1"), "there is no such key"),
        ((*SGRPO, "target_coef=0.1"), "GRPO has no imitation"),
        ((*SGRPO, "num_generations=5"), "must divide"),
        ((*SGRPO, "loss_type=cispo"), "loss_type"),
        (("train", "offline", "--timesteps", 0), "n_timesteps"),
        (("train", "offline", "--local-files", "nowhere"), "nowhere: there is no such folder"),
        (("train", "PROJECT/tiny.yml", "--local-files", "."), "contains neither owner/policy nor policy"),
        (("eval", "nowhere"), "nowhere contains no run"),
        (("sample", "nowhere", "a"), "nowhere contains no run"),
    ],
)
def test_mistake_is_one_line_error_before_anything_is_written(project, tmp_path, capsys, words, message):
    words = [str(word).replace("PROJECT", str(project)) for word in words]
    status, _, err = command(capsys, *words)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("function", "message"),
    [("nothing", "nothing returned nan"), ("few", "few returned 1 scores for 2 responses")],
)
def test_reward_function_is_tested_before_training(project, tmp_path, capsys, function, message):
    task = (project / "tiny.yml").read_text()
    text = task.replace("path: owner/classifier, label: 1", f"function: 'my_rewards:{function}'")
    (tmp_path / "own.yml").write_text(text)
    words = ("train", "own.yml", "--local-files", project / "files", "--device", "cpu")
    assert "only with --trust-config" in command(capsys, *words)[2]
    status, _, err = command(capsys, *words, "--trust-config")
    assert (status, message in err) == (2, True)
    assert [file.name for file in tmp_path.iterdir()] == ["own.yml"]


def test_warnings_of_libraries_are_not_shown():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        _quieten()
        warnings.warn_explicit("old", FutureWarning, "a.py", 1, module="transformers.modeling_utils")
        warnings.warn_explicit("mine", FutureWarning, "b.py", 1, module="my_rewards")
    assert [str(each.message) for each in shown] == ["mine"]


def test_old_python_and_missing_extras_are_named_in_error(capsys, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "trl" else object())
    status, _, err = command(capsys, "train", "offline", "--algo", "grpo")
    assert (status, err) == (2, "srl: Missing: trl. Install them: pip install 'symmetric-rl[trl]'\n")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    status, _, err = command(capsys, "train", "offline")
    assert status == 2
    assert "transformers, accelerate, peft, datasets. Install them: pip install 'symmetric-rl[llm]'" in err
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    status, _, err = command(capsys, "sample", "run", "a")
    assert (status, "need Python 3.11 or later" in err, "this is Python 3.10" in err) == (2, True, True)


@pytest.mark.slow
def test_unreachable_hub_is_named_in_error(tmp_path):
    """Runs in a subprocess: the libraries read environment variables only once."""
    own = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | own
    words = [sys.executable, "-m", "srl", "llm", "train", "imdb", "--device", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "gpt2: cannot be loaded from the Hugging Face hub" in done.stderr
    assert "give --local-files DIR" in done.stderr
    assert done.stderr.count("\n") == 1


def test_train_command_rejects_language_model_algorithms(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--algo", "llm-sppo", "--env", "CartPole-v1"])
    assert "llm-sppo trains language models: srl llm train TASK --algo sppo" in capsys.readouterr().err
