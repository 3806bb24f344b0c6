"""Escape text for Markdown, LaTeX and rich."""

from __future__ import annotations

import re

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "§": r"\S{}",
    "¶": r"\P{}",
    # After a line's end, brackets would be its spacing, and a star its kind
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
#: Punctuation that means something to Markdown in the middle of a line, GitHub's included.
_MARKDOWN = "\\`*_{}[]|#~$"
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def one_line(text: str) -> str:
    """A text without line breaks and control characters, of which a table's row has none."""
    return "".join(character if character.isprintable() else " " for character in text)


def latex(text: str) -> str:
    """A text that LaTeX takes for nothing but text."""
    escaped = "".join(_LATEX.get(character, character) for character in one_line(text))
    # Two hyphens would become a dash; the one of a number is a minus
    escaped = re.sub("-(?=-)", "-{}", escaped)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)


def markdown(text: str) -> str:
    """A text that Markdown and HTML take for nothing but text."""
    escaped = "".join(
        _HTML.get(character, f"\\{character}" if character in _MARKDOWN else character)
        for character in one_line(text)
    )
    # A bare address would become a link
    return escaped.replace("://", ":&#47;&#47;").replace("www.", "www&#46;")


def markdown_line(text: str) -> str:
    """The same for a line of its own, whose beginning could look like an item of a list."""
    escaped = re.sub(r"^([-+=])", r"\\\1", markdown(text).lstrip())
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped)
