"""GIFs of what the runs of a report have learned, one for each cell."""

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
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, bytes], list[str]]:
    """Play the first finished run of each cell.

    :param scores: What is reported.
    :param root: The folder of the runs.
    :param gif_of: Plays a run, see :func:`srl.training.play.gif_of`.
    :param tell: Is given what is being done.
    :return: GIF files by their captions, and lines on cells that have none.
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
        tell(f"Playing {run.path}")
        try:
            content = gif_of(root / run.path)
        except UserError as error:
            notes.append(f"{run.path}: no GIF: {error}")
            continue
        noise = describe_noise(cell.noise)
        gifs[f"{cell.env}: {cell.column}, {noise}, {cell.n_timesteps:,} steps, seed {run.seed}"] = content
    return gifs, notes
