"""Hyperparameter files, profiles, overrides and shipped sweeps."""

import json
import re
from collections import Counter

import pytest
import yaml

from srl.config import resolve as resolve_module
from srl.config.algorithms import ALGORITHMS, get_algorithm
from srl.config.files import configs_dir
from srl.config.hyperparams import FAMILIES, NormalizeOptions, PolicyOptions
from srl.config.resolve import resolve_hyperparams
from srl.config.spec import RunSpec, make_run_spec
from srl.config.sweep import load_sweep
from srl.errors import UserError
from srl.sweep.plan import expand

ATARI, CONTINUOUS = 12, 9
SWEEPS = {
    "discrete_basic": (ATARI * 2 * 2 * 5, {"a2c", "ppo"}, {"none", "flip:0.1"}),
    "discrete_srl": (ATARI * 2 * 2 * 5, {"sa2c", "sppo"}, {"none", "flip:0.1"}),
    "continuous_basic": (CONTINUOUS * 2 * 2 * 30, {"a2c", "ppo"}, {"none", "gaussian:0.05"}),
    "continuous_srl": (
        CONTINUOUS * 4 * 2 * 30,
        {"dsa2c", "dsppo", "da2c", "dppo"},
        {"none", "gaussian:0.05"},
    ),
}


def resolve(algo, env="CartPole-v1", profile="controlled", **overrides):
    return resolve_hyperparams(get_algorithm(algo), env, overrides=overrides, profile=profile)[0]


@pytest.fixture(scope="module")
def expanded():
    """All runs of all shipped sweeps; each environment is built once."""
    return {
        name: expand(load_sweep(configs_dir() / "sweeps" / f"{name}.yml"), device="cpu")[0] for name in SWEEPS
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_shipped_sweep_expands_to_runs_of_the_protocol(expanded, name):
    n_runs, algos, noises = SWEEPS[name]
    specs = expanded[name]
    assert len(specs) == n_runs == len({spec.path for spec in specs})
    assert {spec.algo for spec in specs} == algos
    assert {spec.noise for spec in specs} == noises
    assert set(Counter((spec.env, spec.algo, spec.noise) for spec in specs).values()) == {
        5 if name.startswith("discrete") else 30
    }
    assert min(spec.seed for spec in specs) == 10000
    for spec in specs:
        assert spec.bins == (11 if name == "continuous_srl" else None)
        assert spec.env_spec().atari == name.startswith("discrete")


@pytest.mark.parametrize("name", SWEEPS)
def test_quick_version_of_shipped_sweep_keeps_algorithms_and_noise(name):
    small, _ = expand(load_sweep(configs_dir() / "sweeps" / f"{name}.yml", quick=True), device="cpu")
    _, algos, noises = SWEEPS[name]
    assert {spec.algo for spec in small} == algos
    assert {spec.noise for spec in small} == noises
    assert all(spec.n_timesteps <= 2048 for spec in small)
    assert all(spec.seed in (10000, 10001) for spec in small)


@pytest.mark.slow
def test_every_spec_of_shipped_sweeps_round_trips_through_json(expanded):
    one_of_each = {(spec.env, spec.algo): spec for specs in expanded.values() for spec in specs}
    assert len(one_of_each) == ATARI * 4 + CONTINUOUS * 6
    for spec in one_of_each.values():
        again = RunSpec(**json.loads(spec.model_dump_json()))
        assert again == spec
        assert type(again.hyperparams) is type(spec.hyperparams)
        assert again.model_dump_json() == spec.model_dump_json()


@pytest.mark.parametrize("algo", ["a2c", "ppo", "sa2c", "sppo"])
def test_every_hyperparameter_file_entry_is_valid_in_every_profile(algo):
    data = yaml.safe_load((configs_dir() / "hyperparams" / f"{algo}.yml").read_text())
    assert {"atari", "default", "CartPole-v1", "LunarLander-v3"} <= data.keys()
    for env in data.keys() - {"atari", "default"}:
        for profile in ("controlled", "authors"):
            assert resolve(algo, env, profile) == resolve(f"d{algo}", env, profile)


@pytest.mark.parametrize(
    ("algo", "env", "expected"),
    [
        ("ppo", "PongNoFrameskip-v4", dict(n_envs=8, n_steps=128, clip_range="lin_0.1", alpha=1.0, beta=0.0)),
        ("sppo", "PongNoFrameskip-v4", dict(learning_rate="lin_0.00025", alpha=0.5, beta=1.0, z=-1.0)),
        ("a2c", "PongNoFrameskip-v4", dict(n_envs=16, n_steps=5, vf_coef=0.25, alpha=1.0, beta=0.0)),
        ("dsppo", "Ant-v4", dict(beta=20.0, n_steps=2048, normalize_advantage=True)),
        ("dsa2c", "Swimmer-v4", dict(gamma=0.9999, n_steps=8, n_envs=4, normalize_advantage=False)),
        ("dsppo", "Acrobot-v1", dict(n_steps=2048, alpha=0.5)),  # no entry
    ],
)
def test_hyperparameters_match_file(algo, env, expected):
    resolved = resolve(algo, env)
    assert {name: getattr(resolved, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("algo", "env", "n_timesteps"),
    [
        ("ppo", "PongNoFrameskip-v4", 5_000_000),
        ("dsppo", "Walker2d-v4", 5_000_000),
        ("dppo", "HumanoidStandup-v4", 10_000_000),
        ("dsa2c", "HumanoidStandup-v4", 2_000_000),
        ("ppo", "CartPole-v1", 100_000),
    ],
)
def test_n_timesteps_match_file(algo, env, n_timesteps):
    assert make_run_spec(algo, env, 0, device="cpu")[0].n_timesteps == n_timesteps


def test_environment_without_entry_uses_default_with_note():
    notes = make_run_spec("ppo", "Acrobot-v1", 0)[1]
    assert len(notes) == 1
    assert "Acrobot-v1 has no entry in ppo.yml" in notes[0]
    assert make_run_spec("ppo", "PongNoFrameskip-v4", 0)[1] == []


@pytest.mark.parametrize(
    ("algo", "profile", "normalized"),
    [
        ("ppo", "authors", False),
        ("ppo", "controlled", True),
        ("sppo", "authors", True),
        ("sppo", "controlled", True),
    ],
)
def test_authors_profile_trains_atari_ppo_without_normalized_advantages(algo, profile, normalized):
    assert resolve(algo, "PongNoFrameskip-v4", profile).normalize_advantage is normalized
    assert resolve(algo, "CartPole-v1", profile).normalize_advantage


@pytest.mark.parametrize(
    ("algo", "overrides", "says"),
    [
        ("sppo", dict(n_stepz=32), "n_stepz: there is no such key. Did you mean n_steps?"),
        ("sppo", dict(clip_rnge=0.1), "Did you mean clip_range"),
        ("sa2c", dict(n_epochs=2), "n_epochs: there is no such key"),
        ("sppo", dict(z=0), "z: 0"),
        ("sppo", dict(z=0.5), "z: 0.5"),
        ("sppo", dict(z=float("nan")), "z: nan"),
        ("sppo", dict(z=float("-inf")), "z: -inf"),
        ("sppo", dict(beta=-1), "beta: -1"),
        ("sppo", dict(beta=float("inf")), "beta: inf"),
        ("sppo", dict(beta=float("nan")), "beta: nan"),
        ("sppo", dict(beta=True), "beta: True"),
        ("sppo", dict(alpha=-0.5), "alpha: -0.5"),
        ("sppo", dict(gamma=1.1), "gamma: 1.1"),
        ("sppo", dict(n_steps=0), "n_steps: 0"),
        ("sppo", dict(n_steps=1.5), "n_steps: 1.5"),
        ("sppo", dict(n_steps=True), "n_steps: True"),
        ("sppo", dict(n_steps=[1]), "n_steps"),
        ("sppo", dict(n_envs="many"), "n_envs: 'many'"),
        ("sppo", dict(learning_rate="lin_"), "lin_ must be followed by a number"),
        ("sppo", dict(learning_rate="lin_nan"), "lin_ must be followed by a positive number"),
        ("sppo", dict(learning_rate="lin_-1"), "lin_ must be followed by a positive number"),
        ("sppo", dict(learning_rate="3e"), "must be a number, or lin_"),
        ("sppo", dict(learning_rate=-1), "must be a finite number >= 0"),
        ("sppo", dict(learning_rate=True), "must be a number"),
        ("sppo", dict(policy="MlpPolic"), "policy: 'MlpPolic'"),
        ("sppo", dict(advantage_flip_prob=1.5), "advantage_flip_prob: 1.5"),
        ("sppo", dict(policy_kwargs="dict(net_arch=[64])"), "Python code in rl-baselines3-zoo's files"),
        ("sppo", dict(policy_kwargs={"net_arch": {"pi": [8]}}), "both pi and vf"),
        ("sppo", dict(policy_kwargs={"activation": "relu"}), "policy_kwargs.activation"),
        ("sppo", dict(policy_kwargs={"activation_fn": "os.system"}), "policy_kwargs.activation_fn"),
        ("sppo", dict(normalize="dict(norm_obs=True)"), "text is not evaluated"),
        ("sppo", dict(normalize={"norm_ob": True}), "normalize.norm_ob"),
        ("sppo", dict(env_wrapper=[{"a:B": {}, "a:C": {}}]), "each wrapper is a name"),
        ("sppo", dict(env_wrapper=[{"a:B": 3}]), "arguments of a:B"),
        ("sppo", dict(batch_size=1), "batch_size"),
        ("ppo", dict(beta=1.0), "PPO has no reverse loss. Use sppo"),
        ("da2c", dict(beta=1.0), "DA2C has no reverse loss. Use dsa2c"),
    ],
    ids=str,
)
def test_invalid_hyperparameter_error_names_key_and_value(algo, overrides, says):
    with pytest.raises(UserError) as error:
        resolve(algo, **overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "name", "value"),
    [
        (dict(learning_rate="1e-3"), "learning_rate", 1e-3),  # YAML parses 1e-3 as text
        (dict(learning_rate="lin_1e-3"), "learning_rate", "lin_0.001"),
        (dict(learning_rate=0), "learning_rate", 0.0),
        (dict(n_steps="1e3"), "n_steps", 1000),
        (dict(n_steps=1000.0), "n_steps", 1000),
        (dict(gamma="9e-1"), "gamma", 0.9),
        (dict(normalize=False), "normalize", None),
        (dict(z="-1e0"), "z", -1.0),
    ],
    ids=str,
)
def test_numbers_are_parsed_from_common_notations(overrides, name, value):
    assert getattr(resolve("sppo", **overrides), name) == value


def test_zoo_policy_kwargs_are_accepted_as_plain_yaml():
    written = {"net_arch": {"pi": [8], "vf": [16, 16]}, "activation_fn": "nn.ReLU", "ortho_init": False}
    options = resolve("sppo", policy_kwargs=written).policy_kwargs
    assert (options.activation_fn, options.ortho_init) == ("relu", False)
    assert options.net_arch == {"pi": [8], "vf": [16, 16]}


def test_old_net_arch_format_error_suggests_new_format():
    with pytest.raises(UserError) as error:
        resolve("sppo", policy_kwargs={"net_arch": [{"pi": [32], "vf": [64, 64]}]})
    assert str(error.value).startswith("Hyperparameter policy_kwargs.net_arch: [{'pi'")
    assert str(error.value).endswith("Write net_arch: {pi: [32], vf: [64, 64]}")
    with pytest.raises(UserError, match=r"Write net_arch: \{pi: \[8, 32\], vf: \[8\]\}"):
        resolve("sppo", policy_kwargs={"net_arch": [8, {"pi": [32]}]})


WRONG = [
    "x",
    "",
    [1],
    ["x"],
    [None],
    [["x"]],
    [{}],
    {"a": 1},
    {"pi": "x", "vf": [1]},
    {1: 2},
    -1,
    1.5,
    True,
    None,
]
WRONG += [float("nan"), 10**400]


def mistakes():
    """Yield the error message of each invalid value of each hyperparameter."""
    cases = [(algo, {name: value}) for algo in ("sppo", "sa2c") for name in FAMILIES[algo[1:]].model_fields
             for value in WRONG]  # fmt: skip
    for part, model in (("policy_kwargs", PolicyOptions), ("normalize", NormalizeOptions)):
        cases += [("sppo", {part: {name: value}}) for name in model.model_fields for value in WRONG]
    cases += [("sppo", {"policy_kwargs": {"optimizer_kwargs": {"eps": value}}}) for value in WRONG]
    for algo, overrides in cases:
        try:
            resolve(algo, **overrides)
        except UserError as error:
            yield str(error)


def test_error_messages_do_not_expose_pydantic_internals():
    messages = list(mistakes())
    assert len(messages) > 500
    for message in messages:
        assert not re.search(
            r"pydantic|function-|\[key\]|Options|literal|Input should|instance of|list\[", message
        )
        assert re.match(r"Hyperparameter [\w.]+: ", message), message


@pytest.fixture
def sppo_file(tmp_path, monkeypatch):
    """The path of sppo.yml in a temporary configuration folder; the test writes the file."""
    (tmp_path / "hyperparams").mkdir()
    monkeypatch.setattr(resolve_module, "configs_dir", lambda: tmp_path)
    return tmp_path / "hyperparams" / "sppo.yml"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("CartPole-v1:\n  n_timesteps: 10\n  n_stepz: 3\n", 3, "key CartPole-v1.n_stepz: there is no such"),
        ("a: &a\n  z: 1.0\nCartPole-v1:\n  <<: *a\n  n_timesteps: 10\n", 2, "key CartPole-v1.z: 1.0"),
        ("CartPole-v1:\n  beta: 1\n", 1, "key CartPole-v1.n_timesteps"),
        ("CartPole-v1:\n  n_timesteps: soon\n", 2, "key CartPole-v1.n_timesteps"),
        ("CartPole-v1:\n  n_timesteps: 0.5\n", 2, "key CartPole-v1.n_timesteps"),
        ("CartPole-v1:\n  n_timesteps: true\n", 2, "key CartPole-v1.n_timesteps"),
        ("CartPole-v1: 5\n", 1, "key CartPole-v1: must be a mapping"),
        ("CartPole-v1:\n  n_timesteps: 10\n  profiles: 3\n", 3, "key CartPole-v1.profiles: must be"),
        (
            'CartPole-v1:\n  n_timesteps: 10\n  policy_kwargs: "dict(log_std_init=-2)"\n',
            3,
            "key CartPole-v1.policy_kwargs",
        ),
        ("CartPole-v1:\n  n_timesteps: 10\n  policy_kwargs:\n    net_arc: [8]\n", 4, "policy_kwargs.net_arc"),
        (
            "CartPole-v1:\n  n_timesteps: 10\n  sde_sample_freq: 4\n",
            3,
            "key CartPole-v1.sde_sample_freq: has no effect, because use_sde is false",
        ),
        ("CartPole-v1:\n  n_timesteps: 10\n  n_timesteps: 20\n", 3, "'n_timesteps' is specified twice"),
        ("CartPole-v1:\n  n_timesteps: 10\n  1: 2\n", 3, "1"),
        ("Other-v0:\n  n_timesteps: 10\n", None, "key default"),
    ],
)
def test_hyperparameter_file_error_names_line_and_key(sppo_file, text, line, says):
    sppo_file.write_text(text)
    with pytest.raises(UserError) as error:
        resolve("sppo")
    message = str(error.value)
    assert message.startswith(f"{sppo_file}, line {line}" if line else f"{sppo_file}, key")
    assert says in message


def test_missing_hyperparameter_file_is_named_in_error(sppo_file):
    with pytest.raises(UserError, match=r"sppo\.yml: there is no such file"):
        resolve("sppo")


@pytest.mark.parametrize("name", ["spo", "SPP0", "dsapo", "a3c"])
def test_unknown_algorithm_error_suggests_nearest_match(name):
    with pytest.raises(UserError, match="Did you mean"):
        get_algorithm(name)


def test_registered_algorithms_match_the_paper():
    names = [name for name, algorithm in ALGORITHMS.items() if not algorithm.on_language_models]
    assert sorted(names) == ["a2c", "da2c", "dppo", "dsa2c", "dsppo", "ppo", "sa2c", "sppo"]
    assert sorted(set(ALGORITHMS) - set(names)) == ["llm-grpo", "llm-ppo", "llm-sgrpo", "llm-sppo"]
    assert get_algorithm("DSPPO").label == "DSPPO"
