"""A weight as a colour, a shade character, or a number.

The colours brighten steadily and bring their own background, so that a grid reads as one picture on
a dark terminal and on a light one. They are told apart without colour vision too: only brightness
carries the order. Where there are no colours to have, four shade characters stand for quarters of
the largest weight.
"""

from __future__ import annotations

# From nothing to the largest weight: CIE lightness about 14, 29, 46, 66, 81, 95.
STOPS = (
    (29, 34, 54),
    (43, 68, 112),
    (33, 117, 138),
    (58, 172, 145),
    (160, 215, 110),
    (253, 243, 160),
)
SHADES = ("  ", "░░", "▒▒", "▓▓", "██")
SHADE_FROM = (0.1, 0.3, 0.55, 0.8)  # of the largest weight
LIGHT = (245, 245, 245)
DARK = (20, 24, 40)

DARK_FROM = 0.55  # of the largest weight; there black and white ink read equally well
TRACE = 0.005  # a weight that would be rounded to 0%

Colour = tuple[int, int, int]


def colour(share: float) -> Colour:
    """The colour of a weight that is this share, 0 to 1, of the largest.

    >>> colour(0.0) == STOPS[0], colour(1.0) == STOPS[-1]
    (True, True)
    """
    place = min(max(share, 0.0), 1.0) * (len(STOPS) - 1)
    lower = min(int(place), len(STOPS) - 2)
    t = place - lower
    red, green, blue = (round(a + (b - a) * t) for a, b in zip(STOPS[lower], STOPS[lower + 1], strict=True))
    return red, green, blue


def ink(share: float) -> Colour:
    """What to write in on top of `colour(share)`."""
    return DARK if share > DARK_FROM else LIGHT


def shade(share: float) -> str:
    """Two characters for a weight that is this share of the largest.

    >>> shade(0.0), shade(1.0)
    ('  ', '██')
    """
    return SHADES[sum(share >= start for start in SHADE_FROM)]


def top_of_scale(largest: float) -> float:
    """Where a scale ends: the next twentieth above the largest weight, so that its end reads well."""
    return max(0.05, -(-round(largest, 6) // 0.05) * 0.05)


def percent(weight: float) -> str:
    """A weight as a percentage in four cells; a trace of weight is never rounded to nothing.

    >>> percent(0.426), percent(1.0), percent(0.003), percent(0.0)
    (' 43%', '100%', ' <1%', '  0%')
    """
    text = "<1%" if 0 < weight < TRACE else f"{weight * 100:.0f}%"
    return text.rjust(4)
