"""The view as a picture, PNG or SVG: heat maps with words on both axes, one scale, one colour bar.

Queries run down, keys run right. A few dozen words are all on the ticks; of a longer text every so
many are, and the pattern is reduced to cells by their largest weight, because single weights would
be thinner than a pixel and vanish.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from saccade.views import ramp
from saccade.views.attention_view import MEAN, AttentionView, Floats
from saccade.views.drawing import CAVEAT, pale, save, short
from saccade.views.units import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS, FEW_PANELS = 6, 4  # heads in the overview of a short text and of a longer one
SHORT = 16  # units
MOST_TICKS = 64  # up to so many units all are on the ticks
FEWER_TICKS = 32  # at most so many of a longer text, and in a font of ordinary size
MOST_CELLS = 128
LONG_GAMMA = 0.4  # weights in a long text are small: its colours grow with this power of them
QUERY, KEY, WEIGHT = "query (looking)", "key (looked at)", "attention weight"
MARK: dict[str, str] = {"weight": "bold", "color": "#b3261e"}  # the word in question, on its axis


def write_picture(view: AttentionView, path: Path, focus: int | None = None) -> list[str]:
    """Draw a view into a file whose ending says the format.

    Args:
        view: what to draw: its most telling heads, or the one that was selected.
        path: where to; .png or .svg.
        focus: draw instead where this word looks and who looks at it, by layer.

    Returns:
        Remarks for whoever asked, such as characters that no font here has.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArgumentError: the file cannot be written.
    """
    word = focus is not None and view.weights is not None
    return save(lambda: _word(view, focus or 0) if word else _overview(view), path)


# ---------------------------------------------------------------------------------------- figures


def _overview(view: AttentionView) -> Figure:
    heads = view.most_telling(PANELS if len(view.units) <= SHORT else FEW_PANELS)
    columns = min(len(heads), 3 if len(heads) > FEW_PANELS else 2)
    rows = -(-len(heads) // columns)
    patterns = [_pattern(view, head) for head in heads]
    side = _side(view, alone=len(heads) == 1)
    figure, axes = _figure(rows, columns, side, side)
    scale = ramp.top_of_scale(max(float(pattern.max()) for pattern in patterns))
    for i, (axis, head, pattern) in enumerate(zip(axes, heads, patterns, strict=False)):
        _heat_map(axis, pattern, scale, (len(view.units), len(view.units)))
        axis.set_title(_panel_title(view, head, alone=len(heads) == 1), fontsize=9)
        _ticks(axis, view.labels, "x", label=KEY if i + columns >= len(heads) else "")
        _ticks(axis, view.labels, "y", label=QUERY if i % columns == 0 else "")
    for axis in axes[len(heads) :]:
        axis.axis("off")
    figure.colorbar(axes[0].images[0], ax=axes, label=_scale_label(view), fraction=0.03, pad=0.015, shrink=0.8)
    chosen = "" if len(heads) == 1 else f"the {len(heads)} most telling heads"
    _caption(figure, view, chosen)
    return figure


def _word(view: AttentionView, focus: int) -> Figure:
    """Layers x words, on average over heads: where one word looks, and who looks at it."""
    assert view.weights is not None
    mean = view.weights.mean(1)
    rows = {"where it looks": (mean[:, focus], KEY), "who looks at it": (mean[:, :, focus], QUERY)}
    wide = max(0.34 * min(len(view.units), FEWER_TICKS) + 1.6, 6)
    figure, axes = _figure(2, 1, wide, 0.26 * len(view.layers) + 1.4)
    scale = ramp.top_of_scale(max(float(weights.max()) for weights, _ in rows.values()))
    for axis, (title, (weights, label)) in zip(axes, rows.items(), strict=True):
        _heat_map(axis, weights, scale, weights.shape, aspect="auto")
        axis.set_title(title, fontsize=9)
        _ticks(axis, [view.name(i) for i in range(len(view.units))], "x", label=label, marked=focus)
        _ticks(axis, list(view.layers), "y", label="layer")
    figure.colorbar(axes[0].images[0], ax=axes, label=WEIGHT, fraction=0.03, pad=0.015, shrink=0.8)
    _caption(figure, view, f"“{short(view.name(focus))}”, {_heads(view)}")
    return figure


def _heads(view: AttentionView) -> str:
    if len(view.heads) > 1:
        return f"mean of {len(view.heads)} heads"
    return "mean of all heads" if view.heads[0] == MEAN else f"head {view.heads[0]}"


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width + 1.0, rows * height + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def _side(view: AttentionView, *, alone: bool) -> float:
    """Inches along one pattern."""
    ticks = min(len(view.units), MOST_TICKS)
    return max(min(0.2 * ticks + 1.2, max(5.5, 0.09 * ticks + 1.2)), 4.5 if alone else 3.0)


def _panel_title(view: AttentionView, head: tuple[int, int], *, alone: bool) -> str:
    return "" if alone else "\n".join(filter(None, (view.title(*head), view.habit(*head))))


def _caption(figure: Figure, view: AttentionView, chosen: str) -> None:
    part = f" ({view.part})" if view.part else ""
    names = [f"{view.model}{part}"]
    names += [chosen] if chosen else [view.title(0, 0)]
    text = textwrap.shorten(printable(" ".join(view.text[:200].split())), 90, placeholder=" …")
    figure.suptitle(f"{', '.join(names)}\n{text}", fontsize=10)
    figure.supxlabel(
        "\n".join(textwrap.wrap(_footnote(view), int(figure.get_figwidth() * 17))),
        fontsize=6.5,
        color="#555555",
    )


def _footnote(view: AttentionView) -> str:
    if not view.hidden:
        return CAVEAT
    mass = ramp.percent(float(view.summary.special_mass.mean())).strip()
    return f"{' '.join(view.hidden)} (hidden) took {mass} of the attention on average. {CAVEAT}"


# ---------------------------------------------------------------------------------------- parts


def _heat_map(
    axis: Axes, weights: Floats, scale: float, size: tuple[int, ...], aspect: Literal["equal", "auto"] = "equal"
) -> None:
    """Draw weights over `size` rows and columns of units, however many cells they come in."""
    from matplotlib.colors import PowerNorm

    rows, columns = size
    axis.imshow(
        _reduced(weights),
        cmap=pale(),
        norm=PowerNorm(LONG_GAMMA if columns > MOST_CELLS else 1, vmin=0, vmax=scale),
        aspect=aspect,
        interpolation="nearest",
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
    )


def _pattern(view: AttentionView, head: tuple[int, int]) -> Floats:
    """A head's pattern, or of a long text its map."""
    pattern: Floats = (view.summary.cells if view.weights is None else view.weights)[head]
    return pattern


def _reduced(weights: Floats) -> Floats:
    """At most `MOST_CELLS` cells along each side, each the largest weight of its part."""
    for axis in (0, 1):
        n = weights.shape[axis]
        if n > MOST_CELLS:
            bounds = np.arange(MOST_CELLS) * n // MOST_CELLS
            weights = np.maximum.reduceat(weights, bounds, axis).astype(np.float32)
    return weights


def _scale_label(view: AttentionView) -> str:
    cells = view.summary.cells.shape[-1] if view.weights is None else MOST_CELLS
    return WEIGHT if len(view.units) <= cells else f"{WEIGHT} (largest in each of {cells} × {cells} cells)"


def _ticks(axis: Axes, labels: Sequence[str], which: str, label: str, marked: int | None = None) -> None:
    """Labels on the ticks of one axis, every so many of a long text and the one that is to be marked."""
    step = 1 if len(labels) <= MOST_TICKS else -(-len(labels) // FEWER_TICKS)
    places = list(range(0, len(labels), step))
    if marked is not None:
        places[marked // step] = marked
    names = [short(labels[i]) + (f"  {i}" if step > 1 else "") for i in places]
    size = 8 if len(places) <= SHORT else 6.5 if len(places) <= FEWER_TICKS else 5.5
    if which == "x":
        axis.set_xticks(places, names, rotation=90, fontsize=size)
        axis.set_xlabel(label, fontsize=8)
    else:
        axis.set_yticks(places, names, fontsize=size)
        axis.set_ylabel(label, fontsize=8)
    axis.tick_params(length=2, width=0.5)
    if marked is not None:
        (axis.get_xticklabels() if which == "x" else axis.get_yticklabels())[marked // step].set(**MARK)
