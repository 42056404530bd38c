"""`saccade contributions`: what moved a token in a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from saccade import errors
from saccade.cli.app import app, command
from saccade.cli.reading import AsJson, ModelName, OutFile, TextFile, check_doors, read_text
from saccade.cli.screen import give, progress

if TYPE_CHECKING:
    from rich.console import Console

    from saccade.analysis import Contributions

EXAMPLES = """Examples:

  saccade contributions "She opened a bank account." --token bank --layer 0

  saccade contributions "She opened a bank account." --token bank --layer 0 --out bank.png
"""
ROWS, BAR = 12, 24
LEAST = 0.01  # of the longest contribution, of those that are listed


@app.command(epilog=EXAMPLES.replace("\n\n", "\n\n\b\n", 1))
@command
def contributions(
    text: Annotated[
        str | None, typer.Argument(help="What to read; - or nothing: standard input.", show_default=False)
    ] = None,
    file: TextFile = None,
    token: Annotated[
        str | None,
        typer.Option(help="A word of one token, as bank or bank:2 (the second), or a token's number."),
    ] = None,
    layer: Annotated[str, typer.Option(help="The layer's number, from 0.")] = "0",
    model: ModelName = None,
    out: OutFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what each head, reading each token, added to a token in a layer, and what else did."""
    if token is None:
        raise errors.ArgumentError("expected --token WORD, the token that was moved")
    check_doors(out, as_json=as_json)
    said = read_text(text, file)
    if not layer.isdecimal():
        raise errors.ArgumentError(f"--layer {layer}: expected a number from 0")
    found = _take_apart(said, token, int(layer), model)
    give(found, out, lambda console: _print(console, found, int(layer)), as_json=as_json)


def _take_apart(text: str, token: str, layer: int, model: str | None) -> Contributions:
    with progress("reading the model"):
        from saccade.adapters import pretrained

        loaded = pretrained.load(model)
    with progress("taking apart"), pretrained.quiet():
        import torch

        from saccade.analysis import contributions as take_apart
        from saccade.trace import record

        encoded = pretrained.encode(loaded, text)
        with torch.no_grad(), record(loaded.model, loaded.tokenizer, keep="qkv", name=loaded.name) as trace:
            trace.next(texts=[text])
            loaded.model(**encoded.inputs)
        sites = trace[0].sites
        if not 0 <= layer < len(sites):
            raise errors.ArgumentError(f"--layer {layer}: {loaded.name} has layers 0 to {len(sites) - 1}")
        return take_apart(trace, layer, int(token) if token.removeprefix("-").isdecimal() else token)


def _print(console: Console, found: Contributions, layer: int) -> None:
    from saccade.views.drawing import CAVEAT
    from saccade.views.labels import fit
    from saccade.views.terminal import BOLD, DIM, Page
    from saccade.views.units import printable

    page = Page(console)
    after = found.after / found.after.norm()
    page.pair(f"What made “{printable(found.query)}” in layer {layer}", found.site)
    page.prose(
        "The vector that leaves the layer is the sum of these parts. Share: how much of its length each makes up. "
        "Shares sum to 100%; one below 0 points the other way, and the others make up for it."
    )
    shares = (found.parts @ after) / found.after.norm()
    for name, part, share in zip(found.part_names, found.parts, shares.tolist(), strict=True):
        page.line(f"{name:<16} length {float(part.norm()):8.3f}  share {share:7.1%}")
    page.title("What attention brought", "the strongest, by length")
    page.line(("head  from          length   weight", DIM))
    heads, keys = found.norm.shape
    strongest = found.norm.flatten().topk(min(ROWS, heads * keys))
    for place in strongest.indices[strongest.values > strongest.values[0] * LEAST].tolist():
        head, key = place // keys, place % keys
        length, weight = float(found.norm[head, key]), float(found.weight[head, key])
        bar = "█" * round(BAR * length / float(found.norm.max()))
        page.line(f"{head:>4}  {fit(printable(found.keys[key]), 12)} {length:7.3f}  {weight:6.1%}  ", (bar, BOLD))
    page.line("")
    page.prose(CAVEAT)
