"""`saccade ablate`: what changes when heads or tokens are taken away."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saccade import errors
from saccade.cli.app import app, command
from saccade.cli.reading import AsJson, ModelName, OutFile, TextFile, check_doors, content, numbers, read_text
from saccade.cli.screen import give, progress

if TYPE_CHECKING:
    from saccade.adapters.pretrained import Pretrained
    from saccade.analysis.ablation.effects import Effect
    from saccade.analysis.ablation.parts import Parts

EXAMPLES = """Examples:

  saccade ablate "He left the roses by the bank." --word bank

  saccade ablate "He left the roses by the bank." --word bank --what tokens

  saccade ablate "The cat sat on the" --model gpt2 --logit " mat" --how mean

  saccade ablate --file poem.txt --model gpt2 --layers 0-3 --out loss.png
"""


@app.command(epilog=EXAMPLES)
@command
def ablate(
    text: Annotated[
        str | None,
        typer.Argument(help="What to read; - or nothing: standard input.", show_default=False),
    ] = None,
    file: TextFile = None,
    model: ModelName = None,
    what: Annotated[str, typer.Option(help="heads: each head in turn; tokens: what each token says.")] = "heads",
    how: Annotated[str, typer.Option(help="What takes their place: zero, mean or resample.")] = "zero",
    word: Annotated[str | None, typer.Option(help="Measure how far this word's vector turns.", metavar="WORD")] = None,
    logit: Annotated[
        str | None, typer.Option(help="Measure how likely this token is to come next.", metavar="TOKEN")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Only these layers: 0,3-5.", metavar="NUMBERS")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Texts, one a line, for mean and resample. Default: the text itself.")
    ] = None,
    as_json: AsJson = False,
    out: OutFile = None,
) -> None:
    """Take heads or tokens away, one after the other, and measure what changes.

    Without --word and --logit that is the loss of a causal language model.
    """
    _check(what, word, logit)
    check_doors(out, as_json=as_json)
    chosen = numbers("layers", layers)
    said = read_text(text, file)
    texts = None if reference is None else _lines(reference)
    with progress("reading the model"):
        loaded = _load(model, head=word is None)
    with _counted(what) as count:
        from saccade.analysis.ablation import ablate as run

        found = run(
            loaded, said, _parts(what, chosen), how=how, effect=_effect(word, logit), reference=texts, on_progress=count
        )
    from saccade.analysis.ablation.page import show

    give(found, out, lambda console: show(console, found), as_json=as_json)


def _check(what: str, word: str | None, logit: str | None) -> None:
    """Refuse what cannot be served before anything slow is done."""
    if what not in {"heads", "tokens"}:
        raise errors.ArgumentError(f"--what {what}: expected heads or tokens")
    if word is not None and logit is not None:
        raise errors.ArgumentError("expected --word or --logit, not both")


def _lines(path: Path) -> list[str]:
    lines = [line for line in content(str(path)).splitlines() if line.strip()]
    if not lines:
        raise errors.ArgumentError(f"--reference {path} holds no text; expected one a line")
    return lines


def _load(model: str | None, *, head: bool) -> Pretrained:
    from saccade.adapters import pretrained

    try:
        return pretrained.load(model, head=head)
    except errors.UnsupportedModelError as error:
        if not head:
            raise
        raise errors.UnsupportedModelError(f"{error}. --word WORD measures how far a word's vector turns") from error


def _parts(what: str, layers: list[int] | None) -> Parts:
    from saccade.analysis.ablation.parts import Heads, Tokens

    return (Heads if what == "heads" else Tokens)(layers=layers)


def _effect(word: str | None, logit: str | None) -> Effect:
    from saccade.analysis.ablation.effects import Logit, Loss, WordVector

    if word is not None:
        return WordVector(word)
    return Loss() if logit is None else Logit(logit)


@contextmanager
def _counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal: how many are done, and the time left. Nothing elsewhere."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _done, _of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(f"ablating {what}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
