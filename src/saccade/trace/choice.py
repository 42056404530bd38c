"""What a recording keeps, and of which model it is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from saccade._version import __version__
from saccade.errors import ArgumentError
from saccade.masks import Lengths
from saccade.statistics import (
    Distance,
    Entropy,
    LogSumExp,
    Map,
    MaxWeight,
    Received,
    Statistic,
    TopKeys,
    check_kinds,
)
from saccade.trace.metadata import (
    KEEPS,
    VERSION,
    TraceMetadata,
)

TOP_KEYS = 8
LARGEST_SIDE = 1024


def default_statistics(lengths: Lengths) -> list[Statistic]:
    """What is asked of a call if nobody says: every row and column in a few numbers, and a map.

    84 bytes for each query of a head (lse, entropy, largest weight, distance, 8 top keys, received), and a map whose
    levels take at most 64 bytes for each of its tokens.
    """
    side = min(_power_of_two(math.isqrt(12 * max(lengths.queries, lengths.keys))), LARGEST_SIDE)
    cells = min(side, _power_of_two(lengths.queries)), min(side, _power_of_two(lengths.keys))
    rows: list[Statistic] = [LogSumExp(), Entropy(), MaxWeight(), Distance(), TopKeys(TOP_KEYS), Received()]
    return [*rows, Map(cells, "max")]


def _power_of_two(n: int) -> int:
    """The largest one that is no larger; at least 1."""
    return 1 << (max(n, 1).bit_length() - 1)


@dataclass(frozen=True, eq=False)
class Choice:
    """What a recording keeps; see `record`."""

    keep: str
    statistics: tuple[Statistic, ...] | None
    layers: tuple[int | str, ...] | None
    heads: tuple[int, ...] | None
    hidden: bool

    @classmethod
    def checked(cls, keep: str, statistics: Any, layers: Any, heads: Any, *, hidden: bool) -> Choice:
        """A choice from the arguments of `record`.

        Raises:
            ArgumentError: one of them does not fit.
        """
        if keep not in KEEPS:
            raise ArgumentError(f"keep = {keep!r}: expected one of {', '.join(KEEPS)}")
        if statistics is not None:
            statistics = check_kinds(statistics)
            if keep != "statistics" and not any(isinstance(s, LogSumExp) for s in statistics):
                statistics.append(LogSumExp())
        if not isinstance(hidden, bool):
            raise ArgumentError(f"hidden = {hidden!r}: expected True or False")
        layers = _chosen("layers", layers, int | str)
        heads = _chosen("heads", heads, int)
        return cls(keep, None if statistics is None else tuple(statistics), layers, heads, hidden)

    def asked(self, lengths: Lengths) -> Sequence[Statistic]:
        """The statistics of a call."""
        return default_statistics(lengths) if self.statistics is None else self.statistics

    def wants(self, site: str, number: int) -> bool:
        """Whether a call is to be recorded, by its site and its layer's number."""
        return self.layers is None or number in self.layers or site in self.layers

    def check_used(self, seen: dict[str, set[int]]) -> None:
        """Refuse, at the end, layers that there never were."""
        numbers = set().union(*seen.values())
        unknown = [x for x in self.layers or () if x not in seen and x not in numbers]
        if unknown:
            raise ArgumentError(
                f"layers: there is no {unknown[0]!r}; layers were {sorted(numbers)}, sites {list(seen)}"
            )


def _chosen(name: str, given: Any, kinds: Any) -> tuple[Any, ...] | None:
    """A list of numbers (or names), each once, or None."""
    if given is None:
        return None
    listed = [given] if isinstance(given, int | str) else list(given)
    wrong = [x for x in listed if not isinstance(x, kinds) or isinstance(x, bool) or (isinstance(x, int) and x < 0)]
    if wrong or not listed:
        raise ArgumentError(f"{name} = {given!r}: expected numbers from 0, or None for all")
    return tuple(dict.fromkeys(listed))


def about(model: nn.Module, choice: Choice, name: str | None) -> TraceMetadata:
    """What a trace says of itself when it begins."""
    named = "default" if choice.statistics is None else None
    config = getattr(model, "config", None)
    return TraceMetadata(
        version=VERSION,
        writer=f"saccade {__version__}",
        complete=False,
        entries=0,
        model=type(model).__name__,
        name=str(getattr(config, "_name_or_path", "") or "") if name is None else name,
        fingerprint=fingerprint(model),
        keep=choice.keep,
        statistics=(named,) if named else tuple(_said(s) for s in choice.statistics or ()),
        layers=None if choice.layers is None else tuple(map(str, choice.layers)),
        heads=choice.heads,
        hidden=choice.hidden,
    )


def _said(statistic: Statistic) -> str:
    field_, numbers, tensor = (
        (statistic.field, [statistic.offset], None) if isinstance(statistic, Distance) else statistic.code()
    )
    groups = "" if tensor is None else hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    return f"{field_}{numbers}{groups}"


_FINGERPRINTED = 64  # numbers of a parameter


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all parameters' names, shapes and dtypes, and of some of their numbers: other weights have another."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        found.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.is_meta or not parameter.numel():
            continue
        flat = parameter.detach().flatten()
        places = torch.linspace(0, len(flat) - 1, min(_FINGERPRINTED, len(flat)), dtype=torch.float64).long()
        found.update(flat[places.to(flat.device)].double().cpu().numpy().tobytes())
    return found.hexdigest()
