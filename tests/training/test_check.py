"""Errors that are found before training: spaces, rewards, and hyperparameters without effect."""

import json
import pickle

import numpy as np
import pytest
from ale_py import roms
from stable_baselines3.common.vec_env import VecNormalize

from srl import SA2C, SPPO
from srl.config.spec import make_run_spec
from srl.errors import UserError
from srl.rundir.directory import RunDirectory
from srl.training.check import check_runs
from srl.training.run import train_run
from srl.training.stacked import train_population
from tests.envs.unusual_spaces import UNUSUAL
from tests.small_runs import SMALL_WORDS, small_spec, srl
from tests.training.stacked.comparison import assert_same_result

FINE = "CartPole-v1"
IMAGES = "policy=CnnPolicy"


def train(env, *hyperparams):
    """Return a short training command."""
    env = env if "-v" in env else f"{UNUSUAL}{env}-v0"
    return ["train", "--env", env, "--algo", "sppo", "--timesteps", 64, *SMALL_WORDS, *hyperparams]


REFUSED = [
    ("Tuple", [], "FlattenObservation"),
    ("Nested", ["policy=MultiInputPolicy"], "FlattenObservation"),
    ("Text", [], "Use Box, Discrete"),
    ("UnboundedAction", ["beta=0"], "finite low and high"),
    ("Switches2D", [], "MultiBinary(6)"),
    ("Dials2D", [], "MultiDiscrete(nvec.ravel())"),
    ("Rooms2D", [], "must have one dimension"),
    ("FarStart", [], "smaller start"),
    ("TinyImage", [IMAGES], "at least 36 x 36"),
    ("FloatImage", [IMAGES], "policy_kwargs={normalize_images: false}"),
    ("FloatImageLast", [IMAGES, "policy_kwargs={normalize_images: false}"], "channels first"),
    pytest.param(
        *("ArrayReward", [], "reward"),
        marks=pytest.mark.skipif(
            np.lib.NumpyVersion(np.__version__) < "2.4.0",
            reason="this NumPy takes an array of one number as it",
        ),
    ),
    ("DictStart", ["policy=MultiInputPolicy", "normalize=true"], "Set norm_obs_keys to some of [place]"),
    ("DictStart", ["policy=MultiInputPolicy", "normalize={norm_obs_keys: [plac]}"], "Did you mean place?"),
    ("DictStart", [], "policy=MultiInputPolicy"),
    (FINE, ["normalize={norm_obs_keys: [place]}"], "norm_obs_keys"),
    ("Pendulum-v1", ["beta=0", "policy_kwargs={squash_output: true}"], "use_sde is false"),
]


@pytest.mark.parametrize(("env", "hyperparams", "says"), REFUSED, ids=str)
def test_mistake_is_found_before_anything_is_written(env, hyperparams, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = srl(*train(env, *hyperparams))
    assert outcome.status == 2, outcome.err
    assert says in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("algos", [["a2c", "sppo"], ["sppo", "a2c"]])
@pytest.mark.parametrize(
    ("env", "overrides", "symmetric", "says"),
    [
        # Invalid for only one of the two algorithms
        (FINE, {"rms_prop_eps": 1e-3, "use_rms_prop": False}, {}, "rms_prop_eps"),
        (FINE, {}, {"policy_kwargs": {"optimizer_kwargs": {"epsilon": 1.0}}}, "epsilon"),
        (FINE, {}, {"policy": "CnnPolicy"}, "CnnPolicy does not fit"),
        (f"{UNUSUAL}TinyImage-v0", {}, {"policy": "CnnPolicy"}, "at least 36 x 36"),
        ("Pendulum-v1", {}, {"policy_kwargs": {"net_arch": [8]}}, "sppo"),
    ],
    ids=["eps", "optimizer", "policy", "image", "box"],
)
def test_sweep_checks_every_combination_in_any_order(algos, env, overrides, symmetric, says, tmp_path):
    values = dict(envs=[env], algos=algos, noise=["none"], seeds=[0])
    values |= dict(overrides=overrides, symmetric_overrides=symmetric)
    (tmp_path / "mine.yml").write_text(json.dumps(values))
    outcome = srl("sweep", tmp_path / "mine.yml", "--trust-config", "--out", tmp_path / "out")
    assert outcome.status == 2
    assert says in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yml"]


def test_reported_mistake_does_not_depend_on_the_order_of_runs():
    specs = [small_spec("a2c", UNUSUAL + "Tuple-v0"), small_spec("sppo", overrides={"policy": "CnnPolicy"})]
    messages = []
    for order in (specs, specs[::-1]):
        with pytest.raises(UserError) as error:
            check_runs(order)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_equivalent_runs_are_built_once(monkeypatch):
    built = []
    setup_model = SA2C._setup_model
    monkeypatch.setattr(SA2C, "_setup_model", lambda self: (built.append(1), setup_model(self)))
    specs = [
        small_spec("sa2c", seed=seed, noise=noise, n_timesteps=steps)
        for seed, noise, steps in ((0, "none", 64), (1, "none", 64), (0, "flip:0.1", 64), (0, "none", 128))
    ]
    check_runs(specs)
    assert len(built) == 1
    check_runs([*specs, small_spec("sa2c", overrides={"policy_kwargs": {"net_arch": [8]}})])
    assert len(built) == 3


def test_one_atari_game_is_built_and_the_roms_of_all_are_checked(monkeypatch, tmp_path):
    built = []
    setup_model = SA2C._setup_model
    monkeypatch.setattr(SA2C, "_setup_model", lambda self: (built.append(self.env), setup_model(self)))
    games = ("BoxingNoFrameskip-v4", "PongNoFrameskip-v4")
    specs = [make_run_spec("sa2c", game, 0)[0] for game in games]
    check_runs(specs)
    assert len(built) == 1
    check_runs([*specs, make_run_spec("sa2c", "ALE/Pong-v5", 0)[0]])
    assert len(built) == 3  # sticky actions, which the emulator could reject
    strange = make_run_spec("sa2c", games[1], 0, env_kwargs={"mode": 77})[0]
    with pytest.raises(UserError, match=r"PongNo.*Invalid game mode"):
        check_runs([specs[0], strange])

    (tmp_path / "boxing.bin").write_bytes(roms.get_rom_path("boxing").read_bytes())
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    check_runs(specs[:1])
    with pytest.raises(UserError, match="The ROM of the Atari game 'pong'"):
        check_runs(specs)


def test_check_uses_the_number_of_environments():
    # A single step of a single environment could not be normalized
    check_runs([small_spec("sppo", overrides={"n_steps": 1, "n_envs": 8, "batch_size": 8})])


@pytest.mark.parametrize(
    ("algo", "env", "overrides", "says"),
    [
        ("sppo", FINE, dict(sde_sample_freq=4), "sde_sample_freq: has no effect, because use_sde is false"),
        ("ppo", "Pendulum-v1", dict(policy_kwargs={"full_std": False}), "policy_kwargs.full_std"),
        ("ppo", "Pendulum-v1", dict(policy_kwargs={"use_expln": True}), "policy_kwargs.use_expln"),
        ("sppo", FINE, dict(policy_kwargs={"log_std_init": -2}), "policy_kwargs.log_std_init"),
        ("dsppo", "Pendulum-v1", dict(policy_kwargs={"log_std_init": -2}), "policy_kwargs.log_std_init"),
        ("sppo", FINE, dict(policy_kwargs={"normalize_images": False}), "policy_kwargs.normalize_images"),
        ("sppo", FINE, dict(policy_kwargs={"net_arch": [], "activation_fn": "relu"}), "activation_fn"),
        ("sppo", FINE, dict(normalize={"norm_obs": False, "clip_obs": 5}), "normalize.clip_obs"),
        ("sppo", FINE, dict(normalize={"norm_reward": False, "clip_reward": 5}), "normalize.clip_reward"),
        ("sppo", FINE, dict(reverse_loss="mae", z=-2), "z: has no effect"),
        ("sppo", "Pendulum-v1", dict(beta=0, z=-2), "z has no effect"),
        ("a2c", FINE, dict(use_rms_prop=False, rms_prop_eps=1e-3), "use_rms_prop is false"),
        ("a2c", FINE, dict(rms_prop_eps=1e-5, policy_kwargs={"optimizer_class": "Adam"}), "rms_prop_eps"),
        ("a2c", FINE, dict(use_rms_prop=True, policy_kwargs={"optimizer_class": "SGD"}), "use_rms_prop"),
        (
            "a2c",
            FINE,
            dict(rms_prop_eps=1e-3, policy_kwargs={"optimizer_kwargs": {"eps": 1e-4}}),
            "optimizer_kwargs has eps=0.0001",
        ),
    ],
    ids=str,
)
def test_value_without_effect_is_rejected(algo, env, overrides, says):
    with pytest.raises(UserError) as error:
        check_runs([small_spec(algo, env, overrides=overrides)])
    assert says in str(error.value)


def optimizer_of(path):
    return SA2C.load(path / "model.zip", device="cpu").policy.optimizer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "recorded", "used"),
    [
        ({}, (True, 1e-5), ("RMSprop", 1e-5, 0.99, 0)),
        (dict(rms_prop_eps=1e-3), (True, 1e-3), ("RMSprop", 1e-3, 0.99, 0)),
        (
            dict(rms_prop_eps=1e-3, policy_kwargs={"optimizer_kwargs": {"alpha": 0.9}}),
            (True, 1e-3),
            ("RMSprop", 1e-3, 0.9, 0),
        ),
        (
            dict(policy_kwargs={"optimizer_kwargs": {"eps": 1e-4, "momentum": 0.5}}),
            (True, 1e-4),
            ("RMSprop", 1e-4, 0.99, 0.5),
        ),
        (
            dict(policy_kwargs={"optimizer_class": "RMSpropTFLike", "optimizer_kwargs": {"eps": 1e-4}}),
            (None, None),
            ("RMSpropTFLike", 1e-4, 0.99, 0),
        ),
        (dict(use_rms_prop=False), (False, None), ("Adam", 1e-5, None, None)),
    ],
    ids=str,
)
def test_recorded_optimizer_is_the_one_that_trains(overrides, recorded, used, tmp_path):
    spec = small_spec("a2c", n_timesteps=32, n_eval_episodes=1, eval_freq=1000, overrides=overrides)
    train_run(spec, tmp_path / "alone")
    train_population([spec], [tmp_path / "population"])
    for folder in ("alone", "population"):
        written = json.loads((tmp_path / folder / "spec.json").read_text())["hyperparams"]
        assert (written["use_rms_prop"], written["rms_prop_eps"]) == recorded
        assert RunDirectory(tmp_path / folder).read_spec().hyperparams == spec.hyperparams
        optimizer = optimizer_of(tmp_path / folder)
        group = optimizer.param_groups[0]
        name, eps, alpha, momentum = used
        assert type(optimizer).__name__ == name
        assert (group["eps"], group.get("alpha"), group.get("momentum")) == (eps, alpha, momentum)


def test_specs_of_earlier_versions_load_with_the_optimizer_that_was_used():
    values = json.loads(small_spec("a2c").model_dump_json())
    for changes, same in (
        (dict(use_rms_prop=False, rms_prop_eps=1e-5), dict(use_rms_prop=False)),
        (
            dict(rms_prop_eps=1e-5, use_rms_prop=True, policy_kwargs={"optimizer_class": "Adam"}),
            dict(policy_kwargs={"optimizer_class": "Adam"}),
        ),
    ):
        spec = small_spec("a2c", overrides=same)
        assert type(spec)(**(values | {"hyperparams": values["hyperparams"] | changes})) == spec


def test_unscaled_float_images_train_a_cnn(tmp_path):
    words = train("FloatImage", IMAGES, "policy_kwargs={normalize_images: false}", "frame_stack=2")
    outcome = srl(*words, "--out", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    space = SPPO.load(tmp_path / "run" / "model.zip", device="cpu").observation_space
    assert space.shape == (6, 40, 40)


def test_selected_dict_observations_are_normalized(tmp_path):
    outcome = srl(
        *train("DictStart", "policy=MultiInputPolicy", "normalize={norm_obs_keys: [place]}"),
        *("--out", tmp_path / "run"),
    )
    assert outcome.status == 0, outcome.err
    statistics = pickle.loads((tmp_path / "run" / "vecnormalize.pkl").read_bytes())
    assert isinstance(statistics, VecNormalize)
    assert list(statistics.obs_rms) == ["place"]
    assert statistics.obs_rms["place"].count > 64


@pytest.mark.slow
def test_sweep_with_nonzero_starts_is_identical_in_a_population_and_alone(tmp_path):
    command = ["sweep", "discrete_srl", "--envs", UNUSUAL + "DialsStart-v0", "--algos", "sppo"]
    command += ["--noise", "none", "--timesteps", "64", "--seeds", "0:2", "--jobs", "1", *SMALL_WORDS]
    for population in ("2", "off"):
        outcome = srl(*command, "--out", tmp_path / population, "--population", population)
        assert outcome.status == 0, outcome.err
    for seed in (0, 1):
        (ours,), (theirs,) = (list((tmp_path / name).rglob(f"seed-{seed}")) for name in ("2", "off"))
        assert_same_result(ours, theirs)
