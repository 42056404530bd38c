"""An ablation on a terminal: the strongest effects, and a map of all heads."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from saccade.analysis.ablation import CAVEAT, Ablation
from saccade.views import ramp
from saccade.views.labels import fit
from saccade.views.terminal import CELL, DIM, Page

ROWS = 12  # effects that are listed
NAME, NUMBER, BAR = 20, 10, 30  # cells of a row
TEXT_LINES = 4


def show(console: Console, found: Ablation) -> None:
    """Print an ablation."""
    page = Page(console)
    page.pair(found.model, found.done)
    page.lines(Text(found.text).wrap(console, page.width)[:TEXT_LINES])
    page.title(f"Change of {found.measured}", found.sign)
    if found.baseline:  # a word's vector does not differ from itself
        page.prose(f"{found.baseline:.4g} in the whole model")
    _strongest(page, found)
    if found.plan.dims == ("layer", "head"):
        _map(page, found)
    page.line("")
    page.prose(CAVEAT)


def _strongest(page: Page, found: Ablation) -> None:
    """A row for each of the strongest effects, with a bar as long as it is large."""
    listed = found.strongest(ROWS)
    largest = abs(listed[0][1]) or 1.0
    room = min(BAR, page.width - NAME - NUMBER - 4)
    for name, effect in listed:
        bar = "█" * round(abs(effect) / largest * room)
        page.line(f"{fit(name, NAME)}  {_number(effect):>{NUMBER}}  {bar}")
    if len(listed) < len(found.plan.parts):
        page.prose(f"the {len(listed)} strongest of {len(found.plan.parts)}")


def _number(effect: float) -> str:
    return f"{effect:+.4f}" if abs(effect) >= 0.001 or effect == 0 else f"{effect:+.1e}"  # noqa: PLR2004  four digits


def _map(page: Page, found: Ablation) -> None:
    """All heads as shades of their effects' sizes, in blocks of heads that fit."""
    layers, heads = found.plan.along["layer"], found.plan.along["head"]
    largest = abs(found.strongest(1)[0][1]) or 1.0
    page.title("Every head", "darkest where nothing changes; - below 0" if page.colours else "- below 0")
    label = len(f"layer {layers[-1]}")
    room = (page.width - label - 1) // CELL
    for start in range(0, len(heads), room):
        some = heads[start : start + room]
        page.line(" " * (label + 1), ("".join(f"{head:<{CELL}}" for head in some), DIM))
        for row, layer in enumerate(layers):
            line = Text(fit(f"layer {layer}", label) + " ")
            for head in some:
                _append_cell(page, line, float(found.effect[row, head]) / largest)
            page.line(line)


def _append_cell(page: Page, line: Text, share: float) -> None:
    """A cell of the map; empty where a layer has no such head."""
    if share != share:  # noqa: PLR0124  NaN
        line.append(" " * CELL)
        return
    size = abs(share)
    below = share < 0 and size >= ramp.SHADE_FROM[0]
    plain = " " * CELL if page.colours else ramp.shade(size)
    line.append(*page.cell(size, "-" + plain[1:] if below else plain))
