"""Threads that compute what is asked, so that whoever passes bytes on never waits for numbers.

There is a fixed number of them, and what comes while all are busy waits in line: a page that asks for much makes itself
wait, not the machine. Each piece of work comes with an event that says when nobody wants its result any more.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from saccade.explorer.work import Asked, go_on

T = TypeVar("T")


class FullError(Exception):
    """As much is waiting in line as may."""


class ClosedError(Exception):
    """No work is taken any more."""


class Desk:
    """A fixed number of threads, with a line of bounded length in front of them.

    Args:
        name: what its threads are called.
        threads: how many pieces of work are done at once.
        line: how many more may wait.
    """

    def __init__(self, name: str, *, threads: int, line: int) -> None:
        self._threads, self._line = threads, line
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._taken: dict[Future[Any], threading.Event] = {}
        self._closed = False
        self._lock = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether what is taken now has to wait."""
        return len(self._taken) >= self._threads

    def take(self, work: Callable[[Asked], T], given_up: threading.Event) -> asyncio.Future[T]:
        """Have a thread do some work, which is told how to ask whether it was given up.

        Cancelling what is returned takes the work out of the line, if it is still in it.

        Raises:
            FullError: the line is full.
            ClosedError: `close` was called.
        """

        def begin() -> T:
            go_on(given_up.is_set)
            return work(given_up.is_set)

        with self._lock:
            if self._closed:
                raise ClosedError
            if len(self._taken) >= self._threads + self._line:
                raise FullError
            future = self._pool.submit(begin)
            self._taken[future] = given_up
        future.add_done_callback(self._forget)
        return asyncio.wrap_future(future)

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            del self._taken[future]

    def close(self) -> None:
        """Take no more work, and give up all that there is; a thread ends when it notices."""
        with self._lock:
            self._closed = True
            events = list(self._taken.values())
        for event in events:
            event.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def join(self, seconds: float) -> None:
        """Wait for the threads to notice, after `close`, and no longer than that."""
        with self._lock:
            taken = list(self._taken)
        wait(taken, seconds)
