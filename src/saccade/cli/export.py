"""`saccade export`: a trace as a page for any web server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saccade import errors
from saccade.cli.app import app, command
from saccade.cli.reading import TracePlace, numbers
from saccade.cli.screen import progress

EXAMPLES = """Examples:

  saccade export runs/story.zarr --out story

  saccade export runs/story.zarr --entries 0,3-5 --model gpt2 --out story

  python -m http.server --directory story
"""


@app.command(epilog=EXAMPLES.replace("\n\n", "\n\n\b\n", 1))
@command
def export(
    trace: TracePlace,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page to write: a new folder.")] = None,
    entries: Annotated[str | None, typer.Option(help="Only these entries: 0,3-5.", metavar="NUMBERS")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The model that the trace was recorded from.", show_default=False),
    ] = None,
) -> None:
    """Write a trace as a page for any web server. With its model, also what each head does in long texts."""
    if out is None:
        raise errors.ArgumentError("expected --out FOLDER, where the page is to be written")
    chosen = numbers("entries", entries)
    from saccade.explorer import folder, page

    folder.check_free(out)
    page.check_built(page.BUILT)
    reader = None
    if model is not None:
        with progress("reading the model"):
            from saccade.adapters import pretrained

            reader = pretrained.load(model)
    with progress(f"writing {out}"):
        folder.write_folder(trace, out, entries=chosen, reader=reader)
    typer.echo(f"wrote {out}")
