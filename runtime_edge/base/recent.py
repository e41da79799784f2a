"""The most recent items of a kind, written by one thread and read by others."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class Recent(Generic[_Item]):
    """Keeps the last `keep` items. Each reader gets a copy, so it can iterate while items are added."""

    def __init__(self, keep: int) -> None:
        self._items: deque[_Item] = deque(maxlen=keep)
        self._lock = threading.Lock()

    def append(self, item: _Item) -> None:
        """Add one item."""
        with self._lock:
            self._items.append(item)

    def all(self) -> list[_Item]:
        """The items that are kept, oldest first."""
        with self._lock:
            return list(self._items)
