"""A page for a trace as a folder of files, for any host that serves files: the built page, what `saved.answers` says, and
the trace.

    index.html, assets/    the page, told by a <meta> that it is exported
    answers/               what Python says once and for all
    trace/                 the chosen entries, counted anew from 0; their arrays byte for byte

What is copied of a trace are the files that its own metadata imply, never what else lies in its folder, and no link
is followed out of it. The copy is verified, since many may read it for long. The folder is written under another name and
renamed when all of it is there.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saccade.adapters.pretrained import Pretrained
from saccade.errors import ArgumentError, TraceError
from saccade.explorer import page
from saccade.explorer.explorer import Explorer, untold
from saccade.explorer.overview import is_short
from saccade.explorer.parcel import pack
from saccade.explorer.saved import ANSWERS, TRACE, answers, document
from saccade.trace import Trace
from saccade.trace.layout import ENTRIES, MEMBER, entry_path, group_attributes, group_json
from saccade.trace.metadata import Array, EntryMetadata, TraceMetadata, digest
from saccade.trace.reading import Files, StoredEntry, StoredTrace, open_files, read_json
from saccade.trace.shards import shard_name
from saccade.trace.storage import Arrays
from saccade.trace.verification import verify

PIECE = 1 << 24  # bytes that are copied at a time

# The page may unpack chunks of a trace (WebAssembly) and fetch files of its own.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)
UNSERVED = (
    "This page has to come from a host: browsers do not let a page read the files beside it. On this machine: "
    "python -m http.server --directory, this folder, then open http://localhost:8000."
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
    """Write a page for a trace.

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
        _copy(chosen, temporary / TRACE, progress)
        _check(temporary / TRACE)
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
