"""Labels in a terminal's cells: cut, padded and stacked by what they occupy there, not by their characters."""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len

ISOLATE, END_ISOLATE = "\u2068", "\u2069"  # what lies between keeps its direction to itself
LEFT_TO_RIGHT = "\u200e"


def fit(label: str, width: int, *, right: bool = False) -> str:
    """A label in exactly `width` cells: cut with an ellipsis or padded.

    >>> fit("roses", 4), fit("by", 4), fit("漢字漢字", 4)
    ('ros…', 'by  ', '漢… ')
    """
    kept = label if cell_len(label) <= width else _cut(label, width - 1) + "…"
    padding = " " * (width - cell_len(kept))
    return padding + isolated(kept) if right else isolated(kept) + padding


def pad(text: str, width: int) -> str:
    """Text that needs no isolation any more, padded to `width` cells; longer text stays as it is."""
    return text + " " * (width - cell_len(text))


def _cut(label: str, width: int) -> str:
    kept = ""
    for cluster in clusters(label):
        if cell_len(kept + cluster) > width:
            break
        kept += cluster
    return kept


def isolated(label: str) -> str:
    """A right-to-left label so wrapped that a terminal which reorders text leaves its neighbours alone."""
    return f"{ISOLATE}{label}{END_ISOLATE}" if is_right_to_left(label) else label


def is_right_to_left(label: str) -> bool:
    """Whether any character is of a script written from right to left."""
    return any(unicodedata.bidirectional(character) in {"R", "AL"} for character in label)


def clusters(label: str) -> list[str]:
    """The characters as people count them: an accent, a joiner or a skin tone stays with what it belongs to."""
    found: list[str] = []
    for character in label:
        if found and (_extends(character) or found[-1].endswith("\u200d") or _is_flag(found[-1], character)):
            found[-1] += character
        else:
            found.append(character)
    return found


def _extends(character: str) -> bool:
    return unicodedata.category(character)[0] == "M" or character == "\u200d" or "🏻" <= character <= "🏿"


def _is_flag(cluster: str, character: str) -> bool:
    return len(cluster) == 1 and "🇦" <= cluster <= "🇿" and "🇦" <= character <= "🇿"


def stacked(labels: list[str], cell: int, tallest: int = 9) -> list[str]:
    """Labels written downwards, one in each column of `cell` cells, ending on the last line.

    >>> stacked(["he", "a"], 2)
    ['h   ', 'e a ']
    """
    columns = [_column(label, tallest) for label in labels]
    height = max(map(len, columns), default=0)
    padded = [[""] * (height - len(column)) + column for column in columns]
    return ["".join(_in_cell(column[row], cell) for column in padded) for row in range(height)]


def _column(label: str, tallest: int) -> list[str]:
    if len(clusters(label)) == 1:
        return [label]
    column = clusters(label)
    return column if len(column) <= tallest else [*column[: tallest - 1], "…"]


def _in_cell(cluster: str, cell: int) -> str:
    mark = LEFT_TO_RIGHT if is_right_to_left(cluster) else ""
    return mark + cluster + mark + " " * (cell - cell_len(cluster))
