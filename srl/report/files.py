"""Write the files of a report or a study, which replace only files of earlier ones.

The output folder has a record, ``.srl-report.json``, of the files that srl wrote there, with their SHA-256. A
file that is not in the record, or has changed since, belongs to the user. While files are replaced, the
record contains the digests of the old and the new ones: after a kill, the report can be written again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING

from srl.errors import UserError
from srl.report.earlier import is_of_earlier_version
from srl.report.folders import RECORD
from srl.rundir.files import check_writable, read_bytes, replacing, write_text
from srl.rundir.names import SPEC

if TYPE_CHECKING:
    from srl.report.tables import Table

_LOCK = ".srl-report.lock"

#: Writes the content of a file to a path.
Writer = Callable[[Path], object]
#: SHA-256 digests of the files that srl wrote, by path below the output folder.
_Record = dict[str, list[str]]


def check_folder(out: Path) -> None:
    """Check that a report can be written to a folder.

    :raises UserError: If it is in a run's folder, or is not writable.
    """
    for folder in (out.resolve(), *out.resolve().parents):
        if (folder / SPEC).is_file():
            raise UserError(
                f"{out} is inside a run directory, where reports are not written. Name another with --out."
            )
    check_writable(out)


def check_files(out: Path, names: Iterable[str], copies: Mapping[str, Path] | None = None) -> None:
    """Check that files can be written to a folder without replacing files that srl did not write.

    :param out: The folder; it need not exist.
    :param names: Paths below it.
    :param copies: Files to copy by their path below it, which may replace identical files.
    :raises UserError: If srl did not write an existing file, or it was changed since.
    """
    names, copies, lock = list(names), copies or {}, out / _LOCK
    is_first = not lock.exists()
    foreign = _foreign_files(out, names, copies) if is_first else set()
    # Another report may be in progress; its files are in the record when it is done
    if lock.exists() and (foreign or not is_first):
        with lock.open() as opened:
            fcntl.flock(opened, fcntl.LOCK_SH)
            foreign = _foreign_files(out, names, copies)
    _refuse(out, foreign)


def _foreign_files(out: Path, names: Iterable[str], copies: Mapping[str, Path]) -> set[str]:
    """The existing files among these that srl did not write."""
    record = _read_record(out)
    foreign = {place for name in [*names, *copies] if (place := _foreign(out, name, record)) is not None}
    return foreign - {name for name in foreign & copies.keys() if _is_same(out / name, copies[name])}


def _refuse(out: Path, foreign: Iterable[str]) -> None:
    if foreign:
        shown = [str(out / place) for place in sorted(foreign)]
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        raise UserError(
            f"{', '.join(shown[:3])}{more}: not written by srl, or changed since. Move away what you want to "
            "keep, or name another folder with --out; nothing was written."
        )


def write_files(
    out: Path,
    files: Mapping[str, Writer],
    *,
    copies: Mapping[str, Path] | None = None,
    instead_of: Sequence[str] = (),
) -> list[Path]:
    """Write the files of a report, all or none unless the process is killed, and record them as srl's.

    :param files: The writer of each file, by path below the folder.
    :param copies: Files to copy, by path below the folder.
    :param instead_of: Other files of earlier reports to remove: their paths, and folders of them.
    :return: The files.
    :raises UserError: If the folder is not writable, or contains other files in the way; nothing is written.
    """
    check_folder(out)
    check_files(out, files, copies)
    out.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Writer] = dict(files)
    writers |= {name: partial(shutil.copyfile, source) for name, source in (copies or {}).items()}
    with (out / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _refuse(out, _foreign_files(out, files, copies or {}))  # another report may have been written since
        old = _read_record(out)
        try:
            new = _replace(out, writers, old)
        except BaseException:
            for name in writers:
                _remove_empty(out, name)
            raise
        stale = {
            name
            for name in old.keys() - new.keys()
            if any(PurePosixPath(name).is_relative_to(path) for path in instead_of)
        }
        for name in stale:
            if _foreign(out, name, old) is None:
                (out / name).unlink(missing_ok=True)
                _remove_empty(out, name)
        _write_record(out, {name: digests for name, digests in (old | new).items() if name not in stale})
    return [out / name for name in writers]


def _replace(out: Path, writers: Mapping[str, Writer], old: _Record) -> _Record:
    """Write all files to temporary ones, then replace the old files; return their record."""
    new: _Record = {}
    with ExitStack() as stack:
        for name, write in writers.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(replacing(out / name))
            write(temporary)
            new[name] = [_digest(temporary)]
        there = {name: [_digest(out / name)] for name in writers if (out / name).exists()}
        _write_record(out, old | {name: new[name] + there.get(name, []) for name in new})
    return new


def table_files(name: str) -> list[str]:
    """The files of a table, by its name."""
    return [f"{name}.{ending}" for ending in ("md", "csv", "tex")]


def table_writers(tables: Sequence[Table], left_out: Sequence[str]) -> dict[str, Writer]:
    """Tables as Markdown, CSV and LaTeX, for :func:`write_files`."""
    # SciPy, which tables need, takes half a second to import
    from srl.report.table_formats import to_csv, to_latex, to_markdown

    writers: dict[str, Writer] = {}
    for table in tables:
        texts = (to_markdown(table, left_out), to_csv(table), to_latex(table))
        writers |= {
            name: text_writer(text) for name, text in zip(table_files(table.name), texts, strict=True)
        }
    return writers


def text_writer(text: str) -> Writer:
    """The writer of a text, which may contain undecodable bytes of file names."""
    return bytes_writer(text.encode(errors="backslashreplace"))


def bytes_writer(content: bytes) -> Writer:
    """The writer of bytes."""
    return lambda path: path.write_bytes(content)


def write_tables(tables: Sequence[Table], out: Path, left_out: Sequence[str]) -> list[Path]:
    """Write tables as Markdown, CSV and LaTeX; see :func:`table_writers` and :func:`write_files`."""
    return write_files(out, table_writers(tables, left_out))


def _foreign(out: Path, name: str, record: _Record) -> str | None:
    """The path below the output folder that is in the way of a file and not srl's; None if there is none."""
    *folders, _ = PurePosixPath(name).parts
    for number in range(1, len(folders) + 1):
        folder = "/".join(folders[:number])
        if os.path.lexists(out / folder) and not S_ISDIR((out / folder).lstat().st_mode):
            return folder
    file = out / name
    if not os.path.lexists(file):
        return None
    if not S_ISREG(file.lstat().st_mode):
        return name
    if name in record:
        return None if _digest(file) in record[name] else name
    return None if is_of_earlier_version(name, read_bytes(file)) else name


def _read_record(out: Path) -> _Record:
    file = out / RECORD
    try:
        files = json.loads(read_bytes(file))["files"]
        # Files of the record may be deleted, so it must not name others outside of the folder
        paths = [PurePosixPath(name) for name in files]
        if not file.is_symlink() and not any(path.is_absolute() or ".." in path.parts for path in paths):
            return {name: [str(digest) for digest in digests] for name, digests in files.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    raise UserError(
        f"{file}: not the record of a report, or damaged. Move it away with the files that it lists; "
        "nothing was written."
    )


def _write_record(out: Path, record: _Record) -> None:
    content = {"format": 1, "files": dict(sorted(record.items()))}
    write_text(out / RECORD, json.dumps(content, indent=1) + "\n")


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        for part in iter(lambda: opened.read(2**20), b""):
            digest.update(part)
    return digest.hexdigest()


def _is_same(file: Path, other: Path) -> bool:
    return S_ISREG(file.lstat().st_mode) and _digest(file) == _digest(other)


def _remove_empty(out: Path, name: str) -> None:
    """Remove the empty parent folders of a file."""
    with suppress(OSError):
        for folder in list(PurePosixPath(name).parents)[:-1]:
            (out / folder).rmdir()
