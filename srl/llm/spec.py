"""Make the spec of a run on a language model from a task file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from srl.config.algorithms import get_algorithm
from srl.config.files import ConfigFile, configs_dir, read_config, user_error
from srl.config.hyperparams import untrusted
from srl.config.language_models import LanguageModelHyperparams, of_other_algorithms
from srl.config.resolve import check_hyperparams
from srl.config.spec import RunSpec, resolve_device, safe_name
from srl.config.values import Positive, Strict
from srl.errors import UserError, nearest

#: The algorithms as the command line names them.
ALGORITHMS = ("ppo", "sppo", "grpo", "sgrpo")


class TaskFile(Strict):
    """A task file."""

    #: Number of training responses.
    n_timesteps: Positive
    #: Responses between evaluations.
    eval_freq: Positive
    #: Number of prompts of an evaluation.
    n_eval_episodes: Positive = 112
    #: Whether evaluations take the most probable tokens.
    eval_deterministic: bool = False
    #: Hyperparameters of all algorithms.
    hyperparams: dict[str, Any]
    #: Hyperparameters of single algorithms, which take precedence.
    algorithms: dict[str, dict[str, Any]] = Field(default_factory=dict)


def task_names() -> list[str]:
    """The names of the built-in tasks."""
    return sorted(file.stem for file in (configs_dir() / "llm").glob("*.yml"))


def read_task(name: str) -> tuple[str, ConfigFile, TaskFile]:
    """Read the file of a task.

    :param name: The name of a built-in task, or the path of a file.
    :return: The task's name, the file, and its content.
    :raises UserError: If the file does not exist, or is invalid.
    """
    path = Path(name)
    if name in task_names():
        path = configs_dir() / "llm" / f"{name}.yml"
    elif path.suffix not in (".yml", ".yaml"):
        known = task_names()
        raise UserError(
            f"{name}: there is no such task. Known: {', '.join(known)}, or a file NAME.yml."
            f"{nearest(name, known)}"
        )
    file = read_config(path)
    try:
        task = TaskFile(**file.data)
    except ValidationError as error:
        raise file.validation_error(error, TaskFile.model_fields) from None
    for algo in task.algorithms:
        if algo not in ALGORITHMS:
            message = f"is none of {', '.join(ALGORITHMS)}.{nearest(algo, ALGORITHMS)}"
            raise file.error(["algorithms", algo], message)
    return path.stem, file, task


def make_llm_spec(
    name: str,
    algo: str,
    seed: int,
    *,
    noise: str = "none",
    n_timesteps: int | None = None,
    eval_freq: int | None = None,
    n_eval_episodes: int | None = None,
    device: str = "auto",
    threads: int = 1,
    variant: str | None = None,
    trust: bool = False,
    overrides: dict[str, Any] | None = None,
) -> RunSpec:
    """Make the spec of a run; parameters without description are fields of :class:`~srl.config.spec.RunSpec`.

    :param name: The task: a built-in one, or a file.
    :param algo: One of :data:`ALGORITHMS`.
    :param n_timesteps: Number of training responses; None takes the file's.
    :param eval_freq: Responses between evaluations; None takes the file's.
    :param n_eval_episodes: Number of prompts of an evaluation; None takes the file's.
    :param device: ``"auto"`` takes a GPU if there is one, except for the task ``offline``.
    :param trust: Whether Python code that the file names may be imported.
    :param overrides: Hyperparameters that take precedence over the file's.
    :raises UserError: If a value is invalid.
    """
    task_name, file, task = read_task(name)
    if algo not in ALGORITHMS:
        known = ", ".join(ALGORITHMS)
        raise UserError(f"There is no algorithm {algo!r}. Known: {known}.{nearest(algo, ALGORITHMS)}")
    algorithm = get_algorithm(f"llm-{algo}")
    known_keys = LanguageModelHyperparams.model_fields
    values = task.hyperparams | task.algorithms.get(algo, {})
    try:
        of_file = check_hyperparams(algorithm, values, LanguageModelHyperparams)
    except ValidationError as error:
        raise file.validation_error(error, known_keys, ["hyperparams"]) from None
    assert isinstance(of_file, LanguageModelHyperparams)
    for code, where in of_file.named_code().items():
        if not trust:
            raise file.error(["hyperparams", *where.split(".")], untrusted(code))
    try:
        hyperparams = check_hyperparams(algorithm, values | (overrides or {}), LanguageModelHyperparams)
    except ValidationError as error:
        raise user_error(error, known_keys, "Hyperparameter") from None
    for key, reason in hyperparams.without_effect(values | (overrides or {})).items():
        raise UserError(f"Hyperparameter {key}: has no effect, because {reason}. Leave it out.")
    for key in of_other_algorithms(algorithm) & (overrides or {}).keys():
        raise UserError(f"Hyperparameter {key}: has no effect, because {algorithm.label} does not use it.")
    model = of_file.model.path
    n_prompts = task.n_eval_episodes if n_eval_episodes is None else n_eval_episodes
    try:
        return RunSpec(
            algo=algorithm.name,
            variant=variant,
            env=safe_name(task_name),
            noise=noise,
            seed=seed,
            n_timesteps=task.n_timesteps if n_timesteps is None else n_timesteps,
            eval_freq=task.eval_freq if eval_freq is None else eval_freq,
            n_eval_episodes=n_prompts,
            n_eval_envs=n_prompts,
            eval_deterministic=task.eval_deterministic,
            device=resolve_device(device, "MlpPolicy" if model == "offline" else "CnnPolicy"),
            threads=threads,
            hyperparams=hyperparams,  # type: ignore[arg-type]
        )
    except ValidationError as error:
        raise user_error(error) from None
