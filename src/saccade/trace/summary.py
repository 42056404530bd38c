"""What `saccade info` says of a trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saccade.trace.trace import Entry, Trace

LONGEST = 60
LISTED = 20  # entries that are described


def summarize(trace: Trace, path: str | Path) -> dict[str, Any]:
    """A trace in a few numbers and names, as JSON."""
    about = trace.metadata
    return {
        "path": str(path),
        "version": about.version,
        "writer": about.writer,
        "model": about.model,
        "name": about.name,
        "keep": about.keep,
        "statistics": list(about.statistics),
        "layers": None if about.layers is None else list(about.layers),
        "heads": None if about.heads is None else list(about.heads),
        "hidden": about.hidden,
        "complete": about.complete,
        "unfinished": trace.unfinished,
        "bytes": size_on_disk(path),
        "entries": [summarize_entry(entry) for entry in trace],
    }


def summarize_entry(entry: Entry) -> dict[str, Any]:
    """An entry in a few numbers and names, as JSON."""
    names = ("batch", "heads", "key_heads", "queries", "keys", "width", "precision")
    return {
        "index": entry.index,
        "forward": entry.metadata.forward,
        "sources": entry.sources,
        "stacks": [
            {"sites": list(stack.sites), **{name: getattr(stack, name) for name in names}} for stack in entry.stacks
        ],
        "text": _beginning(entry),
    }


def _beginning(entry: Entry) -> str | None:
    """The first words of an entry's first text."""
    tokens = entry.tokens
    if tokens is None or tokens.texts is None or not tokens.texts.text:
        return None
    text = " ".join(tokens.texts.text[0][: 4 * LONGEST].split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def size_on_disk(path: str | Path) -> int | None:
    """Bytes of all files of a folder; None for what is not on this machine."""
    folder = Path(path)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else None


def describe(found: dict[str, Any]) -> Iterator[str]:
    """A summary as lines to print."""
    entries = found["entries"]
    named = f" ({found['name']})" if found["name"] else ""
    yield f"{found['path']}  {found['model']}{named}"
    state = "complete" if found["complete"] else "not closed: it is being recorded, or its recorder was killed"
    yield f"  state       {state}"
    if found["unfinished"] is not None:
        yield f"  unfinished  entry {found['unfinished']}, incomplete: saccade record --resume does it again"
    hidden = ", hidden states" if found["hidden"] else ""
    yield f"  kept        {found['keep']}{hidden}; {', '.join(found['statistics'])} statistics"
    for name in ("layers", "heads"):
        if found[name] is not None:
            yield f"  {name:<11} {', '.join(map(str, found[name]))}"
    if found["bytes"] is not None:
        yield f"  size        {found['bytes'] / 1e6:,.1f} MB"
    yield f"  entries     {len(entries)}"
    for entry in entries[:LISTED]:
        yield from _described_entry(entry)
    if len(entries) > LISTED:
        yield f"  … and {len(entries) - LISTED} more: --json lists them all"


def _described_entry(entry: dict[str, Any]) -> Iterator[str]:
    called = f"  {', '.join(entry['sources'])}" if entry["sources"] else ""
    part = f"  ({entry['forward']})" if entry["forward"] else ""
    said = f"  “{entry['text']}”" if entry["text"] else ""
    yield f"{entry['index']:>6}{called}{part}{said}"
    for stack in entry["stacks"]:
        shared = "" if stack["key_heads"] == stack["heads"] else f" on {stack['key_heads']}"
        yield (
            f"        {len(stack['sites'])} sites, {stack['batch']} × {stack['heads']} heads{shared}, "
            f"{stack['queries']:,} queries × {stack['keys']:,} keys, {stack['precision']}"
        )
