"""``srl enjoy``: watch what a run has learned."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from srl.cli.options import Unset, put_current_directory_on_path
from srl.errors import UserError


@dataclass
class Enjoy:
    """Watch the agent of a trained run in a window, or record a video."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    episodes: int = 5
    """Number of episodes."""
    deterministic: bool = False
    """Take the most probable actions. By default actions are chosen as in the run's evaluations."""
    stochastic: bool = False
    """Sample actions. By default actions are chosen as in the run's evaluations."""
    best: bool = False
    """Use the model of the best evaluation instead of the final model."""
    video: Unset[Path] = None
    """Record the episodes to this file (.mp4 or .gif) without opening a window."""
    no_render: bool = False
    """Do not open a window."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    trust_config: bool = False
    """Import Python code that the run's spec names: environments, wrappers, networks, algorithms."""


def enjoy(options: Enjoy, command: str) -> int:
    """``srl enjoy``; returns the exit status."""
    if options.episodes < 1:
        raise UserError(f"--episodes {options.episodes}: must be 1 or above.")
    if options.deterministic and options.stochastic:
        raise UserError("--deterministic and --stochastic exclude each other.")
    from srl.rundir.directory import RunDirectory
    from srl.training.load import load_run, read_trusted
    from srl.training.play import (
        Video,
        check_video,
        frames_per_second,
        has_display,
        image,
        play,
        prepare_rendering,
    )

    if options.trust_config:
        put_current_directory_on_path()
    spec = read_trusted(RunDirectory(options.run), options.trust_config)
    in_window = options.video is None and not options.no_render and has_display()
    if options.video is not None:
        check_video(options.video)
        prepare_rendering(spec.env)
    elif not options.no_render and not in_window:
        print("No display: the episodes are played without a window. Record them with --video play.mp4.")
    model, env = load_run(
        options.run,
        best=options.best,
        render_mode="human" if in_window else "rgb_array",
        device=options.device,
        trust=options.trust_config,
    )
    deterministic = options.deterministic or (spec.eval_deterministic and not options.stochastic)
    episodes = []
    with ExitStack() as resources:
        resources.callback(env.close)
        video = None
        for ended in play(model, env, deterministic=deterministic):
            if ended is not None:
                episodes.append(ended)
                print(f"Episode {len(episodes)}: return {ended.value:.1f}, {ended.length:,} steps")
                if len(episodes) == options.episodes:
                    break
            if options.video is not None:
                frame = image(env)  # raises an error before the file is created
                if video is None:
                    video = resources.enter_context(Video(options.video, frames_per_second(env, spec.env)))
                video.add(frame)
    returns = [episode.value for episode in episodes]
    print(f"Mean return {np.mean(returns):.1f} over {len(returns)} episode{'s' if len(returns) > 1 else ''}.")
    if options.video is not None:
        print(f"Written: {options.video}")
    return 0
