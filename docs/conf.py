"""Configuration of the documentation site: ``python -m sphinx -W docs build/docs``."""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import srl  # noqa: E402

project = "srl"
author = "The srl developers"
copyright = author
release = version = srl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

#: Quotation marks and ellipses, but no dashes: options begin with two hyphens.
smartquotes_action = "qe"

html_theme = "furo"
html_title = f"srl {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 4

autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"show-inheritance": True}
if not (find_spec("transformers") and find_spec("trl")):
    # Python 3.10: the API reference leaves out the trainers of language models
    suppress_warnings = ["autodoc.import_object"]

#: A frame around a group of options, and an option with the first line of its explanation.
_FRAME = re.compile(r"^╭─ (.+?) ─*╮$")
_OPTION = re.compile(r"^(\S.*?)(?:\s{2,}(.*))?$")


@dataclass
class Group:
    """Options that a help text shows in one frame."""

    title: str
    introduction: str = ""
    #: Each with its explanation.
    options: list[list[str]] = field(default_factory=list)


def help_text(command: str) -> str:
    """What ``srl COMMAND --help`` prints."""
    from srl.cli import main

    printed = io.BytesIO()
    # There are frames only where the encoding has their characters
    with (
        io.TextIOWrapper(printed, encoding="utf-8") as out,
        mock.patch.dict(os.environ, COLUMNS="100"),
        redirect_stdout(out),
    ):
        with suppress(SystemExit):
            main([*command.split(), "--help"])
        out.flush()
        return printed.getvalue().decode()


def parse_help(text: str) -> tuple[str, str, list[Group]]:
    """Read a help text.

    :return: What the command does, its examples, and its options in groups.
    """
    description: list[str] = []
    examples: list[str] = []
    groups: list[Group] = []
    for line in text.splitlines():
        if frame := _FRAME.match(line):
            groups.append(Group(frame[1]))
        elif line.startswith("│"):
            group, content = groups[-1], line[2:-1].rstrip()
            if content.startswith("─"):
                group.introduction = " ".join(name for name, _ in group.options)
                group.options = []
            elif content.startswith(" "):
                group.options[-1][1] = f"{group.options[-1][1]} {content.strip()}".strip()
            elif option := _OPTION.match(content):
                group.options.append([option[1], option[2] or ""])
        elif line.startswith("  srl "):
            examples.append(line.strip())
        elif line and not line.startswith(("usage:", "╰", "Examples:")):
            description.append(line.strip())
    return " ".join(description), "\n".join(examples), groups


class CommandLine(SphinxDirective):
    """``{srl-command} NAME``: the options of a command, from its ``--help``."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return a paragraph, a block of examples, and a definition list for each group of options."""
        command = self.arguments[0]
        description, examples, groups = parse_help(help_text(command))
        if not groups:
            raise self.error(f"srl {command} --help shows no options.")
        made: list[nodes.Node] = [nodes.paragraph("", description)]
        if examples:
            made.append(nodes.literal_block(examples, examples, language="bash"))
        for group in groups:
            made.append(nodes.rubric("", group.title.capitalize()))
            if group.introduction:
                made.append(nodes.paragraph("", group.introduction))
            items = nodes.definition_list()
            for name, explanation in group.options:
                term = nodes.term("", "", nodes.literal("", name))
                items += nodes.definition_list_item(
                    "", term, nodes.definition("", nodes.paragraph("", explanation))
                )
            made.append(items)
        return made


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("srl-command", CommandLine)
    return {"parallel_read_safe": True}
