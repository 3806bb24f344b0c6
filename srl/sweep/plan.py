"""A sweep: what to compare, expanded into runs, executed, and completed when it is started again."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from srl.config.algorithms import get_algorithm, is_own
from srl.config.compiling import check_choice
from srl.config.files import ConfigFile, first_mistake
from srl.config.hyperparams import ATARI_WRAPPER, FAMILIES, Positive, Strict, of_family, untrusted
from srl.config.spec import RunSpec, make_run_spec
from srl.config.variants import Variant, VariantError, check_comparisons, make_variants
from srl.envs import parse_noise
from srl.errors import UserError, nearest
from srl.experiment.extend import check_extendable
from srl.experiment.extend import extend as extend_run
from srl.rundir.store import (
    PLAN,
    PLAN_FORMAT,
    PlannedRun,
    RunDirectory,
    check_plan,
    check_writable,
    read_comparisons,
    read_plan,
    write_text,
)
from srl.sweep.engines import Job, Task
from srl.sweep.tasks import Population, make_tasks
from srl.training.check import check_runs
from srl.training.checkpoint import checkpoint_steps

_HYPERPARAMETERS = {name for model in FAMILIES.values() for name in model.model_fields}
_PLAN_LOCK = ".sweep.lock"
#: Options of the command line that are named otherwise than the keys of a sweep's file.
_OPTIONS = {"n_timesteps": "timesteps", "n_eval_episodes": "eval_episodes"}


def parse_seeds(texts: Sequence[str | int]) -> list[int]:
    """Seeds from numbers and half-open ranges.

    :param texts: For example ``["0", "7"]`` or ``["10000:10005"]``, which is 10000 to 10004.
    :raises UserError: If one does not parse, a range is empty, or seeds repeat.
    """
    seeds: list[int] = []
    for text in texts:
        parts = str(text).split(":")
        if len(parts) > 2 or not all(part.isascii() and part.isdecimal() for part in parts):
            raise UserError(f"seeds: {text!r} is neither a number >= 0 nor a range such as 10000:10005.")
        first, end = int(parts[0]), int(parts[-1]) + (len(parts) == 1)
        if end <= first:
            raise UserError(f"seeds: the range {text!r} is empty; its end is not part of it.")
        if end > 2**31:
            raise UserError(f"seeds: {text!r} reaches beyond 2^31 - 1.")
        if end - first > 100_000:
            raise UserError(f"seeds: the range {text!r} has {end - first:,} seeds; 100,000 is the most.")
        seeds += range(first, end)
    repeated = [seed for seed, count in Counter(seeds).items() if count > 1]
    if repeated:
        raise UserError(f"seeds: {', '.join(map(str, repeated[:3]))} is specified twice.")
    if not seeds:
        raise UserError("seeds: at least one is needed.")
    return seeds


class SweepOptions(Strict):
    """What a sweep compares. Every combination of ``envs``, columns, ``noise`` and ``seeds`` is a run; the
    columns are ``algos`` and ``variants``.
    """

    envs: Annotated[list[str], Field(min_length=1)]
    algos: list[str] = Field(default_factory=list)
    #: Named variants of algorithms: ``algo``, and the hyperparameters in which they differ from it.
    variants: dict[str, Any] = Field(default_factory=dict)
    #: Values by hyperparameter; each of ``algos`` is expanded into a variant for each combination.
    grid: dict[str, Any] = Field(default_factory=dict)
    #: Pairs of columns that reports compare; without any, symmetric algorithms with their baselines.
    compare: list[list[str]] = Field(default_factory=list)
    noise: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)]
    #: None takes the hyperparameter files'.
    n_timesteps: Positive | None = None
    eval_freq: Positive | None = None
    n_eval_episodes: Positive = 10
    eval_max_episode_steps: Positive | None = None
    bins: Annotated[int, Field(ge=2)] | None = None
    profile: str = "controlled"
    env_backend: str = "gymnasium"
    #: Whether updates are compiled, see :func:`srl.config.compiling.resolve_compile`.
    compile: str = "auto"
    #: Of all environments; see :class:`~srl.config.spec.RunSpec`.
    gym_packages: list[str] = Field(default_factory=list)
    env_kwargs: dict[str, Any] = Field(default_factory=dict)
    env_wrapper: Any = None
    max_episode_steps: Positive | None = None
    #: A path; in a sweep's file it is relative to that.
    hyperparams_file: Path | None = None
    #: Hyperparameters of every run, or under an environment's name of its runs; those that only one family
    #: has go to that one.
    overrides: dict[str, Any] = Field(default_factory=dict)
    #: Hyperparameters of the symmetric algorithms alone.
    symmetric_overrides: dict[str, Any] = Field(default_factory=dict)

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> Any:
        return parse_seeds(value if isinstance(value, list) else [value])

    @field_validator("compile", mode="before")
    @classmethod
    def _compile(cls, value: Any) -> Any:
        # YAML reads on and off as truth values
        choice = ("on" if value else "off") if isinstance(value, bool) else str(value)
        check_choice(choice)
        return choice

    @field_validator("noise")
    @classmethod
    def _noise(cls, value: list[str]) -> list[str]:
        for text in value:
            parse_noise(text)
        return value

    @field_validator("algos")
    @classmethod
    def _algos(cls, value: list[str]) -> list[str]:
        return [get_algorithm(name).name for name in value]

    def columns(self) -> list[Variant]:
        """Return what is compared.

        :raises VariantError: If something in it is wrong.
        """
        columns = make_variants(self.algos, self.variants, self.grid)
        if not columns:
            raise VariantError(["algos"], "at least one algorithm or variant is needed.")
        check_comparisons(self.compare, columns)
        return columns


def load_sweep(path: Path, *, quick: bool = False, trust: bool = False, **changes: Any) -> SweepOptions:
    """Read a sweep's file.

    :param path: A YAML file with the keys of :class:`SweepOptions`, and under ``quick`` those that differ in
        the small version.
    :param quick: Whether to take the small version.
    :param trust: Whether the file may name Python code of the user's. Modules that ``gym_packages`` of
        ``changes`` names are trusted anyway.
    :param changes: Keys that stand before the file's; None changes nothing.
    :raises UserError: For a mistake, saying in which line or option.
    """
    file = ConfigFile(path)
    if quick and "quick" not in file.data:
        raise UserError(f"{path}: has no small version; --quick needs a key `quick` in it.")
    small = file.data.pop("quick", {})
    if not isinstance(small, dict):
        raise file.error(["quick"], "must be a mapping of the keys that differ in the small version.")
    values = dict(file.data)
    for prefix, part in ((["quick"], values | small), ([], values)):
        try:
            SweepOptions(**part)
        except ValidationError as error:
            keys = error.errors()[0]["loc"]
            prefix = prefix if keys and keys[0] in small else []
            raise file.validation_error(error, SweepOptions.model_fields, prefix) from None
    if not trust:
        for prefix, part in (([], values), (["quick"], small)):
            named = [*(changes.get("gym_packages") or ()), *(changes.get("algos") or ())]
            _check_code(file, prefix, part, allowed=named)
    _check_overrides(file, values, [*values["envs"], *small.get("envs", ())])
    for part in (values, values | small):
        try:
            SweepOptions(**part).columns()
        except VariantError as error:
            inside = part is not values and error.keys[0] in small
            raise file.error([*(["quick"] if inside else []), *error.keys], error.message) from None
    values |= small if quick else {}
    if values.get("hyperparams_file"):
        values["hyperparams_file"] = path.parent / values["hyperparams_file"]
    if changes.get("algos") is not None:
        # Of the file's variants, those that the command line names
        values["variants"] = {
            name: value for name, value in values.get("variants", {}).items() if name in changes["algos"]
        }
        changes["algos"] = [name for name in changes["algos"] if name not in values["variants"]]
    for key, value in changes.items():
        if key == "grid" and value is not None:
            values[key] = value
        elif isinstance(value, dict):
            values[key] = {**values.get(key, {}), **value}
        elif value is not None:
            values[key] = value
    # What the command line leaves out of the columns is not compared either
    chosen = changes.get("algos") is not None or changes.get("grid") is not None
    try:
        options = SweepOptions(**values)
        if chosen:
            options = _without_absent_comparisons(options)
        options.columns()
        return options
    except VariantError as error:
        option, *parts = map(str, error.keys)
        raise UserError(f"--{option}{' ' if parts else ''}{'.'.join(parts)}: {error.message}") from None
    except ValidationError as error:
        wrong, message = first_mistake(error)
        option = _OPTIONS.get(str(wrong[0]), str(wrong[0])).replace("_", "-")
        raise UserError(f"--{option}: {message}") from None


def _without_absent_comparisons(options: SweepOptions) -> SweepOptions:
    names = {variant.name for variant in options.model_copy(update={"compare": []}).columns()}
    return options.model_copy(update={"compare": [pair for pair in options.compare if set(pair) <= names]})


def _check_code(
    file: ConfigFile, prefix: list[str], values: dict[str, Any], allowed: Collection[str]
) -> None:
    """See that a part of a sweep's file names no Python code that the command line does not allow.

    :param prefix: The keys above the part.
    :param values: What it says.
    :param allowed: Modules and algorithms that the command line names.
    :raises UserError: If it does.
    """
    modules = [(["gym_packages"], name) for name in values.get("gym_packages", ())]
    modules += [(["envs"], env.partition(":")[0]) for env in values.get("envs", ()) if ":" in env]
    modules += [(["algos"], algo) for algo in values.get("algos", ()) if is_own(algo)]
    for name, one in values.get("variants", {}).items():
        if isinstance(one, dict) and is_own(one.get("algo")):
            modules.append((["variants", name, "algo"], one["algo"]))
    named = [(keys, name) for keys, name in modules if name not in allowed]
    places: list[tuple[list[str], dict[str, Any]]] = [([], values)]
    for key in ("overrides", "symmetric_overrides"):
        places.append(([key], values.get(key, {})))
        places += [([key, env], part) for env, part in values.get(key, {}).items() if _is_of_env(env, part)]
    for keys, part in places:
        if part.get("env_wrapper") not in (None, [], ATARI_WRAPPER, [ATARI_WRAPPER]):
            named.append(([*keys, "env_wrapper"], part["env_wrapper"]))
        options = part.get("policy_kwargs")
        if isinstance(options, dict) and options.get("features_extractor_class") is not None:
            where = [*keys, "policy_kwargs", "features_extractor_class"]
            named.append((where, options["features_extractor_class"]))
    for keys, name in named:
        raise file.error([*prefix, *keys], untrusted(name))


def _is_of_env(key: str, value: Any) -> bool:
    """Whether an entry of a sweep's overrides holds those of one environment."""
    return isinstance(value, dict) and key not in _HYPERPARAMETERS


def _check_overrides(file: ConfigFile, values: dict[str, Any], envs: Sequence[str]) -> None:
    """See that overrides by environment are for environments of the sweep.

    :raises UserError: If not.
    """
    for key, value in values.get("overrides", {}).items():
        if _is_of_env(key, value) and key not in envs:
            hint = nearest(key, [*envs, *_HYPERPARAMETERS])
            raise file.error(
                ["overrides", key], f"is neither a hyperparameter nor one of the sweep's envs.{hint}"
            )


def expand(
    options: SweepOptions, *, device: str = "auto", trust_file: bool = False
) -> tuple[list[RunSpec], list[str]]:
    """All runs of a sweep, checked: each environment and each model is built once.

    :param options: What to compare.
    :param device: See :func:`srl.config.spec.make_run_spec`.
    :param trust_file: Whether Python code that the hyperparameter file names is imported.
    :return: The runs, seed by seed, so that a table fills evenly; and lines to tell the user.
    :raises UserError: For anything that is wrong with any of them.
    """
    specs: list[RunSpec] = []
    notes: dict[str, None] = {}
    cells = list(product(options.envs, options.columns(), options.noise))
    for env, variant, noise in cells:
        algorithm = get_algorithm(variant.algo)
        overrides = {
            key: value for key, value in options.overrides.items() if not _is_of_env(key, value)
        } | options.overrides.get(env, {})
        if options.env_wrapper is not None:
            overrides["env_wrapper"] = options.env_wrapper
        if algorithm.symmetric:
            overrides |= options.symmetric_overrides
        spec, lines = make_run_spec(
            variant.algo,
            env,
            options.seeds[0],
            noise=noise,
            n_timesteps=options.n_timesteps,
            bins=options.bins if algorithm.discretised else None,
            profile=options.profile,
            device=device,
            env_backend=options.env_backend,
            eval_freq=options.eval_freq,
            n_eval_episodes=options.n_eval_episodes,
            compile=options.compile,
            eval_max_episode_steps=options.eval_max_episode_steps,
            gym_packages=options.gym_packages,
            env_kwargs=options.env_kwargs,
            max_episode_steps=options.max_episode_steps,
            hyperparams_file=options.hyperparams_file,
            trust_file=trust_file,
            variant=variant.label,
            overrides=of_family(algorithm, overrides) | variant.overrides,
        )
        notes |= dict.fromkeys(lines)
        specs.append(spec)
    for path, count in Counter(spec.path for spec in specs).items():
        if count > 1:
            cell = Path(path).parent
            raise UserError(f"{cell} is specified twice; name each environment, column and noise once.")
    check_runs(specs)
    # The rest of a spec does not depend on the seed
    return [spec.model_copy(update={"seed": seed}) for seed in options.seeds for spec in specs], list(notes)


@dataclass
class Plan:
    """A sweep in its folder: what is done already and what is to do."""

    root: Path
    jobs: list[Job]
    #: Pairs of columns that reports compare.
    compare: list[list[str]] = field(default_factory=list)
    #: Jobs whose run has fewer steps and is extended, and its spec. They are to do.
    to_extend: list[tuple[Job, RunSpec]] = field(default_factory=list)
    #: Jobs whose run is finished.
    done: list[Job] = field(default_factory=list)
    #: Jobs still to run, those that failed or were interrupted before included.
    to_do: list[Job] = field(default_factory=list)
    #: What is to do, as tasks for an engine.
    tasks: list[Task] = field(default_factory=list)
    #: What of its runs is damaged, in lines: those runs are to do.
    damaged: list[str] = field(default_factory=list)
    #: Damaged files that no result depends on, in lines.
    minor_damage: list[str] = field(default_factory=list)


def make_plan(
    specs: Sequence[RunSpec],
    root: Path,
    *,
    compare: Sequence[Sequence[str]] = (),
    population: Population = "off",
    n_jobs: int = 1,
    memory: float | None = None,
    compile: str = "off",
    extend: bool = False,
) -> Plan:
    """Hold the runs of a sweep against what its folder holds; nothing is written.

    :param specs: The runs.
    :param root: The sweep's folder.
    :param compare: Pairs of columns that reports compare.
    :param population: Whether runs that can train as one do: the most members of a population, or ``"auto"``,
        see :func:`~srl.sweep.tasks.make_tasks`.
    :param n_jobs: How many tasks run at once, among which ``"auto"`` divides them.
    :param memory: Bytes that these share; None for no limit.
    :param compile: With ``"auto"``, runs that were begun before stay compiled or not, as they were begun.
    :param extend: Whether runs that differ in nothing but fewer steps are extended, see
        :mod:`srl.experiment.extend`.
    :raises UserError: If the folder cannot be used, or holds a run of another spec in a run's place, or files
        of a newer srl.
    """
    check_writable(root)
    check_plan(root)
    jobs = [Job(spec, root / spec.path) for spec in specs]
    if compile == "auto":
        jobs = [Job(RunDirectory(job.path).as_begun(job.spec), job.path) for job in jobs]
    plan = Plan(root, jobs, [list(pair) for pair in compare])
    begun: dict[Path, bool] = {}
    for job in plan.jobs:
        directory = RunDirectory(job.path)
        shorter = directory.shorter(job.spec) if extend else None
        status = directory.read_status()
        if shorter is not None and not (status is not None and directory.was_for(job.spec, status)):
            check_extendable(directory, shorter)
            plan.to_extend.append((job, shorter))
            plan.to_do.append(job)
            begun[job.path] = shorter.stacked
            continue
        there = directory.compare(job.spec)
        (plan.done if there == "done" else plan.to_do).append(job)
        plan.minor_damage += directory.minor_damage() if there != "new" else []
        if there == "unfinished":
            plan.damaged += directory.damage()
            if checkpoint_steps(job.path):
                with suppress(UserError):  # damaged, as was just said
                    spec = directory.read_spec()
                    if spec is not None:
                        begun[job.path] = spec.stacked
    done = {job.path for job in plan.done}
    plan.tasks = make_tasks(plan.jobs, population, n_jobs, memory=memory, done=done, begun=begun)
    return plan


def extend_runs(plan: Plan, say: Callable[[str], None]) -> None:
    """Turn the shorter runs of a plan into unfinished ones of their new length.

    :param plan: The plan.
    :param say: Is given lines to tell the user.
    """
    for job, shorter in plan.to_extend:
        extend_run(RunDirectory(job.path), shorter, job.spec, say)


def write_plan(plan: Plan) -> None:
    """Record which runs there are to be, those of earlier sweeps in the same folder included."""
    plan.root.mkdir(parents=True, exist_ok=True)
    with (plan.root / _PLAN_LOCK).open("a+") as lock:
        # Another sweep that begins in this folder adds its runs
        fcntl.flock(lock, fcntl.LOCK_EX)
        check_plan(plan.root)
        runs = {run.path: run for run in read_plan(plan.root)}
        runs |= {job.spec.path: PlannedRun.of(job.spec) for job in plan.jobs}
        compare = dict.fromkeys([*read_comparisons(plan.root), *map(tuple, plan.compare)])
        entries = [asdict(run) for run in runs.values()]
        content = {"format": PLAN_FORMAT, "compare": list(compare), "runs": entries}
        write_text(plan.root / PLAN, json.dumps(content, indent=1) + "\n")
