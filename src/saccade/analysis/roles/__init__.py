"""What each head of a model does: who looks at the token before, at the first, at separators, at repetitions.

A model is followed while it reads, and each attention call is scored at once; no pattern is kept. Of a trace the
patterns are formed again from queries and keys, one site at a time. See `roles_scoring` for how.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saccade.adapters.observation import Call, Running, check_complete, watching
from saccade.adapters.pretrained import Pretrained, as_pretrained
from saccade.analysis.result import Result
from saccade.analysis.roles.reading import Batch, Untold, random_repeats, reading_of_site, text_batches
from saccade.analysis.roles.scoring import HABITS, ROLES, Reading, Scoring, Tally
from saccade.backends import Inputs
from saccade.errors import ArgumentError, NotRecordedError
from saccade.masks import Lengths, Mask
from saccade.pattern import Pattern
from saccade.scores import Problem
from saccade.statistics import LogSumExp, Statistic
from saccade.trace import Trace
from saccade.trace.blocks import name_of_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STANDS_OUT = 0.1  # nats by which a role must differ from a uniform pattern to be a head's strongest
SINK = 0.3  # the weight on the first token from which a head counts as a sink (Gu et al., section 3)
_RESERVED = frozenset({*ROLES, *HABITS, "strongest", "layer", "head"})


@dataclass(frozen=True, eq=False)
class HeadRoles(Result):
    """How much each head plays each role.

    Attributes:
        scores: by role ``(L, H)``, from 0 to 1: the weight on the role's keys, a mean over the queries that see such a
            key; NaN where none does. The user's own patterns come last.
        uniform: likewise, what a pattern would score that gives all visible keys the same weight.
        distance: ``(L, H)``, how far a query looks on average, in tokens (Vig & Belinkov, arXiv 1906.04284).
        entropy: ``(L, H)``, of a query's weights in nats, a mean over queries (Clark et al., arXiv 1906.04341).
        sites: which attention call each layer is.
        head_numbers: which heads these are.
        skipped: attention calls that were not scored, as their queries and keys are different tokens.
        model: its name.
        read: what it read.
        local: how many tokens away is still local.

    >>> import saccade, torch
    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3, vocab_size=40)
    >>> roles = heads(BertModel(tiny).eval())
    >>> roles.scores["previous"].shape
    torch.Size([3, 2])
    >>> layer, head = roles.ranked("induction")[0]
    >>> float(roles.scores["induction"][layer, head]) == float(roles.scores["induction"].max())
    True
    """

    SIZE: ClassVar[tuple[float, float]] = (7.4, 4.6)

    scores: Mapping[str, Tensor]
    uniform: Mapping[str, Tensor]
    distance: Tensor
    entropy: Tensor
    sites: Sequence[str]
    head_numbers: Sequence[int]
    skipped: Sequence[str]
    model: str
    read: str
    local: int

    def arrays(self) -> dict[str, tuple[tuple[str, ...], NDArray[Any]]]:
        """Every score, what stands out, distance and entropy, by layer and head."""
        tables = {name: table.numpy() for name, table in self.columns.items()} | {"strongest": self.strongest}
        return {name: (("layer", "head"), table) for name, table in tables.items()}

    def coordinates(self) -> dict[str, Sequence[Any]]:
        """See `Result.coordinates`."""
        return {"layer": range(len(self.sites)), "head": self.head_numbers}

    def about(self) -> dict[str, Any]:
        """See `Result.about`."""
        return {
            "model": self.model,
            "read": self.read,
            "local": self.local,
            "sites": list(self.sites),
            "skipped": list(self.skipped),
            "sink_rate": self.sink_rate(),
            "uniform": {role: _finite(table.nanmean()) for role, table in self.uniform.items()},
        }

    def sink_rate(self, threshold: float = SINK) -> float:
        """The share of heads with more weight than that on the first token on average (Gu et al., arXiv 2410.10781)."""
        first = self.scores["first"]
        return float((first > threshold).sum() / first.isfinite().sum().clamp_min(1))

    def standing_out(self, role: str) -> Tensor:
        """How much more a head plays a role than a uniform pattern would, in nats, ``(L, H)``.

        With s the score and u the uniform pattern's, the Kullback-Leibler divergence of (s, 1 - s) from (u, 1 - u),
        ``s ln(s / u) + (1 - s) ln((1 - s) / (1 - u))``; 0 where s <= u. So the token before wins over the eight around
        a query where nearly all of their weight is on it.

        Raises:
            ArgumentError: there is no such role.
        """
        self._check(role, self.scores)
        s, u = self.scores[role], self.uniform[role]
        nats = torch.special.xlogy(s, s / u) + torch.special.xlogy(1 - s, (1 - s) / (1 - u))
        return torch.where(s > u, nats, 0.0)

    @property
    def strongest(self) -> NDArray[np.str_]:
        """The role that stands out most of each head, ``(L, H)``; "" where none does by `STANDS_OUT` nats."""
        names = np.array([*self.scores, ""])
        nats = torch.stack([self.standing_out(role) for role in self.scores]).nan_to_num(0.0)
        best, which = nats.max(0)
        chosen: NDArray[np.str_] = names[torch.where(best > STANDS_OUT, which, len(self.scores)).numpy()]
        return chosen

    @property
    def columns(self) -> dict[str, Tensor]:
        """Scores, distance and entropy by name, ``(L, H)`` each."""
        return {**self.scores, "distance": self.distance, "entropy": self.entropy}

    def ranked(self, by: str = "strongest") -> list[tuple[int, int]]:
        """Layer and position of each head, those with the highest number first.

        Args:
            by: a role, "distance" or "entropy"; "strongest": by how much the head's strongest role stands out.

        Raises:
            ArgumentError: there is no such role.
        """
        if by == "strongest":
            table = torch.stack([self.standing_out(role) for role in self.scores]).nan_to_num(0.0).amax(0)
        else:
            self._check(by, [*self.columns, "strongest"])
            table = self.columns[by]
        order = table.nan_to_num(-1.0).flatten().argsort(descending=True, stable=True)
        width = table.shape[1]
        return [(i // width, i % width) for i in order.tolist() if bool(self.entropy.flatten()[i].isfinite())]

    def draw(self, axis: Axes) -> None:
        """Layers by heads, each in the colour of its strongest role, the deeper the higher its score."""
        from saccade.analysis.roles.picture import draw

        draw(axis, self)

    @staticmethod
    def _check(role: str, known: Mapping[str, Tensor] | Sequence[str]) -> None:
        if role not in known:
            raise ArgumentError(f"there is no role {role!r}; expected one of {', '.join(known)}")


def _finite(number: Tensor) -> float | None:
    return float(number) if bool(number.isfinite()) else None


def heads(
    model: Any,
    text: str | Sequence[str] | None = None,
    *,
    tokenizer: Any = None,
    patterns: Mapping[str, Mask] | None = None,
    local: int = 4,
    batch: int = 8,
    truncate: bool = False,
    length: int | None = None,
    repeats: int = 4,
    seed: int = 0,
) -> HeadRoles:
    """Score what each head of a model does.

    Every score is the weight on a set of keys, a mean over the queries that are no padding and see such a key:

    - previous, next: the token before and the one after (Clark et al., arXiv 1906.04341, section 3.2);
    - first: the first token, where sinks are (Gu et al., arXiv 2410.10781);
    - separators: special tokens other than the first, and tokens of punctuation only (Clark et al., section 3.2);
      known with a tokenizer only;
    - duplicate: other occurrences of the query's token (Wang et al., arXiv 2211.00593, section 3.1);
    - induction: tokens that follow another occurrence of the query's token (Olsson et al., arXiv 2209.11895);
    - local: tokens at most `local` away, the query's own included; global: all others.

    A live model's duplicate and induction are measured, as they are defined, on random tokens that are read twice in a
    row; without a text all roles are. In a trace all come from its own tokens. With attention sinks, weights are
    shares of the whole row, the sink's included. Memory is O(N).

    Args:
        model: a name or folder, None for the packaged model, a `Pretrained`, a model of Hugging Face, or a trace that
            was recorded with ``keep="qk"``, whose entries are taken together.
        text: one text or several; None for repeated random tokens. Not with a trace.
        tokenizer: of a model of Hugging Face; needed to read a text.
        patterns: more roles: a mask of `saccade.masks` by name. They are made for padded batches: where texts differ
            in length, only their ends are padded.
        local: how many tokens away is still local, at least 1.
        batch: texts in one forward.
        truncate: cut texts that are too long for the model.
        length: random tokens before they repeat; None for 64, or as many as the model has positions for.
        repeats: how many such sequences.
        seed: of the random tokens.

    Raises:
        ArgumentError: an argument does not fit, a text is empty or too long.
        NotRecordedError: the trace holds no queries and keys, or no tokens.
        UnsupportedModelError: the model's attention does not come through Saccade.
        MaskError: a pattern does not fit.
    """
    _check_numbers(local=local, batch=batch, repeats=repeats)
    asked = Asked(local, _checked_patterns(patterns))
    if isinstance(model, Trace):
        if text is not None:
            raise ArgumentError("a trace holds its own texts: expected text=None")
        return _of_trace(model, asked)
    reader = as_pretrained(model, Untold() if tokenizer is None else tokenizer)  # random tokens need none
    random = random_repeats(reader, length, repeats, seed)
    said = f"repeated random tokens ({repeats} × {random.length}, each twice in a row, seed {seed})"
    if text is None:
        return score_batches(reader, [], random.batch, asked, said)
    texts = text_batches(reader, text, batch, truncate=truncate)
    tokens = sum(int(one.reading.valid.sum()) for one in texts)
    count = sum(len(one.reading.ids) for one in texts)
    read = f"{count} text{'s' * (count > 1)} of {tokens:,} tokens; duplicate and induction by {said}"
    return score_batches(reader, texts, random.batch, asked, read)


def _check_numbers(**given: int) -> None:
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"{name} = {value!r}: expected an integer of at least 1")


def _checked_patterns(patterns: Mapping[str, Mask] | None) -> dict[str, Mask]:
    found = dict(patterns or {})
    for name, mask in found.items():
        if not isinstance(name, str) or not name.strip() or name in _RESERVED:
            raise ArgumentError(f"patterns: {name!r} cannot name one; expected a name other than {sorted(_RESERVED)}")
        if not isinstance(mask, Mask):
            raise ArgumentError(f"patterns: {name} is {type(mask).__name__}; expected a mask of saccade.masks")
    return found


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked beside the known roles."""

    local: int = 4
    patterns: Mapping[str, Mask] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------- a model that reads


def score_batches(
    reader: Pretrained, texts: Sequence[Batch], random: Batch, asked: Asked | None = None, read: str = ""
) -> HeadRoles:
    """Have a model read batches of texts, and one of repeated random tokens; without texts that one tells all roles.

    Args:
        reader: the model.
        texts: what all roles but duplicate and induction come from.
        random: what duplicate and induction come from.
        asked: see `heads`; None for its defaults.
        read: what to say was read.
    """
    asked = asked or Asked()
    follower = _Follower(asked)
    with watching(reader.model, follower) as watch, torch.no_grad():
        for one in texts:
            follower.follow(one.reading, text=True, repeats=False)
            reader.model(**one.inputs)
        follower.follow(random.reading, text=not texts, repeats=True)
        reader.model(**random.inputs)
    check_complete(reader.model, follower.calling, watch)
    found = follower.found
    if not found.tallies:
        raise ArgumentError(f"{reader.name} makes no attention call whose queries and keys are the tokens it reads")
    return found.roles(reader.name, read, asked)


@dataclass(eq=False)
class _Found:
    """What was found so far, by attention call."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    heads: dict[str, Sequence[int]] = field(default_factory=dict)
    skipped: dict[str, None] = field(default_factory=dict)  # in order, each once

    def scoring(self, site: str, heads: Sequence[int], pattern: Pattern, reading: Reading) -> Scoring:
        """Where to score a call."""
        self.heads[site] = heads
        return Scoring(pattern, reading, self.tallies.setdefault(site, Tally()))

    def roles(self, model: str, read: str, asked: Asked) -> HeadRoles:
        """The means of all."""
        numbers = max(self.heads.values(), key=len)
        names = [*ROLES, *asked.patterns, *HABITS]
        tables = torch.full((2, len(names), len(self.tallies), len(numbers)), torch.nan, dtype=torch.float64)
        for layer, tally in enumerate(self.tallies.values()):
            for role, means in tally.means().items():
                for table, mean in zip(tables, means, strict=True):
                    table[names.index(role), layer, : len(mean)] = mean
        score, uniform = (dict(zip(names, table.float(), strict=True)) for table in tables)
        distance, entropy = (score.pop(name) for name in HABITS)
        chance = {role: uniform[role] for role in score}
        return HeadRoles(
            score, chance, distance, entropy, list(self.tallies), list(numbers), list(self.skipped), model, read,
            asked.local,
        )  # fmt: skip


@dataclass(eq=False)
class _Follower:
    """The listener that scores attention calls as they are made."""

    asked: Asked
    found: _Found = field(default_factory=_Found)
    calling: set[int] = field(default_factory=set)  # the forwards that made a call
    _times: Counter[str] = field(default_factory=Counter)

    def follow(self, reading: Reading, *, text: bool, repeats: bool) -> None:
        """Say what the next forward reads, and which roles it tells."""
        self._reading, self._text, self._repeats = reading, text, repeats

    def statistics(self, running: Running, lengths: Lengths) -> Sequence[Statistic]:
        """See `Listener`: nothing of a call whose queries and keys are not the tokens that were read."""
        batch, tokens = self._reading.ids.shape
        if (lengths.batch, lengths.queries, lengths.keys) != (batch, tokens, tokens) or running.is_cross_attention():
            return ()
        return LogSumExp(), *(self._reading.statistics() if self._text else ())

    def called(self, call: Call, running: Running, problem: Problem, inputs: Inputs) -> None:
        """See `Listener`."""
        del running
        self.calling.add(call.forward)
        times = self._times[call.site]
        self._times[call.site] += 1
        name = name_of_run(call.site, times)
        if not call.statistics:
            self.found.skipped[name] = None
            return
        pattern = _pattern(problem, inputs).with_lse(call.report.lse)
        scoring = self.found.scoring(name, range(call.lengths.heads), pattern, self._reading)
        if self._text:
            scoring.text(call.report, self.asked.local, self.asked.patterns)
        if self._repeats:
            scoring.repeats()

    def entered(self, running: Running, forward: int) -> None:
        """See `Listener`."""
        del forward
        if not running.depth:
            self._times.clear()

    def left(self, running: Running, forward: int, output: Any) -> None:
        """See `Listener`."""


def _pattern(problem: Problem, inputs: Inputs) -> Pattern:
    inputs = inputs.gathered()
    return Pattern(
        inputs.query,
        inputs.key,
        mask=problem.mask,
        scale=problem.scale,
        softcap=problem.softcap,
        bias=problem.bias,
        sinks=problem.sinks,
    )


# ---------------------------------------------------------------------------------------- a trace


def _of_trace(trace: Trace, asked: Asked) -> HeadRoles:
    found = _Found()
    for entry in trace:
        for site in entry:
            reading = reading_of_site(site)
            if reading is None:
                found.skipped[site.name] = None
                continue
            pattern = site.pattern
            scoring = found.scoring(site.name, site.head_numbers, pattern, reading)
            scoring.text(pattern.ask(reading.statistics()), asked.local, asked.patterns)
            scoring.repeats()
    if not found.tallies:
        raise NotRecordedError(
            "the trace has no attention call whose queries and keys are known to be the same tokens: record a model "
            "that is given tokens as ids"
        )
    about = trace.metadata
    entries = f"a trace of {len(trace)} entr{'ies' if len(trace) > 1 else 'y'}"
    return found.roles(about.name or about.model, entries, asked)
