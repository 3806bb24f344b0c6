"""The run directory: the only truth about what happened in a run.

| file | what it is |
| --- | --- |
| ``spec.json`` | the full :class:`~srl.experiment.spec.RunSpec` |
| ``status.json`` | state (``running``, ``done``, ``failed``), progress, times, and why it failed |
| ``versions.json`` | package versions, commit, platform and command |
| ``monitor/N.monitor.csv`` | SB3's Monitor: raw return, length and time of each training episode |
| ``progress.csv``, ``events.out.tfevents.*`` | SB3's logger |
| ``evaluations.npz`` | as SB3's EvalCallback writes it: ``timesteps``, ``results``, ``ep_lengths`` |
| ``model.zip``, ``vecnormalize.pkl`` | the final model and its observation and reward statistics |
| ``checkpoints/STEPS.npz`` | of a run that is not finished: what it needs to go on |
| ``error.txt`` | the traceback of a run that failed |
| ``output.log`` | what a sweep's run printed |

Besides, ``evaluations.npz`` has ``successes`` if an episode reported ``is_success``, and
``reached_max_steps`` if one was truncated by ``eval_max_episode_steps``: bool, (n_evaluations, n_episodes).

Logs grow line by line; every other file is written whole or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from srl.errors import UserError
from srl.experiment.algorithms import get_algorithm
from srl.experiment.config_files import first_mistake
from srl.experiment.spec import RunSpec

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
EVENTS = "events.out.tfevents.*"

#: What an attempt at a run leaves behind, and the next attempt begins without.
_OUTPUTS = (
    PROGRESS,
    EVENTS,
    EVALUATIONS,
    MODEL,
    VECNORMALIZE,
    MONITOR,
    ERROR,
    VERSIONS,
    CHECKPOINTS,
    # What it had not finished writing, see `replacing`
    *(f".{name}.*" for name in (SPEC, STATUS, EVALUATIONS, MODEL, VECNORMALIZE, ERROR, VERSIONS)),
)

#: The files of a finished run that must be as it left them.
_SEALED = (SPEC, VERSIONS, PROGRESS, EVENTS, EVALUATIONS, MODEL, VECNORMALIZE, f"{MONITOR}/*.csv")
#: Bytes above which a file of the same size and time of change is taken to be the same.
_LARGE = 65536
#: Notes that a status keeps, the latest.
_MOST_NOTES = 50

#: The plan of a sweep, in its folder: which runs there are to be.
PLAN = "sweep.json"

State = Literal["running", "done", "failed"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all.

    :param path: The file to be.
    :return: A context that yields a path beside it to write to, and moves that to ``path`` at its end,
        after the content has reached the disk; on an exception nothing changes. The file at that path is
        locked meanwhile.
    """
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
        file = self.path / SPEC
        try:
            return RunSpec(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            keys, message = first_mistake(error)
            raise UserError(f"{file}, key {'.'.join(map(str, keys))}: {message}") from None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{file}: not the spec of a run: {error}") from None

    def read_status(self) -> Status | None:
        """How far the run is; None if it has not begun, or its status cannot be read."""
        try:
            values = json.loads((self.path / STATUS).read_text(encoding="utf-8"))
            if values.pop("checksum", "") not in ("", _checksum(values)):
                return None
            values["notes"] = tuple(values.get("notes", ()))
            values["files"] = {name: tuple(file) for name, file in values.get("files", {}).items()}
            return Status(**values)
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    @property
    def has_status(self) -> bool:
        """Whether there is a status, be it one that cannot be read."""
        return (self.path / STATUS).exists()

    def read_versions(self) -> dict[str, Any] | None:
        """Package versions, commit, platform and command of the run; None if they cannot be read."""
        try:
            versions = json.loads((self.path / VERSIONS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return versions if isinstance(versions, dict) else None

    def write_status(self, status: Status) -> None:
        """Replace the status."""
        values = asdict(status)
        values["checksum"] = _checksum(values)
        write_text(self.path / STATUS, json.dumps(values, indent=1) + "\n")

    def seal(self, patterns: Sequence[str] = _SEALED) -> dict[str, tuple[int, int, str]]:
        """What the files of a run are, for its status: see :attr:`Status.files`."""
        sealed = {}
        for file in sorted(file for pattern in patterns for file in self.path.glob(pattern)):
            content = file.read_bytes()
            name = file.relative_to(self.path).as_posix()
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
        """What of the run is damaged, in lines; empty if nothing is, or there is no run."""
        problems = []
        try:
            self.read_spec()
        except UserError as error:
            problems.append(str(error))
        status = self.read_status()
        if self.has_status and status is None:
            problems.append(f"{self.path / STATUS}: damaged.")
        if not self.has_status and ((self.path / MODEL).exists() or (self.path / EVALUATIONS).exists()):
            problems.append(f"{self.path / STATUS}: missing.")
        if (self.path / VERSIONS).exists() and self.read_versions() is None:
            problems.append(f"{self.path / VERSIONS}: damaged.")
        if status is None or status.state != "done":
            if self._spec_is_damaged and not problems:
                there = (self.path / SPEC).exists()
                problems.append(
                    f"{self.path / SPEC}: {'damaged: not what the run left' if there else 'missing'}."
                )
            with suppress(FileNotFoundError):
                (self.path / EVALUATIONS).stat()
                problems += self._damage_of_evaluations(status)
            return problems
        for name, (size, changed, _) in status.files.items():
            file = self.path / name
            try:
                now = file.stat()
                if now.st_size != size:
                    problems.append(f"{file}: damaged: {now.st_size:,} bytes where the run left {size:,}.")
                elif size <= _LARGE or now.st_mtime_ns != changed:
                    self.check_file(name, file.read_bytes(), status)
            except FileNotFoundError:
                problems.append(f"{file}: missing.")
            except OSError as error:
                problems.append(f"{file}: cannot be read: {error.strerror}.")
            except UserError as error:
                problems.append(str(error))
        problems += self._damage_of_evaluations(status)
        return list(dict.fromkeys(problems))

    def _damage_of_evaluations(self, status: Status | None) -> list[str]:
        try:
            self.read_evaluations(status)
        except UserError as error:
            return [str(error)]
        return []

    def read_evaluations(self, status: Status | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """SB3's evaluations: ``timesteps`` (n_evaluations,), ``results`` (n_evaluations, n_episodes).

        :param status: The run's; None reads it.
        :raises UserError: If they are missing or damaged.
        """
        file = self.path / EVALUATIONS
        try:
            content = file.read_bytes()
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

        :raises UserError: If the folder is a file, cannot be written to, belongs to another spec, or holds
            what is no run.
        """
        check_writable(self.path)
        status = self.read_status()
        wrote = status is not None and SPEC in status.files
        problem: UserError | None = None
        there: RunSpec | None = None
        try:
            there = self.read_spec()
        except UserError as error:
            problem = error
        if there is None and problem is None and not wrote:
            # A run that ends before it could write its spec leaves these
            foreign = [file.name for file in self.path.glob("[!.]*") if file.name not in (LOCK, LOG, STATUS)]
            if foreign:
                raise UserError(
                    f"{self.path} holds {', '.join(sorted(foreign)[:3])} and is no run. Name another folder; "
                    "nothing was written."
                )
            return "new"
        # Alone or in a population, it is the same experiment
        if there is None or there.model_copy(update={"stacked": spec.stacked}) != spec:
            if self._spec_is_damaged and self._was_for(spec):
                return "unfinished"  # it is made again
            if there is None or self._spec_is_damaged:
                raise UserError(
                    f"{problem or self.path / SPEC} Whether {self.path} holds this run cannot be known. Name "
                    "another folder with --out, or move that one away; nothing was written."
                )
            raise UserError(
                f"{self.path} holds a run of another spec: {describe_difference(there, spec)}. Name another "
                "folder with --out, or move that one away; nothing was written."
            )
        # One that is damaged since is made again
        return "done" if status is not None and status.state == "done" and not self.damage() else "unfinished"

    @property
    def _spec_is_damaged(self) -> bool:
        """Whether the spec is missing, or another than an attempt at the run has written."""
        sealed = self._sealed_spec
        try:
            content = (self.path / SPEC).read_bytes()
        except OSError:
            return sealed is not None
        return sealed is not None and hashlib.sha256(content).hexdigest() != sealed

    @property
    def _sealed_spec(self) -> str | None:
        """The digest of the spec that an attempt at the run has written, if its status tells."""
        status = self.read_status()
        return status.files[SPEC][2] if status is not None and SPEC in status.files else None

    def _was_for(self, spec: RunSpec) -> bool:
        """Whether an attempt here was at this run, going by its status."""
        texts = [_as_text(spec.model_copy(update={"stacked": stacked})) for stacked in (False, True)]
        return self._sealed_spec in [hashlib.sha256(text.encode()).hexdigest() for text in texts]

    @contextmanager
    def claimed(self, spec: RunSpec, *, keep: bool = False) -> Iterator[Literal["new", "unfinished", "done"]]:
        """Make the folder this process' for one attempt at a run, rid of what an earlier attempt left.

        :param spec: The run.
        :param keep: Leave what an earlier attempt left, for one that goes on from there.
        :return: A context that yields what :meth:`compare` says; of a finished run nothing is removed.
        :raises UserError: If another process is at it, or it does not fit the spec.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("a+") as lock:
            if not _acquire(lock):
                status = self.read_status()
                who = f" (process {status.pid} on {status.host})" if status and status.pid else ""
                raise UserError(
                    f"{self.path}: another process{who} is training this run. Wait for it, or end it."
                )
            there = self.compare(spec)
            if there != "done":
                write_text(self.path / SPEC, _as_text(spec))
            if there == "unfinished" and not keep:
                self.clear()
            self._lock = lock
            try:
                yield there
            finally:
                self._lock = None

    @property
    def is_held(self) -> bool:
        """Whether the folder is still the one that this has made its process'."""
        try:
            there = (self.path / LOCK).stat()
        except OSError:
            return False
        return self._lock is not None and os.path.samestat(there, os.fstat(self._lock.fileno()))

    def clear(self) -> None:
        """Remove what attempts at the run have left."""
        for pattern in _OUTPUTS:
            for output in self.path.glob(pattern):
                shutil.rmtree(output) if output.is_dir() else output.unlink()

    @property
    def in_progress(self) -> bool:
        """Whether a process of this machine is at it now; nothing is written."""
        return is_locked(self.path / LOCK)


def _as_text(spec: RunSpec) -> str:
    return spec.model_dump_json(indent=1) + "\n"


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def is_locked(file: Path) -> bool:
    """Whether a process has locked a file, as far as this one can tell; nothing is written."""
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
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
    return [RunDirectory(file.parent) for file in sorted(root.rglob(SPEC))]


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
    file = root / PLAN
    try:
        runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
        plan = TypeAdapter(list[PlannedRun]).validate_python(runs)
        for run in plan:
            get_algorithm(run.algo)
        return plan
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: not the plan of a sweep: {what}. Remove it to go on without.") from None


def read_comparisons(root: Path) -> list[tuple[str, str]]:
    """Return the pairs of columns that the sweeps in a folder compare; empty without any, or a plan."""
    try:
        pairs = json.loads((root / PLAN).read_text(encoding="utf-8")).get("compare", [])
        return TypeAdapter(list[tuple[str, str]]).validate_python(pairs)
    except (OSError, ValueError, AttributeError):
        return []  # `read_plan` says what is wrong with it


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
