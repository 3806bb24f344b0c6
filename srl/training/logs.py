"""The logs of a run: written in the same order in every process, and continued after an interruption."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat

from srl.errors import UserError
from srl.rundir.files import read_bytes
from srl.rundir.names import PROGRESS, growing_logs


class ProgressCsv(CSVOutputFormat):
    """SB3's ``progress.csv``, with columns in the order of their names within a row that brings new ones.

    SB3 takes them out of a set, in an order that changes from process to process.

    :param file: The file; it is overwritten.
    :param text: What it has already.
    """

    def __init__(self, file: Path, text: str = ""):
        super().__init__(str(file))
        self.file.write(text)
        self.file.flush()
        self.keys = text.partition("\n")[0].split(self.separator) if text else []

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        new = sorted(
            key for key in key_values if key not in self.keys and "csv" not in (key_excluded.get(key) or ())
        )
        if new:
            self.file.seek(0)
            lines = self.file.read().splitlines()[1:]
            self.keys += new
            rows = [self.separator.join(self.keys), *(line + self.separator * len(new) for line in lines)]
            self.file.seek(0)
            self.file.write("".join(f"{row}\n" for row in rows))
        super().write(key_values, key_excluded, step)


def make_logger(folder: Path, progress: str = "") -> Logger:
    """The logger of a run.

    :param folder: The run's; it is not made, since one that is gone was removed by somebody.
    :param progress: What ``progress.csv`` has already.
    :raises OSError: If it is not there.
    """
    outputs = [ProgressCsv(folder / PROGRESS, progress), TensorBoardOutputFormat(str(folder))]
    return Logger(str(folder), outputs)  # type: ignore[arg-type]


def log_state(folder: Path, logger: Logger) -> dict[str, Any]:
    """What has been logged so far, and what waits to be, as plain data.

    :param folder: The run's.
    :param logger: The run's. What it has written is brought to the disk.
    """
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            output.writer.flush()
    return {
        "values": dict(logger.name_to_value),
        "counts": dict(logger.name_to_count),
        "excluded": dict(logger.name_to_excluded),
        "progress": (folder / PROGRESS).read_text(encoding="utf-8"),
        "grown": {file.relative_to(folder).as_posix(): _written(file) for file in growing_logs(folder)},
    }


def _written(file: Path) -> list[Any]:
    """The size of a file that has reached the disk, and the digest of what it holds."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        content = opened.read()
    return [len(content), hashlib.sha256(content).hexdigest()]


def cut_logs(folder: Path, state: dict[str, Any]) -> None:
    """Cut the logs that only grow back to what they were.

    :param folder: The run's.
    :param state: What :func:`log_state` gave.
    :raises UserError: If one is damaged; all are as they were then.
    """
    for name, (size, digest) in state["grown"].items():
        try:
            content = read_bytes(folder / name)[:size]
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be read: {error.strerror}.") from None
        if len(content) != size or hashlib.sha256(content).hexdigest() != digest:
            raise UserError(f"{folder / name}: damaged.")
    for file in growing_logs(folder):
        name = file.relative_to(folder).as_posix()
        if name in state["grown"]:
            os.truncate(file, state["grown"][name][0])
        else:
            file.unlink()


def goes_on_from(folder: Path, state: dict[str, Any]) -> bool:
    """Whether ``progress.csv`` is what it was, or has grown since by rows and columns.

    :param folder: The run's.
    :param state: What :func:`log_state` gave.
    """
    try:
        now = read_bytes(folder / PROGRESS).decode().splitlines()
    except (OSError, ValueError):
        return False
    then = state["progress"].splitlines()
    return len(now) >= len(then) and all(new.startswith(old) for new, old in zip(now, then, strict=False))


def restore_logger(logger: Logger, state: dict[str, Any]) -> None:
    """Give a logger what waited to be logged.

    :param logger: New, made with ``state["progress"]``.
    :param state: What :func:`log_state` gave.
    """
    logger.name_to_value.update(state["values"])
    logger.name_to_count.update(state["counts"])
    logger.name_to_excluded.update(
        {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in state["excluded"].items()
        }
    )
