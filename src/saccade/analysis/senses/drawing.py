"""Pictures of `Senses`: the paths of a word's occurrences through the layers, and how near one is to each sense.

Senses are told apart by colour and by the form of their dots; the colours are those of Okabe and Ito, which people
with any colour vision can tell apart (https://jfly.uni-koeln.de/color).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from saccade.analysis.senses import Senses

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P")
UNKNOWN_COLOUR = "#111111"
GREY = "#666666"
START: dict[str, Any] = {"s": 5, "color": "white", "edgecolors": GREY, "linewidths": 0.6}  # a dot at layer 0
FONT = 6.8  # points
# Where a label may stand beside its dot: its offset in points, and which of its sides is there.
BESIDE = (
    (6, 0, "left", "center"),
    (-6, 0, "right", "center"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
    (5, 5, "left", "bottom"),
    (5, -5, "left", "top"),
    (-5, 5, "right", "bottom"),
    (-5, -5, "right", "top"),
)
Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels


# ---------------------------------------------------------------------------------------- paths


def draw_paths(axis: Axes, found: Senses) -> None:
    """Draw each occurrence's path from layer 0 to the last, fading in; a dot where it ends, a star if not known."""
    paths = found.projection.numpy()
    order = [*(i for i in range(paths.shape[1]) if i not in found.unknown), *found.unknown]  # the unknown on top
    for i in order:
        _path(axis, paths[:, i], _colour(found, i), known=i not in found.unknown)
        axis.scatter(paths[-1, i, 0], paths[-1, i, 1], zorder=4, **_dot(found, i))
    axis.scatter(paths[0, :, 0], paths[0, :, 1], zorder=3, **START)
    _frame_paths(axis, found)
    _label_ends(axis, [(paths[-1, i], found.snippet(i), _colour(found, i)) for i in reversed(order)])


def _path(axis: Axes, path: NDArray[np.float64], colour: str, *, known: bool) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    steps = np.stack([path[:-1], path[1:]], 1)
    opacity = np.linspace(0.15, 0.65 if known else 0.9, len(steps))
    colours = [to_rgba(colour, alpha) for alpha in opacity]
    axis.add_collection(LineCollection(list(steps), colors=colours, linewidths=0.9 if known else 1.6, zorder=2))


def _dot(found: Senses, occurrence: int) -> dict[str, Any]:
    sense = found.sense_of(occurrence)
    look = {"color": _colour(found, occurrence), "edgecolors": "white", "linewidths": 0.7}
    if sense is None:
        return {"marker": "*", "s": 170, **look}
    return {"marker": MARKERS[found.senses.index(sense) % len(MARKERS)], "s": 42, **look}


def _colour(found: Senses, occurrence: int) -> str:
    sense = found.sense_of(occurrence)
    return UNKNOWN_COLOUR if sense is None else COLOURS[found.senses.index(sense) % len(COLOURS)]


def _frame_paths(axis: Axes, found: Senses) -> None:
    """Title, axes and legend."""
    last = len(found.cosine) - 1
    axis.set_title(f"Where each “{found.word}” goes, from layer 0 to layer {last}", fontsize=10, loc="left")
    axis.set_xlabel(f"first principal component of layer {last}", fontsize=7.5, color=GREY)
    axis.set_ylabel(f"second (both: {found.kept:.0%} of the variance)", fontsize=7.5, color=GREY)
    axis.tick_params(labelsize=6.5, colors=GREY, length=2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(0.24, 0.1)  # room for labels at the sides
    axis.autoscale_view()
    first = {found.sense_of(i): i for i in reversed(range(len(found.occurrences)))}
    for sense in (*found.senses, *([None] if None in first else [])):
        axis.scatter([], [], label="not known" if sense is None else sense, **_dot(found, first[sense]))
    axis.scatter([], [], label="layer 0", **START)
    axis.legend(fontsize=7.5, frameon=False, loc="best")


def _label_ends(axis: Axes, ends: list[tuple[NDArray[np.float64], str, str]]) -> None:
    """Write each label beside its dot where it covers no dot and no label; where that is nowhere, leave it out."""
    from matplotlib.patheffects import withStroke

    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # only then the axis has its size
    halo = [withStroke(linewidth=2, foreground="white")]
    dots = [axis.transData.transform(place) for place, _, _ in ends]
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in dots]
    for (place, text, colour), dot in zip(ends, dots, strict=True):
        for x, y, side, level in BESIDE:
            box = _box(axis, dot, text, (x, y, side, level))
            if _inside(axis, box) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                axis.annotate(
                    text, tuple(place), (x, y), textcoords="offset points",
                    ha=side, va=level, fontsize=FONT, color=colour, zorder=5, path_effects=halo,
                )  # fmt: skip
                break


def _box(axis: Axes, dot: NDArray[np.float64], text: str, beside: tuple[float, float, str, str]) -> Box:
    """About where a label would be: half its height a character."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    point = figure.dpi / 72
    width, height = len(text) * FONT * 0.54 * point, FONT * 1.25 * point
    x, y, side, level = beside
    left = dot[0] + x * point - {"left": 0.0, "center": width / 2, "right": width}[side]
    bottom = dot[1] + y * point - {"bottom": 0.0, "center": height / 2, "top": height}[level]
    return left, bottom, left + width, bottom + height


def _inside(axis: Axes, box: Box) -> bool:
    return bool(axis.bbox.x0 <= box[0] and box[2] <= axis.bbox.x1 and axis.bbox.y0 <= box[1] and box[3] <= axis.bbox.y1)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# ---------------------------------------------------------------------------------------- similarity by layer


def draw_similarity(axis: Axes, found: Senses, occurrence: int) -> None:
    """Draw how near an occurrence is to each sense: a line by layer."""
    assert found.similarity is not None
    layers = range(len(found.similarity))
    for i, sense in enumerate(found.senses):
        look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axis.plot(layers, found.similarity[:, occurrence, i].numpy(), label=sense, lw=1.6, ms=5, mec="white", **look)
    axis.set_title(f"“{found.snippet(occurrence)}”: nearer to which sense?", fontsize=10, loc="left")
    axis.set_xlabel("layer", fontsize=7.5, color=GREY)
    axis.set_ylabel("cosine with the sense’s centre", fontsize=7.5, color=GREY)
    axis.set_xticks(layers if len(layers) <= 13 else layers[:: -(-len(layers) // 12)])  # noqa: PLR2004  that fit
    axis.tick_params(labelsize=7, colors=GREY, length=2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
