"""What all pictures share: fonts, colours, how they are saved, and the line on what attention weights do not prove."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.errors import MissingExtraError
from saccade.views.files import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DPI = 150
LONGEST = 16  # characters of a label on a tick
CAVEAT = "Attention weights are not by themselves an explanation (Jain & Wallace 2019; Wiegreffe & Pinter 2019)."
# Fonts with the scripts that matplotlib's own lacks, where they are installed.
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Noto Emoji",
)
# White where nothing is, dark where most is: for paper and for pages.
PALE = ("#ffffff", "#d9ecf2", "#8cc6d4", "#3d93b3", "#1f5f8f", "#1d2236")
# Brown where less than nothing is, white at nothing, blue where more is.
BOTH = ("#5c3317", "#a9672e", "#e0b98a", "#ffffff", "#8cc6d4", "#2f7fa6", "#1d2f5f")


def pale() -> Colormap:
    """Colours of numbers from 0."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("pale", PALE)


def both() -> Colormap:
    """Colours of numbers on both sides of 0."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("both", BOTH)


def need_matplotlib() -> None:
    """Refuse to draw without it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot")


@contextmanager
def drawing() -> Iterator[None]:
    """Our fonts and settings, in this context only."""
    need_matplotlib()
    import matplotlib as mpl

    with mpl.rc_context(_settings()):
        yield


def _settings() -> Any:
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return {
        "backend": "agg",
        "font.family": [font for font in FONTS if font in installed],
        "svg.fonttype": "path",
        "svg.hashsalt": "saccade",  # the same view, the same file
        "text.parse_math": False,  # a dollar sign is a dollar sign
        "axes.linewidth": 0.6,
    }


def save(draw: Callable[[], Figure], path: Path) -> list[str]:
    """Draw a figure into a file whose ending says the format: .png, .svg or .pdf.

    Returns:
        Remarks for whoever asked, such as characters that no font here has.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArgumentError: the file cannot be written.
    """
    with drawing(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = draw()
        with whole(path) as temporary:
            figure.savefig(temporary, dpi=DPI, format=path.suffix[1:].lower(), metadata=_metadata(path))
    return _remarks(str(warning.message) for warning in caught)


def _metadata(path: Path) -> dict[str, Any]:
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {"Software": "saccade"})


def _remarks(messages: Any) -> list[str]:
    missing = {m.split("(")[1].split(")")[0] for m in messages if "missing from font" in m and "(" in m}
    if not missing:
        return []
    return [f"no font here has {len(missing)} of the characters; they are drawn as boxes"]


def colour_bar(axis: Axes, image: AxesImage, label: str) -> None:
    """What an image's colours mean, beside it."""
    bar = axis.figure.colorbar(image, ax=axis, fraction=0.03, pad=0.015)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7, length=2, width=0.5)


def name_cells(axis: Axes, columns: Sequence[str], rows: Sequence[str], *, size: float = 7) -> None:
    """Labels below the columns of an image, upright where they are words, and beside its rows."""
    upright = any(not label.isdecimal() for label in columns)
    axis.set_xticks(range(len(columns)), [short(label) for label in columns], rotation=90 if upright else 0)
    axis.set_yticks(range(len(rows)), [short(label) for label in rows])
    axis.tick_params(labelsize=size, length=2, width=0.5)


def short(label: str) -> str:
    """A label that fits on a tick."""
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
