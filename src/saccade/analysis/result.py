"""`Result`: named arrays with named dimensions, and the same doors to all of them: frame, picture, file, JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saccade.errors import ArgumentError, MissingExtraError
from saccade.views import drawing
from saccade.views.files import check_writable, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VERSION = 1
PICTURES = (".png", ".svg", ".pdf")
DATA = (".json", ".csv", ".npz")
ENDINGS = (*PICTURES, *DATA)


@dataclass(frozen=True, eq=False)
class Result:
    """What an analysis found: arrays with named dimensions.

    A subclass annotates its arrays with their dimensions, ``norm: Float[Tensor, "head key"]``, says in `coordinates`
    what stands along each of them, and in `draw` how the result is drawn. Its first array and those of the same
    dimensions are what a frame or a CSV file holds by default.
    """

    SIZE: ClassVar[tuple[float, float]] = (7.0, 4.5)  # inches of a picture
    CAVEAT: ClassVar[str] = drawing.CAVEAT  # what is said below it

    def arrays(self) -> dict[str, tuple[tuple[str, ...], NDArray[Any]]]:
        """Every array with its dimensions, by name."""
        found = {}
        for name, dims in _dimensions(type(self)).items():
            value = getattr(self, name)
            if value is not None:
                numbers = _as_numpy(value)
                assert numbers.ndim == len(dims), f"{name}: {numbers.shape} is not {dims}"
                found[name] = dims, numbers
        return found

    def coordinates(self) -> dict[str, Sequence[Any]]:
        """What stands along each dimension; what is left out is numbered from 0."""
        return {}

    def about(self) -> dict[str, Any]:
        """What else there is to say, as JSON can hold it."""
        return {}

    def draw(self, axis: Axes) -> None:
        """Draw the result on an axis."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------ doors

    def to_frame(self, name: str | None = None) -> Any:
        """A `pandas.DataFrame` with a row for each entry: what stands along each dimension, and the arrays' numbers.

        Args:
            name: of an array, which comes with all of the same dimensions; None for the first.

        Raises:
            ArgumentError: there is no array of that name.
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise MissingExtraError("pandas", "frames") from None
        columns, rows = self._table(name)
        return pd.DataFrame(rows, columns=columns)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it; a number that is not finite is None."""
        arrays = self.arrays()
        sizes = {dim: size for dims, x in arrays.values() for dim, size in zip(dims, x.shape, strict=True)}
        return {
            "format": "saccade-analysis",
            "version": VERSION,
            "kind": type(self).__name__,
            **self.about(),
            "coordinates": {dim: list(self._along(dim, size)) for dim, size in sizes.items()},
            "arrays": {
                name: {"dims": list(dims), "values": _jsonable(numbers.tolist())}
                for name, (dims, numbers) in arrays.items()
            },
        }

    def to_json(self) -> str:
        """`as_dict`, written out."""
        return json.dumps(self.as_dict(), ensure_ascii=False, allow_nan=False)

    def plot(self, axis: Axes | None = None) -> Axes:
        """Draw the result with matplotlib, without touching its global state.

        Args:
            axis: where to; None for a new figure (``axis.figure``).

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        drawing.need_matplotlib()
        if axis is None:
            axis = self._figure().axes[0]
        else:
            self.draw(axis)
        return axis

    def save(self, path: str | Path) -> list[str]:
        """Write a file whose ending says the format: .png, .svg, .pdf; .json, .csv, .npz.

        Returns:
            Remarks, such as characters that no font here has.

        Raises:
            ArgumentError: the ending is another, or the file cannot be written.
            MissingExtraError: a picture needs matplotlib.
        """
        path = Path(path)
        ending = check_ending(path)
        if ending in PICTURES:
            return drawing.save(self._figure, path)
        with whole(path) as temporary:
            {".json": self._write_json, ".csv": self._write_csv, ".npz": self._write_npz}[ending](temporary)
        return []

    # ------------------------------------------------------------------------------------ parts

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.SIZE, layout="constrained")
        self.draw(figure.subplots())
        figure.supxlabel(self.CAVEAT, fontsize=6.5, color="#555555")
        return figure

    def _along(self, dim: str, size: int) -> Sequence[Any]:
        known = self.coordinates().get(dim)
        assert known is None or len(known) == size, f"{dim}: {len(known or ())} coordinates for {size} entries"
        return range(size) if known is None else known

    def _table(self, name: str | None) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """The columns and rows of an array and those of its dimensions."""
        arrays = self.arrays()
        name = next(iter(arrays)) if name is None else name
        if name not in arrays:
            raise ArgumentError(f"{type(self).__name__} has no array {name!r}; it has {', '.join(arrays)}")
        dims, first = arrays[name]
        alike = {other: numbers for other, (names, numbers) in arrays.items() if names == dims}
        places = product(*(self._along(dim, size) for dim, size in zip(dims, first.shape, strict=True)))
        entries = zip(*(numbers.ravel().tolist() for numbers in alike.values()), strict=True)
        return [*dims, *alike], ((*place, *entry) for place, entry in zip(places, entries, strict=True))

    def _write_json(self, path: Path) -> None:
        path.write_text(self.to_json() + "\n", encoding="utf-8")

    def _write_csv(self, path: Path) -> None:
        columns, rows = self._table(None)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)

    def _write_npz(self, path: Path) -> None:
        named: dict[str, Any] = {name: numbers for name, (_, numbers) in self.arrays().items()}
        for dim, along in self.coordinates().items():
            named.setdefault(dim, np.asarray(along))
        with path.open("wb") as file:
            np.savez_compressed(file, **named)


def _dimensions(kind: type[Result]) -> dict[str, tuple[str, ...]]:
    """The dimensions of a class's arrays, read from their annotations."""
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for declared in fields(kind):
        hint = hints[declared.name]
        shaped = next((part for part in (hint, *get_args(hint)) if hasattr(part, "dim_str")), None)
        if shaped is not None:
            found[declared.name] = tuple(shaped.dim_str.split())
    return found


def check_out(path: Path) -> None:
    """Refuse a file that could not be written, before anything slow is done for it.

    Raises:
        ArgumentError: see `Result.save`.
    """
    check_ending(path)
    check_writable(path)


def check_ending(path: Path) -> str:
    """A file's ending, if a result can be saved as that.

    Raises:
        ArgumentError: it is another.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ArgumentError(f"{path}: the ending says the format; expected one of {', '.join(ENDINGS)}")
    return ending


def _as_numpy(value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() and value.dtype != torch.float64 else value).numpy()
    return np.asarray(value)


def _jsonable(value: Any) -> Any:
    if isinstance(value, list):
        return [_jsonable(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
