"""The exceptions that a user sees as one line of text: a mistake of the user, and a full disk."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user asked for.

    Its message says what is wrong, where (file, key, value) and what to do. The command line prints
    it without a traceback and exits with status 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Name the known words closest to a mistyped one, three at most.

    :param word: What the user wrote.
    :param known: The words that would have been right.
    :return: ``" Did you mean PPO or A2C?"``, or the empty string where nothing comes close.
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(word.lower(), list(by_lower), n=3, cutoff=0.6)
    if not matches:
        return ""
    return f" Did you mean {' or '.join(by_lower[match] for match in matches)}?"


class OutOfSpace(Exception):
    """A disk, or a user's share of it, is full; the message says where, and how much is needed."""


class NotCompiled(Exception):
    """A function was not compiled; the message is the reason in one line."""


class MissingExtra(UserError, ImportError):
    """A package is not installed that an extra of ``symmetric-rl`` brings; the message is the command.

    :param what: What needs it, for example ``"srl tune"``.
    :param package: The package, or what its import raised.
    :param extra: The extra.
    """

    def __init__(self, what: str, package: str | ModuleNotFoundError, extra: str):
        name = package if isinstance(package, str) else package.name
        super().__init__(f"{what} needs the package {name}: pip install 'symmetric-rl[{extra}]'.")
