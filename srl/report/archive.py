"""Archives: all data of a report in one Parquet file, without run directories.

A row is a run: its spec, state, versions, commit and file digests, all episodes of its evaluations, and what
its updates logged. The file's metadata has the comparisons, lines on what is missing, and a checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from pydantic import ValidationError

from srl.config.algorithms import get_algorithm
from srl.config.files import first_mistake
from srl.config.lenient import read_leniently
from srl.errors import UserError
from srl.report.curves import TRAINING, Series, describe_problem
from srl.report.markup import escaped
from srl.report.runs import Evaluations, Run, State, scored_run
from srl.report.samples import SampledText
from srl.report.source import Source
from srl.rundir.status import STATUS_TYPE

FORMAT = 1
_METADATA = b"srl"
#: Fields of a run's status that a report shows.
_STATUS = ("state", "timesteps", "n_timesteps", "steps_per_second", "attempts", "resumed_from", "notes")


@dataclass(frozen=True)
class Archive:
    """The content of an archive."""

    runs: list[Run]
    left_out: list[str]
    compare: list[tuple[str, str]]
    _versions: Mapping[str, dict[str, Any] | None]
    _training: Mapping[str, Mapping[str, Series] | str]
    _samples: Mapping[str, list[SampledText]]

    def versions(self, run: Run) -> dict[str, Any] | None:
        """See :class:`~srl.report.source.Source`."""
        return self._versions[run.path]

    def training(self, run: Run) -> Mapping[str, Series]:
        """See :class:`~srl.report.source.Source`."""
        found = self._training[run.path]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def samples(self, run: Run) -> list[SampledText]:
        """See :class:`~srl.report.source.Source`."""
        return self._samples[run.path]


def write_archive(
    runs: Sequence[Run],
    source: Source,
    file: Path,
    *,
    left_out: Sequence[str],
    compare: Sequence[tuple[str, str]],
) -> None:
    """Write an archive."""
    rows = [_row(run, source) for run in runs]
    columns: dict[str, Any] = {}
    for name in rows[0]:
        column = pa.array([row[name] for row in rows], type=_TYPES.get(name))
        # Specs and versions are shared by many runs
        columns[name] = column.dictionary_encode() if pa.types.is_string(column.type) else column
    about: dict[str, Any] = {
        "format": FORMAT,
        "left_out": list(left_out),
        "compare": [list(pair) for pair in compare],
    }
    table = pa.table(columns)
    about["sha256"] = _digest(about, table.to_pylist())
    table = table.replace_schema_metadata({_METADATA: json.dumps(about)})
    parquet.write_table(table, file, compression="zstd", compression_level=19)


def read_archive(file: Path, *, last: int = 1) -> Archive:
    """Read an archive.

    :param last: The score of a run is the mean over this many evaluations, the last ones.
    :raises UserError: If it is not an archive, is damaged, or of a newer version of srl.
    """
    try:
        table = parquet.read_table(file)
        about = json.loads((table.schema.metadata or {})[_METADATA])
        if about["format"] != FORMAT:
            raise UserError(f"{file}: an archive of format {about['format']}; this srl reads {FORMAT}.")
        rows = table.to_pylist()
        if len({row["run"] for row in rows}) < len(rows):
            raise ValueError("several rows of a run")
        # Earlier versions wrote no checksum
        if "sha256" in about and about.pop("sha256") != _digest(about, rows):
            raise UserError(f"{file}: damaged, its content differs from its checksum.")
        left_out = [str(line) for line in about["left_out"]]
        runs = []
        for row in rows:
            try:
                runs.append(_run(row, last))
            except ValidationError as error:
                keys, message = first_mistake(error)
                left_out.append(f"{row['run']}: left out, key {'.'.join(map(str, keys))}: {message}")
            except UserError as error:
                left_out.append(f"{row['run']}: left out, {error}")
        if not runs:
            raise UserError("\n".join([f"{file} contains no runs.", *left_out]))
        return Archive(
            runs,
            left_out,
            [(str(one), str(other)) for one, other in about["compare"]],
            {row["run"]: _loaded(row["versions"]) for row in rows},
            {row["run"]: _training_of(row) for row in rows},
            {
                row["run"]: [SampledText(**text) for text in _loaded(row.get("samples"), list) or []]
                for row in rows
            },
        )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file}: not an archive of results ({type(error).__name__}: {what}). Write one with "
            "`srl report DIR --format archive`."
        ) from None


def _digest(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of the content, whatever the encoding of the file."""
    return hashlib.sha256(json.dumps([about, rows]).encode()).hexdigest()


#: Types of values that every row has.
_REQUIRED = {
    **dict.fromkeys(("run", "environment", "algorithm", "name", "noise", "state", "reason"), str),
    **dict.fromkeys(("seed", "n_timesteps"), int),
}
#: Types of columns that may be empty, or whose values need only float32.
_TYPES = {
    **dict.fromkeys(
        ("spec", "unknown", "status", "versions", "files", "training_problem", "reason", "samples"),
        pa.string(),
    ),
    **dict.fromkeys(("timesteps", "lengths"), pa.list_(pa.int64())),
    "returns": pa.list_(pa.float64()),
    "minor_damage": pa.list_(pa.string()),
    **{f"{name}/steps": pa.list_(pa.int64()) for name in TRAINING},
    **{name: pa.list_(pa.float32()) for name in TRAINING},
}


def _row(run: Run, source: Source) -> dict[str, Any]:
    spec = None if run.spec is None else run.spec.model_dump(mode="json", exclude={"seed"})
    status = None if run.status is None else {key: asdict(run.status)[key] for key in _STATUS}
    files = {} if run.status is None else {name: sha for name, (_, _, sha) in run.status.files.items()}
    problem, training = None, dict[str, Series]()
    try:
        training = dict(source.training(run)) if run.spec is not None else {}
    except (OSError, ValueError) as error:
        problem = describe_problem(error)
    evaluations = run.evaluations
    lengths = None if evaluations is None else evaluations.lengths
    return {
        "run": escaped(run.path),
        "environment": run.env,
        "algorithm": run.algo,
        "name": run.name,
        "noise": run.noise,
        "seed": run.seed,
        "n_timesteps": run.n_timesteps,
        "state": run.state,
        "reason": escaped(run.reason),
        "spec": _dumped(spec),
        "unknown": _dumped(dict(run.unknown)),
        "status": _dumped(status),
        "versions": _dumped(source.versions(run)),
        "files": _dumped(files),
        "minor_damage": list(map(escaped, run.minor_damage)),
        "timesteps": None if evaluations is None else evaluations.timesteps.tolist(),
        "returns": None if evaluations is None else evaluations.returns.ravel().tolist(),
        "lengths": None if lengths is None else lengths.ravel().tolist(),
        "n_reached_max_steps": 0 if evaluations is None else evaluations.n_truncated,
        "training_problem": problem,
        **{f"{name}/steps": training[name].steps.tolist() if name in training else None for name in TRAINING},
        **{name: training[name].values.tolist() if name in training else None for name in TRAINING},
        "samples": _dumped([asdict(text) for text in source.samples(run)] or None),
    }


def _run(row: Mapping[str, Any], last: int) -> Run:
    """The run of a row.

    :raises UserError, ValidationError: If a newer version of srl wrote values that this one does not know.
    :raises TypeError, ValueError: If it is not the row of a run.
    """
    for name, kind in _REQUIRED.items():
        if not isinstance(row[name], kind):
            raise TypeError(f"{name} is {row[name]!r}")
    if row["spec"] is None and row["state"] != "missing":
        raise ValueError(f"{row['run']}: {row['state']} without a spec")
    get_algorithm(row["algorithm"])
    if row["state"] not in get_args(State):
        raise UserError(f"unknown state {row['state']!r}")
    spec, unknown = None, {}
    if row["spec"] is not None:
        found = read_leniently(json.dumps(_loaded(row["spec"]) | {"seed": row["seed"]}).encode())
        spec, unknown = found.spec, _loaded(row["unknown"]) | found.unknown
    evaluations = None
    if row["timesteps"] is not None:
        n = len(row["timesteps"])
        lengths = row["lengths"]
        evaluations = Evaluations(
            np.array(row["timesteps"]),
            np.array(row["returns"], dtype=float).reshape(n, -1),
            None if lengths is None else np.array(lengths).reshape(n, -1),
            row["n_reached_max_steps"],
        )
    status = _loaded(row["status"])
    if status is not None:
        # Sizes and times of the files are not archived
        files = {name: (0, 0, sha) for name, sha in (_loaded(row["files"]) or {}).items()}
        status = STATUS_TYPE.validate_python(status | {"files": files})
    if spec is None:
        return Run(
            row["run"],
            row["environment"],
            row["algorithm"],
            row["name"],
            row["noise"],
            row["seed"],
            row["n_timesteps"],
            row["state"],
            reason=row["reason"],
        )
    return scored_run(
        row["run"],
        spec,
        "done" if row["state"] == "short" else row["state"],
        row["reason"],
        last,
        unknown=unknown,
        status=status,
        evaluations=evaluations,
        minor_damage=row["minor_damage"],
    )


def _training_of(row: Mapping[str, Any]) -> Mapping[str, Series] | str:
    if row["training_problem"] is not None:
        return str(row["training_problem"])
    series = {}
    for name in TRAINING:
        if row.get(name) is not None:
            steps, values = (np.array(row[key], dtype=float) for key in (f"{name}/steps", name))
            if steps.shape != values.shape:
                raise ValueError(f"{row['run']}: {name} has {values.size} values in {steps.size} steps")
            series[name] = Series(steps, values)
    return series


def _dumped(values: Any) -> str | None:
    return None if values is None else escaped(json.dumps(values, ensure_ascii=False))


def _loaded(text: str | None, kind: type = dict) -> Any:
    values = None if text is None else json.loads(text)
    if values is not None and not isinstance(values, kind):
        raise TypeError(f"{text!r} is not a {kind.__name__}")
    return values
