"""The options of a sweep, from its file and the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from srl.config.algorithms import get_algorithm, get_environment_algorithm, is_own
from srl.config.compiling import check_choice
from srl.config.files import ConfigFile, first_mistake
from srl.config.hyperparams import ATARI_WRAPPER, FAMILIES, untrusted
from srl.config.spec import safe_name
from srl.config.values import Positive, Strict
from srl.config.variants import Variant, VariantError, check_comparisons, make_variants
from srl.envs.registration import import_packages
from srl.envs.reward_noise import parse_noise
from srl.errors import UserError, nearest
from srl.precision import Precision

_HYPERPARAMETERS = {name for model in FAMILIES.values() for name in model.model_fields}
#: Options of the command line whose names differ from the keys of a sweep's file.
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
            raise UserError(f"seeds: the range {text!r} has {end - first:,} seeds; the maximum is 100,000.")
        seeds += range(first, end)
    repeated = [seed for seed, count in Counter(seeds).items() if count > 1]
    if repeated:
        raise UserError(f"seeds: {', '.join(map(str, repeated[:3]))} is specified twice.")
    if not seeds:
        raise UserError("seeds: at least one is needed.")
    return seeds


class SweepOptions(Strict):
    """The options of a sweep. Every combination of ``envs``, columns, ``noise`` and ``seeds`` is a run; the
    columns are ``algos`` and ``variants``.
    """

    envs: Annotated[list[str], Field(min_length=1)]
    algos: list[str] = Field(default_factory=list)
    #: Named variants of algorithms: ``algo`` and other hyperparameters.
    variants: dict[str, Any] = Field(default_factory=dict)
    #: Values by hyperparameter; each of ``algos`` is expanded into a variant for each combination.
    grid: dict[str, Any] = Field(default_factory=dict)
    #: Pairs of columns that reports compare; without any, symmetric algorithms with their baselines.
    compare: list[list[str]] = Field(default_factory=list)
    noise: list[str] = Field(default_factory=lambda: ["none"], min_length=1)
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
    #: In which features extractors compute, see :mod:`srl.precision`.
    precision: Precision = "float32"
    #: Of all environments; see :class:`~srl.config.spec.RunSpec`.
    gym_packages: list[str] = Field(default_factory=list)
    env_kwargs: dict[str, Any] = Field(default_factory=dict)
    env_wrapper: Any = None
    max_episode_steps: Positive | None = None
    #: A path; in a sweep's file it is relative to that.
    hyperparams_file: Path | None = None
    #: Hyperparameters of all runs, or of an environment's runs under its name. Those of one family apply only
    #: to that family.
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
        return [get_environment_algorithm(name).name for name in value]

    def columns(self) -> list[Variant]:
        """Return what is compared.

        :raises VariantError: If something in it is wrong.
        """
        columns = make_variants(self.algos, self.variants, self.grid)
        if not columns:
            raise VariantError(["algos"], "at least one algorithm or variant is needed.")
        taken: dict[str, str] = {}
        for name in [column.name for column in columns]:
            # File systems may be case-insensitive
            folder = safe_name(name).lower()
            if folder in taken:
                if name not in self.variants:
                    raise VariantError(["algos"], f"{name!r} is specified twice.")
                message = f"the folder of {taken[folder]!r} is taken. Use another name."
                raise VariantError(["variants", name], message)
            taken[folder] = name
        check_comparisons(self.compare, columns)
        return columns


def load_sweep(path: Path, *, quick: bool = False, trust: bool = False, **changes: Any) -> SweepOptions:
    """Read a sweep's file.

    :param path: A YAML file with the keys of :class:`SweepOptions`, and under ``quick`` the keys of the small
        version.
    :param quick: Whether to use the small version.
    :param trust: Whether the file may name Python code. Modules in ``gym_packages`` of ``changes`` are always
        trusted.
    :param changes: Keys that override the file's; None keeps the file's.
    :raises UserError: For a mistake, with its line or option.
    """
    file = ConfigFile(path)
    if quick and "quick" not in file.data:
        raise UserError(f"{path}: has no small version; --quick needs a key `quick` in it.")
    small = file.data.pop("quick", {})
    if not isinstance(small, dict):
        raise file.error(["quick"], "must be a mapping of the keys that differ in the small version.")
    values = dict(file.data)
    for names in (values.get("gym_packages"), small.get("gym_packages")) if trust else ():
        if isinstance(names, list):
            # They may also register reward noise
            import_packages([name for name in names if isinstance(name, str)], needed_by=str(path))
    for prefix, part in ((["quick"], values | small), ([], values)):
        try:
            SweepOptions(**part)
        except ValidationError as error:
            keys = error.errors()[0]["loc"]
            prefix = prefix if keys and keys[0] in small else []
            raise file.validation_error(error, SweepOptions.model_fields, prefix) from None
    if not trust:
        packages, chosen_algos = changes.get("gym_packages") or (), changes.get("algos") or ()
        for prefix, part in (([], values), (["quick"], small)):
            _check_code(file, prefix, part, packages, chosen_algos)
    envs = [*values["envs"], *small.get("envs", ()), *(changes.get("envs") or ())]
    for prefix, part in (([], values), (["quick"], small)):
        _check_overrides(file, prefix, part, envs)
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
        # The variants of the file that the command line selects
        values["variants"] = {
            name: value for name, value in values.get("variants", {}).items() if name in changes["algos"]
        }
        changes["algos"] = [name for name in changes["algos"] if name not in values["variants"]]
        if not changes["algos"]:
            values.pop("grid", None)
    # The command line also overrides the file's entries of environments and of symmetric algorithms
    given = [*(changes.get("overrides") or ()), *(["env_wrapper"] if changes.get("env_wrapper") else [])]
    chosen_envs = changes.get("envs") or values["envs"]
    values["overrides"] = {
        key: _without(value, given) if is_of_env(key, value) else value
        for key, value in _without(values.get("overrides", {}), given).items()
        if key in chosen_envs or not is_of_env(key, value)
    }
    values["symmetric_overrides"] = _without(values.get("symmetric_overrides", {}), given)
    for key, value in changes.items():
        if key == "grid" and value is not None:
            values[key] = value
        elif isinstance(value, dict):
            values[key] = {**values.get(key, {}), **value}
        elif value is not None:
            values[key] = value
    # Comparisons of columns that the command line does not select are dropped
    chosen = changes.get("algos") is not None or changes.get("grid") is not None
    try:
        options = SweepOptions(**values)
        if chosen:
            uncompared = options.model_copy(update={"compare": []})
            names = {variant.name for variant in uncompared.columns()}
            compare = [pair for pair in options.compare if set(pair) <= names]
            options = options.model_copy(update={"compare": compare})
        _check_effect(options.columns(), changes)
        return options
    except VariantError as error:
        option, *parts = map(str, error.keys)
        raise UserError(f"--{option}{' ' if parts else ''}{'.'.join(parts)}: {error.message}") from None
    except ValidationError as error:
        wrong, message = first_mistake(error)
        option = _OPTIONS.get(str(wrong[0]), str(wrong[0])).replace("_", "-")
        raise UserError(f"--{option}: {message}") from None


def _check_effect(columns: Sequence[Variant], changes: dict[str, Any]) -> None:
    """Check that a column uses the command line's parameters of some algorithms only."""
    algorithms = [get_algorithm(column.algo) for column in columns]
    for name in changes.get("symmetric_overrides") or ():
        if not any(algorithm.symmetric for algorithm in algorithms):
            option = name.replace("_", "-")
            raise VariantError([option], "has no effect, because the sweep has no symmetric algorithm.")
    if changes.get("bins") is not None and not any(algorithm.discretized for algorithm in algorithms):
        raise VariantError(["bins"], "has no effect, because the sweep has no discretized algorithm.")


def _check_code(
    file: ConfigFile,
    prefix: list[str],
    values: dict[str, Any],
    packages: Collection[str],
    algos: Collection[str],
) -> None:
    """Check that a part of a sweep's file names no Python code that is not trusted.

    :param packages: Modules of the command line, which are trusted.
    :param algos: Algorithms of the command line, which are trusted.
    :raises UserError: If it does.
    """
    modules = [(["gym_packages"], name) for name in values.get("gym_packages", ())]
    modules += [(["envs"], env.partition(":")[0]) for env in values.get("envs", ()) if ":" in env]
    named: list[tuple[list[str], Any]] = [(keys, name) for keys, name in modules if name not in packages]
    # Malformed variants and grids are rejected when the columns are made
    variants = {key: one for key, one in values.get("variants", {}).items() if isinstance(one, dict)}
    grid = {key: points for key, points in values.get("grid", {}).items() if isinstance(points, list)}
    classes = [(["algos"], algo) for algo in values.get("algos", ())]
    classes += [(["variants", key, "algo"], one.get("algo")) for key, one in variants.items()]
    named += [(keys, name) for keys, name in classes if is_own(name) and name not in algos]
    places: list[tuple[list[str], dict[str, Any]]] = [([], values)]
    for key in ("overrides", "symmetric_overrides"):
        places.append(([key], values.get(key, {})))
        places += [([key, env], part) for env, part in values.get(key, {}).items() if is_of_env(env, part)]
    places += [(["variants", key], one) for key, one in variants.items()]
    places += [(["grid"], {key: point}) for key, points in grid.items() for point in points]
    for keys, part in places:
        if part.get("env_wrapper") not in (None, [], ATARI_WRAPPER, [ATARI_WRAPPER]):
            named.append(([*keys, "env_wrapper"], part["env_wrapper"]))
        options = part.get("policy_kwargs")
        if isinstance(options, dict) and options.get("features_extractor_class") is not None:
            where = [*keys, "policy_kwargs", "features_extractor_class"]
            named.append((where, options["features_extractor_class"]))
    for keys, name in named:
        raise file.error([*prefix, *keys], untrusted(name))


def _without(values: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def is_of_env(key: str, value: Any) -> bool:
    """Whether an entry of a sweep's overrides applies to one environment."""
    return isinstance(value, dict) and key not in _HYPERPARAMETERS


def _check_overrides(
    file: ConfigFile, prefix: list[str], values: dict[str, Any], envs: Sequence[str]
) -> None:
    """Check that overrides of an environment are a mapping, and belong to one of the sweep's environments."""
    for key, value in values.get("overrides", {}).items():
        keys = [*prefix, "overrides", key]
        if key in envs and not isinstance(value, dict):
            raise file.error(keys, "must be a mapping of hyperparameters.")
        if is_of_env(key, value) and key not in envs:
            hint = nearest(key, [*envs, *_HYPERPARAMETERS])
            raise file.error(keys, f"is neither a hyperparameter nor one of the sweep's envs.{hint}")
