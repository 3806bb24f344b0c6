"""GIFs of the trained agents of a report, one for each cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from srl.errors import UserError
from srl.report.aggregate import describe_noise
from srl.report.scores import Scores
from srl.report.tables import noise_order


def make_gifs(
    scores: Scores,
    root: Path,
    gif_of: Callable[[Path], bytes],
    show_step: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, bytes], list[str]]:
    """Play the first finished run of each cell.

    :param gif_of: Plays a run, see :func:`srl.training.play.gif_of`.
    :param show_step: Called with a description of each step.
    :return: GIF files by caption, and lines on cells without one.
    """
    gifs: dict[str, bytes] = {}
    notes = []
    order = {column: place for place, column in enumerate(scores.columns)}
    for cell in sorted(
        scores.cells, key=lambda cell: (cell.env, noise_order(cell.noise), order[cell.column])
    ):
        run = next((run for run in cell.runs if run.state == "done"), None)
        if run is None:
            continue
        show_step(f"Playing {run.path}")
        try:
            content = gif_of(root / run.path)
        except UserError as error:
            notes.append(f"{run.path}: no GIF: {error}")
            continue
        noise = describe_noise(cell.noise)
        gifs[f"{cell.env}: {cell.column}, {noise}, {cell.n_timesteps:,} steps, seed {run.seed}"] = content
    return gifs, notes
