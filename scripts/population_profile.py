"""Profile a population: microseconds of each part for a step of a member, in one process.

    .venv/bin/python scripts/population_profile.py [--members N ...] [--family ppo|a2c]

HalfCheetah-v4 by the protocol with 11 bins, one thread, no evaluations. Updates are compiled if there is
a compiler.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from srl.sweep.engines.local import use_one_thread


@dataclass
class Options:
    """Profile populations."""

    members: tuple[int, ...] = (1, 8, 32)
    """Members of each population."""
    family: Literal["ppo", "a2c"] = "ppo"
    """DPPO and DSPPO, or DA2C and DSA2C."""
    steps: int = 10_240
    """Training steps of each member."""


def profile(family: str, n_members: int, n_timesteps: int) -> dict[str, float]:
    """Train a population; return microseconds for a step of a member, by part."""
    from srl.compilation import why_not
    from srl.config.spec import make_run_spec
    from srl.training.attempt import Attempt
    from srl.training.stacked.population import Population

    compile = "on" if why_not("cpu") is None else "off"
    options: dict[str, Any] = {"n_timesteps": 2_000_000, "eval_freq": 2_000_000, "device": "cpu"}
    specs = [
        make_run_spec(algo, "HalfCheetah-v4", seed, noise="gaussian:0.05", compile=compile, **options)[0]
        for seed in range(-(-n_members // 2))
        for algo in (f"d{family}", f"ds{family}")
    ][:n_members]
    times: dict[str, float] = {}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            began = time.perf_counter()
            result = call(*args)
            times[name] = times.get(name, 0.0) + time.perf_counter() - began
            return result

        return wrapper

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        attempts = [stack.enter_context(Attempt(spec, Path(folder) / spec.path)) for spec in specs]
        population: Any = stack.enter_context(Population(attempts))
        n_rollouts = n_timesteps // (specs[0].hyperparams.n_steps * specs[0].hyperparams.n_envs)
        population.measure(1)
        population._envs.step = timed("environments", population._envs.step)
        population._act = timed("actions", population._act)
        population._normalize.step = timed("normalization", population._normalize.step)
        population._update = timed("update", population._update)
        speed = population.measure(n_rollouts)
    # The first rollout and update of measure() are timed too
    n_steps = (n_rollouts + 1) * specs[0].hyperparams.n_steps * specs[0].hyperparams.n_envs * len(specs)
    parts = {name: 1e6 * seconds / n_steps for name, seconds in times.items()}
    return parts | {"rest": 1e6 / speed - sum(parts.values()), "all": 1e6 / speed}


def main() -> None:
    """Print a table."""
    options = tyro.cli(Options, description=__doc__)
    use_one_thread()
    rows = {n_members: profile(options.family, n_members, options.steps) for n_members in options.members}
    names = list(next(iter(rows.values())))
    print(f"| members | {' | '.join(names)} |")
    print("| ---: " * (len(names) + 1) + "|")
    for n_members, parts in rows.items():
        print(f"| {n_members} | {' | '.join(f'{parts[name]:.0f}' for name in names)} |")


if __name__ == "__main__":
    main()
