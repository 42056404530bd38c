"""Answers as bytes, and parameters as they come from outside."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from saccade.errors import ArgumentError
from saccade.explorer.parameters import Head, Range, read
from saccade.explorer.parcel import ALIGNMENT, pack


def unpack(content: bytes) -> dict[str, Any]:
    """A parcel by its specification, written once more."""
    size = int.from_bytes(content[:4], "little")
    header = json.loads(content[4 : 4 + size])
    start = math.ceil((4 + size) / ALIGNMENT) * ALIGNMENT
    found = dict(header["answer"])
    for name, array in header["arrays"].items():
        kind, shape = np.dtype(array["dtype"]), array["shape"]
        assert (start + array["offset"]) % ALIGNMENT == 0
        found[name] = np.frombuffer(content, kind, math.prod(shape), start + array["offset"]).reshape(shape)
    return found


def test_arrays_come_back_as_they_were():
    arrays = {
        "odd": torch.tensor([1.5, -torch.inf, torch.nan]),
        "counts": torch.arange(6).view(2, 3),
        "flags": np.array([True, False, True]),
        "half": torch.tensor([[0.1]], dtype=torch.bfloat16),
        "double": np.array([1 / 3]),
        "turned": torch.arange(6.0).view(2, 3).mT,
        "none": torch.zeros(0, 4),
        "one": torch.tensor(7.0),
    }
    found = unpack(pack({"name": "Ġ→", **arrays, "list": [1, "a"]}))
    assert found["name"] == "Ġ→"
    assert found["list"] == [1, "a"]
    kinds = {"counts": np.int32, "flags": np.uint8}
    for name, array in arrays.items():
        expected = torch.as_tensor(array).float().numpy()
        assert found[name].dtype == kinds.get(name, np.float32)
        assert found[name].shape == expected.shape
        np.testing.assert_array_equal(found[name], expected.astype(found[name].dtype))


def test_what_json_cannot_hold_is_null():
    found = unpack(pack({"lse": math.nan, "nested": {"list": (1.0, -math.inf)}}))
    assert found == {"lse": None, "nested": {"list": [1.0, None]}}


# ---------------------------------------------------------------------------------------- parameters


@dataclass(frozen=True)
class Everything:
    text: str
    site: int
    head: Head
    range: Range
    words: bool
    heads: tuple[int, ...]


GIVEN = {"text": "0", "site": 3, "head": "mean", "range": [2, 5], "words": True, "heads": [1, 2]}


def test_json_and_links_say_the_same():
    expected = Everything("0", 3, "mean", (2, 5), words=True, heads=(1, 2))
    assert read(Everything, GIVEN) == expected
    link = {"text": "0", "site": "3", "head": "mean", "range": "2,5", "words": "true", "heads": "1,2"}
    assert read(Everything, link) == expected
    assert read(Everything, GIVEN | {"head": "4", "heads": "7"}).head == 4
    assert read(Everything, GIVEN | {"heads": "7"}).heads == (7,)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("site", -1, "whole number"),
        ("site", 1.0, "whole number"),
        ("site", True, "whole number"),
        ("site", None, "whole number"),
        ("site", "1e3", "whole number"),
        ("site", "٣", "whole number"),
        ("site", "9" * 14, "whole number"),
        ("site", 2**41, "whole number"),
        ("site", [1], "whole number"),
        ("head", "median", "whole number"),
        ("range", [5, 2], "range"),
        ("range", [5], "range"),
        ("range", "1,2,3", "range"),
        ("range", "1,", "whole number"),
        ("range", {"start": 1}, "whole number"),
        ("words", 1, "true or false"),
        ("words", "yes", "true or false"),
        ("words", [], "true or false"),
        ("heads", list(range(257)), "at most 256"),
        ("heads", [1, None], "whole number"),
        ("text", 0, "string"),
        ("text", "a\ud800", "surrogate"),
        ("text", "a" * 200_001, "at most 200,000"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, value, says):
    with pytest.raises(ArgumentError, match=says) as refused:
        read(Everything, GIVEN | {name: value})
    assert str(refused.value).startswith(name)
    assert len(str(refused.value)) < 300


def test_missing_and_unknown_parameters_are_named():
    with pytest.raises(ArgumentError, match="site is missing"):
        read(Everything, {name: value for name, value in GIVEN.items() if name != "site"})
    with pytest.raises(ArgumentError, match="no such parameter") as refused:
        read(Everything, GIVEN | {"x" * 1000: 1})
    assert len(str(refused.value)) < 300
