"""Export evaluations as tidy data, or in the layout of rl-baselines3-zoo's plot scripts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from srl.config.spec import safe_name
from srl.errors import MissingExtra, UserError
from srl.report.files import check_files, check_folder, write_files
from srl.report.folders import ZOO
from srl.report.intervals import plain
from srl.report.markup import escaped
from srl.report.runs import Run
from srl.report.scores import Scores, read_scores, unfinished
from srl.rundir.names import EVALUATIONS

Format = Literal["json", "parquet", "zoo", "archive"]


def export(
    root: Path, kind: Format, out: Path, show_step: Callable[[str], None] = lambda text: None
) -> tuple[list[Path], list[str]]:
    """Write the evaluations of all runs in a folder.

    :param kind: ``archive`` for all data of a report, see :mod:`srl.report.archive`; ``json`` and ``parquet``
        for tidy data, a row for each run and evaluation, unfinished runs included; ``zoo`` for the layout of
        rl-baselines3-zoo, finished runs only.
    :param show_step: Called with a description of each step.
    :return: The written files, and lines on missing and unfinished runs.
    :raises UserError: If there is nothing to write, or the folder is not writable or contains files in the
        way that srl did not write.
    """
    check_folder(out)
    show_step("Reading runs")
    scores = read_scores(root)
    show_step("Writing")
    if kind == "archive":
        name = f"{safe_name(root.resolve().stem if root.is_file() else root.resolve().name)}.parquet"
        _check_replaced(out, name, scores.runs)
        return write_files(out, {name: partial(_write_archive, scores)}), scores.left_out
    if kind == "zoo":
        if root.is_file():
            raise UserError(f"{root}: is an archive, and --format zoo copies the files of run directories.")
        write_files(out, {}, copies=_zoo_files(scores), instead_of=[ZOO])
        return [out / ZOO], scores.left_out
    if not any(run.evaluations is not None for run in scores.runs):
        raise UserError("\n".join([f"{root}: no run has evaluations.", *scores.left_out]))
    write = _write_json if kind == "json" else _write_parquet
    return write_files(out, {f"evaluations.{kind}": partial(write, scores)}), scores.left_out


def _check_replaced(out: Path, name: str, runs: Sequence[Run]) -> None:
    """Check that an archive has the evaluations of the one that it replaces, which may be the only copy."""
    from srl.report.archive import read_archive

    check_files(out, [name])
    if not (out / name).exists():
        return
    new = {escaped(run.path): run.evaluations for run in runs}
    for run in read_archive(out / name).runs:
        old, later = run.evaluations, new.get(run.path)
        if old is None:
            continue
        if later is None or not np.array_equal(
            old.returns, later.returns[: len(old.returns)], equal_nan=True
        ):
            raise UserError(
                f"{out / name} contains evaluations that the new archive lacks, of {run.path}. Move it away, "
                "or name another folder with --out; nothing was written."
            )


def _write_archive(scores: Scores, file: Path) -> None:
    from srl.report.archive import write_archive

    # Lines on unfinished runs are made again when the archive is read
    n_of_runs = len(unfinished(scores.runs))
    left_out = scores.left_out[: len(scores.left_out) - n_of_runs]
    write_archive(scores.runs, scores.source, file, left_out=left_out, compare=scores.compare)


def _described(scores: Scores) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Runs with evaluations, and the columns that all rows of a run share, in the order of paths."""
    runs = [
        (run.path, cell, run) for cell in scores.cells for run in cell.runs if run.evaluations is not None
    ]
    for path, cell, run in sorted(runs, key=lambda one: one[0]):
        yield (
            run,
            {
                "run": escaped(path),
                "environment": run.env,
                "algorithm": run.algo,
                "name": run.name,
                "variant": cell.variant,
                "noise": run.noise,
                "seed": run.seed,
                "n_timesteps": run.n_timesteps,
                "state": run.state,
            },
        )


def _columns(run: Run) -> dict[str, np.ndarray[Any, Any]]:
    """The other columns of a run, each of shape (n_evaluations,)."""
    evaluations = run.evaluations
    assert evaluations is not None
    n_evaluations, n_episodes = evaluations.returns.shape
    lengths = evaluations.lengths
    return {
        "evaluation": np.arange(n_evaluations),
        "timesteps": evaluations.timesteps.astype(np.int64),
        "mean_return": evaluations.means.astype(float),
        "std_return": evaluations.returns.std(axis=1).astype(float),
        "n_episodes": np.full(n_evaluations, n_episodes),
        "mean_ep_length": np.full(n_evaluations, np.nan) if lengths is None else lengths.mean(axis=1),
    }


def _write_json(scores: Scores, file: Path) -> None:
    """A list of records, one to a line."""
    with file.open("w", encoding="utf-8") as opened:
        opened.write("[")
        separator = "\n"
        for run, common in _described(scores):
            columns = _columns(run)
            start = json.dumps(common, ensure_ascii=False)[:-1]
            for values in zip(*(column.tolist() for column in columns.values()), strict=True):
                row = {name: plain(value) for name, value in zip(columns, values, strict=True)}
                opened.write(f"{separator}{start}, {json.dumps(row)[1:]}")
                separator = ",\n"
        opened.write("\n]\n")


def _write_parquet(scores: Scores, file: Path) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingExtra("--format parquet", error, "report") from None
    described = list(_described(scores))
    rows = [_columns(run) for run, _ in described]
    counts = [len(columns["evaluation"]) for columns in rows]
    table: dict[str, Any] = {}
    for name in described[0][1]:
        values = [common[name] for _, common in described]
        # Texts are stored once each
        column = pa.array(values)
        if pa.types.is_string(column.type):
            column = column.dictionary_encode()
        table[name] = column.take(pa.array(np.repeat(np.arange(len(values)), counts)))
    for name in rows[0]:
        table[name] = pa.array(np.concatenate([columns[name] for columns in rows]))
    parquet.write_table(pa.table(table), file)


def _zoo_files(scores: Scores) -> dict[str, Path]:
    """The evaluations of finished runs by ``zoo/NOISE/ALGORITHM/ENVIRONMENT_SEED/evaluations.npz``.

    Cells with different hyperparameters or lengths have separate folders, because the scripts would mix them.
    """
    steps = Counter((env, noise) for env, noise, _ in {(c.env, c.noise, c.n_timesteps) for c in scores.cells})
    files: dict[str, Path] = {}
    for cell in scores.cells:
        length = f"{cell.n_timesteps}-steps" if steps[cell.env, cell.noise] > 1 else ""
        top = f"{ZOO}/{safe_name('_'.join(filter(None, (cell.noise, cell.variant, length))))}"
        for run in cell.runs:
            if run.state != "done":
                continue
            place = base = f"{top}/{safe_name(run.name)}/{safe_name(run.env)}_{run.seed}"
            number = 1
            while f"{place}/{EVALUATIONS}" in files:  # another environment with the same safe name
                number += 1
                place = f"{base}_{number}"
            files[f"{place}/{EVALUATIONS}"] = scores.root / run.path / EVALUATIONS
    if not files:
        raise UserError("\n".join([f"{scores.root}: no run is finished.", *scores.left_out]))
    return files
