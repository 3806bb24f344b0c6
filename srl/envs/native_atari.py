"""Atari games emulated and preprocessed in C++ threads of ale-py.

``docs/environments.md`` measures how they differ from Gymnasium's games.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from srl.envs.registration import check_rom, is_atari, resolve_env_id
from srl.envs.seeding import small_seed
from srl.envs.spec import EnvSpec
from srl.errors import UserError

# As SB3's AtariWrapper does by default
NOOP_MAX = 30
FRAME_SKIP = 4
SIZE = 84
#: ale-py stores a seed as a non-negative C++ int: seeds are taken modulo this number.
_N_SEEDS = 2**31

# Arguments in Gymnasium's registry that the C++ environment supports
_KNOWN = {"game", "repeat_action_probability", "full_action_space", "frameskip", "max_num_frames_per_episode"}


class AtariNativeVecEnv(VecEnv):
    """Atari games, emulated and preprocessed by ale-py's ``AtariVectorEnv``.

    It replaces SB3's ``AtariWrapper``, ``VecFrameStack`` and ``VecTransposeImage``: four frames per step with
    the maximum of the last two, gray frames of 84 x 84 stacked with the oldest first, signs of rewards,
    no-ops at the start of a game, an episode for each life. There are two differences, besides some gray
    values: FIRE is pressed for one frame at the start of a game, before the no-ops, and after a lost life the
    game continues with the next action, whereas SB3 takes a no-op and presses FIRE.

    Infos are empty except at the end of an episode, where they have ``terminal_observation``,
    ``TimeLimit.truncated`` and, at the end of a game, ``episode`` as SB3's Monitor writes it.

    :param env_id: Id of one of ale-py's games.
    :param num_envs: Number of games.
    :param n_stack: Frames in an observation.
    :param n_threads: Number of games that are emulated at the same time.
    :param max_frames: Frames after the first action at which a game is truncated; None for the id's limit,
        108,000.
    :param monitor_dir: Folder for ``i.monitor.csv``, with whole games, raw rewards, and frames as length.
    :raises UserError: If the ROM is missing, or the id has arguments that are not supported in C++.
    :raises OSError: If the records cannot be written; also from ``step``.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        n_stack: int = 1,
        *,
        n_threads: int = 1,
        max_frames: int | None = None,
        monitor_dir: str | None = None,
    ) -> None:
        self.spec = gym.spec(env_id)
        kwargs = self.spec.kwargs
        check_rom(env_id)
        unknown = sorted(key for key in kwargs if key not in _KNOWN)
        if unknown:
            raise UserError(
                f"{env_id} has no native version, because of its {', '.join(unknown)}. Use "
                f"env_backend='gymnasium', or a game's NoFrameskip-v4 id."
            )
        # The emulator alone, without the checks of the vector environment's send() in each step
        self._emulator: Any = AtariVectorEnv(
            kwargs["game"],
            num_envs,
            num_threads=min(n_threads, num_envs),
            repeat_action_probability=kwargs.get("repeat_action_probability", 0.0),
            full_action_space=kwargs.get("full_action_space", False),
            max_num_frames_per_episode=max_frames or kwargs["max_num_frames_per_episode"],
            autoreset_mode=AutoresetMode.SAME_STEP,
            img_height=SIZE,
            img_width=SIZE,
            grayscale=True,
            # Frames are stacked here, where the stack is cleared at each lost life
            stack_num=1,
            frameskip=FRAME_SKIP,
            maxpool=True,
            # An exclusive upper bound, including FIRE
            noop_max=NOOP_MAX + 1,
            use_fire_reset=True,
            # It would start a new game at each lost life
            episodic_life=False,
            # Raw rewards are for the records
            reward_clipping=False,
        ).ale
        self._n_actions = len(self._emulator.get_action_set())
        super().__init__(
            num_envs, spaces.Box(0, 255, (n_stack, SIZE, SIZE), np.uint8), spaces.Discrete(self._n_actions)
        )
        self._began = time.time()
        self._writers: list[ResultsWriter] = []
        if monitor_dir is not None:
            header: dict[str, float | str] = {"t_start": self._began, "env_id": env_id}
            files = [str(Path(monitor_dir) / str(index)) for index in range(num_envs)]
            self._writers = [ResultsWriter(file, header) for file in files]
        self._strengths = np.ones(num_envs, np.float32)  # full deflection of the joystick
        self._observations = np.zeros((num_envs, n_stack, SIZE, SIZE), np.uint8)
        self._returns = np.zeros(num_envs, np.int64)
        self._lives = np.zeros(num_envs, np.int32)
        #: Frames of each emulator before its current game.
        self._frames_before = np.zeros(num_envs, np.int32)
        self._in_flight = False

    def start_streams(self, sequences: Sequence[np.random.SeedSequence]) -> None:
        """Start a random stream in each environment at the next reset, unless ``seed`` is called before."""
        self._seeds = [small_seed(sequence) for sequence in sequences]

    def reset(self) -> np.ndarray:
        """Start a new game in each environment, from its seed if there is one."""
        if self._in_flight:
            self.step_wait()
        seeds = [-1 if seed is None else seed % _N_SEEDS for seed in self._seeds]
        self._reset_seeds()
        self._reset_options()
        screens, info = self._emulator.reset(np.arange(self.num_envs), np.array(seeds))
        self._observations = np.zeros_like(self._observations)
        self._observations[:, -1] = screens[:, 0]
        self._returns[:] = 0
        self._lives = info["lives"]
        self._frames_before = info["frame_number"] - info["episode_frame_number"]
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self._observations

    def step_async(self, actions: np.ndarray) -> None:
        chosen = np.asarray(actions)
        # The emulator would never answer to an unknown action
        if chosen.min() < 0 or chosen.max() >= self._n_actions:
            raise IndexError(f"Actions are {chosen.tolist()} but must be in [0, {self._n_actions}).")
        self._emulator.send(chosen, self._strengths)
        self._in_flight = True
        # Returned observations must not change, so that the stack moves to a new array
        observations = np.empty_like(self._observations)
        observations[:, :-1] = self._observations[:, 1:]
        self._observations = observations

    def step_wait(self) -> VecEnvStepReturn:
        screens, rewards, over, truncated, info = self._emulator.recv()
        self._in_flight = False
        self._observations[:, -1] = screens[:, 0]
        self._returns += rewards
        lives = info["lives"]
        ended = over | truncated
        # Some games have 0 lives for some time before their end
        dones = ended | ((lives > 0) & (lives < self._lives))
        self._lives = lives
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(dones).tolist():
            # After the end of a game, the next one has already started
            observation = self._observations[index]
            last = observation.copy()
            if ended[index]:
                last[-1] = info["final_obs"][index, 0]
                infos[index]["episode"] = self._end_game(int(index), info)
            infos[index]["terminal_observation"] = last
            infos[index]["TimeLimit.truncated"] = bool(truncated[index])
            observation[:-1] = 0
        return self._observations, np.sign(rewards, dtype=np.float32), dones, infos

    def close(self) -> None:
        self._emulator = None
        for writer in self._writers:
            writer.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return ``spec`` or ``render_mode`` (None: there is no rendering) of environments.

        :raises AttributeError: For any other attribute.
        """
        known = {"spec": self.spec, "render_mode": None}
        if attr_name not in known:
            raise AttributeError(
                f"Native environments have no attribute {attr_name!r}, only {', '.join(known)}."
            )
        return [known[attr_name] for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise AttributeError(f"Native environments have no attribute {attr_name!r} to set.")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        raise AttributeError(f"Native environments have no method {method_name!r}.")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Report a Monitor, since the infos have its ``episode``."""
        return [issubclass(Monitor, wrapper_class) for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        return [None] * self.num_envs

    def _end_game(self, index: int, info: dict[str, Any]) -> dict[str, float]:
        """Record the end of a game.

        :param index: The environment.
        :param info: The emulators' infos on games that continue or have started.
        :return: Raw return, length in frames, and seconds since the construction, as in Monitor.
        """
        frames_before = info["frame_number"][index] - info["episode_frame_number"][index]
        episode = {
            "r": round(float(self._returns[index]), 6),
            "l": int(frames_before - self._frames_before[index]),
            "t": round(time.time() - self._began, 6),
        }
        if self._writers:
            self._writers[index].write_row(episode)
        self._returns[index] = 0
        self._frames_before[index] = frames_before
        return episode


def make_native(
    spec: EnvSpec, n_envs: int, monitor_dir: str | None, limit: int | None = None
) -> AtariNativeVecEnv:
    """Make native environments, including the replacements of Monitor and preprocessing.

    :param spec: The description of the environment; ``n_threads`` is the number of threads.
    :param n_envs: Number of environments.
    :param monitor_dir: Folder for the records of episodes, ``i.monitor.csv``; None writes none.
    :param limit: Length after which an episode is truncated, in frames on Atari; None for the environment's.
    :return: The environments, with stacked frames, channels first.
    :raises UserError: If there is no native version of the environment, or it does not support the spec's
        arguments.
    """
    env_id, _ = resolve_env_id(spec.env_id)
    if not is_atari(env_id):
        raise UserError(
            f"{env_id} has no native version: only Atari games have one. Use env_backend='gymnasium'."
        )
    if spec.env_kwargs:
        raise UserError(
            f"{env_id} with env_backend='native' takes no env_kwargs, but has {spec.env_kwargs}. Leave them "
            "out, or use env_backend='gymnasium'."
        )
    if spec.wrappers:
        raise UserError(
            f"{env_id} with env_backend='native' takes no wrappers, but has {spec.wrappers[0][0]}. Leave it "
            "out, or use env_backend='gymnasium'."
        )
    if spec.bins is not None:
        raise UserError(
            f"The actions of {env_id} cannot be discretized: they are Discrete. Leave out the bins."
        )
    return AtariNativeVecEnv(
        env_id, n_envs, spec.frame_stack, n_threads=spec.n_threads, max_frames=limit, monitor_dir=monitor_dir
    )
