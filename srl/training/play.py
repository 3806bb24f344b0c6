"""Play episodes with the model of a run, and write videos."""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from srl.envs.make import ATARI_FRAME_SKIP
from srl.envs.registration import is_atari, is_mujoco
from srl.errors import MissingExtra, UserError
from srl.rundir.directory import RunDirectory
from srl.rundir.files import replacing
from srl.training.load import load_run, read_trusted

#: File name extensions of videos.
VIDEO_ENDINGS = (".mp4", ".gif")
#: The maximum frames per second of a GIF: browsers slow down faster ones.
_GIF_FPS = 25
#: Frames per second of an environment without ``render_fps``.
_FPS = 30
#: Frames per second of the Atari console.
_ATARI_FPS = 60


@dataclass(frozen=True)
class Episode:
    """Return and length of an episode, without reward noise and normalization."""

    value: float
    length: int


def play(model: BaseAlgorithm, env: VecEnv, *, deterministic: bool) -> Iterator[Episode | None]:
    """Play episodes, one after the other.

    An episode of an Atari game is a whole game, as in evaluations.

    :param model: The model of :func:`srl.training.load.load_run`.
    :param env: Its environment; of several, the first one counts.
    :param deterministic: Take the most probable actions instead of sampled ones.
    :return: An endless iterator: None after the reset and after each step, and an :class:`Episode` after the
        last step of an episode, when the environment has been reset.
    """
    observations: Any = env.reset()
    states, starts = None, np.ones(env.num_envs, dtype=bool)
    yield None
    while True:
        actions, states = model.predict(observations, states, starts, deterministic)
        observations, _, starts, infos = env.step(actions)
        ended = infos[0].get("episode")
        yield None if ended is None else Episode(float(ended["r"]), int(ended["l"]))


def image(env: VecEnv) -> np.ndarray:
    """The image of the first environment, shape (height, width, 3), uint8.

    :raises UserError: If it does not render images.
    """
    frame = env.get_images()[0] if env.render_mode == "rgb_array" else None
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        raise UserError("The environment renders no images: it has no render_mode rgb_array.")
    return np.asarray(frame[..., :3], dtype=np.uint8)


def frames_per_second(env: VecEnv, env_id: str) -> float:
    """Frames per second at which an environment plays in real time."""
    if is_atari(env_id):
        return _ATARI_FPS / ATARI_FRAME_SKIP
    fps: Any = env.metadata.get("render_fps")
    return float(fps or _FPS)


def check_video(path: Path) -> None:
    """Check that a video can be written, without writing.

    :raises UserError: If the extension is not supported, a package is missing, or the path is not writable.
    """
    if path.suffix.lower() not in VIDEO_ENDINGS:
        raise UserError(f"--video {path}: must end in {' or '.join(VIDEO_ENDINGS)}.")
    is_mp4 = path.suffix.lower() == ".mp4"
    package, module = ("imageio-ffmpeg", "imageio_ffmpeg") if is_mp4 else ("pillow", "PIL")
    if find_spec(module) is None:
        raise MissingExtra(f"--video {path}:", package, "video")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--video {path}: {path.parent} is not a writable folder.")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"--video {path}: is not a plain file. Choose another name.")


def has_display() -> bool:
    """Whether there is a display for a window."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def prepare_rendering(env_id: str) -> None:
    """Choose how environments render without a display: MuJoCo uses EGL, or else OSMesa.

    The variables ``MUJOCO_GL`` and ``SDL_VIDEODRIVER`` are set for the process, unless the user has set them.

    :raises UserError: If neither works on this machine.
    """
    if has_display():
        return
    # For pygame, which fails without a display otherwise
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if not is_mujoco(env_id) or os.environ.get("MUJOCO_GL"):
        return
    problems = []
    for name in ("egl", "osmesa"):
        os.environ["MUJOCO_GL"] = name
        try:
            import_module(f"mujoco.{name}").GLContext(16, 16).free()
        except Exception as error:  # PyOpenGL and MuJoCo raise various exceptions
            problems.append(f"{name}: {' '.join(str(error).split())[:100] or type(error).__name__}")
            del os.environ["MUJOCO_GL"]
            # PyOpenGL keeps the platform of its first import
            os.environ.pop("PYOPENGL_PLATFORM", None)
            for module in [m for m in sys.modules if m.split(".")[0] == "OpenGL"]:
                del sys.modules[module]
        else:
            return
    raise UserError(
        f"{env_id} renders without a display through EGL or OSMesa, and neither works here "
        f"({'; '.join(problems)}). Install one, for example with apt-get install libegl1 or libosmesa6."
    )


class Video:
    """A video. A context: the file is written at its end, unless there is an exception.

    :param path: The file, ``.mp4`` or ``.gif``.
    :param fps: Frames per second.
    """

    def __init__(self, path: Path, fps: float):
        self._path, self._fps = path, fps
        self._resources = ExitStack()
        self._temporary = Path()
        self._mp4: Any = None
        self._gif: Gif | None = None if path.suffix.lower() == ".mp4" else Gif(fps)

    def __enter__(self) -> Video:
        self._temporary = self._resources.enter_context(replacing(self._path))
        return self

    def add(self, frame: np.ndarray) -> None:
        """Add the next image, shape (height, width, 3), uint8."""
        if self._gif is not None:
            self._gif.add(frame)
            return
        # The usual pixel format needs even sizes
        height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
        if self._mp4 is None:
            from imageio_ffmpeg import write_frames

            self._mp4 = write_frames(
                str(self._temporary),
                (width, height),
                fps=self._fps,
                macro_block_size=1,
                output_params=["-f", "mp4"],
            )
            self._mp4.send(None)
        self._mp4.send(np.ascontiguousarray(frame[:height, :width]))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._mp4 is not None:
            self._mp4.close()
        elif self._gif is not None and error is None:
            self._temporary.write_bytes(self._gif.content())
        self._resources.__exit__(kind, error, trace)


class Gif:
    """An endlessly repeating GIF.

    :param fps: Frames per second; above 25, some frames are left out.
    :param width: Maximum width in pixels; larger frames are scaled down.
    :param n_colors: Number of colors of each frame.
    """

    def __init__(self, fps: float, width: int = 480, n_colors: int = 128):
        self._every = max(1, math.ceil(fps / _GIF_FPS))
        self._duration = round(1000 * self._every / fps)
        self._width, self._n_colors = width, n_colors
        self._n_frames = 0
        self._images: list[Any] = []

    def add(self, frame: np.ndarray) -> None:
        """Add the next image, shape (height, width, 3), uint8."""
        from PIL import Image

        self._n_frames += 1
        if (self._n_frames - 1) % self._every == 0:
            picture = Image.fromarray(frame)
            if picture.width > self._width:
                picture = picture.resize((self._width, round(picture.height * self._width / picture.width)))
            self._images.append(picture.quantize(self._n_colors))

    def content(self) -> bytes:
        """The content of the file."""
        buffer = io.BytesIO()
        first, *others = self._images
        first.save(
            buffer,
            "GIF",
            save_all=True,
            append_images=others,
            duration=self._duration,
            loop=0,
            optimize=False,
        )
        return buffer.getvalue()


def gif_of(run: Path) -> bytes:
    """A GIF of the first 8 s that a run's final model plays, at most 240 pixels wide.

    :raises UserError: If the run cannot be loaded or rendered, see :func:`srl.training.load.load_run`.
    """
    spec = read_trusted(RunDirectory(run), trust=False)
    prepare_rendering(spec.env)
    model, env = load_run(run)
    try:
        fps = frames_per_second(env, spec.env)
        animation = Gif(fps, width=240, n_colors=32)
        for n_frames, ended in enumerate(play(model, env, deterministic=spec.eval_deterministic)):
            if ended is not None or n_frames >= 8 * fps:
                break
            animation.add(image(env))
        return animation.content()
    finally:
        env.close()
