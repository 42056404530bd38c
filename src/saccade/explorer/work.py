"""Work that may be given up: whoever asked is gone, or has asked for something else since."""

from __future__ import annotations

from collections.abc import Callable

from saccade.errors import SaccadeError

Asked = Callable[[], bool]  # whether the work has been given up; asked several times a second


class Cancelled(SaccadeError):  # noqa: N818  nothing went wrong
    """The work was given up before it was done; there is no answer."""

    def __init__(self) -> None:
        super().__init__("the question was given up before it was answered")


def never() -> bool:
    """For work that nobody gives up."""
    return False


def go_on(cancelled: Asked) -> None:
    """Raise `Cancelled` if the work was given up."""
    if cancelled():
        raise Cancelled
