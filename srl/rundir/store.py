"""The run directory: the only truth about what happened in a run.

| file | what it is |
| --- | --- |
| ``spec.json`` | the full :class:`~srl.config.spec.RunSpec` |
| ``status.json`` | state (``running``, ``done``, ``failed``), progress, times, and why it failed |
| ``versions.json`` | package versions, commit, platform and command |
| ``monitor/N.monitor.csv`` | SB3's Monitor: raw return, length and time of each training episode |
| ``progress.csv``, ``events.out.tfevents.*`` | SB3's logger |
| ``evaluations.npz`` | as SB3's EvalCallback writes it: ``timesteps``, ``results``, ``ep_lengths`` |
| ``model.zip``, ``vecnormalize.pkl`` | the final model and its observation and reward statistics |
| ``checkpoints/STEPS.npz`` | of a run that is not finished: what it needs to go on |
| ``error.txt`` | the traceback of a run that failed |
| ``output.log`` | what a sweep's run printed |
| ``model/``, ``samples.json`` | a language model in place of ``model.zip``, and texts before and after |

Besides, ``evaluations.npz`` has ``successes`` if an episode reported ``is_success``, and
``reached_max_steps`` if one was truncated by ``eval_max_episode_steps``: bool, (n_evaluations, n_episodes).

Logs grow line by line; every other file is written whole or not at all. Files of other names are never
changed.

A run is finished if its results are whole: spec, evaluations, model and, if it normalizes observations or
rewards, ``vecnormalize.pkl``, without which the model is of no use. Damage to other files is reported only.
Before a run that had finished is retrained, its files move to ``damaged-N``, which nothing reads.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import pickletools
import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import IO, Any, Literal
from zipfile import ZipFile

import numpy as np
from pydantic import TypeAdapter, ValidationError

from srl.config.algorithms import get_algorithm
from srl.config.files import first_mistake
from srl.config.lenient import LenientSpec, read_leniently, spec_text
from srl.config.spec import RunSpec
from srl.errors import UserError

SPEC = "spec.json"
STATUS = "status.json"
VERSIONS = "versions.json"
EVALUATIONS = "evaluations.npz"
MODEL = "model.zip"
VECNORMALIZE = "vecnormalize.pkl"
MONITOR = "monitor"
CHECKPOINTS = "checkpoints"
PROGRESS = "progress.csv"
ERROR = "error.txt"
LOG = "output.log"
LOCK = "run.lock"
#: A language model as transformers saves it, and texts that it wrote before and after training.
LANGUAGE_MODEL = "model"
SAMPLES = "samples.json"

#: The results of a run: what must be whole for it to count as finished.
RESULTS = (SPEC, EVALUATIONS, MODEL, VECNORMALIZE)
#: Names of what attempts at a run write, and a new attempt starts without.
_OUTPUTS = (VERSIONS, PROGRESS, EVALUATIONS, MODEL, VECNORMALIZE, SAMPLES, ERROR)
_EVENTS = re.compile(r"events\.out\.tfevents\.[0-9]+(\..+\.[0-9]+\.[0-9]+)?")
_MONITOR_FILE = re.compile(r"[0-9]+\.monitor\.csv")
CHECKPOINT = re.compile(r"(?:0|[1-9][0-9]*)\.npz")
#: What :func:`replacing` adds to a name: a random part by tempfile.mkstemp.
RANDOM = r"\.[a-z0-9_]{8}"
_REPLACED = (SPEC, STATUS, VERSIONS, EVALUATIONS, MODEL, VECNORMALIZE, SAMPLES, ERROR)
TEMPORARY = re.compile(rf"\.(?:{'|'.join(map(re.escape, _REPLACED))}){RANDOM}")
TEMPORARY_CHECKPOINT = re.compile(rf"\.[0-9]+\.npz{RANDOM}")
#: What SB3 writes into ``model.zip`` first and last.
_MODEL_PARTS = {"data", "policy.pth", "system_info.txt"}
#: Where the files of a finished run go before it is retrained.
_ASIDE = re.compile(r"damaged-[0-9]+")
#: Bytes above which a file of the same size and time of change is taken to be the same.
_LARGE = 65536
#: Notes that a status keeps, the latest.
_MOST_NOTES = 50

#: The plan of a sweep, in its folder: which runs there are to be.
PLAN = "sweep.json"
PLAN_FORMAT = 1

State = Literal["running", "done", "failed"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all.

    :param path: The file to be.
    :return: A context that yields a path beside it to write to, and moves that to ``path`` at its end,
        after the content has reached the disk; on an exception nothing changes. The file at that path is
        locked meanwhile.
    :raises UserError: If ``path`` is a link, or no file: srl writes plain files, and replaces no others.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{path} is {_kind(path)}, and srl writes a file there. Move it away.")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes files that only their owner can read
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)  # a failing write does not say of which file
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        # Names of files may hold bytes that are no text
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    :raises OSError: If it cannot be read, or is a pipe or a device, which could keep a reader waiting.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def plain_files(folder: Path) -> dict[str, os.stat_result]:
    """The files in a folder by their names, without links; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            states = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    except OSError:
        return {}
    return {name: status for name, status in states.items() if S_ISREG(status.st_mode)}


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


def _kind(path: Path) -> str:
    """What is at a path where srl writes something else, in words."""
    mode = path.lstat().st_mode
    if S_ISLNK(mode):
        return "a link"
    if S_ISDIR(mode):
        return "a folder"
    return "no folder" if S_ISREG(mode) else "no file"


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    state: State
    timesteps: int = 0
    n_timesteps: int = 0
    #: The progress of the evaluation that is running, such as "3/10 episodes, 12,300 steps"; empty for none.
    evaluation: str = ""
    #: Training steps per second of the latest attempt, evaluations included, from its first step on.
    steps_per_second: float = 0.0
    #: Seconds that this speed is the mean of, by the monotonic clock.
    seconds: float = 0.0
    #: Seconds since 1970; 0 for not yet.
    started: float = 0.0
    updated: float = 0.0
    ended: float = 0.0
    #: Why it failed, in one line.
    reason: str = ""
    #: Whether it would fail so again, from the same checkpoint.
    lasting: bool = False
    pid: int = 0
    host: str = ""
    #: The machine's monotonic clock at the last heartbeat, and the boot that it counts from.
    clock: float = 0.0
    boot: str = ""
    #: Training steps of the checkpoint that it went on from last; 0 for none.
    resumed_from: int = 0
    #: How often it was begun or gone on with.
    attempts: int = 1
    #: Seconds that compiling the update took; 0 if nothing was compiled.
    compile_seconds: float = 0.0
    #: Why earlier attempts ended, and why it could not go on from a checkpoint, in lines.
    notes: tuple[str, ...] = ()
    #: Of a finished run: size, time of change in nanoseconds and SHA-256 of each file that it left.
    files: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def noted(self, note: str) -> Status:
        """This status with one more note."""
        return replace(self, notes=(*self.notes, note)[-_MOST_NOTES:])

    def ended_as(self, state: State, now: float, reason: str = "") -> Status:
        """This status, ended."""
        return replace(self, state=state, updated=now, ended=now, reason=reason)

    @property
    def silence(self) -> float | None:
        """Seconds since the last heartbeat; None if this machine cannot know: its wall clock may jump."""
        known = self.boot != "" and self.boot == boot_id()
        return max(time.monotonic() - self.clock, 0.0) if known else None


@cache
def boot_id() -> str:
    """The latest boot of this machine, from which the monotonic clock of all its processes counts.

    :return: Different for each boot of each machine; empty if the system does not tell.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


_STATUS = TypeAdapter(Status)


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

    def check_spec(self, found: LenientSpec, status: Status | None) -> None:
        """See that the spec of a finished run is the one that the run had.

        :raises UserError: If it is not.
        """
        sealed = status.files.get(SPEC) if status is not None and status.state == "done" else None
        if sealed is not None and sealed[2] not in found.digests:
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
            if checksum not in ("", _checksum(values), _checksum(known)):
                return None
            return _STATUS.validate_python(known)
        except (OSError, ValueError, TypeError, AttributeError):
            return None

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
        values["checksum"] = _checksum(values)
        write_text(self.path / STATUS, json.dumps(values, indent=1) + "\n")

    def seal(self, names: Collection[str] | None = None) -> dict[str, tuple[int, int, str]]:
        """Size, time of change and digest of files, for the run's status: see :attr:`Status.files`.

        :param names: Which; None takes all that a finished run leaves.
        """
        if names is None:
            logs = [file.relative_to(self.path).as_posix() for file in growing_logs(self.path)]
            model = [f"{LANGUAGE_MODEL}/{name}" for name in plain_files(self.path / LANGUAGE_MODEL)]
            names = [*RESULTS, VERSIONS, PROGRESS, SAMPLES, *model, *logs]
        sealed = {}
        for name in sorted(names):
            file = self.path / name
            if file.is_file():
                content = read_bytes(file)
                sealed[name] = (len(content), file.stat().st_mtime_ns, hashlib.sha256(content).hexdigest())
        return sealed

    def check_file(self, name: str, content: bytes, status: Status | None) -> None:
        """See that a file of a finished run is as the run left it.

        :param name: Its name below the folder.
        :param content: What it holds.
        :param status: The run's.
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
        problems = []
        status = self.read_status()
        found: LenientSpec | None = None
        try:
            found = self.read_spec_leniently()
        except UserError as error:
            problems.append(str(error))
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
        try:
            found = self.read_spec_leniently()
        except UserError:
            return False
        return found is not None and self._is_complete(found.spec)

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
        """Write the status of a finished run anew if it is damaged or missing.

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
        """What is to be done here for a spec; nothing is written.

        :raises UserError: If the folder is a file, cannot be written to, belongs to another spec or to a
            newer srl, holds what is no run, or has something else in the place of a run's file.
        """
        check_writable(self.path)
        status = self.read_status()
        problem: UserError | None = None
        found: LenientSpec | None = None
        try:
            found = self.read_spec_leniently()
        except UserError as error:
            problem = error
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
                if not (is_damaged and self._was_for(spec, status)):
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
        try:
            there = self.read_spec()
        except UserError:
            return spec
        if there is None:
            return spec
        kept = spec.model_copy(update={"compile_update": there.compile_update})
        return kept if there.model_copy(update={"stacked": spec.stacked}) == kept else spec

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
                    f"{file} is {_kind(file)}, and the run writes a {what} there. Move it away; nothing was "
                    "written."
                )

    def _spec_is_damaged(self, found: LenientSpec | None, status: Status | None) -> bool:
        """Whether the spec is missing, or another than an attempt at the run has written."""
        if status is None or SPEC not in status.files:
            return False
        return found is None or status.files[SPEC][2] not in found.digests

    def _was_for(self, spec: RunSpec, status: Status | None) -> bool:
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
        :param keep: Leave what an earlier attempt left, for one that goes on from there.
        :return: A context that yields what :meth:`compare` says; of a finished run nothing is removed.
        :raises UserError: If another process is at it, or it does not fit the spec.
        """
        self.compare(spec)
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("a+") as lock:
            if not _acquire(lock):
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


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def is_locked(file: Path) -> bool:
    """Whether a process has locked a file, as far as this one can tell; nothing is written."""
    try:
        # Opening a pipe would wait
        opened = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(opened)
    return False


def _acquire(lock: IO[str]) -> bool:
    """Lock a file for this process, as long as it is open."""
    # Whoever looks whether a run is in progress holds the lock for an instant
    for _ in range(10):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


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


@dataclass(frozen=True)
class PlannedRun:
    """A run that a sweep is to make."""

    #: Its folder, below the sweep's.
    path: str
    env: str
    algo: str
    noise: str
    seed: int
    n_timesteps: int
    #: The name of its column, if that is not the algorithm's.
    variant: str | None = None

    @classmethod
    def of(cls, spec: RunSpec) -> PlannedRun:
        """The plan's entry of a run."""
        return cls(spec.path, spec.env, spec.algo, spec.noise, spec.seed, spec.n_timesteps, spec.variant)


def read_plan(root: Path) -> list[PlannedRun]:
    """The runs that the sweeps in a folder are to make; empty without a plan.

    :raises UserError: If there is a plan that cannot be read.
    """
    return [] if (plan := _load_plan(root)) is None else plan[0]


def check_plan(root: Path) -> None:
    """See that the plan of a sweep can be written: none is there yet, or one that this version writes.

    :raises UserError: If it is a link, cannot be read, or has keys of a newer srl or of another program.
    """
    file = root / PLAN
    plan = _load_plan(root)
    if file.is_symlink():
        raise UserError(f"{file} is a link, and srl writes a file there. Move it away; nothing was written.")
    if plan is not None and plan[1]:
        raise _newer(file, plan[1])


def _load_plan(root: Path) -> tuple[list[PlannedRun], dict[str, Any]] | None:
    """The plan in a folder, and values of keys that this version does not write; None without a plan."""
    file = root / PLAN
    try:
        values = json.loads(read_bytes(file))
        plan = TypeAdapter(list[PlannedRun]).validate_python(values["runs"])
        for run in plan:
            get_algorithm(run.algo)
        own = {each.name for each in fields(PlannedRun)}
        unknown = {key: value for key, value in values.items() if key not in ("format", "compare", "runs")}
        if values.get("format", PLAN_FORMAT) != PLAN_FORMAT:
            unknown["format"] = values["format"]
        for run in values["runs"]:
            unknown |= {f"runs.{key}": value for key, value in run.items() if key not in own}
        return plan, unknown
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file}: not the plan of a sweep: {what}. Remove it to continue without it."
        ) from None


def read_comparisons(root: Path) -> list[tuple[str, str]]:
    """Return the pairs of columns that the sweeps in a folder compare; empty without any, or a plan."""
    try:
        pairs = json.loads(read_bytes(root / PLAN)).get("compare", [])
        return TypeAdapter(list[tuple[str, str]]).validate_python(pairs)
    except (OSError, ValueError, AttributeError):
        return []  # `read_plan` says what is wrong with it


def _newer(file: Path, unknown: dict[str, Any]) -> UserError:
    """What there is to say of a file in a folder that this version must not write to."""
    keys = ", ".join(f"{key}={value!r}" for key, value in list(unknown.items())[:3])
    return UserError(
        f"{file} was written by a newer version of srl, or by another program: {keys} is not known here. "
        "Update srl, or name another folder with --out; nothing was written."
    )


def check_writable(path: Path) -> None:
    """See that a folder can be written to, or made.

    :raises UserError: If it is a file or lies below one, or may not be written.
    """
    try:
        nearest_existing = path
        while not nearest_existing.exists():
            nearest_existing = nearest_existing.parent
        if not nearest_existing.is_dir():
            raise UserError(f"{nearest_existing} is a file, and a folder is needed. Name another with --out.")
        # Permissions alone do not tell: the file system may be mounted read-only
        with tempfile.TemporaryFile(dir=nearest_existing):
            pass
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}. Name another folder with --out."
        ) from None


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
