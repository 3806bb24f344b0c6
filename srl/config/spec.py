"""The spec of a run: everything that determines its result, validated and complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    Field,
    JsonValue,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from srl.config.algorithms import Algorithm, get_algorithm, get_environment_algorithm
from srl.config.compiling import check_choice, resolve_compile
from srl.config.files import user_error
from srl.config.hyperparams import ATARI_WRAPPER, EnvHyperparams, Hyperparams
from srl.config.language_models import hyperparams_model
from srl.config.resolve import PROFILES, resolve_hyperparams
from srl.config.values import Positive, Strict, WholeNumber
from srl.config.variants import NAME
from srl.envs.registration import import_packages, is_atari, registered, resolve_env_id
from srl.envs.reward_noise import is_unknown_process, parse_noise
from srl.envs.spec import BACKENDS, EnvSpec
from srl.errors import UserError, nearest
from srl.precision import Precision, check_precision

#: Values per action dimension that the paper discretizes into.
DEFAULT_BINS = 11
#: Above every time limit of Gymnasium and ale-py, whose games have 27,000 steps at most. Not above
#: :data:`srl.envs.replay.MAX_RECORDED_STEPS`, so that runs have checkpoints whose evaluations are truncated.
DEFAULT_EVAL_MAX_EPISODE_STEPS = 50_000

#: The context of a validation that accepts reward noise of modules that are not imported.
LENIENT = "lenient"

Seed = Annotated[WholeNumber, Field(ge=0, lt=2**31)]


class RunSpec(Strict):
    """One run: environment, algorithm, noise and seed, with everything else that its result depends on.

    Equal specs give equal results. ``device``, ``threads`` and ``env_backend`` say how the run is executed,
    which is part of that.
    """

    #: 2 since all random streams come from :mod:`srl.envs.seeding`. Format 1, which is still read, derived
    #: them from the seed in another way, so that its results differ.
    format: Literal[1, 2] = 2
    algo: str
    #: The name of its column, if it is not the algorithm's.
    variant: Annotated[str, Field(pattern=NAME)] | None = None
    env: str
    #: Modules of the user that register environments with Gymnasium, imported first.
    gym_packages: list[str] = Field(default_factory=list)
    #: Arguments of the environment's constructor.
    env_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    #: Time limit of an episode in steps of the agent; None keeps the environment's own.
    max_episode_steps: Positive | None = None
    noise: str = "none"
    seed: Seed
    n_timesteps: Positive
    #: Values per action dimension; None for an algorithm that takes the action space as it is.
    bins: Annotated[WholeNumber, Field(ge=2)] | None = None
    profile: str = "controlled"
    #: Training steps between evaluations.
    eval_freq: Positive = 5000
    n_eval_episodes: Positive = 10
    #: Parallel environments of an evaluation.
    n_eval_envs: Positive = 10
    eval_deterministic: bool = True
    #: Steps of the agent after which an episode of an evaluation is truncated.
    eval_max_episode_steps: Positive = DEFAULT_EVAL_MAX_EPISODE_STEPS
    device: str = "cpu"
    #: Threads of torch, where they change sums in the last bits, and of native environments.
    threads: Positive = 1
    #: Where environments come from; see docs/environments.md.
    env_backend: Literal["gymnasium", "native"] = "gymnasium"
    #: Whether it trains as a member of a population, see :mod:`srl.training.stacked`.
    stacked: bool = False
    #: Whether the update is compiled, which changes last bits.
    compile_update: bool = False
    #: Whether MLPs act in NumPy where SB3's last bits are kept otherwise, see :mod:`srl.acting`.
    numpy_acting: bool = False
    #: In which features extractors compute, see :mod:`srl.precision`.
    precision: Precision = "float32"
    if TYPE_CHECKING:
        # An algorithm of another package has OwnHyperparams, and is trained by code that knows no others
        hyperparams: Hyperparams
    else:
        hyperparams: SerializeAsAny[EnvHyperparams]

    @field_validator("algo")
    @classmethod
    def _canonical_algo(cls, value: str) -> str:
        return get_algorithm(value).name

    @field_validator("noise")
    @classmethod
    def _canonical_noise(cls, value: str, info: ValidationInfo) -> str:
        if info.context == LENIENT and is_unknown_process(value):
            return value
        process = parse_noise(value)
        return "none" if process is None else str(process)

    @model_validator(mode="before")
    @classmethod
    def _family(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("hyperparams"), dict):
            model = hyperparams_model(get_algorithm(str(data.get("algo"))))
            data = {**data, "hyperparams": model(**data["hyperparams"])}
        return data

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm that ``algo`` names."""
        return get_algorithm(self.algo)

    @property
    def path(self) -> str:
        """The run's folder inside a sweep's: environment, algorithm or variant, noise, seed."""
        column = safe_name(self.variant or self.algo)
        return "/".join([safe_name(self.env), column, safe_name(self.noise), f"seed-{self.seed}"])

    def named_code(self) -> dict[str, str]:
        """The user's own Python code that the run needs: the key that names it, and its name."""
        names = {f"gym_packages.{index}": name for index, name in enumerate(self.gym_packages)}
        if ":" in self.env:
            names["env"] = self.env
        if self.algorithm.is_own:
            names["algo"] = self.algo
        return names | {f"hyperparams.{key}": name for name, key in self.hyperparams.named_code().items()}

    def env_spec(self) -> EnvSpec:
        """The specification of the run's environments for :mod:`srl.envs`."""
        normalize = self.hyperparams.normalize
        return EnvSpec(
            self.env,
            seed=self.seed,
            n_envs=self.hyperparams.n_envs,
            bins=self.bins,
            normalize=None if normalize is None else normalize.model_dump(),
            gamma=getattr(self.hyperparams, "gamma", 0.99),
            frame_stack=self.hyperparams.frame_stack,
            noise=self.noise,
            env_kwargs=self.env_kwargs,
            max_episode_steps=self.max_episode_steps,
            wrappers=self.hyperparams.user_wrappers(),
            packages=tuple(self.gym_packages),
            backend=self.env_backend,
            n_threads=self.threads,
            eval_max_episode_steps=self.eval_max_episode_steps,
        )


def safe_name(text: str) -> str:
    """A text as the name of a folder, with dashes for special characters of shells and file systems."""
    return "".join(
        character if character.isalnum() or character in "._-" else "-" for character in text
    ).strip(".")


def make_run_spec(
    algo: str,
    env: str,
    seed: int,
    *,
    variant: str | None = None,
    noise: str = "none",
    n_timesteps: int | None = None,
    bins: int | None = None,
    profile: str = "controlled",
    device: str = "auto",
    threads: int = 1,
    env_backend: str = "gymnasium",
    eval_freq: int | None = None,
    n_eval_episodes: int = 10,
    compile: str = "off",
    precision: str = "float32",
    eval_max_episode_steps: int | None = None,
    gym_packages: Sequence[str] = (),
    env_kwargs: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
    hyperparams_file: Path | None = None,
    trust_file: bool = False,
    overrides: dict[str, Any] | None = None,
) -> tuple[RunSpec, list[str]]:
    """Make a complete spec from a user's options; other parameters are fields of :class:`RunSpec`.

    :param algo: The algorithm's name, or ``package.module:Class`` for a class with the interface of SB3's.
    :param env: The environment's id, also one that Gymnasium has renamed.
    :param n_timesteps: Training steps; None takes the hyperparameter file's.
    :param bins: Values per action dimension for a discretized algorithm; None takes 11.
    :param profile: ``"controlled"`` or ``"authors"``.
    :param device: ``"auto"`` selects a GPU for image observations if there is one, else the CPU.
    :param eval_freq: Training steps between evaluations; None takes 10,000 on Atari, else 5,000.
    :param n_eval_episodes: Episodes of an evaluation, in at most 10 parallel environments.
    :param compile: Whether the update is compiled: ``"on"``, ``"off"``, or ``"auto"`` for runs that are long
        enough to repay it, if there is a compiler.
    :param eval_max_episode_steps: Steps of the agent after which an episode of an evaluation is truncated;
        None takes 50,000, or the time limit that the environment is registered with if that is higher.
    :param hyperparams_file: Hyperparameters in the format of rl-baselines3-zoo's files; None takes those
        that srl ships.
    :param trust_file: Whether Python code that this file names is imported.
    :param overrides: Hyperparameters that take precedence over the file's.
    :return: The spec, and lines for the user.
    :raises UserError: If an option is invalid.
    """
    algorithm = get_environment_algorithm(algo)
    import_packages(gym_packages)
    env_id, renamed = resolve_env_id(env)
    if profile not in PROFILES:
        raise UserError(
            f"There is no profile {profile!r}. Known: {', '.join(PROFILES)}.{nearest(profile, PROFILES)}"
        )
    if env_backend not in BACKENDS:
        raise UserError(
            f"There is no env_backend {env_backend!r}. Known: {', '.join(BACKENDS)}."
            f"{nearest(env_backend, BACKENDS)}"
        )
    if bins is not None and not algorithm.discretized:
        advice = f"Use d{algorithm.name} for discretized actions, or leave bins out."
        if algorithm.is_own:
            advice = "Leave bins out."
        raise UserError(f"bins={bins}: {algorithm.label} does not discretize actions. {advice}")
    if algorithm.is_own and precision == "bf16":
        raise UserError(f"precision='bf16': {algorithm.label} computes in float32. Leave precision out.")
    check_choice(compile)
    hyperparams, file_timesteps, notes = resolve_hyperparams(
        algorithm,
        env_id,
        overrides=overrides or {},
        profile=profile,
        path=hyperparams_file,
        trust=trust_file,
        n_timesteps=n_timesteps,
    )
    atari = is_atari(env_id)
    if ATARI_WRAPPER in (hyperparams.env_wrapper or ()) and not atari:
        raise UserError(f"env_wrapper={ATARI_WRAPPER}: {env_id} is not an Atari game. Leave it out.")
    resolved_device = resolve_device(device, hyperparams.policy)
    check_precision(precision, resolved_device.partition(":")[0])
    n_timesteps = file_timesteps if n_timesteps is None else n_timesteps
    compile_update, compile_notes = False, list[str]()
    if isinstance(hyperparams, Hyperparams):
        compile_update, compile_notes = resolve_compile(compile, hyperparams, n_timesteps, resolved_device)
    elif compile == "on":
        compile_notes = [f"{algorithm.label} is not compiled: it is of another package."]
    try:
        spec = RunSpec(
            algo=algorithm.name,
            variant=variant,
            env=env_id,
            noise=noise,
            seed=seed,
            gym_packages=list(gym_packages),
            env_kwargs=env_kwargs or {},
            max_episode_steps=max_episode_steps,
            n_timesteps=n_timesteps,
            bins=(DEFAULT_BINS if bins is None else bins) if algorithm.discretized else None,
            profile=profile,
            eval_freq=(10_000 if atari else 5_000) if eval_freq is None else eval_freq,
            n_eval_episodes=n_eval_episodes,
            n_eval_envs=min(10, n_eval_episodes),
            eval_max_episode_steps=(
                max(DEFAULT_EVAL_MAX_EPISODE_STEPS, registered(env_id).max_episode_steps or 0)
                if eval_max_episode_steps is None
                else eval_max_episode_steps
            ),
            eval_deterministic=not atari,
            device=resolved_device,
            threads=threads,
            env_backend=env_backend,  # type: ignore[arg-type]
            compile_update=compile_update,
            precision=precision,  # type: ignore[arg-type]
            hyperparams=hyperparams,  # type: ignore[arg-type]
        )
    except ValidationError as error:
        raise user_error(error) from None
    return spec, ([renamed] if renamed else []) + notes + compile_notes


def resolve_device(device: str, policy: str) -> str:
    """Resolve a device name; ``"auto"`` is replaced.

    :param device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    :param policy: The policy's name: networks for images train on a GPU if there is one, others on the CPU,
        which is faster for them.
    :raises UserError: For an unknown device, or a missing GPU.
    """
    if device == "cpu" or (device == "auto" and policy != "CnnPolicy"):
        return "cpu"
    if device != "auto" and device != "cuda" and not (device.startswith("cuda:") and device[5:].isdecimal()):
        raise UserError(f"device={device!r} is not one of auto, cpu, cuda, cuda:N.")
    import torch as th

    n_gpus = th.cuda.device_count() if th.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if n_gpus else "cpu"
    if n_gpus <= int(device[5:] or 0):
        raise UserError(
            f"device={device!r}: torch {th.__version__} sees {n_gpus} CUDA devices here. Use --device cpu, "
            "or install a driver and a CUDA build of torch."
        )
    return device
