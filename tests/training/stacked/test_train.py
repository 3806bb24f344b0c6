"""Members of a population match their single runs."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, PPO

from srl import SA2C, SPPO
from srl.config.spec import make_run_spec
from srl.envs import make_train_env
from srl.errors import UserError
from srl.rundir.directory import RunDirectory
from srl.training.stacked import train_population
from tests.envs.unusual_spaces import UNUSUAL
from tests.small_runs import contents, small_spec
from tests.training.stacked.comparison import (
    assert_close,
    assert_members_are_their_runs_alone,
    assert_same_model,
    assert_same_result,
    train_alone,
    train_together,
)
from tests.training.stacked.small_envs import SMALL_ENVS

CHEETAH = "HalfCheetah-v4"


def cheetah(algo, seed, noise="none", n_timesteps=768, **overrides):
    """Return the spec of a run with three updates and one evaluation episode."""
    small = {} if algo.endswith("a2c") else dict(n_steps=256, n_epochs=3)
    return small_spec(
        algo, CHEETAH, seed, noise=noise, n_timesteps=n_timesteps, eval_freq=10_000, n_eval_episodes=1,
        overrides={"n_envs": 1, "batch_size": 64} | small | overrides,
    )  # fmt: skip


def a2c(algo, seed, noise="none", **overrides):
    """Return the spec of a run with many A2C updates in four environments and one evaluation episode."""
    return make_run_spec(
        algo, CHEETAH, seed, noise=noise, n_timesteps=600, eval_freq=10_000, n_eval_episodes=1, device="cpu",
        overrides={"n_envs": 4} | overrides,
    )[0]  # fmt: skip


def small(algo, env, seed, **changes):
    """Return the spec of a run in an environment of :mod:`tests.training.stacked.small_envs`."""
    return small_spec(algo, SMALL_ENVS + env, seed, **changes)


CASES = {
    "PPO and SPPO in CartPole": lambda: [
        small_spec("sppo", seed=1),
        small_spec("ppo", seed=2),
        small_spec("sppo", seed=3, noise="uniform:0.1", overrides=dict(learning_rate=1e-2, clip_range=0.1)),
        small_spec("ppo", seed=1, noise="flip:0.2", overrides=dict(gamma=0.9, gae_lambda=0.8)),
        small_spec("sppo", seed=2**31 - 1, noise="none", overrides=dict(z=-4.0, vf_coef=0.9)),
    ],
    "SPPO in CartPole, acting in NumPy": lambda: [
        small_spec("sppo", seed=seed).model_copy(update={"numpy_acting": True}) for seed in (1, 2)
    ],
    "A2C and SA2C in CartPole": lambda: [
        small_spec("sa2c", seed=1, n_timesteps=600, eval_freq=200, overrides=dict(n_steps=5)),
        small_spec("a2c", seed=2, n_timesteps=600, eval_freq=200, overrides=dict(n_steps=5)),
    ],
    "discretized PPO in HalfCheetah": lambda: [
        cheetah("dsppo", 1),
        cheetah("dsppo", 2, "gaussian:0.05", alpha=0.3, beta=3.0, max_grad_norm=0.05),
        cheetah("dppo", 3, gamma=0.95, ent_coef=0.01),
        cheetah("dsppo", 4, "uniform:0.1", learning_rate=1e-3, clip_range=0.1),
        cheetah("dsppo", 1, beta=0.1, learning_rate="lin_1e-3", clip_range="lin_0.3"),
    ],
    "discretized A2C in HalfCheetah": lambda: [
        a2c("da2c", 1),
        a2c("dsa2c", 2, "gaussian:0.05"),
        a2c("dsa2c", 3, beta=3.0, learning_rate=3e-4),
    ],
    "Box actions": lambda: [
        small("ppo", "Levers-v0", 1, n_timesteps=512, eval_freq=512, overrides=changes)
        for changes in (
            dict(n_steps=128, n_envs=2),
            dict(n_steps=128, n_envs=2, gamma=0.98, ent_coef=0.01, max_grad_norm=0.1),
        )
    ],
    "Box actions, A2C": lambda: [
        small("a2c", "Levers-v0", seed, overrides=dict(n_envs=3, n_steps=5))
        for seed in (1, 2)
    ],
    "two-dimensional Box actions": lambda: [small("ppo", "Panel-v0", 1), small("ppo", "Panel-v0", 2)],
    "Box actions without dimensions": lambda: [small("ppo", "Knob-v0", 1), small("ppo", "Knob-v0", 2)],
    "MultiBinary actions": lambda: [
        small("sppo", "Switches-v0", 1),
        small("sppo", "Switches-v0", 2, overrides=dict(beta=3.0)),
        small("ppo", "Switches-v0", 3),
    ],
    "MultiDiscrete actions of unequal sizes": lambda: [
        small("sppo", "Dials-v0", 1, overrides=dict(n_envs=2)),
        small("ppo", "Dials-v0", 2, noise="gaussian:0.5", overrides=dict(n_envs=2)),
        small("sppo", "Dials-v0", 3, overrides=dict(n_envs=2, beta=5.0, alpha=0.0)),
    ],
    "MultiDiscrete actions of unequal sizes, A2C": lambda: [
        small("sa2c", "Dials-v0", 1, overrides=dict(n_envs=2, n_steps=5)),
        small("a2c", "Dials-v0", 2, overrides=dict(n_envs=2, n_steps=5)),
    ],
    "spaces with nonzero start": lambda: [
        small_spec("sppo", UNUSUAL + "DialsStart-v0", seed) for seed in (1, 2)
    ],
    "spaces with nonzero start, A2C": lambda: [
        small_spec("sa2c", UNUSUAL + "RoomsStart-v0", seed, overrides=dict(n_envs=2, n_steps=5))
        for seed in (1, 2)
    ],
    "float images": lambda: [
        small_spec("sppo", UNUSUAL + "FloatImage-v0", seed, n_eval_episodes=1, overrides=dict(
            policy="CnnPolicy", policy_kwargs={"normalize_images": False}, n_steps=16, batch_size=16))
        for seed in (1, 2)
    ],
    "Discrete observations": lambda: [small("sppo", "Rooms-v0", 1), small("ppo", "Rooms-v0", 2)],
    "two-dimensional observations": lambda: [
        small("sppo", "Table-v0", seed, overrides=dict(normalize=True)) for seed in (1, 2)
    ],
    "small images": lambda: [
        small(algo, "Frames-v0", seed, n_eval_episodes=1,
              overrides=dict(policy="CnnPolicy", n_envs=2, n_steps=16, batch_size=16))
        for seed, algo in ((1, "sppo"), (2, "ppo"))
    ],
    "several environments, normalized, stacked frames": lambda: [
        small("sppo", "Small-v0", seed, noise=noise,
              overrides=dict(normalize=True, n_envs=3, frame_stack=2, gamma=gamma))
        for seed, noise, gamma in ((1, "none", 0.99), (2, "flip:0.1", 0.9), (3, "gaussian:0.1", 0.99))
    ],
    "only normalized observations": lambda: [
        small("sppo", "Small-v0", seed, overrides=dict(normalize={"norm_reward": False, "clip_obs": 1.0}))
        for seed in (1, 2)
    ],
    "only normalized rewards": lambda: [
        small("sppo", "Small-v0", seed, overrides=dict(normalize={"norm_obs": False, "clip_reward": 1.0}))
        for seed in (1, 2)
    ],
    "flipped advantages": lambda: [
        small("sppo", "Small-v0", 1, overrides=dict(advantage_flip_prob=0.3)),
        small("sppo", "Small-v0", 2),
        small("sppo", "Small-v0", 3, overrides=dict(advantage_flip_prob=1.0)),
        small("ppo", "Small-v0", 4),
    ],
    "flipped advantages, A2C": lambda: [
        small("sa2c", "Small-v0", 1, overrides=dict(advantage_flip_prob=0.3)),
        small("a2c", "Small-v0", 2),
    ],
    "clipped values": lambda: [
        small("sppo", "Small-v0", 1, overrides=dict(clip_range_vf=0.2)),
        small("ppo", "Small-v0", 2, overrides=dict(clip_range_vf=0.02)),
        small("sppo", "Small-v0", 3, overrides=dict(clip_range_vf="lin_0.1")),
    ],
    "schedules": lambda: [
        small("sppo", "Small-v0", 1, overrides=dict(learning_rate="lin_1e-2")),
        small("ppo", "Small-v0", 2, overrides=dict(learning_rate=1e-2)),
        small("sppo", "Small-v0", 3, overrides=dict(learning_rate="lin_1e-3", clip_range="lin_0.3")),
        small("sppo", "Small-v0", 4, overrides=dict(learning_rate="lin_1e-2")),
        small("sppo", "Small-v0", 5, overrides=dict(learning_rate=0.0)),
    ],
    "schedules, A2C": lambda: [
        small("sa2c", "Small-v0", 1, overrides=dict(learning_rate="lin_1e-2")),
        small("a2c", "Small-v0", 2, overrides=dict(learning_rate=1e-2)),
    ],
    "MAE, sign transform, no importance weighting": lambda: [
        small("sppo", "Small-v0", seed, overrides=dict(
            reverse_loss="mae", advantage_transform="sign", importance_weighting=False, beta=beta))
        for seed, beta in ((1, 0.5), (2, 2.0))
    ],
    "options of the loss and of Adam": lambda: [
        small("sppo", "Small-v0", seed, overrides=changes)
        for seed, changes in enumerate((
            dict(reverse_loss="mae", beta=2.0),
            dict(),
            dict(advantage_transform="sign", learning_rate="lin_1e-2"),
            dict(importance_weighting=False, clip_range_vf=0.02, advantage_flip_prob=0.3),
            dict(advantage_transform="bins", normalize_advantage=False, clip_range="lin_0.3"),
            dict(reverse_loss="mae", learning_rate=1e-2),
            dict(policy_kwargs=dict(optimizer_kwargs=dict(eps=1e-2, betas=[0.8, 0.99]))),
            dict(policy_kwargs=dict(optimizer_kwargs=dict(eps=1e-2, weight_decay=0.1)), reverse_loss="mae"),
        ))
    ],
    "options of the loss and of RMSprop": lambda: [
        small("sa2c", "Dials-v0", seed, overrides=dict(n_envs=2, n_steps=5) | changes)
        for seed, changes in enumerate((
            dict(reverse_loss="mae", rms_prop_eps=1e-2),
            dict(normalize_advantage=True, advantage_flip_prob=0.3),
            dict(advantage_transform="sign", beta=3.0),
            dict(),
            dict(rms_prop_eps=1e-2, policy_kwargs=dict(optimizer_kwargs=dict(alpha=0.9))),
        ))
    ],
    "binned advantages without normalization": lambda: [
        small("sppo", "Small-v0", seed, overrides=dict(
            advantage_transform="bins", normalize_advantage=False))
        for seed in (1, 2)
    ],
    "unequal minibatches and a last update beyond n_timesteps": lambda: [
        small("sppo", "Small-v0", seed, n_timesteps=100, eval_freq=30,
              overrides=dict(n_steps=33, batch_size=32, n_epochs=2))
        for seed in (1, 2)
    ],
    "sampled actions in evaluations": lambda: [
        small("sppo", env, seed, eval_freq=16).model_copy(update={"eval_deterministic": False})
        for env, seed in (("Dials-v0", 1), ("Dials-v0", 2))
    ],
    "sampled Box actions in evaluations": lambda: [
        small("ppo", "Levers-v0", seed, eval_freq=16).model_copy(update={"eval_deterministic": False})
        for seed in (1, 2)
    ],
    "more evaluation episodes than environments": lambda: [
        small("sppo", "Small-v0", seed, n_eval_episodes=12) for seed in (1, 2)
    ],
    "other networks": lambda: [
        small("sppo", "Dials-v0", seed, overrides=dict(policy_kwargs=dict(
            net_arch={"pi": [8], "vf": [24, 8]}, activation_fn="relu", ortho_init=False)))
        for seed in (1, 2)
    ],
    "networks without hidden layers": lambda: [
        small("sppo", "Dials-v0", seed, overrides=dict(policy_kwargs=dict(net_arch=[]))) for seed in (1, 2)
    ],
    "AdamW": lambda: [
        small("sppo", "Small-v0", seed, overrides=dict(learning_rate=rate, policy_kwargs=dict(
            optimizer_class="AdamW", optimizer_kwargs=dict(weight_decay=0.1))))
        for seed, rate in ((1, 1e-3), (2, 1e-2), (3, 1e-3))
    ],
    "SGD": lambda: [
        small("sppo", "Small-v0", seed, overrides=dict(learning_rate=rate, policy_kwargs=dict(
            optimizer_class="SGD", optimizer_kwargs=dict(momentum=0.9))))
        for seed, rate in ((1, 1e-3), (2, 1e-2))
    ],
    "A2C with RMSprop arguments": lambda: [
        small("sa2c", "Small-v0", seed, overrides=dict(
            learning_rate=rate, rms_prop_eps=1e-3, policy_kwargs=dict(
                optimizer_kwargs=dict(momentum=0.5, alpha=0.9))))
        for seed, rate in ((1, 1e-3), (2, 1e-2))
    ],
    "A2C with Adam": lambda: [
        small("sa2c", "Small-v0", seed, overrides=dict(use_rms_prop=False, learning_rate=rate))
        for seed, rate in ((1, 1e-3), (2, 1e-2))
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_member_matches_its_single_run(case, tmp_path):
    assert_members_are_their_runs_alone(CASES[case](), tmp_path)


@pytest.mark.slow
def test_atari_member_matches_its_single_run(tmp_path):
    shape = dict(n_envs=2, n_steps=16, batch_size=16, n_epochs=1)
    # Advantages are tiny in so few steps, and clipping would depend on rounding, which differs on some CPUs
    # for stacked networks
    tame = dict(normalize_advantage=False, clip_range=0.9)

    def pong(algo, seed, noise):
        spec, _ = make_run_spec(
            algo, "PongNoFrameskip-v4", seed, noise=noise, n_timesteps=64, eval_freq=1000, n_eval_episodes=1,
            eval_max_episode_steps=100, device="cpu", overrides=shape | tame,
        )  # fmt: skip
        return spec

    assert_members_are_their_runs_alone([pong("sppo", 1, "flip:0.1"), pong("ppo", 2, "none")], tmp_path)


@pytest.mark.parametrize(
    ("algo", "env", "overrides"),
    [
        ("sppo", "CartPole-v1", {}),
        ("a2c", "CartPole-v1", {}),
        ("dsppo", CHEETAH, dict(n_steps=32)),
        ("ppo", SMALL_ENVS + "Levers-v0", dict(normalize=True)),
    ],
)
def test_population_of_one_matches_the_single_run(algo, env, overrides, tmp_path):
    spec = small_spec(algo, env, n_timesteps=160, eval_freq=160, n_eval_episodes=1, overrides=overrides)
    assert_members_are_their_runs_alone([spec], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("members", [[4, 2, 0, 3, 1], [2], [0, 1, 2, 3, 4] * 4], ids=str)
@pytest.mark.parametrize("algo", ["sppo", "sa2c"])
def test_member_does_not_depend_on_order_or_number_of_members(algo, members, of_five, tmp_path):
    specs, paths = of_five[algo]
    again, statuses = train_together([specs[member] for member in members], tmp_path)
    assert {status.state for status in statuses} == {"done"}
    for path, member in zip(again, members, strict=True):
        assert_same_result(path, paths[member])


@pytest.fixture(scope="module")
def of_five(tmp_path_factory):
    """Populations of five members that differ in all per-member settings."""
    made = {}
    for algo in ("sppo", "sa2c"):
        changes = [
            dict(learning_rate=1e-3), dict(learning_rate=1e-2, gamma=0.9), dict(learning_rate="lin_1e-2"),
            dict(advantage_flip_prob=0.5, reverse_loss="mae"),
            dict(learning_rate=1e-3, beta=4.0, max_grad_norm=0.1, advantage_transform="sign"),
        ]  # fmt: skip
        noises = ["none", "gaussian:0.1", "none", "flip:0.2", "none"]
        specs = [
            small(algo, "Dials-v0", seed, noise=noise, overrides={"normalize": True} | change)
            for seed, (noise, change) in enumerate(zip(noises, changes, strict=True))
        ]
        paths, _ = train_together(specs, tmp_path_factory.mktemp(algo))
        made[algo] = specs, paths
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Members of both families and their single runs."""
    made = {}
    for family in ("ppo", "a2c"):
        root = tmp_path_factory.mktemp(family)
        specs = [small_spec(f"s{family}", seed=1), small_spec(family, seed=2)]
        specs = [spec.model_copy(update={"n_timesteps": 96}) for spec in specs]
        made[family] = train_together(specs, root)[0], train_alone(specs, root), specs
    return made


@pytest.mark.parametrize(
    ("family", "member", "cls"),
    [("ppo", 0, SPPO), ("ppo", 1, PPO), ("ppo", 1, SPPO), ("a2c", 0, SA2C), ("a2c", 1, A2C)],
)
def test_model_of_a_member_predicts_and_trains_like_that_of_its_single_run(family, member, cls, trained):
    together, alone, specs = trained[family]
    went_on = []
    for path in (together[member], alone[member]):
        model = cls.load(path / "model.zip", env=make_train_env(specs[member].env_spec()), device="cpu")
        assert model.num_timesteps == 96
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        action, _ = model.predict(np.full(4, 0.01, dtype=np.float32), deterministic=True)
        model.set_random_seed(7)
        model.learn(64, reset_num_timesteps=False)
        assert model.num_timesteps == 160
        after = model.policy.state_dict()
        assert any(not th.equal(after[name], before[name]) for name in after)
        went_on.append((action, after))
    assert went_on[0][0] == went_on[1][0]
    for name, value in went_on[0][1].items():
        assert_close(value, went_on[1][1][name], name)


def test_model_file_of_a_member_is_not_larger_than_that_of_its_single_run(trained):
    # Saving a view of the stacked parameters would save those of all members
    for together, alone, _ in trained.values():
        for ours, theirs in zip(together, alone, strict=True):
            for name in ("model.zip", "best_model.zip"):
                sizes = [(path / name).stat().st_size for path in (ours, theirs)]
                assert sizes[0] < 1.2 * sizes[1]


def test_member_schedules_match_those_of_the_single_run(tmp_path):
    spec = small_spec(overrides=dict(learning_rate="lin_1e-3", clip_range="lin_0.2"))
    (ours,), _ = train_together([spec], tmp_path)
    (theirs,) = train_alone([spec], tmp_path)
    models = [SPPO.load(path / "model.zip", device="cpu") for path in (ours, theirs)]
    for model in models:
        assert [model.lr_schedule(left) for left in (1.0, 0.5)] == [0.001, 0.0005]
        assert [model.clip_range(left) for left in (1.0, 0.5)] == [0.2, 0.1]
    names = ("num_timesteps", "_total_timesteps", "_n_updates", "_current_progress_remaining", "_episode_num")
    for name in names:
        assert getattr(models[0], name) == getattr(models[1], name), name
    assert (models[0].seed, models[0].n_envs) == (models[1].seed, models[1].n_envs)
    returns = [[episode["r"] for episode in model.ep_info_buffer] for model in models]
    assert returns[0] == returns[1]


def test_member_folders_have_the_files_of_runs_and_record_stacking(tmp_path):
    specs = [small_spec(seed=seed, overrides={"normalize": True}) for seed in (1, 2)]
    told = []
    paths = [tmp_path / str(seed) for seed in (1, 2)]
    statuses = train_population(specs, paths, command="srl sweep of a test", tell=told.append)
    for spec, path, status in zip(specs, paths, statuses, strict=True):
        names = {
            "events" if file.name.startswith("events.out.tfevents.") else file.name for file in path.iterdir()
        }
        assert names == {
            "spec.json", "status.json", "versions.json", "monitor", "progress.csv", "events",
            "evaluations.npz", "model.zip", "vecnormalize.pkl", "best_model.zip", "best_vecnormalize.pkl",
            "final_state.npz", "run.lock",
        }  # fmt: skip
        run = RunDirectory(path)
        assert run.read_spec() == spec.model_copy(update={"stacked": True})
        assert run.read_status() == status
        assert (status.state, status.timesteps, status.n_timesteps, status.reason) == ("done", 64, 64, "")
        assert min(status.started, status.updated, status.ended) > 0
        assert status.steps_per_second > 0
        assert '"srl sweep of a test"' in (path / "versions.json").read_text()
        assert not run.in_progress
    assert told
    assert all(len(statuses) == 2 for statuses in told)
    assert {status.state for statuses in told for status in statuses} == {"running"}


def test_member_progress_is_logged_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    spec = small_spec(seed=1)
    scalars = []
    for path in (*train_together([spec], tmp_path)[0], *train_alone([spec], tmp_path)):
        events = EventAccumulator(str(path))
        events.Reload()
        names = [name for name in events.Tags()["scalars"] if not name.startswith("time/")]
        scalars.append({name: [(e.step, e.value) for e in events.Scalars(name)] for name in names})
    assert scalars[0].keys() == scalars[1].keys()
    for name in scalars[0]:
        np.testing.assert_allclose(scalars[0][name], scalars[1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("env", ["CartPole-v1", SMALL_ENVS + "Levers-v0"])
def test_evaluation_frequency_does_not_affect_a_population(env, tmp_path):
    paths = []
    for eval_freq in (16, 1000):
        specs = [small_spec("ppo", env, seed, eval_freq=eval_freq) for seed in (1, 2)]
        paths.append(train_together(specs, tmp_path, str(eval_freq))[0])
    for often, once in zip(*paths, strict=True):
        assert len(RunDirectory(often).read_evaluations()["timesteps"]) == 4
        assert RunDirectory(once).read_evaluations()["timesteps"].tolist() == [64]
        assert_same_model(often, once)


def test_global_random_generators_do_not_affect_a_population(tmp_path):
    paths = []
    for seed in (5, 6):
        np.random.seed(seed)
        th.manual_seed(seed)
        paths.append(train_together([small_spec(seed=1), small_spec(seed=2)], tmp_path, str(seed))[0])
    for ours, theirs in zip(*paths, strict=True):
        assert_same_result(ours, theirs)


@pytest.mark.parametrize(
    "specs",
    [
        lambda: [small_spec("sppo"), small_spec("sa2c")],
        lambda: [small_spec(), small_spec(env="Acrobot-v1")],
        lambda: [small_spec(), small_spec(overrides={"n_steps": 16})],
        lambda: [small_spec(), small_spec(overrides={"n_envs": 2})],
        lambda: [small_spec(), small_spec(n_timesteps=96)],
        lambda: [small_spec(), small_spec(overrides={"n_epochs": 2})],
        lambda: [small_spec(overrides={"target_kl": 0.1})] * 2,
        lambda: [small_spec("ppo", SMALL_ENVS + "Levers-v0", overrides={"use_sde": True})],
        list,
    ],
)
def test_incompatible_runs_are_rejected_before_anything_is_written(specs, tmp_path):
    specs = specs()
    with pytest.raises(UserError, match="cannot train as one population"):
        train_population(specs, [tmp_path / "runs" / str(index) for index in range(len(specs))])
    assert not (tmp_path / "runs").exists()


def test_fewer_folders_than_runs_are_rejected(tmp_path):
    with pytest.raises(UserError):
        train_population([small_spec(seed=1), small_spec(seed=2)], [tmp_path / "1"])
    assert not list(tmp_path.iterdir())


def test_finished_member_is_not_modified(tmp_path):
    specs = [small_spec(seed=seed) for seed in (1, 2, 3)]
    alone = train_alone(specs, tmp_path)
    paths = [tmp_path / "new", alone[1], tmp_path / "another"]
    before = contents(alone[1])
    finished = RunDirectory(alone[1]).read_status()
    statuses = train_population(specs, paths)
    after = contents(alone[1])
    assert {name: after[name] for name in after if name != "run.lock"} == {
        name: before[name] for name in before if name != "run.lock"
    }
    assert statuses[1] == finished
    assert [status.state for status in statuses] == ["done"] * 3
    assert_same_result(paths[0], alone[0])
    assert_same_result(paths[2], alone[2])


def test_population_of_finished_runs_does_nothing(tmp_path):
    specs = [small_spec(seed=seed) for seed in (1, 2)]
    paths, statuses = train_together(specs, tmp_path)
    before = contents(tmp_path)
    assert train_population(specs, paths) == statuses
    assert contents(tmp_path) == before


def test_folder_of_another_run_is_rejected_and_other_folders_are_released(tmp_path):
    specs = [small_spec(seed=seed) for seed in (1, 2)]
    other = train_alone([small_spec(seed=9)], tmp_path)[0]
    before = contents(other)
    with pytest.raises(UserError, match="seed is 9 there and 2 here"):
        train_population(specs, [tmp_path / "mine", other])
    assert contents(other) == before
    mine = RunDirectory(tmp_path / "mine")
    assert not mine.in_progress
    # The folder can be used afterwards
    assert [status.state for status in train_population(specs[:1], [tmp_path / "mine"])] == ["done"]


def test_one_folder_for_two_runs_is_rejected(tmp_path):
    with pytest.raises(UserError):
        train_population([small_spec(seed=1)] * 2, [tmp_path / "run"] * 2)


def test_unfinished_members_without_checkpoints_restart(tmp_path):
    specs = [small_spec(seed=seed) for seed in (1, 2)]
    paths = [tmp_path / "members" / str(seed) for seed in (1, 2)]

    def stop(statuses):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_population(specs, paths, tell=stop)
    for path in paths:
        status = RunDirectory(path).read_status()
        assert (status.state, status.reason) == ("interrupted", "stopped by the user")
        assert not RunDirectory(path).in_progress
    assert [status.state for status in train_population(specs, paths)] == ["done", "done"]
    for path, alone in zip(paths, train_alone(specs, tmp_path), strict=True):
        assert_same_result(path, alone)
        assert not (path / "error.txt").exists()
        assert len(list(path.glob("events.*"))) == 1
