"""The run directory: the only record of a run.

| file | content |
| --- | --- |
| ``spec.json`` | the full :class:`~srl.config.spec.RunSpec` |
| ``status.json`` | ``running``, ``done``, ``failed`` or ``interrupted``; progress, times, why it ended |
| ``versions.json`` | package versions, commit, platform and command |
| ``monitor/N.monitor.csv`` | SB3's Monitor: raw return, length and time of each training episode |
| ``progress.csv``, ``events.out.tfevents.*`` | SB3's logger |
| ``evaluations.npz`` | as SB3's EvalCallback writes it: ``timesteps``, ``results``, ``ep_lengths`` |
| ``model.zip``, ``vecnormalize.pkl`` | the final model and its observation and reward statistics |
| ``best_model.zip``, ``best_vecnormalize.pkl`` | the same after the evaluation with the highest mean return |
| ``final_state.npz`` | of a finished run: what it needs to be extended |
| ``checkpoints/STEPS.npz`` | of an unfinished run: what it needs to resume |
| ``error.txt`` | the traceback of a run that failed |
| ``output.log`` | what a sweep's run printed |
| ``model/``, ``samples.json`` | a language model in place of ``model.zip``, and texts before and after |
| ``tracking.json`` | what was sent to a tracking service, see :mod:`srl.tracking` |
| ``stop.txt`` | why the run was told to stop early, as a pruned trial of ``srl tune`` |

``evaluations.npz`` also has ``successes`` if an episode reported ``is_success``, and
``reached_max_steps`` if one was truncated by ``eval_max_episode_steps``: bool, (n_evaluations, n_episodes).

Logs grow line by line; every other file is written completely or not at all. Files of other names are never
changed.

A run is finished if its results are complete: spec, evaluations, model and, if it normalizes observations or
rewards, ``vecnormalize.pkl``, without which the model is of no use. Damage to other files is reported only.
Before a run that had finished is retrained, its files move to ``damaged-N``, which nothing reads.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickletools
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import IO, Any, Literal
from zipfile import ZipFile

import numpy as np
from pydantic import ValidationError

from srl.config.files import first_mistake
from srl.config.lenient import LenientSpec, read_leniently, spec_text
from srl.config.spec import RunSpec
from srl.errors import UserError
from srl.rundir.files import (
    RANDOM,
    acquire,
    check_writable,
    is_locked,
    kind_of,
    plain_files,
    read_bytes,
    write_text,
)
from srl.rundir.plan import PLAN, _newer
from srl.rundir.status import STATUS_TYPE, Status, digest_of

SPEC = "spec.json"
STATUS = "status.json"
VERSIONS = "versions.json"
EVALUATIONS = "evaluations.npz"
MODEL = "model.zip"
VECNORMALIZE = "vecnormalize.pkl"
BEST_MODEL = "best_model.zip"
BEST_VECNORMALIZE = "best_vecnormalize.pkl"
MONITOR = "monitor"
FINAL_STATE = "final_state.npz"
CHECKPOINTS = "checkpoints"
PROGRESS = "progress.csv"
ERROR = "error.txt"
LOG = "output.log"
LOCK = "run.lock"
#: Asks the process that trains a run to end it, see :func:`request_stop`.
STOP = "stop.txt"
#: A language model as transformers saves it, and texts that it wrote before and after training.
LANGUAGE_MODEL = "model"
SAMPLES = "samples.json"

#: The results of a run: what must be whole for it to count as finished.
RESULTS = (SPEC, EVALUATIONS, MODEL, VECNORMALIZE)
_MODELS = (MODEL, VECNORMALIZE, BEST_MODEL, BEST_VECNORMALIZE, FINAL_STATE)
#: Names of what attempts at a run write, and a new attempt starts without.
_OUTPUTS = (VERSIONS, PROGRESS, EVALUATIONS, *_MODELS, SAMPLES, ERROR)
_EVENTS = re.compile(r"events\.out\.tfevents\.[0-9]+(\..+\.[0-9]+\.[0-9]+)?")
_MONITOR_FILE = re.compile(r"[0-9]+\.monitor\.csv")
CHECKPOINT = re.compile(r"(?:0|[1-9][0-9]*)\.npz")
_REPLACED = (SPEC, STATUS, VERSIONS, EVALUATIONS, *_MODELS, SAMPLES, ERROR)
TEMPORARY = re.compile(rf"\.(?:{'|'.join(map(re.escape, _REPLACED))}){RANDOM}")
TEMPORARY_CHECKPOINT = re.compile(rf"\.[0-9]+\.npz{RANDOM}")
#: What SB3 writes into ``model.zip`` first and last.
_MODEL_PARTS = {"data", "policy.pth", "system_info.txt"}
#: Where the files of a finished run go before it is retrained.
_ASIDE = re.compile(r"damaged-[0-9]+")
#: Bytes above which a file of the same size and time of change is taken to be the same.
_LARGE = 65536


def request_stop(path: Path, reason: str) -> None:
    """Tell the process that trains a run to end it at its next heartbeat, and not to retry it."""
    write_text(path / STOP, reason + "\n")


def growing_logs(folder: Path) -> list[Path]:
    """The logs of a run that only grow: TensorBoard's and Monitor's files."""
    monitor = folder / MONITOR
    names = [name for name in plain_files(folder) if _EVENTS.fullmatch(name)]
    if not monitor.is_symlink():
        names += [f"{MONITOR}/{name}" for name in plain_files(monitor) if _MONITOR_FILE.fullmatch(name)]
    return [folder / name for name in sorted(names)]


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints of a run, and those that were not written to their end."""
    checkpoints = folder / CHECKPOINTS
    names = [] if checkpoints.is_symlink() else plain_files(checkpoints)
    return [
        checkpoints / name
        for name in names
        if CHECKPOINT.fullmatch(name) or TEMPORARY_CHECKPOINT.fullmatch(name)
    ]


class RunDirectory:
    """A run's folder.

    :param path: The folder; it need not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        #: The lock, while this holds it.
        self._lock: IO[str] | None = None

    def read_spec(self) -> RunSpec | None:
        """The run's spec; None if the folder holds no run.

        :raises UserError: If there is one that cannot be read.
        """
        found = self.read_spec_leniently()
        return None if found is None else found.spec

    def read_spec_leniently(self) -> LenientSpec | None:
        """The run's spec, and what only a newer srl knows of it; None if the folder holds no run.

        :raises UserError: If there is one that cannot be read.
        """
        file = self.path / SPEC
        try:
            return read_leniently(read_bytes(file))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            keys, message = first_mistake(error)
            raise UserError(f"{file}, key {'.'.join(map(str, keys))}: {message}") from None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{file}: not the spec of a run: {error}") from None

    def readable_spec(self) -> RunSpec | None:
        """The run's spec; None if the folder holds none that can be read."""
        found, _ = self._find_spec()
        return None if found is None else found.spec

    def _find_spec(self) -> tuple[LenientSpec | None, UserError | None]:
        """The run's spec, or why it cannot be read; neither if the folder holds no run."""
        try:
            return self.read_spec_leniently(), None
        except UserError as error:
            return None, error

    def check_spec(self, found: LenientSpec, status: Status | None) -> None:
        """See that the spec of a finished run is the one that the run had.

        :raises UserError: If it is not.
        """
        if status is not None and status.state == "done" and self._spec_is_damaged(found, status):
            raise UserError(f"{self.path / SPEC}: damaged: not what the run left.")

    def read_status(self) -> Status | None:
        """How far the run is; None if it has not begun, or its status cannot be read.

        Fields that only a newer srl knows are left out. The checksum is of all fields or of those that this
        version knows.
        """
        try:
            values = json.loads(read_bytes(self.path / STATUS))
            checksum = values.pop("checksum", "")
            known = {each.name: values[each.name] for each in fields(Status) if each.name in values}
            if checksum not in ("", digest_of(values), digest_of(known)):
                return None
            return STATUS_TYPE.validate_python(known)
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def requested_stop(self) -> str:
        """Return why the run was told to stop, see :func:`request_stop`; empty if it was not."""
        try:
            return read_bytes(self.path / STOP).decode(errors="replace").strip() or "told to stop"
        except OSError:
            return ""

    @property
    def has_status(self) -> bool:
        """Whether there is a status, be it one that cannot be read."""
        return (self.path / STATUS).exists()

    def read_versions(self) -> dict[str, Any] | None:
        """Package versions, commit, platform and command of the run; None if they cannot be read."""
        try:
            versions = json.loads(read_bytes(self.path / VERSIONS))
        except (OSError, ValueError):
            return None
        return versions if isinstance(versions, dict) else None

    def write_status(self, status: Status) -> None:
        """Replace the status."""
        values = asdict(status)
        values["checksum"] = digest_of(values)
        write_text(self.path / STATUS, json.dumps(values, indent=1) + "\n")

    def seal(self, names: Collection[str] | None = None) -> dict[str, tuple[int, int, str]]:
        """Size, time of change and digest of files, for the run's status: see :attr:`Status.files`.

        :param names: Which; None takes all that a finished run leaves.
        """
        if names is None:
            logs = [file.relative_to(self.path).as_posix() for file in growing_logs(self.path)]
            model = [f"{LANGUAGE_MODEL}/{name}" for name in plain_files(self.path / LANGUAGE_MODEL)]
            names = [*RESULTS, *_MODELS, VERSIONS, PROGRESS, SAMPLES, *model, *logs]
        sealed = {}
        for name in sorted(set(names)):
            file = self.path / name
            if file.is_file():
                content = read_bytes(file)
                sealed[name] = (len(content), file.stat().st_mtime_ns, hashlib.sha256(content).hexdigest())
        return sealed

    def check_file(self, name: str, content: bytes, status: Status | None) -> None:
        """See that a file of a finished run is as the run left it.

        :raises UserError: If it is not.
        """
        sealed = status.files.get(name) if status is not None and status.state == "done" else None
        if sealed is not None and hashlib.sha256(content).hexdigest() != sealed[2]:
            raise UserError(f"{self.path / name}: damaged: not what the run left.")

    def damage(self) -> list[str]:
        """What of the run's results is damaged, in lines; empty if nothing is, or there is no run.

        A finished run of which this is not empty does not count: it is retrained. If only its status is
        damaged, the results decide.
        """
        status = self.read_status()
        found, problem = self._find_spec()
        problems = [] if problem is None else [str(problem)]
        if not problems and self._spec_is_damaged(found, status):
            missing = found is None and not (self.path / SPEC).exists()
            problems.append(
                f"{self.path / SPEC}: {'missing' if missing else 'damaged: not what the run left'}."
            )
        if status is None and not (found is not None and self._is_complete(found.spec)):
            problems += self._status_problem()
        if status is not None and status.state == "done":
            problems += self.sealed_damage(status, [*RESULTS[1:], *language_model_files(status)])
            problems += self._damage_of_evaluations(status)
        elif os.path.lexists(self.path / EVALUATIONS):
            problems += self._damage_of_evaluations(status)
        return list(dict.fromkeys(problems))

    def minor_damage(self, *, thorough: bool = True) -> list[str]:
        """What else of the run is damaged, in lines: no result depends on it, and it is only reported.

        :param thorough: As in :meth:`sealed_damage`.
        """
        status = self.read_status()
        if status is None and not self.damage():
            return [f"{line} Its evaluations and model are complete." for line in self._status_problem()]
        problems = []
        if status is not None and status.state == "done":
            results = {*RESULTS, *language_model_files(status)}
            problems += self.sealed_damage(status, status.files.keys() - results, thorough=thorough)
        versions = self.path / VERSIONS
        is_named = any(line.startswith(f"{versions}: ") for line in problems)
        if os.path.lexists(versions) and self.read_versions() is None and not is_named:
            problems.append(f"{versions}: damaged.")
        return problems

    def sealed_damage(self, status: Status, names: Collection[str], *, thorough: bool = True) -> list[str]:
        """Which files are not as a finished run left them, in lines.

        :param status: The run's.
        :param names: Which to look at; those that the run did not leave are passed over.
        :param thorough: Whether large files are read if their time of change is another one, as it is in a
            copy. If not, only their size tells.
        """
        problems = []
        for name in sorted(name for name in names if name in status.files):
            size, changed, _ = status.files[name]
            file = self.path / name
            try:
                now = file.stat()
                if now.st_size != size:
                    problems.append(f"{file}: damaged: {now.st_size:,} bytes where the run left {size:,}.")
                elif size <= _LARGE or (thorough and now.st_mtime_ns != changed):
                    self.check_file(name, read_bytes(file), status)
            except FileNotFoundError:
                problems.append(f"{file}: missing.")
            except OSError as error:
                problems.append(f"{file}: cannot be read: {error.strerror}.")
            except UserError as error:
                problems.append(str(error))
        return problems

    def _status_problem(self) -> list[str]:
        """What is wrong with a status that cannot be read, in a line; none if there never was one."""
        if self.has_status:
            return [f"{self.path / STATUS}: damaged."]
        if (self.path / MODEL).exists() or (self.path / EVALUATIONS).exists():
            return [f"{self.path / STATUS}: missing."]
        return []

    def _damage_of_evaluations(self, status: Status | None) -> list[str]:
        try:
            self.read_evaluations(status)
        except UserError as error:
            return [str(error)]
        return []

    def is_finished(self) -> bool:
        """Whether the run is done and its results are whole.

        If its status is damaged or missing, it is done if its evaluations reach its last step and its model
        is whole: a run writes them in that order.
        """
        status = self.read_status()
        if status is not None:
            return status.state == "done" and not self.damage()
        spec = self.readable_spec()
        return spec is not None and self._is_complete(spec)

    def _is_complete(self, spec: RunSpec) -> bool:
        """Whether the results of a run without a readable status are whole, going by themselves."""
        try:
            evaluations = self.read_evaluations()
            with ZipFile(io.BytesIO(read_bytes(self.path / MODEL))) as model:
                # Half of it may be a whole archive: torch's files in it are archives, too
                is_whole = set(model.namelist()) >= _MODEL_PARTS and model.testzip() is None
            if spec.hyperparams.normalize is not None:
                # Reads to the end of the pickle, and executes nothing
                deque(pickletools.genops(read_bytes(self.path / VECNORMALIZE)), maxlen=0)
        except Exception:  # zipfile, zlib and pickletools each have their own
            return False
        final = evaluations["results"][-1].mean()
        return bool(is_whole and evaluations["timesteps"][-1] >= spec.n_timesteps and np.isfinite(final))

    def restore_status(self, spec: RunSpec) -> None:
        """Rewrite the status of a finished run if it is damaged or missing.

        :raises UserError: If another process is at it, or it is no finished run of this spec.
        """
        if self.read_status() is None:
            with self.claimed(spec):
                pass

    def _write_status_from_results(self, spec: RunSpec) -> None:
        (problem,) = self._status_problem() or [f"{self.path / STATUS}: missing."]
        ended = (self.path / MODEL).stat().st_mtime
        steps = spec.n_timesteps
        status = Status("done", steps, steps, started=ended, updated=ended, ended=ended, files=self.seal())
        self.write_status(status.noted(f"{problem} It was restored from the evaluations and the model."))

    def read_evaluations(self, status: Status | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """SB3's evaluations: ``timesteps`` (n_evaluations,), ``results`` (n_evaluations, n_episodes).

        :param status: The run's; None reads it.
        :raises UserError: If they are missing or damaged.
        """
        file = self.path / EVALUATIONS
        try:
            content = read_bytes(file)
        except FileNotFoundError:
            raise UserError(f"{file}: missing.") from None
        except OSError as error:
            raise UserError(f"{file}: damaged: {error}") from None
        self.check_file(EVALUATIONS, content, self.read_status() if status is None else status)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as data:
                evaluations = {name: data[name] for name in data.files}
        except Exception as error:  # zipfile, zlib and numpy each have their own
            raise UserError(f"{file}: damaged: {error}") from None
        timesteps, results = evaluations.get("timesteps"), evaluations.get("results")
        if (
            timesteps is None
            or results is None
            or (timesteps.ndim, results.ndim) != (1, 2)
            or not {timesteps.dtype.kind, results.dtype.kind} <= set("fiu")
            or len(results) != len(timesteps)
        ):
            raise UserError(f"{file}: not what SB3's EvalCallback writes.")
        if len(results) == 0 or results.shape[1] == 0:
            raise UserError(f"{file}: holds no evaluation.")
        if not np.all(np.diff(timesteps.astype(float)) > 0):
            raise UserError(f"{file}: damaged: its steps do not rise.")
        return evaluations

    def compare(self, spec: RunSpec) -> Literal["new", "unfinished", "done"]:
        """Compare the folder with a spec; nothing is written.

        :raises UserError: If the folder is a file, cannot be written to, belongs to another spec or to a
            newer srl, holds what is no run, or has something else in the place of a run's file.
        """
        check_writable(self.path)
        if not os.path.lexists(self.path):
            return "new"
        status = self.read_status()
        found, problem = self._find_spec()
        is_damaged = self._spec_is_damaged(found, status)
        if found is not None and found.unknown and not is_damaged:
            raise _newer(self.path / SPEC, found.unknown)
        if found is None and problem is None and not (status is not None and SPEC in status.files):
            self._check_no_other_files()
            self._check_kinds()
            return "new"
        # Alone or in a population, it is the same experiment
        if found is None or found.spec.model_copy(update={"stacked": spec.stacked}) != spec:
            if found is None or is_damaged:
                if not (is_damaged and self.was_for(spec, status)):
                    raise UserError(
                        f"{problem or self.path / SPEC} Whether {self.path} holds this run cannot be known. "
                        "Name another folder with --out, or move that one away; nothing was written."
                    )
            else:
                raise UserError(
                    f"{self.path} holds a run of another spec: {describe_difference(found.spec, spec)}. Name "
                    "another folder with --out, or move that one away; nothing was written."
                )
        elif self.is_finished():
            return "done"
        self._check_kinds()
        return "unfinished"

    def as_begun(self, spec: RunSpec) -> RunSpec:
        """A spec, compiled as the run that the folder holds is, if it is of that spec otherwise."""
        there = self.readable_spec()
        if there is None:
            return spec
        kept = spec.model_copy(update={"compile_update": there.compile_update})
        return kept if _differs_in_length_alone(there, kept) else spec

    def shorter(self, spec: RunSpec) -> RunSpec | None:
        """The spec of the run in the folder if it is the asked one with fewer training steps, else None."""
        there = self.readable_spec()
        if there is None or there.n_timesteps >= spec.n_timesteps:
            return None
        return there if _differs_in_length_alone(there, spec) else None

    def _check_no_other_files(self) -> None:
        """See that a folder without a spec holds only what a run leaves that ends before it writes one."""
        ours = {LOCK, LOG}
        try:
            # Other programs may call a file so, too; srl's has a checksum
            if "checksum" in json.loads(read_bytes(self.path / STATUS)) and self.read_status() is not None:
                ours.add(STATUS)
        except (OSError, ValueError, TypeError):
            pass
        foreign = [
            file.name
            for file in self.path.glob("[!.]*")
            if file.name not in ours and not _ASIDE.fullmatch(file.name)
        ]
        if foreign:
            raise UserError(
                f"{self.path} holds {', '.join(sorted(foreign)[:3])} and is no run. Name another folder, or "
                "move that away; nothing was written."
            )

    def _check_kinds(self) -> None:
        """See that a run can write its files: srl replaces no links, and puts no file in a folder's place."""
        for name in (*RESULTS, *_OUTPUTS, STATUS, LOG, LOCK, MONITOR, CHECKPOINTS):
            file = self.path / name
            is_folder = name in (MONITOR, CHECKPOINTS)
            if os.path.lexists(file) and not (S_ISDIR if is_folder else S_ISREG)(file.lstat().st_mode):
                what = "folder" if is_folder else "file"
                raise UserError(
                    f"{file} is {kind_of(file)}, and the run writes a {what} there. Move it away; nothing "
                    "was written."
                )

    def _spec_is_damaged(self, found: LenientSpec | None, status: Status | None) -> bool:
        """Whether the spec is missing, or another than an attempt at the run has written."""
        if status is None or SPEC not in status.files:
            return False
        return found is None or status.files[SPEC][2] not in found.digests

    def was_for(self, spec: RunSpec, status: Status | None) -> bool:
        """Whether an attempt here was at this run, going by its status."""
        texts = [spec_text(spec.model_copy(update={"stacked": stacked})) for stacked in (False, True)]
        sealed = status.files[SPEC][2] if status is not None and SPEC in status.files else None
        return sealed in [hashlib.sha256(text.encode()).hexdigest() for text in texts]

    @contextmanager
    def claimed(self, spec: RunSpec, *, keep: bool = False) -> Iterator[Literal["new", "unfinished", "done"]]:
        """Make the folder this process' for one attempt at a run, rid of what an earlier attempt left.

        The files of a run that had finished, and is damaged since, move to ``damaged-N``. Those of a finished
        one stay; only a damaged status is restored.

        :param spec: The run.
        :param keep: Leave what an earlier attempt left, for one that resumes from there.
        :return: A context that yields what :meth:`compare` says; of a finished run nothing is removed.
        :raises UserError: If another process is at it, or it does not fit the spec.
        """
        self.compare(spec)
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("a+") as lock:
            if not acquire(lock):
                status = self.read_status()
                who = f" (process {status.pid} on {status.host})" if status and status.pid else ""
                raise UserError(
                    f"{self.path}: another process{who} is training this run. Wait for it, or end it."
                )
            there = self.compare(spec)
            if there == "done" and self.read_status() is None:
                self._write_status_from_results(spec)
            if there == "unfinished" and self._had_finished():
                self._set_aside()
            if there != "done":
                write_text(self.path / SPEC, spec_text(spec))
            if there == "unfinished" and not keep:
                self.clear()
            self._lock = lock
            try:
                yield there
            finally:
                self._lock = None

    def _had_finished(self) -> bool:
        """Whether what an unfinished run left is what a finished one left, before it was damaged."""
        status = self.read_status()
        if status is None:
            return (self.path / MODEL).exists()
        return status.state == "done" or (status.state == "failed" and MODEL in status.files)

    def _set_aside(self) -> None:
        """Move the files of the run, with copies of its spec and status, to a new folder inside it."""
        number = 1
        while os.path.lexists(aside := self.path / f"damaged-{number}"):
            number += 1
        aside.mkdir()
        for name in plain_files(self.path).keys() & {SPEC, STATUS}:
            shutil.copy2(self.path / name, aside / name)
        for file in self._outputs():
            moved = aside / file.relative_to(self.path)
            moved.parent.mkdir(exist_ok=True)
            file.rename(moved)
        now = time.time()
        status = replace(self.read_status() or Status("failed"), files={})
        self.write_status(status.ended_as("failed", now, f"it was damaged; its files are in {aside.name}"))

    @property
    def is_held(self) -> bool:
        """Whether the folder is still the one that this has made its process'."""
        try:
            there = (self.path / LOCK).stat()
        except OSError:
            return False
        return self._lock is not None and os.path.samestat(there, os.fstat(self._lock.fileno()))

    def clear(self) -> None:
        """Remove what attempts at the run have left, and nothing else."""
        for file in self._outputs():
            file.unlink(missing_ok=True)
        for folder in (MONITOR, CHECKPOINTS):
            with suppress(OSError):  # it is not there, or holds something else
                (self.path / folder).rmdir()

    def _outputs(self) -> list[Path]:
        """The files that attempts at the run have written, going by their names."""
        here, status = plain_files(self.path), self.read_status()
        names = [name for name in here if name in _OUTPUTS or TEMPORARY.fullmatch(name)]
        model = [] if status is None else language_model_files(status)
        return [
            *(self.path / name for name in names),
            *(self.path / name for name in model if (self.path / name).is_file()),
            *growing_logs(self.path),
            *checkpoint_files(self.path),
        ]

    @property
    def in_progress(self) -> bool:
        """Whether a process of this machine is at it now; nothing is written."""
        return is_locked(self.path / LOCK)


def language_model_files(status: Status) -> list[str]:
    """The files of a language model that a finished run left, by their names below its folder."""
    return [name for name in status.files if name.startswith(f"{LANGUAGE_MODEL}/")]


def find_runs(root: Path) -> list[RunDirectory]:
    """All run directories at or below a folder, in the order of their paths."""
    found = [Path(folder) for folder, folders, files in walk(root) if SPEC in files]
    return [RunDirectory(folder) for folder in sorted(found)]


def walk(
    root: Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """:func:`os.walk` without runs that were set aside, and without specs and plans that are no files.

    :param root: The folder to begin at.
    :param onerror: Is given the error of a folder that cannot be read.
    """
    for folder, folders, names in os.walk(root, onerror=onerror):
        files = [
            name for name in names if name not in (SPEC, PLAN) or os.path.isfile(os.path.join(folder, name))
        ]
        if not {SPEC, STATUS, LOCK}.isdisjoint(names):
            folders[:] = [name for name in folders if not _ASIDE.fullmatch(name)]
        yield folder, folders, files


def _differs_in_length_alone(there: RunSpec, asked: RunSpec) -> bool:
    same = {"stacked": asked.stacked, "n_timesteps": asked.n_timesteps}
    return there.model_copy(update=same) == asked


def describe_difference(there: RunSpec, asked: RunSpec) -> str:
    """The first few keys in which two specs differ, with both values."""
    if there.format < asked.format:
        return "an earlier version of srl made it, whose random streams were other ones"
    left, right = flatten(there.model_dump(mode="json")), flatten(asked.model_dump(mode="json"))
    different = [key for key in left | right if left.get(key) != right.get(key)]
    shown = [f"{key} is {left.get(key)!r} there and {right.get(key)!r} here" for key in different[:3]]
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    return "; ".join(shown) + more


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with keys such as ``hyperparams.gamma``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
