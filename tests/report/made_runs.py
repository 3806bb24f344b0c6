"""Run directories as finished training leaves them, made without training.

``python -m tests.report.made_runs DIR`` makes a whole sweep of configs/sweeps/continuous_srl.yml, 2,160 runs.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from zlib import crc32

import numpy as np

from srl.config.spec import RunSpec, make_run_spec
from srl.config.sweep import load_sweep
from srl.envs import resolve_env_id
from srl.errors import UserError
from srl.rundir.directory import RunDirectory
from srl.rundir.names import ERROR, EVALUATIONS, LOCK, MONITOR, SPEC, STATUS, VERSIONS
from srl.rundir.status import State, Status
from srl.sweep.engines import Job
from srl.sweep.plan import Plan, write_plan
from srl.training.run import RECORDED_PACKAGES
from tests.small_runs import small_spec

#: What every made run says that it ran on, in the format of `srl.training.run.versions`.
MADE_VERSIONS = {
    "command": "srl sweep made.yml --out runs/made",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "python": "3.11.7",
    "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
    "packages": {name: f"1.{number}.0" for number, name in enumerate(RECORDED_PACKAGES)},
}
#: Seconds since 1970 at which every made run started, and its speed.
STARTED = 1_700_000_000.0
STEPS_PER_SECOND = 2_000.0

#: Updates in the log of PPO with 2,048 steps each over 2e6 steps.
_MOST_ITERATIONS = 977
#: Mean returns of an untrained and of a good policy, roughly.
_SCALES = {
    "Ant-v4": (0.0, 3_000.0),
    "HumanoidStandup-v4": (35_000.0, 150_000.0),
    "Walker2d-v4": (0.0, 4_000.0),
    "Hopper-v4": (10.0, 2_800.0),
    "HalfCheetah-v4": (-300.0, 4_500.0),
    "Swimmer-v4": (0.0, 120.0),
    "InvertedDoublePendulum-v4": (50.0, 9_000.0),
    "BipedalWalker-v3": (-110.0, 280.0),
    "LunarLanderContinuous-v3": (-200.0, 250.0),
    "CartPole-v1": (20.0, 500.0),
    "Acrobot-v1": (-500.0, -80.0),
    "Pendulum-v1": (-1_400.0, -180.0),
}
#: How much of that an algorithm reaches, without its ``d`` for discretized actions.
_LEVELS = {"a2c": 0.55, "sa2c": 0.65, "ppo": 0.8, "sppo": 0.9}


def lay_down(
    root: Path,
    returns: Sequence[Sequence[float]] | np.ndarray | None,
    *,
    at: str | None = None,
    state: State = "done",
    reason: str = "",
    training: Mapping[str, Sequence[object]] | None = None,
    **spec_changes,
) -> RunDirectory:
    """A run's folder with what a report reads: no model and no TensorBoard file.

    :param root: The folder of the sweep.
    :param returns: Returns of the evaluations' episodes, (n_evaluations, n_episodes); None for a run that
        ended before its first evaluation. Without ``n_timesteps`` they are ``eval_freq`` or else 32 steps
        apart, and training ends with the last; name both for a run that did not come that far.
    :param at: The run's folder below ``root``; None takes the spec's path.
    :param state: What the status says.
    :param reason: Why the run failed.
    :param training: Logged values over the updates by their keys, such as ``train/entropy_loss``; None makes
        plausible ones of all keys, the same whenever the spec is the same.
    :param spec_changes: Fields of the spec, and ``overrides`` of its hyperparameters; what they are is not
        checked, and an environment that does not exist has the hyperparameters of CartPole's.
    """
    results = None if returns is None else np.asarray(returns, dtype=float)
    n_evaluations, n_episodes = (2, 2) if results is None else results.shape
    eval_freq = spec_changes.pop("eval_freq", None)
    n_timesteps = spec_changes.pop("n_timesteps", (eval_freq or 32) * n_evaluations)
    spec = _base_spec(
        spec_changes.pop("algo", "sppo"),
        spec_changes.pop("env", "CartPole-v1"),
        spec_changes.pop("noise", "none"),
        spec_changes.pop("profile", "controlled"),
        json.dumps(spec_changes.pop("overrides", {})),
    ).model_copy(
        update={
            "n_timesteps": n_timesteps,
            "eval_freq": eval_freq or -(-n_timesteps // n_evaluations),
            "n_eval_episodes": n_episodes,
            "n_eval_envs": min(n_episodes, 10),
            **spec_changes,
        }
    )
    timesteps = spec.eval_freq * np.arange(1, 1 if results is None else n_evaluations + 1)
    if state == "done" and len(timesteps):
        timesteps[-1] = spec.n_timesteps
    if np.any(np.diff(timesteps) <= 0):
        raise ValueError(f"{n_evaluations} evaluations do not fit into {n_timesteps} steps")
    directory = RunDirectory(root / (at or spec.path))
    generator = np.random.default_rng([spec.seed, crc32(spec.path.encode())])
    _write_run(directory.path, spec, timesteps, results, generator, state, reason, training)
    return directory


def finish(root: Path, algo: str, scores, env: str = "A", **changes) -> None:
    """Finished runs of 32 steps, by seed; of ``range(n)`` the seeds are the scores."""
    for seed, score in (scores if isinstance(scores, dict) else {n: n for n in scores}).items():
        lay_down(root, [[score - 1, score + 1]], algo=algo, env=env, seed=seed, **changes)


def make_sweep(
    root: Path,
    *,
    envs: Sequence[str],
    algos: Sequence[str],
    noises: Sequence[str],
    seeds: Sequence[int],
    n_evaluations: int = 400,
    n_episodes: int = 10,
    n_timesteps: int = 2_000_000,
    generator: np.random.Generator,
) -> list[RunDirectory]:
    """A whole finished sweep with its plan.

    :param root: Its folder.
    :param generator: Makes learning curves that rise and saturate, on the scale of the environment, with
        differences between algorithms, seeds and episodes.
    :return: Its runs, seed by seed.
    """
    eval_freq = -(-n_timesteps // n_evaluations)
    cells = [
        make_run_spec(
            algo,
            env,
            seeds[0],
            noise=noise,
            n_timesteps=n_timesteps,
            device="cpu",
            eval_freq=eval_freq,
            n_eval_episodes=n_episodes,
        )[0]
        for env in envs
        for algo in algos
        for noise in noises
    ]
    specs = [cell.model_copy(update={"seed": seed}) for seed in seeds for cell in cells]
    jobs = [Job(spec, root / spec.path) for spec in specs]
    write_plan(Plan(root, jobs))
    timesteps = np.minimum(eval_freq * np.arange(1, n_evaluations + 1), n_timesteps)
    for job in jobs:
        returns = _learning_curve(job.spec, timesteps / n_timesteps, n_episodes, generator)
        _write_run(job.path, job.spec, timesteps, returns, generator)
    return [RunDirectory(job.path) for job in jobs]


def _write_run(
    path: Path,
    spec: RunSpec,
    timesteps: np.ndarray,
    returns: np.ndarray | None,
    generator: np.random.Generator,
    state: State = "done",
    reason: str = "",
    training: Mapping[str, Sequence[object]] | None = None,
) -> None:
    """The files of one run, as fast as they can be written.

    :param path: The run's folder.
    :param timesteps: Training steps at each evaluation.
    :param returns: (n_evaluations, n_episodes), or None.
    :param generator: Makes what is not given.
    """
    (path / MONITOR).mkdir(parents=True, exist_ok=True)
    (path / LOCK).touch()
    (path / SPEC).write_text(spec.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (path / VERSIONS).write_text(json.dumps(MADE_VERSIONS, indent=1) + "\n", encoding="utf-8")
    last = spec.n_timesteps if state == "done" else int(timesteps[-1]) if len(timesteps) else 0
    now = STARTED + last / STEPS_PER_SECOND
    status = Status(
        state,
        timesteps=last,
        n_timesteps=spec.n_timesteps,
        steps_per_second=STEPS_PER_SECOND,
        started=STARTED,
        updated=now,
        ended=0.0 if state == "running" else now,
        reason=reason,
        pid=1,
        host="somewhere",
    )
    (path / STATUS).write_text(json.dumps(asdict(status), indent=1) + "\n", encoding="utf-8")
    if state == "failed":
        (path / ERROR).write_text(f"Traceback (most recent call last):\nRuntimeError: {reason}\n", "utf-8")
    if returns is None:
        returns = np.empty((0, spec.n_eval_episodes))
    lengths = generator.integers(100, 1001, returns.shape)
    if len(returns):
        np.savez(path / EVALUATIONS, timesteps=timesteps, results=returns, ep_lengths=lengths)
    _write_monitor(path / MONITOR / "0.monitor.csv", spec, returns, lengths)
    if training is not None:
        n_iterations = max(map(len, training.values()), default=0)
        ends = -(-last * np.arange(1, n_iterations + 1) // max(n_iterations, 1))
    else:
        # Rollouts of the same length, the last beyond the last step if need be
        ends = np.arange(1, _MOST_ITERATIONS + 1) * max(-(-last // _MOST_ITERATIONS), 32)
        ends = ends[: np.searchsorted(ends, last) + 1] if last else ends[:0]
        training = _plausible_training(spec, len(ends), generator)
    _write_progress(path / "progress.csv", timesteps, returns, lengths, ends, training)


@cache
def _base_spec(algo: str, env: str, noise: str, profile: str, overrides: str) -> RunSpec:
    try:
        resolve_env_id(env)
        known = env
    except UserError:
        known = "CartPole-v1"
    spec = small_spec(algo, known, noise=noise, profile=profile, overrides=json.loads(overrides))
    return spec if known == env else spec.model_copy(update={"env": env})


def _learning_curve(
    spec: RunSpec, progress: np.ndarray, n_episodes: int, generator: np.random.Generator
) -> np.ndarray:
    """Returns that rise from an untrained policy's and saturate.

    :param progress: Share of training done at each evaluation.
    """
    n = len(progress)
    first, good = _SCALES.get(spec.env, (0.0, 10.0 ** (1 + crc32(spec.env.encode()) % 4)))
    level = _LEVELS[spec.algo.removeprefix("d")] * (1.0 if spec.noise == "none" else 0.9)
    level *= generator.lognormal(0.0, 0.15)
    rate = 6.0 * generator.lognormal(0.0, 0.4)
    # What one evaluation is off remains in part for the next ones
    shocks = generator.normal(0.0, 0.04, n)
    weights = 0.8 ** np.arange(min(n, 40))
    share = level * (1.0 - np.exp(-rate * progress)) + np.convolve(shocks, weights)[:n]
    episodes = generator.normal(0.0, 0.05, (n, n_episodes))
    return first + (good - first) * (share[:, None] + episodes)


def _plausible_training(spec: RunSpec, n: int, generator: np.random.Generator) -> dict[str, Sequence[object]]:
    """What the algorithm logs of ``n`` updates."""
    progress = np.arange(1, n + 1) / max(n, 1)
    policy_loss = "train/policy_gradient_loss" if spec.algorithm.family == "ppo" else "train/policy_loss"

    def noisy(values: np.ndarray, deviation: float) -> list[float]:
        noise = 1.0 + deviation * generator.standard_normal(n, dtype=np.float32)
        return (values.astype(np.float32) * noise).tolist()

    ones = np.ones(n)
    rate = spec.hyperparams.learning_rate
    rates = progress[::-1] * float(rate.removeprefix("lin_")) if isinstance(rate, str) else ones * rate
    losses = {
        "train/reverse_loss": noisy(0.1 * ones, 0.5),
        "train/advantage_sign_change": np.minimum(
            noisy(10.0 + 30.0 * np.exp(-4.0 * progress), 0.2), 100.0
        ).tolist(),
        "train/advantage_abs_max": noisy(3.0 + 4.0 * progress, 0.2),
        "train/entropy_loss": noisy(-4.0 * np.exp(-1.5 * progress), 0.02),
        policy_loss: noisy(-0.01 * ones, 0.4),
        "train/value_loss": noisy(50.0 * np.exp(-2.0 * progress), 0.3),
        "train/explained_variance": [1.0 - left for left in noisy(0.1 + 0.9 * np.exp(-5.0 * progress), 0.1)],
        "train/learning_rate": rates.tolist(),
    }
    if spec.algorithm.family == "a2c":
        return losses | {"train/n_updates": range(99, 100 * n, 100)}
    n_epochs = spec.hyperparams.n_epochs
    return losses | {
        "train/n_updates": range(n_epochs, n_epochs * n + 1, n_epochs),
        "train/loss": noisy(20.0 * np.exp(-2.0 * progress), 0.3),
        "train/approx_kl": noisy(0.01 * ones, 0.2),
        "train/clip_fraction": noisy(0.1 * ones, 0.2),
        "train/clip_range": [0.2] * n,
    }


def _write_progress(
    path: Path,
    timesteps: np.ndarray,
    returns: np.ndarray,
    lengths: np.ndarray,
    rollout_ends: np.ndarray,
    training: Mapping[str, Sequence[object]],
) -> None:
    """The log of a run as SB3's CSVOutputFormat leaves it.

    A row is a rollout's or an evaluation's, and the values of an update are in the next row after its
    rollout's, whichever that is. The evaluation at the end of the last rollout comes after its update.
    """
    keys = [
        *("time/total_timesteps", "time/iterations", "time/time_elapsed", "time/fps"),
        *("rollout/ep_rew_mean", "rollout/ep_len_mean"),
        *training,
        *("eval/mean_reward", "eval/mean_ep_length"),
    ]
    means, mean_lengths = returns.mean(axis=1), lengths.mean(axis=1)
    trained = np.interp(rollout_ends, timesteps, means) if len(means) else np.zeros(len(rollout_ends))
    trained_lengths = np.interp(rollout_ends, timesteps, mean_lengths) if len(means) else trained
    elapsed = (rollout_ends / STEPS_PER_SECOND).astype(int)
    steps = rollout_ends.tolist()
    rollout_texts = [
        f"{step},{number},{seconds},{STEPS_PER_SECOND:.0f},{mean},{length},"
        for number, (step, seconds, mean, length) in enumerate(
            zip(steps, elapsed.tolist(), trained.tolist(), trained_lengths.tolist(), strict=True), start=1
        )
    ]
    evaluation_texts = [
        f"{mean},{length}" for mean, length in zip(means.tolist(), mean_lengths.tolist(), strict=True)
    ]
    update_texts = [
        ",".join("" if value is None else str(value) for value in row)
        for row in zip(*training.values(), strict=True)
    ]
    no_update = "," * max(len(training) - 1, 0)
    separator = "," if training else ""
    # At one step an evaluation comes first, but for the one that training ends with
    events = [(step, 1, number) for number, step in enumerate(steps)]
    for number, step in enumerate(timesteps.tolist()):
        at_end = number == len(timesteps) - 1 and step == (steps or [None])[-1]
        events.append((step, 2 if at_end else 0, number))
    rows = []
    update = no_update
    for step, kind, number in sorted(events):
        if kind == 1:
            rows.append(f"{rollout_texts[number]}{update}{separator},")
            update = update_texts[number] if update_texts else no_update
        else:
            rows.append(f"{step},,,,,,{update}{separator}{evaluation_texts[number]}")
            update = no_update
    path.write_text("\n".join([",".join(keys), *rows, ""]), encoding="utf-8")


def _write_monitor(path: Path, spec: RunSpec, returns: np.ndarray, lengths: np.ndarray) -> None:
    """The first training episodes, as SB3's Monitor logs them."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("#" + json.dumps({"t_start": STARTED, "env_id": spec.env}) + "\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["r", "l", "t"])
        episodes = zip(returns[:5].mean(axis=1).tolist(), lengths[:5, 0].tolist(), strict=True)
        for number, (episode_return, length) in enumerate(episodes, start=1):
            writer.writerow([round(episode_return, 6), length, round(0.1 * number, 6)])


def main() -> None:
    """The 2,160 runs of the largest sweep, into the folder that is the argument."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tests.report.made_runs DIR")
    configs = Path(__file__).resolve().parent.parent.parent / "configs" / "sweeps"
    sweep = load_sweep(configs / "continuous_srl.yml")
    runs = make_sweep(
        Path(sys.argv[1]),
        envs=sweep.envs,
        algos=sweep.algos,
        noises=sweep.noise,
        seeds=sweep.seeds,
        generator=np.random.default_rng(0),
    )
    print(f"{len(runs):,} runs in {sys.argv[1]}")


if __name__ == "__main__":
    main()
