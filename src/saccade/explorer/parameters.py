"""What a question is asked with, checked: it comes from outside.

A question's parameters are a frozen dataclass. `read` makes one from what came: strings of a link, or JSON. What has a
default may be left out. Numbers are not negative, and nothing is longer than it may be; what a number must be less
than, the question knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

from saccade.errors import ArgumentError

Head = int | str  # a place among the heads of a site, or MEAN
MEAN = "mean"
Range = tuple[int, int]

LONGEST_TEXT = 200_000  # characters
LONGEST_NAME = 100
MOST_LISTED = 256
LARGEST = 1 << 40

T = TypeVar("T")


def read(kind: type[T], given: Mapping[str, Any]) -> T:
    """Parameters of a kind from what came.

    Raises:
        ArgumentError: one is missing, is none of its kind, or is too much.
    """
    hints = get_type_hints(kind)
    asked = {field.name: field.default is MISSING for field in fields(kind)}  # type: ignore[arg-type]
    names = list(asked)
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ArgumentError(f"{_said(unknown[0])}: there is no such parameter; expected {', '.join(names) or 'none'}")
    missing = [name for name, needed in asked.items() if needed and name not in given]
    if missing:
        raise ArgumentError(f"{missing[0]} is missing; expected {', '.join(names)}")
    return kind(**{name: _READERS[hints[name]](name, given[name]) for name in names if name in given})


def _count(name: str, value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,13}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise ArgumentError(f"{name} = {_said(value)}: expected a whole number from 0")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ArgumentError(f"{name} = {_said(value)}: expected a string")
    if len(value) > LONGEST_TEXT:
        raise ArgumentError(f"{name} has {len(value):,} characters; expected at most {LONGEST_TEXT:,}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ArgumentError(f"{name} holds half of a character (a lone surrogate), which is no text")
    return value


def _truth(name: str, value: Any) -> bool:
    if value in ("true", "false"):  # no set: what came may not be hashable
        return bool(value == "true")
    if not isinstance(value, bool):
        raise ArgumentError(f"{name} = {_said(value)}: expected true or false")
    return value


def _head(name: str, value: Any) -> Head:
    return MEAN if value == MEAN else _count(name, value)


def _listed(value: Any) -> list[Any]:
    return value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]


def _range(name: str, value: Any) -> Range:
    ends = [_count(name, end) for end in _listed(value)[:3]]
    if len(ends) != 2 or ends[0] > ends[1]:  # noqa: PLR2004
        raise ArgumentError(f"{name} = {_said(value)}: expected a range, its start and its end")
    return ends[0], ends[1]


def _counts(name: str, value: Any) -> tuple[int, ...]:
    listed = _listed(value)
    if len(listed) > MOST_LISTED:
        raise ArgumentError(f"{name}: {len(listed)} numbers; expected at most {MOST_LISTED}")
    return tuple(_count(name, one) for one in listed)


def _objects(name: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ArgumentError(f"{name} = {_said(value)}: expected a list of objects")
    if len(value) > MOST_LISTED:
        raise ArgumentError(f"{name}: {len(value)} objects; expected at most {MOST_LISTED}")
    return tuple(value)


_READERS: dict[Any, Any] = {
    int: _count,
    str: _text,
    bool: _truth,
    Head: _head,
    Range: _range,
    tuple[int, ...]: _counts,
    tuple[Mapping[str, Any], ...]: _objects,
}


def _said(value: Any) -> str:
    """What came, short enough for a message."""
    said = json.dumps(value, ensure_ascii=True, default=lambda other: type(other).__name__)
    return said if len(said) <= LONGEST_NAME else said[: LONGEST_NAME - 1] + "…"
