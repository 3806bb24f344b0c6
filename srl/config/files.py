"""Shipped configuration files, and YAML files with errors reported by line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from srl.errors import UserError, nearest

_PACKAGE = Path(__file__).resolve().parent.parent


def configs_dir() -> Path:
    """The folder of the shipped configurations: next to the package in a checkout, else inside it."""
    for candidate in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if (candidate / "hyperparams").is_dir():
            return candidate
    raise UserError(
        f"The configuration files of srl are neither in {_PACKAGE / 'configs'} nor in "
        f"{_PACKAGE.parent / 'configs'}. The installation is incomplete; install it again."
    )


class _Loader(yaml.SafeLoader):
    """Safe loading without YAML 1.1's base-60 numbers, which read ``1:5`` as 65."""

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        is_number = tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        return "tag:yaml.org,2002:str" if kind is yaml.ScalarNode and is_number and ":" in value else tag


class ConfigFile:
    """A YAML file, read by safe loading, with the line of each key.

    :raises UserError: If the file is missing, unreadable, not YAML, not a mapping, or has a duplicate key.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{path}: there is no such file.{self._siblings()}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
        try:
            self._root = yaml.compose(text, Loader=_Loader)
            self._check_keys(self._root, set())
            data = yaml.load(text, Loader=_Loader)
        except UserError:
            raise
        except RecursionError:
            raise UserError(f"{path}: nested too deeply or recursively.") from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            hint = ""
            if error.problem and "could not determine a constructor" in error.problem:
                hint = " Only plain YAML is read; tags that make Python objects are not."
            raise UserError(f"{path}{where}: {error.problem or error.context}.{hint}") from None
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"{path}: not YAML: {error}") from None
        if not isinstance(data, dict):
            kind = {"NoneType": "empty", "str": "text", "list": "a list"}.get(type(data).__name__, "a value")
            raise UserError(f"{path}: must be a mapping of keys to values, and is {kind}.")
        self.data: dict[str, Any] = data

    def _siblings(self) -> str:
        names = sorted(file.name for file in self.path.parent.glob("*.yml"))
        folder = "The current folder" if self.path.parent == Path() else self.path.parent
        return f" {folder} holds {', '.join(names)}." if names else ""

    def _check_keys(self, node: yaml.Node | None, visited: set[int]) -> None:
        """Check that keys are text and unique; nodes of an anchor are visited once."""
        if node is None or id(node) in visited:
            return
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._check_keys(item, visited)
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                    written = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                    raise UserError(f"{self.path}, line {line}: the key {written} is not text. Quote it.")
                if key.value in seen and key.value != "<<":
                    raise UserError(
                        f"{self.path}, line {line}: the key {key.value!r} is specified twice, first in line "
                        f"{seen[key.value]}. Remove one."
                    )
                seen[str(key.value)] = line
                self._check_keys(value, visited)

    def line(self, keys: Sequence[str | int]) -> int | None:
        """The line, from 1, of a path of keys, or of its nearest existing parent."""
        node, line = self._root, None
        for key in keys:
            found = _child(node, key)
            if found is None:
                break
            line, node = found
        return line

    def error(self, keys: Sequence[str | int], message: str) -> UserError:
        """An error that names the file, the line and the key."""
        line = self.line(keys)
        where = f", line {line}" if line else ""
        what = f", key {'.'.join(map(str, keys))}" if keys else ""
        return UserError(f"{self.path}{where}{what}: {message}")

    def validation_error(
        self, error: ValidationError, known: Iterable[str], prefix: Sequence[str | int] = ()
    ) -> UserError:
        """Pydantic's first error with its place in the file.

        :param known: Valid keys, for a suggestion.
        :param prefix: The keys above the validated part.
        """
        keys, message = first_mistake(error, known)
        return self.error([*prefix, *keys], message)


def read_config(path: Path) -> ConfigFile:
    """Read a file, cached until it changes: a sweep reads the same one for each of its cells.

    :raises UserError: As :class:`ConfigFile`.
    """
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        changed = 0
    return _read_config(path, changed)


@lru_cache(maxsize=16)
def _read_config(path: Path, changed: int) -> ConfigFile:
    return ConfigFile(path)


#: Types of values by pydantic's error types, whose messages name Python types.
_MUST_BE = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type", "mapping_type"), "a mapping"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "a finite number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
}


def first_mistake(error: ValidationError, known: Iterable[str] = ()) -> tuple[list[str | int], str]:
    """The keys and the message of pydantic's first error, with the value.

    :param known: Valid keys, for a suggestion.
    """
    detail = error.errors()[0]
    kind, message = detail["type"], detail["msg"].removeprefix("Value error, ")
    # Skip pydantic's names of types, such as "list[int]"
    keys = [key for key in detail["loc"] if not (isinstance(key, str) and "[" in key)]
    if kind == "extra_forbidden":
        message = "there is no such key." + nearest(str(keys[-1]), known)
    elif kind == "missing":
        message = "is missing."
    else:
        if kind in _MUST_BE:
            message = f"must be {_MUST_BE[kind]}"
        message = message.replace("Input should be", "must be")
        message = f"{detail['input']!r}: {message}" if keys else message
    return keys, message


def user_error(error: ValidationError, known: Iterable[str] = (), what: str = "") -> UserError:
    """Pydantic's first error, with the key and its kind."""
    keys, message = first_mistake(error, known)
    where = f"{what} {'.'.join(map(str, keys))}".strip() if keys else f"{what}s" if what else ""
    return UserError(f"{where}: {message}" if where else message)


def _child(node: yaml.Node | None, key: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key].start_mark.line + 1, node.value[key]
    if isinstance(node, yaml.MappingNode):
        merged: list[yaml.Node] = []
        for key_node, value in node.value:
            if key_node.value == str(key):
                return key_node.start_mark.line + 1, value
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
        for parent in merged:
            found = _child(parent, key)
            if found is not None:
                return found
    return None


def find_sweep(path: Path) -> Path:
    """Find the file of a sweep by its path, or a shipped one by its name or its path in a checkout.

    :param path: For example ``mine.yml``, ``continuous_srl`` or ``configs/sweeps/continuous_srl.yml``.
    :raises UserError: If there is no such file.
    """
    shipped = configs_dir() / "sweeps"
    for candidate in (path, configs_dir().parent / path, shipped / path, shipped / f"{path}.yml"):
        with suppress(OSError):  # a name that is too long, a folder without permission
            if candidate.is_file():
                return candidate
    known = [file.stem for file in sorted(shipped.glob("*.yml"))]
    raise UserError(f"{path}: there is no such sweep. Known: {', '.join(known)}.{nearest(path.stem, known)}")
