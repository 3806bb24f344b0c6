"""Synthetic run directories with the files of finished training.

``python -m tests.report.made_runs DIR`` writes all 2,160 runs of configs/sweeps/continuous_srl.yml.
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
from srl.training.versions import RECORDED_PACKAGES
from tests.small_runs import small_spec

#: Recorded versions of every synthetic run, in the format of `srl.training.versions.versions`.
MADE_VERSIONS = {
    "command": "srl sweep made.yml --out runs/made",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "python": "3.11.7",
    "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
    "packages": {name: f"1.{number}.0" for number, name in enumerate(RECORDED_PACKAGES)},
}
#: Start time of every synthetic run in seconds since 1970, and its speed.
STARTED = 1_700_000_000.0
STEPS_PER_SECOND = 2_000.0

#: Number of logged PPO updates of 2,048 steps in 2e6 steps.
_MOST_ITERATIONS = 977
#: Approximate mean returns of an untrained and a good policy.
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
#: Share of that range that each algorithm reaches, without the prefix ``d`` for discretized actions.
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
    """Write a run directory with the files that a report reads, without model and TensorBoard files.

    :param root: Folder of the sweep.
    :param returns: Returns of evaluation episodes, (n_evaluations, n_episodes); None for a run that
        ended before its first evaluation. Without ``n_timesteps``, evaluations are ``eval_freq`` (default 32)
        steps apart and training ends with the last one; pass both for an unfinished run.
    :param at: Run directory below ``root``; None uses the path of the spec.
    :param state: State in the status file.
    :param reason: Reason of the failure.
    :param training: Logged values of the updates by key, such as ``train/entropy_loss``; None generates
        plausible values of all keys, which depend only on the spec.
    :param spec_changes: Fields of the spec, and ``overrides`` of its hyperparameters; they are not
        checked. An unknown environment has the hyperparameters of CartPole.
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
    """Write a finished sweep with its plan.

    :param root: Folder of the sweep.
    :param generator: Generates learning curves that rise and saturate on the scale of the environment, with
        differences between algorithms, seeds and episodes.
    :return: Runs of the sweep, ordered by seed.
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
    """Write the files of one run.

    :param path: Run directory.
    :param timesteps: Training steps at each evaluation.
    :param returns: (n_evaluations, n_episodes), or None.
    :param generator: Generates the values that are not given.
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
        # Rollouts of equal length; the last one may exceed the last step
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
    """Return episode returns that rise from those of an untrained policy and saturate.

    :param progress: Fraction of training at each evaluation.
    """
    n = len(progress)
    first, good = _SCALES.get(spec.env, (0.0, 10.0 ** (1 + crc32(spec.env.encode()) % 4)))
    level = _LEVELS[spec.algo.removeprefix("d")] * (1.0 if spec.noise == "none" else 0.9)
    level *= generator.lognormal(0.0, 0.15)
    rate = 6.0 * generator.lognormal(0.0, 0.4)
    # Deviations of an evaluation partly carry over to the next ones
    shocks = generator.normal(0.0, 0.04, n)
    weights = 0.8 ** np.arange(min(n, 40))
    share = level * (1.0 - np.exp(-rate * progress)) + np.convolve(shocks, weights)[:n]
    episodes = generator.normal(0.0, 0.05, (n, n_episodes))
    return first + (good - first) * (share[:, None] + episodes)


def _plausible_training(spec: RunSpec, n: int, generator: np.random.Generator) -> dict[str, Sequence[object]]:
    """Return the values that the algorithm logs in ``n`` updates."""
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
    """Write the log of a run in the format of SB3's CSVOutputFormat.

    Each row belongs to a rollout or an evaluation. The values of an update are in the row after its
    rollout. The evaluation at the end of the last rollout comes after its update.
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
    # At the same step, an evaluation precedes the rollout, except at the end of training
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
    """Write the first training episodes in the format of SB3's Monitor."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("#" + json.dumps({"t_start": STARTED, "env_id": spec.env}) + "\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["r", "l", "t"])
        episodes = zip(returns[:5].mean(axis=1).tolist(), lengths[:5, 0].tolist(), strict=True)
        for number, (episode_return, length) in enumerate(episodes, start=1):
            writer.writerow([round(episode_return, 6), length, round(0.1 * number, 6)])


def main() -> None:
    """Write the 2,160 runs of the largest sweep to the folder given as argument."""
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
