"""The explorer in a notebook: the same page as a widget, its questions answered by the notebook's kernel.

No server and no port: what the page asks (`saccade.explorer`) and what it is answered are messages of the widget, so it
works wherever widgets do, on a remote kernel too.

    page -> kernel    {number, kind: "question" or "job", name, parameters}, {number, kind: "cancel"}
    kernel -> page    {number, kind: "progress", share, what}, {number, kind: "error", message},
                      {number, kind: "result"} and a parcel

Questions are computed on threads, so that the kernel goes on meanwhile. But answers are sent by the thread that heard
the question, on its event loop: not every notebook takes messages from others. While a cell runs, a kernel without
subshells (ipykernel before 7) neither hears nor says anything.

What numbers a question is not called "id": ipykernel keeps each of that name for ever, as if it waited for a reply.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.errors import ArgumentError, MissingExtraError, SaccadeError
from saccade.explorer import page
from saccade.explorer.explorer import Explorer
from saccade.explorer.opening import example_texts, is_trace
from saccade.explorer.parcel import pack
from saccade.explorer.work import Cancelled, go_on

try:
    import anywidget
    import traitlets
except ImportError:
    raise MissingExtraError("anywidget", "notebook") from None

if TYPE_CHECKING:
    from saccade.adapters.pretrained import Pretrained

QUESTION_THREADS, JOB_THREADS = 2, 1
MOST_ASKED = 128  # questions and jobs that are computed or wait for it
PAUSE = 0.1  # seconds between two words on how far a job is
FILES = {"_esm": "embed/embed.js", "_css": "embed/embed.css"}
FULL = "Too much is being computed already. Try again when some of it is done."

Say = Callable[[Callable[[], None]], object]


class Widget(anywidget.AnyWidget):
    """A page of the explorer in a notebook; `explore` makes one. It may be displayed any number of times.

    Attributes:
        view: what is looked at, as in the page's link: ``"/pattern?site=3&head=5"``. It follows the page, and setting
            it moves the page.
        height: of the widget, in pixels; a page that is longer scrolls.
    """

    _esm = traitlets.Unicode().tag(sync=True)
    _css = traitlets.Unicode().tag(sync=True)
    view = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int(720, min=200, max=10_000).tag(sync=True)

    def __init__(self, explorer: Explorer, **traits: Any) -> None:
        super().__init__(**_page(), **traits)
        self._explorer = explorer
        self._pools = {
            "question": ThreadPoolExecutor(QUESTION_THREADS, thread_name_prefix="saccade-question"),
            "job": ThreadPoolExecutor(JOB_THREADS, thread_name_prefix="saccade-job"),
        }
        self._asked: dict[str, tuple[threading.Event, Future[None]]] = {}
        self.on_msg(self._hear)

    def close(self) -> None:
        """Take the widget away, and give up what was asked. The kernel keeps a widget and its model until then."""
        for number in list(self._asked):
            self._give_up(number)
        for pool in self._pools.values():
            pool.shutdown(wait=False)
        super().close()

    def _hear(self, _: Any, message: Any, buffers: Any) -> None:
        del buffers
        if not isinstance(message, dict) or not isinstance(message.get("number"), str):
            return
        number, kind = message["number"], message.get("kind")
        if kind == "cancel":
            self._give_up(number)
        elif kind in ("question", "job") and number not in self._asked:
            self._begin(number, kind, str(message.get("name")), message.get("parameters"))

    def _begin(self, number: str, kind: str, name: str, parameters: Any) -> None:
        if len(self._asked) >= MOST_ASKED:
            self._tell(number, "error", message=FULL)
            return
        given_up, say = threading.Event(), _from_here()
        asked = parameters if isinstance(parameters, dict) else {}
        with suppress(RuntimeError):  # the widget was closed, or Python ends: nobody waits
            working = self._pools[kind].submit(self._work, number, kind, name, asked, given_up, say)
            self._asked[number] = given_up, working
            working.add_done_callback(lambda _: self._asked.pop(number))

    def _give_up(self, number: str) -> None:
        asked = self._asked.get(number)
        if asked is not None:
            given_up, working = asked
            given_up.set()
            working.cancel()  # if it is still in the line

    def _work(
        self, number: str, kind: str, name: str, parameters: Mapping[str, Any], given_up: threading.Event, say: Say
    ) -> None:
        told = float("-inf")

        def progress(share: float, what: str) -> None:
            nonlocal told
            if time.monotonic() - told > PAUSE:
                told = time.monotonic()
                say(lambda: self._tell(number, "progress", share=share, what=what))

        try:
            go_on(given_up.is_set)
            if kind == "question":
                found = self._explorer.answer(name, parameters, given_up.is_set)
            else:
                found = self._explorer.run(name, parameters, progress, given_up.is_set)
            go_on(given_up.is_set)
            content = pack(found)
        except Cancelled:
            return
        except Exception as error:  # noqa: BLE001  nobody would see what a thread raises
            message = self._sentence(error)
            say(lambda: self._tell(number, "error", message=message))
        else:
            say(lambda: self.send({"number": number, "kind": "result"}, buffers=[content]))

    def _sentence(self, error: Exception) -> str:
        if isinstance(error, SaccadeError):
            return str(error)
        self.log.error("An answer for the page failed", exc_info=error)
        return f"Something went wrong in the kernel, by a mistake of Saccade: {type(error).__name__}: {error}"

    def _tell(self, number: str, kind: str, **said: Any) -> None:
        self.send({"number": number, "kind": kind, **said})


def _from_here() -> Say:
    """How other threads have this one say something, as part of what it does now; themselves, if it has no loop."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return lambda say: say()
    now = contextvars.copy_context()  # ipykernel: which message is being answered
    return lambda say: loop.call_soon_threadsafe(say, context=now)


def _page() -> dict[str, str]:
    """The built page, as the traits of a widget.

    Raises:
        SaccadeError: it was not built.
    """
    page.check_built(page.BUILT)
    found = {trait: page.find(name, page.BUILT) for trait, name in FILES.items()}
    missing = [name for trait, name in FILES.items() if found[trait] is None]
    if missing:
        raise SaccadeError(f"{page.BUILT / missing[0]} is missing: build the page again: make page")
    return {trait: file.content.decode() for trait, file in found.items() if file is not None}


def explore(
    what: Any = None,
    text: str | None = None,
    *,
    model: Any = None,
    tokenizer: Any = None,
    view: str = "",
    height: int = 720,
) -> Widget:
    """Look around in a notebook in what a model attends to: every head, every weight, live text.

    Args:
        what: a trace (`saccade.record`, `saccade.open_trace`), or its folder or URL; or a text; or a model, as `model`.
            None: sentences in which a word has several senses.
        text: what the model reads first.
        model: who reads: a model of Hugging Face with its `tokenizer`; the name or folder of one; what
            `saccade.adapters.pretrained.load` gives. None: the small pretrained one, or with a trace nobody.
        tokenizer: of a model of Hugging Face.
        view: where to begin, as the page's link says it: ``"/pattern?site=3&head=5"``.
        height: of the widget, in pixels.

    Returns:
        The widget; a notebook shows it where it is the last thing in a cell.

    Raises:
        ArgumentError: these do not fit together, or a text is empty or too long for the model.
        MissingExtraError: the packages of the notebook extra are missing.
        SaccadeError: the page was not built; and as of `saccade.open_trace` and `saccade.adapters.pretrained.load`.

    Example:
        >>> from saccade.jupyter import explore
        >>> w = explore("He left the roses by the bank.", view="/lines")  # doctest: +SKIP
        >>> w.view = "/pattern?site=5"  # doctest: +SKIP
    """
    _check(text, view, height)
    _page()  # what is missing is said before a model is loaded
    return Widget(_explorer(what, text, model, tokenizer), view=view, height=height)


def _check(text: Any, view: Any, height: Any) -> None:
    if not isinstance(text, str | None):
        raise ArgumentError(f"text is {type(text).__name__}; expected a string")
    if not isinstance(view, str):
        raise ArgumentError(f'view is {type(view).__name__}; expected a string, such as "/pattern?site=3&head=5"')
    least, most = Widget.height.min, Widget.height.max
    if not isinstance(height, int) or not least <= height <= most:
        raise ArgumentError(f"height is {height!r}; expected {least} to {most:,} pixels")


def _explorer(what: Any, text: str | None, model: Any, tokenizer: Any) -> Explorer:
    from saccade.trace import Trace, open_trace

    trace = None
    if isinstance(what, Trace):
        trace = what
    elif isinstance(what, Path) or (isinstance(what, str) and is_trace(what)):
        trace = open_trace(what)
    elif isinstance(what, str):
        if text is not None:
            raise ArgumentError("expected one text; came two. A model is named with model=...")
        text = what
    elif what is not None:
        model = _only(what, model)
    if trace is not None and model is None:
        if text is not None:
            raise ArgumentError("the text has to be read by a model: expected model=..., the one of the trace")
        return Explorer(trace)
    explorer = Explorer(trace, _reader(model, tokenizer))
    for one in [text] if text is not None else example_texts() if trace is None else []:
        explorer.run("read", {"text": one})
    return explorer


def _only(what: Any, model: Any) -> Any:
    from saccade.adapters.pretrained import Pretrained

    if not isinstance(what, Pretrained) and not hasattr(what, "main_input_name"):
        raise ArgumentError(
            f"expected a trace or its folder, a text, or a model of Hugging Face; what came is {type(what).__name__}"
        )
    if model is not None:
        raise ArgumentError("expected one model; came two")
    return what


def _reader(model: Any, tokenizer: Any) -> Pretrained:
    from saccade.adapters.pretrained import as_pretrained

    return as_pretrained(model, tokenizer)
