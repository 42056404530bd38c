"""The view as data: JSON with everything about it, CSV with one line for each weight.

Both hold exact weights up to `MOST_WEIGHTS` of them. Beyond that, files of weights would run into
hundreds of megabytes; then they hold the statistics of every head instead, and ``detail`` in the
JSON says which it is. Choosing a layer and a head brings the weights of that head back.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from saccade.views.attention_view import AttentionView
from saccade.views.files import whole

FORMAT = "saccade-view"
VERSION = 1
MOST_WEIGHTS = 2_000_000
DIGITS = 7  # after the decimal point: float32 holds no more of a number below 1
COLUMNS = ("layer", "head", "query_index", "query", "key_index", "key", "weight")


def detail(view: AttentionView) -> str:
    """What the files hold: "weights", or "statistics" where there would be too many of them."""
    few = view.weights is not None and view.weights.size <= MOST_WEIGHTS
    return "weights" if few else "statistics"


def write_json(view: AttentionView, path: Path, focus: int | None = None) -> None:
    """Write a view as JSON (UTF-8).

    Args:
        view: what to write.
        path: where to.
        focus: the position of the word that was asked for, recorded as ``focus``.

    Raises:
        ArgumentError: the file cannot be written.
    """
    with whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(as_dict(view, focus), file, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        file.write("\n")


def as_dict(view: AttentionView, focus: int | None = None) -> dict[str, Any]:
    """A view as what JSON can hold. Arrays are nested lists, layer first, then head, query and key."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "model": view.model,
        "part": view.part or None,
        "text": view.text,
        "dropped_tokens": view.dropped,
        "units": view.kind,
        view.kind: [
            {"text": unit.label, "special": unit.special, "tokens": [unit.start, unit.stop]} for unit in view.units
        ],
        "hidden": list(view.hidden),
        "focus": focus,
        "layers": list(view.layers),
        "heads": list(view.heads),
        "detail": detail(view),
        "special_mass": _numbers(view.summary.special_mass),
    }
    if content["detail"] == "weights":
        return content | {"weights": _numbers(view.weights)}
    summary = view.summary
    return content | {
        "statistics": {
            "top_keys": summary.top_keys.tolist(),
            "top_weights": _numbers(summary.top_weights),
            "entropy": _numbers(summary.entropy),
            "received": _numbers(summary.received),
            "map": _numbers(summary.cells),
        }
    }


def _numbers(values: Any) -> Any:
    return np.asarray(values).astype(np.float64).round(DIGITS).tolist()


def write_csv(view: AttentionView, path: Path, focus: int | None = None) -> None:
    """Write one line for each weight: that of a query at a key, in one head.

    Args:
        view: what to write. Of a long text, only each query's heaviest keys.
        path: where to.
        focus: only lines in which this word is the query or the key.

    Raises:
        ArgumentError: the file cannot be written.
    """
    with whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_lines(view, focus))


def _lines(view: AttentionView, focus: int | None) -> Iterator[tuple[Any, ...]]:
    for i, layer in enumerate(view.layers):
        for h, head in enumerate(view.heads):
            for query, key, weight in _entries(view, i, h):
                if focus is None or focus in (query, key):
                    labels = (query, view.units[query].label, key, view.units[key].label)
                    yield layer, head, *labels, round(weight, DIGITS)


def _entries(view: AttentionView, layer: int, head: int) -> Iterator[tuple[int, int, float]]:
    """(query, key, weight) of one head."""
    n = len(view.units)
    if view.weights is not None and detail(view) == "weights":
        rows = view.weights[layer, head].tolist()
        yield from ((q, k, rows[q][k]) for q in range(n) for k in range(n))
        return
    keys = view.summary.top_keys[layer, head].tolist()
    weights = view.summary.top_weights[layer, head].tolist()
    for query in range(n):
        pairs = zip(keys[query], weights[query], strict=True)
        yield from ((query, key, weight) for key, weight in pairs if key >= 0)
