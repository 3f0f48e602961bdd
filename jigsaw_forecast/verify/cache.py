"""Keeps arrays that were used last, up to a number of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy.typing as npt


class ArrayCache:
    """The least recently used arrays are dropped first; one array is always kept.

    Attributes:
        num_bytes: The most that it holds.
    """

    def __init__(self, num_bytes: int) -> None:
        """Holds nothing yet."""
        self.num_bytes = num_bytes
        self._size = 0
        self._held: OrderedDict[Hashable, npt.NDArray[Any]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The array under a key, made where it is not held."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        made = make()
        self.put(key, made)
        return made

    def put(self, key: Hashable, made: npt.NDArray[Any]) -> None:
        """Keeps an array under a key that is not held."""
        self._held[key] = made
        self._size += made.nbytes
        while self._size > self.num_bytes and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._size -= dropped.nbytes

    def holds(self, key: Hashable) -> bool:
        """Whether the array under a key is held."""
        return key in self._held

    def clear(self) -> None:
        """Drops everything."""
        self._held.clear()
        self._size = 0
