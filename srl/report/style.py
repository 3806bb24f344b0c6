"""The style of figures: one color for each algorithm, readable in grayscale.

Colors are Okabe and Ito's and Tol's for color-blind readers; markers and dashes distinguish algorithms
without color. Symmetric algorithms have solid lines, baselines dashed ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib.style

from srl.config.algorithms import ALGORITHMS

#: Color, dashes and marker of each algorithm.
_STYLES: dict[str, tuple[str, str, str]] = {
    "a2c": ("#E69F00", "--", "o"),
    "sa2c": ("#A6320A", "-", "s"),
    "da2c": ("#CC79A7", "--", "v"),
    "dsa2c": ("#661155", "-", "P"),
    "ppo": ("#56B4E9", "--", "^"),
    "sppo": ("#004C84", "-", "D"),
    "dppo": ("#3DB892", "--", "<"),
    "dsppo": ("#0B4F36", "-", "X"),
    "llm-ppo": ("#56B4E9", "--", "s"),
    "llm-sppo": ("#004C84", "-", "D"),
    "llm-grpo": ("#E69F00", "--", "^"),
    "llm-sgrpo": ("#A6320A", "-", "v"),
}
assert _STYLES.keys() == ALGORITHMS.keys()
#: Colors of variants whose names begin with no algorithm.
_OTHER_COLORS = ("#D55E00", "#999933", "#882255", "#44AA99", "#332288", "#DDCC77")
#: Dashes of what differs in a hyperparameter from a column of the same algorithm.
_VARIANTS = (":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))

#: Markers of those; with the dashes there are enough for 44.
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", "X", ">", "*", "h", "d")

_SETTINGS: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    # Names are shown as they are, and files depend on nothing but the figures
    "text.parse_math": False,
    "svg.hashsalt": "srl",
    "svg.fonttype": "path",
    # TrueType, which journals ask for
    "pdf.fonttype": 42,
}


#: Draws with Matplotlib's own settings and ours, whatever the user's are.
styled = matplotlib.style.context(["default", _SETTINGS])


@dataclass(frozen=True)
class Style:
    """How an algorithm is drawn."""

    color: str
    dashes: Any
    marker: str


def style(column: str, columns: Sequence[str]) -> Style:
    """The style of a column.

    :param column: As tables name it: an algorithm, perhaps with what sets it apart in brackets.
    """
    algorithm = _algorithm(column)
    others_named = list(dict.fromkeys(n for n in map(_algorithm, columns) if n not in _STYLES))
    if algorithm in others_named:
        place = others_named.index(algorithm)
        return Style(_OTHER_COLORS[place % len(_OTHER_COLORS)], "-", _MARKERS[place % len(_MARKERS)])
    color, dashes, marker = _STYLES[algorithm]
    place = [other for other in columns if _algorithm(other) == algorithm].index(column)
    if not place:
        return Style(color, dashes, marker)
    others = [other for other in _MARKERS if other != marker]
    return Style(color, _VARIANTS[(place - 1) % len(_VARIANTS)], others[(place - 1) % len(others)])


def pair_styles(pairs: Sequence[tuple[str, str]], columns: Sequence[str]) -> dict[tuple[str, str], Style]:
    """The styles of pairs of a column and its baseline.

    The first pair of a column has the column's style, and each further one another marker and other dashes.
    """
    columns_styles = {column: style(column, columns) for column, _ in pairs}
    taken = {look.marker for look in columns_styles.values()}
    styles: dict[tuple[str, str], Style] = {}
    for column, baseline in dict.fromkeys(pairs):
        look = columns_styles[column]
        if further := [pair for pair in styles if pair[0] == column]:
            marker = next((marker for marker in _MARKERS if marker not in taken), look.marker)
            taken.add(marker)
            look = replace(look, marker=marker, dashes=_VARIANTS[(len(further) - 1) % len(_VARIANTS)])
        styles[column, baseline] = look
    return styles


def _algorithm(column: str) -> str:
    """The algorithm that a column's name begins with; else its whole name."""
    name = column.partition(" (")[0].lower()
    first = name.partition("-")[0]
    return first if first in _STYLES else name
