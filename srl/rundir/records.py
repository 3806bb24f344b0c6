"""Read the records of a run and check their integrity."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickletools
from collections import deque
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from pydantic import ValidationError

from srl.config.files import first_mistake
from srl.config.lenient import LenientSpec, read_leniently
from srl.config.spec import RunSpec
from srl.errors import UserError
from srl.rundir.files import is_locked, read_bytes
from srl.rundir.names import (
    EVALUATIONS,
    LOCK,
    MODEL,
    RESULTS,
    SPEC,
    STATUS,
    VECNORMALIZE,
    VERSIONS,
    language_model_files,
)
from srl.rundir.status import STATUS_TYPE, Status, digest_of

#: The first and last files that SB3 writes to ``model.zip``.
_MODEL_PARTS = {"data", "policy.pth", "system_info.txt"}
#: Bytes above which a file of the same size and modification time is assumed to be unchanged.
_LARGE = 65536


class RunRecords:
    """What a run has written to its folder: spec, status, versions and evaluations.

    :param path: The folder; it need not exist.
    """

    def __init__(self, path: Path):
        self.path = path

    def read_spec(self) -> RunSpec | None:
        """The run's spec; None if the folder contains no run.

        :raises UserError: If it cannot be read.
        """
        found = self.read_spec_leniently()
        return None if found is None else found.spec

    def read_spec_leniently(self) -> LenientSpec | None:
        """The run's spec with its unknown keys; None if the folder contains no run.

        :raises UserError: If it cannot be read.
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
        found, _ = self.find_spec()
        return None if found is None else found.spec

    def find_spec(self) -> tuple[LenientSpec | None, UserError | None]:
        """The run's spec, or why it cannot be read; neither if the folder contains no run."""
        try:
            return self.read_spec_leniently(), None
        except UserError as error:
            return None, error

    def check_spec(self, found: LenientSpec, status: Status | None) -> None:
        """Check that the spec of a finished run is unchanged.

        :raises UserError: If it is not.
        """
        if status is not None and status.state == "done" and self.spec_is_damaged(found, status):
            raise UserError(f"{self.path / SPEC}: damaged: changed since the run finished.")

    def read_status(self) -> Status | None:
        """The run's status; None if the run has not started, or its status cannot be read.

        Unknown fields of a newer srl are ignored. The checksum covers all fields, or the known ones.
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

    @property
    def has_status(self) -> bool:
        """Whether there is a status, readable or not."""
        return (self.path / STATUS).exists()

    def read_versions(self) -> dict[str, Any] | None:
        """Package versions, commit, platform and command of the run; None if they cannot be read."""
        try:
            versions = json.loads(read_bytes(self.path / VERSIONS))
        except (OSError, ValueError):
            return None
        return versions if isinstance(versions, dict) else None

    def check_file(self, name: str, content: bytes, status: Status | None) -> None:
        """Check that a file of a finished run is unchanged.

        :raises UserError: If it is not.
        """
        sealed = status.files.get(name) if status is not None and status.state == "done" else None
        if sealed is not None and hashlib.sha256(content).hexdigest() != sealed[2]:
            raise UserError(f"{self.path / name}: damaged: changed since the run finished.")

    def damage(self) -> list[str]:
        """The damage to the run's results, in lines; empty if there is none, or no run.

        A finished run with damaged results is retrained. If only its status is damaged, the results decide.
        """
        status = self.read_status()
        found, problem = self.find_spec()
        problems = [] if problem is None else [str(problem)]
        if not problems and self.spec_is_damaged(found, status):
            missing = found is None and not (self.path / SPEC).exists()
            problems.append(
                f"{self.path / SPEC}: {'missing' if missing else 'damaged: changed since the run finished'}."
            )
        if status is None and not (found is not None and self._is_complete(found.spec)):
            problems += self.status_problem()
        if status is not None and status.state == "done":
            problems += self.sealed_damage(status, [*RESULTS[1:], *language_model_files(status)])
            problems += self._damage_of_evaluations(status)
        elif os.path.lexists(self.path / EVALUATIONS):
            problems += self._damage_of_evaluations(status)
        return list(dict.fromkeys(problems))

    def minor_damage(self, *, thorough: bool = True) -> list[str]:
        """The damage to other files, in lines: no result depends on them, and it is only reported.

        :param thorough: As in :meth:`sealed_damage`.
        """
        status = self.read_status()
        if status is None and not self.damage():
            return [f"{line} Its evaluations and model are complete." for line in self.status_problem()]
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
        """The files of a finished run that have changed, in lines.

        :param names: The files to check; those that are not in the status are skipped.
        :param thorough: Whether large files are read if their modification time differs, as in a copy. If
            not, only their size is compared.
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

    def model_damage(self, status: Status) -> list[str]:
        """The damage to a finished run's model, in lines; large files are compared by size only."""
        return self.sealed_damage(status, [*RESULTS[2:], *language_model_files(status)], thorough=False)

    def status_problem(self) -> list[str]:
        """A line on a status that cannot be read; empty if the run never had one."""
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
        """Whether the run is done and its results are complete.

        If its status is damaged or missing, it is done if its evaluations reach its last step and its model
        is complete: a run writes them in that order.
        """
        status = self.read_status()
        if status is not None:
            return status.state == "done" and not self.damage()
        spec = self.readable_spec()
        return spec is not None and self._is_complete(spec)

    def _is_complete(self, spec: RunSpec) -> bool:
        """Whether the results are complete, regardless of the status."""
        try:
            evaluations = self.read_evaluations()
            with ZipFile(io.BytesIO(read_bytes(self.path / MODEL))) as model:
                # A truncated file may end with a complete archive, one of torch's files in it
                is_complete = set(model.namelist()) >= _MODEL_PARTS and model.testzip() is None
            if spec.hyperparams.normalize is not None:
                # Reads to the end of the pickle, and executes nothing
                deque(pickletools.genops(read_bytes(self.path / VECNORMALIZE)), maxlen=0)
        except Exception:  # zipfile, zlib and pickletools raise various errors
            return False
        return is_complete and has_final_evaluation(evaluations, spec.n_timesteps)

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
        except Exception as error:  # zipfile, zlib and numpy raise various errors
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
            raise UserError(f"{file}: damaged: its steps do not increase.")
        return evaluations

    def spec_is_damaged(self, found: LenientSpec | None, status: Status | None) -> bool:
        """Whether the spec is missing, or differs from the one that an attempt has written."""
        if status is None or SPEC not in status.files:
            return False
        return found is None or status.files[SPEC][2] not in found.digests

    @property
    def in_progress(self) -> bool:
        """Whether a process of this machine is training the run now; nothing is written."""
        return is_locked(self.path / LOCK)


def has_final_evaluation(evaluations: dict[str, np.ndarray[Any, Any]], n_timesteps: int) -> bool:
    """Whether the last evaluation is that of the last training step, and has a finite mean return."""
    return bool(
        evaluations["timesteps"][-1] >= n_timesteps and np.isfinite(evaluations["results"][-1].mean())
    )
