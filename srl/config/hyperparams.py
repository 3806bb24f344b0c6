"""Hyperparameters: models, validation, and resolution of a file's entry for a run.

The files are those of rl-baselines3-zoo as far as they need no evaluated Python: an entry for each
environment, anchors, ``normalize``, ``frame_stack``, ``n_timesteps``, ``lin_2.5e-4``; ``policy_kwargs`` as
plain YAML. The models here hold SB3's own defaults, so that a resolved entry says everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from srl.config.algorithms import Algorithm
from srl.config.files import configs_dir, read_config, user_error
from srl.envs.registration import is_atari
from srl.errors import UserError, nearest

ATARI_WRAPPER = "stable_baselines3.common.atari_wrappers.AtariWrapper"

#: Hyperparameters that mean something only with a reverse loss.
_REVERSE_LOSS = ("beta", "z", "reverse_loss", "importance_weighting")

#: What an algorithm of another package takes from PPO's entries.
_OF_ENVIRONMENTS = ("n_timesteps", "n_envs", "normalize", "frame_stack", "env_wrapper", "policy")

#: What an entry's ``profiles`` can name: the default, and the settings of the authors' scripts.
PROFILES = ("controlled", "authors")


def _whole_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a whole number is needed")
    # YAML reads 1e6 as text and 1.0e+6 as a float
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError("a whole number is needed") from None
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return value


def _schedule(value: Any) -> Any:
    """A number, or ``lin_X`` for X falling linearly to 0 over the run."""
    if isinstance(value, str) and value.startswith("lin_"):
        try:
            start = float(value.removeprefix("lin_"))
        except ValueError:
            raise ValueError("lin_ must be followed by a number, as in lin_2.5e-4") from None
        if not 0 < start < float("inf"):
            raise ValueError("lin_ must be followed by a positive number")
        return f"lin_{start!r}"
    try:
        number = float(_number(value))
    except (TypeError, ValueError, OverflowError):
        raise ValueError("must be a number, or lin_ and a number as in lin_2.5e-4") from None
    if not 0 <= number < float("inf"):
        raise ValueError("must be a finite number >= 0")
    return number


def _not_zero(value: Any) -> Any:
    if value == 0:
        raise ValueError("must be above 0")
    return value


def _layers(value: Any) -> list[int]:
    """The sizes of hidden layers."""
    if not isinstance(value, list):
        raise ValueError("must be a list of layer sizes such as [64, 64]")
    sizes = [_whole_number(size) for size in value]
    if not all(isinstance(size, int | float) and 1 <= size < 2**31 and size == int(size) for size in sizes):
        raise ValueError("layer sizes must be whole numbers of at least 1")
    return [int(size) for size in sizes]


def _net_arch(value: Any) -> list[int] | dict[str, list[int]] | None:
    """Hidden layers: of both networks, or of each by name."""
    if value is None:
        return None
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        # Layers in front of the mapping were shared by both networks
        shared = [part for part in value if not isinstance(part, dict)]
        own = next(part for part in value if isinstance(part, dict))
        sizes = {name: own[name] if isinstance(own.get(name), list) else [] for name in ("pi", "vf")}
        layers = ", ".join(f"{name}: {shared + sizes[name]}" for name in sizes)
        raise ValueError(f"this form is that of SB3 before version 1.8. Write net_arch: {{{layers}}}")
    if isinstance(value, dict):
        if set(value) != {"pi", "vf"}:
            raise ValueError("must name the layers of both pi and vf, as in {pi: [64, 64], vf: [64, 64]}")
        return {name: _layers(layers) for name, layers in value.items()}
    return _layers(value)


def _optimizer_kwargs(value: Any) -> dict[str, Any] | None:
    """Arguments of an optimizer: numbers, lists of numbers, true and false."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError("must be a mapping such as {weight_decay: 0.01}")
    return {str(name): _optimizer_argument(str(name), argument) for name, argument in value.items()}


def _optimizer_argument(name: str, value: Any) -> bool | float | list[float]:
    if isinstance(value, bool):
        return value
    try:
        numbers = [float(number) for number in (value if isinstance(value, list) else [value])]
    except (TypeError, ValueError, OverflowError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be a finite number, a list of these, true or false")
    return numbers if isinstance(value, list) else numbers[0]


WholeNumber = Annotated[int, BeforeValidator(_whole_number)]
Positive = Annotated[WholeNumber, Field(ge=1)]
Number = Annotated[float, BeforeValidator(_number)]
Probability = Annotated[Number, Field(ge=0, le=1)]
Schedule = Annotated[float | str, BeforeValidator(_schedule)]

PositiveSchedule = Annotated[float | str, BeforeValidator(_schedule), AfterValidator(_not_zero)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NormalizeOptions(Strict):
    """Arguments of SB3's VecNormalize; its ``gamma`` is the algorithm's."""

    norm_obs: bool = True
    norm_reward: bool = True
    clip_obs: Annotated[Number, Field(gt=0)] = 10.0
    clip_reward: Annotated[Number, Field(gt=0)] = 10.0
    epsilon: Annotated[Number, Field(gt=0)] = 1e-8
    #: Keys of a Dict observation space that are normalized; None for all.
    norm_obs_keys: list[str] | None = None


class PolicyOptions(Strict):
    """Arguments of SB3's actor-critic policies that plain YAML can express."""

    net_arch: Annotated[list[int] | dict[str, list[int]] | None, PlainValidator(_net_arch)] = None
    activation_fn: Literal["tanh", "relu", "elu", "leaky_relu", "gelu", "silu"] | None = None
    ortho_init: bool | None = None
    log_std_init: Number | None = None
    full_std: bool | None = None
    use_expln: bool | None = None
    squash_output: bool | None = None
    share_features_extractor: bool | None = None
    normalize_images: bool | None = None
    features_extractor_class: Annotated[str, Field(pattern=r"^[\w.]+[:.]\w+$")] | None = None
    features_extractor_kwargs: dict[str, Any] | None = None
    optimizer_class: Literal["Adam", "AdamW", "RMSprop", "RMSpropTFLike", "SGD"] | None = None
    optimizer_kwargs: Annotated[dict[str, Any] | None, PlainValidator(_optimizer_kwargs)] = None

    @field_validator("activation_fn", mode="before")
    @classmethod
    def _zoo_name(cls, value: Any) -> Any:
        names = {"nn.Tanh": "tanh", "nn.ReLU": "relu", "nn.ELU": "elu", "nn.LeakyReLU": "leaky_relu"}
        return names.get(value, value) if isinstance(value, str) else value


class OwnPolicyOptions(PolicyOptions):
    """Arguments of the policy of another package's algorithm, which may be any."""

    model_config = ConfigDict(extra="allow")

    net_arch: Any = None


class EnvHyperparams(Strict):
    """What concerns the environment, and the policy's network."""

    policy: str = "MlpPolicy"
    n_envs: Positive = 1
    normalize: NormalizeOptions | None = None
    frame_stack: Positive = 1
    #: Wrappers by name, each alone or as a mapping to its arguments, the innermost first.
    env_wrapper: list[str | dict[str, dict[str, Any]]] | None = None
    policy_kwargs: PolicyOptions = PolicyOptions()

    @field_validator("normalize", mode="before")
    @classmethod
    def _plain_normalize(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(
                "must be true, false or a mapping such as {norm_obs: true}; text is not evaluated"
            )
        return {} if value is True else None if value is False else value

    @field_validator("policy_kwargs", mode="before")
    @classmethod
    def _plain_policy_kwargs(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(
                "must be a mapping such as {net_arch: [64, 64], activation_fn: relu}; text is Python code in "
                "rl-baselines3-zoo's files, and is not evaluated"
            )
        return {} if value is None else value

    @field_validator("env_wrapper", mode="before")
    @classmethod
    def _wrapper_list(cls, value: Any) -> Any:
        wrappers = value if isinstance(value, list) else [] if value is None else [value]
        checked: list[str | dict[str, dict[str, Any]]] = []
        for wrapper in wrappers:
            items = list(wrapper.items()) if isinstance(wrapper, dict) else [(wrapper, {})]
            if len(items) != 1 or not isinstance(items[0][0], str):
                raise ValueError("each wrapper is a name, or a mapping of one name to its arguments")
            ((name, kwargs),) = items
            kwargs = {} if kwargs is None else kwargs
            if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
                raise ValueError(f"the arguments of {name} must be a mapping of names to values")
            if name == ATARI_WRAPPER and kwargs:
                raise ValueError(f"{name} has SB3's defaults in srl; leave out its arguments")
            checked.append({name: kwargs} if kwargs else name)
        return checked or None

    def user_wrappers(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Names and arguments of the wrappers, without the one that each Atari game has anyway."""
        named = [(w, {}) if isinstance(w, str) else next(iter(w.items())) for w in self.env_wrapper or ()]
        return tuple((name, kwargs) for name, kwargs in named if name != ATARI_WRAPPER)

    def named_code(self) -> dict[str, str]:
        """What the user's own Python code is named by: the key of each name."""
        names = {name: "env_wrapper" for name, _ in self.user_wrappers()}
        extractor = self.policy_kwargs.features_extractor_class
        return names if extractor is None else {**names, extractor: "policy_kwargs.features_extractor_class"}

    def algorithm_kwargs(self) -> dict[str, Any]:
        """The arguments of the algorithm's constructor, schedules and classes still as text."""
        return self.model_dump(exclude=set(EnvHyperparams.model_fields))

    def without_effect(self, given: Mapping[str, Any]) -> dict[str, str]:
        """Values that change nothing beside the others, so that a run's record would be wrong to have them.

        :param given: The hyperparameters as the user gave them, by name.
        :return: The reason for each, by its name with dots; defaults are not among them.
        """
        return {}


class OwnHyperparams(EnvHyperparams):
    """Those of an algorithm of another package: the arguments of its constructor that were given."""

    model_config = ConfigDict(extra="allow")

    policy_kwargs: OwnPolicyOptions = OwnPolicyOptions()


class Hyperparams(EnvHyperparams):
    """What both families have. Names and defaults are SB3's."""

    policy: Literal["MlpPolicy", "CnnPolicy", "MultiInputPolicy"] = "MlpPolicy"

    learning_rate: Schedule
    n_steps: Positive
    gamma: Probability = 0.99
    gae_lambda: Probability
    normalize_advantage: bool
    ent_coef: Annotated[Number, Field(ge=0)] = 0.0
    vf_coef: Annotated[Number, Field(ge=0)] = 0.5
    max_grad_norm: Annotated[Number, Field(gt=0)] = 0.5
    use_sde: bool = False
    sde_sample_freq: WholeNumber = -1

    alpha: Annotated[Number, Field(ge=0)] = 0.5
    beta: Annotated[Number, Field(ge=0)] = 1.0
    z: Annotated[Number, Field(lt=0)] = -1.0
    #: A name of :data:`srl.losses.REVERSE_LOSSES`; building the model checks it.
    reverse_loss: str = "rce"
    advantage_transform: Literal["none", "sign", "bins"] = "none"
    advantage_flip_prob: Probability = 0.0

    def without_effect(self, given: Mapping[str, Any]) -> dict[str, str]:
        options, normalize = self.policy_kwargs, self.normalize
        reasons: dict[str, str] = {}
        if not self.use_sde:
            values = {
                "sde_sample_freq": self.sde_sample_freq != -1,
                "policy_kwargs.full_std": options.full_std is False,
                "policy_kwargs.use_expln": options.use_expln is True,
                "policy_kwargs.squash_output": options.squash_output is True,
            }
            reasons |= {name: "use_sde is false" for name, is_set in values.items() if is_set}
        if normalize is not None and not normalize.norm_obs:
            values = {
                "normalize.clip_obs": normalize.clip_obs != 10,
                "normalize.norm_obs_keys": normalize.norm_obs_keys is not None,
            }
            reasons |= {name: "norm_obs is false" for name, is_set in values.items() if is_set}
        if normalize is not None and not normalize.norm_reward and normalize.clip_reward != 10:
            reasons["normalize.clip_reward"] = "norm_reward is false"
        if options.activation_fn not in (None, "tanh") and not self._has_hidden_layers:
            reasons["policy_kwargs.activation_fn"] = "the networks have no hidden layers (net_arch)"
        if self.reverse_loss == "mae" and self.z != -1:
            reasons["z"] = "reverse_loss is mae"
        return reasons

    @property
    def _has_hidden_layers(self) -> bool:
        """Whether there are any besides those of SB3's network for images, which are always ReLU."""
        arch = self.policy_kwargs.net_arch
        if arch is None:
            return self.policy != "CnnPolicy"
        return any(arch.values()) if isinstance(arch, dict) else bool(arch)


class A2CHyperparams(Hyperparams):
    """Those of A2C and SA2C."""

    learning_rate: Schedule = 7e-4
    n_steps: Positive = 5
    gae_lambda: Probability = 1.0
    normalize_advantage: bool = False
    #: Epsilon of RMSprop, 1e-5 if not given; None if the optimizer is another or is named in policy_kwargs.
    rms_prop_eps: Annotated[Number, Field(gt=0)] | None = None
    #: Whether the optimizer is RMSprop, true if not given; None if it is named in policy_kwargs.
    use_rms_prop: bool | None = None

    @model_validator(mode="after")
    def _record_what_is_used(self) -> A2CHyperparams:
        options = self.policy_kwargs
        use_rms_prop = rms_prop_eps = None
        if options.optimizer_class is None:
            use_rms_prop = self.use_rms_prop is not False
            if use_rms_prop:
                rms_prop_eps = (options.optimizer_kwargs or {}).get("eps", self.rms_prop_eps or 1e-5)
        object.__setattr__(self, "use_rms_prop", use_rms_prop)
        object.__setattr__(self, "rms_prop_eps", rms_prop_eps)
        return self

    def algorithm_kwargs(self) -> dict[str, Any]:
        kwargs = super().algorithm_kwargs()
        unused = [name for name in ("rms_prop_eps", "use_rms_prop") if kwargs[name] is None]
        return {name: value for name, value in kwargs.items() if name not in unused}

    def without_effect(self, given: Mapping[str, Any]) -> dict[str, str]:
        reasons = super().without_effect(given)
        name = self.policy_kwargs.optimizer_class
        eps, use_rms_prop = given.get("rms_prop_eps"), given.get("use_rms_prop")
        if name is not None:
            why = f"the optimizer is {name} of policy_kwargs.optimizer_class"
            if use_rms_prop is not None and bool(use_rms_prop) != name.startswith("RMSprop"):
                reasons["use_rms_prop"] = why
            if eps is not None:
                reasons["rms_prop_eps"] = f"{why}, whose eps is one of policy_kwargs.optimizer_kwargs"
        elif eps is not None and not self.use_rms_prop:
            reasons["rms_prop_eps"] = "use_rms_prop is false"
        elif eps is not None and float(eps) != self.rms_prop_eps:
            reasons["rms_prop_eps"] = f"policy_kwargs.optimizer_kwargs has eps={self.rms_prop_eps}"
        return reasons


class PPOHyperparams(Hyperparams):
    """Those of PPO and SPPO."""

    learning_rate: Schedule = 3e-4
    n_steps: Positive = 2048
    gae_lambda: Probability = 0.95
    normalize_advantage: bool = True
    batch_size: Positive = 64
    n_epochs: Positive = 10
    clip_range: PositiveSchedule = 0.2
    clip_range_vf: PositiveSchedule | None = None
    target_kl: Annotated[Number, Field(gt=0)] | None = None
    importance_weighting: bool = True

    @model_validator(mode="after")
    def _normalizable(self) -> PPOHyperparams:
        if self.normalize_advantage and min(self.batch_size, self.n_steps * self.n_envs) < 2:
            raise ValueError("normalize_advantage needs a batch_size and n_steps * n_envs of at least 2")
        return self


FAMILIES: dict[str, type[EnvHyperparams]] = {
    "a2c": A2CHyperparams,
    "ppo": PPOHyperparams,
    "own": OwnHyperparams,
}


def untrusted(name: object) -> str:
    """Say that a file names code which the command line does not allow to import."""
    return f"names Python code, {name!r}, which is imported only with --trust-config."


def keys_of(algorithm: Algorithm) -> list[str]:
    """The hyperparameters of an algorithm's family; a class of another package is imported for them."""
    own: list[str] = []
    if algorithm.is_own:
        from srl.own_algorithms import parameters_of

        own = parameters_of(algorithm.name)
    return [*FAMILIES[algorithm.family].model_fields, *own]


def of_family(algorithm: Algorithm, values: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters without those that only other families have, for a sweep over several."""
    own = keys_of(algorithm)
    others = {name for model in FAMILIES.values() for name in model.model_fields}
    return {name: value for name, value in values.items() if name in own or name not in others}


def of_algorithm(algorithm: Algorithm, values: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters without those that only other families, or only symmetric algorithms, have."""
    values = of_family(algorithm, values)
    if algorithm.symmetric:
        return values
    return {name: value for name, value in values.items() if name not in ("alpha", *_REVERSE_LOSS)}


def check_hyperparams(
    algorithm: Algorithm, values: dict[str, Any], model: type[EnvHyperparams] | None = None
) -> EnvHyperparams:
    """Complete and check an algorithm's hyperparameters.

    :param algorithm: The algorithm. One without reverse loss has ``beta=0``, and ``alpha=1`` unless given.
    :param values: Hyperparameters by name; what is missing takes SB3's default.
    :param model: Their class; that of the algorithm's family if not given.
    :raises ValidationError: With the name of the first that is unknown or out of range.
    :raises UserError: For a reverse loss in an algorithm without one.
    """
    if not algorithm.symmetric and not algorithm.is_own:
        for name in _REVERSE_LOSS:
            if name in values and (name, values[name]) != ("beta", 0):
                raise UserError(
                    f"{name}={values[name]}: {algorithm.label} has no reverse loss. Use "
                    f"{algorithm.symmetric_name}, or leave {name} out."
                )
        values = {"alpha": 1.0, **values, "beta": 0.0}
    return (model or FAMILIES[algorithm.family])(**values)


def resolve_hyperparams(
    algorithm: Algorithm,
    env_id: str,
    *,
    overrides: dict[str, Any],
    profile: str = "controlled",
    path: Path | None = None,
    trust: bool = False,
    n_timesteps: int | None = None,
) -> tuple[EnvHyperparams, int, list[str]]:
    """Resolve the hyperparameters of a run: its entry in a file, then what the user overrides.

    :param algorithm: The algorithm.
    :param env_id: The environment; one without an entry takes ``atari`` or ``default``.
    :param overrides: Hyperparameters by name that take precedence over the file's.
    :param profile: ``"controlled"``, or another set of deviations that entries name under ``profiles``.
    :param path: A file of the user's own, which all algorithms of a sweep share: keys that another family or
        only symmetric algorithms have are left out. None takes the algorithm's in ``configs/hyperparams``.
    :param trust: Whether this file may name Python code of the user's, to be imported for training.
    :param n_timesteps: Training steps that take precedence over the file's.
    :return: The hyperparameters, the number of training steps, and lines to tell the user.
    :raises UserError: For a mistake in the file or an override, saying where.
    """
    shipped = configs_dir() / "hyperparams" / f"{algorithm.hyperparams_name}.yml"
    file = read_config(shipped if path is None else path)
    notes = []
    key = env_id if env_id in file.data else "atari" if is_atari(env_id) else "default"
    if path is not None and key not in file.data:
        raise UserError(f"{path} has no entry {env_id} and no {key}. Add one.{nearest(env_id, file.data)}")
    if key == "default":
        notes.append(
            f"{env_id} has no entry in {file.path.name}: its hyperparameters are those of `default`."
        )
    entry = file.data.get(key)
    if not isinstance(entry, dict):
        raise file.error([key], "must be a mapping of hyperparameters.")
    values = {name: value for name, value in entry.items() if name != "profiles"}
    profiles = entry.get("profiles", {})
    if not isinstance(profiles, dict) or not all(
        isinstance(deviation, dict) for deviation in profiles.values()
    ):
        raise file.error([key, "profiles"], "must be a mapping of names to mappings of hyperparameters.")
    values |= profiles.get(profile, {})
    if path is not None:
        values = of_algorithm(algorithm, values)
    elif algorithm.is_own:
        values = {name: value for name, value in values.items() if name in _OF_ENVIRONMENTS}
        notes.append(
            f"{algorithm.name} has the default hyperparameters of its class; n_timesteps, n_envs, normalize, "
            f"frame_stack and policy are those of PPO in {file.path.name}."
        )
    own_timesteps = values.pop("n_timesteps", None)
    try:
        n_timesteps = _positive_steps(n_timesteps if own_timesteps is None else own_timesteps)
    except ValueError as error:
        raise file.error([key, "n_timesteps"], str(error)) from None
    known = keys_of(algorithm)
    if algorithm.is_own:
        for name in overrides:
            if name not in known:
                raise UserError(
                    f"Hyperparameter {name}: {algorithm.name} has no such argument.{nearest(name, known)}"
                )
    try:
        of_file = check_hyperparams(algorithm, values)
    except ValidationError as error:
        raise file.validation_error(error, known, [key]) from None
    for name, where in of_file.named_code().items():
        if not trust:
            raise file.error([key, *where.split(".")], untrusted(name))
    for name, reason in of_file.without_effect(values).items():
        raise file.error([key, *name.split(".")], _no_effect(reason))
    try:
        hyperparams = check_hyperparams(algorithm, values | overrides)
    except ValidationError as error:
        raise user_error(error, known, "Hyperparameter") from None
    for name, reason in hyperparams.without_effect(values | overrides).items():
        raise UserError(f"Hyperparameter {name}: {_no_effect(reason)}")
    return hyperparams, n_timesteps, notes


def _no_effect(reason: str) -> str:
    return f"has no effect, because {reason}. Leave it out, or change that."


def _positive_steps(value: Any) -> int:
    number = _whole_number(value) if value is not None else None
    if not isinstance(number, (int, float)) or number < 1 or number != int(number):
        raise ValueError(f"{value!r}: the number of training steps is needed, a whole number of at least 1.")
    return int(number)
