"""The roles of heads on a terminal: a small map of all heads, and a table of some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from saccade.analysis.roles.picture import letters
from saccade.analysis.roles.scoring import HABITS, ROLES
from saccade.views.drawing import CAVEAT
from saccade.views.labels import fit
from saccade.views.terminal import DIM, Page

if TYPE_CHECKING:
    from rich.console import Console

    from saccade.analysis.roles import HeadRoles

LAYER, CELL = 5, 3  # terminal cells of a layer's label and of a head on the map
SHORT = {
    "previous": "prev",
    "first": "1st",
    "local": "loc",
    "separators": "sep",
    "duplicate": "dup",
    "induction": "ind",
    "global": "glob",
}
LABEL = 11  # terminal cells of a role's name
PERCENT, NUMBER = 5, 6  # of a score, of a distance or an entropy
WIDE = 10  # a number from which on one digit behind the point is enough


def render(console: Console, roles: HeadRoles, by: str, top: int) -> None:
    """Print the map of all heads and a table of the first ones.

    Args:
        console: where to.
        roles: what was found.
        by: in which order, as of `HeadRoles.ranked`.
        top: how many heads the table shows.
    """
    page = Page(console)
    layers, heads = roles.entropy.shape
    page.pair(roles.model, f"{layers} layer{'s' * (layers > 1)} × {heads} head{'s' * (heads > 1)}")
    page.prose(f"Read: {roles.read}.")
    if roles.skipped:
        page.prose(f"Left out, as queries and keys are not the same tokens: {len(roles.skipped)} calls.")
    _map(page, roles)
    _table(page, roles, by, top)
    page.line("")
    page.prose(CAVEAT)


def _map(page: Page, roles: HeadRoles) -> None:
    """Every head's role as a letter, brighter (without colours: a capital) where its score is higher."""
    page.title("What each head does most", "layers down, heads to the right")
    room = max(1, (page.width - LAYER - 1) // CELL)
    strongest, signs = roles.strongest, letters(roles)
    for start in range(0, len(roles.head_numbers), room):
        part = range(start, min(start + room, len(roles.head_numbers)))
        page.line(" " * (LAYER + 1), ("".join(f"{roles.head_numbers[i]:^{CELL}}" for i in part), DIM))
        for layer in range(len(roles.sites)):
            line = Text(f"{layer:>{LAYER}} ")
            for head in part:
                role = str(strongest[layer, head])
                share = float(roles.scores[role][layer, head]) if role else 0.0
                line.append(*page.cell(share, _sign(page, signs.get(role, "·"), share)))
            page.line(line)
    used = [role for role in roles.scores if (strongest == role).any()]
    legend = ", ".join([*(f"{signs[role]} {role}" for role in used), "· none stands out"])
    how = "brighter: more of the weight" if page.colours else "a capital: at least half of the weight"
    page.prose(f"{legend}; {how}")


def _sign(page: Page, letter: str, share: float) -> str:
    """The letter in the middle of a cell."""
    low = not page.colours and share < 0.5  # noqa: PLR2004  half of the weight
    return f" {letter.lower() if low else letter} "


def _table(page: Page, roles: HeadRoles, by: str, top: int) -> None:
    ranked = roles.ranked(by)[:top]
    page.title(f"{len(ranked)} of {roles.entropy.isfinite().sum()} heads", f"by {by}; percent of a query’s weight")
    names, left_out = _fitting(page, roles, by)
    header = "".join(f"{SHORT.get(name, name)[:4]:>{_width(name)}}" for name in names)
    page.line((f"layer head  {'strongest':{LABEL}}{header}", DIM))
    for layer, head in ranked:
        cells = "".join(f"{_number(name, float(roles.columns[name][layer, head])):>{_width(name)}}" for name in names)
        strongest = fit(str(roles.strongest[layer, head]) or "–", LABEL)
        page.line(f"{layer:5} {roles.head_numbers[head]:4}  {strongest}{cells}")
    if left_out:
        page.prose(f"No room for: {', '.join(left_out)}; --json has them.")
    page.prose("dist: mean distance in tokens; entr: entropy in nats; –: no query sees such a key.")


def _fitting(page: Page, roles: HeadRoles, by: str) -> tuple[list[str], list[str]]:
    """The columns that fit, the one sorted by in any case, and the others; in their order."""
    room = page.width - len("layer head  ") - LABEL
    kept: set[str] = set()
    for name in [by, *HABITS, *roles.scores]:
        if name in roles.columns and name not in kept and (room >= _width(name) or not kept):
            kept.add(name)
            room -= _width(name)
    return [n for n in roles.columns if n in kept], [n for n in roles.columns if n not in kept]


def _width(name: str) -> int:
    return NUMBER if name in HABITS else PERCENT


def _number(name: str, value: float) -> str:
    if value != value:  # noqa: PLR0124  NaN
        return "–"
    if name not in HABITS:
        return f"{100 * value:.0f}"
    return f"{value:.1f}" if value >= WIDE else f"{value:.2f}"


def role_names() -> tuple[str, ...]:
    """What a table can be sorted by, where there are no patterns of the user's own."""
    return ("strongest", *ROLES, *HABITS)
