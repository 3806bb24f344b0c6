"""The logs of a run: written in a fixed order, and continued after an interruption."""

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
    """SB3's ``progress.csv`` with the new columns of a row sorted by name.

    SB3 takes them from a set, whose order differs from process to process.

    :param file: The file; it is overwritten.
    :param text: Its existing content.
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

    :param folder: The run's. It is not created: if it is missing, somebody has removed it.
    :param progress: Existing content of ``progress.csv``.
    :raises OSError: If the folder does not exist.
    """
    outputs = [ProgressCsv(folder / PROGRESS, progress), TensorBoardOutputFormat(str(folder))]
    return Logger(str(folder), outputs)  # type: ignore[arg-type]


def log_state(folder: Path, logger: Logger) -> dict[str, Any]:
    """The logged values and those that wait for the next dump, as plain data.

    :param folder: The run's.
    :param logger: The run's; its files are synchronized to the disk.
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
    """The size and the SHA-256 of a file, after it is synchronized to the disk."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        content = opened.read()
    return [len(content), hashlib.sha256(content).hexdigest()]


def cut_logs(folder: Path, state: dict[str, Any]) -> None:
    """Truncate the append-only logs to a recorded state.

    :param folder: The run's.
    :param state: From :func:`log_state`.
    :raises UserError: If one is damaged; then none is changed.
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


def progress_is_intact(folder: Path, state: dict[str, Any]) -> bool:
    """Whether ``progress.csv`` has its recorded content, apart from new rows and columns.

    :param folder: The run's.
    :param state: From :func:`log_state`.
    """
    try:
        now = read_bytes(folder / PROGRESS).decode().splitlines()
    except (OSError, ValueError):
        return False
    then = state["progress"].splitlines()
    return len(now) >= len(then) and all(new.startswith(old) for new, old in zip(now, then, strict=False))


def restore_logger(logger: Logger, state: dict[str, Any]) -> None:
    """Restore the values that waited for the next dump.

    :param logger: A new one, made with ``state["progress"]``.
    :param state: From :func:`log_state`.
    """
    logger.name_to_value.update(state["values"])
    logger.name_to_count.update(state["counts"])
    logger.name_to_excluded.update(
        {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in state["excluded"].items()
        }
    )
