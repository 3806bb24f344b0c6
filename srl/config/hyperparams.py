"""Models of the hyperparameters of each family of algorithms, with SB3's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from srl.config.values import (
    NetArch,
    Number,
    OptimizerKwargs,
    Positive,
    PositiveSchedule,
    Probability,
    Schedule,
    Strict,
    WholeNumber,
)

ATARI_WRAPPER = "stable_baselines3.common.atari_wrappers.AtariWrapper"


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

    net_arch: NetArch = None
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
    optimizer_kwargs: OptimizerKwargs = None

    @field_validator("activation_fn", mode="before")
    @classmethod
    def _zoo_name(cls, value: Any) -> Any:
        names = {"nn.Tanh": "tanh", "nn.ReLU": "relu", "nn.ELU": "elu", "nn.LeakyReLU": "leaky_relu"}
        return names.get(value, value) if isinstance(value, str) else value


class OwnPolicyOptions(PolicyOptions):
    """Arguments of the policy of another package's algorithm; all names are accepted."""

    model_config = ConfigDict(extra="allow")

    net_arch: Any = None


class EnvHyperparams(Strict):
    """Hyperparameters of the environment and of the policy's network."""

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
        """Names and arguments of the wrappers without AtariWrapper, which every Atari game has."""
        named = [(w, {}) if isinstance(w, str) else next(iter(w.items())) for w in self.env_wrapper or ()]
        return tuple((name, kwargs) for name, kwargs in named if name != ATARI_WRAPPER)

    def named_code(self) -> dict[str, str]:
        """The names of the user's Python code, with the key of each."""
        names = {name: "env_wrapper" for name, _ in self.user_wrappers()}
        extractor = self.policy_kwargs.features_extractor_class
        return names if extractor is None else {**names, extractor: "policy_kwargs.features_extractor_class"}

    def algorithm_kwargs(self) -> dict[str, Any]:
        """The arguments of the algorithm's constructor, with schedules and classes as text."""
        return self.model_dump(exclude=set(EnvHyperparams.model_fields))

    def without_effect(self, given: Mapping[str, Any]) -> dict[str, str]:
        """Find values without effect because of other values, which are rejected.

        :param given: The user's hyperparameters by name.
        :return: The reasons by dotted name; defaults are not included.
        """
        return {}


class OwnHyperparams(EnvHyperparams):
    """Hyperparameters of an algorithm of another package: given arguments of its constructor."""

    model_config = ConfigDict(extra="allow")

    policy_kwargs: OwnPolicyOptions = OwnPolicyOptions()


class Hyperparams(EnvHyperparams):
    """Hyperparameters of both families. Names and defaults are SB3's."""

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
        """Whether there are hidden layers besides those of SB3's network for images, which uses ReLU."""
        arch = self.policy_kwargs.net_arch
        if arch is None:
            return self.policy != "CnnPolicy"
        return any(arch.values()) if isinstance(arch, dict) else bool(arch)


class A2CHyperparams(Hyperparams):
    """Hyperparameters of A2C and SA2C."""

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
    """Hyperparameters of PPO and SPPO."""

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
    """The message for Python code in a file that the command line does not trust."""
    return f"names Python code, {name!r}, which is imported only with --trust-config."
