"""How much disk space runs take: known before they start, from their specs alone.

Figures are of real runs' files, rounded up; each file counts in whole blocks of a file system. What cannot be
known before a run, how long its episodes are, is assumed from what random actions give, see
:func:`finished_bytes`.
"""

from __future__ import annotations

import errno
import heapq
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR

from gymnasium.envs.registration import registry

from srl.config.hyperparams import A2CHyperparams, PPOHyperparams
from srl.config.spec import RunSpec
from srl.envs.registration import is_atari
from srl.errors import OutOfSpace, UserError
from srl.sweep.engines import Job
from srl.training.callbacks import eval_interval
from srl.training.run import LOG_INTERVAL

#: What file systems hand out at once.
_BLOCK = 4096
#: Checkpoints that lie there at once: the last two, and the next while it is written.
_CHECKPOINTS_AT_ONCE = 3


@dataclass(frozen=True)
class _Environment:
    """What the sizes of a run's files depend on in its environment."""

    #: Numbers in an observation.
    observation: int
    #: Dimensions of a Box action space, or actions of a Discrete one.
    actions: int
    #: Mean length of episodes of random actions, rounded down.
    episode: int
    discrete: bool = False


_ENVIRONMENTS = {
    "Ant-v4": _Environment(27, 8, 100),
    "HumanoidStandup-v4": _Environment(376, 17, 1000),
    "Walker2d-v4": _Environment(17, 6, 20),
    "Hopper-v4": _Environment(11, 3, 20),
    "HalfCheetah-v4": _Environment(17, 6, 1000),
    "Swimmer-v4": _Environment(8, 2, 1000),
    "InvertedDoublePendulum-v4": _Environment(11, 1, 6),
    "BipedalWalker-v3": _Environment(24, 4, 60),
    "LunarLanderContinuous-v3": _Environment(8, 2, 70),
    "LunarLander-v3": _Environment(8, 4, 70, discrete=True),
    "CartPole-v1": _Environment(4, 2, 20, discrete=True),
    "Acrobot-v1": _Environment(6, 3, 400, discrete=True),
    "MountainCar-v0": _Environment(2, 3, 200, discrete=True),
    "MountainCarContinuous-v0": _Environment(2, 1, 900),
    "Pendulum-v1": _Environment(3, 1, 200),
    "Humanoid-v4": _Environment(376, 17, 20),
    "InvertedPendulum-v4": _Environment(4, 1, 6),
    "Reacher-v4": _Environment(11, 2, 50),
}
#: Games: all 18 actions, and games lost as fast as can be.
_ATARI = _Environment(84 * 84, 18, 100, discrete=True)
#: Any other environment, as large as those that there are.
_OTHER = _Environment(400, 18, 20)
#: Side and channels of the images of games, and of others.
_GAME_IMAGE, _OTHER_IMAGE = (84, 1), (96, 3)
#: Agent's steps after which ale-py ends a game, and steps of an episode that has no limit.
_GAME_LIMIT, _NO_LIMIT = 27_000, 10_000
#: Steps in which a run may learn nothing that makes episodes longer, and how much longer they are then.
_LEARNING, _LEARNED = 200_000, 3

#: How the system says that there is no room, to a program and in words.
_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_FULL = tuple(map(os.strerror, _FULL_NUMBERS))

# Bytes, measured
_TENSOR = 350  # that torch.save adds
_ARRAY = 300  # that numpy.savez adds
_MODEL = 16_000  # of a model.zip besides tensors and observations
_CSV_CELL, _EVENT, _MONITOR_LINE = 14, 55, 30
_STATUS_FILE = 170  # for each file of a finished run that its status names
_CHECKPOINT = 35_000  # of a checkpoint besides networks, environments, logs and evaluations
_ENVIRONMENT = 1_000  # of an environment's random generator and statistics
_EMULATOR = 15_000  # of a game's
# Figures that are logged at each update, at each line, and at each evaluation
_FIGURES = {"a2c": 10, "ppo": 15, "own": 30}
_LINE_FIGURES, _EVALUATION_FIGURES = 6, 4
#: For the sweep's own files, and for what others write meanwhile.
_RESERVE, _RESERVE_OF_A_RUN = 5_000_000, 1_000

_FREE_UNKNOWN = sys.maxsize


def run_bytes(spec: RunSpec) -> int:
    """The bytes that a run's folder takes at its peak: finished, with its last checkpoints still there.

    :param spec: The run.
    """
    return finished_bytes(spec) + _CHECKPOINTS_AT_ONCE * checkpoint_bytes(spec)


def finished_bytes(spec: RunSpec) -> int:
    """The bytes that a run's folder takes when it is done.

    Each training episode is a line of a file. Episodes are taken to be as long as with random actions for the
    first 200,000 steps, and three times as long after that, up to the environment's limit; in games, 100
    steps at first.

    :param spec: The run.
    """
    hyperparams = spec.hyperparams
    n_envs = hyperparams.n_envs
    environment = _environment(spec)
    network = _network(spec)
    observation = _observation_bytes(spec)
    # Bounds of the observation space, and its last observations, as text
    model = _MODEL + network.saved + (4 + n_envs) * observation * 4 // 3
    lines, figures = _logged(spec)
    n_episodes = _episodes(spec, environment) // n_envs + 1
    files = [
        model,
        model,  # the best
        checkpoint_bytes(spec),  # the final state
        _progress_bytes(lines, figures),
        200 + figures * _EVENT,
        800 + _evaluations(spec) * 8 * (1 + 2 * spec.n_eval_episodes),
        2_000 + (n_envs + 7) * _STATUS_FILE,
        *(3 * [_BLOCK]),  # spec, versions, output
        *(2 * [_BLOCK]),  # the folder, and that of monitor files
    ]
    if hyperparams.normalize is not None:
        files += 2 * [2_500 + (5 + n_envs) * observation]
    return sum(map(_in_blocks, files)) + n_envs * _in_blocks(100 + n_episodes * _MONITOR_LINE)


def checkpoint_bytes(spec: RunSpec) -> int:
    """The bytes that one checkpoint of a run takes at the most.

    :param spec: The run. Native environments keep no checkpoints; they are counted all the same, since a
        sweep may be gone on with otherwise.
    """
    hyperparams = spec.hyperparams
    environment = _environment(spec)
    limit = _episode_limit(spec)
    observation = _observation_bytes(spec)
    n_envs = hyperparams.n_envs
    one_frame = observation // hyperparams.frame_stack
    own = _ENVIRONMENT + one_frame + (_EMULATOR if is_atari(spec.env) else 0)
    # Observations of both environments as the algorithm sees them, its own copy, and averages
    environments = (n_envs + spec.n_eval_envs) * (own + observation) + (n_envs + 2) * observation
    # When an evaluation's last episode ends, others have begun anew, unless all are equally long
    left_over = 0 if environment.episode >= limit else limit // 4
    size = 8 if environment.discrete or spec.bins is not None else 4
    dimensions = 1 if environment.discrete else environment.actions
    actions = (n_envs * limit + spec.n_eval_envs * left_over) * size * dimensions
    lines, figures = _logged(spec)
    # Returns and lengths as text
    evaluations = _evaluations(spec) * (60 + 26 * spec.n_eval_episodes)
    logs = _progress_bytes(lines, figures) + n_envs * 120
    return _in_blocks(_CHECKPOINT + _network(spec).kept + environments + actions + evaluations + logs)


def free_bytes(path: Path) -> int:
    """The free space that a user who is not root has in a folder; quotas are not known.

    :param path: The folder, or one that is yet to be made.
    :return: Bytes; the largest number where the file system does not say how large it is.
    :raises UserError: If the file system cannot be asked.
    """
    nearest = path.absolute()
    while not os.path.exists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        usage = shutil.disk_usage(nearest)
    except OSError as error:
        raise UserError(f"{nearest}: its free space cannot be read: {error.strerror}.") from None
    return usage.free if usage.total > 0 else _FREE_UNKNOWN


def needed_bytes(specs: Sequence[RunSpec], n_at_once: int) -> int:
    """The bytes that runs take: all of them finished, and checkpoints of those that train at once.

    :param specs: The runs.
    :param n_at_once: How many of them train at once: all members of the populations that do.
    :return: An upper estimate, with a small reserve; 0 for no runs.
    """
    if not specs:
        return 0
    checkpoints = heapq.nlargest(n_at_once, map(checkpoint_bytes, specs))
    reserve = _RESERVE + _RESERVE_OF_A_RUN * len(specs)
    return sum(map(finished_bytes, specs)) + _CHECKPOINTS_AT_ONCE * sum(checkpoints) + reserve


def check_space(
    root: Path, jobs: Sequence[Job], n_at_once: int, *, or_ignore: bool = False
) -> tuple[int, int]:
    """See that there is room for runs; nothing is written.

    :param root: The folder that they lie in; it need not exist.
    :param jobs: The runs to do.
    :param n_at_once: See :func:`needed_bytes`.
    :param or_ignore: Whether to go on where there is not.
    :return: The bytes that are needed, less what unfinished runs have there already, and those that are free.
    :raises UserError: If fewer are free than needed.
    """
    needed, free = _still_needed(jobs, n_at_once), free_bytes(root)
    if free < needed and not or_ignore:
        runs = "The run needs" if len(jobs) == 1 else f"The {len(jobs):,} runs to do need"
        raise UserError(
            f"{root}: too little disk space. {runs} up to {size(needed)}, and {size(free)} are free there, "
            f"{size(needed - free)} too little. Make room, or name a folder on another disk with --out, or "
            "use --ignore-space; nothing was written."
        )
    return needed, free


def out_of_space(root: Path, jobs: Sequence[Job], n_at_once: int) -> OutOfSpace:
    """What to raise when a disk is full; the arguments are :func:`check_space`'s."""
    return OutOfSpace(
        f"the disk of {root} is full: pending runs need up to {size(_still_needed(jobs, n_at_once))} more, "
        f"and {size(free_bytes(root))} is free. Free up space and rerun the command."
    )


def says_full(reason: str) -> bool:
    """Whether a run's reason is that a disk is full."""
    return any(words in reason for words in _FULL)


@contextmanager
def naming_full_disk(root: Path, jobs: Sequence[Job], n_at_once: int) -> Iterator[None]:
    """Do something that writes; the arguments are :func:`check_space`'s.

    :raises OutOfSpace: If the disk is full, in place of the system's own error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_NUMBERS:
            raise
        raise out_of_space(root, jobs, n_at_once) from None


def _still_needed(jobs: Sequence[Job], n_at_once: int) -> int:
    needed = needed_bytes([job.spec for job in jobs], n_at_once)
    return max(needed - sum(min(_taken(job.path), run_bytes(job.spec)) for job in jobs), 0)


def size(n_bytes: int) -> str:
    """A number of bytes for people, such as 640 kB or 1.3 GB."""
    value, unit = float(n_bytes), "byte" if n_bytes == 1 else "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB", "EB"):
        if round(value) < 1000:
            break
        value, unit = value / 1000, larger
    # 9.96 would be 10.0
    digits = 0 if unit.startswith("byte") or value >= 9.95 else 1
    return f"{value:.{digits}f} {unit}"


@dataclass(frozen=True)
class _Network:
    """Bytes of a policy and its optimizer."""

    #: In ``model.zip``.
    saved: int
    #: In a checkpoint.
    kept: int


def _network(spec: RunSpec) -> _Network:
    hyperparams = spec.hyperparams
    options = hyperparams.policy_kwargs
    environment = _environment(spec)
    images = hyperparams.policy == "CnnPolicy"
    extractor, features = 0, environment.observation * hyperparams.frame_stack
    if images:
        side, channels = _GAME_IMAGE if is_atari(spec.env) else _OTHER_IMAGE
        extractor, features = _nature_cnn(side, channels * hyperparams.frame_stack)
    arch = options.net_arch
    if arch is None:
        arch = [] if images else [64, 64]
    policy_layers, value_layers = (arch["pi"], arch["vf"]) if isinstance(arch, dict) else (arch, arch)
    outputs = environment.actions * (1 if spec.bins is None or environment.discrete else spec.bins)
    # Each tensor of the extractor stands under three names; a checkpoint has it as often
    own = _mlp(features, policy_layers, outputs) + _mlp(features, value_layers, 1)
    own += 0 if environment.discrete or spec.bins is not None else environment.actions
    extractors = extractor * (2 if options.share_features_extractor is False else 1)
    names = 2 * (len(policy_layers) + len(value_layers) + 2) + (24 if images else 0)
    moments = _moments(spec)
    n_parameters = own + extractors
    tensors = names * (2 + moments)
    return _Network(
        saved=4 * n_parameters * (1 + moments) + tensors * _TENSOR,
        kept=4 * (own + 3 * extractor + n_parameters * moments) + tensors * _ARRAY,
    )


def _mlp(features: int, layers: Sequence[int], outputs: int) -> int:
    parameters = 0
    for width in (*layers, outputs):
        parameters += (features + 1) * width
        features = width
    return parameters


def _nature_cnn(side: int, channels: int) -> tuple[int, int]:
    """Parameters of SB3's network for images, and features that it has."""
    parameters = 0
    for width, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
        parameters += (channels * kernel**2 + 1) * width
        side, channels = (side - kernel) // stride + 1, width
    return parameters + (side**2 * channels + 1) * 512, 512


def _moments(spec: RunSpec) -> int:
    """Numbers that the optimizer keeps for each parameter."""
    hyperparams = spec.hyperparams
    options = hyperparams.policy_kwargs
    arguments = options.optimizer_kwargs or {}
    default = "RMSprop" if isinstance(hyperparams, A2CHyperparams) and hyperparams.use_rms_prop else "Adam"
    name = options.optimizer_class or default
    moments = {"Adam": 2, "AdamW": 2, "SGD": 0}.get(name, 1)
    return moments + sum(bool(arguments.get(key)) for key in ("momentum", "centered", "amsgrad"))


def _environment(spec: RunSpec) -> _Environment:
    return _ENVIRONMENTS.get(spec.env) or (_ATARI if is_atari(spec.env) else _OTHER)


def _observation_bytes(spec: RunSpec) -> int:
    """Bytes of an observation as the algorithm sees it."""
    frames = spec.hyperparams.frame_stack
    if is_atari(spec.env):
        return _GAME_IMAGE[0] ** 2 * frames
    if spec.hyperparams.policy == "CnnPolicy":
        return _OTHER_IMAGE[0] ** 2 * _OTHER_IMAGE[1] * frames
    return 8 * _environment(spec).observation * frames


def _episode_limit(spec: RunSpec) -> int:
    if is_atari(spec.env):
        return _GAME_LIMIT
    registered = registry.get(spec.env.rpartition(":")[2])
    return (registered and registered.max_episode_steps) or _NO_LIMIT


def _episodes(spec: RunSpec, environment: _Environment) -> int:
    """Training episodes at the most."""
    at_first = min(spec.n_timesteps, _LEARNING)
    longer = max(environment.episode, min(_LEARNED * environment.episode, _episode_limit(spec)))
    return at_first // environment.episode + (spec.n_timesteps - at_first) // longer


def _updates(spec: RunSpec) -> int:
    hyperparams = spec.hyperparams
    return -(-spec.n_timesteps // (_n_steps(spec) * hyperparams.n_envs))


def _n_steps(spec: RunSpec) -> int:
    """The steps of a rollout; of an algorithm of another package that does not say, PPO's."""
    n_steps: int = getattr(spec.hyperparams, "n_steps", PPOHyperparams.model_fields["n_steps"].default)
    return n_steps


def _evaluations(spec: RunSpec) -> int:
    n_steps = _updates(spec) * _n_steps(spec)
    # One more at the end
    return n_steps // eval_interval(spec) + 1


def _logged(spec: RunSpec) -> tuple[int, int]:
    """Lines of the log, and figures in all of them."""
    family = spec.algorithm.family
    updates, evaluations = _updates(spec), _evaluations(spec)
    lines = updates // LOG_INTERVAL[family]
    # What updates gave is logged with whichever line comes next
    of_updates = min(updates, lines + evaluations) * _FIGURES[family]
    figures = of_updates + lines * _LINE_FIGURES + evaluations * _EVALUATION_FIGURES
    return lines + evaluations, figures


def _progress_bytes(lines: int, figures: int) -> int:
    # A header, and a comma for each empty cell
    return 500 + figures * _CSV_CELL + lines * 20


def _in_blocks(n_bytes: int) -> int:
    return -(-n_bytes // _BLOCK) * _BLOCK


def _taken(folder: Path) -> int:
    """Bytes that a folder takes; 0 for what cannot be read. Links are not followed."""
    taken = 0
    folders = [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    taken += status.st_blocks * 512
                    if S_ISDIR(status.st_mode):
                        folders.append(entry.path)
        except OSError:
            pass
    return taken
