"""The roles of heads as a picture: layers by heads, a colour for the strongest role, deeper for a higher score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saccade.analysis.roles.scoring import ROLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from saccade.analysis.roles import HeadRoles

# Paul Tol's "muted" scheme, distinct in all common forms of colour blindness; letters say the same without colour.
COLOURS = dict(
    zip(
        ROLES,
        ("#332288", "#88ccee", "#ddaa33", "#cc6677", "#117733", "#aa4499", "#44aa99", "#7d7d7d"),
        strict=True,
    )
)
OWN = ("#882255", "#999933", "#b15928", "#224c66")  # the user's patterns, in turn
NOTHING = "#f3f3f3"
PALEST = 0.16  # how much of its colour a cell has at score 0
MOST_LABELLED, MOST_NUMBERED = 26, 13  # layers, or heads, whose cells have room for a letter, and for a number below
DARK_BELOW = 0.42  # luminance under which ink is white


def letters(roles: HeadRoles) -> dict[str, str]:
    """One letter for each role: its first one; the user's patterns are numbered."""
    own = [role for role in roles.scores if role not in ROLES]
    return {role: role[0].upper() for role in ROLES} | {role: str((i + 1) % 10) for i, role in enumerate(own)}


def colours(roles: HeadRoles) -> dict[str, str]:
    """One colour for each role."""
    own = [role for role in roles.scores if role not in ROLES]
    return COLOURS | {role: OWN[i % len(OWN)] for i, role in enumerate(own)}


def draw(axis: Axes, roles: HeadRoles) -> None:
    """Draw the picture on an axis, its legend at the right."""
    strongest = roles.strongest
    rgb = _cells(roles, strongest)
    axis.imshow(rgb, aspect="auto", interpolation="nearest")
    layers, heads = strongest.shape
    axis.set_xticks(range(0, heads, _step(heads)), [str(i) for i in roles.head_numbers][:: _step(heads)], fontsize=7)
    axis.set_yticks(range(0, layers, _step(layers)), [str(i) for i in range(layers)][:: _step(layers)], fontsize=7)
    axis.set_xlabel("head", fontsize=8)
    axis.set_ylabel("layer", fontsize=8)
    axis.set_title(f"{roles.model}: what each head does", fontsize=9.5, loc="left")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xticks(np.arange(heads + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(layers + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.6 if max(layers, heads) <= MOST_LABELLED else 0.6)
    axis.tick_params(which="minor", length=0)
    if max(layers, heads) <= MOST_LABELLED:
        _write(axis, roles, strongest, rgb)
    _legend(axis, roles, strongest)


def _step(count: int) -> int:
    """Every how many heads or layers a tick is labelled."""
    return 1 if count <= MOST_LABELLED else 4


def _score(roles: HeadRoles, strongest: NDArray[np.str_], layer: int, head: int) -> float:
    role = str(strongest[layer, head])
    return float(roles.scores[role][layer, head]) if role else 0.0


def _cells(roles: HeadRoles, strongest: NDArray[np.str_]) -> NDArray[np.float64]:
    """Colours ``(L, H, 3)``; white where there is no such head."""
    from matplotlib.colors import to_rgb

    known = colours(roles)
    rgb = np.ones((*strongest.shape, 3))
    for layer, head in np.ndindex(*strongest.shape):
        role = str(strongest[layer, head])
        if role:
            depth = PALEST + (1 - PALEST) * _score(roles, strongest, layer, head)
            rgb[layer, head] = 1 - depth * (1 - np.array(to_rgb(known[role])))
        elif bool(roles.entropy[layer, head].isfinite()):
            rgb[layer, head] = to_rgb(NOTHING)
    return rgb


def _write(axis: Axes, roles: HeadRoles, strongest: NDArray[np.str_], rgb: NDArray[np.float64]) -> None:
    """Each cell's score in percent, and the letter of its role."""
    signs, numbered = letters(roles), len(strongest) <= MOST_NUMBERED
    luminance = rgb @ np.array([0.2126, 0.7152, 0.0722])
    raised = 0.14 if numbered else -0.02
    for layer, head in np.ndindex(*strongest.shape):
        role = str(strongest[layer, head])
        if role:
            ink = "white" if luminance[layer, head] < DARK_BELOW else "#22252b"
            percent = f"{100 * _score(roles, strongest, layer, head):.0f}"
            place: dict[str, Any] = {"color": ink, "ha": "center", "va": "center"}
            axis.text(head, layer - raised, signs[role], fontsize=7.5, weight="bold", **place)
            axis.text(head, layer + 0.26, percent if numbered else "", fontsize=5.5, **place)


def _legend(axis: Axes, roles: HeadRoles, strongest: NDArray[np.str_]) -> None:
    from matplotlib.patches import Patch

    signs, known = letters(roles), colours(roles)
    present = [role for role in roles.scores if (strongest == role).any()]
    handles = [Patch(color=known[role], label=f"{signs[role]}  {role}") for role in present]
    if (strongest == "").any():
        handles.append(Patch(color=NOTHING, label="none stands out"))
    legend = axis.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        fontsize=7.5,
        title="strongest role\n(deeper: more of the\nweight, in percent)",
        title_fontsize=7,
        alignment="left",
        handlelength=1.1,
        handleheight=1.1,
    )
    legend.get_title().set_color("#555555")
