"""What may be asked for again: the latest used, as many bytes as there is room for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import TypeVar

T = TypeVar("T")


class Cache:
    """Values by key; what was used longest ago goes first.

    Args:
        room: bytes that all values may take together. A value that is larger than that is not kept.
    """

    def __init__(self, room: int) -> None:
        self._room, self._held = room, 0
        self._values: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()
        self._lock = Lock()

    @property
    def held(self) -> int:
        """Bytes that are held."""
        return self._held

    def get(self, key: Hashable, kind: type[T], make: Callable[[], tuple[T, int]]) -> T:
        """The value of a key; made, without holding anybody up, if it is not there.

        Args:
            key: what it is kept under.
            kind: what it is.
            make: gives the value and its bytes. Two threads may make it at once; one of the two is kept.
        """
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                self._values.move_to_end(key)
        if found is not None:
            assert isinstance(found[0], kind)
            return found[0]
        value, size = make()
        with self._lock:
            self._keep(key, value, size)
        return value

    def _keep(self, key: Hashable, value: object, size: int) -> None:
        _, before = self._values.pop(key, (None, 0))
        self._held -= before
        if size > self._room:
            return
        self._values[key] = value, size
        self._held += size
        while self._held > self._room:
            _, (_, freed) = self._values.popitem(last=False)
            self._held -= freed
