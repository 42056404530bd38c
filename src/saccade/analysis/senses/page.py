"""`Senses` on a terminal: are senses told apart, which one is an unclear sentence near, nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from rich.console import Console
from rich.text import Text

from saccade.analysis.senses import CAVEAT, UNKNOWN, Senses
from saccade.views.labels import fit
from saccade.views.terminal import BOLD, DIM, Page

BAR = 16  # cells
ROW = 10  # cells of a row's label
NAME = 10  # cells of a sense's name
SHOWN = 4  # sentences of unknown sense that are shown by layer
ROWS = 24  # neighbours that are listed
MOVER = 35  # cells of what moved it
CLOSE = 0.05  # of cosine, behind the nearest


def render(console: Console, found: Senses) -> None:
    """Print what was found."""
    page = Page(console)
    counts = [f"{found.senses[i]} {count}" for i, count in enumerate(_sentences_by_sense(found))]
    unknown = sum(sentence.sense is None for sentence in found.sentences)
    said = ", ".join([*counts, *([f"{unknown} of unknown sense"] if unknown else [])])
    page.pair(f"“{found.word}” in {found.model}", f"sentences: {said}")
    page.prose(
        "After 0 layers is what enters the first one. Similarity is the cosine of vectors less the mean of all tokens "
        "there: 1 is the same direction, 0 unrelated."
    )
    if found.accuracy is not None:
        _accuracy(page, found)
    if found.similarity is not None:
        for occurrence in found.unknown[:SHOWN]:
            _unknown(page, found, occurrence)
        if len(found.unknown) > SHOWN:
            page.prose(f"{len(found.unknown) - SHOWN} more of unknown sense; --json has all.")
    _neighbours(page, found)
    if any(found.moved_most):
        _movers(page, found)
    page.line("")
    page.prose(CAVEAT)


def _row(layers: int) -> str:
    """The label of a row, `ROW` cells."""
    return f"{f'after {layers}':<{ROW}}"


def _sentences_by_sense(found: Senses) -> list[int]:
    return [sum(sentence.sense == sense for sentence in found.sentences) for sense in found.senses]


def _accuracy(page: Page, found: Senses) -> None:
    """How often the nearest neighbour has the same sense, and how similar senses are, by layer."""
    assert found.accuracy is not None
    assert found.within is not None
    assert found.between is not None
    page.title("Are the senses told apart?")
    page.prose(
        f"How often is the most similar “{found.word}” elsewhere of the same sense ({found.chance:.0%} by chance)? "
        "Beside it, how similar two of one sense are on average, and two of different ones."
    )
    room = min(BAR, page.width - ROW - 25)
    page.line(" " * (ROW + room), (" nearest  of one  of two", DIM))
    for layer, accuracy in enumerate(found.accuracy.tolist()):
        bar = "█" * round(accuracy * room)
        within, between = (_number(float(cosine[layer])) for cosine in (found.within, found.between))
        page.line(f"{_row(layer)}{bar:<{room}}{accuracy:8.0%}{within:>8}{between:>8}")


def _unknown(page: Page, found: Senses, occurrence: int) -> None:
    """How near an occurrence of unknown sense is to each sense, by layer."""
    assert found.similarity is not None
    near = found.similarity[:, occurrence]
    page.title(f"Which sense is nearest? “{_shown(found, occurrence)}”")
    page.prose("Similarity to the mean of each sense’s vectors; the nearest is marked *.")
    kept = max(1, (page.width - ROW) // (NAME + 2))
    page.line(" " * ROW, ("  ".join(fit(sense, NAME, right=True) for sense in found.senses[:kept]), DIM))
    for layer, row in enumerate(near.tolist()):
        page.line(_row(layer), *_marked(row, kept))
    said = f"After {len(near) - 1} layers: {verdict(found.senses, near[-1].tolist())}."
    page.lines(Text(said, BOLD).wrap(page.console, page.width))


def _shown(found: Senses, occurrence: int) -> str:
    """An occurrence's sentence, without characters that would do something to a terminal."""
    text = found.sentences[found.occurrences[occurrence].sentence].text
    return "".join(character if character.isprintable() else "�" for character in text)


def _marked(row: list[float], kept: int) -> Iterator[str]:
    for value in row[:kept]:
        mark = "*" if value == max(row) else " "
        yield f"{_number(value):>{NAME - 1}}{mark}  "


def verdict(names: tuple[str, ...], near: list[float]) -> str:
    """Cosines with senses, in words.

    >>> verdict(("river", "money", "row"), [0.39, 0.41, 0.1])
    'nearest to money (.41), river close behind (.39), then row (.10)'
    """
    order = sorted(range(len(near)), key=lambda i: -near[i])
    best = near[order[0]]
    said = [f"nearest to {names[order[0]]} ({_number(best)})"]
    for i in order[1:]:
        words = f"{names[i]} close behind" if best - near[i] < CLOSE else f"then {names[i]}"
        said.append(f"{words} ({_number(near[i])})")
    return ", ".join(said)


def _neighbours(page: Page, found: Senses) -> None:
    """The nearest neighbour of each occurrence at the last layer."""
    page.title(f"Nearest neighbours after {len(found.cosine) - 1} layers")
    page.prose("For each the most similar one in another sentence; ! marks another sense.")
    place = torch.tensor([occurrence.sentence for occurrence in found.occurrences])
    cosine = found.cosine[-1].masked_fill(place[:, None] == place, -torch.inf)
    names = [f"{found.sense_of(i) or UNKNOWN}: {found.snippet(i)}" for i in range(len(place))]
    room = (page.width - 10) // 2
    for i, nearest in enumerate(cosine.argmax(-1).tolist()[:ROWS]):
        senses = found.sense_of(i), found.sense_of(nearest)
        other = "!" if None not in senses and senses[0] != senses[1] else " "
        page.line(f"{fit(names[i], room)} {_number(float(cosine[i, nearest])):>5} {other} {fit(names[nearest], room)}")
    if len(place) > ROWS:
        page.prose(f"{len(place) - ROWS} more; --json has all.")


def _movers(page: Page, found: Senses) -> None:
    """Which head, reading which word, moved each occurrence most towards its sense."""
    page.title("What moved it most?")
    page.prose(
        "The head whose reading of another word moved it furthest towards its sense (of an unknown one, the nearest): "
        "that word, layer and head, both counted from 0, and how far."
    )
    room = page.width - MOVER
    for i, moved in list(enumerate(found.moved_most))[:ROWS]:
        said = [
            f" {fit(mover.word, 11)} {f'layer {mover.layer} head {mover.head}':>16} {_number(mover.along):>5}"
            for mover in moved[:1]
        ]
        page.line(fit(f"{found.sense_of(i) or UNKNOWN}: {found.snippet(i)}", room), *said)
    if len(found.moved_most) > ROWS:
        page.prose(f"{len(found.moved_most) - ROWS} more; --json has all.")


def _number(value: float) -> str:
    """A cosine without its leading zero: .41, -.20, 1.00."""
    return f"{value:.2f}".replace("0.", ".", 1)
