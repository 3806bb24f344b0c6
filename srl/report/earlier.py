"""Recognize report files of earlier versions of srl, which kept no record of their files."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import PurePosixPath

#: A complete table: title, header, rows and notes.
_MARKDOWN = re.compile(
    r"(?:Final evaluation: mean|Mean return of the|Interquartile mean|Probability of improvement) .*\n\n"
    r"\| environment \| noise \| steps \|.*\n\| --- \| --- \| ---: \|.*\n(?:\| .*\n)*(?:\n(?:- .*\n)+)?"
)
_CSV_HEADER = re.compile(
    r"environment,(?:noise,n_timesteps,algorithm,variant,mean,standard_error,n_seeds,"
    r"|n_environments,noise,n_timesteps,(?:normalisation,column,iqm,|symmetric,baseline,probability,))[\w,]+\n"
)
_LATEX = re.compile(
    r"% Needs packages? booktabs(?: and graphicx)?\.\n\\begin\{table\}\n\\centering\n"
    r".*\\label\{tab:srl-\w+\}\n.*\\end\{table\}\n",
    re.DOTALL,
)
#: Parts of the page.
_PAGE_PARTS = (
    "script-src 'sha256-",
    '<nav aria-label="Sections"><a href="#findings">Findings</a>',
    "</html>",
)
_STATISTICS_KEYS = {"format", "bootstrap_seed", "aggregates", "comparisons", "summary", "left_out"}
_EVALUATIONS_START = re.compile(r'\[\n\{"run": ".*", "environment": ".*", "algorithm": "\w+", "variant": ')
_PARQUET_COLUMNS = (b"n_timesteps", b"std_return", b"mean_ep_length")
#: Matplotlib's SVG without date and program.
_SVG = re.compile(
    r"<\?xml [^\n]*\n<!DOCTYPE svg PUBLIC [^>]*>\n<svg [^>]*>\n <metadata>\n  <rdf:RDF [^>]*>\n   <cc:Work>\n"
    r"    <dc:type [^>]*>\n    <dc:format>image/svg\+xml</dc:format>\n   </cc:Work>\n"
)


def is_of_earlier_version(name: str, content: bytes) -> bool:
    """Whether an earlier version of srl wrote a file of a report.

    Changes that keep the format of such a file are not detected.

    :param name: Its path below the output folder, one that srl writes.
    """
    recognize = _RECOGNIZERS.get(PurePosixPath(name).suffix)
    try:
        return recognize is not None and recognize(content)
    except (ValueError, struct.error):
        return False


def _is_csv(content: bytes) -> bool:
    # A table without rows had no header
    return content == b"\n" or _CSV_HEADER.match(content.decode()) is not None


def _is_page(content: bytes) -> bool:
    text = content.decode()
    return text.startswith("<!doctype html>") and all(part in text for part in _PAGE_PARTS)


def _is_json(content: bytes) -> bool:
    text = content.decode()
    if text.startswith("["):
        return _EVALUATIONS_START.match(text) is not None
    values = json.loads(text)
    return isinstance(values, dict) and values.keys() >= _STATISTICS_KEYS


def _is_parquet(content: bytes) -> bool:
    return content[:4] == content[-4:] == b"PAR1" and all(name in content for name in _PARQUET_COLUMNS)


def _is_png(content: bytes) -> bool:
    """Whether an image has 150 dots per inch and no metadata."""
    chunks, place = {}, 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunks[content[place + 4 : place + 8]] = content[place + 8 : place + 8 + length]
        place += length + 12
    dots = struct.pack(">IIB", 5906, 5906, 1)
    return chunks.keys() == {b"IHDR", b"pHYs", b"IDAT", b"IEND"} and chunks[b"pHYs"] == dots


_RECOGNIZERS: dict[str, Callable[[bytes], bool]] = {
    ".md": lambda content: _MARKDOWN.fullmatch(content.decode()) is not None,
    ".csv": _is_csv,
    ".tex": lambda content: _LATEX.fullmatch(content.decode()) is not None,
    ".html": _is_page,
    ".json": _is_json,
    ".parquet": _is_parquet,
    ".png": _is_png,
    ".svg": lambda content: _SVG.match(content.decode()) is not None,
}
