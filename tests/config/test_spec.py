"""Run specs and the errors that are raised before training."""

import json

import gymnasium as gym
import pytest
import torch as th
from pydantic import ValidationError

from srl.config.lenient import read_leniently
from srl.config.spec import RunSpec, make_run_spec, resolve_device, safe_name
from srl.errors import UserError
from srl.training.check import check_run
from tests.small_runs import BROKEN, small_spec


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(algo="spo"), "Did you mean sppo"),
        (dict(env="CartPol-v1"), "Did you mean CartPole-v1"),
        (dict(env="nowhere:Name-v0"), "'nowhere'"),
        (dict(env="LunarLander-v1"), "LunarLander-v3"),
        (dict(noise="flip:1.5"), "flip:PROB"),
        (dict(noise="flip:2"), "flip:PROB"),
        (dict(noise="flip:nan"), "flip:PROB"),
        (dict(noise="gaussian:-0.1"), "gaussian:STD"),
        (dict(noise="gaussian:inf"), "gaussian:STD"),
        (dict(noise="gausian:0.1"), "Did you mean gaussian"),
        (dict(noise="flip"), "exactly one parameter"),
        (dict(noise=""), "none, gaussian:STD"),
        (dict(seed=-1), "seed: -1"),
        (dict(seed=2**31), "seed"),
        (dict(n_timesteps=0), "n_timesteps: 0"),
        (dict(bins=11), "Use dsppo"),
        (dict(algo="dsppo", env="Pendulum-v1", bins=1), "bins: 1"),
        (dict(profile="author"), "Did you mean authors"),
        (dict(eval_freq=0), "eval_freq: 0"),
        (dict(n_eval_episodes=0), "n_eval_episodes: 0"),
        (dict(threads=0), "threads: 0"),
        (dict(device="gpu"), "auto, cpu, cuda, cuda:N"),
        (dict(device="cuda:"), "auto, cpu, cuda, cuda:N"),
    ],
    ids=str,
)
def test_invalid_value_is_named_in_error(changes, says):
    with pytest.raises(UserError) as error:
        small_spec(**changes)
    assert says in str(error.value)


@pytest.mark.skipif(th.cuda.is_available(), reason="there is CUDA here")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_device_is_rejected_without_cuda(device):
    with pytest.raises(UserError, match=f"device='{device}': .* sees 0 CUDA devices"):
        resolve_device(device, "MlpPolicy")


def test_auto_device_keeps_mlp_policy_on_cpu():
    assert resolve_device("auto", "MlpPolicy") == "cpu"
    assert resolve_device("auto", "CnnPolicy") == ("cuda" if th.cuda.is_available() else "cpu")


@pytest.mark.parametrize("algo", ["sppo", "sa2c"])
def test_box_actions_with_reverse_loss_error_suggests_discretization(algo):
    with pytest.raises(UserError) as error:
        check_run(small_spec(algo, "Pendulum-v1"))
    assert "Discretize the actions with --algo d" + algo in str(error.value)


@pytest.mark.parametrize(("algo", "overrides"), [("ppo", {}), ("dsppo", {}), ("sppo", {"beta": 0})])
def test_box_actions_are_accepted_without_reverse_loss_or_discretized(algo, overrides):
    check_run(small_spec(algo, "Pendulum-v1", overrides=overrides))


def test_discretizing_discrete_actions_is_rejected():
    with pytest.raises(UserError, match="cannot be discretized"):
        check_run(small_spec("dsppo", "CartPole-v1"))


@pytest.mark.parametrize(
    ("env", "overrides"),
    [
        ("CartPole-v1", dict(policy="CnnPolicy")),
        ("CartPole-v1", dict(policy="MultiInputPolicy")),
        ("CartPole-v1", dict(use_sde=True)),
        ("CartPole-v1", dict(clip_range_vf=0.0)),
        ("CartPole-v1", dict(policy_kwargs={"optimizer_kwargs": {"epsilon": 1e-5}})),
        ("FrozenLake-v1", dict(normalize=True)),
    ],
    ids=str,
)
def test_incompatible_hyperparameters_are_rejected_before_training(env, overrides):
    with pytest.raises(UserError):
        check_run(small_spec(env=env, overrides=overrides))


def test_environment_that_cannot_be_created_raises_user_error():
    with pytest.raises(UserError, match="no simulator here"):
        check_run(small_spec(env=BROKEN + "CannotBeMade-v0"))


@pytest.mark.parametrize("code", ["this is no Python", "1 / 0"], ids=["syntax", "exception"])
def test_environment_module_that_fails_at_import_raises_user_error(code, tmp_path, monkeypatch):
    (tmp_path / "breaking_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="breaking_module"):
        small_spec(env="breaking_module:Name-v0")


def test_renamed_environment_is_resolved_with_note():
    spec, notes = make_run_spec("ppo", "LunarLander-v2", 0)
    assert spec.env == "LunarLander-v3"
    assert "renamed" in notes[0]


def test_spec_is_complete_and_round_trips_through_json():
    for algo, env in (("sppo", "CartPole-v1"), ("dsa2c", "Pendulum-v1"), ("a2c", "CartPole-v1")):
        spec = small_spec(algo, env, noise="flip:0.10", overrides={"normalize": {"clip_obs": 5}})
        text = spec.model_dump_json()
        assert RunSpec(**json.loads(text)) == spec
        assert spec.noise == "flip:0.1"
        assert spec.hyperparams.normalize.clip_obs == 5.0
        assert json.loads(text)["hyperparams"]["normalize"]["norm_reward"] is True


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(algo="spo"), "sppo"),
        (dict(format=3), "format"),
        (dict(extra=1), "extra"),
        (dict(hyperparams={"z": 1.0}), "z"),
        (dict(hyperparams=None), "hyperparams"),
        (dict(seed=None), "seed"),
    ],
    ids=str,
)
def test_invalid_spec_fields_are_rejected(change, says):
    values = json.loads(small_spec().model_dump_json())
    with pytest.raises(ValueError, match=says):
        RunSpec(**(values | change))


def test_spec_without_evaluation_limit_loads_with_default_limit():
    values = json.loads(small_spec().model_dump_json())
    assert values.pop("eval_max_episode_steps") == 50_000
    assert RunSpec(**values) == small_spec()


def test_evaluation_limit_defaults_to_longer_time_limit_of_environment():
    gym.register("VeryLong-v0", entry_point=f"{BROKEN}Fine", max_episode_steps=80_000)
    assert small_spec(env="VeryLong-v0").eval_max_episode_steps == 80_000
    assert small_spec(env="VeryLong-v0", eval_max_episode_steps=10).eval_max_episode_steps == 10


@pytest.mark.parametrize(
    ("env", "noise", "path"),
    [
        ("CartPole-v1", "none", "CartPole-v1/sppo/none/seed-0"),
        ("CartPole-v1", "flip:0.10", "CartPole-v1/sppo/flip-0.1/seed-0"),
        (BROKEN + "Fine-v0", "none", "tests.training.broken_envs-Fine-v0/sppo/none/seed-0"),
        ("ALE/Pong-v5", "none", "ALE-Pong-v5/sppo/none/seed-0"),
    ],
)
def test_path_contains_only_safe_names(env, noise, path):
    assert make_run_spec("sppo", env, 0, noise=noise, device="cpu")[0].path == path


@pytest.mark.parametrize("text", ["../../etc", "a/b", "..", "a b;c$d", "a\x00b"])
def test_safe_name_cannot_leave_its_folder(text):
    name = safe_name(text)
    assert "/" not in name
    assert "\x00" not in name
    assert not name.startswith(".")


@pytest.mark.parametrize(
    ("noise", "is_read"),
    [
        ("drop:0.2", True),
        ("my-noise:-1e-05", True),
        ("flip:1.5", False),
        ("flip:0.1:2", False),
        ("none:1", False),
        ("drop", False),
        ("drop:", False),
        (":1", False),
        ("drop:nan", False),
        ("drop: 1", False),
        ("dr\nop:1", False),
    ],
)
def test_spec_with_noise_of_a_module_is_read_without_it(noise, is_read):
    values = small_spec().model_dump(mode="json") | {"noise": noise}
    with pytest.raises(ValidationError):
        RunSpec(**values)
    if is_read:
        assert read_leniently(json.dumps(values).encode()).spec.noise == noise
    else:
        with pytest.raises(ValidationError):
            read_leniently(json.dumps(values).encode())
