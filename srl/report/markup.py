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
    # After a line break, LaTeX would read brackets and stars as its options
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
#: Punctuation with a meaning inside a line of Markdown, GitHub's included.
_MARKDOWN = "\\`*_{}[]|#~$"
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def one_line(text: str) -> str:
    """A text with spaces in place of line breaks and control characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def latex(text: str) -> str:
    """Escape a text for LaTeX."""
    escaped = "".join(_LATEX.get(character, character) for character in one_line(text))
    # Two hyphens would become a dash; the hyphen of a number is a minus
    escaped = re.sub("-(?=-)", "-{}", escaped)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)


def markdown(text: str) -> str:
    """Escape a text for Markdown and HTML."""
    escaped = "".join(
        _HTML.get(character, f"\\{character}" if character in _MARKDOWN else character)
        for character in one_line(text)
    )
    # A bare address would become a link
    return escaped.replace("://", ":&#47;&#47;").replace("www.", "www&#46;")


def markdown_line(text: str) -> str:
    """Escape a whole line for Markdown, which could start like a list item."""
    escaped = re.sub(r"^([-+=])", r"\\\1", markdown(text).lstrip())
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped)


def escaped(text: str) -> str:
    """A text without undecodable bytes of file names."""
    return text.encode(errors="backslashreplace").decode()
