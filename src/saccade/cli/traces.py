"""`saccade record`, `info` and `verify`: traces."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade import errors
from saccade.cli.app import INTERRUPTED, WRONG, app, command
from saccade.cli.reading import ModelName, TracePlace, content, numbers
from saccade.cli.screen import harmless, progress, progress_bar, stoppable


@app.command()
@command
def record(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to read; - or nothing: standard input.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The trace to write: a new folder.")] = None,
    model: ModelName = None,
    keep: Annotated[
        str,
        typer.Option(
            help="statistics: of each row, and a coarse map; qk: queries and keys too, for exact patterns and lines in "
            "the explorer; qkv: values as well, for its view of one head."
        ),
    ] = "statistics",
    layers: Annotated[str | None, typer.Option(help="Only these layers: 0,3-5.", metavar="NUMBERS")] = None,
    heads: Annotated[str | None, typer.Option(help="Only these heads: 0,3-5.", metavar="NUMBERS")] = None,
    batch: Annotated[int, typer.Option(help="Texts in one forward.")] = 1,
    hidden: Annotated[bool, typer.Option("--hidden/--no-hidden", help="Keep hidden states, or not.")] = True,
    form: Annotated[
        str,
        typer.Option("--format", help="text: a file is a text; lines; jsonl; auto: by the file's ending."),
    ] = "auto",
    field: Annotated[str, typer.Option(help="The member of a JSON line that holds the text.")] = "text",
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long for the model.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a recording that was stopped.")] = False,
) -> None:
    """Keep on disk where a model looks while it reads texts. Ctrl-C finishes the current entry."""
    if out is None:
        raise errors.ArgumentError("expected --out FOLDER.zarr, where the trace is to be written")
    chosen: dict[str, Any] = {"layers": numbers("layers", layers), "heads": numbers("heads", heads)}
    from saccade.trace.corpus import read_texts, record_texts
    from saccade.trace.shards import need_codecs

    need_codecs()
    texts = read_texts(files or ["-"], content, form=form, field=field)
    with progress("reading the model"):
        from saccade.adapters import pretrained

        loaded = pretrained.load(model)
    with stoppable() as stopped, progress_bar() as show_progress:
        trace = record_texts(
            loaded, texts, to=out, keep=keep, batch=batch, hidden=hidden, truncate=truncate, resume=resume,
            on_progress=show_progress, stop=lambda: bool(stopped), **chosen,
        )  # fmt: skip
    done, of = len(trace), -(-len(texts) // batch)
    entries = "1 entry" if of == 1 else f"{of} entries"
    typer.echo(f"wrote {out}: {done} of {entries}" if done < of else f"wrote {out}: {entries}")
    if done < of:
        typer.echo("saccade: stopped; the same command with --resume goes on", err=True)
        sys.exit(INTERRUPTED)


@app.command()
@command
def info(
    trace: TracePlace,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, as JSON.")] = False,
) -> None:
    """Say what is in a trace."""
    from saccade.trace import open_trace
    from saccade.trace.summary import describe, summarize

    found = summarize(open_trace(trace), trace)
    if as_json:
        import json

        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for line in describe(found):
        typer.echo(harmless(line))


@app.command()
@command
def verify(trace: TracePlace) -> None:
    """Check all of a trace against its specification: metadata, checksums, shapes, numbers."""
    from saccade.trace.verification import verify as check

    with progress(f"verifying {trace}"):
        verdict = check(trace)
    for finding in verdict.findings:
        typer.echo(harmless(f"sentence {finding.sentence.replace(' ', ', ')}: {finding.message} [{finding.where}]"))
    if verdict.complete is False:
        entry = "" if verdict.unfinished is None else f"; entry {verdict.unfinished} is incomplete"
        typer.echo(f"{trace} was not closed: it is being recorded, or its recorder was killed{entry}")
    checked = f"{verdict.entries} entries, {verdict.arrays} arrays, {verdict.numbers:,} numbers"
    if not verdict.right:
        typer.echo(f"{trace}: {len(verdict.findings)} wrong ({checked})")
        sys.exit(WRONG)
    typer.echo(f"{trace}: all right ({checked})")
