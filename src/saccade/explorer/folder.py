"""A page for a trace as a folder of files, for any host that serves files.

    index.html, assets/    the built page, told by a <meta> that it is exported
    answers/               what Python says once and for all (see `saved`)
    trace/                 the chosen entries, counted anew from 0; their arrays byte for byte

What is copied of a trace are the files that its own metadata imply, never what else lies in its folder, and no link is
followed out of it. The copy is verified, since many may read it for long. The folder is written under another name
and renamed when all of it is there.
"""

from __future__ import annotations

import html
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saccade.adapters.pretrained import Pretrained
from saccade.errors import ArgumentError, DamagedTraceError
from saccade.explorer import page
from saccade.explorer.explorer import Explorer, untold
from saccade.explorer.overview import is_short
from saccade.explorer.parcel import pack
from saccade.explorer.saved import ANSWERS, TRACE, answers, document
from saccade.trace import Trace
from saccade.trace.layout import ENTRIES, MEMBER, entry_path, group_attributes, group_json
from saccade.trace.metadata import Array, TraceMetadata, digest
from saccade.trace.reading import Files, StoredEntry, StoredTrace, check_array, open_files, read_json
from saccade.trace.shards import shard_name
from saccade.trace.storage import Arrays
from saccade.trace.verification import verify

PIECE = 1 << 24  # bytes that are copied at a time

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)
# What stands there until the page's script has come; browsers let no script read the files beside it.
WAITING = (
    "Opening … If this stays, the page was opened as a file. It has to come from a web server, such as "
    "python -m http.server in this folder, and then http://localhost:8000"
)


def write_folder(
    trace: str | Path,
    out: Path,
    *,
    entries: Sequence[int] | None = None,
    reader: Pretrained | None = None,
    progress: Callable[[float, str], None] = untold,
    folder: Path = page.BUILT,
) -> None:
    """Write a page for a trace, as a folder.

    Args:
        trace: its folder or URL.
        out: the folder to write; nothing may be there.
        entries: which of its entries; None for all.
        reader: the model that it was recorded from, to find out what heads do also where that takes the model.
        progress: told the share that is done, and what is being done.
        folder: where the built page is.

    Raises:
        ArgumentError: there is something at `out`, it cannot be written, or there is no such entry.
        TraceError: the trace is not right.
        SaccadeError: the page is not built.
    """
    check_free(out)
    page.check_built(folder)
    chosen = Chosen.of(trace, entries)
    explorer = Explorer(Trace(chosen), reader)
    if explorer.library.more:
        raise ArgumentError(
            f"{trace} has {explorer.library.more:,} texts more than a page can show: choose entries (--entries 0-99)"
        )
    with _appearing(out) as temporary:
        _write_page(temporary, folder)
        copy(chosen, temporary / TRACE, progress)
        _check(temporary / TRACE, str(trace))
        # A trace tells what heads do at once if it is short, and else only with the model.
        said = answers(explorer, progress, roles=lambda text: reader is not None or is_short(text))
        said[f"{ANSWERS}/document"] = pack(document(explorer))
        for name, content in said.items():
            _write(temporary / name, content)


def check_free(out: Path) -> None:
    """See, before anything slow is done, that a folder can be written.

    Raises:
        ArgumentError: something is there, or its place cannot be written to.
    """
    if out.exists() or out.is_symlink():
        raise ArgumentError(f"--out {out}: that is there already; expected a new folder, nothing is overwritten")
    if not out.parent.is_dir():
        raise ArgumentError(f"--out {out}: there is no folder {out.parent}")


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A new folder beside `out`: it gets that name when all went well, else it is removed."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as name:
            temporary = Path(name) / out.name  # a folder within, as a temporary one is closed to others
            temporary.mkdir()
            yield temporary
            check_free(out)
            temporary.rename(out)
    except OSError as error:
        raise ArgumentError(f"--out {out} was not written: {error.strerror or error}") from error


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


# ---------------------------------------------------------------------------------------- the page


def _write_page(out: Path, folder: Path) -> None:
    """Copy the built page, without what makes it one file, and say in it that it is exported."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        found = None if name.startswith("embed/") else page.find(name, folder)
        if found is not None:
            _write(out / name, _exported(found.content) if name == page.FIRST else found.content)


def _exported(index: bytes) -> bytes:
    """The page's first file, for a host that adds no headers of its own."""
    charset, root = '<meta charset="utf-8" />', '<div id="saccade"></div>'
    text = index.decode()
    if text.count(charset) != 1 or text.count(root) != 1:
        raise ArgumentError(f"the built {page.FIRST} is of another version; build the page again: make page")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}" />'
    text = text.replace(charset, f'{charset}\n    {policy}\n    <meta name="saccade-exported" />')
    return text.replace(root, f'<div id="saccade"><p>{html.escape(WAITING)}</p></div>').encode()


# ---------------------------------------------------------------------------------------- the trace


@dataclass(eq=False)
class Chosen:
    """Some entries of a stored trace.

    Attributes:
        metadata: the trace's.
        finished: the entries.
        files: where they lie.
    """

    metadata: TraceMetadata
    finished: list[Arrays]
    files: Files

    @classmethod
    def of(cls, trace: str | Path, entries: Sequence[int] | None) -> Chosen:
        """The whole entries of a trace, or some of them.

        Raises:
            ArgumentError: there is no such entry, or none at all.
            TraceError: it is no trace, or damaged.
        """
        stored = StoredTrace(open_files(trace))
        count = len(stored.finished)
        if not count:
            raise ArgumentError(f"{trace} has no entry: there is nothing to look at")
        numbers = range(count) if entries is None else sorted(set(entries))
        missing = [number for number in numbers if number >= count]
        if missing:
            raise ArgumentError(f"--entries {missing[0]}: {trace} has {count:,} entries, from 0")
        return cls(stored.metadata, [stored.finished[number] for number in numbers], stored.files)


def copy(chosen: Chosen, out: Path, progress: Callable[[float, str], None] = untold) -> None:
    """Write the chosen entries as a trace of their own, their arrays byte for byte."""
    count = len(chosen.finished)
    _write_group(out, {MEMBER: _sealed(chosen.metadata.closed(count).to_json())})
    _write_group(out / ENTRIES, {})
    for number, arrays in enumerate(chosen.finished):
        progress(number / count, f"copying entry {number}")
        assert isinstance(arrays, StoredEntry)
        metadata = replace(arrays.metadata, index=number)
        place = out / entry_path(number)
        _write_group(place, {MEMBER: _sealed({**metadata.to_json(), "complete": True})})
        for path, attributes in group_attributes(metadata).items():
            _write_group(place / path, attributes)
        for path, array in metadata.arrays.items():
            _copy_array(arrays, path, array, place / path)


def _copy_array(entry: StoredEntry, path: str, array: Array, out: Path) -> None:
    """Copy an array's metadata and shards byte for byte."""
    files, place = entry.files, f"{entry.path}/{path}"
    described = files.read(f"{place}/zarr.json")
    _, shard = check_array(read_json(files, f"{place}/zarr.json"), array, f"{files.name}/{place}")
    assert described is not None
    _write(out / "zarr.json", described)
    counts = [-(-length // side) for length, side in zip(array.shape, shard, strict=True)]
    for number in itertools.product(*map(range, counts)):
        _copy_file(files, f"{place}/{shard_name(number)}", out / shard_name(number))


def _copy_file(files: Files, key: str, out: Path) -> None:
    size = files.size(key)
    if size is None:
        raise DamagedTraceError(f"{files.name}/{key} is missing")
    with out.open("wb") as file:
        for start in range(0, size, PIECE):
            file.write(files.part(key, start, min(PIECE, size - start)))


def _write_group(folder: Path, attributes: Mapping[str, Any]) -> None:
    _write(folder / "zarr.json", json.dumps(group_json(dict(attributes)), allow_nan=False).encode("ascii"))


def _sealed(about: dict[str, Any]) -> dict[str, Any]:
    """With its digest, over what JSON makes of it."""
    plain = json.loads(json.dumps(about, allow_nan=False))
    return {**plain, "digest": digest(plain)}


def _check(trace: Path, name: str) -> None:
    """See that a copy is right, down to the last byte.

    Raises:
        DamagedTraceError: it is not, and so the trace that was copied is not.
    """
    verdict = verify(trace)
    if not verdict.right:
        first = verdict.findings[0]
        raise DamagedTraceError(
            f"{name} is not right, and was not exported: {first.message}. See: saccade verify {name}"
        )
