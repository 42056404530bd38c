"""Parcels: an answer as bytes, for the page.

Four bytes say how long the JSON behind them is; the arrays that it names follow, each at a multiple of eight bytes
from the end of the JSON (which is padded to a multiple of eight, the four bytes included). `web/src/source/parcel.ts`
unpacks them.

    u32 little-endian | {"answer": {...}, "arrays": {"weights": {"dtype": "f4", "shape": [...], "offset": 0}}} | arrays
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Members of an answer: what JSON can hold, or an array.
Answer = Mapping[str, Any]

ALIGNMENT = 8
_KINDS = {"f": "<f4", "i": "<i4", "u": "u1", "b": "u1"}


def pack(answer: Answer) -> bytes:
    """An answer as bytes: arrays and tensors as they are (float32, int32 or uint8), everything else as JSON.

    Floats that JSON cannot hold, NaN and infinities, are null there; in arrays they stay what they are.
    """
    arrays = {name: _as_array(value) for name, value in answer.items() if isinstance(value, Tensor | np.ndarray)}
    described, offset = {}, 0
    for name, array in arrays.items():
        described[name] = {"dtype": array.dtype.str[1:], "shape": list(array.shape), "offset": offset}
        offset += _padded(array.nbytes)
    plain = {name: value for name, value in answer.items() if name not in arrays}
    header = json.dumps(
        {"answer": jsonable(plain), "arrays": described}, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode()
    parts = [len(header).to_bytes(4, "little") + header]
    parts += [array.tobytes() for array in arrays.values()]
    return b"".join(part.ljust(_padded(len(part)), b"\0") for part in parts)


def _as_array(value: Tensor | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.ascontiguousarray(value, dtype=_KINDS[value.dtype.kind]).reshape(value.shape)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def jsonable(value: Any) -> Any:
    """A value with null in the place of floats that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {name: jsonable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
