"""Follow run directories and send what is new in them."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import math
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from srl.config.lenient import spec_text
from srl.config.spec import RunSpec
from srl.rundir.directory import RunDirectory
from srl.rundir.files import read_bytes, write_text
from srl.rundir.names import MODEL, PROGRESS, VECNORMALIZE, VERSIONS
from srl.tracking.backends import STEP_COLUMN, Backend, Sent

#: The file in a run directory that records what was sent.
TRACKING = "tracking.json"
#: Columns of ``progress.csv`` that are not sent as metrics.
_LEFT_OUT = {STEP_COLUMN, "time/time_elapsed", "time/fps"}


def read_progress(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Read the complete lines of SB3's ``progress.csv``.

    :return: Training steps and finite numbers by name.
    """
    try:
        text = read_bytes(path / PROGRESS).decode()
    except (OSError, UnicodeDecodeError):
        return []
    rows = []
    for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])):
        values = {}
        for name, word in row.items():
            with suppress(TypeError, ValueError):
                if math.isfinite(number := float(word)):
                    values[name] = number
        step = int(values.get(STEP_COLUMN, 0))
        rows.append((step, {name: value for name, value in values.items() if name not in _LEFT_OUT}))
    return rows


@dataclass
class Follower:
    """Sends what is new in run directories.

    :param project: The project's or experiment's name.
    :param paths: The runs' folders, which need not exist yet.
    """

    backend_name: str
    project: str
    paths: Sequence[Path]
    backend: Backend
    #: Open tracked runs by folder.
    _open: dict[Path, Sent] = field(default_factory=dict)
    #: Their locks: one process sends a run to a service.
    _locks: dict[Path, ExitStack] = field(default_factory=dict)
    #: Modification time and size of the ``progress.csv`` that was read last.
    _seen: dict[Path, tuple[int, int]] = field(default_factory=dict)
    #: Folders of completely sent runs.
    _complete: set[Path] = field(default_factory=set)

    def send_new(self, *, last: bool = False) -> list[str]:
        """Send what is new.

        :param last: Also finish the tracked runs of runs that are not done.
        :return: A line for each problem.
        """
        problems = []
        for path in self.paths:
            if path in self._complete:
                continue
            try:
                self._send_new_of(path, last)
            except Exception as error:  # of any package, server or disk
                text = " ".join(str(error).split())[:300]
                problems.append(f"{path}: {type(error).__name__}: {text}")
        return problems

    def _send_new_of(self, path: Path, last: bool) -> None:
        directory = RunDirectory(path)
        spec = directory.read_spec()
        status = directory.read_status()
        if spec is None or status is None:
            return
        is_done = status.state == "done"
        digest = hashlib.sha256(read_bytes(path / MODEL)).hexdigest() if is_done else ""
        if path not in self._open:
            recorded = self._recorded(path, spec)
            if recorded is not None and is_done and recorded.done and recorded.model == digest:
                self._complete.add(path)
                return
            if not self._start(path, spec):
                # The other process sends what is new, if it is for this project
                if last and recorded is None:
                    raise RuntimeError("another process tracks this run")
                return
        sent = self._open[path]
        self._send_rows(path, sent)
        if is_done or last:
            files = [path / name for name in (MODEL, VECNORMALIZE, VERSIONS) if (path / name).is_file()]
            self.backend.finish(sent.id, status.state, files if is_done and digest != sent.model else [])
            sent.model, sent.done = digest, is_done
            self._record(path, sent)
            del self._open[path]
            self._locks.pop(path).close()
            if is_done:
                self._complete.add(path)

    def _start(self, path: Path, spec: RunSpec) -> bool:
        """Open the tracked run of a run; return False if another process has it open."""
        with ExitStack() as stack:
            lock = stack.enter_context((path / f"tracking-{self.backend_name}.lock").open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:  # not every file system has locks
                pass
            group = spec.path.rpartition("/")[0]
            sent = self._recorded(path, spec)
            if sent is None:
                sent = Sent(self.backend_name, self.project, uuid.uuid4().hex[:12], _digest(spec))
                sent.id = self.backend.create(sent, spec, group)
                self._record(path, sent)
            self.backend.start(sent, spec, group)
            self._open[path] = sent
            self._locks[path] = stack.pop_all()
            return True

    def _send_rows(self, path: Path, sent: Sent) -> None:
        with suppress(FileNotFoundError):
            state = (path / PROGRESS).stat()
            if self._seen.get(path) == (state.st_mtime_ns, state.st_size):
                return
            rows = read_progress(path)
            if len(rows) > sent.rows:
                self.backend.log(sent.id, rows[sent.rows :])
                sent.rows = len(rows)
                self._record(path, sent)
            self._seen[path] = (state.st_mtime_ns, state.st_size)

    def _recorded(self, path: Path, spec: RunSpec) -> Sent | None:
        """Return the record of this run; None if there is none, or it is that of another run."""
        try:
            sent = Sent(**json.loads(read_bytes(path / TRACKING))[self.backend_name])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return sent if (sent.spec, sent.project) == (_digest(spec), self.project) else None

    def _record(self, path: Path, sent: Sent) -> None:
        records = {}
        with suppress(OSError, ValueError, TypeError):
            records = dict(json.loads(read_bytes(path / TRACKING)))
        records[self.backend_name] = asdict(sent)
        write_text(path / TRACKING, json.dumps(records, indent=1) + "\n")


def _digest(spec: RunSpec) -> str:
    """Return the digest of a spec, the same alone and in a population."""
    return hashlib.sha256(spec_text(spec.model_copy(update={"stacked": False})).encode()).hexdigest()
