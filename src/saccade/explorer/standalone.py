"""A page for one text that is one file: it opens by a double click, without a server or a network.

The file holds the page's script and, of the text, what `saved.answers` says and the numbers that make its patterns:
queries, keys, values, hidden states, and what each row's exponentials are divided by. They lie in it as the arrays of a
Zarr store with the paths and the metadata of a trace, so that one reader in the browser serves this page and exported
folders. But they are not sharded, nor packed each for itself, and statistics and maps are left out: the page computes
them. All of it is gzipped once, bytes of equal weight side by side, and written sixteen bits in a letter. The page is
UTF-16, where a letter has two bytes, so that this takes 3 % more than the bytes; base 64 takes 33 %. It begins with a
byte order mark, which browsers heed before anything that a host says of a file's encoding. HTML and UTF-16 do not bear
all letters (`_BORNE`): for another stand a mark and a letter far from it.

A page that would be larger than `SMALL` has its numbers in half precision. It says so, and it stays consistent: rows
are divided by what the rounded queries and keys give.

Only two scripts may run in it, by the hashes in its Content-Security-Policy: the one that unpacks, and the page's own.
Nothing that a text or a tokenizer says is written as HTML, but for the title, which is escaped.
"""

from __future__ import annotations

import base64
import codecs
import gzip
import hashlib
import html
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade._version import __version__
from saccade.adapters.pretrained import Pretrained, encode, together
from saccade.errors import ArgumentError
from saccade.explorer import page
from saccade.explorer.explorer import Explorer, untold
from saccade.explorer.library import Text
from saccade.explorer.parcel import Answer, pack
from saccade.explorer.saved import ANSWERS, TRACE, Files, answers, document
from saccade.pattern import Pattern
from saccade.statistics import LogSumExp
from saccade.trace import record
from saccade.trace.layout import CHUNK_KEYS, LITTLE, MEMBER, entry_path, group_json, itemsize, json_fill_value
from saccade.trace.metadata import Array, Asked, EntryMetadata
from saccade.trace.shards import shard_name
from saccade.trace.storage import as_stored
from saccade.trace.trace import Site
from saccade.views.files import whole

SMALL = 1_500_000  # bytes: a page that would be larger has its numbers in half precision
LARGEST = 24 << 20  # bytes of numbers in half precision
MOST_HALF = float(torch.finfo(torch.float16).max)
SHORT = 32  # tokens up to which the page makes thumbnails itself: each cell is a weight

_MARK, _FAR = ord("~"), 0x8000  # behind a mark, this bit of a letter is turned

_HERE = Path(__file__).parent


def reading(pretrained: Pretrained, text: str, *, truncate: bool = False) -> tuple[Explorer, int]:
    """An explorer of one text, and how many tokens of it were cut off.

    Args:
        pretrained: the model that reads it.
        text: any text that is not blank.
        truncate: cut a text that is too long for the model instead of refusing it.

    Raises:
        ArgumentError: as of `saccade.adapters.pretrained.encode`.
        UnsupportedModelError: the model's attention does not come through Saccade.
    """
    encoded = encode(pretrained, text, truncate=truncate)
    with (
        record(pretrained.model, pretrained.tokenizer, keep="qkv", name=pretrained.name) as trace,
        torch.no_grad(),
    ):
        trace.next(texts=[text])
        pretrained.model(**together(pretrained, [encoded]))
    explorer = Explorer(reader=pretrained)
    explorer.library.add(trace)
    return explorer, encoded.dropped


def write_page(
    explorer: Explorer,
    out: Path,
    *,
    look: str = "",
    progress: Callable[[float, str], None] = untold,
    folder: Path = page.BUILT,
) -> bool:
    """Write a page for the only text of an explorer.

    Args:
        explorer: whose text; it was recorded by itself, with queries and keys.
        out: the file.
        look: what the page shows first, as in its links: "/pattern?site=3".
        progress: told the share that is done, and what is being done.
        folder: where the built page is.

    Returns:
        Whether its numbers are in half precision.

    Raises:
        ArgumentError: the text is too long for one file, or the file cannot be written.
        SaccadeError: the page is not built.
    """
    parts = {name: _part(f"embed/embed.{name}", folder) for name in ("js", "css")} | {"icon": _part("icon.svg", folder)}
    (text,) = explorer.library.texts
    check_size(text)
    said = _answers(explorer, text, progress)
    half, content = False, _page(explorer, text, said, parts, look, half=False)
    if len(content) > SMALL:
        half, content = True, _page(explorer, text, said, parts, look, half=True)
    with whole(out) as temporary:
        temporary.write_bytes(content)
    return half


def _page(explorer: Explorer, text: Text, said: Files, parts: Mapping[str, str], look: str, *, half: bool) -> bytes:
    files = said | {f"{ANSWERS}/document": pack(_document(explorer, half=half))} | dict(_store(text, half=half))
    return _html(files, parts, title=text.info["name"], look=look)


def check_size(text: Text) -> None:
    """See that a text is not too long for a page that is one file.

    Raises:
        ArgumentError: it is.
    """
    size = 2 * sum(math.prod(array.shape) for array in text.entry.metadata.arrays.values() if array.precision)
    if size > LARGEST:
        tokens = max(max(info["queries"], info["keys"]) for info, _ in text.sites)
        raise ArgumentError(
            f"the text is {tokens:,} tokens long, and a page of it would have {size / 2**20:.0f} MiB of numbers; one "
            f"file has at most {LARGEST >> 20}. Record it (saccade record FILE --keep qkv --out run.zarr), then: "
            "saccade export run.zarr --out FOLDER"
        )


def _part(name: str, folder: Path) -> str:
    page.check_built(folder)
    found = page.find(name, folder)
    if found is None:
        raise ArgumentError(f"{folder / name} is missing; build the page again: make page")
    return found.content.decode()


# ---------------------------------------------------------------------------------------- answers


def _document(explorer: Explorer, *, half: bool) -> Answer:
    """What there is to look at; no maps, since every tile can be computed."""
    about = document(explorer)
    texts = [{**info, "sites": [{**site, "map": None} for site in info["sites"]]} for info in about["texts"]]
    return {**about, "precision": "half" if half else "full", "texts": texts}


def _answers(explorer: Explorer, text: Text, progress: Callable[[float, str], None]) -> Files:
    found = answers(explorer, progress)
    if max(max(info["queries"], info["keys"]) for info, _ in text.sites) <= SHORT:
        heads = {**explorer.answer("heads", {"text": text.id})}
        del heads["thumbs"]
        found[f"{ANSWERS}/heads/{text.id}"] = pack(heads)
    return found


# ---------------------------------------------------------------------------------------- the store


def _store(text: Text, *, half: bool) -> Iterator[tuple[str, bytes]]:
    """The files of a Zarr store with what the page reads of the text's entry."""
    about = {**text.trace.metadata.to_json(), "complete": True, "entries": 1}
    yield f"{TRACE}/zarr.json", _json(group_json({MEMBER: about}))
    metadata = _metadata(text.entry.metadata)
    group = {**metadata.to_json(), "index": 0, "complete": True}
    entry = f"{TRACE}/{entry_path(0)}"
    yield f"{entry}/zarr.json", _json(group_json({MEMBER: group}))
    for path, array in metadata.arrays.items():
        if not _NAMES.fullmatch(path):
            continue
        values = _values(text, path, half=half)
        stored = replace(array, dtype="float16") if values.dtype == np.float16 else array
        yield f"{entry}/{path}/zarr.json", _json(_array_json(stored))
        yield f"{entry}/{path}/{shard_name([0] * values.ndim)}", _by_weight(values)


# What the page reads.
_NAMES = re.compile(
    r"stacks/\d+/(queries|keys|values|lse|sinks)|hidden/\d+/states|masks/\d+/(starts|stops|visible)|biases/\d+/values|"
    r"sequences/\d+/ids"
)
_ROUNDED = re.compile(r"stacks/\d+/(queries|keys|values)|hidden/\d+/states")


def _metadata(entry: EntryMetadata) -> EntryMetadata:
    """An entry's metadata without the statistics that the page computes."""
    stacks = tuple(replace(stack, statistics=(Asked.of(LogSumExp()),)) for stack in entry.stacks)
    return replace(entry, index=0, stacks=stacks)


def _values(text: Text, path: str, *, half: bool) -> NDArray[Any]:
    arrays = text.entry._arrays  # noqa: SLF001  our own
    if path.endswith("/lse"):
        return _lse(text, int(path.split("/")[1]), half=half)
    values = as_stored(arrays.read(path))
    return _halved(values) if half and _ROUNDED.fullmatch(path) else values


def _halved(values: NDArray[Any]) -> NDArray[Any]:
    """In half precision; as they are, if one of them is too large for that."""
    finite = values[np.isfinite(values)]
    fits = not finite.size or float(np.abs(finite).max()) <= MOST_HALF
    return values.astype(np.float16) if fits else values


def _lse(text: Text, stack: int, *, half: bool) -> NDArray[Any]:
    """What divides the rows of a stack's sites, of the very queries and keys that are stored, (L, B, H, Nq)."""
    entry = text.entry
    sites = sorted((site for site in entry.metadata.sites if site.stack == stack), key=lambda site: site.row)
    return np.stack([_lse_of(entry[site.name], half=half) for site in sites])


def _lse_of(site: Site, *, half: bool) -> NDArray[Any]:
    pattern = site.pattern
    if not half:
        lse: NDArray[Any] = pattern.lse.numpy()
        return lse
    query, key = (
        torch.from_numpy(_halved(as_stored(x.cpu()))).double() for x in (pattern.inputs.query, pattern.inputs.key)
    )
    problem = pattern.problem
    rounded = Pattern(
        query,
        key,
        mask=problem.mask,
        scale=problem.scale,
        softcap=problem.softcap,
        bias=problem.bias,
        sinks=None if problem.sinks is None else problem.sinks.double(),
    )
    return rounded.lse.to(pattern.lse.dtype).numpy()


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def _array_json(array: Array) -> dict[str, Any]:
    """An array's `zarr.json`: one chunk."""
    size = itemsize(array.dtype)
    shuffle = {"name": "numcodecs.shuffle", "configuration": {"elementsize": size}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": array.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(n, 1) for n in array.shape]}},
        "chunk_key_encoding": CHUNK_KEYS,
        "fill_value": json_fill_value(array.dtype),
        "codecs": [LITTLE, shuffle] if size > 1 else [{"name": "bytes"}],
        "attributes": {},
        "dimension_names": list(array.dims),
    }


def _by_weight(values: NDArray[Any]) -> bytes:
    """Little-endian numbers, their first bytes first, then all second ones: alike bytes side by side."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return little.reshape(-1, 1).view(np.uint8).T.tobytes()


# ---------------------------------------------------------------------------------------- HTML


def _html(files: Files, parts: Mapping[str, str], *, title: str, look: str) -> bytes:
    """The page; `parts` are its script, style and icon."""
    style = parts["css"] + _OWN_STYLE
    packed = pack({name: np.frombuffer(content, np.uint8) for name, content in files.items()})
    packs = {"style": style.encode(), "page": parts["js"].encode(), "files": packed}
    letters = {name: _lettered(content) for name, content in packs.items()}
    filled = {
        "policy": _POLICY.format(loader=_hash(_THE_LOADER), page=_hash(parts["js"]), style=_hash(style)),
        "generator": f"saccade {__version__}",
        "title": html.escape(f"{title} – Saccade"),
        "icon": "data:image/svg+xml;base64," + base64.b64encode(parts["icon"].encode()).decode(),
        "loader": _THE_LOADER,
        "look": html.escape(look),
        **{name: text for name, (text, _) in letters.items()},
        **{f"{name}_bytes": str(size) for name, (_, size) in letters.items()},
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], _THE_PAGE)
    return codecs.BOM_UTF16_LE + text.encode("utf-16-le")


_POLICY = (
    "default-src 'none'; script-src '{loader}' '{page}'; style-src '{style}'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'"
)
_OWN_STYLE = "\nhtml, body, #saccade { height: 100%; margin: 0; }\n"
_THE_PAGE = (_HERE / "standalone.html").read_text("utf-8")
_THE_LOADER = (_HERE / "standalone.js").read_text("utf-8")


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _lettered(content: bytes) -> tuple[str, int]:
    """Gzipped and in letters, and how many bytes it is gzipped."""
    packed = gzip.compress(content, 9, mtime=0)
    return _letters(np.frombuffer(packed + bytes(len(packed) % 2), "<u2")), len(packed)


def _letters(units: NDArray[np.uint16]) -> str:
    """Text of UTF-16 that HTML bears, for any numbers of sixteen bits."""
    unborne = np.flatnonzero(~_BORNE[units])
    far = np.insert(units, unborne, _MARK)
    far[unborne + 1 + np.arange(len(unborne))] ^= _FAR
    return far.astype("<u2").tobytes().decode("utf-16-le")


def _borne() -> NDArray[np.bool_]:
    """Which letters HTML does not change, or take for the end of the element, and mean themselves in UTF-16."""
    borne = np.ones(1 << 16, np.bool_)
    borne[[*b"\0\r<", _MARK]] = False
    borne[0xD800:0xE000] = False  # halves of a letter
    return borne


_BORNE = _borne()
