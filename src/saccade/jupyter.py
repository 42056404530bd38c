"""The explorer in a notebook: the same page as a widget, its questions answered by the notebook's kernel.

No server and no port: what a page asks (`saccade.explorer`) and what it is answered are messages of the widget, so it
works wherever widgets do, on a remote kernel too. Questions are computed on threads; messages pass between cells.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from saccade.errors import MissingExtraError, SaccadeError
from saccade.explorer import page
from saccade.explorer.explorer import Explorer
from saccade.explorer.parcel import pack
from saccade.explorer.work import Cancelled

try:
    import anywidget
    import traitlets
except ImportError:
    raise MissingExtraError("anywidget", "notebook") from None

QUESTION_THREADS, JOB_THREADS = 2, 1
MOST_WAITING = 128
EMBED = page.BUILT / "embed"
FILES = {"esm": "embed.js", "css": "embed.css"}


class Widget(anywidget.AnyWidget):
    """A page of the explorer in a notebook; `explore` makes one.

    Attributes:
        view: what is looked at, as in the page's link: ``"/pattern?site=3&head=5"``. Set it to go there.
        height: of the widget, in pixels; a page that is longer scrolls.
    """

    _esm = traitlets.Unicode("").tag(sync=True)
    _css = traitlets.Unicode("").tag(sync=True)
    view = traitlets.Unicode("").tag(sync=True)
    height = traitlets.Int(720, min=200, max=10_000).tag(sync=True)

    def __init__(self, explorer: Explorer, **traits: Any) -> None:
        built = {f"_{kind}": (EMBED / file).read_text("utf-8") for kind, file in FILES.items()}
        super().__init__(**built, **traits)
        self._explorer = explorer
        self._pools = {
            "question": ThreadPoolExecutor(QUESTION_THREADS, thread_name_prefix="saccade-question"),
            "job": ThreadPoolExecutor(JOB_THREADS, thread_name_prefix="saccade-job"),
        }
        self._asked: dict[str, threading.Event] = {}
        self.on_msg(self._hear)

    def close(self) -> None:
        """Take the widget away, and give up what it asked."""
        for given_up in list(self._asked.values()):
            given_up.set()
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _hear(self, _: Any, message: Any, buffers: Any) -> None:
        """What the page says: {id, kind: "question" or "job", name, parameters}, or {id, kind: "cancel"}."""
        del buffers
        if not isinstance(message, dict) or not isinstance(message.get("id"), str):
            return
        number, kind = message["id"], message.get("kind")
        if kind == "cancel":
            if number in self._asked:
                self._asked[number].set()
        elif kind in self._pools and number not in self._asked:
            if len(self._asked) >= MOST_WAITING:
                self._tell(number, "error", message="Too many questions are waiting for an answer.")
                return
            self._asked[number] = threading.Event()
            self._pools[kind].submit(self._work, number, kind, message.get("name"), message.get("parameters"))

    def _work(self, number: str, kind: str, name: Any, parameters: Any) -> None:
        given_up = self._asked[number].is_set

        def progress(share: float, what: str) -> None:
            self._tell(number, "progress", share=share, what=what)

        def found() -> Mapping[str, Any]:
            asked = parameters if isinstance(parameters, dict) else {}
            if kind == "question":
                return self._explorer.answer(str(name), asked, given_up)
            return self._explorer.run(str(name), asked, progress, given_up)

        try:
            self._answer(number, found)
        finally:
            del self._asked[number]

    def _answer(self, number: str, found: Callable[[], Mapping[str, Any]]) -> None:
        try:
            content = pack(found())
        except Cancelled:
            return
        except SaccadeError as error:
            self._tell(number, "error", message=str(error))
        except Exception:  # noqa: BLE001  what a thread raises nobody would see
            self._tell(number, "error", message=f"This is a bug of Saccade: {traceback.format_exc()}")
        else:
            self.send({"id": number, "kind": "result"}, buffers=[content])

    def _tell(self, number: str, kind: str, **said: Any) -> None:
        self.send({"id": number, "kind": kind, **said})


def explore(
    what: Any = None, text: str | None = None, *, tokenizer: Any = None, view: str = "", height: int = 720
) -> Widget:
    """Look around in what a model attended to, in a notebook.

    Args:
        what: a trace (`saccade.open_trace`, `saccade.record`), its folder, or a model: one of Hugging Face with its
            `tokenizer`, its name, or None for the small pretrained one.
        text: what a model is to read first.
        tokenizer: of a model of Hugging Face.
        view: where to begin, as the page's link says it: ``"/pattern?site=3&head=5"``.
        height: of the widget, in pixels.

    Returns:
        The widget; a notebook shows it where it is the last thing in a cell.

    Raises:
        MissingExtraError: the packages of the notebook extra are missing.
        SaccadeError: the page was not built, or as `open_trace` and `saccade.adapters.pretrained.load`.
        ArgumentError: a text was given with a trace, or is empty.
    """
    page.check_built()
    return Widget(_explorer(what, text, tokenizer), view=view, height=height)


def _explorer(what: Any, text: str | None, tokenizer: Any) -> Explorer:
    from saccade.adapters.pretrained import as_pretrained
    from saccade.errors import ArgumentError
    from saccade.trace import Trace, open_trace

    if isinstance(what, str | Path) and (Path(what) / "zarr.json").is_file():
        what = open_trace(what)
    if isinstance(what, Trace):
        if text is not None:
            raise ArgumentError("expected a trace or a text to read, not both")
        return Explorer(what)
    explorer = Explorer(reader=as_pretrained(what, tokenizer))
    explorer.run("read", {"text": "He left the roses by the bank." if text is None else text})
    return explorer
