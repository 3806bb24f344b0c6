"""The compiled update: its results, and the behavior without a compiler."""

import copy
import os
import shutil
import subprocess
import sys
from functools import partial

import cloudpickle
import numpy as np
import pytest
import torch as th
from filelock import FileLock
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from srl import SA2C, SPPO
from srl import compilation as compilation_module
from srl import precision as precision_module
from srl.compilation import why_not
from srl.config.compiling import n_minibatches, repays, resolve_compile
from srl.config.spec import make_run_spec
from srl.envs import make_train_env
from srl.errors import UserError
from srl.rundir.directory import RunDirectory
from srl.training.model import make_model
from srl.training.run import train_run
from tests.envs.unusual_spaces import UNUSUAL
from tests.small_runs import SMALL_WORDS, small_spec, srl
from tests.training.stacked import comparison
from tests.training.stacked.comparison import assert_same_result, train_alone, train_together
from tests.training.stacked.small_envs import SMALL_ENVS

#: Each epoch has four minibatches of 16 samples and one of 8, which is not compiled.
PPO_SHAPE = dict(n_steps=36, n_envs=2, batch_size=16, n_epochs=2)
A2C_SHAPE = dict(n_steps=8, n_envs=2)


def small(algo="sppo", seed=1, env=SMALL_ENVS + "Dials-v0", **changes):
    """Return the spec of a compiled run; all runs of a family have the same shape."""
    shape = PPO_SHAPE if algo.endswith("ppo") else A2C_SHAPE
    overrides = shape | changes.pop("overrides", {})
    options = dict(n_timesteps=216, eval_freq=100) | changes
    spec = small_spec(algo, env, seed, overrides=overrides, **options)
    return spec.model_copy(update={"compile_update": True})


#: Code of a process that trains a run with this shape and prints whether it compiled.
TRAIN = (
    "import sys; from pathlib import Path; from srl.training.run import train_run\n"
    "from tests.test_compile import small\n"
    "print(train_run(small(seed=int(sys.argv[1])), Path(sys.argv[2])).compile_seconds > 0)"
)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache of compiled code that all test processes share.

    Two concurrent processes fill it; the file ``compiled`` records which of them compiled.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        with FileLock(root / "cache.lock"):
            if not (root / "compiled").exists():
                (root / "compiled").write_text(compile_at_once(root))
        yield root / "cache"


def compile_at_once(root):
    """Compile in two concurrent processes; return which of them compiled and the number of files."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(seed), str(root / f"compiled-{seed}")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    printed = [process.communicate()[0].split()[-1] for process in processes]
    n_files = len(list((root / "cache" / "symmetric-rl").glob("*.so")))
    return " ".join([*sorted(printed), str(n_files)])


@pytest.fixture
def no_compiler(monkeypatch):
    """Simulate a machine without a C++ compiler."""
    monkeypatch.setenv("CXX", "/no/such/compiler")
    why_not.cache_clear()
    yield
    monkeypatch.undo()
    why_not.cache_clear()


def parameters_of(model):
    return th.cat([value.detach().flatten().clone() for value in model.policy.parameters()])


def compiled_and_uncompiled(spec, n_updates):
    """Return both models after updates from the same rollouts, and the distance that parameters moved."""
    models = []
    for compile_update in (False, True):
        run = spec.model_copy(update={"compile_update": compile_update})
        model = make_model(run, make_train_env(run.env_spec()))
        model.set_logger(configure(None, []))
        models.append(model)
    plain, compiled = models
    start = parameters_of(plain)
    assert th.equal(start, parameters_of(compiled))
    _, callback = plain._setup_learn(spec.n_timesteps)
    assert compiled.compile_now() is not None, compiled.not_compiled
    for update in range(n_updates):
        plain.collect_rollouts(plain.env, callback, plain.rollout_buffer, plain.n_steps)
        compiled.rollout_buffer = copy.deepcopy(plain.rollout_buffer)
        for model in models:
            model._update_current_progress_remaining(update, n_updates)
            np.random.seed(update)
            model.train()
    return plain, compiled, float((parameters_of(plain) - start).norm())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "env", "policy"),
    [
        ("sppo", SMALL_ENVS + "Dials-v0", "MlpPolicy"),
        ("sa2c", SMALL_ENVS + "Dials-v0", "MlpPolicy"),
        ("sppo", UNUSUAL + "DictStart-v0", "MultiInputPolicy"),
    ],
)
def test_compiled_update_matches_uncompiled_up_to_rounding(algo, env, policy, cache):
    overrides = dict(learning_rate="lin_1e-3", advantage_flip_prob=0.2, ent_coef=0.01, policy=policy)
    if algo == "sppo":
        overrides["clip_range"] = "lin_0.3"
    plain, compiled, moved = compiled_and_uncompiled(small(algo, env=env, overrides=overrides), n_updates=5)
    assert moved > 0
    assert float((parameters_of(plain) - parameters_of(compiled)).norm()) <= 1e-5 * moved
    assert plain._n_updates == compiled._n_updates
    logged = compiled.logger.name_to_value
    assert list(logged) == list(plain.logger.name_to_value)
    for name, value in plain.logger.name_to_value.items():
        assert logged[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    ours, theirs = (model.policy.optimizer.state_dict() for model in (compiled, plain))
    assert ours["param_groups"] == theirs["param_groups"]
    for index, state in theirs["state"].items():
        for name, value in state.items():
            th.testing.assert_close(th.as_tensor(ours["state"][index][name]), th.as_tensor(value))


class OneConvolution(BaseFeaturesExtractor):
    """A small image network that compiles fast."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=8)
        self.layers = th.nn.Sequential(
            th.nn.Conv2d(1, 8, 8, stride=4), th.nn.ReLU(), th.nn.Flatten(), th.nn.Linear(512, 8)
        )

    def forward(self, observations):
        return self.layers(observations)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bf16", 0.02)])
def test_compiled_update_of_convolutions_matches_uncompiled_up_to_rounding(
    precision, tolerance, cache, monkeypatch
):
    monkeypatch.setattr(precision_module, "why_no_bf16", lambda device_type: None)
    extractor = dict(features_extractor_class=f"{__name__}:OneConvolution")
    overrides = dict(policy="CnnPolicy", policy_kwargs=extractor)
    spec = small(env=SMALL_ENVS + "Frames-v0", precision=precision, overrides=overrides)
    plain, compiled, moved = compiled_and_uncompiled(spec, n_updates=5)
    assert not plain.policy.channels_last
    assert compiled.policy.channels_last
    assert float((parameters_of(plain) - parameters_of(compiled)).norm()) <= tolerance * moved


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["sppo", "sa2c"])
def test_member_of_any_population_is_bitwise_identical_to_its_single_run(algo, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "TOLERANCE", 0.0)
    specs = [
        small(algo, 1),
        small(algo.replace("s", ""), 2, noise="gaussian:0.5"),
        small(algo, 3, overrides=dict(advantage_flip_prob=0.3, learning_rate=1e-2, gamma=0.9)),
        small(algo, 4, overrides=dict(reverse_loss="mae")),
    ]
    alone = train_alone(specs, tmp_path)
    for size in (1, 2, 4):
        paths, statuses = train_together(specs[:size], tmp_path, f"together-{size}")
        assert [(status.state, status.notes) for status in statuses] == [("done", ())] * size
        for path, other in zip(paths, alone[:size], strict=True):
            assert_same_result(path, other)
            assert RunDirectory(path).read_spec().compile_update


@pytest.mark.slow
def test_interrupted_compiled_run_resumes_with_identical_results(cache, tmp_path):
    from srl.training.stacked.train import train_population
    from srl.training.stacked.update import CompiledUpdater
    from tests.training.test_resume import interrupt_at, outcome, troubles

    spec = small(n_timesteps=360, overrides=dict(advantage_flip_prob=0.1))

    def alone(path):
        return train_run(spec, path, checkpoint_every=0)

    def together(path):
        return train_population([spec], [path], checkpoint_every=0)[0]

    for train, owner, name in ((alone, SPPO, "train"), (together, CompiledUpdater, "update")):
        whole, interrupted = tmp_path / f"{name}-whole", tmp_path / f"{name}-interrupted"
        train(whole)
        interrupt_at(3, owner, name, partial(train, interrupted))
        status = train(interrupted)
        assert status.resumed_from > 0
        assert troubles(status) == []
        assert outcome(interrupted) == outcome(whole)


@pytest.mark.slow
def test_compiled_model_trains_from_the_parameters_of_an_untrained_model(cache):
    model, other = (make_model(small(), make_train_env(small().env_spec())) for _ in range(2))
    model.set_logger(configure(None, []))
    untrained = parameters_of(other)
    model.learn(72)
    model.set_parameters(other.get_parameters())
    assert th.equal(parameters_of(model), untrained)
    model.learn(72)
    assert model.not_compiled is None
    assert not th.equal(parameters_of(model), untrained)
    (step,) = {float(state["step"]) for state in model.policy.optimizer.state.values()}
    assert step == 10  # five minibatches per epoch, two epochs


@pytest.mark.slow
def test_concurrent_processes_compile_only_once(cache):
    assert cache.with_name("compiled").read_text() == "False True 1"


@pytest.mark.slow
def test_damaged_library_is_recompiled(cache, tmp_path, monkeypatch):
    train_run(small(), tmp_path / "first")
    kept = shutil.copytree(cache / "symmetric-rl", tmp_path / "cache" / "symmetric-rl")
    for file in kept.glob("*.so"):
        file.write_bytes(b"no library")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled = []

    def compile_again(graph, arguments, file):
        compiled.append(file)
        shutil.copy(cache / "symmetric-rl" / file.name, file)

    monkeypatch.setattr(compilation_module, "_compile", compile_again)
    train_run(small(), tmp_path / "second")
    assert len(compiled) == 1
    assert_same_result(tmp_path / "second", tmp_path / "first")


@pytest.mark.slow
def test_compiled_model_can_be_pickled(cache):
    spec = small()
    model = make_model(spec, make_train_env(spec.env_spec()))
    assert model.compile_now() is not None
    model.env = model._vec_normalize_env = None
    loaded = cloudpickle.loads(cloudpickle.dumps(model))
    assert loaded._compiled is None
    assert parameters_of(loaded).equal(parameters_of(model))


def test_saved_model_keeps_compile_option(tmp_path):
    for cls in (SPPO, SA2C):
        model = cls("MlpPolicy", "CartPole-v1", device="cpu", compile_update=True)
        model.save(tmp_path / "model")
        loaded = cls.load(tmp_path / "model", device="cpu")
        assert loaded.compile_update
        assert loaded.policy.numpy_acting
        assert not cls("MlpPolicy", "CartPole-v1", device="cpu").compile_update


@pytest.mark.parametrize("cls", [SPPO, SA2C])
def test_library_trains_uncompiled_with_a_warning_without_compiler(cls, no_compiler):
    kwargs = dict(n_steps=32, batch_size=32) if cls is SPPO else {}
    model = cls("MlpPolicy", "CartPole-v1", device="cpu", compile_update=True, **kwargs)
    before = parameters_of(model)
    with pytest.warns(UserWarning, match=f"{cls.__name__}: the update is not compiled: .*/no/such/compiler"):
        model.learn(64)
    assert not th.equal(before, parameters_of(model))


def test_runs_train_uncompiled_with_a_note_without_compiler(no_compiler, tmp_path):
    specs = [small(seed=seed) for seed in (1, 2)]
    paths, statuses = train_together(specs, tmp_path)
    for status in [*statuses, train_run(specs[0], tmp_path / "alone")]:
        assert status.state == "done"
        assert "not compiled" in status.notes[0]
    assert RunDirectory(paths[0]).read_spec().compile_update


class OwnSamples(RolloutBuffer):
    def _get_samples(self, batch_inds, env=None):
        samples = super()._get_samples(batch_inds, env)
        return samples._replace(returns=samples.returns * 0)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        (dict(optimizer_class=th.optim.SGD, optimizer_kwargs=dict(momentum=0.9)), "SGD with momentum=0.9"),
        (dict(optimizer_class=th.optim.Adagrad), "Adagrad"),
        ({}, "it draws random numbers"),
        ("frozen", "parameters that are not trained"),
        ("buffer", "OwnSamples makes minibatches in its own way"),
        ("foreign", "the optimizer has other parameters than ActorCriticPolicy"),
    ],
)
def test_reason_for_not_compiling_is_named(kwargs, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    case, kwargs = (kwargs, {}) if isinstance(kwargs, str) else ("", kwargs)
    model = SPPO(
        "MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, device="cpu", compile_update=True,
        policy_kwargs=kwargs, rollout_buffer_class=OwnSamples if case == "buffer" else None,
    )  # fmt: skip
    if case == "frozen":
        model.policy.action_net.requires_grad_(False)
    elif case == "foreign":
        model.policy.optimizer.param_groups[0]["params"].append(th.nn.Parameter(th.zeros(1)))
    elif not case and not kwargs:
        model.policy.mlp_extractor.policy_net.append(th.nn.Dropout(0.5))
    model.policy.set_training_mode(False)
    with pytest.warns(UserWarning, match=f"not compiled: .*{reason}"):
        assert model.compile_now() is None


def test_unusable_cache_does_not_fail_the_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    status = train_run(small(), tmp_path / "run")
    assert status.state == "done"
    assert "not compiled" in status.notes[0]


def test_auto_compiles_only_sufficiently_long_runs():
    long, _ = make_run_spec("dsppo", "HalfCheetah-v4", 0)
    assert n_minibatches(long.hyperparams, 2048 * 3) == 3 * 10 * 32
    assert n_minibatches(long.hyperparams, 2048 * 3 + 1) == 4 * 10 * 32
    assert repays(long.hyperparams, long.n_timesteps)
    assert not repays(long.hyperparams, 10_000)
    a2c, _ = make_run_spec("da2c", "HalfCheetah-v4", 0)
    per_update = a2c.hyperparams.n_steps * a2c.hyperparams.n_envs
    assert n_minibatches(a2c.hyperparams, 10 * per_update) == 10
    assert repays(a2c.hyperparams, a2c.n_timesteps)


def test_compile_option_without_compiler(no_compiler):
    spec, notes = make_run_spec("dsppo", "HalfCheetah-v4", 0, compile="off")
    assert (spec.compile_update, notes) == (False, [])
    spec, notes = make_run_spec("dsppo", "HalfCheetah-v4", 0, compile="auto")
    assert not spec.compile_update
    assert "not compiled" in notes[0]
    assert "/no/such/compiler" in notes[0]
    assert resolve_compile("auto", spec.hyperparams, 1000, "cpu") == (False, [])
    with pytest.raises(UserError, match="--compile on: there is no C\\+\\+ compiler"):
        make_run_spec("dsppo", "HalfCheetah-v4", 0, compile="on")
    with pytest.raises(UserError, match="--compile yes: must be auto, on, off"):
        make_run_spec("dsppo", "HalfCheetah-v4", 0, compile="yes")


def test_auto_compiles_long_runs_if_there_is_a_compiler():
    if why_not("cpu") is not None:
        pytest.skip(str(why_not("cpu")))
    spec, notes = make_run_spec("dsppo", "HalfCheetah-v4", 0, compile="auto")
    assert spec.compile_update
    assert "compiled" in notes[0]


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_compile_on_without_compiler_is_rejected_before_anything_is_written(command, no_compiler, tmp_path):
    what = ["--algo", "sppo", "--env", "CartPole-v1"] if command == "train" else ["discrete_srl"]
    outcome = srl(command, *what, "--compile", "on", "--out", tmp_path / "run")
    assert outcome.status == 2
    assert "--compile on: there is no C++ compiler" in outcome.err
    assert not (tmp_path / "run").exists()


def test_resumed_run_stays_compiled_regardless_of_auto(no_compiler, tmp_path):
    words = ["--algo", "sppo", "--env", "CartPole-v1", "--timesteps", "64", "--out", tmp_path, *SMALL_WORDS]
    spec = small_spec(n_eval_episodes=2).model_copy(update={"compile_update": True})
    train_run(spec, tmp_path)
    outcome = srl("train", *words)
    assert (outcome.status, outcome.err) == (0, "")
    assert "finished" in outcome.out
    outcome = srl("train", *words, "--compile", "off")
    assert outcome.status == 2
    assert "compile_update is True there and False here" in outcome.err


def test_resumed_sweep_stays_compiled_regardless_of_auto(no_compiler, tmp_path):
    words = ["sweep", "discrete_srl", "--envs", "CartPole-v1", "--algos", "sppo", "--noise", "none"]
    words += ["--seeds", "0", "--timesteps", "64", "--out", tmp_path, *SMALL_WORDS]
    spec = small_spec(n_eval_episodes=2).model_copy(update={"compile_update": True})
    train_run(spec, tmp_path / spec.path)
    outcome = srl(*words, "--dry-run")
    assert outcome.status == 0, outcome.err
    assert "Finished: 1" in outcome.out


def test_sweep_file_accepts_on_and_off_as_yaml_booleans(tmp_path):
    from srl.config.sweep import load_sweep

    file = tmp_path / "sweep.yml"
    for text, choice in (("on", "on"), ("off", "off"), ("auto", "auto")):
        file.write_text(f"envs: [CartPole-v1]\nalgos: [ppo]\nnoise: [none]\nseeds: [0]\ncompile: {text}\n")
        assert load_sweep(file).compile == choice
    file.write_text("envs: [CartPole-v1]\nalgos: [ppo]\nnoise: [none]\nseeds: [0]\ncompile: maybe\n")
    with pytest.raises(UserError, match=r"sweep\.yml"):
        load_sweep(file)
