"""Atari games in C++ threads of ale-py, with the preprocessing of SB3's ``AtariWrapper``."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from functools import cache
from typing import Any, NamedTuple

import ale_py
import cv2
import gymnasium as gym
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from srl.envs.native import N_SEEDS, NativeVecEnv
from srl.envs.registration import check_rom
from srl.errors import UserError

#: What SB3's AtariWrapper does by default.
NOOP_MAX = 30
FRAME_SKIP = 4
SIZE = 84

# Arguments of an id in Gymnasium's registry that the C++ environment can follow
_KNOWN = {
    "game",
    "repeat_action_probability",
    "full_action_space",
    "frameskip",
    "max_num_frames_per_episode",
}
_NOOP = 0
# Of an emulator with one game: the numbers of its games, and how far the joystick is pushed in each
_ALL = [0]
_FULL_STRENGTH = [1.0]


class _Frame(NamedTuple):
    """What an emulator gives back."""

    #: The screen in RGB, the brighter of the last two frames: shape (height, width, 3), uint8.
    screen: np.ndarray
    reward: int
    #: Whether the game is over, not counting time limits.
    over: bool
    lives: int
    #: Frames since the game began, no-ops included.
    number: int


#: What a game goes through in a step: gives its next action, and is sent what came of it, to the end.
_Course = Generator[int, _Frame, None]


class AtariNativeVecEnv(NativeVecEnv):
    """Atari games, emulated by ale-py's ``AtariVectorEnv``.

    The steps of SB3's ``AtariWrapper``, ``VecFrameStack`` and ``VecTransposeImage`` in one: 1 to 30 no-ops at
    the beginning of a game, four frames to a step with the brighter of the last two, an episode for each
    life, FIRE pressed where there is such an action, grey frames of 84 x 84 stacked with the oldest first,
    signs for rewards. Only the emulation is done in C++. ``AtariVectorEnv`` would do the rest too, but not
    the same: with ``episodic_life`` it begins a new game at each lost life, it presses FIRE for one frame
    in place of two steps, and it makes frames grey before it takes the brighter one.

    Each game has an emulator, and a thread of C++, to itself, because after a lost life one game steps
    alone. The caller's thread keeps as many emulators busy as it may, from ``step_async`` on, and makes
    observations of screens meanwhile.

    :param env_id: Id of one of ale-py's games.
    :param num_envs: Games side by side.
    :param n_stack: Frames in an observation.
    :param n_threads: Games that are emulated at the same time.
    :param noop_max: Most no-ops at the beginning of a game; 0 makes none.
    :param max_frames: Frames after which a game is truncated; None takes the id's, 108,000.
    :param monitor_dir: Folder for ``i.monitor.csv``, with whole games, raw rewards, and frames as length.
    :raises UserError: If the ROM is missing, or the id asks for something that is not there in C++.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        n_stack: int = 1,
        *,
        n_threads: int = 1,
        noop_max: int = NOOP_MAX,
        max_frames: int | None = None,
        monitor_dir: str | None = None,
    ) -> None:
        kwargs = gym.spec(env_id).kwargs
        check_rom(env_id)
        unknown = sorted(key for key in kwargs if key not in _KNOWN)
        if unknown:
            raise UserError(
                f"{env_id} has no native version, because of its {', '.join(unknown)}. Use "
                f"env_backend='gymnasium', or a game's NoFrameskip-v4 id."
            )
        height, width = _screen_size(kwargs["game"])
        self._emulators = [
            AtariVectorEnv(
                kwargs["game"],
                1,
                num_threads=1,
                repeat_action_probability=kwargs.get("repeat_action_probability", 0.0),
                full_action_space=kwargs.get("full_action_space", False),
                # The limit counts no-ops too, which only this side knows
                max_num_frames_per_episode=2**31 - 1,
                # Whole colour frames: brightest, then grey, then small is the order of AtariWrapper
                grayscale=False,
                img_height=height,
                img_width=width,
                stack_num=1,
                frameskip=FRAME_SKIP,
                maxpool=True,
                # It draws from 0 up to below this; 0 is drawn again
                noop_max=noop_max + 1,
                use_fire_reset=False,
                episodic_life=False,
                reward_clipping=False,
            ).ale
            for _ in range(num_envs)
        ]
        actions = self._emulators[0].get_action_set()
        super().__init__(
            env_id,
            num_envs,
            spaces.Box(0, 255, (n_stack, SIZE, SIZE), np.uint8),
            spaces.Discrete(len(actions)),
            monitor_dir,
        )
        self._n_actions = len(actions)
        # SB3 presses FIRE, and then the action after it, wherever there is FIRE
        self._first_actions = (1, 2) if ale_py.Action.FIRE in actions else ()
        self._n_threads = min(n_threads, num_envs)
        self._noop_max = noop_max
        self._max_frames = kwargs["max_num_frames_per_episode"] if max_frames is None else max_frames
        self._observations = np.zeros((num_envs, n_stack, SIZE, SIZE), np.uint8)
        self._lives = [0] * num_envs
        self._returns = [0] * num_envs
        self._between_games = [True] * num_envs
        self._gray = np.empty((height, width), np.uint8)
        #: Of the step in progress: games that have an action to carry out, and games that are emulated.
        self._waiting: deque[tuple[int, int, _Course]] = deque()
        self._in_flight: deque[tuple[int, _Course]] = deque()

    def reset(self) -> np.ndarray:
        self._finish()
        self._observations = np.zeros_like(self._observations)
        self._begin(map(self._begin_episode, range(self.num_envs), self._take_seeds()))
        self._finish()
        self.reset_infos = [{"lives": lives} for lives in self._lives]
        return self._observations

    def step_async(self, actions: np.ndarray) -> None:
        chosen = np.asarray(actions).tolist()
        # An emulator would never answer to an action that it does not have
        if min(chosen) < 0 or max(chosen) >= self._n_actions:
            raise IndexError(f"Actions are {chosen} but must be in [0, {self._n_actions}).")
        # What was given away must not change: the stack moves on into a new array
        observations = np.empty_like(self._observations)
        observations[:, :-1] = self._observations[:, 1:]
        self._observations = observations
        self._rewards = np.zeros(self.num_envs, np.float32)
        self._dones = np.zeros(self.num_envs, bool)
        self._infos: list[dict[str, Any]] = [{} for _ in chosen]
        self._begin(map(self._step_one, range(self.num_envs), chosen))

    def step_wait(self) -> VecEnvStepReturn:
        self._finish()
        return self._observations, self._rewards, self._dones, self._infos

    def close(self) -> None:
        self._waiting.clear()
        self._in_flight.clear()
        self._emulators.clear()
        super().close()

    def _begin(self, courses: Iterable[_Course]) -> None:
        """Set all games on their course, and the first of them to work."""
        for index, course in enumerate(courses):
            self._go_on(index, course)

    def _finish(self) -> None:
        """Bring the games to the end of their courses."""
        while self._in_flight:
            index, course = self._in_flight.popleft()
            frame = self._receive(index)
            # The next one is emulated while this one's screen becomes an observation
            self._send_next()
            self._go_on(index, course, frame)

    def _go_on(self, index: int, course: _Course, frame: _Frame | None = None) -> None:
        """Go on with a game up to its next action, if there is one, which waits for its turn."""
        try:
            # None begins it
            action = course.send(frame)  # type: ignore[arg-type]
        except StopIteration:
            return
        self._waiting.append((index, action, course))
        self._send_next()

    def _send_next(self) -> None:
        """Let the next game's emulator begin to carry out its action, if there may be one more at work."""
        if self._waiting and len(self._in_flight) < self._n_threads:
            index, action, course = self._waiting.popleft()
            self._emulators[index].send([action], _FULL_STRENGTH)
            self._in_flight.append((index, course))

    def _begin_episode(self, index: int, seed: int | None = None) -> _Course:
        """Begin an episode: of a new game if there is a seed, else as after the end of another."""
        frame = yield from self._restart(index, seed)
        self._shrink(frame, self._observations[index, -1])

    def _step_one(self, index: int, action: int) -> _Course:
        """Make of an emulated step what the learner sees, and begin the next episode if this one ends."""
        frame = yield action
        self._rewards[index] = (frame.reward > 0) - (frame.reward < 0)
        info = self._infos[index]
        ended = self._account(index, frame, info)
        lost_life = self._lost_life(index, frame)
        observation = self._observations[index]
        self._shrink(frame, observation[-1])
        if not (ended or lost_life):
            return
        self._dones[index] = True
        info["terminal_observation"] = observation.copy()
        info["TimeLimit.truncated"] = ended and not (frame.over or lost_life)
        info["lives"] = frame.lives
        observation[:] = 0
        yield from self._begin_episode(index)

    def _restart(self, index: int, seed: int | None) -> Generator[int, _Frame, _Frame]:
        """Begin an episode as SB3's FireResetEnv does, and return what is seen first."""
        frame = yield from self._begin_life(index, seed)
        for action in self._first_actions:
            frame = yield action
            ended = self._account(index, frame, {})
            if self._lost_life(index, frame) or ended:
                yield from self._begin_life(index)
        return frame

    def _begin_life(self, index: int, seed: int | None = None) -> Generator[int, _Frame, _Frame]:
        """Go on with a game after a lost life, or begin the next, as SB3's EpisodicLifeEnv does."""
        if self._between_games[index] or seed is not None:
            frame = self._new_game(index, seed)
        else:
            frame = yield _NOOP
            if self._account(index, frame, {}):
                frame = self._new_game(index)
        self._lives[index] = frame.lives
        return frame

    def _new_game(self, index: int, seed: int | None = None) -> _Frame:
        """Begin a game with a number of no-ops; a seed goes before all that was drawn so far."""
        emulator = self._emulators[index]
        screens, info = emulator.reset(_ALL, [-1 if seed is None else seed % N_SEEDS])
        while self._noop_max and info["episode_frame_number"][0] == 0:
            screens, info = emulator.reset(_ALL, [-1])
        self._between_games[index] = False
        self._returns[index] = 0
        return _Frame(screens[0, 0], 0, False, int(info["lives"][0]), int(info["episode_frame_number"][0]))

    def _receive(self, index: int) -> _Frame:
        """Wait for what came of the action that was sent to an emulator."""
        screens, rewards, over, _, info = self._emulators[index].recv()
        return _Frame(
            screens[0, 0],
            int(rewards[0]),
            bool(over[0]),
            int(info["lives"][0]),
            int(info["episode_frame_number"][0]),
        )

    def _account(self, index: int, frame: _Frame, info: dict[str, Any]) -> bool:
        """Count a step as Monitor does.

        :param info: Gets ``episode`` at the end of a game.
        :return: Whether the game is over or has reached its limit of frames.
        """
        self._returns[index] += frame.reward
        if not frame.over and frame.number < self._max_frames:
            return False
        self._between_games[index] = True
        length = min(frame.number, self._max_frames)
        info["episode"] = self._end_episode(index, float(self._returns[index]), length)
        return True

    def _lost_life(self, index: int, frame: _Frame) -> bool:
        """Say whether a life was lost and the game goes on; some have 0 lives just before they are over."""
        lost = 0 < frame.lives < self._lives[index]
        self._lives[index] = frame.lives
        return lost

    def _shrink(self, frame: _Frame, out: np.ndarray) -> None:
        """Make a grey image of a screen, by the same calls as SB3's WarpFrame.

        :param out: Where to write it: shape (84, 84), uint8.
        """
        cv2.cvtColor(frame.screen, cv2.COLOR_RGB2GRAY, dst=self._gray)
        cv2.resize(self._gray, (SIZE, SIZE), dst=out, interpolation=cv2.INTER_AREA)


@cache
def _screen_size(game: str) -> tuple[int, int]:
    """Return height and width of a game's screen, which few games have of another size than 210 x 160."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    rom = roms.get_rom_path(game)
    assert rom is not None  # check_rom saw it
    ale.loadROM(rom)
    height, width = ale.getScreenDims()
    return height, width
