"""How many connections the page's server holds, and how long it waits on them: uvicorn bounds neither.

Its `limit_concurrency` answers everybody with an error once there are too many connections, also idle ones, and it
waits for ever for the headers of a request. So a few hundred connections that send nothing would close the page.
"""

import asyncio
import logging
from itertools import count

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 100  # a browser holds up to six; a process may open 256 files on some systems
HEADER_SECONDS = 10  # from a connection, or the first byte of a request, to the end of the request's headers
MOST_MESSAGES = 20  # of asyncio about connections that could not be had, in the life of the process
_numbers = count()


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 on one connection of at most MOST_CONNECTIONS; the next one ends that which waited longest.

    Those that have no request under way go first, the oldest of them before the others.
    """

    _timer: asyncio.TimerHandle | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Note the connection, in the place of another where there are too many."""
        if len(self.connections) >= MOST_CONNECTIONS:
            oldest = min(self.connections, key=lambda other: (not other.is_waiting, other.number))
            self.connections.discard(oldest)
            oldest.transport.abort()
        self.number = next(_numbers)
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read what came; headers that are not whole by then have HEADER_SECONDS, however they dribble in."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if not self.is_waiting:
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._end_waiting)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_waiting(self) -> None:
        self._timer = None
        if self.is_waiting:
            self.transport.abort()


class FirstMessages(logging.Filter):
    """Lets the first `most` messages of a logger pass: an attack must not fill the disk with lines about itself."""

    def __init__(self, most: int = MOST_MESSAGES) -> None:
        super().__init__()
        self.left = most

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this message is written."""
        self.left -= 1
        return self.left >= 0
