"""The picture of an ablation: a map of layers and heads, or a bar for each part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from saccade.views import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from saccade.analysis.ablation import Ablation

LABELLED = 40  # bars that still have room for a label
LEVEL = 12  # labels that stand level
NUMBERED = 16  # columns wide enough for a number
STRONGEST = 3  # effects that are written out
WIDEST_TEXT = 70  # characters of the text in a title
STEPS = 6  # ticks along an axis of heads or layers, about


def draw(found: Ablation, axis: Axes) -> None:
    """Draw an ablation on an axis."""
    if found.plan.dims == ("layer", "head"):
        _map(found, axis)
    else:
        _bars(found, axis)
    text = found.text if len(found.text) <= WIDEST_TEXT else found.text[: WIDEST_TEXT - 1] + "…"
    said = f"{found.model}: {found.done}"
    axis.set_title(f"{said}\n{text}" if text else said, fontsize=9, loc="left")


def _largest(found: Ablation) -> float:
    """Where the scale ends."""
    finite = found.effect[found.effect.isfinite()]
    return float(finite.abs().max()) or 1.0 if len(finite) else 1.0


def _map(found: Ablation, axis: Axes) -> None:
    largest, effect = _largest(found), found.effect.numpy()
    image = axis.imshow(effect, cmap=drawing.both(), vmin=-largest, vmax=largest, aspect="auto")
    axis.set_facecolor("#eeeeee")
    layers, heads = (list(found.plan.along[dim]) for dim in ("layer", "head"))
    for side, numbers in ((axis.xaxis, heads), (axis.yaxis, layers)):
        step = max(1, len(numbers) // (2 * STEPS))
        side.set_ticks(range(0, len(numbers), step), [str(number) for number in numbers[::step]], fontsize=8)
    axis.set_xticks(np.arange(1, len(heads)) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, len(layers)) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("head", fontsize=8)
    axis.set_ylabel("layer", fontsize=8)
    _write_strongest(effect, largest, axis)
    bar = axis.figure.colorbar(image, ax=axis, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2)
    if not np.nanmin(effect) < 0:
        bar.ax.set_ylim(0, largest)
    bar.set_label(_axis_label(found), fontsize=8)


def _axis_label(found: Ablation) -> str:
    return f"change of {found.measured}\n{found.sign}"


def _write_strongest(effect: Any, largest: float, axis: Axes) -> None:
    """The strongest effects as numbers, where cells are wide enough."""
    if effect.shape[1] > NUMBERED:
        return
    order = np.argsort(-np.abs(np.nan_to_num(effect)), axis=None)[:STRONGEST]
    for layer, head in zip(*np.unravel_index(order, effect.shape), strict=True):
        number = float(effect[layer, head])
        ink = "white" if abs(number) > largest / 2 else "black"
        axis.text(head, layer, f"{number:.2g}", ha="center", va="center", fontsize=6.5, color=ink)


def _bars(found: Ablation, axis: Axes) -> None:
    effect = found.effect.numpy()
    names = list(found.plan.along[found.plan.dims[0]])
    below, above = drawing.both()((0.2, 0.8))
    colours = [below if number < 0 else above for number in effect]
    bars = axis.bar(range(len(effect)), effect, color=colours, width=0.8)
    if len(names) <= NUMBERED:
        axis.bar_label(bars, fmt="{:.2g}", padding=2, fontsize=6.5, color="#333333")
    axis.axhline(0, color="#333333", linewidth=0.6)
    axis.margins(y=0.1)
    if len(names) <= LABELLED:
        turned: dict[str, Any] = (
            {} if len(names) <= LEVEL else {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
        )
        axis.set_xticks(range(len(names)), [drawing.short(name) for name in names], fontsize=8, **turned)
    else:
        axis.set_xlabel(f"{found.plan.dims[0]} (position)", fontsize=8)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.tick_params(axis="x", length=0)
    axis.tick_params(axis="y", labelsize=7, length=2)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.set_ylabel(_axis_label(found), fontsize=8)
