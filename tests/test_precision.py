"""Features extractors in bfloat16, and images in the channels-last memory format."""

import copy
from functools import partial

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, PPO
from stable_baselines3.common import policies as sb3

from srl import SA2C, SPPO
from srl import precision as precision_module
from srl.config.population import population_key
from srl.envs import make_train_env
from srl.errors import UserError
from srl.precision import why_no_bf16
from srl.rundir.directory import RunDirectory
from srl.training.run import make_model, train_run
from tests.small_runs import SMALL_WORDS, small_spec, srl
from tests.training.stacked.small_envs import SMALL_ENVS
from tests.training.test_resume import interrupt_at, outcome, troubles

FRAMES = SMALL_ENVS + "Frames-v0"
SHAPES = {SPPO: dict(n_steps=16, batch_size=16, n_epochs=2), SA2C: dict(n_steps=16)}


@pytest.fixture
def any_cpu(monkeypatch):
    """Allow bfloat16 on CPUs without its instructions, where PyTorch emulates it slowly."""
    monkeypatch.setattr(precision_module, "why_no_bf16", lambda device_type: None)


@pytest.fixture
def no_bf16(monkeypatch):
    """Simulate a CPU without bfloat16 instructions."""
    monkeypatch.setattr(th.cpu, "get_capabilities", lambda: {"avx2": True, "cpu_name": "Old One"})
    why_no_bf16.cache_clear()
    yield
    why_no_bf16.cache_clear()


def frames_model(cls=SPPO, **kwargs):
    spec = small_spec("sppo", FRAMES, overrides={"policy": "CnnPolicy"})
    return cls("CnnPolicy", make_train_env(spec.env_spec()), seed=0, device="cpu", **SHAPES[cls], **kwargs)


def atari_models(game, **changes):
    """Return a float32 model and a changed model with the same parameters and the same rollout."""
    spec = small_spec(
        "sppo", f"{game}NoFrameskip-v4", overrides={"n_envs": 2, "n_steps": 64, "batch_size": 128}
    )
    env = make_train_env(spec.env_spec())
    plain, changed = make_model(spec, env), make_model(spec, env)
    vars(changed.policy).update(changes)
    _, callback = plain._setup_learn(128)
    plain.collect_rollouts(plain.env, callback, plain.rollout_buffer, plain.n_steps)
    changed.policy.load_state_dict(plain.policy.state_dict())
    changed.rollout_buffer = copy.deepcopy(plain.rollout_buffer)
    return plain, changed


def loss_and_gradient(model):
    """Return the losses of the model's rollout and their gradient as one vector."""
    np.random.seed(0)
    (data,) = model.rollout_buffer.get(128)
    losses, _ = model._losses(model._evaluate(data), data, None, model._coefficients())
    model.policy.optimizer.zero_grad()
    losses.loss.backward()
    return losses, th.cat([parameter.grad.flatten() for parameter in model.policy.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("game", ["Pong", "Breakout"])
def test_bf16_gradient_approximates_float32_gradient(game):
    plain, changed = atari_models(game, precision="bf16")
    losses, gradient = loss_and_gradient(plain)
    other_losses, other_gradient = loss_and_gradient(changed)
    assert other_losses.loss.dtype == other_gradient.dtype == th.float32
    assert not th.equal(gradient, other_gradient)
    assert th.cosine_similarity(gradient, other_gradient, dim=0) > 0.99
    assert other_losses.loss.item() == pytest.approx(losses.loss.item(), rel=0.02, abs=0.01)


@pytest.mark.slow
def test_channels_last_changes_gradients_only_by_rounding():
    plain, changed = atari_models("Pong", channels_last=True)
    layouts = []
    changed.policy.features_extractor.register_forward_pre_hook(
        lambda module, arguments: layouts.append(arguments[0].is_contiguous(memory_format=th.channels_last))
    )
    _, gradient = loss_and_gradient(plain)
    _, other_gradient = loss_and_gradient(changed)
    assert layouts == [True]
    assert float((gradient - other_gradient).norm() / gradient.norm()) < 1e-4
    with th.no_grad():
        changed.policy(th.as_tensor(plain._last_obs).contiguous())
    assert layouts == [True, False]


@pytest.mark.parametrize("cls", [SPPO, SA2C])
def test_parameters_and_optimizer_stay_in_float32(cls, any_cpu):
    model, plain = frames_model(cls, precision="bf16"), frames_model(cls)
    dtypes = []
    model.policy.features_extractor.linear.register_forward_hook(
        lambda module, arguments, result: dtypes.append(result.dtype)
    )
    start = copy.deepcopy(model.policy.state_dict())
    for each in (model, plain):
        each.learn(32)
    assert set(dtypes) == {th.bfloat16}
    state = model.policy.optimizer.state.values()
    tensors = [*model.policy.parameters(), *(value for each in state for value in each.values())]
    assert {value.dtype for value in tensors if isinstance(value, th.Tensor)} == {th.float32}
    for name, value in model.policy.state_dict().items():
        assert not th.equal(value, start[name]), name
    assert not th.equal(model.policy.action_net.weight, plain.policy.action_net.weight)


def test_acting_evaluating_and_updating_use_the_same_policy(any_cpu):
    policy = frames_model(precision="bf16").policy
    observations = th.randint(0, 256, (8, 1, 36, 36), dtype=th.uint8)
    with th.no_grad():
        actions, values, log_probs = policy(observations)
        evaluated = policy.evaluate_actions(observations, actions)
        distribution = policy.get_distribution(observations)
        assert th.equal(policy.predict_values(observations), values)
    assert th.equal(evaluated[0], values)
    assert th.equal(evaluated[1], log_probs)
    assert th.equal(distribution.log_prob(actions), log_probs)
    assert log_probs.dtype == values.dtype == th.float32


@pytest.mark.parametrize(("ours", "theirs"), [(SPPO, PPO), (SA2C, A2C)])
def test_alpha_1_beta_0_on_images_is_bitwise_identical_to_sb3(ours, theirs):
    def train(cls, **kwargs):
        env = make_train_env(small_spec("sppo", FRAMES, overrides={"policy": "CnnPolicy"}).env_spec())
        return cls("CnnPolicy", env, seed=0, device="cpu", **SHAPES[ours], **kwargs).learn(64)

    models = train(ours, alpha=1.0, beta=0.0), train(theirs)
    for own, other in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.equal(own, other)


def test_saved_model_keeps_precision_and_predicts_without_bf16_support(any_cpu, tmp_path, monkeypatch):
    model = frames_model(precision="bf16")
    model.save(tmp_path / "model")
    monkeypatch.setattr(precision_module, "why_no_bf16", lambda device_type: "it has no bfloat16")
    loaded = SPPO.load(tmp_path / "model", env=model.env, device="cpu")
    assert loaded.policy.precision == "bf16"
    observations = model.env.reset()
    assert np.array_equal(*(each.predict(observations, deterministic=True)[0] for each in (model, loaded)))
    with pytest.raises(UserError, match=r"precision='bf16': it has no bfloat16\. Use float32"):
        loaded.learn(16)


@pytest.mark.slow
def test_interrupted_bf16_run_resumes_with_identical_results(any_cpu, tmp_path):
    spec = small_spec("sppo", FRAMES, n_timesteps=128, precision="bf16", overrides={"policy": "CnnPolicy"})
    train_run(spec, tmp_path / "whole")
    attempt = partial(train_run, spec, tmp_path / "interrupted", checkpoint_every=0)
    interrupt_at(3, SPPO, "train", attempt)
    status = attempt()
    assert status.resumed_from > 0
    assert troubles(status) == []
    assert outcome(tmp_path / "interrupted") == outcome(tmp_path / "whole")
    assert RunDirectory(tmp_path / "whole").read_spec().precision == "bf16"
    assert outcome(tmp_path / "whole") != outcome(_float32(spec, tmp_path / "float32"))


def _float32(spec, path):
    train_run(spec.model_copy(update={"precision": "float32"}), path)
    return path


def test_bf16_run_is_not_continued_in_float32(any_cpu, tmp_path):
    words = ["--algo", "sppo", "--env", FRAMES, "--timesteps", "64", "--out", tmp_path, *SMALL_WORDS]
    words += ["policy=CnnPolicy"]
    assert srl("train", *words, "--precision", "bf16").status == 0
    outcome_ = srl("train", *words)
    assert outcome_.status == 2
    assert "precision is 'bf16' there and 'float32' here" in outcome_.err


def test_bf16_runs_train_alone(any_cpu):
    spec = small_spec("sppo", FRAMES, overrides={"policy": "CnnPolicy"})
    assert population_key(spec) is not None
    assert population_key(spec.model_copy(update={"precision": "bf16"})) is None


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_bf16_without_cpu_support_is_rejected_before_anything_is_written(command, no_bf16, tmp_path):
    what = ["--algo", "sppo", "--env", FRAMES] if command == "train" else ["discrete_srl", "--seeds", "0"]
    refused = srl(command, *what, "--precision", "bf16", "--device", "cpu", "--out", tmp_path / "run")
    assert refused.status == 2
    assert "precision='bf16': this CPU (Old One) has no bfloat16 instructions" in refused.err
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="Old One"):
        frames_model(precision="bf16")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env", "CartPole-v1", "--precision", "bf16"], "has no effect: the features extractor Flatten"),
        (["--env", FRAMES, "--precision", "bf16", "--hyperparams", "policy=MlpPolicy"], "has no effect"),
        (["--env", "CartPole-v1", "--precision", "bf61"], "not one of float32, bf16. Did you mean bf16?"),
    ],
)
def test_invalid_precision_is_rejected_before_anything_is_written(words, message, any_cpu, tmp_path):
    refused = srl("train", "--algo", "sppo", *words, "--out", tmp_path / "run")
    assert refused.status == 2
    assert message in refused.err
    assert not (tmp_path / "run").exists()


def test_library_rejects_precision_without_effect(any_cpu):
    with pytest.raises(UserError, match="FlattenExtractor has no parameters"):
        SPPO("MlpPolicy", "CartPole-v1", device="cpu", precision="bf16")
    env = make_train_env(small_spec("sppo", FRAMES, overrides={"policy": "CnnPolicy"}).env_spec())
    with pytest.raises(UserError, match="derive ActorCriticCnnPolicy from"):
        SPPO(sb3.ActorCriticCnnPolicy, env, device="cpu", precision="bf16")
