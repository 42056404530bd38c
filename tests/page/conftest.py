"""The built page in a real browser, asking a real `saccade explore`, and what it should say: float64, computed here.

Browser and servers are one for all tests of a process. A `Visit` is a tab with all that it complained of and asked for:
no test passes if its page complained of anything, or asked anything of anybody but its server.
"""

import base64
import json
import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from urllib.parse import quote

import nets
import pytest
import torch
from playwright.sync_api import expect

import saccade
from saccade.adapters import pretrained
from saccade.explorer.parcel import pack
from saccade.trace import Trace

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from browsing import browser, exploring

WIDE = {"width": 1280, "height": 800}
PATIENCE = 60_000  # ms; these machines are slow at times, and a test that waits for long fails anyway
# What drivers say of their speed is no complaint of the page: a GPU by software stalls where pixels are read.
DRIVER = re.compile(r"^\[\.WebGL-0x\w+\]GL Driver Message \(OpenGL, Performance, GL_CLOSE_PATH_NV, High\): GPU stall ")
LONG = 3000  # tokens
expect.set_options(timeout=PATIENCE)


# ---------------------------------------------------------------------------------------- browser and servers


@pytest.fixture(scope="session")
def chromium():
    """A browser. No test is skipped for want of one: `make test` installs it, or says how."""
    with browser() as running:
        yield running


class Served:
    """A running `saccade explore`."""

    def __init__(self, *arguments):
        self._running = ExitStack()
        self.base = self._running.enter_context(exploring(*arguments))

    @property
    def origin(self):
        return self.base.partition("?")[0]

    def at(self, look):
        """The link to a look."""
        return f"{self.base}#{look}"

    def end(self):
        self._running.close()


@pytest.fixture(scope="session")
def served():
    """The packaged model, with the sentences of "bank"."""
    running = Served()
    yield running
    running.end()


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A trace of two layers of four heads on numbers, as long as a chapter, with sharp patterns."""
    net, place = nets.Net(), tmp_path_factory.mktemp("long") / "long.zarr"
    with saccade.record(net, keep="qk", to=place):
        net(2 * torch.randn(1, 4, LONG, 16, generator=torch.Generator().manual_seed(1)))
    return place


@pytest.fixture(scope="session")
def long(recorded):
    """That trace, served without a model."""
    running = Served(recorded)
    yield running
    running.end()


@pytest.fixture
def brief(tmp_path):
    """A server of a tiny model, for a test that ends it."""
    import tiny_models

    running = Served("he left the rose by the bank", "--model", tiny_models.save(tmp_path / "tiny"))
    yield running
    running.end()


# ---------------------------------------------------------------------------------------- tabs


class Visit:
    """A tab, all that it complained of, and all that it asked for."""

    def __init__(self, tab):
        self.tab, self.complaints, self.forgiven, self.asked = tab, [], [], []
        tab.set_default_timeout(PATIENCE)
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("console", self._said)
        tab.on("request", lambda request: self.asked.append(request.url))

    def _said(self, message):
        if message.type in {"error", "warning"} and not DRIVER.match(message.text):
            self.complaints.append(message.text)

    def open(self, link):
        """Go to a link, and wait until its view is drawn."""
        self.tab.goto("about:blank")
        self.tab.goto(link)
        self.drawn()
        return self.tab

    def drawn(self, view=""):
        """Wait until a view is drawn; the one that is open."""
        self.tab.wait_for_selector(f"main[data-drawn='{view}']" if view else "main[data-drawn]")

    def go(self, look):
        """Another look in the same tab."""
        self.tab.evaluate("look => { location.hash = look }", look)
        self.drawn(re.match(r"/(\w+)", look)[1])

    @property
    def spoken(self):
        """Where the view is in words, as a screen reader gets it."""
        return self.tab.get_by_role("region", name="This view in words")

    def words(self):
        return self.spoken.inner_text()

    def settled(self):
        """Wait until address and words are what they stay: roles of heads, and links, come later than what is drawn."""
        self.tab.get_by_text("Finding out what each head does").wait_for(state="detached")
        before, now = None, (self.tab.url, self.words())
        while now != before:
            self.tab.wait_for_timeout(400)
            before, now = now, (self.tab.url, self.words())

    def saved(self, way):
        """The file that "Save" gives."""
        self.tab.get_by_role("button", name="Save", exact=True).click()
        with self.tab.expect_download() as waiting:
            self.tab.get_by_role("banner").get_by_role("button", name=re.compile(f"^{way}")).click()
        return Path(waiting.value.path()).read_bytes()

    def saved_json(self):
        return json.loads(self.saved("JSON"))

    def frame(self):
        """Wait until the page has drawn what it was told."""
        self.tab.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def readout(self):
        """What the pattern says of the place under the pointer."""
        self.frame()
        return self.tab.locator("main aside").inner_text()

    def forgive(self, what):
        """A test brings such complaints about, now or a little later; the page has to have made one."""
        self.forgiven.append(what)

    def check(self):
        """That the page complained of nothing else, and asked nobody but its server."""
        for what in self.forgiven:
            kept = [said for said in self.complaints if not re.search(what, said)]
            assert len(kept) < len(self.complaints), (what, self.complaints)
            self.complaints = kept
        assert self.complaints == []
        hosts = {re.match(r"about:blank|(?:blob:)?https?://[^/]+|\w+:", url)[0] for url in self.asked}
        own = {host for host in hosts if re.fullmatch(r"about:blank|data:|file:|(blob:)?http://127\.0\.0\.1:\d+", host)}
        assert hosts == own
        assert len({host.removeprefix("blob:") for host in hosts if "127.0.0.1" in host}) <= 1


@pytest.fixture
def visiting(chromium):
    """Makes new tabs, by default light and wide. A test fails if the page complained of anything."""
    contexts, visits = [], []

    def visit(context=None, **options):
        if context is None:
            asked = {"viewport": WIDE, "color_scheme": "light", "accept_downloads": True, "reduced_motion": "reduce"}
            context = chromium.new_context(**asked | options)
            contexts.append(context)
        visits.append(Visit(context.new_page()))
        return visits[-1]

    yield visit
    for context in contexts:
        context.close()
    for one in visits:
        one.check()


@pytest.fixture
def visit(visiting):
    """A new tab in the light."""
    return visiting()


COST = {
    "conditions": "12 heads of width 32, float32, as a test has it",
    "heads": 12,
    "width": 32,
    "itemsize": 4,
    "points": [
        {
            "length": length,
            "ours": {"seconds": 2e-9 * length**2 + 1e-4, "bytes": 2000 * length},
            "stored": {"seconds": 6e-9 * length**2 + 1e-4, "bytes": 60 * length**2},
        }
        for length in (128, 256, 512, 1024, 2048, 4096)
    ],
}


@pytest.fixture
def measured():
    """Lets a tab believe that the cost was measured: the same for every machine, and at once."""
    body = f"event: result\ndata: {base64.b64encode(pack(COST)).decode()}\n\n"

    def answer(visit):
        visit.tab.route("**/api/run/cost", lambda route: route.fulfill(body=body, content_type="text/event-stream"))

    return answer


# ---------------------------------------------------------------------------------------- float64


@dataclass(frozen=True, eq=False)
class Reading:
    """What the packaged model does with a text, from the queries, keys and values that a recording keeps."""

    text: str
    reader: pretrained.Pretrained
    trace: Trace

    @cached_property
    def weights(self):
        """Of every layer and head, float64 ``(L, H, N, N)``."""
        return torch.stack([dense(site) for site in self.trace[0]])

    @cached_property
    def tokens(self):
        ids = self.reader.tokenizer(self.text)["input_ids"]
        return self.reader.tokenizer.convert_ids_to_tokens(ids)

    def tokens_as_printed(self):
        """As the page prints them: as they stand in the text, marked where they continue a word."""
        spans = self.reader.tokenizer(self.text, return_offsets_mapping=True)["offset_mapping"]
        names = zip(self.tokens, spans, strict=True)
        return ["·" * name.startswith("##") + self.text[a:b] if b > a else name for name, (a, b) in names]

    @cached_property
    def special(self):
        return torch.tensor([token in {"[CLS]", "[SEP]"} for token in self.tokens])

    @cached_property
    def words(self):
        """The word of each token, ``(N,)``, as BERT's tokenizer counts them; the ends are words of their own."""
        numbers = self.reader.tokenizer(self.text).word_ids()
        changes = [i > 0 and (word is None or word != numbers[i - 1]) for i, word in enumerate(numbers)]
        return torch.tensor(changes).cumsum(0)

    def by_word(self):
        """Weights by words, float64 ``(L, H, words, words)``: keys summed, queries averaged."""
        member = torch.nn.functional.one_hot(self.words).double()
        return (member / member.sum(0)).T @ self.weights @ member


def dense(site):
    """The formula, literally: every weight of a site in float64, ``(H, Nq, Nk)``."""
    query, key = site.query[0].double(), site.key[0].double()
    mask = site.pattern.problem.mask
    scores = site.pattern.problem.scale * query @ key.mT
    if mask is not None:
        place = torch.arange(key.shape[1])
        starts, stops = (edges[0].long() for edges in (mask.starts, mask.stops))
        seen = ((place >= starts[..., None]) & (place < stops[..., None])).any(-2)
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1)


@pytest.fixture(scope="session")
def reading():
    """Has the packaged model read a text, as `Reading`."""
    reader = pretrained.load(None)

    @cache
    def read(text="He left the roses by the bank."):
        with saccade.record(reader.model, reader.tokenizer, keep="qkv") as trace, torch.no_grad():
            trace.next(texts=[text])
            reader.model(**reader.tokenizer(text, return_tensors="pt"))
        return Reading(text, reader, trace)

    return read


@pytest.fixture(scope="session")
def long_weights(recorded):
    """One head of the long trace in float64 ``(N, N)``."""
    trace = saccade.open_trace(recorded)

    @cache
    def weights(layer, head):
        return dense(trace[0, layer].heads([head]))[0]

    return weights


@pytest.fixture
def said():
    """How a link says a text."""
    return lambda text: quote(f"~{text}", safe="")
