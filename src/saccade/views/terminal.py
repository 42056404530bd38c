"""The view on a terminal: what fits at a glance in its width, with colours or without.

Every line is made as a `rich.text.Text` of at most the console's width, so nothing wraps and
columns stay aligned. A pattern of up to about thirty words is drawn cell by cell; a longer one as a
coarse map, with lists beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from saccade.views import ramp
from saccade.views.attention_view import AttentionView, Floats
from saccade.views.drawing import CAVEAT
from saccade.views.labels import fit, isolated, pad, stacked

WIDEST = 120  # a wider terminal is left empty at the right
CELL = 2  # terminal cells of one weight
PANEL = 16  # the narrowest pattern, so that its title fits
GAP = 3  # between two patterns side by side
LABEL = 14  # the longest label beside a pattern, in cells
TABLE_LABEL = 12  # the same in the table of words
COLUMN = 26  # the narrowest column of that table
ROWS = 24  # the longest table of words that is printed in full
FEW = 12  # how many are printed of a longer one
NUMBER = 4  # terminal cells of one weight that is printed as a number
TEXT_LINES, TEXT_UNITS = 4, 200  # how much of the text is repeated
COARSE = 32  # cells along each side of a coarse map

DIM = Style(dim=True)
BOLD = Style(bold=True)
FOCUS = Style(bold=True, underline=True)


@dataclass(frozen=True)
class Page:
    """Where to print, and what it can show."""

    console: Console

    @property
    def width(self) -> int:
        """Cells in a line."""
        return min(self.console.width, WIDEST)

    @property
    def colours(self) -> bool:
        """Whether shades of colour can be told apart here; sixteen colours are not enough."""
        return not self.console.no_color and self.console.color_system in {
            "256",
            "truecolor",
            "windows",
        }

    def encodes(self, text: str) -> bool:
        """Whether the output's encoding has these characters."""
        try:
            text.encode(getattr(self.console.file, "encoding", None) or "utf-8")
        except UnicodeEncodeError:
            return False
        return True

    def line(self, *parts: str | Text | tuple[str, Style]) -> None:
        """Print one line, cut at the width."""
        text = Text.assemble(*parts, no_wrap=True, overflow="ellipsis", end="")
        if not self.colours:  # a coloured space is a weight
            text.rstrip()
        self.console.print(text, no_wrap=True, crop=True, highlight=False, markup=False, width=self.width)

    def lines(self, texts: Iterable[Text]) -> None:
        """Print several lines."""
        for text in texts:
            self.line(text)

    def title(self, title: str, remark: str = "") -> None:
        """Begin a section."""
        self.line("")
        self.pair(title, remark)

    def pair(self, first: str, remark: str) -> None:
        """Print a bold text with a remark beside it, or below it where both do not fit in one line."""
        if cell_len(first) + 2 + cell_len(remark) <= self.width:
            self.line((first, BOLD), (f"  {remark}" if remark else "", DIM))
            return
        self.lines(Text(first, BOLD).wrap(self.console, self.width))
        self.prose(remark)

    def prose(self, text: str) -> None:
        """Print a remark, wrapped between words."""
        for line in Text(text, DIM).wrap(self.console, self.width):
            self.line(line)

    def cell(self, share: float, text: str | None = None) -> tuple[str, Style]:
        """One weight: a patch of colour, or two shade characters; with a text, that text on the colour."""
        if self.colours:
            return text or " " * CELL, _style(share)
        return (ramp.shade(share) if text is None else text), Style()


def _style(share: float) -> Style:
    return Style(
        bgcolor=Color.from_rgb(*ramp.colour(share)),
        color=Color.from_rgb(*ramp.ink(share)),
        bold=False,
    )


# ---------------------------------------------------------------------------------------- whole views


def render(console: Console, view: AttentionView, focus: int | None = None) -> None:
    """Print the overview of a view.

    Args:
        console: where to.
        view: what to print.
        focus: the position of the word that is followed through the layers; None for the last one.
    """
    page = Page(console)
    chosen = view.last_word() if focus is None else focus
    _head_line(page, view, chosen)
    _patterns(page, view)
    _words_table(page, view, chosen)
    if len(view.units) > ROWS:
        _most_looked_at(page, view)
    if len(view.layers) > 1:
        _by_layer(page, view, chosen)
    _foot(page, view)


def render_word(console: Console, view: AttentionView, focus: int) -> None:
    """Print one word's view: where it looks in every layer and head, and who looks at it."""
    page = Page(console)
    _head_line(page, view, focus)
    _every_head(page, view, focus)
    _by_layer(page, view, focus)
    _lookers(page, view, focus)
    _foot(page, view)


def _head_line(page: Page, view: AttentionView, focus: int) -> None:
    part = f" ({view.part})" if view.part else ""
    times = " × " if len(view.layers) > 1 and len(view.heads) > 1 else ", "
    heads = times.join((_count(view.layers, "layer"), _count(view.heads, "head")))
    size = f"{len(view.units)} {view.kind if len(view.units) != 1 else view.noun}"
    page.pair(f"{view.model}{part}", f"{heads}  {size}")
    page.line("")
    words = Text()
    for i, label in enumerate(view.labels[:TEXT_UNITS]):
        words.append(isolated(label), FOCUS if i == focus else "")
        words.append(" ")
    lines = list(words.wrap(page.console, page.width))
    page.lines(lines[:TEXT_LINES])
    if len(lines) > TEXT_LINES or len(view.units) > TEXT_UNITS or view.dropped:
        cut = f"; {view.dropped} more tokens did not fit the model" if view.dropped else ""
        page.prose(f"… {size} in all{cut}")
    if view.weights is None:
        page.prose("A long text: what follows are exact statistics of every head; no whole pattern was kept.")


def _count(names: Sequence[str], noun: str) -> str:
    if len(names) > 1:
        return f"{len(names)} {noun}s"
    return f"mean of all {noun}s" if names[0] == "mean" else f"{noun} {names[0]}"


def _foot(page: Page, view: AttentionView) -> None:
    page.line("")
    if view.hidden:
        page.prose(
            f"{' '.join(view.hidden)} took {ramp.percent(float(view.summary.special_mass.mean())).strip()} of the "
            f"{view.kind}’ attention on average. Their own cells are hidden: --special shows them."
        )
        if view.typed:
            page.prose(view.remark_on_typed())
    page.prose(CAVEAT)


# ---------------------------------------------------------------------------------------- patterns


def _patterns(page: Page, view: AttentionView) -> None:
    label = _label_width(view.labels)
    fits = page.width - label - 1 >= CELL * len(view.units)
    single = len(view.layers) == len(view.heads) == 1
    _patterns_title(page, view, single=single)
    if view.weights is None or not fits:
        _coarse(page, view)
    elif single:
        _numbers(page, view, label)
    else:
        _side_by_side(page, view, label)


def _patterns_title(page: Page, view: AttentionView, *, single: bool) -> None:
    if single:
        page.title(_capital(view.title(0, 0)), "rows look, columns are looked at")
        return
    page.title("The most telling heads", "rows look, columns are looked at")
    aside = ", neighbours aside" if view.apart > 1 else ""
    page.prose(f"chosen for {view.kind} that differ most in where they look{aside}")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _label_width(labels: Sequence[str]) -> int:
    return min(max(map(cell_len, labels), default=1), LABEL)


def _side_by_side(page: Page, view: AttentionView, label: int) -> None:
    """Patterns in a row, or below one another where only one fits; all on one scale."""
    assert view.weights is not None
    wide = CELL * len(view.units)
    room = max(1, (page.width - label - 1 + GAP) // (max(wide, PANEL) + GAP))
    heads = view.most_telling(max(min(room, 4), 2))
    scale = ramp.top_of_scale(max(float(view.weights[head].max()) for head in heads))
    for start in range(0, len(heads), room):
        page.line("")
        _row_of_patterns(page, view, heads[start : start + room], label, scale)
    _legend(page, scale, label)


def _row_of_patterns(page: Page, view: AttentionView, heads: list[tuple[int, int]], label: int, scale: float) -> None:
    assert view.weights is not None
    wide = max(CELL * len(view.units), PANEL)
    margin, gap = " " * (label + 1), " " * GAP
    page.line(margin, (gap.join(fit(view.short_title(*head), wide) for head in heads), BOLD))
    if any(view.habit(*head) for head in heads):
        page.line(margin, (gap.join(fit(view.habit(*head), wide) for head in heads), DIM))
    for header in stacked(view.labels, CELL):
        page.line(margin, (gap.join(pad(header, wide) for _ in heads), DIM))
    for query, name in enumerate(view.labels):
        line = Text(fit(name, label, right=True) + " ")
        for i, head in enumerate(heads):
            line.append(gap if i else "")
            _append_cells(page, line, view.weights[head][query] / scale)
            line.append(" " * (wide - CELL * len(view.units)))
        page.line(line)


def _append_cells(page: Page, line: Text, shares: Floats) -> None:
    for share in shares:
        line.append(*page.cell(float(share)))


def _numbers(page: Page, view: AttentionView, label: int) -> None:
    """One pattern, with its weights in percent where four cells for each fit."""
    assert view.weights is not None
    n = len(view.units)
    numbers = page.width - label - 1 >= NUMBER * n
    cell = NUMBER if numbers else CELL
    scale = ramp.top_of_scale(float(view.weights.max()))
    habit = view.habit(0, 0)
    if habit:
        page.line((habit, DIM))
    for header in stacked(view.labels, cell):
        page.line(" " * (label + 1) + ("  " if numbers else ""), (header, DIM))
    for query, name in enumerate(view.labels):
        line = Text(fit(name, label, right=True) + " ")
        for weight in view.weights[0, 0, query]:
            share = float(weight) / scale
            number = f"{weight * 100:3.0f} " if weight >= ramp.TRACE else "  · "
            line.append(*page.cell(share, number if numbers else None))
        page.line(line)
    _legend(page, scale, label, numbers=numbers)


def _legend(page: Page, scale: float, label: int, *, numbers: bool = False) -> None:
    parts: list[Text] = []
    if page.colours:
        bar = [(" ", _style(i / 15)) for i in range(16)]
        parts.append(Text.assemble("0 ", *bar, f" {ramp.percent(scale).strip()}"))
    elif not numbers:
        for start, shades in zip(ramp.SHADE_FROM, ramp.SHADES[1:], strict=True):
            parts.append(Text(f"{shades} from {ramp.percent(start * scale).strip()}"))
    parts.append(Text("numbers are percent of a row’s attention" if numbers else "of a row’s attention", DIM))
    lines = _in_lines(parts, page.width, " " if page.colours else "  ")
    margin = min(label + 1, max(0, page.width - max(line.cell_len for line in lines)))
    for line in lines:
        page.line(" " * margin, line)


def _in_lines(parts: list[Text], width: int, between: str) -> list[Text]:
    """Parts side by side in as few lines as hold them, none of them broken."""
    lines = [parts[0]]
    for part in parts[1:]:
        if lines[-1].cell_len + len(between) + part.cell_len <= width:
            lines[-1] = lines[-1] + between + part
        else:
            lines.append(part)
    return lines


def _coarse(page: Page, view: AttentionView) -> None:
    """Patterns too large for cells of their own, each reduced to a small map and scaled to its own largest cell."""
    room = max(1, (page.width + GAP) // (COARSE + GAP))
    heads = view.most_telling(min(room, 3))
    maps = [_reduced(view, head) for head in heads]
    gap = " " * GAP
    page.line("")
    page.line((gap.join(fit(view.short_title(*head), COARSE) for head in heads), BOLD))
    page.line((gap.join(fit(view.habit(*head), COARSE) for head in heads), DIM))
    for row in range(0, COARSE, 2):
        line = Text()
        for i, cells in enumerate(maps):
            line.append(gap if i else "")
            for upper, lower in zip(cells[row], cells[min(row + 1, len(cells) - 1)], strict=True):
                line.append(*_half_block(page, float(upper), float(lower)))
        page.line(line)
    page.prose(
        f"{len(view.units)} {view.kind} from the top down and from left to right, reduced to {COARSE} × {COARSE}: "
        "each cell is the largest weight of its part, each map is brightest at its own largest cell, "
        "brightness grows with the square root."
    )


def _reduced(view: AttentionView, head: tuple[int, int]) -> Floats:
    """A head's map of COARSE x COARSE cells, from 0 to 1, on a square-root scale."""
    source = view.summary.cells[head] if view.weights is None else view.weights[head]
    n = len(source)
    bounds = np.arange(COARSE) * n // COARSE
    reduced = np.maximum.reduceat(np.maximum.reduceat(source, bounds, 0), bounds, 1)
    return np.sqrt(reduced / max(float(reduced.max()), 1e-12)).astype(np.float32)


def _half_block(page: Page, upper: float, lower: float) -> tuple[str, Style]:
    """Two cells, one above the other, in one character."""
    if not page.colours:
        return ramp.shade(max(upper, lower))[0], Style()
    if not page.encodes("▀"):
        return " ", _style(max(upper, lower))
    above, below = (Color.from_rgb(*ramp.colour(share)) for share in (upper, lower))
    return "▀", Style(color=above, bgcolor=below)


# ---------------------------------------------------------------------------------------- words


def _words_table(page: Page, view: AttentionView, focus: int) -> None:
    n, every = len(view.units), len(view.layers) * len(view.heads)
    rows = list(range(n)) if n <= ROWS else _sharpest(view, focus)
    some = "" if len(rows) == n else f"the {len(rows)} with the sharpest links of {n} {view.kind}"
    page.title(f"Where each {view.noun} looked most", some)
    names = [view.name(i) for i in rows]
    label = min(_label_width([*names, view.noun]), TABLE_LABEL)
    titles, columns = _columns(view, rows, every)
    columns = [[title, *column] for title, column in zip(titles, columns, strict=True)]
    shares = [ramp.percent(float(view.summary.special_mass[:, :, i].mean())) for i in rows]
    columns.append(["special", *(f"{share:>7}" for share in shares)])
    columns, left_out = _fitting(columns, page.width - label)
    header, *body = ("  ".join(cells) for cells in zip(*columns, strict=True))
    page.line((f"{fit(view.noun, label, right=True)}  {header}", DIM))
    for name, i, cells in zip(names, rows, body, strict=True):
        page.line((fit(name, label, right=True), FOCUS if i == focus else BOLD), f"  {cells}")
    if left_out:
        page.prose(f"No room for: {'; '.join(left_out)}.")


def _fitting(columns: list[list[str]], room: int) -> tuple[list[list[str]], list[str]]:
    """The columns that fit, padded, the first one in any case, and the titles of the others."""
    kept: list[list[str]] = []
    left_out: list[str] = []
    for column in columns:
        width = max(map(cell_len, column)) if column is columns[-1] else _width(column)
        if kept and width + 2 > room:
            left_out.append(column[0])
            continue
        room -= width + 2
        kept.append([pad(text, width) for text in column])
    return kept, left_out


def _columns(view: AttentionView, rows: list[int], every: int) -> tuple[list[str], list[list[str]]]:
    """The table's columns between word and special: where each row looked on average, and in which single head."""
    titles, columns = [], []
    if view.weights is not None:
        mean = view.weights.mean((0, 1))
        titles.append(f"average of {every} heads" if every > 1 else "its heaviest")
        columns.append([_top_list(view, mean[i], 2 if every > 1 else 4) for i in rows])
    if every > 1 or view.weights is None:
        titles.append("strongest, neighbours aside" if view.apart > 1 else "strongest")
        columns.append([_strongest(view, i) for i in rows])
    return titles, columns


def _width(column: list[str]) -> int:
    return max(COLUMN, *(cell_len(text) for text in column))


def _sharpest(view: AttentionView, focus: int) -> list[int]:
    """The units whose strongest link to one that is not their neighbour is largest, in the text's order."""
    strength = np.where(_far(view), view.summary.top_weights, 0).max((0, 1, 3))
    strength[view.special] = 0
    strength[focus] = np.inf
    return sorted(int(i) for i in np.argsort(-strength, kind="stable")[:FEW])


def _far(view: AttentionView) -> NDArray[np.bool_]:
    """Which of the heaviest keys ``(L, H, N, k)`` are no neighbours of their queries."""
    keys = view.summary.top_keys
    far: NDArray[np.bool_] = np.abs(keys - np.arange(len(view.units))[:, None]) >= view.apart
    return far & (keys >= 0)


def _top_list(view: AttentionView, weights: Floats, count: int) -> str:
    """The heaviest keys of one row, with their weights."""
    order = np.argsort(-weights, kind="stable")[:count]
    return "  ".join(_entry(view, int(k), float(weights[k])) for k in order if weights[k] > 0)


def _entry(view: AttentionView, key: int, weight: float) -> str:
    return f"{fit(view.name(key), 7)} {ramp.percent(weight)}"


def _strongest(view: AttentionView, query: int) -> str:
    """The heaviest key of a query in any head, its neighbours aside, and which head that is."""
    keys = view.summary.top_keys[:, :, query]
    weights = np.where(_far(view)[:, :, query], view.summary.top_weights[:, :, query], 0)
    layer, head, place = (int(i) for i in np.unravel_index(weights.argmax(), weights.shape))
    key = int(keys[layer, head, place])
    if weights[layer, head, place] <= 0:
        return "–"
    return f"{_entry(view, key, float(weights[layer, head, place]))} {view.short_title(layer, head)}"


def _most_looked_at(page: Page, view: AttentionView) -> None:
    page.title(f"The {view.kind} looked at most", "mean over heads; 1 is a fair share")
    received = view.summary.received.mean((0, 1))
    order = np.argsort(-received, kind="stable")[: FEW // 2 * 2]
    entries = [f"{fit(view.name(int(i)), LABEL)} {received[i]:5.1f}" for i in order]
    per_line = max(1, page.width // (LABEL + 9))
    for start in range(0, len(entries), per_line):
        page.line("   ".join(entries[start : start + per_line]))


# ---------------------------------------------------------------------------------------- one word


def _by_layer(page: Page, view: AttentionView, focus: int) -> None:
    """Where one word looks in each layer, on average over heads."""
    name = view.name(focus)
    special = view.summary.special_mass[:, :, focus].mean(1)
    if view.weights is None:
        page.title(f"“{name}”, layer by layer", "strongest single head of each")
        for i, layer in enumerate(view.layers):
            line = f"layer {layer:<3} {_strongest(view.select(layer), focus)}"
            share = f"  special {special[i]:4.0%}"
            page.line(line, (share if cell_len(line + share) <= page.width else "", DIM))
        return
    page.title(f"“{name}”, layer by layer", f"where it looks, {_averaged(view)}")
    _layer_rows(page, view, view.weights[:, :, focus].mean(1), special)


def _which_heads(view: AttentionView) -> str:
    if len(view.layers) > 1 and len(view.heads) > 1:
        return "every layer and head"
    parts = ((view.layers, "layer"), (view.heads, "head"))
    return ", ".join(f"every {noun}" if len(names) > 1 else _count(names, noun) for names, noun in parts)


def _lookers(page: Page, view: AttentionView, focus: int) -> None:
    """Who looks at one word in each layer, on average over heads."""
    name = view.name(focus)
    if view.weights is not None:
        page.title(f"Who looks at “{name}”", f"share of the looker’s attention, {_averaged(view)}")
        _layer_rows(page, view, view.weights[:, :, :, focus].mean(1), None)
        return
    page.title(
        f"Who looks at “{name}”",
        f"lookers that have it among their {view.summary.top_keys.shape[-1]} heaviest",
    )
    for layer in view.layers:
        page.line(f"layer {layer:<3} {_strongest_lookers(page, view.select(layer), focus)}")


def _averaged(view: AttentionView) -> str:
    return _count(view.heads, "head") if len(view.heads) == 1 else f"mean of {len(view.heads)} heads"


def _strongest_lookers(page: Page, view: AttentionView, focus: int) -> str:
    weights = np.where(view.summary.top_keys == focus, view.summary.top_weights, 0).max((0, 1, 3))
    return _top_list(view, weights, _entries_in(page.width - 10)) if weights.max() > 0 else "–"


def _layer_rows(page: Page, view: AttentionView, rows: Floats, special: Floats | None) -> None:
    """One row of weights ``(L, N)`` for each layer: cells where they fit, and the heaviest in words."""
    label = max(len(f"layer {layer}") for layer in view.layers)
    listed = 2 * 14 - 2 + (14 if special is not None else 0)
    draw = label + 2 + CELL * len(view.units) + 2 + listed <= page.width
    room = page.width - label - 3 - (14 if special is not None else 0)
    scale = ramp.top_of_scale(float(rows.max()))
    if draw:
        for header in stacked(view.labels, CELL):
            page.line(" " * (label + 1), (header, DIM))
    for i, layer in enumerate(view.layers):
        line = Text(fit(f"layer {layer}", label) + " ")
        if draw:
            _append_cells(page, line, rows[i] / scale)
        line.append("  " + _top_list(view, rows[i], 2 if draw else _entries_in(room)))
        if special is not None:
            line.append(f"  special {ramp.percent(float(special[i]))}", DIM)
        page.line(line)
    if draw:
        _legend(page, scale, label)


def _entries_in(room: int) -> int:
    """How many entries of `_top_list` are printed in so many cells."""
    return max(1, min(3, (room + 2) // 14))


def _every_head(page: Page, view: AttentionView, focus: int) -> None:
    """For each layer and head the key that one word looks at most, with its weight, in blocks of heads that fit."""
    page.title(f"Where “{view.name(focus)}” looks most, in {_which_heads(view)}")
    keys = view.summary.top_keys[:, :, focus, 0]
    weights = view.summary.top_weights[:, :, focus, 0]
    label, cell = max(len(layer) for layer in view.layers) + 6, 11
    room = max(1, (page.width - label - 1) // (cell + 1))
    per_block = -(-len(view.heads) // -(-len(view.heads) // room))
    for start in range(0, len(view.heads), per_block):
        heads = range(start, min(start + per_block, len(view.heads)))
        if start:
            page.line("")
        page.line(" " * (label + 1), (" ".join(fit(f"head {view.heads[h]}", cell) for h in heads), DIM))
        for i, layer in enumerate(view.layers):
            line = Text(fit(f"layer {layer}", label) + " ")
            for h in heads:
                key = int(keys[i, h])
                text = "–" if key < 0 else view.name(key)
                line.append(
                    *page.cell(
                        float(weights[i, h]),
                        f"{fit(text, cell - 4)}{ramp.percent(float(weights[i, h]))}",
                    )
                )
                line.append(" ")
            page.line(line)
