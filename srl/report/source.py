"""Sources of other data of runs: run directories, or an archive of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from srl.report.runs import Run
from srl.report.samples import SampledText, read_samples
from srl.rundir.directory import RunDirectory
from srl.rundir.names import PROGRESS

if TYPE_CHECKING:
    from srl.report.curves import Series


class Source(Protocol):
    """Reads data of runs."""

    def versions(self, run: Run) -> dict[str, Any] | None:
        """Return package versions, commit, platform and command of a run; None if unknown."""
        ...

    def training(self, run: Run) -> Mapping[str, Series]:
        """Return the logged values of a run, see :func:`~srl.report.curves.read_training`.

        :raises UserError, OSError, ValueError: If it cannot be read.
        """
        ...

    def samples(self, run: Run) -> list[SampledText]:
        """Return texts of a language model before and after training; empty for other runs."""
        ...


@dataclass(frozen=True)
class Folders:
    """Run directories.

    :param root: The folder of the report.
    """

    root: Path

    def versions(self, run: Run) -> dict[str, Any] | None:
        """See :class:`Source`."""
        return RunDirectory(self.root / run.path).read_versions()

    def training(self, run: Run) -> Mapping[str, Series]:
        """See :class:`Source`."""
        # Needs packages of the extra `report`
        from srl.report.curves import read_training

        return read_training(self.root / run.path / PROGRESS, run.status)

    def samples(self, run: Run) -> list[SampledText]:
        """See :class:`Source`."""
        return read_samples(self.root / run.path)
