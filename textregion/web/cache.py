"""Results that are kept until they need too much memory together."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """Values by key, those used longest ago dropped first.

    limit: bytes of all values together; the newest is kept even if it alone needs more. size_of: bytes of a value.
    """

    def __init__(self, limit: int, size_of: Callable[[Value], int]) -> None:
        self.limit, self.size_of = limit, size_of
        self.used = 0
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The kept value, or a new one from `make`, which runs once at a time; what it raises is not kept."""
        with self._lock:
            if key not in self._values:
                value = make()
                self._values[key] = value
                self.used += self.size_of(value)
            self._values.move_to_end(key)
            while self.used > self.limit and len(self._values) > 1:
                _, oldest = self._values.popitem(last=False)
                self.used -= self.size_of(oldest)
            return self._values[key]

    def __len__(self) -> int:
        """How many values are kept."""
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        """Whether a value is kept."""
        return key in self._values
