"""The notebook widget's end of the messages, without a notebook: whoever listens to a widget hears what it says."""

import asyncio
import builtins
import importlib
import sys
import threading

import pytest
import tiny_models
from serving import Held, StandIn, until

from saccade import jupyter
from saccade.adapters import pretrained
from saccade.errors import ArgumentError, MissingExtraError, NotATraceError, SaccadeError
from saccade.explorer import page
from saccade.explorer.parcel import pack
from saccade.jupyter import Widget, explore
from saccade.trace import open_trace, record

TEXT = "He left the roses by the bank."


@pytest.fixture
def built(tmp_path, monkeypatch):
    folder = tmp_path / "page"
    (folder / "embed").mkdir(parents=True)
    (folder / "index.html").touch()
    (folder / "embed" / "embed.js").write_text("export default {};")
    (folder / "embed" / "embed.css").write_text(".saccade {}")
    monkeypatch.setattr(page, "BUILT", folder)
    return folder


class Page:
    """The other end of a widget's messages."""

    def __init__(self, widget, monkeypatch):
        self.widget, self.heard = widget, []
        monkeypatch.setattr(widget, "send", lambda content, buffers=None: self.heard.append((content, buffers)))

    def say(self, message):
        self.widget._hear(self.widget, message, [])  # ipywidgets would only log what is raised here

    def ask(self, number, kind, name, parameters=None):
        self.say({"number": number, "kind": kind, "name": name, "parameters": parameters})

    def told(self, number, kind):
        return [
            (content, buffers)
            for content, buffers in self.heard
            if content == {**content, "number": number, "kind": kind}
        ]

    def wait(self, number, kind):
        until(lambda: self.told(number, kind))
        return self.told(number, kind)[-1]


@pytest.fixture
def opened(built, monkeypatch):  # noqa: ARG001  a widget reads the built page
    """Opens a widget on functions that answer, and closes it."""
    made = []

    def opening(**functions):
        made.append(Widget(StandIn(**functions)))
        return Page(made[-1], monkeypatch)

    yield opening
    for widget in made:
        widget.close()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("saccade-")])


def echo(parameters, *_):
    return {"said": parameters}


# ------------------------------------------------------------------------------------------------- messages


def test_a_question_is_answered_with_a_parcel(opened):
    page = opened(tile=echo)
    asked = {"number": "a-0", "kind": "question", "name": "tile", "parameters": {"level": 3}}
    page.widget._handle_custom_msg(asked, [])
    assert page.wait("a-0", "result") == ({"number": "a-0", "kind": "result"}, [pack({"said": {"level": 3}})])
    page.ask("a-1", "question", "tile", "junk")
    assert page.wait("a-1", "result")[1] == [pack({"said": {}})]


def test_a_job_says_how_far_it_is_but_not_too_often(opened):
    def work(_, progress, *__):
        for step in range(1000):
            progress(step / 1000, "working")
        return {}

    page = opened(cost=work)
    page.ask("a", "job", "cost")
    page.wait("a", "result")
    told = [content for content, _ in page.told("a", "progress")]
    assert told[0] == {"number": "a", "kind": "progress", "share": 0.0, "what": "working"}
    assert len(told) < 100


def test_work_that_is_given_up_ends_and_is_not_answered(opened):
    held = Held()
    page = opened(cost=held, tile=echo)
    page.ask("working", "job", "cost")
    held.wait_begun()
    page.ask("in the line", "job", "cost")
    page.say({"number": "in the line", "kind": "cancel"})
    assert list(page.widget._asked) == ["working"]
    page.say({"number": "working", "kind": "cancel"})
    assert held.given_up.wait(10)
    until(lambda: not page.widget._asked)
    page.say({"number": "working", "kind": "cancel"})  # too late
    page.ask("after", "question", "tile")
    page.wait("after", "result")
    assert not page.told("in the line", "result") + page.told("working", "result")
    assert not held.begun.acquire(blocking=False)  # what was given up in the line never began


def test_a_number_is_asked_once(opened):
    held = Held()
    page = opened(tile=held)
    page.ask("a", "question", "tile")
    page.ask("a", "question", "tile")
    held.wait_begun()
    assert not held.begun.acquire(timeout=0.1)
    held.let_go.set()
    page.wait("a", "result")


def test_a_long_job_keeps_no_question_waiting(opened):
    held = Held()
    page = opened(cost=held, tile=echo)
    page.ask("long", "job", "cost")
    held.wait_begun()
    page.ask("short", "question", "tile")
    page.wait("short", "result")
    held.let_go.set()
    page.wait("long", "result")


def test_no_more_than_so_many_wait(opened, monkeypatch):
    monkeypatch.setattr(jupyter, "MOST_ASKED", 3)
    held = Held()
    page = opened(tile=held)
    for number in "abc":
        page.ask(number, "question", "tile")
    page.ask("d", "question", "tile")
    assert page.wait("d", "error")[0]["message"] == jupyter.FULL
    held.let_go.set()
    for number in "abc":
        page.wait(number, "result")
    page.ask("e", "question", "tile")
    page.wait("e", "result")


def test_errors_are_sentences(opened):
    def refuse(*_):
        raise ArgumentError("there is no text 7")

    page = opened(tile=refuse, heads=lambda *_: 1 / 0)
    page.ask("a", "question", "tile")
    assert page.wait("a", "error")[0]["message"] == "there is no text 7"
    page.ask("b", "question", "heads")
    assert "by a mistake of Saccade: ZeroDivisionError: division by zero" in page.wait("b", "error")[0]["message"]


@pytest.mark.parametrize(
    "message",
    [
        None,
        "text",
        7,
        [],
        {},
        {"number": 7, "kind": "question", "name": "tile"},
        {"number": "a"},
        {"number": "a", "kind": "nothing", "name": "tile"},
        {"number": "a", "kind": ["question"], "name": "tile"},
        {"number": "nobody's", "kind": "cancel"},
    ],
)
def test_junk_is_passed_over(opened, message):
    page = opened(tile=echo)
    page.say(message)
    page.ask("b", "question", "tile")
    page.wait("b", "result")
    assert {content["number"] for content, _ in page.heard} == {"b"}


def test_answers_are_sent_from_where_questions_were_heard(opened):
    page, threads = opened(tile=echo), []

    async def kernel():
        sent = asyncio.Event()
        page.widget.send = lambda *_, **__: (threads.append(threading.get_ident()), sent.set())
        page.ask("a", "question", "tile")
        await asyncio.wait_for(sent.wait(), 10)

    asyncio.run(kernel())
    assert threads == [threading.get_ident()]


def test_closing_gives_up_everything(opened):
    held = Held()
    page = opened(cost=held)
    page.ask("a", "job", "cost")
    held.wait_begun()
    page.widget.close()
    assert held.given_up.wait(10)
    page.ask("b", "job", "cost")
    until(lambda: not page.widget._asked)
    assert page.heard == []


# ------------------------------------------------------------------------------------------------ explore()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return pretrained.load(str(tiny_models.save(tmp_path_factory.mktemp("jupyter") / "tiny")))


@pytest.fixture
def trace(tiny, tmp_path):
    folder = tmp_path / "kept.zarr"
    with record(tiny.model, tiny.tokenizer, keep="qkv", to=folder) as recording:
        recording.next(texts=["the roses"])
        tiny.model(**pretrained.encode(tiny, "the roses").inputs)
    return folder


def texts(widget):
    about = widget._explorer.about()
    widget.close()
    return [text["text"] for text in about["texts"]], about["abilities"]["read"] is True


@pytest.mark.usefixtures("built")
def test_what_can_be_explored(tiny, trace):
    assert texts(explore(trace)) == texts(explore(str(trace))) == texts(explore(open_trace(trace)))
    assert texts(explore(trace)) == (["the roses"], False)
    assert texts(explore(trace, "by the bank", model=tiny)) == (["the roses", "by the bank"], True)
    assert texts(explore(tiny, "the bank")) == (["the bank"], True)
    assert texts(explore("the bank", model=tiny)) == texts(explore(text="the bank", model=tiny)) == (["the bank"], True)
    assert texts(explore("the bank", model=tiny.model, tokenizer=tiny.tokenizer)) == (["the bank"], True)
    assert texts(explore(tiny.model, "the bank", tokenizer=tiny.tokenizer)) == (["the bank"], True)
    found, reads = texts(explore(model=tiny))
    assert (found[0], len(found), reads) == (TEXT, 4, True)


@pytest.mark.usefixtures("built")
def test_the_traits(tiny):
    with_view = explore(tiny, TEXT, view="/lines?site=1", height=400)
    assert (with_view.view, with_view.height) == ("/lines?site=1", 400)
    assert (with_view._esm, with_view._css) == ("export default {};", ".saccade {}")
    with_view.close()


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"what": 7}, "expected a trace or its folder, a text, or a model of Hugging Face; what came is int"),
        ({"text": 7}, "text is int; expected a string"),
        ({"what": " "}, "the text is empty"),
        ({"what": "gpt2", "text": TEXT}, "expected one text; came two. A model is named with model=..."),
        ({"view": 7}, "view is int; expected a string, such as"),
        ({"height": 20}, "height is 20; expected 200 to 10,000 pixels"),
        ({"height": "tall"}, "height is 'tall'; expected 200 to 10,000 pixels"),
    ],
)
def test_what_does_not_fit(tiny, arguments, said):
    with pytest.raises(ArgumentError) as error:
        explore(**({"model": tiny} | arguments if arguments.get("what") != 7 else arguments))
    assert said in str(error.value)


@pytest.mark.usefixtures("built")
def test_what_does_not_fit_together(tiny, trace, tmp_path):
    with pytest.raises(ArgumentError, match="expected one model; came two"):
        explore(tiny, model=tiny)
    with pytest.raises(ArgumentError, match=r"expected model=\.\.\., the one of the trace"):
        explore(trace, TEXT)
    with pytest.raises(ArgumentError, match="tokenizer is NoneType"):
        explore(tiny.model)
    with pytest.raises(NotATraceError):
        explore(tmp_path / "nowhere")
    with pytest.raises(NotATraceError):
        explore("nowhere.zarr")


def test_a_page_that_is_not_built_says_how_to_build_it(built):
    (built / "embed" / "embed.css").unlink()
    with pytest.raises(SaccadeError, match=r"embed\.css is missing: build the page again: make page"):
        explore(TEXT)
    (built / "index.html").unlink()
    with pytest.raises(SaccadeError, match=r"the page is not built.*make page"):
        explore(TEXT)


def test_without_anywidget_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "anywidget":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "saccade.jupyter")
    with pytest.raises(MissingExtraError, match=r"anywidget is not installed: pip install 'saccade\[notebook\]'"):
        importlib.import_module("saccade.jupyter")
    monkeypatch.undo()
