"""Job `roles`: what each head does in a text.

With the model at hand it reads the text again, and repeated random tokens, on which duplicates and induction show
whatever the text (see `saccade.analysis.heads`). Without it the roles are scored on the queries and keys of the trace,
one attention call at a time; of a batch, all its texts together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saccade.adapters.pretrained import Pretrained, encode
from saccade.analysis.roles import HeadRoles, heads
from saccade.errors import ArgumentError, NotRecordedError
from saccade.explorer.parameters import read
from saccade.explorer.parcel import Answer
from saccade.explorer.reading import Steps, calls_of, run_of_model
from saccade.explorer.work import Asked, go_on
from saccade.trace import Site, Trace
from saccade.trace.metadata import TraceMetadata

if TYPE_CHECKING:
    from saccade.explorer.explorer import Explorer, Progress
    from saccade.explorer.library import Text

# Weights of a stored text that are formed at most, some minutes' work.
MOST_WEIGHTS = 1 << 36

MEANINGS = {
    "previous": "Looks at the token before.",
    "next": "Looks at the token after.",
    "first": "Looks at the first token, where a head puts weight that it has no other use for.",
    "separators": "Looks at punctuation and at tokens that stand for the end of a text.",
    "duplicate": "Looks at other places where the same token stands.",
    "induction": "Looks at what followed the same token earlier.",
    "local": "Looks at the tokens around, at most four away.",
    "global": "Looks at tokens farther than four away.",
}


@dataclass(frozen=True)
class OfText:
    """Parameters of the job."""

    text: str


def roles(explorer: Explorer, parameters: Mapping[str, Any], progress: Progress, cancelled: Asked) -> Answer:
    """What each head does: RolesAnswer.

    Raises:
        ArgumentError: there is no such text, or it is too long to be scored from its trace.
        NotRecordedError: there is no model, and no queries and keys, or no tokens.
        Cancelled: nobody waits for it any more.
    """
    text = explorer.text(read(OfText, parameters).text)
    found = _found(explorer, text, progress, cancelled)
    told = [[found.get((info["name"], head), NO_ROLE) for head in info["heads"]] for info, _ in text.sites]
    return {
        "roles": [[role for role, _ in of_site] for of_site in told],
        "shares": [[share for _, share in of_site] for of_site in told],
        "meanings": MEANINGS,
    }


def _found(explorer: Explorer, text: Text, progress: Progress, cancelled: Asked) -> Told:
    string = None if explorer.reader is None else _as_read(explorer.reader, text)
    if string is None:
        return _by_trace(text, progress, cancelled)
    return _by_model(explorer, string, progress, cancelled)


# The role and the share of each head, by its site and its number.
Told = dict[tuple[str, int], tuple[str, float]]
NO_ROLE = ("", 0.0)


def _told(found: HeadRoles) -> Told:
    strongest = found.strongest.tolist()
    return {
        (site, number): (role, float(found.scores[role][layer, place])) if role else NO_ROLE
        for layer, site in enumerate(found.sites)
        for role, place, number in zip(
            strongest[layer], range(len(found.head_numbers)), found.head_numbers, strict=True
        )
    }


# ---------------------------------------------------------------------------------------- by the model


def _as_read(reader: Pretrained, text: Text) -> str | None:
    """The text, if the model makes of it the very tokens that it is shown with; else None."""
    tokens = text.entry.tokens
    if tokens is None or tokens.texts is None:
        return None
    string = tokens.texts.text[text.batch]
    try:
        ids = encode(reader, string, truncate=True).inputs["input_ids"][0].tolist()
    except ArgumentError:  # there is no word in it
        return None
    return string if ids == tokens.ids[text.batch][tokens.visible[text.batch]].tolist() else None


def _by_model(explorer: Explorer, string: str, progress: Progress, cancelled: Asked) -> Told:
    assert explorer.reader is not None
    steps = Steps(progress, cancelled)
    steps.begin(2 * calls_of(explorer.reader.model), "the model reads, to see what its heads do")
    with run_of_model(explorer, steps):
        return _told(heads(explorer.reader, string, truncate=True))


# ---------------------------------------------------------------------------------------- by the trace


def _by_trace(text: Text, progress: Progress, cancelled: Asked) -> Told:
    """The roles in each site whose queries and keys are the same tokens."""
    _check_exact(text)
    found: Told = {}
    skipped = None
    for number, (info, call) in enumerate(text.sites):
        go_on(cancelled)
        progress(number / len(text.sites), f"what the heads of {info['label']} do")
        try:
            found |= _told(heads(_OneCall(text.trace, call)))
        except NotRecordedError as error:
            skipped = error
    if not found and skipped is not None:
        raise skipped
    return found


def _check_exact(text: Text) -> None:
    if not all(info["exact"] for info, _ in text.sites):
        raise NotRecordedError(
            "what heads do is seen in their queries and keys, which this trace does not have: record with keep='qk' "
            "(saccade record --keep qk), or open it together with the model"
        )
    weights = sum(
        stack.batch * len(stack.sites) * stack.heads * stack.queries * stack.keys for stack in text.entry.stacks
    )
    if weights > MOST_WEIGHTS:
        raise ArgumentError(
            f"to see what the heads do in this text, {weights:,} weights would have to be formed; at most "
            f"{MOST_WEIGHTS:,} are: ask it of a shorter text"
        )


class _OneCall(Trace):
    """A trace of a single attention call, as far as `heads` looks at it."""

    def __init__(self, trace: Trace, call: Site) -> None:
        self._whole, self._call = trace, call

    @property
    def metadata(self) -> TraceMetadata:
        """See `Trace`."""
        return self._whole.metadata

    def __iter__(self) -> Iterator[Any]:
        yield [self._call]

    def __len__(self) -> int:
        return 1
